//! A client of Kafka, for all that the relay does with it: what to ask a cluster and how, the relay's
//! topics and rights, reading a log to its end. What is written and read is the business of
//! [`uplink`](crate::uplink), [`downlink`](crate::downlink) and [`undelivered`](crate::undelivered).
//!
//! The contract with the servers is `docs/kafka-contract.md`.

mod catch_up;
pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod context;
pub(crate) mod fetch;
pub(crate) mod ffi;
pub(crate) mod inspect;
pub(crate) mod log_watch;
pub(crate) mod position;
pub(crate) mod questions;
pub(crate) mod reader;
pub(crate) mod retention;
mod retry;
mod rights;
mod sockets;
mod topics;
mod trust;
pub(crate) mod unreadable;
mod wire;
pub(crate) mod writer;
pub(crate) mod written;

pub use client::producer_config;
pub use clock::{BrokersClock, brokers_clock};
pub(crate) use clock::{NO_TIME, own_unix_ms};
pub use context::{LogContext, Watched};
pub(crate) use context::{logs_as_ours, throttled_ms};
pub(crate) use ffi::header as record_header;
pub use ffi::rejoin;
pub use inspect::{RecordOrigin, header_text, record_origin};
pub(crate) use position::renew;
pub use position::{Unread, committed, committed_with_note, has_read, observer, unread};
pub use questions::watermarks;
pub(crate) use questions::watermarks_from;
pub use reader::OpenError;
pub(crate) use reader::{Known, TopicReader};
pub use retention::Retention;
pub(crate) use retry::Retry;
pub use rights::{RightsError, Topics as TopicsThere, check_rights};
pub(crate) use topics::TIMESTAMP_TYPE;
pub use topics::{
    BatchLimits, Difference, TopicError, Topics, check_properties, ensure_topics, look_at_topics,
};
pub use trust::TrustError;
pub(crate) use unreadable::{is_unreadable, unreadable_at};
pub use writer::WriterError;
pub use written::{LogEnd, LogEnds, Written, WrittenPart};
