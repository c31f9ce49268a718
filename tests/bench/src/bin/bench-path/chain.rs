//! Client – gateway – core router – distributed router – server, each a host of its own.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_bench::tcp_server::TcpServer;
use millrace_harness::net::netns::{Host, link};
use millrace_harness::relay::echo_service::{EchoService, Entrance};
use millrace_harness::system::meter::{Meter, Reading};
use millrace_harness::system::process::run_ok;
use millrace_relay::gateway::in_namespace;

const PORT: u16 = 7000;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 78, 4, 11);
const PATIENCE: Duration = Duration::from_secs(10);

/// The relay namespace, in the counts of packets.
pub(crate) const RELAY: &str = "relay namespace";
/// In the counts of packets, in their order on the path.
pub(crate) const HOSTS: [&str; 6] =
    ["client", "gateway", RELAY, "core router", "distributed router", "server"];

/// The hosts.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) client: Host,
    gateway: Host,
    core: Host,
    distributed: Host,
    pub(crate) server: Host,
}

impl Chain {
    fn build() -> Result<Self> {
        let host = |name| {
            let host = Host::new(name)?;
            // Its neighbour discovery would be counted with the packets.
            host.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
            host.sysctl("net/ipv4/ip_forward", "1")?;
            Ok::<_, anyhow::Error>(host)
        };
        let chain = Self {
            client: host("client")?,
            gateway: host("gateway")?,
            core: host("core")?,
            distributed: host("distributed")?,
            server: host("server")?,
        };
        let Self { client, gateway, core, distributed, server } = &chain;
        link(gateway, "eth1", "10.78.1.1/24", client, "eth0", "10.78.1.11/24")?;
        link(gateway, "eth2", "10.78.2.1/24", core, "eth1", "10.78.2.2/24")?;
        link(core, "eth2", "10.78.3.1/24", distributed, "eth1", "10.78.3.2/24")?;
        link(distributed, "eth2", "10.78.4.1/24", server, "eth0", &format!("{SERVER}/24"))?;
        client.ip("route add default via 10.78.1.1")?;
        gateway.ip("route add default via 10.78.2.2")?;
        core.ip("route add 10.78.1.0/24 via 10.78.2.1")?;
        core.ip("route add 10.78.4.0/24 via 10.78.3.2")?;
        distributed.ip("route add default via 10.78.3.1")?;
        server.ip("route add default via 10.78.4.1")?;
        client.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        Ok(chain)
    }
}

/// One of the two ways, ready to be used. The fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct Road {
    pub(crate) name: &'static str,
    end: End,
    pub(crate) hosts: Chain,
    meter: Meter,
}

#[derive(Debug)]
enum End {
    /// At the end of the chain.
    Server { _server: TcpServer },
    /// At the gateway.
    Millrace { service: Box<EchoService> },
}

/// Everything that is counted, at an instant.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    /// Processor time.
    pub(crate) reading: Reading,
    /// Packets that the devices of each host have received.
    pub(crate) packets: BTreeMap<&'static str, u64>,
    /// Segments between Kafka's broker and its clients.
    pub(crate) kafka_segments: u64,
}

impl Road {
    /// The conventional chain: TCP ends at the server.
    pub(crate) fn conventional() -> Result<Self> {
        let hosts = Chain::build()?;
        let listener = hosts.server.run(|| TcpListener::bind((SERVER, PORT)))??;
        let end = End::Server { _server: TcpServer::start(listener, None)? };
        Ok(Self { name: "conventional", end, hosts, meter: Meter::new("clients and TCP server")? })
    }

    /// The same hosts with Millrace at the gateway.
    pub(crate) fn millrace(brokers: &str) -> Result<Self> {
        let hosts = Chain::build()?;
        let service = EchoService::start(
            Entrance::Gateway,
            (&hosts.gateway, "eth1"),
            &hosts.client,
            Self::target(),
            brokers,
        )?;
        let meter = service.meter(Meter::new("clients")?)?;
        let end = End::Millrace { service: Box::new(service) };
        Ok(Self { name: "Millrace", end, hosts, meter })
    }

    /// Where the clients connect to.
    pub(crate) fn target() -> SocketAddr {
        SocketAddr::from((SERVER, PORT))
    }

    /// Reads all counters.
    pub(crate) fn probe(&self) -> Result<Probe> {
        let Chain { client, gateway, core, distributed, server } = &self.hosts;
        let hosts = [
            ("client", client),
            ("gateway", gateway),
            ("core router", core),
            ("distributed router", distributed),
            ("server", server),
        ];
        let mut packets = BTreeMap::new();
        for (name, host) in hosts {
            packets.insert(name, received(&host.run(read_devices)??)?);
        }
        let mut kafka_segments = 0;
        if let End::Millrace { service } = &self.end {
            let devices = in_namespace(&service.instance.config.namespace(), read_devices)??;
            packets.insert(RELAY, received(&devices)?);
            kafka_segments = segments(&service.kafka_clients()?)?;
        }
        Ok(Probe { reading: self.meter.read()?, packets, kafka_segments })
    }

    /// TCP sockets in use on the server host, and such of the server's program.
    pub(crate) fn server_sockets(&self) -> Result<u64> {
        let at_host = sockets_in_use(&self.hosts.server.run(read_sockets)??)?;
        Ok(match &self.end {
            End::Server { .. } => at_host,
            End::Millrace { service } => at_host + service.server_sockets()?,
        })
    }

    /// TCP sockets in use in the relay namespace.
    pub(crate) fn relay_sockets(&self) -> Result<u64> {
        match &self.end {
            End::Server { .. } => Ok(0),
            End::Millrace { service } => {
                sockets_in_use(&in_namespace(&service.instance.config.namespace(), read_sockets)??)
            }
        }
    }

    /// Refuses a way that was not what it is called.
    pub(crate) fn check(&self) -> Result<()> {
        let at_server = self.hosts.server.tcp_segments_received()?;
        let expected = matches!(self.end, End::Server { .. });
        ensure!(
            (at_server > 0) == expected,
            "{}: {at_server} segments came to the server host",
            self.name
        );
        Ok(())
    }
}

fn read_devices() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/thread-self/net/dev")
}

fn read_sockets() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/thread-self/net/sockstat")
}

/// Packets that all devices but the loopback have received.
fn received(devices: &str) -> Result<u64> {
    devices
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() != "lo")
        .map(|(_, counts)| {
            Ok(counts.split_whitespace().nth(1).context("no count")?.parse::<u64>()?)
        })
        .sum()
}

fn sockets_in_use(text: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: inuse "));
    let count = line.and_then(|line| line.split(' ').next()).context("no `TCP: inuse`")?;
    Ok(count.parse()?)
}

/// Segments that TCP sockets of these processes have sent and received, to and from any port of the
/// brokers.
fn segments(processes: &[u32]) -> Result<u64> {
    let output = run_ok("ss", Command::new("ss").args(["-tinpHO"]), PATIENCE)?.stdout;
    let ours = |line: &&str| processes.iter().any(|pid| line.contains(&format!("pid={pid},")));
    let counts = output.lines().filter(ours).flat_map(str::split_whitespace).filter_map(|word| {
        let (name, count) = word.split_once(':')?;
        ["segs_in", "segs_out"].contains(&name).then_some(count)
    });
    counts.map(|count| Ok(count.parse::<u64>()?)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let devices = "Inter-| Receive\n face |bytes packets\n    lo: 9 8 0 0\n  eth0: 100 7 0 0\n\
                       eth1:1 5 0\n";
        assert_eq!(received(devices).unwrap(), 12);
        let sockets = "sockets: used 9\nTCP: inuse 3 orphan 0 tw 7 alloc 3 mem 0\nUDP: inuse 1\n";
        assert_eq!(sockets_in_use(sockets).unwrap(), 3);
        assert!(sockets_in_use("").is_err());
    }
}
