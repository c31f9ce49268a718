//! The gateway between hosts: what is diverted and what is not.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::ensure;
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, accept, connect, diverts, listen, loaded, reaches_server, transfer, within,
};
use millrace_harness::net::netns::{Host, Topology};
use millrace_harness::net::uninterrupted;
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::codec::Framing;
use millrace_relay::gateway::{self, Gateway};

const OTHER_PORT: u16 = 7001;

#[test]
fn a_ruled_connection_ends_at_the_relay_with_both_addresses() -> anyhow::Result<()> {
    if !privileged("a_ruled_connection_ends_at_the_relay_with_both_addresses") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(3, 2)?;
    let config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    let mut relay = FakeRelay::start(&config, PORT)?;
    let before: Vec<u64> =
        topology.servers.iter().map(Host::tcp_segments_received).collect::<Result<_, _>>()?;

    for (client_index, client_host) in topology.clients.iter().enumerate() {
        for server_index in 0..topology.servers.len() {
            let server = Topology::server_address(server_index);
            let mut client = connect(client_host, server, PORT)?;
            let mut accepted = relay.accept()?;
            ensure!(accepted.client == client.local_addr()?, "the peer is {}", accepted.client);
            ensure!(accepted.client.ip() == Topology::client_address(client_index));
            ensure!(accepted.server == SocketAddr::from((server, PORT)), "{}", accepted.server);
            transfer(&mut client, accepted.stream(), 3_000_000)?;
            transfer(accepted.stream(), &mut client, 3_000_000)?;
            // The relay closes, and then the client: its last segments must not go to the server.
            drop(accepted);
            ensure!(uninterrupted(|| client.read(&mut [0]))? == 0, "the relay's end arrives");
        }
    }

    let status = gateway::status(&config)?;
    ensure!(status.established == 0, "{} flows are left", status.established);
    ensure!(status.pending == 6, "{} flows are pending", status.pending);
    ensure!(status.verdicts["divert/new"] == 6, "{:?}", status.verdicts);
    for name in ["divert/established", "divert/pending", "return/forwarded"] {
        ensure!(status.verdicts[name] > 0, "no {name}: {:?}", status.verdicts);
    }
    for name in ["pass/no_flow", "pass/no_listener", "return/no_redirect", "return/reset_held"] {
        ensure!(status.verdicts[name] == 0, "{name}: {:?}", status.verdicts);
    }
    // The counters of the servers' own stacks are the witness: not one segment.
    for (host, before) in topology.servers.iter().zip(before) {
        let segments = host.tcp_segments_received()? - before;
        ensure!(segments == 0, "{} saw {segments} segments", host.name());
    }
    loaded.unload()
}

#[test]
fn a_port_without_a_rule_takes_the_ordinary_path() -> anyhow::Result<()> {
    if !privileged("a_port_without_a_rule_takes_the_ordinary_path") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let _relay = FakeRelay::start(&loaded.config, PORT)?;
    reaches_server(&topology, OTHER_PORT)?;
    ensure!(loaded.verdict("pass/no_rule")? > 0);
    ensure!(loaded.verdict("divert/new")? == 0);
    loaded.unload()
}

#[test]
fn without_a_relay_new_connections_reach_their_server() -> anyhow::Result<()> {
    if !privileged("without_a_relay_new_connections_reach_their_server") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;

    reaches_server(&topology, PORT)?;
    ensure!(loaded.verdict("pass/no_heartbeat")? == 1);

    // The listener is gone, the heartbeat still fresh: what the first instant after a kill is like.
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    let FakeRelay { listener, flows, pulse, .. } = relay;
    drop(listener);
    reaches_server(&topology, PORT)?;
    ensure!(loaded.verdict("pass/no_listener")? == 1);
    drop((flows, pulse));

    // Another relay takes new connections again.
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;

    // It hangs: the listener is there, the heartbeat is not.
    relay.pulse.take();
    within(
        "stale heartbeat",
        || Ok((!gateway::status(&loaded.config)?.relay.alive).then_some(())),
    )?;
    reaches_server(&topology, PORT)?;
    ensure!(loaded.verdict("pass/no_heartbeat")? == 2);
    ensure!(loaded.verdict("divert/new")? == 2);
    loaded.unload()
}

#[test]
fn a_graceful_stop_takes_no_more_and_keeps_what_it_has() -> anyhow::Result<()> {
    if !privileged("a_graceful_stop_takes_no_more_and_keeps_what_it_has") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let mut gateway = Gateway::open(&loaded.config)?;
    gateway.start_generation()?;
    let mut heartbeat = gateway.heartbeat()?;
    let mut flows = gateway.flow_table()?;
    let listener =
        gateway::in_namespace(gateway.namespace(), || listen(Ipv4Addr::UNSPECIFIED, PORT))??;
    heartbeat.beat()?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let (mut accepted, peer) = accept(&listener)?;
    flows.accepted(peer, accepted.local_addr()?)?;
    heartbeat.stop()?;
    reaches_server(&topology, PORT)?;
    transfer(&mut client, &mut accepted, 1_000_000)?;
    transfer(&mut accepted, &mut client, 1_000_000)?;
    loaded.unload()
}

#[test]
fn a_new_relay_does_not_inherit_the_flows_of_a_killed_one() -> anyhow::Result<()> {
    if !privileged("a_new_relay_does_not_inherit_the_flows_of_a_killed_one") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let _client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    // Killed: nobody tells the flow table that the connection is gone.
    std::mem::forget(relay.accept()?);
    drop(relay);
    ensure!(gateway::status(&loaded.config)?.established == 1);
    let first = gateway::status(&loaded.config)?.relay.generation;

    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let status = gateway::status(&loaded.config)?;
    ensure!(status.established == 0, "the former flow is forgotten");
    ensure!(status.relay.generation > first, "generations grow");
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    loaded.unload()
}

#[test]
fn a_connection_from_before_the_load_goes_on_undisturbed() -> anyhow::Result<()> {
    if !privileged("a_connection_from_before_the_load_goes_on_undisturbed") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let listener = topology.servers[0].run(|| listen(Ipv4Addr::UNSPECIFIED, PORT))??;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let (mut server, _) = accept(&listener)?;
    transfer(&mut client, &mut server, 100_000)?;

    let config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    let mut relay = FakeRelay::start(&config, PORT)?;
    transfer(&mut client, &mut server, 1_000_000)?;
    transfer(&mut server, &mut client, 1_000_000)?;
    ensure!(loaded.verdict("pass/no_flow")? > 0);
    ensure!(loaded.verdict("divert/new")? == 0);

    // A new one beside it is diverted, and unloading disturbs the old one no more than loading did.
    let mut second = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut second, relay.accept()?.stream(), 1000)?;
    loaded.unload()?;
    transfer(&mut client, &mut server, 1_000_000)?;
    transfer(&mut server, &mut client, 1_000_000)
}

#[test]
fn an_unknown_neighbour_is_found_by_the_hosts_stack() -> anyhow::Result<()> {
    if !privileged("an_unknown_neighbour_is_found_by_the_hosts_stack") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let client = &topology.clients[0];
    // The strictest host: reverse-path filtering on, as many distributions have it.
    topology.gateway.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    let mac = topology.gateway.hardware_address("eth1")?;
    client.ip(&format!("neigh replace 10.77.1.1 lladdr {mac} dev eth0 nud permanent"))?;
    topology.gateway.ip("neigh flush dev eth1")?;

    let mut stream = connect(client, Topology::server_address(0), PORT)?;
    transfer(&mut stream, relay.accept()?.stream(), 1000)?;
    ensure!(loaded.verdict("return/no_neighbour")? > 0);
    loaded.unload()
}

#[test]
fn a_device_that_cannot_be_redirected_to_is_answered_through_the_stack() -> anyhow::Result<()> {
    if !privileged("a_device_that_cannot_be_redirected_to_is_answered_through_the_stack") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    topology.clients[0].ethtool("-K eth0 gro off")?;
    let config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    let status = topology.gateway.run(|| gateway::status(&config))??;
    ensure!(
        status.devices[0].redirects_answers == Some(false) && status.devices[0].mode == "native"
    );
    diverts(&topology, &config, 1_000_000)?;
    ensure!(loaded.verdict("return/no_redirect")? > 0);
    ensure!(loaded.verdict("return/forwarded")? == 0);
    loaded.unload()
}

#[test]
fn clients_within_a_diverted_prefix_are_answered() -> anyhow::Result<()> {
    if !privileged("clients_within_a_diverted_prefix_are_answered") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    for prefix in ["10.77.0.0/16", "0.0.0.0/0"] {
        let mut config = topology.config(PORT, Framing::Lines);
        config.services[0].destinations = vec![prefix.parse().map_err(anyhow::Error::msg)?];
        let loaded = topology.load(&config)?;
        diverts(&topology, &config, 100_000)?;
        loaded.unload()?;
    }
    Ok(())
}

#[test]
fn jumbo_frames_are_diverted() -> anyhow::Result<()> {
    if !privileged("jumbo_frames_are_diverted") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    topology.clients[0].ip("link set dev eth0 mtu 9000")?;
    topology.gateway.ip("link set dev eth1 mtu 9000")?;
    let config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    diverts(&topology, &config, 3_000_000)?;
    ensure!(loaded.verdict("return/no_redirect")? == 0);
    loaded.unload()
}

#[test]
fn two_instances_share_a_host() -> anyhow::Result<()> {
    if !privileged("two_instances_share_a_host") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    let loaded = topology.load(&config)?;
    config = topology.config(OTHER_PORT, Framing::Lines);
    config.gateway.devices = vec![Topology::SERVER_DEVICE.to_owned()];
    let other = topology.load(&config)?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let _other = FakeRelay::start(&other.config, OTHER_PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    other.unload()?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 1000)?;
    loaded.unload()
}
