//! The relay: ends long-lived client connections at the gateway and moves their messages to Kafka.
//!
//! The modules stand in the order in which a message meets them.

pub mod codec;
pub mod config;
pub mod gateway;
pub mod route;
