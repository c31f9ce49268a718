//! Tenants with the same addresses.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::ensure;
use millrace_harness::gateway::fake_relay::{FakeRelay, PORT, accept, listen, transfer, within};
use millrace_harness::net::frames::Frame;
use millrace_harness::net::frames::flag::ACK;
use millrace_harness::net::netns::{Host, Loaded, Topology, link};
use millrace_harness::net::raw_socket::Raw;
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::codec::Framing;
use millrace_relay::config::Zones;
use millrace_relay::gateway;
use socket2::{Domain, Socket, Type};

/// Longer than any handshake takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// From which both tenants' clients connect.
const CLIENT_PORT: u16 = 40_000;

/// Another client and another server at the same gateway, with the addresses of the first ones.
pub(super) struct Tenant {
    pub client: Host,
    pub server: Host,
}

impl Tenant {
    /// Behind `eth3` and `eth4`, between which the gateway routes apart from everything else.
    fn new(gateway: &Host) -> anyhow::Result<Self> {
        let (client, server) = (Host::new("tenant")?, Host::new("tenants")?);
        for (device, own, host, address, network) in [
            ("eth3", "10.77.1.1", &client, "10.77.1.11/24", "10.77.1.0/24"),
            ("eth4", "10.77.2.1", &server, "10.77.2.11/24", "10.77.2.0/24"),
        ] {
            link(gateway, device, &format!("{own}/32"), host, "eth0", address)?;
            host.ip(&format!("route add default via {own}"))?;
            gateway.ip(&format!("route add {network} dev {device} table 100"))?;
            gateway.ip(&format!("rule add iif {device} lookup 100"))?;
        }
        Ok(Self { client, server })
    }
}

pub(super) fn server() -> SocketAddr {
    (Topology::server_address(0), PORT).into()
}

fn client() -> SocketAddr {
    (Topology::client_address(0), CLIENT_PORT).into()
}

/// Connects from [`CLIENT_PORT`].
pub(super) fn connect_alike(host: &Host) -> anyhow::Result<TcpStream> {
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).into())?;
        socket.connect_timeout(&server().into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        std::io::Result::Ok(socket.into())
    };
    Ok(host.run(connect)??)
}

/// Bytes both ways.
pub(super) fn works(client: &mut TcpStream, server: &mut TcpStream) -> anyhow::Result<()> {
    transfer(client, server, 100_000)?;
    transfer(server, client, 100_000)
}

/// Two tenants whose clients and servers have the same addresses, and what is loaded for them.
pub(super) fn two_tenants(zones: Zones) -> anyhow::Result<(Topology, Tenant, Loaded)> {
    let topology = Topology::new(1, 1)?;
    let tenant = Tenant::new(&topology.gateway)?;
    let mut config = topology.config(PORT, Framing::Lines);
    config.gateway.devices.push("eth3".to_owned());
    config.gateway.zones = zones;
    for device in ["eth1", "eth3"] {
        topology.gateway.ethtool(&format!("-K {device} rxvlan off"))?;
    }
    let loaded = topology.load(&config)?;
    Ok((topology, tenant, loaded))
}

/// The second tenant's segments were diverted into the first one's connection once.
#[test]
fn tenants_with_the_same_addresses_are_kept_apart() -> anyhow::Result<()> {
    if !privileged("tenants_with_the_same_addresses_are_kept_apart") {
        return Ok(());
    }
    let _shared = shared();
    let (topology, tenant, loaded) = two_tenants(Zones::Device)?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let listener: TcpListener = tenant.server.run(|| listen(server().ip(), PORT))??;

    let mut first = connect_alike(&topology.clients[0])?;
    let mut accepted = relay.accept()?;
    ensure!(accepted.client == client() && accepted.server == server());
    works(&mut first, accepted.stream())?;

    let mut second = connect_alike(&tenant.client)?;
    let (mut served, peer) = accept(&listener)?;
    ensure!(peer == client(), "the server sees {peer}");
    ensure!(loaded.verdict("divert/new")? == 1 && loaded.verdict("pass/other_zone")? > 0);
    for _ in 0..3 {
        works(&mut second, &mut served)?;
        works(&mut first, accepted.stream())?;
    }
    // What the first connection leaves when it ends is still in its zone.
    drop((first, accepted));
    let before = loaded.verdict("pass/other_zone")?;
    works(&mut second, &mut served)?;
    ensure!(loaded.verdict("pass/other_zone")? > before);

    let status = topology.gateway.run(|| gateway::status(&loaded.config))??.to_string();
    ensure!(status.contains("zones        by device"), "{status}");
    ensure!(!status.contains("ZONES"), "{status}");
    let mut config = loaded.config.clone();
    config.gateway.zones = Zones::Vlan;
    let status = topology.gateway.run(|| gateway::status(&config))??.to_string();
    ensure!(status.contains("gateway.zones is \"vlan\" in the configuration"), "{status}");
    loaded.unload()
}

/// A client whose packets come by another device from now on is the same client, unless zones are asked
/// for.
#[test]
fn a_connection_may_change_its_device() -> anyhow::Result<()> {
    if !privileged("a_connection_may_change_its_device") {
        return Ok(());
    }
    let _shared = shared();
    for (zones, verdict) in [
        (Zones::One, "divert/established"),
        (Zones::Vlan, "divert/established"),
        (Zones::Device, "pass/other_zone"),
    ] {
        let (topology, tenant, loaded) = two_tenants(zones)?;
        let mut relay = FakeRelay::start(&loaded.config, PORT)?;
        let mut first = connect_alike(&topology.clients[0])?;
        let mut accepted = relay.accept()?;
        works(&mut first, accepted.stream())?;
        let before = loaded.verdict(verdict)?;
        let segment = Frame::tcp(client(), server(), ACK, 7);
        tenant.client.run(|| Raw::new()?.send(&segment))??;
        within(verdict, || Ok((loaded.verdict(verdict)? > before).then_some(())))?;
        works(&mut first, accepted.stream())?;
        drop(accepted);
        loaded.unload()?;
    }
    Ok(())
}
