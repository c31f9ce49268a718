//! The ways that a client's connection can take through a gateway, each with hosts of its own.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use millrace_bench::tcp_server::TcpServer;
use millrace_harness::gateway::fake_relay::{FakeRelay, Pulse};
use millrace_harness::net::netns::{Host, Loaded, Topology};
use millrace_harness::net::tproxy;
use millrace_harness::relay::echo_service::{self, EchoService, Entrance};
use millrace_harness::system::meter::Meter;

const PORT: u16 = 7000;
const DEVICE: &str = Topology::CLIENT_DEVICE;

/// What happens to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    /// Forwarded to the server host; the gateway runs no program.
    Forwarded,
    /// The same past `ingress` in native mode, which has no rule for it.
    ForwardedNative,
    /// The same in generic mode.
    ForwardedGeneric,
    /// To a TCP server on the gateway, by TPROXY.
    Tproxy,
    /// To a TCP server in the relay namespace, by XDP.
    Diverted,
    /// To the relay, by TPROXY.
    TproxyRelay,
    /// To the relay, by XDP.
    DivertedRelay,
}

/// Whether senders leave checksums and segmentation to the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offloads {
    /// As frames that XDP redirects need it on a veth.
    Off,
    /// As veth has it.
    On,
}

/// A way, ready to be used. The fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct Variant {
    /// For the report.
    pub(crate) name: String,
    /// Of the client's connections.
    pub(crate) target: SocketAddr,
    road: Road,
    end: End,
    /// Client, gateway and server host.
    pub(crate) hosts: Topology,
}

/// What answers, and what leads there.
#[derive(Debug)]
enum End {
    Server { _server: TcpServer },
    Passed { _server: TcpServer, loaded: Loaded },
    Diverted { _server: TcpServer, _pulse: Option<Pulse>, loaded: Loaded },
    Relay { service: Box<EchoService> },
}

impl Road {
    const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::ForwardedNative => "forwarded, native XDP",
            Self::ForwardedGeneric => "forwarded, generic XDP",
            Self::Tproxy => "TPROXY",
            Self::Diverted => "diverted",
            Self::TproxyRelay => "TPROXY to the relay",
            Self::DivertedRelay => "diverted to the relay",
        }
    }
}

impl Variant {
    /// Builds the hosts and starts what answers.
    pub(crate) fn build(road: Road, offloads: Offloads, brokers: &str) -> Result<Self> {
        let mut name = road.name().to_owned();
        let hosts = Topology::new(1, 1)?;
        if offloads == Offloads::On {
            name.push_str(", offloads on");
            let (client, server) = (&hosts.clients[0], &hosts.servers[0]);
            let ends = [(client, "eth0"), (server, "eth0"), (&hosts.gateway, DEVICE)];
            for (host, device) in ends.into_iter().chain([(&hosts.gateway, "eth2")]) {
                host.ethtool(&format!("-K {device} tx on tso on gro on"))?;
            }
        }
        // Connections that were closed keep their ports for a minute.
        hosts.clients[0].sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        let target = SocketAddr::from((Topology::server_address(0), PORT));
        let end = End::start(road, &hosts, target, brokers)
            .with_context(|| format!("cannot build `{name}`"))?;
        Ok(Self { name, target, road, end, hosts })
    }

    /// Knows the processes that take part.
    pub(crate) fn meter(&self) -> Result<Meter> {
        let meter = Meter::new("clients and TCP server")?;
        match &self.end {
            End::Relay { service } => service.meter(meter),
            _ => Ok(meter),
        }
    }

    /// Whether it ends in the relay.
    pub(crate) fn has_relay(&self) -> bool {
        matches!(self.end, End::Relay { .. })
    }

    /// Refuses a way that was not what it is called.
    pub(crate) fn check(&self) -> Result<()> {
        let at_server = self.hosts.servers[0].tcp_segments_received()?;
        let name = &self.name;
        match self.road {
            Road::Forwarded | Road::ForwardedNative | Road::ForwardedGeneric => {
                ensure!(at_server > 0, "`{name}`: nothing came to the server host");
            }
            Road::Tproxy | Road::Diverted | Road::TproxyRelay | Road::DivertedRelay => {
                ensure!(at_server == 0, "`{name}`: {at_server} segments came to the server host");
            }
        }
        let (loaded, verdict) = match &self.end {
            End::Passed { loaded, .. } => (loaded, "pass/no_rule"),
            End::Diverted { loaded, .. } => (loaded, "divert/established"),
            End::Server { .. } | End::Relay { .. } => return Ok(()),
        };
        ensure!(loaded.verdict(verdict)? > 0, "`{name}`: no packet has the verdict {verdict}");
        Ok(())
    }
}

impl End {
    fn start(road: Road, hosts: &Topology, target: SocketAddr, brokers: &str) -> Result<Self> {
        // The programs see every packet, and have a rule for another port.
        let other = SocketAddr::new(target.ip(), target.port() + 1);
        let start = |listener| TcpServer::start(listener, None);
        Ok(match road {
            Road::Forwarded => Self::Server { _server: start(listen(hosts, target)?)? },
            Road::ForwardedNative => {
                let loaded = hosts.load(&echo_service::config(other, DEVICE)?)?;
                Self::Passed { _server: start(listen(hosts, target)?)?, loaded }
            }
            Road::ForwardedGeneric => {
                let loaded = load_aside(&hosts.gateway, other)?;
                attach_generic(&hosts.gateway, &loaded)?;
                Self::Passed { _server: start(listen(hosts, target)?)?, loaded }
            }
            Road::Tproxy => {
                tproxy::intercept(&hosts.gateway, DEVICE, target.port())?;
                Self::Server { _server: start(tproxy::listen(&hosts.gateway, target.port())?)? }
            }
            Road::Diverted => {
                let loaded = hosts.load(&echo_service::config(target, DEVICE)?)?;
                let FakeRelay { listener, flows, pulse, .. } =
                    FakeRelay::start(&loaded.config, target.port())?;
                let server = TcpServer::start(listener, Some(flows))?;
                Self::Diverted { _server: server, _pulse: pulse, loaded }
            }
            Road::TproxyRelay | Road::DivertedRelay => {
                let entrance = match road {
                    Road::TproxyRelay => Entrance::Tproxy,
                    _ => Entrance::Gateway,
                };
                let place = (&hosts.gateway, DEVICE);
                let client = &hosts.clients[0];
                let service = EchoService::start(entrance, place, client, target, brokers)?;
                Self::Relay { service: Box::new(service) }
            }
        })
    }
}

fn listen(hosts: &Topology, target: SocketAddr) -> Result<TcpListener> {
    Ok(hosts.servers[0].run(|| TcpListener::bind(target))??)
}

/// Loads an instance on a device that carries nothing: `load` attaches in native mode, and a device
/// runs one program.
fn load_aside(gateway: &Host, target: SocketAddr) -> Result<Loaded> {
    gateway.ip("link add aside0 type veth peer name aside1")?;
    let config = echo_service::config(target, "aside0")?;
    let report = millrace_harness::net::netns::load_on(gateway, &config)?;
    Ok(Loaded { config, report })
}

/// Attaches the loaded `ingress` to the client-facing device in generic mode.
fn attach_generic(host: &Host, loaded: &Loaded) -> Result<()> {
    let pin = loaded.config.pin_directory().join("prog_ingress");
    host.ip(&format!("link set dev {DEVICE} xdpgeneric pinned {}", pin.display()))?;
    let shown = host.ip(&format!("link show dev {DEVICE}"))?;
    ensure!(shown.contains("xdpgeneric"), "no generic program is attached: {shown}");
    Ok(())
}
