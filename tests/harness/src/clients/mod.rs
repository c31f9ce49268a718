//! Clients: one that is driven step by step, many that check what they are told, and what they speak.

pub mod crowd;
pub mod load;
pub mod mqtt;
pub mod payload;
pub mod persistent;
pub mod speech;
pub mod tcp;
pub mod web;
pub mod wire;
