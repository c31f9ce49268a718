//! What a worker counts.

use crossbeam_utils::CachePadded;

use crate::measure::{Counter, Gauge, Histogram, Ladder};
use crate::model::{CloseReason, ServiceId, UndeliveredReason};

use super::reasons::BOUNDS;

/// What a worker counts of one service.
#[derive(Debug, Default)]
pub struct ServiceStats {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections closed, by [`CloseReason`].
    pub closed: [Counter; CloseReason::ALL.len()],
    /// Bytes received from clients.
    pub received_bytes: Counter,
    /// Bytes that the kernel has taken for clients.
    pub sent_bytes: Counter,
    /// Messages decoded.
    pub messages: Counter,
    /// Replies sent.
    pub replies_sent: Counter,
}

impl ServiceStats {
    /// Connections open now.
    pub fn connections(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(Counter::get).sum();
        self.accepted.get().saturating_sub(closed)
    }
}

/// A worker's counters. Written by its thread only, read by anybody.
#[derive(Debug)]
pub struct WorkerStats {
    /// By [`ServiceId`].
    pub services: Box<[CachePadded<ServiceStats>]>,
    /// Connections that were closed before their client had said who it is, by [`CloseReason`]. They are
    /// among those of their service.
    pub strangers: [Counter; CloseReason::ALL.len()],
    /// Bytes kept in memory for connections that are open.
    pub connection_bytes: Gauge,
    /// Connections refused because the worker has all it may have.
    pub connection_limit: Counter,
    /// Connections refused because no service of their port has their destination.
    pub no_service: Counter,
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
    /// Messages of which only a part had come when the client ended its side or the relay stopped.
    pub truncated: Counter,
    /// Times that a connection was not read from because of a bound, by the first of [`BOUNDS`].
    pub holds: [Counter; BOUNDS.len()],
    /// Connections that are not read from now because of a bound.
    pub held: Gauge,
    /// Times that a connection was not read from because it sent more messages a second than it may.
    pub throttles: Counter,
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
    /// From the choice of a client's server to the association.
    pub allot_times: Histogram,
    /// How long connections were not read from because of a bound.
    pub held_times: Histogram,
    /// From the reading of a reply to its sending.
    pub reply_times: Histogram,
}

fn counters<const N: usize>() -> [Counter; N] {
    std::array::from_fn(|_| Counter::default())
}

impl WorkerStats {
    /// Those of a worker that has done nothing, for so many services.
    pub fn new(services: usize) -> Self {
        Self {
            services: (0..services).map(|_| CachePadded::default()).collect(),
            strangers: counters(),
            connection_bytes: Gauge::default(),
            connection_limit: Counter::default(),
            no_service: Counter::default(),
            full: Gauge::default(),
            accept_starved: Counter::default(),
            accept_failed: Counter::default(),
            handed_on: Counter::default(),
            handed_on_ended: Counter::default(),
            hand_on_failed: Counter::default(),
            hand_on_timed_out: Counter::default(),
            handed_on_bytes: Counter::default(),
            truncated: Counter::default(),
            holds: counters(),
            held: Gauge::default(),
            throttles: Counter::default(),
            replies_postponed: Counter::default(),
            replies_filtered: Counter::default(),
            replies_orders: Counter::default(),
            replies_undelivered: counters(),
            loops: Counter::default(),
            allot_times: Histogram::new(Ladder::SHORT),
            held_times: Histogram::new(Ladder::MEDIUM),
            reply_times: Histogram::new(Ladder::MEDIUM),
        }
    }

    /// What it counts of a service.
    pub fn of(&self, service: ServiceId) -> &ServiceStats {
        &self.services[service.index()]
    }

    /// The sum over all services.
    pub fn sum(&self, counter: impl Fn(&ServiceStats) -> &Counter) -> u64 {
        self.services.iter().map(|service| counter(service).get()).sum()
    }

    /// Connections closed for a reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.sum(|service| &service.closed[reason as usize])
    }

    /// Connections open now.
    pub fn connections(&self) -> u64 {
        self.services.iter().map(|service| service.connections()).sum()
    }
}
