//! The words that all of the relay shares: ids, clients and servers, records, replies, and how things
//! end. It imports nothing of the relay's, does no I/O, and knows no library of Kafka's or the kernel's.
#![forbid(unsafe_code)]

mod client;
mod headers;
mod id;
mod outcome;
mod record;
mod reply;
mod server;

pub use client::{ClientIdentity, IdentityKind};
pub use headers::{Decimal, weight_of, weight_of_name};
pub use headers::{HeaderList, Headers, MAX_RECORD_HEADERS};
pub use id::split_reply_key;
pub use id::{ConnectionKey, Incarnation, KeyError, RelayId};
pub use outcome::{CloseReason, DeliveryFailure, Refusal, UndeliveredReason};
pub use record::{Begin, Identity, Kind, header};
pub use reply::{Reply, ReplyOffset, ReplyOrigin};
pub use server::{Association, Partition, ServerId, ServiceId};
