//! Servers that register, their leases, and the relays themselves: one topic that all relays fold.
//!
//! | part | what |
//! |---|---|
//! | [`record`] | keys and values |
//! | [`Registry`] | the fold: what all records together say |
//! | [`Policy`], [`Coordinator`] | what is to be written next, without I/O |
//! | [`RegistryLink`] | the thread that reads and writes |
//!
//! The contract with the servers is `docs/kafka-contract.md`.

mod author;
mod candidate;
mod coordinator;
mod decision;
mod error;
mod facts;
mod follow;
mod link;
mod listener;
mod orders;
mod plan;
mod policy;
mod pool;
mod rebalance;
pub mod record;
mod state;
mod status;
#[cfg(test)]
mod tests;
mod unheld;

pub use coordinator::Coordinator;
pub use decision::{Facts, Write};
pub use error::RegistryError;
pub use follow::{Watch, read};
pub use link::{RegistryLink, RegistryObserver, RegistryParts};
pub use listener::Listener;
pub use orders::{MAX_PER_SECOND, OrderError, order, rebalance};
pub use policy::{Declared, Policy, Unfit};
pub use state::{MAX_ENTRIES, MAX_EPOCH, Outcome, RefusedReason, Registry};
pub use status::{CoordinatorStatus, RebalanceStatus, RegistryStatus, RelayStatus, ServerStatus};
