//! A whole machine room on one host: client, gateway and server hosts, an instance of Millrace
//! between them, topics of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use millrace_relay::config::{
    Config, GatewaySection, HoldSection, MetricsSection, RegistrySection, RelaySection, Server,
    Service, Source,
};
use millrace_relay::model::Partition;

use crate::clients::wire::{Wire, frames, lines};
use crate::kafka::{self, Topics};
use crate::net::netns::{Topology, instance_name};
use crate::net::ordinary::OrdinaryServer;
use crate::relay::instance::Instance;
use crate::servers::by_hand::HandServer;

/// The diverted port with frames.
pub const FRAMES_PORT: u16 = 7000;
/// A port without a rule.
pub const ORDINARY_PORT: u16 = 7001;
/// The diverted port with lines.
pub const LINES_PORT: u16 = 7002;
/// Name of the service at [`FRAMES_PORT`].
pub const FRAMES_SERVICE: &str = "frames";
/// Name of the service at [`LINES_PORT`].
pub const LINES_SERVICE: &str = "lines";
/// Most servers: their addresses are the server network's from .11 on.
pub const MAX_SERVERS: u16 = 200;

/// What to build.
#[derive(Clone, Debug)]
pub struct ClusterPlan {
    /// Goes into the names of topics.
    pub name: String,
    /// Server hosts.
    pub servers: u16,
    /// Bootstrap brokers.
    pub brokers: String,
    /// Longest message of both services.
    pub max_message_bytes: u32,
}

/// The hosts and what runs on them. Dropping it takes all of it away again.
#[derive(Debug)]
pub struct Cluster {
    /// Gateway and relay.
    pub instance: Instance,
    /// The server hosts' own listeners.
    pub ordinary: Vec<OrdinaryServer>,
    /// The hosts.
    pub hosts: Topology,
    /// The topics.
    pub topics: Topics,
    /// As it was asked for.
    pub plan: ClusterPlan,
}

impl ClusterPlan {
    /// A small one for a test, with the brokers that all tests share.
    pub fn small(name: &str, servers: u16) -> Self {
        Self {
            name: name.to_owned(),
            servers,
            brokers: crate::kafka::brokers(),
            max_message_bytes: 65_536,
        }
    }
}

impl Cluster {
    /// Builds the hosts with the servers' own listeners. Neither gateway nor relay runs yet.
    pub fn build(plan: ClusterPlan) -> Result<Self> {
        Self::build_with(plan, |_| {})
    }

    /// As [`Self::build`], with other settings.
    pub fn build_with(plan: ClusterPlan, adjust: impl FnOnce(&mut Config)) -> Result<Self> {
        let topics = Topics::new(&plan.brokers, &plan.name);
        let hosts =
            Topology::new(usize::from(plan.servers), 1).context("cannot build the hosts")?;
        let ports = [FRAMES_PORT, ORDINARY_PORT, LINES_PORT];
        let ordinary = (hosts.servers.iter().zip(0..))
            .map(|(host, index)| {
                OrdinaryServer::start(&host.namespace(), Topology::server_address(index), &ports)
            })
            .collect::<Result<_>>()?;
        let mut config = config(&plan, topics.prefix());
        adjust(&mut config);
        let instance = Instance::new(config, Some(&hosts.gateway.namespace()))?;
        Ok(Self { instance, ordinary, hosts, topics, plan })
    }

    /// Loads the gateway and starts the relay.
    pub fn start(&mut self) -> Result<()> {
        self.instance.load()?;
        self.instance.start()
    }

    /// Network namespace of the clients.
    pub fn clients(&self) -> PathBuf {
        self.hosts.clients[0].namespace()
    }

    /// The servers' own addresses at a port.
    pub fn targets(&self, port: u16) -> Vec<SocketAddr> {
        (0..self.plan.servers)
            .map(|index| SocketAddr::from((Topology::server_address(usize::from(index)), port)))
            .collect()
    }

    /// Uplink partitions of the servers of the service with frames.
    pub fn frames_partitions(&self) -> Vec<u16> {
        (0..self.plan.servers).collect()
    }

    /// Uplink partitions of the servers of the service with lines.
    pub fn lines_partitions(&self) -> Vec<u16> {
        (self.plan.servers..2 * self.plan.servers).collect()
    }

    /// Reads these partitions of the uplink from their start.
    pub fn server(&self, partitions: &[u16]) -> Result<HandServer> {
        HandServer::on(&self.plan.brokers, self.topics.prefix(), partitions)
    }

    /// Connections and packets that reached the servers' own listeners at [`FRAMES_PORT`].
    pub fn ordinary_traffic(&self) -> Result<(u64, u64)> {
        let accepted = self.ordinary.iter().map(OrdinaryServer::accepted).sum();
        let packets = self.ordinary.iter().map(OrdinaryServer::packets).sum::<Result<u64>>()?;
        Ok((accepted, packets))
    }
}

fn config(plan: &ClusterPlan, prefix: &str) -> Config {
    let service = |name: &str, port: u16, wire: Wire, first_partition: u16| Service {
        destinations: [Topology::SERVER_NETWORK, Topology::SERVER_NETWORK_IPV6]
            .map(|network| network.parse().expect("a prefix"))
            .to_vec(),
        max_message_bytes: plan.max_message_bytes,
        servers: (0..plan.servers)
            .map(|index| {
                let address = Topology::server_address(usize::from(index));
                let partition = Partition(first_partition + index);
                Server::new(format!("{name}-{index}"), address.into(), partition)
            })
            .collect(),
        ..Service::new(name, port, wire.0)
    };
    Config {
        gateway: GatewaySection::new(instance_name(), &[Topology::CLIENT_DEVICE]),
        relay: RelaySection::default(),
        kafka: kafka::section(&plan.brokers, prefix),
        registry: RegistrySection::default(),
        hold: HoldSection::default(),
        metrics: MetricsSection::default(),
        services: vec![
            service(FRAMES_SERVICE, FRAMES_PORT, frames(), 0),
            service(LINES_SERVICE, LINES_PORT, lines(), plan.servers),
        ],
        source: Source::default(),
    }
}
