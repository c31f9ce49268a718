//! `[service.http]`: the bounds of a service whose clients speak HTTP/1.1.

use serde::{Deserialize, Serialize};

/// Limits of HTTP. The status of the answer says which one was exceeded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSection {
    /// Longest head of a request (its line and its fields) in bytes; a longer one gets 414 or 431. The
    /// limit also holds for the trailer section of a chunked body.
    pub max_head_bytes: u32,
    /// Maximum number of fields of a request; more get 431.
    pub max_fields: u16,
    /// Longest body of a request in bytes; a longer one gets 413. A body is divided into parts of the
    /// service's `max_message_bytes`.
    pub max_body_bytes: u64,
    /// Maximum number of requests of one connection that wait for their replies; a few bytes of further
    /// ones are read ahead.
    pub max_pipelined: u16,
    /// Maximum bytes of one connection's replies that wait for the replies before them; beyond it, the
    /// connection is closed.
    pub max_kept_bytes: u32,
    /// Time until the server's reply begins; after it, the client gets 504. For a client that has ended
    /// its side, also the time between two parts of a reply; after it, the connection is closed.
    /// Milliseconds.
    pub request_timeout_ms: u32,
    /// Time without a byte of a body that has begun; after it, the client gets 408. Milliseconds.
    pub body_timeout_ms: u32,
    /// How long a connection stays open between two requests. Milliseconds.
    pub keep_alive_ms: u32,
}

impl Default for HttpSection {
    fn default() -> Self {
        Self {
            max_head_bytes: 16 << 10,
            max_fields: 100,
            max_body_bytes: 16 << 20,
            max_pipelined: 16,
            max_kept_bytes: 1 << 20,
            request_timeout_ms: 30_000,
            body_timeout_ms: 10_000,
            keep_alive_ms: 60_000,
        }
    }
}
