//! Several relays without gateway that share topics: what they agree on needs no XDP.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use millrace_relay::config::{
    Config, GatewaySection, HoldSection, MetricsSection, RegistrySection, RelaySection, Server,
    Service, Source,
};
use millrace_relay::model::Partition;
use millrace_relay::registry::RegistryStatus;

use crate::clients::wire::lines;
use crate::kafka::{self, Topics};
use crate::net::free_port;
use crate::net::netns::instance_name;
use crate::relay::instance::Instance;
use crate::servers::by_hand::HandServer;
use crate::system::paths;
use crate::system::process::{Process, wait_until};

/// Name of the one service.
pub const SERVICE: &str = "lines";
const PATIENCE: Duration = Duration::from_secs(30);

/// Relays 0, 1, … at 127.0.0.1, 127.0.0.2, … Dropping them stops them and deletes the topics.
#[derive(Debug)]
pub struct Fleet {
    /// The relays, started or not.
    pub relays: Vec<Instance>,
    port: u16,
    topics: Topics,
}

/// A configuration of one relay with one service of lines, at a port that is free now.
pub fn config(prefix: &str, relay: u16, servers: u16, port: u16) -> Config {
    let server = |number| {
        Server::new(format!("server-{number}"), Ipv4Addr::LOCALHOST.into(), Partition(number))
    };
    Config {
        gateway: GatewaySection::new(instance_name(), &["none"]),
        relay: RelaySection { id: relay, ..RelaySection::default() },
        kafka: kafka::section(&kafka::brokers(), prefix),
        registry: RegistrySection::default(),
        hold: HoldSection::default(),
        metrics: MetricsSection::default(),
        source: Source::default(),
        services: vec![Service {
            destinations: vec!["127.0.0.0/8".parse().expect("a prefix")],
            servers: (0..servers).map(server).collect(),
            ..Service::new(SERVICE, port, lines().0)
        }],
    }
}

impl Fleet {
    /// Relays that have not started; `adjust` changes the configuration of each.
    pub fn new(
        name: &str,
        relays: u16,
        servers: u16,
        adjust: impl Fn(&mut Config),
    ) -> Result<Self> {
        Self::at(&kafka::brokers(), name, (relays, servers), adjust)
    }

    /// The same with other brokers.
    pub fn at(
        brokers: &str,
        name: &str,
        (relays, servers): (u16, u16),
        adjust: impl Fn(&mut Config),
    ) -> Result<Self> {
        let (topics, port) = (Topics::new(brokers, name), free_port()?);
        let relays = (0..relays)
            .map(|id| {
                let mut config = config(topics.prefix(), id, servers, port);
                brokers.clone_into(&mut config.kafka.brokers);
                adjust(&mut config);
                Instance::new(config, None)
            })
            .collect::<Result<_>>()?;
        Ok(Self { relays, port, topics })
    }

    /// Starts a relay and waits until it serves.
    pub fn start(&mut self, index: usize) -> Result<()> {
        let address = self.address(index).ip().to_string();
        self.relays[index].start_at(&address)
    }

    /// Where a relay listens.
    pub fn address(&self, index: usize) -> SocketAddr {
        let host = u8::try_from(index + 1).expect("few relays");
        SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), self.port))
    }

    /// What stands before the topics' names.
    pub fn prefix(&self) -> &str {
        self.topics.prefix()
    }

    /// Reads these partitions of the uplink from their beginning.
    pub fn server(&self, partitions: &[u16]) -> Result<HandServer> {
        HandServer::on(&kafka::brokers(), self.topics.prefix(), partitions)
    }

    /// The example server in Rust as a server that registers, once it has its lease.
    pub fn lease(&self, id: &str, address: &str, more: &[&str]) -> Result<Process> {
        let mut command = Command::new(paths::example_server()?);
        let brokers = &self.relays[0].config.kafka.brokers;
        command.args([brokers, "lease", self.prefix(), "--id", id, "--service", SERVICE]);
        let server = Process::spawn(id, command.args(["--address", address]).args(more))?;
        server.wait_line("lease:", PATIENCE)?;
        Ok(server)
    }

    /// A `relay servers` command line with the configuration of the first relay.
    pub fn servers_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.relays[0].program());
        command.arg("servers").args(arguments);
        command.arg("--config").arg(self.relays[0].config_file());
        command
    }

    /// What a relay says of the registry.
    pub fn registry(&self, index: usize) -> Result<RegistryStatus> {
        Ok(serde_json::from_value(self.relays[index].stats()?.0["registry"].clone())?)
    }

    /// Associations by server, in the order of the servers' names, as one relay knows them.
    pub fn associations(&self, index: usize) -> Result<Vec<u64>> {
        Ok(self.relays[index].stats()?.associations(SERVICE)?.into_values().collect())
    }

    /// Waits until each of these relays knows of so many associations.
    pub fn wait_associations(&self, relays: &[usize], count: u64) -> Result<()> {
        let what = format!("relays {relays:?} to know of {count} associations");
        let mut known = Vec::new();
        wait_until(PATIENCE, &what, || {
            let all = relays.iter().map(|relay| Ok(self.associations(*relay)?.iter().sum()));
            known = all.collect::<Result<Vec<u64>>>()?;
            Ok(known.iter().all(|known| *known == count))
        })
        .with_context(|| format!("they know of {known:?}"))
    }
}
