//! What a worker shares with the other workers, and with the gateway.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::codec::Framing;
use crate::config::{Config, RelaySection, Service};
use crate::kafka::{Incarnation, Presence, RelayId};
use crate::ring::Credit;
use crate::route::Associations;

/// Whom a worker tells about its connections, so that the gateway keeps diverting them.
pub trait Flows: Send {
    /// A connection was accepted. On error it is closed.
    fn accepted(&mut self, client: SocketAddr, server: SocketAddr) -> io::Result<()>;
    /// A connection is about to be closed.
    fn closed(&mut self, client: SocketAddr, server: SocketAddr);
}

/// Nobody: the relay listens where clients connect directly.
#[derive(Debug)]
pub struct NoGateway;

impl Flows for NoGateway {
    fn accepted(&mut self, _client: SocketAddr, _server: SocketAddr) -> io::Result<()> {
        Ok(())
    }
    fn closed(&mut self, _client: SocketAddr, _server: SocketAddr) {}
}

/// How a service's connections are read.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// Bytes to messages.
    pub framing: Framing,
    /// Longest message.
    pub max_message_bytes: u32,
}

impl From<&Service> for Protocol {
    fn from(service: &Service) -> Self {
        Self {
            framing: service.framing.expect("a checked configuration has one"),
            max_message_bytes: service.max_message_bytes,
        }
    }
}

/// What all workers of a relay have in common.
#[derive(Clone, Debug)]
pub struct Shared {
    /// This relay.
    pub relay: RelayId,
    /// This run of it.
    pub incarnation: Incarnation,
    /// Bounds and times.
    pub limits: RelaySection,
    /// By [`ServiceId`](crate::route::ServiceId).
    pub protocols: Arc<[Protocol]>,
    /// Which client belongs to which server.
    pub associations: Arc<Associations>,
    /// Which clients are here whose replies would wait for them.
    pub presence: Presence,
    /// How much may be under way.
    pub credit: Arc<Credit>,
    /// Set when the relay should stop; each worker's [`Wake`](crate::ring::Wake) is woken after it.
    pub stop: Arc<AtomicBool>,
}

impl Shared {
    /// For a checked configuration.
    pub fn new(config: &Config, incarnation: Incarnation) -> Self {
        let protocols = config.services.iter().map(Protocol::from).collect();
        Self {
            relay: RelayId(config.relay.id),
            incarnation,
            limits: config.relay.clone(),
            protocols,
            associations: Arc::new(Associations::new(
                &config.services,
                RelayId(config.relay.id),
                incarnation,
            )),
            presence: Presence::new(&config.services),
            credit: Arc::new(Credit::new(
                config.partitions(),
                config.kafka.partition_in_flight_bytes,
            )),
            stop: Arc::default(),
        }
    }
}
