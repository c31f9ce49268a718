//! A source that belongs elsewhere: a SYN from it takes the ordinary path, where the host's `rp_filter`
//! sees it, and whoever is honest is served.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, ensure};
use millrace_harness::gateway::fake_relay::{FakeRelay, PORT, connect, transfer, within};
use millrace_harness::net::frames::{Frame, flag};
use millrace_harness::net::netns::{Loaded, Topology, bpf_object};
use millrace_harness::net::raw_socket::send_frame;
use millrace_harness::net::tcp::counter;
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::codec::Framing;
use millrace_relay::config::{Config, HardwareAddress, ReversePath};
use millrace_relay::gateway::object::ObjectFile;
use millrace_relay::gateway::rules::command::apply;
use millrace_relay::gateway::{self, DeviceStatus, Preflight};

/// The servers of a topology, by both families.
fn servers() -> [IpAddr; 2] {
    [Topology::server_address(0).into(), Topology::server_address_ipv6(0).into()]
}

/// A source behind the device towards the servers.
fn inside(server: IpAddr) -> anyhow::Result<IpAddr> {
    Ok(if server.is_ipv4() { "10.77.2.99" } else { "fd77:2::99" }.parse()?)
}

/// A source that the gateway has no route to.
fn nowhere(server: IpAddr) -> anyhow::Result<IpAddr> {
    Ok(if server.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" }.parse()?)
}

/// A gateway that serves both families, and whose host asks for this of its client-facing device.
fn gateway_with(rp_filter: &str) -> anyhow::Result<(Topology, Config)> {
    let topology = Topology::new(1, 1)?;
    filter(&topology, rp_filter)?;
    let mut config = topology.config(PORT, Framing::Lines);
    let ipv6 = Topology::SERVER_NETWORK_IPV6.parse().map_err(anyhow::Error::msg)?;
    config.services[0].destinations.push(ipv6);
    Ok((topology, config))
}

fn filter(topology: &Topology, rp_filter: &str) -> anyhow::Result<()> {
    // The larger of this and that of `all` counts, which is 0.
    topology.gateway.sysctl("net/ipv4/conf/eth1/rp_filter", rp_filter)
}

/// What a spoofed source gets.
fn send_syn(topology: &Topology, source: IpAddr, server: IpAddr) -> anyhow::Result<()> {
    let source = SocketAddr::new(source, 40_000);
    let mut syn = Frame::tcp(source, (server, PORT).into(), flag::SYN, 7);
    let address = topology.gateway.hardware_address(Topology::CLIENT_DEVICE)?;
    syn.link.0 = address.parse::<HardwareAddress>().map_err(anyhow::Error::msg)?.0;
    send_frame(&topology.clients[0], &syn)
}

/// Packets that the host's own check has dropped.
fn dropped_by_host(topology: &Topology) -> anyhow::Result<u64> {
    counter(&topology.gateway.namespace(), "netstat", "TcpExt", "IPReversePathFilter")
}

/// Sends a SYN from a source, and sees what becomes of it.
fn expect(
    (topology, loaded): (&Topology, &Loaded),
    (source, server): (IpAddr, IpAddr),
    verdict: &str,
) -> anyhow::Result<()> {
    let verdicts = ["divert/new", "pass/reverse_path"];
    let now = || -> anyhow::Result<_> {
        Ok([loaded.verdict(verdicts[0])?, loaded.verdict(verdicts[1])?])
    };
    let before = now()?;
    send_syn(topology, source, server)?;
    let after = within("verdict", || Ok(Some(now()?).filter(|now| *now != before)))?;
    let counted = [after[0] - before[0], after[1] - before[1]];
    let wanted = verdicts.map(|known| u64::from(known == verdict));
    ensure!(counted == wanted, "{source}: {counted:?} instead of {verdict}");
    Ok(())
}

/// An honest client is served by the relay.
fn is_served(topology: &Topology, loaded: &Loaded, server: IpAddr) -> anyhow::Result<()> {
    let mut relay = relay(loaded, server)?;
    let mut client = connect(&topology.clients[0], server, PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut client, accepted.stream(), 10_000)?;
    transfer(accepted.stream(), &mut client, 10_000)
}

fn relay(loaded: &Loaded, server: IpAddr) -> anyhow::Result<FakeRelay> {
    let everywhere = if server.is_ipv4() { "0.0.0.0" } else { "::" };
    FakeRelay::start_at(&loaded.config, SocketAddr::new(everywhere.parse()?, PORT))
}

fn status(topology: &Topology, loaded: &Loaded) -> anyhow::Result<(DeviceStatus, String)> {
    let mut status = topology.gateway.run(|| gateway::status(&loaded.config))??;
    let text = status.to_string();
    Ok((status.devices.remove(0), text))
}

/// Before, a SYN from outside with a source that is inside was diverted, whatever the host's
/// `rp_filter`.
#[test]
fn spoofed_sources_take_the_ordinary_path_and_honest_clients_are_served() -> anyhow::Result<()> {
    if !privileged("spoofed_sources_take_the_ordinary_path_and_honest_clients_are_served") {
        return Ok(());
    }
    let _shared = shared();
    let (taken, passed) = ("divert/new", "pass/reverse_path");
    let (topology, mut config) = gateway_with("1")?;
    for (setting, mode, from_inside, from_nowhere) in [
        (ReversePath::Auto, "strict", passed, passed),
        (ReversePath::Strict, "strict", passed, passed),
        (ReversePath::Loose, "loose", taken, passed),
        (ReversePath::Off, "off", taken, taken),
    ] {
        config.gateway.reverse_path = setting;
        let loaded = topology.load(&config)?;
        ensure!(status(&topology, &loaded)?.0.reverse_path == Some(mode), "{setting:?}");
        for server in servers() {
            let said = || format!("{setting:?}, {server}");
            is_served(&topology, &loaded, server).with_context(said)?;
            let listening = relay(&loaded, server)?;
            let dropped = dropped_by_host(&topology)?;
            let both = (&topology, &loaded);
            expect(both, (inside(server)?, server), from_inside).with_context(said)?;
            if from_inside == passed && server.is_ipv4() {
                within("drop by the host", || {
                    Ok((dropped_by_host(&topology)? > dropped).then_some(()))
                })?;
            }
            expect(both, (nowhere(server)?, server), from_nowhere).with_context(said)?;
            drop(listening);
            is_served(&topology, &loaded, server).with_context(said)?;
        }
        loaded.unload()?;
    }
    Ok(())
}

/// `load` decides; a host that is changed later is told of, and followed when it is asked for.
#[test]
fn a_check_that_the_host_has_changed_is_told_of_and_followed() -> anyhow::Result<()> {
    if !privileged("a_check_that_the_host_has_changed_is_told_of_and_followed") {
        return Ok(());
    }
    let _shared = shared();
    let (topology, config) = gateway_with("1")?;
    let loaded = topology.load(&config)?;
    let server = Topology::server_address(0).into();
    let _relay = relay(&loaded, server)?;
    let (device, text) = status(&topology, &loaded)?;
    ensure!(device.reverse_path == Some("strict") && !text.contains("SOURCES"), "{text}");

    // Another hardware address changes nothing about it.
    topology.gateway.ip("link set dev eth1 address 02:00:00:00:00:99")?;
    within("new address", || {
        let (device, _) = status(&topology, &loaded)?;
        Ok((device.known_address == device.hardware_address).then_some(()))
    })?;
    expect((&topology, &loaded), (inside(server)?, server), "pass/reverse_path")?;

    filter(&topology, "2")?;
    let (device, text) = status(&topology, &loaded)?;
    ensure!(device.reverse_path == Some("strict"), "it has changed by itself");
    let line = text.lines().find(|line| line.contains("SOURCES")).context(text.clone())?;
    for part in ["eth1", "strict", "loose (rp_filter is 2)", "`relay rules apply`"] {
        ensure!(line.contains(part), "no `{part}`: {line}");
    }
    let applied = topology.gateway.run(|| apply(&config))??;
    ensure!(
        applied.devices == ["reverse path of eth1: strict before, loose (rp_filter is 2) now"],
        "{:?}",
        applied.devices
    );
    expect((&topology, &loaded), (inside(server)?, server), "divert/new")?;
    ensure!(!status(&topology, &loaded)?.1.contains("SOURCES"));

    filter(&topology, "0")?;
    let object = ObjectFile::read(&bpf_object()?)?;
    let mut said = Vec::new();
    let replace = || gateway::replace_by(&config, &object, &mut |step| said.push(step.to_owned()));
    topology.gateway.run(replace)??;
    let wanted = "reverse path of eth1: loose before, off (rp_filter is 0) now";
    ensure!(said.iter().any(|step| step == wanted), "{said:?}");
    expect((&topology, &loaded), (nowhere(server)?, server), "divert/new")?;
    loaded.unload()
}

/// Where a route may name another device than the one by which clients come in, a strict check would
/// refuse them.
#[test]
fn a_load_says_how_far_it_would_check_and_why() -> anyhow::Result<()> {
    if !privileged("a_load_says_how_far_it_would_check_and_why") {
        return Ok(());
    }
    let _shared = shared();
    let (topology, config) = gateway_with("1")?;
    let gateway = &topology.gateway;
    let planned =
        || -> anyhow::Result<Preflight> { Ok(gateway.run(|| gateway::preflight(&config))??) };
    let said = |wanted: &str| -> anyhow::Result<()> {
        let text = planned()?.to_string();
        let line = format!("sources  eth1: reverse path {wanted}");
        ensure!(text.lines().any(|known| known == line), "no `{line}`: {text}");
        Ok(())
    };
    said("strict (rp_filter is 1)")?;
    let strict_but = |why: &str| said(&format!("loose (rp_filter is 1, but {why})"));

    gateway.sysctl("net/ipv4/conf/all/src_valid_mark", "1")?;
    strict_but("src_valid_mark is 1, and the programs see no marks")?;
    for (ip, client, server) in
        [("-4", "10.77.1.11", "10.77.2.11"), ("-6", "fd77:1::11", "fd77:2::11")]
    {
        gateway.ip(&format!(
            "{ip} route add default nexthop via {client} dev eth1 nexthop via {server} dev eth2"
        ))?;
        strict_but("a default route has next hops by this device and by others")?;
        gateway.ip(&format!("{ip} route del default"))?;
    }
    gateway.ip("link add link eth1 name upper1 type macvlan mode bridge")?;
    strict_but("routes may name `upper1` on top of it")?;
    let found = serde_json::to_value(planned()?)?;
    ensure!(found["devices"][0]["reverse_path"]["mode"] == "loose", "{found}");
    ensure!(found["facts"]["devices"][0][1]["sources"]["above"][0] == "upper1", "{found}");
    let steps = {
        let mut steps = Vec::new();
        let object = ObjectFile::read(&bpf_object()?)?;
        let load =
            || gateway::load_object_file(&config, &object, &mut |it| steps.push(it.to_owned()));
        let report = gateway.run(load)??;
        drop(Loaded { config: config.clone(), report });
        steps
    };
    let step =
        "reverse path of eth1: loose (rp_filter is 1, but routes may name `upper1` on top of it)";
    ensure!(steps.iter().any(|known| known == step), "{steps:?}");
    Ok(())
}
