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
