//! A firewall in the host's forward chain has not seen the packets that are diverted. The answers to
//! them get past it, whatever way they leave the host.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use millrace_harness::gateway::fake_relay::{FakeRelay, PORT, connect, transfer, within};
use millrace_harness::net::netns::{Host, Topology};
use millrace_harness::net::tcp::{lost_segments, retransmit_losses_only};
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::codec::Framing;

/// Of the device on top of the client-facing one: the client learns it, and sends to it.
const UPPER: &str = "02:00:00:00:00:77";

/// What hosts have there: nothing is let through at all, or only what belongs to a connection that
/// the firewall has seen.
const FORWARD_CHAINS: [&str; 2] =
    ["", "ct state invalid drop; ct state established,related accept;"];

/// Gives the host a firewall; a former one is replaced.
fn firewall(host: &Host, forward: &str) -> anyhow::Result<()> {
    let chain = "type filter hook forward priority 0; policy drop;";
    let rules = format!(
        "flush ruleset\ntable inet filter {{\nchain forward {{\n{chain}\n{forward}\n}}\n}}\n"
    );
    let mut nft = host.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().context("no pipe")?.write_all(rules.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft refuses {rules}");
    Ok(())
}

/// Connects to the first server's address, at the relay, and checks that data goes both ways and
/// that no segment of the client is lost.
fn is_answered(topology: &Topology, relay: &mut FakeRelay, server: IpAddr) -> anyhow::Result<()> {
    let client = &topology.clients[0];
    retransmit_losses_only(&client.namespace())?;
    let lost = lost_segments(&[&client.namespace()])?;
    let mut stream = connect(client, server, PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut stream, accepted.stream(), 100_000)?;
    transfer(accepted.stream(), &mut stream, 100_000)?;
    let lost = lost_segments(&[&client.namespace()])? - lost;
    ensure!(lost == 0, "{lost} segments of the client were lost");
    Ok(())
}

/// Before, nothing was answered until something else had asked for the neighbour: 8 to 20 seconds.
#[test]
fn an_unknown_neighbour_is_asked_for_whatever_the_firewall_forwards() -> anyhow::Result<()> {
    if !privileged("an_unknown_neighbour_is_asked_for_whatever_the_firewall_forwards") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    let ipv6 = Topology::SERVER_NETWORK_IPV6.parse().map_err(anyhow::Error::msg)?;
    config.services[0].destinations.push(ipv6);
    let loaded = topology.load(&config)?;
    let (client, gateway) = (&topology.clients[0], &topology.gateway);
    // Until then, the kernel asks for no neighbour.
    within("end of duplicate address detection", || {
        let tentative = gateway.ip("-6 address show dev eth1 tentative")?;
        Ok(tentative.trim().is_empty().then_some(()))
    })?;
    let mac = gateway.hardware_address(Topology::CLIENT_DEVICE)?;
    client.ip(&format!("neigh replace 10.77.1.1 lladdr {mac} dev eth0 nud permanent"))?;
    client.ip(&format!("neigh replace fd77:1::1 lladdr {mac} dev eth0 nud permanent"))?;
    for forward in FORWARD_CHAINS {
        firewall(gateway, forward)?;
        for server in [
            IpAddr::from(Topology::server_address(0)),
            IpAddr::from(Topology::server_address_ipv6(0)),
        ] {
            let listener: SocketAddr = match server {
                IpAddr::V4(_) => "0.0.0.0:7000".parse()?,
                IpAddr::V6(_) => "[::]:7000".parse()?,
            };
            let mut relay = FakeRelay::start_at(&config, listener)?;
            gateway.ip("neigh flush dev eth1")?;
            let unknown = loaded.verdict("return/no_neighbour")?;
            is_answered(&topology, &mut relay, server)
                .with_context(|| format!("{server}, `{forward}`"))?;
            ensure!(loaded.verdict("return/no_neighbour")? > unknown, "the neighbour was known");
        }
    }
    loaded.unload()
}

/// Answers that cannot be redirected in XDP: before, none got past the firewall.
#[test]
fn what_cannot_be_redirected_gets_past_the_firewall_too() -> anyhow::Result<()> {
    if !privileged("what_cannot_be_redirected_gets_past_the_firewall_too") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    config.gateway.shared_addresses = vec![UPPER.parse().map_err(anyhow::Error::msg)?];
    let loaded = topology.load(&config)?;
    let gateway = &topology.gateway;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    // As with a VLAN, the route leads to a device on top of the one that was loaded.
    gateway
        .ip(&format!("link add link eth1 name upper1 address {UPPER} type macvlan mode bridge"))?;
    gateway.ip("link set dev upper1 up")?;
    gateway.ip(&format!("route add {} dev upper1 src 10.77.1.1", Topology::client_address(0)))?;
    for forward in FORWARD_CHAINS {
        firewall(gateway, forward)?;
        let before = loaded.verdict("return/no_redirect")?;
        is_answered(&topology, &mut relay, Topology::server_address(0).into())
            .with_context(|| format!("`{forward}`"))?;
        ensure!(loaded.verdict("return/no_redirect")? > before, "it was redirected");
    }
    loaded.unload()
}
