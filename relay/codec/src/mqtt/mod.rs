//! MQTT 3.1.1 and 5.0: what a client publishes becomes records, what a server replies is published
//! to the client, if it has subscribed to that.
//!
//! The sections and numbered statements that comments name are those of the OASIS standards *MQTT
//! Version 3.1.1* and *MQTT Version 5.0*.
//!
//! | module | what |
//! |---|---|
//! | `wire`, `properties`, `reason`, `topic` | the vocabulary: data types, properties, reason codes, topics |
//! | `packet`, `encode` | packets of the client, parsed in place; packets of the relay |
//! | `record` | headers of records: from packets, and into packets |
//! | `check` | who may connect |
//! | `session`, `sessions` | what outlives a connection |
//! | `will` | what is published when a client is gone |
//! | `connection` | the codec: bytes to packets, the end |
//! | `entry` | CONNECT: how a client is let in |
//! | `client` | an accepted client: what it sends |
//! | `replies`, `unmatched` | and what it is sent |

mod check;
mod client;
mod connection;
mod encode;
mod entry;
mod ids;
mod packet;
mod passwords;
mod properties;
mod reason;
mod record;
mod replies;
mod section;
mod session;
mod sessions;
#[cfg(test)]
mod tests;
mod topic;
mod unmatched;
mod waiting;
mod will;
mod wire;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::{Codec, Settings, Unencodable};
use millrace_model::{Headers, IdentityKind};

use check::Checker;
use sessions::Sessions;

pub use passwords::Passwords;
pub use section::MqttSection;

/// What a packet may have around a payload of the longest message: topic, properties.
const PACKET_OVERHEAD_BYTES: usize = 32 << 10;
/// Topic aliases that a client may use.
const TOPIC_ALIAS_MAXIMUM: u16 = 16;

/// What all MQTT connections of a service have in common.
#[derive(Debug)]
pub struct Mqtt {
    section: MqttSection,
    max_message_bytes: usize,
    handshake: Duration,
    sessions: Arc<Sessions>,
    /// Without them everybody may connect.
    users: Option<Passwords>,
    /// Starts when the first client asks.
    checker: Arc<OnceLock<Checker>>,
}

impl Mqtt {
    /// For a service.
    pub fn new(service: &Settings) -> Self {
        let mut section = service.mqtt.clone();
        let users = section.users.take();
        let sessions = Sessions::new(
            section.max_sessions as usize,
            section.max_session_bytes,
            service.identity != IdentityKind::Connection,
        );
        Self {
            section,
            max_message_bytes: service.max_message_bytes as usize,
            handshake: Duration::from_millis(u64::from(service.handshake_timeout_ms)),
            sessions: Arc::new(sessions),
            users,
            checker: Arc::default(),
        }
    }

    /// The same with other settings and users: the same sessions, within the same bounds.
    pub(super) fn with(&self, service: &Settings) -> Self {
        let mut section = service.mqtt.clone();
        let users = section.users.take();
        let checker = if users == self.users { self.checker.clone() } else { Arc::default() };
        Self {
            section,
            max_message_bytes: service.max_message_bytes as usize,
            handshake: Duration::from_millis(u64::from(service.handshake_timeout_ms)),
            sessions: self.sessions.clone(),
            users,
            checker,
        }
    }

    /// A codec for a new connection.
    pub fn codec(self: &Arc<Self>, now: Instant) -> Box<dyn Codec> {
        Box::new(connection::Connection::new(Arc::clone(self), now))
    }

    /// What tells who may connect; none if everybody may.
    fn checker(&self) -> Option<&Checker> {
        let start = |users: &Passwords| self.checker.get_or_init(|| Checker::start(users.clone()));
        self.users.as_ref().map(start).or_else(|| self.checker.get())
    }

    /// Whether a reply could be sent to some client.
    pub fn check_reply(&self, headers: Headers<'_>, payload: &[u8]) -> Result<(), Unencodable> {
        let properties = &mut properties::Writer::default();
        let most = self.max_message_bytes;
        record::Reply::read(headers, payload, Duration::ZERO, most, properties).map(drop)
    }

    /// How many sessions there are, and the bytes that they take.
    pub fn sessions(&self) -> (usize, usize) {
        self.sessions.size()
    }

    /// Longest packet that a client may send, fixed header included.
    const fn max_packet_bytes(&self) -> usize {
        let bytes = self.max_message_bytes + PACKET_OVERHEAD_BYTES;
        // The standard's own limit, fixed header included.
        if bytes > wire::MAX_VARINT { wire::MAX_VARINT } else { bytes }
    }
}
