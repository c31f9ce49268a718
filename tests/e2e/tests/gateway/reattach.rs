//! A client-facing device that was removed and is back: a running relay attaches it again.

use std::fs::File;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::EbpfLoader;
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, Traces, connect, loaded, traces, transfer,
};
use millrace_harness::net::netns::{Host, Loaded, Topology, bpf_object};
use millrace_harness::system::privilege::{privileged, shared};
use millrace_harness::system::process::wait_until;
use millrace_relay::codec::Framing;
use millrace_relay::config::{Config, XdpPolicy};
use millrace_relay::gateway::{self, Status, object::ObjectFile};
use rustix::fs::{FlockOperation, flock};

/// Longer than loads beside this keep the lock from a relay, which never waits for it.
const PATIENCE: Duration = Duration::from_mins(2);
const DEVICE: &str = Topology::CLIENT_DEVICE;

fn status(gateway: &Host, config: &Config) -> anyhow::Result<Status> {
    Ok(gateway.run(|| gateway::status(config))??)
}

/// Whether the first device runs the instance's program, and the programs know it.
fn is_attached(gateway: &Host, config: &Config) -> anyhow::Result<bool> {
    let status = status(gateway, config)?;
    let device = &status.devices[0];
    let ingress = status.programs["ingress"].id;
    Ok(device.mode != "none"
        && device.other_program.is_none()
        && device.program_id == Some(ingress)
        && device.known_address.is_some()
        && device.known_address == device.hardware_address)
}

fn wait_attached(gateway: &Host, config: &Config) -> anyhow::Result<()> {
    wait_until(PATIENCE, "the device to be attached again", || is_attached(gateway, config))
}

/// A loaded gateway and its relay, which has seen that the device is gone.
fn without_device(
    change: impl FnOnce(&mut Config),
) -> anyhow::Result<(Loaded, Topology, FakeRelay)> {
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    change(&mut config);
    let loaded = topology.load(&config)?;
    let relay = FakeRelay::start(&config, PORT)?;
    topology.remove_client_device()?;
    wait_told(&relay, "there is no such device")?;
    Ok((loaded, topology, relay))
}

/// Waits until the relay says this of the device.
fn wait_told(relay: &FakeRelay, words: &str) -> anyhow::Result<String> {
    let news = relay.watch.news();
    let told = || news.now().detached.get(DEVICE).cloned();
    wait_until(PATIENCE, words, || Ok(told().is_some_and(|why| why.contains(words))))?;
    told().context("it was just told")
}

fn replace(gateway: &Host, config: &Config) -> anyhow::Result<()> {
    let object = ObjectFile::read(&bpf_object()?)?;
    gateway.run(|| gateway::replace_by(config, &object, &mut |_| {}))??;
    Ok(())
}

/// A new connection of the client's, which ends in the relay, with some bytes each way.
fn diverts(topology: &Topology, relay: &mut FakeRelay) -> anyhow::Result<()> {
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    both_ways(&mut client, accepted.stream())
}

fn both_ways(client: &mut TcpStream, relay: &mut TcpStream) -> anyhow::Result<()> {
    transfer(client, relay, 10_000)?;
    transfer(relay, client, 10_000)
}

/// Keeps everybody from changing what is loaded, as `load` does.
fn lock() -> anyhow::Result<File> {
    let directory = File::open("/run/millrace")?;
    flock(&directory, FlockOperation::LockExclusive)?;
    Ok(directory)
}

/// Before, nothing was diverted from it until the next `load --replace`.
#[test]
fn connections_go_on_and_new_ones_are_diverted() -> anyhow::Result<()> {
    if !privileged("connections_go_on_and_new_ones_are_diverted") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let (gateway, config) = (&topology.gateway, topology.config(PORT, Framing::Lines));
    let before = traces(gateway, &config)?;
    let loaded = topology.load(&config)?;
    let mut relay = FakeRelay::start(&config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    both_ways(&mut client, accepted.stream())?;
    let (stream, ends) = (accepted.stream().try_clone()?, (accepted.client, accepted.server));
    // Not closed: its flow stays.
    std::mem::forget(accepted);
    let mut stream = stream;
    // What the client sends again before the device is attached would be reset there.
    topology.servers[0].ip("link set dev eth0 down")?;

    for round in 1..=2 {
        topology.remove_client_device()?;
        wait_told(&relay, "there is no such device")?;
        topology.restore_client_device()?;
        wait_attached(gateway, &config)?;
        both_ways(&mut client, &mut stream)?;
        diverts(&topology, &mut relay)?;
        // The program came before the client's end was set up, and answers went by the host's stack.
        wait_until(PATIENCE, "answers to be redirected", || {
            Ok(status(gateway, &config)?.devices[0].redirects_answers == Some(true))
        })?;
        both_ways(&mut client, &mut stream)?;
        let status = status(gateway, &config)?;
        let paths = &status.diversion.paths;
        ensure!(paths.len() == 2, "{paths:?}");
        ensure!(paths.iter().all(|path| path.device.as_deref() == Some(DEVICE)), "{paths:?}");
        let news = relay.watch.news();
        wait_until(PATIENCE, "that to be told", || Ok(news.now().detached.is_empty()))?;
        ensure!(news.now().reattached[DEVICE] == round, "{:?}", news.now());
        let status = status.to_string();
        for bad in ["GONE", "MISSING", "FOREIGN", "ADDRESS", "SOURCES"] {
            ensure!(!status.contains(bad), "{status}");
        }
    }
    relay.flows.closed(ends.0, ends.1)?;
    // Another change of what is loaded finds nothing to mend, and breaks nothing.
    replace(gateway, &config)?;
    ensure!(is_attached(gateway, &config)?);
    diverts(&topology, &mut relay)?;
    loaded.unload()?;
    drop(relay);
    let after = traces(gateway, &config)?;
    ensure!(Traces { bpffs: before.bpffs, ..after } == before, "something is left");
    Ok(())
}

/// A relay that starts finds what has changed while none ran.
#[test]
fn a_relay_that_starts_attaches_what_came_back_before() -> anyhow::Result<()> {
    if !privileged("a_relay_that_starts_attaches_what_came_back_before") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let (gateway, config) = (&topology.gateway, &loaded.config);
    topology.remove_client_device()?;
    topology.restore_client_device()?;
    let told = status(gateway, config)?.to_string();
    ensure!(told.contains("GONE       nothing is diverted from eth1"), "{told}");
    let mut relay = FakeRelay::start(config, PORT)?;
    wait_attached(gateway, config)?;
    diverts(&topology, &mut relay)?;
    drop(relay);

    // What a relay leaves that was killed after it had let go of the former link.
    topology.remove_client_device()?;
    std::fs::remove_file(config.pin_directory().join(format!("link_{DEVICE}")))?;
    topology.restore_client_device()?;
    let mut relay = FakeRelay::start(config, PORT)?;
    wait_attached(gateway, config)?;
    diverts(&topology, &mut relay)?;
    drop(relay);
    topology.remove_client_device()?;
    std::fs::remove_file(config.pin_directory().join(format!("link_{DEVICE}")))?;
    loaded.unload()
}

/// The room of a device is another's; then it is free again.
#[test]
fn a_device_that_runs_another_program_is_left_alone() -> anyhow::Result<()> {
    if !privileged("a_device_that_runs_another_program_is_left_alone") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology, mut relay) = without_device(|_| {})?;
    let (gateway, config) = (&topology.gateway, &loaded.config);
    let mut object = EbpfLoader::new().load(&std::fs::read(bpf_object()?)?)?;
    let other: &mut Xdp = object.program_mut("pass").context("no program")?.try_into()?;
    other.load()?;
    let held = lock()?;
    topology.restore_client_device()?;
    gateway.run(|| other.attach(DEVICE, XdpMode::Driver))??;
    wait_told(&relay, "is locked by")?;
    drop(held);

    let remedy = "bpftool link detach id ";
    let why = wait_told(&relay, "already runs an XDP program")?;
    ensure!(why.contains(remedy), "{why}");
    let told = status(gateway, config)?;
    ensure!(told.devices[0].mode == "native" && told.devices[0].known_address.is_none());
    let told = told.to_string();
    ensure!(told.contains("FOREIGN    nothing is diverted from eth1"), "{told}");
    ensure!(told.contains(remedy), "{told}");
    ensure!(relay.watch.news().now().reattached.is_empty());

    // As when that command detaches it.
    drop(object);
    wait_attached(gateway, config)?;
    diverts(&topology, &mut relay)?;
    let news = relay.watch.news();
    wait_until(PATIENCE, "that to be told", || Ok(news.now().detached.is_empty()))?;
    loaded.unload()
}

/// What `load` would refuse is not attached, and tried again when it has changed.
#[test]
fn a_device_that_load_would_refuse_is_told_of() -> anyhow::Result<()> {
    if !privileged("a_device_that_load_would_refuse_is_told_of") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology, mut relay) = without_device(|_| {})?;
    let (gateway, config) = (&topology.gateway, &loaded.config);
    gateway.ip(&format!("link add {DEVICE} type bridge"))?;
    let why = wait_told(&relay, "has no native XDP that can redirect")?;
    ensure!(why.contains("gateway.xdp = \"native-or-generic\""), "{why}");
    ensure!(status(gateway, config)?.devices[0].mode == "none");
    // Another device of the name, and what the host lacks is not seen at the device.
    gateway.ip(&format!("link delete {DEVICE}"))?;
    gateway.sysctl("net/ipv4/ip_forward", "0")?;
    topology.restore_client_device()?;
    wait_told(&relay, "sysctl -w net.ipv4.ip_forward=1")?;
    gateway.sysctl("net/ipv4/ip_forward", "1")?;
    wait_attached(gateway, config)?;
    diverts(&topology, &mut relay)?;
    loaded.unload()
}

/// By the same policy as `load`.
#[test]
fn generic_mode_is_used_where_it_may_be() -> anyhow::Result<()> {
    if !privileged("generic_mode_is_used_where_it_may_be") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology, mut relay) =
        without_device(|config| config.gateway.xdp = XdpPolicy::NativeOrGeneric)?;
    let (gateway, config) = (&topology.gateway, &loaded.config);
    // The client's network is behind a bridge now, which has the name of the former device.
    gateway.ip(&format!("link add {DEVICE} type bridge"))?;
    let client = &topology.clients[0];
    millrace_harness::net::netns::link(gateway, "port0", "", client, "eth0", "10.77.1.11/24")?;
    gateway.ip(&format!("link set dev port0 master {DEVICE}"))?;
    gateway.ip(&format!("address add 10.77.1.1/24 dev {DEVICE}"))?;
    gateway.ip(&format!("link set dev {DEVICE} up"))?;
    client.ip("route add default via 10.77.1.1")?;
    wait_attached(gateway, config)?;
    ensure!(status(gateway, config)?.devices[0].mode == "generic");
    diverts(&topology, &mut relay)?;
    loaded.unload()
}

#[test]
fn it_can_be_left_to_the_operator() -> anyhow::Result<()> {
    if !privileged("it_can_be_left_to_the_operator") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology, mut relay) = without_device(|config| config.gateway.reattach = false)?;
    let (gateway, config) = (&topology.gateway, &loaded.config);
    topology.restore_client_device()?;
    wait_told(&relay, "gateway.reattach is false; attach it with `relay load --replace`")?;
    ensure!(status(gateway, config)?.devices[0].mode == "none");
    replace(gateway, config)?;
    ensure!(is_attached(gateway, config)?);
    let news = relay.watch.news();
    wait_until(PATIENCE, "that to be seen", || Ok(news.now().detached.is_empty()))?;
    diverts(&topology, &mut relay)?;
    ensure!(news.now().reattached.is_empty());
    loaded.unload()
}
