//! Which frames a gateway looks at: those for itself, whatever its devices see besides.

use std::net::SocketAddr;

use anyhow::ensure;
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, connect, loaded, reaches_server, transfer, within,
};
use millrace_harness::net::frames::Frame;
use millrace_harness::net::frames::flag::SYN;
use millrace_harness::net::netns::{Host, Loaded, Topology};
use millrace_harness::net::raw_socket::Raw;
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::codec::Framing;
use millrace_relay::gateway;

/// Not the gateway's.
const OTHER: &str = "00:00:5e:00:01:33";

/// Has the client send to the gateway by this hardware address.
fn sends_to(client: &Host, address: &str) -> anyhow::Result<()> {
    client.ip(&format!("neigh replace 10.77.1.1 lladdr {address} dev eth0 nud permanent")).map(drop)
}

/// Waits until the programs know the client-facing device by this address.
fn is_known_as(topology: &Topology, loaded: &Loaded, address: &str) -> anyhow::Result<()> {
    within("the address to be followed", || {
        let status = topology.gateway.run(|| gateway::status(&loaded.config))??;
        let known = status.devices[0].known_address.map(|known| known.to_string());
        Ok((known.as_deref() == Some(address)).then_some(()))
    })
}

/// On a bridge port, in promiscuous mode, and where a switch floods. Such a frame was diverted once,
/// and answered twice over.
#[test]
fn a_frame_for_another_host_is_left_alone() -> anyhow::Result<()> {
    if !privileged("a_frame_for_another_host_is_left_alone") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let _relay = FakeRelay::start(&loaded.config, PORT)?;
    let client = &topology.clients[0];
    topology.gateway.ip("link set dev eth1 promisc on")?;
    sends_to(client, OTHER)?;
    let source = SocketAddr::from((Topology::client_address(0), 40_000));
    let syn = Frame::tcp(source, (Topology::server_address(0), PORT).into(), SYN, 7);
    client.run(|| Raw::new()?.send(&syn))??;
    within("verdict", || {
        let verdicts = gateway::status(&loaded.config)?.verdicts;
        Ok((verdicts["pass/other_host"] + verdicts["divert/new"] > 0).then_some(()))
    })?;
    let status = gateway::status(&loaded.config)?;
    ensure!(status.verdicts["divert/new"] == 0 && status.pending == 0, "{:?}", status.verdicts);
    loaded.unload()
}

#[test]
fn a_frame_for_a_shared_address_is_diverted() -> anyhow::Result<()> {
    if !privileged("a_frame_for_a_shared_address_is_diverted") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    config.gateway.shared_addresses = vec![OTHER.parse().map_err(anyhow::Error::msg)?];
    let loaded = topology.load(&config)?;
    let mut relay = FakeRelay::start(&config, PORT)?;
    sends_to(&topology.clients[0], OTHER)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 100_000)?;
    ensure!(loaded.verdict("pass/other_host")? == 0);

    // The list may be changed while the instance is loaded.
    config.gateway.shared_addresses.clear();
    topology.gateway.run(|| gateway::rules::command::apply(&config))??;
    let before = loaded.verdict("pass/other_host")?;
    let source = SocketAddr::from((Topology::client_address(0), 40_000));
    let syn = Frame::tcp(source, (Topology::server_address(0), PORT).into(), SYN, 7);
    topology.clients[0].run(|| Raw::new()?.send(&syn))??;
    within("verdict", || Ok((loaded.verdict("pass/other_host")? > before).then_some(())))?;
    loaded.unload()
}

/// Diversion goes on by the new address, and until then new connections reach their server.
#[test]
fn a_devices_new_address_is_followed() -> anyhow::Result<()> {
    if !privileged("a_devices_new_address_is_followed") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let (gateway_host, client) = (&topology.gateway, &topology.clients[0]);
    let renumber = |address: &str| -> anyhow::Result<()> {
        gateway_host.ip(&format!("link set dev eth1 address {address}"))?;
        sends_to(client, address)
    };
    renumber("02:00:00:00:00:51")?;
    reaches_server(&topology, PORT)?;
    let status = gateway_host.run(|| gateway::status(&loaded.config))??;
    ensure!(status.to_string().contains("its hardware address was"), "{status}");
    ensure!(status.verdicts["pass/other_host"] > 0, "{:?}", status.verdicts);
    let report = gateway_host.run(|| gateway::rules::command::apply(&loaded.config))??;
    ensure!(report.devices.len() == 1, "{:?}", report.devices);
    is_known_as(&topology, &loaded, "02:00:00:00:00:51")?;

    // A relay sees to it by itself, wherever it runs.
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    for address in ["02:00:00:00:00:52", "02:00:00:00:00:53"] {
        renumber(address)?;
        is_known_as(&topology, &loaded, address)?;
        let mut stream = connect(client, Topology::server_address(0), PORT)?;
        transfer(&mut stream, relay.accept()?.stream(), 100_000)?;
    }
    loaded.unload()
}
