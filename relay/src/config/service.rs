//! `[[service]]`: what clients speak at a port, and who answers them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::codec::{
    AutoSection, Framing, HttpSection, MqttSection, Otherwise, ProtocolKind, Settings,
    WebSocketSection,
};
use crate::config::{Absence, TcpSection};
use crate::model::{IdentityKind, Partition};
use crate::ports::Ports;
use crate::prefix::Prefix;

/// Ports of a set of destinations, their clients' protocol, and its servers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name, for people and counters.
    pub name: String,
    /// Destination prefixes that are diverted, unless [`GatewaySection::rules`](super::GatewaySection::rules) names rules.
    #[serde(default)]
    pub destinations: Vec<Prefix>,
    /// TCP port, or a range of ports. Services may share ports if their destinations differ.
    pub port: Ports,
    /// Whether it takes new clients. If not, their connections are closed at once.
    #[serde(default = "default_accept")]
    pub accept: bool,
    /// The clients' protocol.
    #[serde(default)]
    pub protocol: ProtocolKind,
    /// How plain framing separates messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framing: Option<Framing>,
    /// Settings and limits of `protocol = "mqtt"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<MqttSection>,
    /// Longest message in bytes; a longer one closes its connection.
    #[serde(default = "default_max_message_bytes")]
    pub max_message_bytes: u32,
    /// Time for a client to say who it is and what it wants. Milliseconds.
    #[serde(default = "default_handshake_timeout_ms")]
    pub handshake_timeout_ms: u32,
    /// Idle timeout: a connection on which nothing comes from its client for this long is closed.
    /// Milliseconds; 0: never.
    #[serde(default)]
    pub idle_timeout_ms: u32,
    /// Maximum number of connections of one client address to the service through this relay; 0: any.
    #[serde(default)]
    pub max_connections_per_address: u32,
    /// Maximum number of messages per second of a connection, and at once after a pause; a client that
    /// sends more is read no faster. 0: any number.
    #[serde(default)]
    pub max_messages_per_second: u32,
    /// Recognition of the protocol.
    #[serde(default)]
    pub auto: AutoSection,
    /// WebSocket.
    #[serde(default)]
    pub websocket: WebSocketSection,
    /// What makes two connections the same client's.
    #[serde(default)]
    pub identity: IdentityKind,
    /// How long a client's association outlives its last connection. Milliseconds.
    #[serde(default)]
    pub association_keep_ms: u32,
    /// Labels of the servers that get new clients first. While a live server has all of these labels,
    /// only such servers get new clients, however loaded they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prefer: BTreeMap<String, String>,
    /// What happens to clients whose server is away, or does not drain.
    #[serde(default)]
    pub absence: Absence,
    /// Limits of `protocol = "http"`.
    #[serde(default)]
    pub http: HttpSection,
    /// How long a connection outlives a client that has vanished.
    #[serde(default)]
    pub tcp: TcpSection,
    /// Declared servers; others may register.
    #[serde(rename = "server", default)]
    pub servers: Vec<Server>,
}

impl Service {
    /// A service with this framing, and defaults for everything else.
    pub fn new(name: impl Into<String>, port: impl Into<Ports>, framing: Framing) -> Self {
        Self {
            name: name.into(),
            destinations: Vec::new(),
            port: port.into(),
            accept: default_accept(),
            protocol: ProtocolKind::default(),
            framing: Some(framing),
            mqtt: None,
            max_message_bytes: default_max_message_bytes(),
            handshake_timeout_ms: default_handshake_timeout_ms(),
            idle_timeout_ms: 0,
            max_connections_per_address: 0,
            max_messages_per_second: 0,
            auto: AutoSection::default(),
            websocket: WebSocketSection::default(),
            identity: IdentityKind::default(),
            association_keep_ms: 0,
            prefer: BTreeMap::new(),
            absence: Absence::default(),
            http: HttpSection::default(),
            tcp: TcpSection::default(),
            servers: Vec::new(),
        }
    }

    /// What its codecs need to know.
    pub fn codec(&self) -> Settings {
        Settings {
            protocol: self.protocol,
            framing: self.framing,
            identity: self.identity,
            max_message_bytes: self.max_message_bytes,
            handshake_timeout_ms: self.handshake_timeout_ms,
            auto: self.auto.clone(),
            websocket: self.websocket.clone(),
            http: self.http.clone(),
            mqtt: self.mqtt.clone().unwrap_or_default(),
        }
    }

    /// Whether some of its connections are handed on to the server that the client addressed.
    pub fn hands_on(&self) -> bool {
        self.protocol == ProtocolKind::Auto && self.auto.otherwise == Otherwise::HandOn
    }

    /// Checks the options of its sockets.
    pub(super) fn check_tcp(&self) -> Result<(), String> {
        self.tcp.check(self.hands_on())
    }

    /// Checks what the protocol needs.
    pub(super) fn check_protocol(&self) -> Result<(), String> {
        self.websocket.check()?;
        match (self.protocol, self.framing) {
            (ProtocolKind::Framing, None) => {
                Err("needs `framing`, or another `protocol` than \"framing\"".to_owned())
            }
            (ProtocolKind::Framing, Some(framing)) => framing.check(self.max_message_bytes),
            (ProtocolKind::Auto, framing) => {
                self.auto.check(framing.is_some())?;
                framing.map_or(Ok(()), |framing| framing.check(self.max_message_bytes))
            }
            (ProtocolKind::Http | ProtocolKind::Mqtt | ProtocolKind::WebSocket, None) => Ok(()),
            (ProtocolKind::Http | ProtocolKind::Mqtt | ProtocolKind::WebSocket, Some(_)) => {
                Err("`framing` belongs to `protocol = \"framing\"`; other protocols have their own"
                    .to_owned())
            }
        }
    }
}

/// A declared server.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Its id, for people and counters; unique.
    pub id: String,
    /// Its own network address, for the association records.
    pub address: IpAddr,
    /// Its partition of the uplink; unique.
    pub partition: Partition,
    /// Share of the service's clients, in proportion to the other servers' capacities.
    #[serde(default = "default_capacity")]
    pub capacity: NonZeroU32,
    /// Labels, which distinguish it from other servers of the service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Server {
    /// A server with defaults for everything else.
    pub fn new(id: impl Into<String>, address: IpAddr, partition: Partition) -> Self {
        let (capacity, labels) = (default_capacity(), BTreeMap::new());
        Self { id: id.into(), address, partition, capacity, labels }
    }
}

const fn default_capacity() -> NonZeroU32 {
    NonZeroU32::MIN
}

const fn default_accept() -> bool {
    true
}

const fn default_handshake_timeout_ms() -> u32 {
    Settings::HANDSHAKE_TIMEOUT_MS
}

const fn default_max_message_bytes() -> u32 {
    Settings::MAX_MESSAGE_BYTES
}
