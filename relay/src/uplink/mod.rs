//! From the workers' rings to the servers' partitions.
//!
//! | module | what |
//! |---|---|
//! | `pump` | the thread: rings to producer, and what became of the records back to the workers |
//! | `producer`, `token` | records to librdkafka, and its reports |
//! | `mending` | a batch that Kafka refuses, record by record |
//! | `leases` | which partitions have become other servers' |
//! | `late` | what was acknowledged for a server after its lease had ended |

pub(crate) mod late;
pub(crate) mod leases;
pub(crate) mod mending;
pub(crate) mod producer;
pub(crate) mod pump;
#[cfg(test)]
mod refused_tests;
pub(crate) mod token;

pub use leases::Leases;
pub use producer::{KafkaProducer, ProduceError, Producer, Report};
pub use pump::{Pump, PumpParts, PumpStats};
pub use token::Token;
