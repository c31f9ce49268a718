//! Kafka: what a record looks like, the producer of the uplink and the consumer of the downlink.
//!
//! The contract with the servers is `docs/kafka-contract.md`.

mod again;
mod arrivals;
mod backlog;
mod bury;
mod clock;
mod consumer;
mod context;
mod deadletter;
mod delivery;
mod desk;
mod fetch;
mod ffi;
mod held;
mod inspect;
mod keeper;
mod late;
mod leases;
mod lines;
mod log_watch;
mod mending;
mod note;
mod outbox;
mod place;
mod position;
mod postponed;
mod presence;
mod producer;
mod pump;
mod reader;
mod record;
#[cfg(test)]
mod refused_tests;
mod retention;
mod rights;
mod stop;
mod topics;
mod turns;
mod unreadable;
mod written;

pub use again::watermarks;
pub use arrivals::Arrivals;
pub use bury::{BuryError, bury};
pub use clock::{BrokersClock, brokers_clock};
pub(crate) use clock::{NO_TIME, own_unix_ms};
pub use consumer::{Consumer, ConsumerError, ConsumerStats};
pub(crate) use context::throttled_ms;
pub(crate) use context::{LogContext, Watched, logs_as_ours};
pub use deadletter::{CUT_BYTES, LetterCounts, Reason, letter};
pub use delivery::HeldStats;
pub use desk::Desk;
pub(crate) use ffi::{header as record_header, rejoin};
pub use held::HeldRefusal;
pub use inspect::{RecordOrigin, header_text, record_origin};
pub use keeper::{Keeper, KeeperStats};
pub use leases::Leases;
pub use note::postponed_before;
pub use place::Break;
pub(crate) use position::renew;
pub use position::{Unread, committed, committed_with_note, has_read, observer, unread};
pub use presence::Presence;
pub use producer::{
    DeliveryFailure, ProduceError, Producer, RdKafkaProducer, Report, Token, producer_config,
};
pub(crate) use producer::{client_config, writer_config};
pub use pump::{Pump, PumpStats, RefusedReason};
pub use reader::OpenError;
pub(crate) use reader::{Known, TopicReader};
pub use record::{ConnectionKey, Identity, Incarnation, KeyError, RelayId, header};
pub use retention::Retention;
pub use rights::{RightsError, Topics as TopicsThere, check_rights};
pub use stop::{StopPart, StopTime};
pub(crate) use topics::TIMESTAMP_TYPE;
pub use topics::{Difference, TopicError, Topics, check_properties, ensure_topics, look_at_topics};
pub(crate) use unreadable::{is_unreadable, unreadable_at};
pub use written::{LogEnd, LogEnds, Written, WrittenPart};
