//! What a worker counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::route::Refusal;

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

/// A field-less enum whose variants have a name for counters and records.
macro_rules! reasons {
    ($(#[doc = $type_doc:literal])+ $type:ident { $($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+ }) => {
        $(#[doc = $type_doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[doc = $doc])+ $variant,)+ }

        impl $type {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// How counters and records name it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}
pub(crate) use reasons;

reasons! {
    /// Why a connection was closed.
    CloseReason {
        /// The client ended its side, and the time for replies is over.
        EndOfStream = "end_of_stream",
        /// The client reset the connection, or it timed out.
        ConnectionFailed = "connection_failed",
        /// The client ended it as its protocol has it.
        ClientClosed = "client_closed",
        /// A message longer than the service allows.
        OversizedMessage = "oversized_message",
        /// Something that the protocol forbids.
        Malformed = "malformed",
        /// Something that the protocol allows and the relay does not take.
        Unsupported = "unsupported",
        /// The client did not say who it is, or what it wants, in the time for that.
        HandshakeTimeout = "handshake_timeout",
        /// Nothing came from the client for too long, by its own word or the service's.
        IdleTimeout = "idle_timeout",
        /// The client's name and password are not known here.
        NotAuthorized = "not_authorized",
        /// The same client has connected again.
        TakenOver = "taken_over",
        /// The service has no live server.
        NoServer = "no_server",
        /// Handed on to the server that the client addressed: not a protocol of the service.
        HandedOn = "handed_on",
        /// The server asked for it.
        ClosedByServer = "closed_by_server",
        /// Kafka refused a message for good.
        RefusedByKafka = "refused_by_kafka",
        /// More replies waited for the client than may, or one for too long.
        SlowReader = "slow_reader",
        /// More was kept in memory for it than may be.
        MemoryLimit = "memory_limit",
        /// Its server did not reply in time, or not as the protocol has it.
        ServerFailed = "server_failed",
        /// Its server is away for too long, by the service's `absence`.
        ServerAway = "server_away",
        /// As many `open` and `close` records wait for Kafka as may.
        KafkaBehind = "kafka_behind",
        /// Its address has as many connections as it may.
        TooManyConnections = "too_many_connections",
        /// The gateway's flow table is full.
        FlowTableFull = "flow_table_full",
        /// The relay stops.
        RelayStop = "relay_stop",
    }
}

impl From<Refusal> for CloseReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoServer => Self::NoServer,
            Refusal::ServerAway => Self::ServerAway,
            Refusal::KafkaBehind => Self::KafkaBehind,
        }
    }
}

reasons! {
    /// Why a reply that reached the worker was not sent.
    UndeliveredReason {
        /// Its connection is gone; the slot may have another user.
        Stale = "stale",
        /// Its connection was being closed.
        Closing = "closing",
        /// It does not fit the connection's protocol or limits.
        Unencodable = "unencodable",
        /// The connection failed, or was given up, before it was sent.
        ConnectionLost = "connection_lost",
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
