//! How things end: reasons, with the names that counters and records have for them.

/// A field-less enum whose variants have a name for counters and records.
#[macro_export]
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
/// Why a client gets no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The service has no live server.
    NoServer,
    /// Its server is away for too long, by the service's `absence`.
    ServerAway,
    /// As much waits for Kafka about connections to its server as may.
    KafkaBehind,
}

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
        /// An operator asked for it (`relay disconnect`).
        Disconnected = "disconnected",
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
        /// The service takes no new clients.
        NotAccepted = "not_accepted",
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

reasons! {
    /// Why Kafka will never have a record.
    DeliveryFailure {
        /// Larger than the client or the broker allows (`message.max.bytes`).
        TooLarge = "too_large",
        /// The relay may not write to the topic.
        Authorization = "authorization",
        /// The topic or partition is gone.
        UnknownPartition = "unknown_partition",
        /// The partition is another server's by now; the relay was paused, and did not know.
        LeaseOver = "lease_over",
        /// Given up when the relay stopped before the acknowledgement came.
        Purged = "unacknowledged_at_stop",
        /// Anything else; the log has librdkafka's code.
        Other = "other",
    }
}
