//! The settings of a service and of a server.

use super::Setting;
use super::table::{I64, U16, U32, wide};
use crate::codec::MAX_REQUEST_FIELDS;
use crate::config::MAX_MESSAGE_BYTES;

/// What the kernel takes for `TCP_KEEPIDLE` and `TCP_KEEPINTVL` (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`),
/// and for `TCP_KEEPCNT` (`MAX_TCP_KEEPCNT`); `include/net/tcp.h`.
const MAX_KEEPALIVE_S: i64 = 32_767;
const MAX_KEEPALIVE_PROBES: i64 = 127;
/// Below a second, a single retransmission would end a connection.
const MIN_USER_TIMEOUT_MS: i64 = 1000;
/// The kernel takes no negative number.
const MAX_USER_TIMEOUT_MS: i64 = i32::MAX as i64;
/// Packet identifiers of QoS 2 that the relay remembers of one client.
const MAX_RECEIVE_MAXIMUM: i64 = 1024;
/// The codecs keep the head whole.
const MIN_HEAD_BYTES: i64 = 256;
const MAX_HEAD_BYTES: i64 = 1 << 20;

const NEW: &str = "connections that are accepted after it";
const OPEN: &str = "all connections of the service";

pub(super) const SETTINGS: &[Setting] = &[
    Setting::flag("service/*/accept", "Whether the service takes new clients. If not, they are closed at once.")
        .live(NEW),
    Setting::toml("service/*/destinations", "Destination prefixes that are diverted.")
        .by("change the configuration, then `relay rules apply`"),
    Setting::text("service/*/port", "TCP port, or a range of ports such as `8000-8099`."),
    Setting::text("service/*/protocol", "The clients' protocol."),
    Setting::toml("service/*/framing", "How plain framing separates messages."),
    Setting::number(
        "service/*/max_message_bytes",
        1,
        MAX_MESSAGE_BYTES as i64,
        "Longest message; a longer one closes its connection.",
    )
    .live(
        "connections that are accepted after it; replies held for absent clients: after a restart. Not above what \
         the topics take, which are made by the value at the relay's start",
    ),
    Setting::number(
        "service/*/handshake_timeout_ms",
        0,
        U32,
        "Time for a client to say who it is and what it wants.",
    )
    .live("all connections of the service; with HTTP, MQTT and `auto`, those that are accepted after it"),
    Setting::number(
        "service/*/idle_timeout_ms",
        1,
        U32,
        "A connection on which nothing comes from its client for this long is closed.",
    )
    .or(0, "never")
    .live(OPEN),
    Setting::number(
        "service/*/max_connections_per_address",
        1,
        U32,
        "Maximum number of connections of one client address.",
    )
    .or(0, "any number")
    .live("connections that are accepted after it; those accepted while it was 0 do not count"),
    Setting::number(
        "service/*/max_messages_per_second",
        1,
        U32,
        "Maximum number of messages of a connection; a client that sends more is read no faster.",
    )
    .or(0, "any number")
    .live(OPEN),
    Setting::text("service/*/identity", "What makes two connections the same client's."),
    Setting::number(
        "service/*/association_keep_ms",
        0,
        U32,
        "How long a client's association outlives its last connection.",
    ),
    Setting::toml("service/*/prefer", "Labels of the servers that get new clients first."),
    Setting::number("service/*/absence/after_ms", 0, U32, "How long a server may be away before `then` applies."),
    Setting::text("service/*/absence/then", "What happens then to its clients."),
    Setting::number(
        "service/*/absence/drain_ms",
        0,
        U32,
        "How long a draining server may take to read what its clients sent.",
    ),
    Setting::toml("service/*/auto/recognise", "What is recognised by a client's first bytes.").live(NEW),
    Setting::number("service/*/auto/wait_ms", 1, U32, "Time for the first bytes.").live(NEW),
    Setting::text("service/*/auto/otherwise", "What happens to a connection that is not recognised."),
    Setting::number(
        "service/*/auto/connect_timeout_ms",
        1,
        U32,
        "Time for the server to accept a connection that is handed on.",
    )
    .live("connections that are handed on after it"),
    Setting::toml("service/*/websocket/subprotocols", "Subprotocols that the service speaks.").live(NEW),
    Setting::toml("service/*/websocket/origins", "Origins whose pages may connect; none: all.").live(NEW),
    Setting::number(
        "service/*/websocket/max_head_bytes",
        MIN_HEAD_BYTES,
        MAX_HEAD_BYTES,
        "Longest head of the request.",
    )
    .live(NEW),
    Setting::number(
        "service/*/websocket/ping_interval_ms",
        1000,
        U32,
        "A client that has been silent for this long gets a ping.",
    )
    .or(0, "never")
    .live(NEW),
    Setting::flag("service/*/websocket/compression", "Whether messages may be compressed.").live(NEW),
    Setting::number(
        "service/*/websocket/compress_min_bytes",
        0,
        U32,
        "Replies shorter than this are not compressed.",
    )
    .live(NEW),
    Setting::text("service/*/websocket/reply_opcode", "The opcode of a reply that names none.").live(NEW),
    Setting::number(
        "service/*/http/max_head_bytes",
        MIN_HEAD_BYTES,
        MAX_HEAD_BYTES,
        "Longest head of a request.",
    )
    .live(NEW),
    Setting::number(
        "service/*/http/max_fields",
        1,
        wide(MAX_REQUEST_FIELDS),
        "Maximum number of fields of a request: each is a header of a record.",
    )
    .live(NEW),
    Setting::number("service/*/http/max_body_bytes", 0, I64, "Longest body of a request.").live(NEW),
    Setting::number(
        "service/*/http/max_pipelined",
        1,
        U16,
        "Maximum number of requests of one connection that wait for their replies.",
    )
    .live(NEW),
    Setting::number(
        "service/*/http/max_kept_bytes",
        0,
        U32,
        "Maximum bytes of one connection's replies that wait for the replies before them.",
    )
    .live(NEW),
    Setting::number("service/*/http/request_timeout_ms", 1, U32, "Time until the server's reply begins.")
        .live(NEW),
    Setting::number("service/*/http/body_timeout_ms", 1, U32, "Time without a byte of a body that has begun.")
        .live(NEW),
    Setting::number(
        "service/*/http/keep_alive_ms",
        1,
        U32,
        "How long a connection stays open between two requests.",
    )
    .live(NEW),
    Setting::text("service/*/mqtt/passwords", "File of users and hashes of their passwords."),
    Setting::number(
        "service/*/mqtt/session_expiry_s",
        0,
        U32,
        "Maximum time for which a session outlives its connection.",
    )
    .live(NEW),
    Setting::number("service/*/mqtt/max_sessions", 1, U32, "Maximum number of sessions."),
    Setting::number("service/*/mqtt/max_session_bytes", 0, I64, "Memory of all sessions."),
    Setting::number(
        "service/*/mqtt/receive_maximum",
        1,
        MAX_RECEIVE_MAXIMUM,
        "Maximum number of messages of QoS 1 and 2 that a client has sent and that are not acknowledged.",
    )
    .live(NEW),
    Setting::number(
        "service/*/mqtt/send_maximum",
        1,
        MAX_RECEIVE_MAXIMUM,
        "Maximum number of replies of QoS 1 and 2 that a client has not acknowledged.",
    )
    .live(NEW),
    Setting::number(
        "service/*/mqtt/max_waiting_bytes",
        0,
        I64,
        "Maximum bytes of the replies that wait for those.",
    )
    .live(NEW),
    Setting::number(
        "service/*/mqtt/max_keep_alive_s",
        1,
        U16,
        "Longest keep-alive of a client of MQTT 5.0.",
    )
    .or(0, "any, and none")
    .live(NEW),
    Setting::number("service/*/mqtt/max_subscriptions", 0, U16, "Maximum number of subscriptions of one client.")
        .live(NEW),
    Setting::flag(
        "service/*/mqtt/tell_subscriptions",
        "Whether servers get a record of each SUBSCRIBE and UNSUBSCRIBE.",
    )
    .live(NEW),
    Setting::number(
        "service/*/tcp/keepalive_idle_s",
        1,
        MAX_KEEPALIVE_S,
        "A client from which nothing has come for this long gets a keep-alive probe.",
    )
    .or(0, "no probes"),
    Setting::number("service/*/tcp/keepalive_interval_s", 1, MAX_KEEPALIVE_S, "Time between two probes."),
    Setting::number(
        "service/*/tcp/keepalive_probes",
        1,
        MAX_KEEPALIVE_PROBES,
        "So many probes go unanswered before the connection is closed.",
    ),
    Setting::number(
        "service/*/tcp/user_timeout_ms",
        MIN_USER_TIMEOUT_MS,
        MAX_USER_TIMEOUT_MS,
        "A connection on which the client has not acknowledged what was sent for this long is closed.",
    )
    .or(0, "the kernel's own"),
    Setting::text("server/*/address", "Its own network address, for the association records."),
    Setting::number("server/*/partition", 0, U16, "Its partition of the uplink."),
    Setting::number("server/*/capacity", 1, U32, "Share of the service's clients."),
    Setting::toml("server/*/labels", "Labels, which distinguish it from other servers of the service."),
];
