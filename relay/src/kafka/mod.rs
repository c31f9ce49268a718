//! Kafka: what a record looks like, the producer of the uplink and the consumer of the downlink.
//!
//! The contract with the servers is `docs/kafka-contract.md`.

mod bury;
mod consumer;
mod deadletter;
mod delivery;
mod desk;
mod fetch;
mod ffi;
mod held;
mod inspect;
mod keeper;
mod outbox;
mod position;
mod presence;
mod producer;
mod pump;
mod reader;
mod record;
mod said;
mod topics;

pub use bury::{BuryError, bury};
pub use consumer::{Consumer, ConsumerError, ConsumerStats};
pub use deadletter::{CUT_BYTES, LetterCounts, Reason, letter};
pub use delivery::HeldStats;
pub use desk::Desk;
pub use held::HeldRefusal;
pub use inspect::{RecordOrigin, header_text, record_origin};
pub use keeper::{Keeper, KeeperStats};
pub use position::{committed, observer, unread};
pub use presence::Presence;
pub use producer::{
    DeliveryFailure, ProduceError, Producer, RdKafkaProducer, Report, Token, producer_config,
};
pub(crate) use producer::{LogContext, client_config, logs_as_ours, writer_config};
pub use pump::{Pump, PumpStats, RefusedReason};
pub(crate) use reader::TopicReader;
pub use record::{ConnectionKey, Identity, Incarnation, KeyError, RelayId, header};
pub use topics::{TopicError, ensure_topics};
