//! The relay: ends long-lived client connections at the gateway and moves their messages to Kafka.
//!
//! The path of a message, in the order of the modules that it meets:
//!
//! | module | what |
//! |---|---|
//! | [`gateway`] | the XDP programs divert a client's packets to this host's relay namespace |
//! | [`uring`] | the kernel's bytes, received by one `io_uring` a worker |
//! | [`engine`] | that, as a worker sees it |
//! | [`worker`] | one thread's connections, their states and limits |
//! | [`codec`] | bytes ↔ messages, without I/O |
//! | [`route`] | client ↔ server |
//! | [`ring`] | batches between workers and Kafka threads, and what bounds them |
//! | [`uplink`] | one record a message, into the partition of the client's server |
//! | [`downlink`] | the servers' replies, back to the worker of their connection |
//! | [`undelivered`] | replies and messages that could not be delivered, kept until they can |
//!
//! Beside the path:
//!
//! | module | what |
//! |---|---|
//! | [`model`] | the words that all of these share |
//! | [`config`] | what the operator says: instance, services, servers |
//! | [`prefix`] | address prefixes of both families |
//! | [`ports`] | ranges of ports |
//! | [`kafka`] | a client of Kafka |
//! | [`registry`] | servers that register, their leases; which relays there are |
//! | [`control`] | starts and stops all this, and answers what it is doing |
//! | [`stop`] | how long a stop may take |
//! | [`tune`] | the settings while the relay runs: a tree of files, and what is saved of it |
//! | [`dial`] | a number that one thread sets while others read it |
//! | [`privilege`] | the capabilities of the process, and of each of its threads |
//! | [`logging`] | what people are told meanwhile |
//! | [`measure`] | counters, and histograms of how long things take |
//!
//! Which of them may import which: the list of floors in `ARCHITECTURE.md`, which a test holds.

pub use millrace_codec as codec;
pub use millrace_model as model;

pub mod config;
pub mod control;
pub mod dial;
pub mod downlink;
pub mod engine;
pub mod gateway;
pub mod kafka;
pub mod logging;
pub mod measure;
pub mod ports;
pub mod prefix;
pub mod privilege;
pub mod registry;
pub mod ring;
pub mod route;
pub mod stop;
pub mod tune;
pub mod undelivered;
pub mod uplink;
pub mod uring;
pub mod worker;
