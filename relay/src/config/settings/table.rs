//! The settings of an instance, its relay and its cluster.

use super::Setting;
use crate::config::{MAX_CONNECTIONS, MAX_WORKERS};

/// What the type of a number takes at most.
pub(super) const U16: i64 = u16::MAX as i64;
pub(super) const U32: i64 = u32::MAX as i64;
/// TOML has no larger number.
pub(super) const I64: i64 = i64::MAX;

#[expect(clippy::cast_possible_wrap, reason = "bounds are small")]
pub(super) const fn wide(number: usize) -> i64 {
    number as i64
}

/// The link to the relay keeps 256 packets for each processor (`VETH_RING_SIZE`, `drivers/net/veth.c`); so
/// many come in this time at 256,000 a second, and more are lost.
const MAX_COALESCE_US: i64 = 1000;
/// librdkafka's `max.poll.interval.ms`, which a session must not exceed.
const MAX_SESSION_TIMEOUT_MS: i64 = 300_000;

const LOAD: &str = "change the configuration, then `relay unload` and `relay load`";
const REPLACE: &str = "change the configuration, then `relay load --replace`";
const RULES: &str = "change the configuration, then `relay rules apply`";
const OPEN: &str = "all connections";

pub(super) const SETTINGS: &[Setting] = &[
    Setting::text("gateway/instance", "Names everything that the instance puts on the host.").by(LOAD),
    Setting::toml("gateway/devices", "Client-facing network devices.").by(LOAD),
    Setting::toml("gateway/shared_addresses", "Hardware addresses that this gateway shares with others.")
        .by(REPLACE),
    Setting::text("gateway/zones", "What tells apart networks whose addresses may overlap.").by(LOAD),
    Setting::text("gateway/xdp", "Where on the devices the programs may run.").by(REPLACE),
    Setting::number(
        "gateway/heartbeat_timeout_ms",
        100,
        U32,
        "A relay one of whose workers has not gone round its loop for this long gets no new connections.",
    )
    .live("the gateway, at once; until `relay load` or `relay rules apply` writes the configuration's anew"),
    Setting::text("gateway/mode", "Which packets a `divert` rule diverts.").by(RULES),
    Setting::text("gateway/reverse_path", "How far sources are checked before something new is diverted.")
        .by(RULES),
    Setting::flag("gateway/reattach", "Whether a running relay attaches a device again that comes back."),
    Setting::text("gateway/rules", "File of steering rules.").by(RULES),
    Setting::number(
        "gateway/coalesce_us",
        1,
        MAX_COALESCE_US,
        "How long the relay's end of the link collects packets before it looks at them.",
    )
    .or(0, "no wait")
    .by(REPLACE),
    Setting::toml("gateway/sysctls", "Kernel settings of the relay namespace.").by(REPLACE),
    Setting::number("relay/id", 0, U16, "The relay's number: its partition of the downlink."),
    Setting::number("relay/workers", 1, wide(MAX_WORKERS), "Worker threads.").or(0, "one per processor"),
    Setting::number(
        "relay/max_connections",
        1,
        MAX_CONNECTIONS as i64,
        "Maximum number of connections of one worker.",
    ),
    Setting::number("relay/receive_buffers", 1, 32_768, "Number of receive buffers of one worker.")
        .power_of_two(),
    Setting::number("relay/receive_buffer_bytes", 64, 1 << 20, "Size of one receive buffer."),
    Setting::number(
        "relay/batch_wait_us",
        0,
        100_000,
        "How long a busy worker lets the kernel collect completions before it looks. Needs Linux 6.12.",
    )
    .live("all connections, from each worker's next wait on"),
    Setting::number(
        "relay/reply_pause_bytes",
        0,
        I64,
        "Bytes of replies that wait for one client, beyond which the client is not read from. Below \
         `relay/reply_limit_bytes`.",
    )
    .live(OPEN),
    Setting::number(
        "relay/reply_limit_bytes",
        1,
        I64,
        "Bytes of replies that wait for one client, beyond which further replies stay in Kafka.",
    )
    .live(OPEN),
    Setting::number(
        "relay/reply_backlog_bytes",
        1,
        I64,
        "Bytes of replies that stay in Kafka for one client, plus 128 for each, beyond which the connection is \
         closed.",
    )
    .or(0, "none")
    .live("all connections, with the next reply that has to stay in Kafka"),
    Setting::number(
        "relay/max_connection_bytes",
        1,
        I64,
        "Bytes kept in memory for one connection, beyond which it is closed. Not below \
         `relay/reply_limit_bytes`.",
    )
    .live(OPEN),
    Setting::number(
        "relay/reply_timeout_ms",
        1000,
        U32,
        "How long a client may leave a reply unread before its connection is closed.",
    )
    .live(OPEN),
    Setting::number(
        "relay/half_close_ms",
        0,
        U32,
        "How long replies are still sent to a client that has ended its side.",
    )
    .live("connections whose clients end their side after it"),
    Setting::number("relay/stop_timeout_ms", 1000, U32, "Maximum time of a whole stop.")
        .live("a stop that begins after it"),
    Setting::text("kafka/brokers", "Bootstrap brokers, `HOST:PORT`, separated by commas."),
    Setting::text("kafka/topic_prefix", "Prefix of the names of all topics and groups."),
    Setting::number(
        "kafka/linger_us",
        0,
        U32,
        "How long the producer waits for a batch to fill. Without it in the configuration, 500 with \
         `librdkafka` and 0 with `millrace`.",
    )
    .live("batches after it, with `kafka.engine = \"millrace\"`; librdkafka reads it when the relay starts"),
    Setting::text("kafka/engine", "What writes messages to the uplink."),
    Setting::number(
        "kafka/partition_in_flight_bytes",
        1 << 16,
        I64,
        "Limit of unacknowledged bytes of one partition, beyond which its clients are not read from.",
    )
    .live(OPEN),
    Setting::number("kafka/uplink_partitions", 0, U16, "Minimum number of partitions of the uplink."),
    Setting::number("kafka/replication", 1, 32_767, "Replication factor of topics that the relay creates.")
        .or(-1, "the brokers' default"),
    Setting::text("kafka/tls/ca", "Certificate authorities of the brokers; without it, those of the system."),
    Setting::text("kafka/tls/certificate", "The relay's own certificate."),
    Setting::text("kafka/tls/key", "Its private key."),
    Setting::text("kafka/sasl/mechanism", "How brokers are told who the relay is."),
    Setting::text("kafka/sasl/user", "The user that they are told."),
    Setting::text("kafka/sasl/password_file", "The file with the user's password."),
    Setting::toml("kafka/properties", "Further properties of librdkafka."),
    Setting::number("registry/lease_ms", 300, U32, "A server that does not renew for this long is away."),
    Setting::number("registry/forget_ms", 1, U32, "A server that has been away for this long is gone."),
    Setting::number("registry/max_capacity", 1, U32, "Largest capacity that a server may register with."),
    Setting::number(
        "registry/relay_timeout_ms",
        300,
        U32,
        "A relay that has not written for this long is gone.",
    ),
    Setting::number(
        "registry/session_timeout_ms",
        1000,
        MAX_SESSION_TIMEOUT_MS,
        "A relay of which the brokers have heard nothing for this long no longer coordinates.",
    ),
    Setting::number(
        "registry/start_timeout_ms",
        1000,
        U32,
        "Maximum time for reading the registry when a relay starts.",
    ),
    Setting::number(
        "hold/max_age_ms",
        0,
        I64,
        "How long a reply waits for a client that is away.",
    )
    .live(
        "all replies that wait; not above the value at the relay's start, by which Kafka keeps the topic's \
         records",
    ),
    Setting::number("hold/max_per_client", 0, U32, "Maximum number of replies that wait for one client.")
        .live("replies after it; those that wait already stay"),
    Setting::number("hold/max_bytes", 0, I64, "Maximum bytes of replies that wait for all clients.")
        .live("replies after it; those that wait already stay"),
    Setting::text("metrics/listen", "Where metrics are served, `ADDRESS:PORT`; `relay run --metrics` takes precedence."),
    Setting::text("log/filter", "What is logged, as `RUST_LOG` says it: `info`, `warn,millrace_relay=debug`.")
        .of_process()
        .live("the log, at once"),
];
