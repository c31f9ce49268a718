//! What a codec gets to know of its service.

use serde::{Deserialize, Serialize};

use millrace_model::IdentityKind;

use super::auto::AutoSection;
use super::framing::Framing;
use super::http::HttpSection;
use super::mqtt::MqttSection;
use super::websocket::WebSocketSection;

/// What the clients of a service speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolKind {
    /// Messages of the service's `framing`.
    #[default]
    Framing,
    /// HTTP/1.1 and 1.0.
    Http,
    /// MQTT 3.1.1 and 5.0.
    Mqtt,
    /// WebSocket (RFC 6455).
    WebSocket,
    /// Whatever of the service's protocols a client's first bytes are of.
    Auto,
}

/// A service, as far as its codecs depend on it. Checked by who makes it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the clients speak.
    pub protocol: ProtocolKind,
    /// How bytes become messages, if they are nothing but messages.
    pub framing: Option<Framing>,
    /// What makes two connections the same client's.
    pub identity: IdentityKind,
    /// Longest message.
    pub max_message_bytes: u32,
    /// How long a client may take to say who it is and what it wants. Milliseconds.
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
    /// Those of a service that speaks `protocol`, everything else with its default.
    pub fn new(protocol: ProtocolKind) -> Self {
        Self {
            protocol,
            framing: None,
            identity: IdentityKind::default(),
            max_message_bytes: 65_536,
            handshake_timeout_ms: 10_000,
            auto: AutoSection::default(),
            websocket: WebSocketSection::default(),
            http: HttpSection::default(),
            mqtt: MqttSection::default(),
        }
    }
}
