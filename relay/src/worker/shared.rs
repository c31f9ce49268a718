//! What a worker shares with the other workers, and with the gateway.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use tokio::sync::Notify;

use crate::codec::Protocol;
use crate::config::{Config, RelaySection, Service, Sharing};
use crate::engine::SocketOptions;
use crate::model::{Incarnation, RelayId};
use crate::ring::Credit;
use crate::route::Associations;
use crate::stop::StopTime;
use crate::undelivered::Clientele;
use crate::undelivered::{Arrivals, Presence};
use crate::uplink::Leases;

use super::limits::{Addresses, Rate};

/// Whom a worker tells about its connections, so that the gateway keeps diverting them.
pub trait Flows: Send {
    /// A connection was accepted. On error it is closed.
    fn accepted(&mut self, client: SocketAddr, server: SocketAddr) -> io::Result<()>;
    /// A connection is about to be closed.
    fn closed(&mut self, client: SocketAddr, server: SocketAddr);

    /// A socket for a connection to the server in the client's name; what the server answers will
    /// come here. Not connected yet. Unsupported where there is no gateway.
    fn onward(
        &mut self,
        _client: SocketAddr,
        _server: SocketAddr,
        _options: &SocketOptions,
    ) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// That connection is about to be closed.
    fn onward_closed(&mut self, _client: SocketAddr, _server: SocketAddr) {}
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

/// A service, as far as its connections depend on it.
#[derive(Clone, Debug)]
pub struct Served {
    /// What its clients speak.
    pub protocol: Protocol,
    /// Whether it takes new clients.
    pub accept: bool,
    /// Time for a client to say who it is.
    pub handshake: Duration,
    /// Idle timeout of a client.
    pub idle: Option<Duration>,
    /// How long the server may take to accept a connection that is handed on.
    pub connect: Duration,
    /// Options of its sockets.
    pub options: SocketOptions,
    /// Connections that one address may have.
    pub connections_per_address: Option<u32>,
    /// What a connection may send.
    pub rate: Option<Rate>,
}

impl From<&Service> for Served {
    fn from(service: &Service) -> Self {
        Self::new(service, Protocol::from(&service.codec()))
    }
}

impl Served {
    fn new(service: &Service, protocol: Protocol) -> Self {
        let ms = |ms| Duration::from_millis(u64::from(ms));
        Self {
            protocol,
            accept: service.accept,
            handshake: ms(service.handshake_timeout_ms),
            idle: (service.idle_timeout_ms > 0).then(|| ms(service.idle_timeout_ms)),
            connect: ms(service.auto.connect_timeout_ms),
            options: service.tcp.options(),
            connections_per_address: Some(service.max_connections_per_address)
                .filter(|most| *most > 0),
            rate: Rate::per_second(service.max_messages_per_second),
        }
    }

    /// The same with other settings, for connections that come from now on.
    #[must_use]
    pub fn with(&self, service: &Service) -> Self {
        Self::new(service, self.protocol.with(&service.codec()))
    }
}

/// What of the configuration a worker takes over while it runs.
#[derive(Debug)]
pub struct LiveSettings {
    /// Bounds and times. The engine's own are those of the start, but for the time that it collects events.
    pub limits: RelaySection,
    /// By [`ServiceId`](crate::model::ServiceId): as many as there were.
    pub services: Arc<[Served]>,
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
    /// By [`ServiceId`](crate::model::ServiceId).
    pub services: Arc<[Served]>,
    /// Which of them a connection belongs to, where several share a port.
    pub sharing: Arc<Sharing>,
    /// Which client belongs to which server.
    pub associations: Arc<Associations>,
    /// Which clients are here whose replies would wait for them.
    pub presence: Presence,
    /// How many connections addresses have, where that is bounded.
    pub addresses: Arc<Addresses>,
    /// How much may be under way.
    pub credit: Arc<Credit>,
    /// How many replies are postponed.
    pub postponed: Arc<AtomicU64>,
    /// When what of the downlink was read.
    pub arrivals: Arc<Arrivals>,
    /// Which partitions have become other servers'.
    pub leases: Arc<Leases>,
    /// Told when a worker can take no more connections, and when it can again.
    pub intake: Arc<Notify>,
    /// Set when the relay should stop; each worker's [`Wake`](crate::ring::Wake) is woken after it.
    pub stop: Arc<AtomicBool>,
    /// How long that may take; begins before `stop` is set.
    pub stop_time: StopTime,
}

impl Shared {
    /// As much of it as the keeper has to know.
    pub fn clientele(&self) -> Clientele {
        Clientele {
            incarnation: self.incarnation,
            protocols: self.services.iter().map(|service| service.protocol.clone()).collect(),
            presence: self.presence.clone(),
            stop: self.stop.clone(),
        }
    }

    /// For a checked configuration.
    pub fn new(config: &Config, incarnation: Incarnation) -> Self {
        let services = config.services.iter().map(Served::from).collect();
        Self {
            relay: RelayId(config.relay.id),
            incarnation,
            limits: config.relay.clone(),
            services,
            sharing: Arc::new(Sharing::of(&config.services)),
            associations: Arc::new(Associations::new(
                &config.services,
                RelayId(config.relay.id),
                incarnation,
            )),
            presence: Presence::new(&config.services),
            addresses: Arc::default(),
            credit: Arc::new(Credit::new(
                config.partitions(),
                config.kafka.partition_in_flight_bytes,
            )),
            postponed: Arc::default(),
            arrivals: Arc::default(),
            leases: Arc::new(Leases::new(config)),
            intake: Arc::default(),
            stop: Arc::default(),
            stop_time: StopTime::new(&config.relay),
        }
    }
}
