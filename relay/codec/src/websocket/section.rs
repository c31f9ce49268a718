//! `[service.websocket]`: what WebSocket connections of a service may be and do.

use serde::{Deserialize, Serialize};

/// WebSocket (RFC 6455) of a service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebSocketSection {
    /// Subprotocols that the service speaks. The first one that the client offers and that this list
    /// contains is chosen; if there is none, no subprotocol is used.
    pub subprotocols: Vec<String>,
    /// Origins whose pages may connect, as browsers write them (`https://example.org`); none: all.
    /// A client that sends no origin is not a browser, and is let in.
    pub origins: Vec<String>,
    /// Longest head of the request, in bytes.
    pub max_head_bytes: u32,
    /// A client that has been silent for this long gets a ping, and is closed if it stays silent for the
    /// same time again. Milliseconds; 0: never.
    pub ping_interval_ms: u32,
    /// Whether messages may be compressed (RFC 7692).
    pub compression: bool,
    /// Replies shorter than this are not compressed. Bytes.
    pub compress_min_bytes: u32,
    /// The opcode of a reply without the header `websocket.opcode`.
    pub reply_opcode: ReplyOpcode,
}

/// Text or binary, if the server does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplyOpcode {
    /// As the client's last message was; before the first one, text.
    #[default]
    Same,
    /// Text.
    Text,
    /// Binary.
    Binary,
}

impl Default for WebSocketSection {
    fn default() -> Self {
        Self {
            subprotocols: Vec::new(),
            origins: Vec::new(),
            max_head_bytes: 16 << 10,
            ping_interval_ms: 30_000,
            compression: true,
            compress_min_bytes: 256,
            reply_opcode: ReplyOpcode::Same,
        }
    }
}

impl WebSocketSection {
    /// Checks what the types cannot express.
    pub fn check(&self) -> Result<(), String> {
        let token = |name: &String| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
        };
        if let Some(bad) = self.subprotocols.iter().find(|name| !token(name)) {
            return Err(format!(
                "websocket.subprotocols: `{bad}` is not a token (RFC 9110 section 5.6.2)"
            ));
        }
        if let Some(bad) = self.origins.iter().find(|origin| !origin.contains("://")) {
            return Err(format!(
                "websocket.origins: `{bad}` is not SCHEME://HOST[:PORT], as browsers write it"
            ));
        }
        Ok(())
    }
}
