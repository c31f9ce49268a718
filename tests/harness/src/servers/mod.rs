//! Servers behind Kafka.

pub mod by_hand;
pub mod checking;
