//! Connections over ways that carry less than the gateway's devices: what fits is found out, and what
//! arrives in fragments is followed.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::ensure;
use millrace_harness::gateway::fake_relay::{FakeRelay, PORT, connect, transfer};
use millrace_harness::net::netns::{Host, Loaded, Topology, link};
use millrace_harness::net::tcp::retransmit_losses_only;
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::codec::Framing;

/// More than a window, so that the relay has to wait for acknowledgements.
const BYTES: usize = 300_000;

/// A client behind a router, which is the topology's only client. Whatever the link between the two
/// carries, the client announces the segment size of Ethernet.
struct Far {
    client: Host,
    topology: Topology,
}

impl Far {
    fn new() -> anyhow::Result<Self> {
        let topology = Topology::new(1, 1)?;
        let (router, gateway) = (&topology.clients[0], &topology.gateway);
        let client = Host::new("far")?;
        link(router, "far0", "10.77.9.1/24", &client, "eth0", "10.77.9.11/24")?;
        for (host, device, address) in
            [(router, "far0", "fd77:9::1/64"), (&client, "eth0", "fd77:9::b/64")]
        {
            host.ip(&format!("address add {address} dev {device} nodad"))?;
        }
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        client.ip("route add default via 10.77.9.1 advmss 1460")?;
        client.ip("route add default via fd77:9::1 advmss 1440")?;
        gateway.ip("route add 10.77.9.0/24 via 10.77.1.11")?;
        gateway.ip("route add fd77:9::/64 via fd77:1::b")?;
        Ok(Self { client, topology })
    }

    /// Loads a gateway for both families.
    fn load(&self) -> anyhow::Result<Loaded> {
        let mut config = self.topology.config(PORT, Framing::Lines);
        let ipv6 = Topology::SERVER_NETWORK_IPV6.parse().map_err(anyhow::Error::msg)?;
        config.services[0].destinations.push(ipv6);
        let loaded = self.topology.load(&config)?;
        // A segment that is lost without a word is sent again too late for the test.
        retransmit_losses_only(&config.namespace())?;
        Ok(loaded)
    }
}

/// The wildcard address that a relay listens at, and the server, of each family.
fn families() -> [(SocketAddr, IpAddr); 2] {
    [
        (([0; 4], PORT).into(), Topology::server_address(0).into()),
        ((Ipv6Addr::UNSPECIFIED, PORT).into(), Topology::server_address_ipv6(0).into()),
    ]
}

/// The router's ICMP errors went to the server once; the relay found out by probing, after seconds.
#[test]
fn a_routers_word_about_the_path_reaches_the_relay() -> anyhow::Result<()> {
    if !privileged("a_routers_word_about_the_path_reaches_the_relay") {
        return Ok(());
    }
    let _shared = shared();
    let far = Far::new()?;
    far.topology.clients[0].ip("link set dev far0 mtu 1400")?;
    far.client.ip("link set dev eth0 mtu 1400")?;
    let loaded = far.load()?;
    for (index, (wildcard, server)) in (1..).zip(families()) {
        let mut relay = FakeRelay::start_at(&loaded.config, wildcard)?;
        let mut client = connect(&far.client, server, PORT)?;
        let mut accepted = relay.accept()?;
        transfer(accepted.stream(), &mut client, BYTES)?;
        transfer(&mut client, accepted.stream(), BYTES)?;
        let told = loaded.verdict("divert/icmp_error")?;
        ensure!(told >= index, "{server}: {told} errors have reached the relay");
    }
    loaded.unload()
}

/// The host's own error went to the server, too.
#[test]
fn the_hosts_own_word_about_the_path_reaches_the_relay() -> anyhow::Result<()> {
    if !privileged("the_hosts_own_word_about_the_path_reaches_the_relay") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    topology.gateway.ip("route add 10.77.1.11/32 dev eth1 mtu lock 1300")?;
    topology.gateway.ip("-6 route add fd77:1::b/128 dev eth1 mtu lock 1300")?;
    let mut config = topology.config(PORT, Framing::Lines);
    let ipv6 = Topology::SERVER_NETWORK_IPV6.parse().map_err(anyhow::Error::msg)?;
    config.services[0].destinations.push(ipv6);
    let loaded = topology.load(&config)?;
    retransmit_losses_only(&config.namespace())?;
    for (index, (wildcard, server)) in (1..).zip(families()) {
        let mut relay = FakeRelay::start_at(&config, wildcard)?;
        let mut client = connect(&topology.clients[0], server, PORT)?;
        let mut accepted = relay.accept()?;
        transfer(accepted.stream(), &mut client, BYTES)?;
        transfer(&mut client, accepted.stream(), BYTES)?;
        let told = loaded.verdict("return/fragmentation_needed")?;
        ensure!(told >= index, "{server}: the relay was told {told} times");
    }
    loaded.unload()
}

/// A client that lets its packets be fragmented, as many small devices do. The fragments reached the
/// server once, and the connection stood still until the server reset it.
#[test]
fn fragments_follow_their_connection() -> anyhow::Result<()> {
    if !privileged("fragments_follow_their_connection") {
        return Ok(());
    }
    let _shared = shared();
    let far = Far::new()?;
    far.client.sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
    far.topology.clients[0].ip("route add 10.77.2.0/24 via 10.77.1.1 mtu lock 1200")?;
    let loaded = far.load()?;
    retransmit_losses_only(&far.client.namespace())?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let mut client = connect(&far.client, Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut client, accepted.stream(), BYTES)?;
    transfer(accepted.stream(), &mut client, BYTES)?;
    drop(accepted);
    ensure!(loaded.verdict("divert/fragment")? > 2, "nothing came in fragments");
    ensure!(loaded.verdict("pass/fragment")? == 0, "fragments went to the server");
    loaded.unload()
}
