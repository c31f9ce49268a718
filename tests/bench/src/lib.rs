//! What the benchmarks have in common.

pub mod flood;
pub mod measure;
pub mod packet_cost;
pub mod plot;
pub mod program;
pub mod tcp_server;
