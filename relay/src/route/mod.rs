//! Decides which client belongs to which server.
//!
//! A worker asks once when a connection begins, and reports its end. In between it keeps the answer, so that
//! no message takes the lock.
//!
//! | module | what |
//! |---|---|
//! | `identity` | who a client is |
//! | `policy` | a service's settings for its clients |
//! | `server`, `allotment` | servers, and which one gets the next client |
//! | `balance` | which servers have more clients than the allotment would give them |
//! | `record`, `table` | the topic's records, and the table that results from them and this relay's clients |
//! | `associations` | the table with its lock and clock |
//! | `log` | the thread that reads and writes the topic |

mod allotment;
mod associations;
mod balance;
mod log;
mod policy;
mod record;
mod server;
mod table;
#[cfg(test)]
mod tests;

pub use associations::{Associations, Balance, Concern, LogStats, Measure};
pub use log::{AssociationLog, LogError};
pub use record::RecordRefusal;
pub use server::{ServerLink, ServerState};
