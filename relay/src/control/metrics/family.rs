//! The table of all metrics: name, type, labels, and what each one means. docs/metrics.md is printed from it.

/// What a family's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, while the relay runs.
    Counter,
    /// Grows and shrinks.
    Gauge,
    /// How long something took, in classic buckets.
    Histogram,
    /// 1, with labels that tell something.
    Info,
}

impl Kind {
    /// How both formats name it.
    #[cfg(test)]
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// One metric, with all its labels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// Its name without `_total` or `_info`. It ends in its unit, if it has one.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// Names of its labels.
    pub(super) labels: &'static [&'static str],
    /// What it means, in one line.
    pub(super) help: &'static str,
}

impl Family {
    /// Its base unit: what its name ends in.
    pub(super) fn unit(&self) -> Option<&'static str> {
        ["seconds", "bytes"]
            .into_iter()
            .find(|unit| self.name.strip_suffix(unit).is_some_and(|name| name.ends_with('_')))
    }

    /// Its name without the unit.
    pub(super) fn stem(&self) -> &'static str {
        let unit = self.unit().map_or(0, |unit| unit.len() + 1);
        &self.name[..self.name.len() - unit]
    }
}

/// The places of the families in [`FAMILIES`], and that table.
macro_rules! families {
    ($($variant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// Each metric.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Metric { $($variant,)* }

        /// The table, in the order in which they are served.
        pub(super) const FAMILIES: &[Family] = &[$(Family {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        },)*];
    };
}

families! {
    Build: Info "millrace_build" ["version"] "Version of the relay.";
    Config: Info "millrace_config" ["sha1"] "Configuration in force: the sum that `sha1sum FILE` prints for its file.";
    ConfigLoaded: Gauge "millrace_config_loaded_timestamp_seconds" [] "When the configuration was put into force, in Unix time.";
    Started: Gauge "millrace_start_timestamp_seconds" [] "When the relay started, in Unix time of its host's clock.";

    Connections: Gauge "millrace_connections" ["service"] "Connections that are open.";
    ConnectionsMost: Gauge "millrace_connections_limit" [] "Connections that all workers together may have.";
    Accepted: Counter "millrace_connections_accepted" ["service"] "Connections accepted.";
    Closed: Counter "millrace_connections_closed" ["reason"] "Connections closed, by reason.";
    Refused: Counter "millrace_connections_refused" ["reason"] "Connections that were not accepted, by reason.";
    HandshakesFailed: Counter "millrace_handshakes_failed" ["reason"] "Connections closed before their client had said who it is, by reason; they count as closed too.";
    Held: Gauge "millrace_connections_held" [] "Connections that are not read from at present because of a bound.";
    Holds: Counter "millrace_connection_holds" ["bound"] "Times that a connection was not read from because of a bound: output, codec, rate, credit, or ring (the ring to the producer is full).";
    HeldTime: Histogram "millrace_connection_held_seconds" [] "Pauses in which a connection was not read from because of a bound.";
    Throttles: Counter "millrace_connection_throttles" [] "Times that a connection had to wait because it sent more messages per second than it may.";
    HandedOn: Counter "millrace_connections_handed_on" [] "Connections handed on to the servers that their clients addressed; they count as closed.";
    HandedOnOpen: Gauge "millrace_connections_handed_on_open" [] "Connections handed on that are open.";
    HandOnsFailed: Counter "millrace_hand_ons_failed" ["reason"] "Connections that could not be handed on: timed_out, or other.";
    HandedOnBytes: Counter "millrace_handed_on_bytes" [] "Bytes of both directions of connections that were handed on.";

    MessagesReceived: Counter "millrace_messages_received" ["service"] "Messages read from clients.";
    ReceivedBytes: Counter "millrace_received_bytes" ["service"] "Bytes received from clients.";
    SentBytes: Counter "millrace_sent_bytes" ["service"] "Bytes that the kernel has taken for clients.";
    MessagesAcknowledged: Counter "millrace_messages_acknowledged" [] "Messages that Kafka has acknowledged.";
    MessagesInFlight: Gauge "millrace_messages_in_flight" [] "Messages received that Kafka has neither acknowledged nor refused.";
    InFlightBytes: Gauge "millrace_in_flight_bytes" [] "What the messages in flight are booked with: each one's own bytes and 512 more.";
    AcknowledgeTime: Histogram "millrace_message_acknowledge_seconds" [] "From the receipt of a message to Kafka's acknowledgement.";
    MessagesRefused: Counter "millrace_messages_refused" ["reason"] "Messages that Kafka will never have, by reason.";
    MessagesTruncated: Counter "millrace_messages_truncated" [] "Messages of which only a part arrived.";
    MessagesGone: Counter "millrace_messages_gone" [] "Messages that Kafka has acknowledged in a topic that was deleted afterwards.";
    DeadLetters: Counter "millrace_dead_letters" ["kind", "reason"] "Dead letters written; kind is message, reply or held_reply.";
    ToBury: Gauge "millrace_messages_to_dead_letter" [] "Messages that will become dead letters.";

    KafkaWaiting: Gauge "millrace_kafka_records_waiting" [] "Records given to the producer that Kafka has not answered.";
    KafkaSilent: Gauge "millrace_kafka_silent_seconds" [] "For how long records have been waiting while Kafka acknowledged none.";
    KafkaThrottled: Counter "millrace_kafka_throttled_seconds" ["traffic"] "Time for which brokers made the relay wait because of a quota: data, or control.";
    ProducerBatches: Counter "millrace_producer_batches" [] "Batches that the producer took from the workers.";

    RepliesReceived: Counter "millrace_replies_received" [] "Replies read from the downlink.";
    RepliesSent: Counter "millrace_replies_sent" ["service"] "Replies that the kernel has taken for their client, or that it has confirmed where its protocol does.";
    ReplyTime: Histogram "millrace_reply_send_seconds" [] "From the reading of a reply from Kafka to its sending; replies that were postponed or held are not in it.";
    RepliesOrders: Counter "millrace_replies_orders" [] "Orders to close a connection among the replies.";
    RepliesFiltered: Counter "millrace_replies_filtered" [] "Replies that their clients had asked not to get, or that had expired.";
    RepliesUndelivered: Counter "millrace_replies_undelivered" ["reason"] "Replies that were not sent, by reason; they are held or become dead letters.";
    RepliesPostponed: Counter "millrace_replies_postponed" [] "Times that a reply was left in Kafka because its client had not read earlier ones.";
    RepliesBacklog: Gauge "millrace_replies_backlog" [] "Replies that are left in Kafka at present because their clients have not read earlier ones.";
    RepliesHeld: Counter "millrace_replies_held" [] "Replies written to the topic `held`, where they wait for clients that are away.";
    HeldDelivered: Counter "millrace_held_replies_delivered" [] "Replies of the topic `held` that this relay has sent.";
    HeldWaiting: Gauge "millrace_held_replies" [] "Replies that wait in the topic `held` at present, from all relays.";
    HeldBytes: Gauge "millrace_held_replies_bytes" [] "Bytes of the replies that wait in the topic `held`, and 128 for each.";
    HeldBytesMost: Gauge "millrace_held_replies_limit_bytes" [] "How many bytes those may be (`hold.max_bytes`).";
    HeldClients: Gauge "millrace_held_clients" [] "Clients for which replies wait.";
    HeldLate: Gauge "millrace_held_clients_late" [] "Clients that got held replies and have not confirmed these for some seconds.";
    HeldReplyTime: Histogram "millrace_held_reply_wait_seconds" [] "How long replies had waited for their clients when these got them, by the broker's clock.";
    HeldRefused: Counter "millrace_held_records_refused" ["reason"] "Records of the topic `held` that count for nothing, by reason.";
    Vanished: Counter "millrace_replies_vanished" ["kind"] "Replies that were no longer in Kafka when they were needed; kind is reply or held_reply.";
    DownlinkBreaks: Counter "millrace_downlink_break_records" ["kind"] "Records affected by breaks of the downlink, by kind; docs/brokers.md explains them.";
    DownlinkRingFull: Counter "millrace_downlink_ring_full" [] "Times that the reader of the downlink waited because the ring to a worker was full.";

    Clients: Gauge "millrace_server_clients" ["service", "server"] "Clients associated with a server, of all relays.";
    Associations: Gauge "millrace_associations" [] "Entries of the association table that count.";
    ClientsMoved: Counter "millrace_server_clients_moved" ["server"] "Connections that have moved to another server, by the former one.";
    AllotTime: Histogram "millrace_allot_seconds" [] "The choice of a server for a client that connects, waits for the table included.";
    AssociationRecords: Counter "millrace_association_records" ["operation"] "Records of associations: read, written, or put_back to be written again.";
    AssociationRefused: Counter "millrace_association_records_refused" ["reason"] "Records of associations that changed nothing, by reason.";
    Servers: Gauge "millrace_servers" ["service", "state"] "Servers, by the state of their lease; those that the configuration declares are live unless drained.";
    ServerWaiting: Gauge "millrace_server_waiting_messages" ["server"] "Messages that a server has not committed, as last measured: at most half a minute ago if there are few servers.";
    ServerOldest: Gauge "millrace_server_waiting_oldest_seconds" ["server"] "Age of the oldest message that a server has not committed.";
    ServerRetention: Gauge "millrace_server_waiting_retention_seconds" ["server"] "How long the topic keeps the messages that a server has not committed; absent if without limit.";
    RegistrationsRefused: Gauge "millrace_registrations_refused" [] "Servers whose registration got no lease.";
    RegistryRefused: Counter "millrace_registry_records_refused" ["reason"] "Records of the registry that were refused, by reason.";
    Relays: Gauge "millrace_relays" ["state"] "Relays, by state: live or gone.";
    Coordinates: Gauge "millrace_coordinator" [] "1 if this relay coordinates, otherwise 0.";
    Term: Gauge "millrace_coordinator_term" [] "The coordinator's term: offset of the record by which it took office.";

    Packets: Counter "millrace_gateway_packets" ["verdict"] "Packets that the XDP programs have seen since `load`, by verdict (docs/verdicts.md).";
    Diverted: Counter "millrace_gateway_diverted_packets" [] "Packets aimed at the relay's device since `load`.";
    DivertedReceived: Counter "millrace_gateway_diverted_packets_received" [] "Packets that the relay's device has received since `load`.";
    Lost: Counter "millrace_gateway_lost_packets" ["direction", "error"] "Packets that a device did not take from the programs; direction is to_relay or to_client.";
    Handshakes: Counter "millrace_gateway_handshakes" ["device", "family", "result"] "Handshakes of diverted connections: answered, repeated (the SYN was sent again) or in_vain (it was passed in the end).";
    PathsClosed: Gauge "millrace_gateway_paths_closed" [] "Paths on which new connections are passed because no client got an answer.";
    Flows: Gauge "millrace_gateway_flows" ["table"] "Flows in the programs' tables, as last counted: at most half a minute before the scrape before this one.";
    FlowsMost: Gauge "millrace_gateway_flows_limit" ["table"] "Flows that the programs' tables may have.";
    Alive: Gauge "millrace_gateway_relay_alive" [] "1 if new connections are offered to the relay, otherwise 0.";
    Full: Gauge "millrace_gateway_relay_full" [] "1 if the relay has as many connections as it may, or cannot accept more: new ones pass.";
    Cut: Gauge "millrace_gateway_relay_cut" [] "1 if nothing that is diverted arrives at the relay: new connections pass.";
    HeartbeatAge: Gauge "millrace_gateway_heartbeat_age_seconds" [] "Since the last heartbeat, as the programs see it; absent if the relay says that no connections should come.";
    HeartbeatTimeout: Gauge "millrace_gateway_heartbeat_timeout_seconds" [] "From this age of the heartbeat on the relay counts as dead.";
    DevicesDetached: Gauge "millrace_gateway_devices_detached" [] "Client-facing devices from which nothing is diverted, because they are not attached.";
    DevicesReattached: Counter "millrace_gateway_devices_reattached" ["device"] "Times that a device which had come back was attached again.";
    GatewayUnreadable: Gauge "millrace_gateway_unreadable" [] "1 if the gateway's counters could not be read for this scrape; then they are absent.";

    Workers: Gauge "millrace_workers" [] "Worker threads.";
    WorkersHanging: Gauge "millrace_workers_hanging" [] "Workers that do not go round their loop; as long as there is one, new connections pass.";
    WorkerConnections: Gauge "millrace_worker_connections" ["worker"] "Connections open, by worker.";
    WorkerLoops: Counter "millrace_worker_loops" ["worker"] "System calls of a worker's loop: one io_uring_enter each.";
    ThreadBusy: Counter "millrace_thread_busy_seconds" ["thread"] "Time for which a thread ran on a processor; its rate is the share of the time that a worker is busy.";
    ThreadWaiting: Counter "millrace_thread_waiting_seconds" ["thread"] "Time for which a thread could have run and waited for a processor.";
    Memory: Gauge "millrace_memory_bytes" ["purpose"] "Memory by purpose: connections, in_flight, receive_buffers, mqtt_sessions.";
    MqttSessions: Gauge "millrace_mqtt_sessions" [] "Sessions of MQTT clients, including those that are away.";
    ClockDifference: Gauge "millrace_clock_difference_seconds" [] "How far the host's clock is behind the broker's; negative if it is ahead.";
    TopicDifferences: Gauge "millrace_topic_differences" [] "What was wrong with the topics when the relay started (`relay check --brokers`).";
    LogLinesLost: Counter "millrace_log_lines_lost" [] "Lines of the log that standard error did not accept.";
    ProcessCpu: Counter "process_cpu_seconds" [] "Processor time of the process, in steps of 10 ms.";
    ProcessMemory: Gauge "process_resident_memory_bytes" [] "Resident memory of the process.";
}
