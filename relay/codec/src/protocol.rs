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
        Self::new(service, None)
    }
}

impl Protocol {
    fn new(service: &Settings, former: Option<&Self>) -> Self {
        let which = match service.protocol {
            ProtocolKind::Framing => Recognised::Framing,
            ProtocolKind::Http => Recognised::Http,
            ProtocolKind::Mqtt => Recognised::Mqtt,
            ProtocolKind::WebSocket => Recognised::WebSocket,
            ProtocolKind::Auto => {
                let former = former.and_then(|former| match former {
                    Self::Auto(settings) => Some(&**settings),
                    Self::Spoken(_) => None,
                });
                return Self::Auto(Arc::new(AutoSettings::new(service, former)));
            }
        };
        let former = former.and_then(|former| match former {
            Self::Spoken(spoken) => Some(spoken),
            Self::Auto(_) => None,
        });
        Self::Spoken(Spoken::new(which, service, former))
    }

    /// The same with other settings, for connections that come from now on. What outlives connections goes
    /// on: sessions, and who may connect.
    #[must_use]
    pub fn with(&self, service: &Settings) -> Self {
        Self::new(service, Some(self))
    }

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
