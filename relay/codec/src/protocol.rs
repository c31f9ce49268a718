//! What the connections of a service speak: makes their codecs.

use std::sync::Arc;
use std::time::Instant;

use millrace_model::Headers;

use super::any::AnyCodec;
use super::auto::{Auto, AutoSettings};
use super::settings::{ProtocolKind, Settings};
use super::spoken::Spoken;
use super::{Recognised, Unencodable};

/// What all connections of a service have in common: makes their codecs.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// All connections speak the same.
    Spoken(Spoken),
    /// Each speaks what its first bytes tell.
    Auto(Arc<AutoSettings>),
}

impl From<&Settings> for Protocol {
    fn from(service: &Settings) -> Self {
        let which = match service.protocol {
            ProtocolKind::Framing => Recognised::Framing,
            ProtocolKind::Http => Recognised::Http,
            ProtocolKind::Mqtt => Recognised::Mqtt,
            ProtocolKind::WebSocket => Recognised::WebSocket,
            ProtocolKind::Auto => return Self::Auto(Arc::new(service.into())),
        };
        Self::Spoken(Spoken::new(which, service))
    }
}

impl Protocol {
    /// A codec for a new connection.
    pub fn codec(&self, now: Instant) -> AnyCodec {
        match self {
            Self::Spoken(one) => one.codec(now),
            Self::Auto(settings) => AnyCodec::Other(Box::new(Auto::new(settings.clone(), now))),
        }
    }

    /// How many sessions outlive, or may outlive, their clients' connections, and the bytes that they take
    /// of memory.
    pub fn sessions(&self) -> (usize, usize) {
        match self {
            Self::Spoken(one) => one.sessions(),
            Self::Auto(auto) => auto.sessions(),
        }
    }

    /// Whether a reply could be sent to some client of the service. For replies that wait: one that
    /// could not becomes a dead letter before its client comes.
    pub fn check_reply(&self, headers: Headers<'_>, payload: &[u8]) -> Result<(), Unencodable> {
        match self {
            Self::Spoken(one) => one.check_reply(headers, payload),
            Self::Auto(settings) => settings.check_reply(headers, payload),
        }
    }
}
