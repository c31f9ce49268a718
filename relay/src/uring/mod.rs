//! The io_uring engine: one ring for each worker, made and used by its thread alone.
//!
//! Single issuer and deferred task run: completions are posted only while the thread is inside
//! `io_uring_enter`, so nothing interrupts it elsewhere. Accept and receive are multishot; receives
//! take their buffers from a ring that user space refills. Linux 6.1 or newer.
#![allow(unsafe_code)]

mod buffers;
mod cause;
mod engine;
mod operation;
mod taken;
#[cfg(test)]
mod tests;

pub use cause::{cause, is_forbidden};
pub use engine::{EngineLimits, UringEngine};

/// Makes the smallest engine and drops it, to see whether this kernel has what an engine needs.
///
/// Runs on a separate thread: the kernel dismantles a ring a moment later, and then interrupts system calls
/// of the thread that had it.
pub fn probe() -> std::io::Result<()> {
    let limits = EngineLimits { sockets: 1, buffers: 1, buffer_bytes: 4096, batch_wait_us: 0 };
    let make = || UringEngine::new(limits, crate::ring::Wake::new()?).map(drop);
    std::thread::scope(|scope| match scope.spawn(make).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
