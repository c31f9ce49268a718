//! `[service.http]`: the bounds of a service whose clients speak HTTP/1.1.

use serde::{Deserialize, Serialize};

use super::head::MAX_REQUEST_FIELDS;

/// Bounds of HTTP. Each is answered with a status that names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSection {
    /// Longest head of a request: its line and its fields, in bytes. Beyond: 414 or 431. Bounds the
    /// trailer section of a chunked body as well.
    pub max_head_bytes: u32,
    /// Most fields of a request. Beyond: 431.
    pub max_fields: u16,
    /// Longest body of a request, in bytes. Beyond: 413. It comes in parts of the service's
    /// `max_message_bytes`.
    pub max_body_bytes: u64,
    /// Requests of one connection that wait for their replies; further ones are read ahead a little,
    /// and then not read.
    pub max_pipelined: u16,
    /// Replies to later requests than the one whose turn it is, in bytes of one connection. Beyond,
    /// the connection is closed.
    pub max_kept_bytes: u32,
    /// How long the server may take until a reply begins. Milliseconds. Then: 504. To a client that has
    /// ended its side, also between two parts of a reply; then the connection is closed.
    pub request_timeout_ms: u32,
    /// How long nothing may come of a body that has begun. Milliseconds. Then: 408.
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

impl HttpSection {
    /// Refuses what makes no sense.
    pub fn check(&self) -> Result<(), String> {
        if !(256..=1 << 20).contains(&self.max_head_bytes) {
            return Err("http.max_head_bytes goes from 256 to 1048576".to_owned());
        }
        if !(1..=MAX_REQUEST_FIELDS).contains(&usize::from(self.max_fields)) {
            return Err(format!(
                "http.max_fields goes from 1 to {MAX_REQUEST_FIELDS}: each is a header of a record"
            ));
        }
        if self.max_pipelined == 0 {
            return Err("http.max_pipelined is at least 1".to_owned());
        }
        let times = [
            ("request_timeout_ms", self.request_timeout_ms),
            ("body_timeout_ms", self.body_timeout_ms),
            ("keep_alive_ms", self.keep_alive_ms),
        ];
        match times.iter().find(|(_, time)| *time == 0) {
            Some((name, _)) => Err(format!("http.{name} is at least 1")),
            None => Ok(()),
        }
    }
}
