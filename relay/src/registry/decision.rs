//! What a decision of the coordinator goes by, and what it is made of.

use std::time::Instant;

use serde::Serialize;

use crate::kafka::Unread;
use crate::model::Partition;
use crate::route::Balance;

use super::record::Key;

/// Why a server is gone that did nothing for it.
pub(super) const LOST: &str = "another server has its partition";

/// What a coordinator has to ask of the world.
pub trait Facts {
    /// How far a partition is read, as it was found out not before `since`. None: not known yet; it is
    /// found out, and the question may be asked again.
    fn unread(&mut self, partition: Partition, since: Instant) -> Option<Unread>;
    /// The same for a reader that lives: without a commit it has read what is so old that its commit
    /// would be forgotten.
    fn unread_by_living(&mut self, partition: Partition, since: Instant) -> Option<Unread> {
        let unread = self.unread(partition, since)?;
        Some(Unread { records: if unread.outlived { 0 } else { unread.records }, ..unread })
    }
    /// Clients of a server.
    fn clients(&self, id: &str) -> u32;
    /// How far the clients of a service are spread; none of one that is not known.
    fn balance(&self, service: &str) -> Option<Balance>;
    /// Begins to move what waits in a partition, which is for nobody, to the dead letters. False: not
    /// now; it is to be asked again.
    fn bury(&mut self, partition: Partition) -> bool;
    /// Gives a partition to a server that will commit what it has read there. False: not now, because
    /// something else is being committed; it is to be asked again.
    fn claim(&mut self, partition: Partition) -> bool;
}

/// A record to write; without a value, a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its key.
    pub key: Key,
    /// Its value: JSON.
    pub value: Option<Vec<u8>>,
}

impl Write {
    /// A record with a value.
    pub fn new(key: Key, value: &impl Serialize) -> Self {
        Self { key, value: Some(json(value)) }
    }

    /// A tombstone.
    pub fn remove(key: Key) -> Self {
        Self { key, value: None }
    }
}

pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data")
}
