//! The whole of Millrace for a benchmark: a relay, its topics, and the example server that echoes.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};
use millrace_relay::config::Config;

use crate::clients::tcp::Client;
use crate::clients::wire::frames;
use crate::kafka::Topics;
use crate::net::netns::{Host, instance_name};
use crate::net::tproxy;
use crate::relay::instance::Instance;
use crate::system::meter::{Meter, listening_process};
use crate::system::paths;
use crate::system::process::Process;

/// How connections come to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// By the XDP programs.
    Gateway,
    /// By netfilter.
    Tproxy,
}

/// A relay with one server, which sends every message back. Dropping it ends all of it.
#[derive(Debug)]
pub struct EchoService {
    server: Process,
    /// The relay.
    pub instance: Instance,
    _topics: Topics,
}

impl EchoService {
    /// Starts it on a forwarding host, for connections to `target` that come by `device`, and waits
    /// until it has answered a client from `client`.
    pub fn start(
        entrance: Entrance,
        (gateway, device): (&Host, &str),
        client: &Host,
        target: SocketAddr,
        brokers: &str,
    ) -> Result<Self> {
        let topics = Topics::new(brokers, "bench");
        let mut config = config(target, device)?;
        brokers.clone_into(&mut config.kafka.brokers);
        topics.prefix().clone_into(&mut config.kafka.topic_prefix);
        let instance = match entrance {
            Entrance::Gateway => {
                let mut instance = Instance::new(config, Some(&gateway.namespace()))?;
                instance.load()?;
                instance.start()?;
                instance
            }
            Entrance::Tproxy => {
                tproxy::intercept(gateway, device, target.port())?;
                let mut instance = Instance::new(config, None)?;
                instance.start_transparent(&gateway.namespace())?;
                instance
            }
        };
        let mut server = Command::new(paths::example_server()?);
        let server = Process::spawn("server", server.args([brokers, "0", topics.prefix()]))?;
        let service = Self { server, instance, _topics: topics };
        let mut first = Client::connect(&client.namespace(), target, frames())?;
        first.expect_echo(b"ready").context("the example server does not answer")?;
        Ok(service)
    }

    /// The processes that are clients of the broker.
    pub fn kafka_clients(&self) -> Result<[u32; 2]> {
        Ok([self.instance.process_id()?, self.server.id()])
    }

    /// Sockets that the server's program holds, all of them to Kafka.
    pub fn server_sockets(&self) -> Result<u64> {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.server.id()))?;
        let is_socket = |entry: &std::fs::DirEntry| {
            std::fs::read_link(entry.path())
                .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        };
        Ok(descriptors.flatten().filter(is_socket).count() as u64)
    }

    /// Adds relay, server and broker, if that runs on this machine.
    pub fn meter(&self, meter: Meter) -> Result<Meter> {
        let meter = meter
            .with("relay", self.instance.process_id()?)
            .with("Kafka server program", self.server.id());
        Ok(match broker_process(&self.instance.config.kafka.brokers)? {
            Some(broker) => meter.with("Kafka broker", broker),
            None => meter,
        })
    }
}

/// The broker's process, if it listens on this machine.
pub fn broker_process(brokers: &str) -> Result<Option<u32>> {
    let first = brokers.split(',').next().unwrap_or_default();
    let Some((host, port)) = first.rsplit_once(':') else { return Ok(None) };
    if !["127.0.0.1", "localhost", "[::1]"].contains(&host) {
        return Ok(None);
    }
    listening_process(port.parse().with_context(|| format!("no port in {brokers}"))?)
}

/// An instance of its own for one address, with one server.
pub fn config(target: SocketAddr, device: &str) -> Result<Config> {
    let (instance, address, port) = (instance_name(), target.ip(), target.port());
    Ok(toml::from_str(&format!(
        r#"
        [gateway]
        instance = "{instance}"
        devices = ["{device}"]
        [[service]]
        name = "echo"
        destinations = ["{address}/32"]
        port = {port}
        framing = {{ type = "length", bytes = 4, order = "big" }}
        max_message_bytes = 1048576
        [[service.server]]
        id = "server"
        address = "{address}"
        partition = 0
        "#
    ))?)
}
