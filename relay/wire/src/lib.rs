//! Kafka's protocol, as far as the relay speaks it by itself, without I/O: bytes and events come in, bytes
//! and orders go out, and the time is what the caller says.
//!
//! | module | what |
//! |---|---|
//! | [`primitive`] | the types of the protocol's fields |
//! | [`batch`] | records, written once into the batch in which they are sent |
//! | [`message`] | requests and answers |
//! | [`sasl`] | how we say who we are |
//! | [`uplink`] | an idempotent producer for one topic: what is sent to whom, again if it must be, and what became of each record |

pub mod batch;
pub mod message;
pub mod primitive;
pub mod sasl;
pub mod uplink;
