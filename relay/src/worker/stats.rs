//! What a worker counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::{CloseReason, UndeliveredReason};

/// A counter with one writer: no locked instruction on the data path.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning thread may.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// An amount with one writer.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Takes a part of it as grown or shrunk; only the owning thread may.
    pub fn replace(&self, before: usize, now: usize) {
        let amount = self.get().wrapping_sub(before as u64).wrapping_add(now as u64);
        self.0.store(amount, Ordering::Relaxed);
    }

    /// The present amount.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A worker's counters. Written by its thread only, read by anybody.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections closed, by [`CloseReason`].
    pub closed: [Counter; CloseReason::ALL.len()],
    /// Bytes kept in memory for connections that are open.
    pub connection_bytes: Gauge,
    /// Connections refused because the worker has all it may have.
    pub connection_limit: Counter,
    /// 1 while it has all that it may have, or nearly so.
    pub full: Gauge,
    /// Connections that could not be accepted for want of files or memory; they wait.
    pub accept_starved: Counter,
    /// Connections that could not be accepted for another reason.
    pub accept_failed: Counter,
    /// Connections handed on to the servers that their clients addressed.
    pub handed_on: Counter,
    /// Those of them that are over.
    pub handed_on_ended: Counter,
    /// Those that their servers did not take, or that could not be made.
    pub hand_on_failed: Counter,
    /// Those of them whose servers have not accepted them in time.
    pub hand_on_timed_out: Counter,
    /// Bytes of both directions of them.
    pub handed_on_bytes: Counter,
    /// Bytes received from clients.
    pub received_bytes: Counter,
    /// Messages decoded.
    pub messages: Counter,
    /// Messages of which only a part had come when the client ended its side or the relay stopped.
    pub truncated: Counter,
    /// Times that a connection was not read from because of a bound further on.
    pub holds: Counter,
    /// Times that a connection was not read from because it sent more messages a second than it may.
    pub throttles: Counter,
    /// Replies sent.
    pub replies_sent: Counter,
    /// Times that a reply was left in the log, because its client had not read what came before.
    pub replies_postponed: Counter,
    /// Replies that their client does not want, by its own word: done with.
    pub replies_filtered: Counter,
    /// Orders to close that came, and are done with.
    pub replies_orders: Counter,
    /// Replies not sent, by [`UndeliveredReason`].
    pub replies_undelivered: [Counter; UndeliveredReason::ALL.len()],
    /// Times around the loop: one `io_uring_enter` each.
    pub loops: Counter,
}

impl WorkerStats {
    /// Connections open now.
    pub fn connections(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(Counter::get).sum();
        self.accepted.get().saturating_sub(closed)
    }
}
