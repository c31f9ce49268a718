//! A faulty kernel and a faulty broker, driven from a seed. Both remember what really happened, so that a
//! test can compare.

pub mod engine;
pub mod producer;
