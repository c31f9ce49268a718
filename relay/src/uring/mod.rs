//! The io_uring engine: one ring for each worker, made and used by its thread alone.
//!
//! Single issuer and deferred task run: completions are posted only while the thread is inside
//! `io_uring_enter`, so nothing interrupts it elsewhere. Accept and receive are multishot; receives
//! take their buffers from a ring that user space refills. Linux 6.1 or newer.
#![allow(unsafe_code)]

mod buffers;
mod engine;
mod operation;

pub use engine::{EngineLimits, UringEngine};
