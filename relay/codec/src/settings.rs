//! What a codec gets to know of its service.

use serde::{Deserialize, Serialize};

use millrace_model::IdentityKind;

use super::auto::AutoSection;
use super::framing::Framing;
use super::http::HttpSection;
use super::mqtt::MqttSection;
use super::websocket::WebSocketSection;

/// The protocol of a service's clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolKind {
    /// Plain messages in the service's `framing`.
    #[default]
    Framing,
    /// HTTP/1.1 and 1.0.
    Http,
    /// MQTT 3.1.1 and 5.0.
    Mqtt,
    /// WebSocket (RFC 6455).
    WebSocket,
    /// Recognised by a client's first bytes.
    Auto,
}

/// What codecs know of their service. Whoever makes it checks it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The clients' protocol.
    pub protocol: ProtocolKind,
    /// How plain framing separates messages.
    pub framing: Option<Framing>,
    /// What makes two connections the same client's.
    pub identity: IdentityKind,
    /// Longest message in bytes.
    pub max_message_bytes: u32,
    /// Time for a client to say who it is and what it wants. Milliseconds.
    pub handshake_timeout_ms: u32,
    /// Recognition of the protocol.
    pub auto: AutoSection,
    /// WebSocket.
    pub websocket: WebSocketSection,
    /// HTTP.
    pub http: HttpSection,
    /// MQTT.
    pub mqtt: MqttSection,
}

impl Settings {
    /// [`max_message_bytes`](Self::max_message_bytes) of a service that does not set it.
    pub const MAX_MESSAGE_BYTES: u32 = 65_536;
    /// [`handshake_timeout_ms`](Self::handshake_timeout_ms) of a service that does not set it.
    pub const HANDSHAKE_TIMEOUT_MS: u32 = 10_000;

    /// The settings of a service that speaks `protocol`, with defaults for everything else.
    pub fn new(protocol: ProtocolKind) -> Self {
        Self {
            protocol,
            framing: None,
            identity: IdentityKind::default(),
            max_message_bytes: Self::MAX_MESSAGE_BYTES,
            handshake_timeout_ms: Self::HANDSHAKE_TIMEOUT_MS,
            auto: AutoSection::default(),
            websocket: WebSocketSection::default(),
            http: HttpSection::default(),
            mqtt: MqttSection::default(),
        }
    }
}
