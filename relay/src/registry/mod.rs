//! Servers that register, their leases, and the relays themselves: one topic that all relays fold.
//!
//! | part | what |
//! |---|---|
//! | [`record`] | keys and values |
//! | [`Registry`] | the fold: what all records together say |
//! | [`Policy`], [`Coordinator`] | what is to be written next, without I/O |
//!
//! The contract with the servers is `docs/kafka-contract.md`.

mod coordinator;
mod plan;
mod policy;
pub mod record;
mod state;
#[cfg(test)]
mod tests;

pub use coordinator::{Coordinator, Facts};
pub use plan::Write;
pub use policy::{Declared, Policy, Unfit};
pub use state::{Change, MAX_ENTRIES, MAX_EPOCH, Outcome, RefusedReason, Registry};
