//! The relay: ends long-lived client connections at the gateway and moves their messages to Kafka.
//!
//! In the order in which a message meets them:
//!
//! | module | what |
//! |---|---|
//! | [`config`] | what the operator says: instance, services, servers |
//! | [`prefix`] | address prefixes of both families |
//! | [`gateway`] | the XDP programs on the host: load, unload, rules, heartbeat, flows |
//! | [`uring`] | one `io_uring` a worker: accept, receive, send |
//! | [`worker`] | one thread's connections, their states and limits |
//! | [`codec`] | bytes ↔ messages, without I/O |
//! | [`route`] | client ↔ server |
//! | [`ring`] | batches between workers and Kafka threads, and what bounds them |
//! | [`kafka`] | records: producer of the uplink, consumer of the downlink |
//! | [`registry`] | servers that register, their leases; which relays there are |
//! | [`control`] | starts and stops all this, and answers what it is doing |
//! | [`logging`] | what people are told meanwhile |

pub mod codec;
pub mod config;
pub mod control;
pub mod downlink;
pub mod engine;
pub mod gateway;
pub mod kafka;
pub mod logging;
pub mod model;
pub mod prefix;
pub mod registry;
pub mod ring;
pub mod route;
pub mod stop;
pub mod undelivered;
pub mod uplink;
pub mod uring;
pub mod worker;
