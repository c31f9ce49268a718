//! The checks, in their order: each finds the machine as the one before has left it.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::EbpfLoader;
use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, Traces, connect, reaches_server, send_syns, take_relay_device_down, traces,
    transfer, within,
};
use millrace_harness::net::netns::{self, Topology};
use millrace_harness::net::pktgen::{self, Traffic};
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::process;
use millrace_relay::codec::Framing;
use millrace_relay::gateway::object::{ObjectFile, verify};
use millrace_relay::gateway::{self, TraceOptions, Traced};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use serde_json::{Value, json};

use crate::{Finding, large, settings};

/// A port without a rule.
const OTHER_PORT: u16 = 7001;
/// Bytes that go each way over a diverted connection.
const BYTES: usize = 1 << 20;
/// Smallest frame that a network carries, without its check sequence (IEEE 802.3 section 3.2.7).
const FRAME_BYTES: u32 = 60;
/// The discard port (RFC 863), for packets that nobody wants.
const DISCARD: u16 = 9;
/// Packets beside pktgen's in the time of a run: an ARP question, a late acknowledgement.
const MAX_STRAY: u64 = 20;

/// SYNs that get lost, of each kind.
const LOST: u16 = 20;
/// Longest trace.
const TRACE: Duration = Duration::from_secs(30);

type Check = fn(&mut Guest) -> Result<Finding>;

/// Under a kernel that has everything.
pub(crate) const WORK: &[(&str, Check)] = &[
    ("kernel", kernel),
    ("verifier", verifier),
    ("load", load),
    ("relay", relay),
    ("fail open", fail_open),
    ("divert", divert),
    ("swap", swap),
    ("ordinary path", ordinary_path),
    ("pktgen", pktgen),
    ("losses", losses),
    ("unload", unload),
    ("jumbo frames", large::jumbo),
    ("bridge", large::bridge),
    ("settings", settings::in_force),
    ("scenarios", scenarios),
];

/// Under a kernel that is too old.
pub(crate) const REFUSAL: &[(&str, Check)] = &[("kernel", kernel), ("refusal", refusal)];

/// Hosts, an instance and a broker, all in this machine.
pub(crate) struct Guest {
    instance: Instance,
    topology: Topology,
    /// The gateway host before anything was loaded.
    before: Traces,
    /// Not an Apache Kafka: what is tested here is the kernel below the relay, not the broker.
    broker: MockCluster<'static, DefaultProducerContext>,
    packets: u64,
    pktgen_limit: Duration,
}

impl Guest {
    pub(crate) fn new(packets: u64, pktgen_limit: Duration) -> Result<Self> {
        let topology = Topology::new(1, 1)?;
        let broker = MockCluster::new(1)?;
        let mut config = topology.config(PORT, Framing::Lines);
        let ipv6 = Topology::SERVER_NETWORK_IPV6.parse().map_err(anyhow::Error::msg)?;
        config.services[0].destinations.push(ipv6);
        config.kafka.brokers = broker.bootstrap_servers();
        // It lacks the administrator's part of the protocol.
        let kafka = &config.kafka;
        for (topic, partitions) in [
            (kafka.uplink_topic(), 1),
            (kafka.downlink_topic(), 1),
            (kafka.registry_topic(), 1),
            (kafka.associations_topic(), 4),
            (kafka.held_topic(), 4),
            (kafka.deadletter_topic(), 1),
        ] {
            broker.create_topic(&topic, partitions, 1)?;
        }
        let before = traces(&topology.gateway, &config)?;
        let instance = Instance::new(config, Some(&topology.gateway.namespace()))?;
        Ok(Self { instance, topology, before, broker, packets, pktgen_limit })
    }

    fn verdicts(&self) -> Result<std::collections::BTreeMap<&'static str, u64>> {
        Ok(gateway::status(&self.instance.config)?.verdicts)
    }
}

pub(crate) fn finding(detail: impl Into<String>, figures: Value) -> Finding {
    Finding { detail: detail.into(), figures }
}

fn kernel(_: &mut Guest) -> Result<Finding> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let processors = std::thread::available_parallelism()?;
    Ok(finding(
        format!("Linux {release}, {processors} processors"),
        json!({ "release": release, "processors": processors }),
    ))
}

/// Every program of the object through the verifier, with its statistics.
fn verifier(_: &mut Guest) -> Result<Finding> {
    let object = std::fs::read(netns::bpf_object()?)?;
    let mut ebpf = EbpfLoader::new().load(&object)?;
    let (mut detail, mut figures) = (String::new(), serde_json::Map::new());
    for (name, program) in ebpf.programs_mut() {
        let started = Instant::now();
        verify(program).with_context(|| format!("program `{name}` is refused"))?;
        let took_us = u64::try_from(started.elapsed().as_micros())?;
        let info = program.info()?;
        let (verified, jited) = (info.verified_instruction_count(), info.size_jitted());
        let separator = if detail.is_empty() { "" } else { "; " };
        write!(detail, "{separator}{name}: {} instructions verified", verified.unwrap_or(0))?;
        figures.insert(
            name.to_owned(),
            json!({ "verified_instructions": verified, "jited_bytes": jited, "took_us": took_us }),
        );
    }
    ensure!(!figures.is_empty(), "the object has no programs");
    Ok(finding(detail, figures.into()))
}

/// `relay load` names what the kernel lacks, and leaves nothing behind.
fn refusal(guest: &mut Guest) -> Result<Finding> {
    let finished = guest.instance.try_load()?;
    let said = finished.stderr.trim();
    ensure!(!finished.status.success(), "this kernel was not refused: {said}");
    let message = said.lines().next_back().unwrap_or_default();
    let minimum = format!("use Linux {} or newer", gateway::minimum_kernel());
    ensure!(message.contains("lacks what Millrace needs"), "refused for another reason: {said}");
    ensure!(message.contains(&minimum), "it does not say which kernel to use: {message}");
    let after = traces(&guest.topology.gateway, &guest.instance.config)?;
    ensure!(after == guest.before, "before {:#?}\nafter {after:#?}", guest.before);
    Ok(finding(message, json!({ "message": message })))
}

fn load(guest: &mut Guest) -> Result<Finding> {
    guest.instance.load()?;
    let config = &guest.instance.config;
    let status = guest.topology.gateway.run(|| gateway::status(config))??;
    let mode = status.devices.first().context("no device")?.mode;
    ensure!(mode == "native", "the program runs in {mode} mode");
    Ok(finding("`relay load`: native mode on a veth", json!({ "mode": mode })))
}

/// The real relay: its `io_uring` takes a message from a diverted client, and a reply to it.
fn relay(guest: &mut Guest) -> Result<Finding> {
    guest.instance.start()?;
    let brokers = guest.broker.bootstrap_servers();
    let server = HandServer::on(&brokers, &guest.instance.config.kafka.topic_prefix, &[0])?;
    let target = SocketAddr::from((Topology::server_address(0), PORT));
    let mut client = Client::connect(&guest.topology.clients[0].namespace(), target, lines())?;
    client.send(b"over the relay")?;
    let record = server.next("the message", |record| record.value == b"over the relay")?;
    let address = client.address()?.to_string();
    ensure!(record.header("client") == address, "the client is {}", record.header("client"));
    server.reply(&record, b"and back")?;
    ensure!(client.receive()? == b"and back", "another reply came");
    Ok(finding("a message through io_uring into a record, and its reply back", Value::Null))
}

/// A killed process's listeners stay until the kernel has taken its rings apart, which it does after
/// the process is gone; from then on the first connection must reach its server.
fn fail_open(guest: &mut Guest) -> Result<Finding> {
    guest.instance.kill()?;
    let elapsed = reaches_server(&guest.topology, PORT)?;
    Ok(finding(
        format!("relay killed: the next connection reaches its server in {elapsed:.1?}"),
        json!({ "connect_us": u64::try_from(elapsed.as_micros())? }),
    ))
}

fn divert(guest: &mut Guest) -> Result<Finding> {
    let before = guest.topology.servers[0].tcp_segments_received()?;
    let families: [(IpAddr, IpAddr, IpAddr); 2] = [
        (
            Ipv4Addr::UNSPECIFIED.into(),
            Topology::client_address(0).into(),
            Topology::server_address(0).into(),
        ),
        (
            Ipv6Addr::UNSPECIFIED.into(),
            Topology::client_address_ipv6(0).into(),
            Topology::server_address_ipv6(0).into(),
        ),
    ];
    for (any, client_address, server) in families {
        let mut relay = FakeRelay::start_at(&guest.instance.config, (any, PORT).into())?;
        let mut client = connect(&guest.topology.clients[0], server, PORT)?;
        let mut accepted = relay.accept()?;
        ensure!(accepted.client == client.local_addr()?, "the peer is {}", accepted.client);
        ensure!(accepted.client.ip() == client_address, "the client is {}", accepted.client);
        ensure!(
            accepted.server == SocketAddr::from((server, PORT)),
            "local is {}",
            accepted.server
        );
        transfer(&mut client, accepted.stream(), BYTES)?;
        transfer(accepted.stream(), &mut client, BYTES)?;
    }
    let leaked = guest.topology.servers[0].tcp_segments_received()? - before;
    ensure!(leaked == 0, "the server saw {leaked} segments of a diverted connection");
    Ok(finding(
        "IPv4 and IPv6: both addresses intact, 1 MiB each way, nothing at the server",
        Value::Null,
    ))
}

/// Under a diverted connection: the programs are replaced, and then traced.
fn swap(guest: &mut Guest) -> Result<Finding> {
    let (config, host) = (&guest.instance.config, &guest.topology.gateway);
    let object = ObjectFile::read(&netns::bpf_object()?)?;
    let mut relay = FakeRelay::start(config, PORT)?;
    let mut client = connect(&guest.topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    host.run(|| gateway::replace_by(config, &object, &mut |_| {}))??;
    transfer(&mut client, accepted.stream(), BYTES)?;

    let options = TraceOptions {
        client: Topology::client_address(0).into(),
        per_second: 1000,
        count: Some(1),
        duration: Some(TRACE),
    };
    let mut seen = Vec::new();
    let mut tell = |packet: &Traced| {
        seen.push(packet.verdict);
        Ok(())
    };
    std::thread::scope(|scope| {
        let tracer = scope.spawn(|| {
            host.run(|| {
                gateway::trace_by(config, &object, &options, &mut |_| {}, &|| false, &mut tell)
            })
        });
        while !tracer.is_finished() {
            transfer(&mut client, accepted.stream(), 1)?;
        }
        tracer.join().expect("the tracer")?.map_err(anyhow::Error::from)
    })?;
    let verdict = *seen.first().context("the trace has shown nothing")?;
    transfer(accepted.stream(), &mut client, BYTES)?;
    Ok(finding(format!("replaced, traced ({verdict}), and back, under a connection"), Value::Null))
}

fn ordinary_path(guest: &mut Guest) -> Result<Finding> {
    let _relay = FakeRelay::start(&guest.instance.config, PORT)?;
    let before = guest.verdicts()?["pass/no_rule"];
    reaches_server(&guest.topology, OTHER_PORT)?;
    let passed = guest.verdicts()?["pass/no_rule"] - before;
    ensure!(passed > 0, "the program has not seen the connection");
    Ok(finding(format!("a port without a rule: {passed} packets passed"), Value::Null))
}

/// The kernel's generator at the loaded program: each packet that the link took is counted.
fn pktgen(guest: &mut Guest) -> Result<Finding> {
    let client = &guest.topology.clients[0];
    let own = Topology::client_address(0);
    let next_hop = link(&guest.topology.gateway, Topology::CLIENT_DEVICE)?["address"]
        .as_str()
        .and_then(parse_mac)
        .context("no hardware address")?;
    let traffic = Traffic {
        packets: guest.packets,
        frame_bytes: FRAME_BYTES,
        next_hop,
        sources: own..=own,
        destinations: Topology::server_address(0)..=Topology::server_address(0),
        source_ports: 1024..=65_535,
        destination_ports: DISCARD..=DISCARD,
    };
    let before = (guest.verdicts()?, dropped(client)?);
    let sent = pktgen::run(client, "eth0", &traffic, guest.pktgen_limit)?;
    // A link that refuses a packet counts it as dropped; pktgen calls it an error or, before
    // Linux 6.3, sent.
    let dropped = dropped(client)? - before.1;
    let expected = sent.packets + sent.errors - dropped;
    let grown = within(&format!("verdicts on {expected} packets"), || {
        let grown = growth(&before.0, &guest.verdicts()?);
        Ok((grown.iter().map(|(_, count)| count).sum::<u64>() >= expected).then_some(grown))
    })?;
    let stray: u64 = grown.iter().skip(1).map(|(_, count)| count).sum();
    let (verdict, count) = grown.first().context("no verdict")?;
    ensure!(*count == expected, "{verdict} counts {count} of {expected} packets: {grown:?}");
    ensure!(stray <= MAX_STRAY, "{stray} other packets in the time of the run: {grown:?}");
    let rate = sent.packets_per_second();
    Ok(finding(
        format!(
            "{} packets of {FRAME_BYTES} bytes sent, {dropped} dropped by the link, {count} counted \
             as {verdict}; {rate:.0} packets/s, emulated",
            sent.packets + sent.errors
        ),
        json!({
            "packets": sent.packets + sent.errors, "frame_bytes": FRAME_BYTES, "dropped": dropped,
            "verdict": verdict, "counted": count, "packets_per_second": rate,
        }),
    ))
}

/// `cargo xtask pktgen` by the kernel's generator: it refuses packets of another verdict.
fn scenarios(guest: &mut Guest) -> Result<Finding> {
    let mut command = Command::new("pktgen");
    let scenarios = ["no-rule", "flows-1000", "mixture"];
    command.args(scenarios);
    command.args(["--engine", "kernel", "--quick", "--size", "64", "--json"]);
    // Each loads an instance of its own, and an emulated verifier takes its time.
    let limit = guest.pktgen_limit * u32::try_from(scenarios.len())?;
    let finished = process::run_ok("pktgen", &mut command, limit)?;
    let report = finished.stdout.lines().last().context("pktgen prints nothing")?;
    let report: Value = serde_json::from_str(report)?;
    let rows = report["rows"].as_array().context("no rows")?;
    ensure!(rows.len() == scenarios.len() && report["engine"] == "kernel", "{report}");
    let names: Vec<_> = rows.iter().filter_map(|row| row["scenario"].as_str()).collect();
    Ok(finding(format!("{}, by the kernel's generator", names.join(", ")), report))
}

/// Packets that are refused before they are queued, and such that the driver does not take: both
/// tracepoints of this kernel are as the programs expect them.
fn losses(guest: &mut Guest) -> Result<Finding> {
    let config = &guest.instance.config;
    let _relay = FakeRelay::start(config, PORT)?;
    let device = gateway::gateway_device(config);
    let mut told = Vec::new();
    for (first, error) in [(40_000, "ENETDOWN"), (41_000, "ENXIO")] {
        if error == "ENETDOWN" {
            guest.topology.gateway.ip(&format!("link set dev {device} down"))?;
        } else {
            guest.topology.gateway.ip(&format!("link set dev {device} up"))?;
            take_relay_device_down(config)?;
        }
        let before = guest.verdicts()?["divert/new"];
        send_syns(&guest.topology, first..first + LOST)?;
        let lost = within(error, || {
            let diverted = guest.verdicts()?["divert/new"] - before;
            let diversion = gateway::status(config)?.diversion;
            ensure!(diversion.uncounted.is_empty(), "{:?}", diversion.uncounted);
            let lost = diversion.losses.into_iter().find(|lost| lost.error == error);
            Ok(lost.filter(|lost| diverted >= LOST.into() && lost.packets >= LOST.into()))
        });
        let lost = lost.with_context(|| format!("{:?}", gateway::status(config)))?;
        ensure!(lost.to_relay && lost.packets == u64::from(LOST), "{lost:?}");
        told.push(format!("{} {error}", lost.packets));
    }
    Ok(finding(format!("counted by reason: {}", told.join(", ")), Value::Null))
}

fn unload(guest: &mut Guest) -> Result<Finding> {
    guest.instance.unload()?;
    let after = traces(&guest.topology.gateway, &guest.instance.config)?;
    ensure!(after == guest.before, "before {:#?}\nafter {after:#?}", guest.before);
    reaches_server(&guest.topology, PORT)?;
    Ok(finding("devices, settings, files and mounts as before", Value::Null))
}

/// Verdicts that have grown, the one that has most first.
fn growth(
    before: &std::collections::BTreeMap<&'static str, u64>,
    after: &std::collections::BTreeMap<&'static str, u64>,
) -> Vec<(&'static str, u64)> {
    let mut grown: Vec<_> = after
        .iter()
        .map(|(name, count)| (*name, count - before.get(name).unwrap_or(&0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    grown.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    grown
}

fn link(host: &netns::Host, device: &str) -> Result<Value> {
    let links: Value =
        serde_json::from_str(&host.ip(&format!("-json -statistics link show dev {device}"))?)?;
    Ok(links[0].clone())
}

/// Packets that a client's link has refused to take.
fn dropped(client: &netns::Host) -> Result<u64> {
    link(client, "eth0")?["stats64"]["tx"]["dropped"].as_u64().context("no count of drops")
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}
