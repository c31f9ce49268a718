//! The facts that the coordinator's decisions depend on, and the records that they consist of.

use std::time::Instant;

use serde::Serialize;

use crate::kafka::Unread;
use crate::model::Partition;
use crate::route::Balance;

use super::record::Key;

/// The reason why a server is gone that did not ask for it.
pub(super) const LOST: &str = "another server has its partition";

/// Facts that the coordinator asks for.
pub trait Facts {
    /// How far a partition is read, not older than `since`. None: not known yet; it is being found out,
    /// so ask again.
    fn unread(&mut self, partition: Partition, since: Instant) -> Option<Unread>;
    /// The same for a live reader. Without a commit, it counts as having read everything that is so old
    /// that its commit would have expired.
    fn unread_by_living(&mut self, partition: Partition, since: Instant) -> Option<Unread> {
        let unread = self.unread(partition, since)?;
        Some(Unread { records: if unread.outlived { 0 } else { unread.records }, ..unread })
    }
    /// Clients of a server.
    fn clients(&self, id: &str) -> u32;
    /// How evenly the clients of a service are spread. None if the service is not known.
    fn balance(&self, service: &str) -> Option<Balance>;
    /// Begins to move what waits in a partition, and is for nobody, to the dead letters. False: not now;
    /// ask again.
    fn bury(&mut self, partition: Partition) -> bool;
    /// Gives a partition to a server that will commit what it reads there. False: not now, because
    /// something else is being committed; ask again.
    fn claim(&mut self, partition: Partition) -> bool;
}

/// A record to write. Without a value it is a tombstone.
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
