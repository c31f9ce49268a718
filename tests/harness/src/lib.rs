//! What end-to-end tests, demo, benchmarks and fuzz targets have in common: hosts made of network
//! namespaces, relays, Kafka, clients and servers.
//!
//! From the ground up. `docs/design/testing.md` says which of them may import which, and a test holds it.
//!
//! | module | what |
//! |---|---|
//! | [`dice`] | choices that a seed makes |
//! | [`system`] | this machine: processes, their time, their clocks, what may be done |
//! | [`net`] | hosts made of network namespaces, and what goes between them |
//! | [`gateway`] | the XDP programs, without a relay behind them |
//! | [`kafka`] | topics, and brokers to be tormented |
//! | [`clients`] | clients and what they speak |
//! | [`servers`] | servers behind Kafka |
//! | [`relay`] | relays that run, and everything around them |
//! | [`simulation`] | a faulty kernel and a faulty broker, in the worker's process |
//! | [`fuzz`] | what the fuzzers run |

pub mod clients;
pub mod dice;
pub mod fuzz;
pub mod gateway;
pub mod kafka;
pub mod net;
pub mod relay;
pub mod servers;
pub mod simulation;
pub mod system;
