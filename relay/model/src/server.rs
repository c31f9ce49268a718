//! Services, their servers, and which partition a server reads.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

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

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// A client's server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    /// Which server.
    pub server: ServerId,
    /// Its name.
    pub name: Arc<str>,
    /// The uplink partition that it reads.
    pub partition: Partition,
    /// Its lease of that partition.
    pub epoch: u64,
}
