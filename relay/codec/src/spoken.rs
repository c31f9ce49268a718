//! The protocols that a connection may speak, each with what all connections of a service have in common.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use millrace_model::Headers;

use super::any::AnyCodec;
use super::framing::{Framed, Framing};
use super::http::{Http, HttpSettings};
use super::mqtt::Mqtt;
use super::settings::Settings;
use super::websocket::{WebSocket, WebSocketSettings};
use super::{Recognised, Unencodable};

/// One protocol of a service.
#[derive(Clone, Debug)]
pub enum Spoken {
    /// Plain framing.
    Framing {
        /// Bytes to messages.
        framing: Framing,
        /// Longest message.
        max_message_bytes: u32,
    },
    /// HTTP/1.1 and 1.0.
    Http(Arc<HttpSettings>),
    /// MQTT 3.1.1 and 5.0.
    Mqtt(Arc<Mqtt>),
    /// WebSocket.
    WebSocket(Arc<WebSocketSettings>),
}

impl Spoken {
    /// That protocol of a service. What outlives connections is the former one's, if there is one.
    pub(super) fn new(which: Recognised, service: &Settings, former: Option<&Self>) -> Self {
        match which {
            Recognised::Framing => Self::Framing {
                framing: service.framing.expect("a checked configuration has one"),
                max_message_bytes: service.max_message_bytes,
            },
            Recognised::Http => {
                Self::Http(Arc::new(HttpSettings::new(service, Instant::now(), SystemTime::now())))
            }
            Recognised::Mqtt => Self::Mqtt(Arc::new(match former {
                Some(Self::Mqtt(former)) => former.with(service),
                _ => Mqtt::new(service),
            })),
            Recognised::WebSocket => Self::WebSocket(Arc::new(service.into())),
        }
    }

    /// A codec for a new connection.
    pub(super) fn codec(&self, now: Instant) -> AnyCodec {
        match self {
            Self::Framing { framing, max_message_bytes } => {
                AnyCodec::Framed(Framed::new(*framing, *max_message_bytes))
            }
            Self::Http(settings) => AnyCodec::Other(Box::new(Http::new(Arc::clone(settings), now))),
            Self::Mqtt(mqtt) => AnyCodec::Other(mqtt.codec(now)),
            Self::WebSocket(settings) => {
                AnyCodec::Other(Box::new(WebSocket::new(settings.clone())))
            }
        }
    }

    /// See [`Protocol::sessions`](super::Protocol::sessions).
    pub(super) fn sessions(&self) -> (usize, usize) {
        match self {
            Self::Mqtt(mqtt) => mqtt.sessions(),
            Self::Framing { .. } | Self::Http(_) | Self::WebSocket(_) => (0, 0),
        }
    }

    /// See [`Protocol::check_reply`](super::Protocol::check_reply).
    pub(super) fn check_reply(
        &self,
        headers: Headers<'_>,
        payload: &[u8],
    ) -> Result<(), Unencodable> {
        match self {
            Self::Framing { framing, max_message_bytes } => {
                framing.check_payload(*max_message_bytes, payload).map_err(|_| Unencodable)
            }
            // It answers a request of a connection that has ended.
            Self::Http(_) => Err(Unencodable),
            Self::Mqtt(mqtt) => mqtt.check_reply(headers, payload),
            Self::WebSocket(settings) => settings.check_reply(headers, payload),
        }
    }
}
