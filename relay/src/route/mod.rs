//! Which client belongs to which server.
//!
//! Mechanism is elsewhere: a worker asks here once when a connection begins and tells when it ends;
//! in between it keeps the answer, so that no message takes the lock.

mod associations;
mod identity;
mod server;

use serde::{Deserialize, Serialize};

pub use associations::{Association, Associations};
pub use identity::{ClientIdentity, IdentityKind};
pub use server::{ServerLink, ServerState};

/// A partition of the uplink topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Partition(pub u16);

impl Partition {
    /// As an index into tables of partitions.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A service, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u16);

impl ServiceId {
    /// As an index into tables of services.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A server, by the order in which this relay heard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub u16);

impl ServerId {
    /// As an index into tables of servers.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}
