//! `[service.auto]`: what is recognised at a service whose protocol is `auto`, and what becomes of
//! the rest.

use serde::{Deserialize, Serialize};

/// Recognition by the first bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AutoSection {
    /// What is recognised.
    pub recognise: Vec<Recognised>,
    /// Time for the first bytes. A client that waits for its server to speak first waits this long. The
    /// head of a request may take the service's `handshake_timeout_ms`.
    /// Milliseconds.
    pub wait_ms: u32,
    /// What happens to a connection that is none of these, or sends nothing in time.
    pub otherwise: Otherwise,
    /// Time for the server to accept a connection that is handed on; after it, the client is reset. By
    /// default Linux keeps trying for two minutes (`tcp_syn_retries` in `tcp(7)`), during which the
    /// client is already connected to the relay. Milliseconds.
    pub connect_timeout_ms: u32,
}

/// What can be recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Recognised {
    /// A request for a WebSocket.
    WebSocket,
    /// Any other HTTP request.
    Http,
    /// MQTT 3.1.1 and 5.0.
    Mqtt,
    /// The service's `framing`.
    Framing,
}

/// What happens to a connection that is not recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Otherwise {
    /// It goes to the server that the client addressed, unchanged.
    #[default]
    HandOn,
    /// It is treated as the service's `framing`.
    Framing,
    /// It is closed.
    Close,
}

impl Default for AutoSection {
    fn default() -> Self {
        Self {
            recognise: vec![Recognised::WebSocket],
            wait_ms: 1000,
            otherwise: Otherwise::HandOn,
            connect_timeout_ms: 10_000,
        }
    }
}

impl AutoSection {
    /// Checks what the types cannot express. `has_framing`: the service has `framing`.
    pub fn check(&self, has_framing: bool) -> Result<(), String> {
        if self.recognise.is_empty() {
            return Err("auto.recognise is empty; name the protocols to recognise".to_owned());
        }
        let wants_framing =
            self.recognise.contains(&Recognised::Framing) || self.otherwise == Otherwise::Framing;
        if wants_framing && !has_framing {
            return Err("auto names the framing, but the service has no `framing`".to_owned());
        }
        Ok(())
    }
}
