//! Which client belongs to which server.
//!
//! Mechanism is elsewhere: a worker asks here once when a connection begins and tells when it ends;
//! in between it keeps the answer, so that no message takes the lock.
//!
//! | module | what |
//! |---|---|
//! | `identity` | who a client is |
//! | `policy` | what a service wants for its clients |
//! | `server`, `allotment` | servers, and which one gets the next client |
//! | `balance` | who has more clients than the allotment would give it |
//! | `record`, `table` | the topic's records, and the table that they and this relay's clients make |
//! | `associations` | the table with its lock and clock |
//! | `log` | the thread that reads and writes the topic |

mod allotment;
mod associations;
mod balance;
mod identity;
mod log;
mod policy;
mod record;
mod server;
mod table;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use associations::{Association, Associations, Balance, Concern, LogStats, Measure};
pub use identity::{ClientIdentity, IdentityKind};
pub use log::{AssociationLog, LogError};
pub use policy::{Absence, Then};
pub use record::RecordRefusal;
pub use server::{ServerLink, ServerState};
pub use table::Refusal;

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
