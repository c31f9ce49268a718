//! Rules replaced while traffic flows, and both families and transports end to end.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use millrace_harness::gateway::fake_relay::{
    FakeRelay, PORT, accept, connect, listen, loaded, transfer, within,
};
use millrace_harness::gateway::test_run::{DROP, PASS, REDIRECT, admit_test_runs};
use millrace_harness::net::frames::Frame;
use millrace_harness::net::frames::flag::{ACK, SYN};
use millrace_harness::net::netns::{Host, Loaded, Topology};
use millrace_harness::net::raw_socket::Raw;
use millrace_harness::net::uninterrupted;
use millrace_harness::system::privilege::{privileged, shared};
use millrace_relay::codec::Framing;
use millrace_relay::config::{Config, Mode};
use millrace_relay::gateway;
use millrace_relay::gateway::rules::command::{apply, show};
use nix::sys::signal::SigSet;

const PATIENCE: Duration = Duration::from_secs(10);
/// The packets of the test keep a processor busy, and so do other tests.
const APPLY_PATIENCE: Duration = Duration::from_mins(1);

/// A file of rules that is removed with its value, and a configuration that names it.
struct Rules {
    config: Config,
    file: PathBuf,
}

impl Rules {
    fn new(config: &Config) -> Self {
        let name = format!("millrace-{}.rules", config.gateway.instance);
        let file = std::env::temp_dir().join(name);
        let mut config = config.clone();
        config.gateway.rules = Some(file.clone());
        Self { config, file }
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(&self.file, text)?)
    }

    fn apply(&self, text: &str) -> anyhow::Result<gateway::rules::command::ApplyReport> {
        self.write(text)?;
        Ok(apply(&self.config)?)
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

#[test]
fn a_diverted_connection_outlives_its_rule() -> anyhow::Result<()> {
    if !privileged("a_diverted_connection_outlives_its_rule") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let rules = Rules::new(&loaded.config);
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let server = Topology::server_address(0);
    let mut client = connect(&topology.clients[0], server, PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut client, accepted.stream(), 1000)?;

    for (text, closing) in [
        ("", &[PORT][..]),
        ("divert tcp 192.0.2.0/24 port 7000\n", &[]),
        ("pass tcp 10.77.2.0/24 port any\n", &[]),
        ("drop tcp 10.77.2.0/24 port 7000\n", &[]),
        ("exclude 10.77.1.0/24\n", &[PORT]),
    ] {
        let report = rules.apply(text)?;
        ensure!(report.closing_ports == closing, "{text}: {:?}", report.closing_ports);
        let shown = show(&rules.config)?;
        ensure!(shown.difference.is_none(), "{text}: {:?}", shown.difference);
        ensure!(shown.in_force.closing_ports == closing, "{text}");
        transfer(&mut client, accepted.stream(), 100_000)?;
        transfer(accepted.stream(), &mut client, 100_000)?;
    }

    // A new one beside it reaches its server.
    let listener = topology.servers[0].run(|| listen(server, PORT))??;
    let mut ordinary = connect(&topology.clients[0], server, PORT)?;
    let (mut direct, peer) = accept(&listener)?;
    ensure!(peer.ip() == Topology::client_address(0), "the server sees {peer}");
    transfer(&mut ordinary, &mut direct, 1000)?;

    // The port is free when the table of flows has let go of the last connection.
    drop((accepted, client));
    let before = loaded.verdict("pass/no_rule")?;
    relay = {
        drop(relay);
        FakeRelay::start(&loaded.config, PORT)?
    };
    let report = rules.apply("")?;
    ensure!(report.closing_ports.is_empty(), "{:?}", report.closing_ports);
    transfer(&mut ordinary, &mut direct, 1000)?;
    ensure!(loaded.verdict("pass/no_rule")? > before);
    drop(relay);
    loaded.unload()
}

/// Anybody can send a SYN with a client's addresses. Where a rule passed by now, it erased the flow of
/// the connection, whose next segment went to the server, which reset it.
#[test]
fn a_spoofed_syn_ends_no_connection() -> anyhow::Result<()> {
    if !privileged("a_spoofed_syn_ends_no_connection") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let rules = Rules::new(&loaded.config);
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let host = &topology.clients[0];
    let mut client = connect(host, Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    for text in ["pass tcp 10.77.2.0/24 port any\n", "exclude 10.77.1.0/24\n", ""] {
        rules.apply(text)?;
        transfer(&mut client, accepted.stream(), 1000)?;
        let packets = |loaded: &Loaded| -> anyhow::Result<u64> {
            let verdicts = gateway::status(&loaded.config)?.verdicts;
            let at_ingress = |name: &str| name.starts_with("pass/") || name.starts_with("divert/");
            Ok(verdicts.iter().filter(|(name, _)| at_ingress(name)).map(|(_, count)| count).sum())
        };
        let before = packets(&loaded)?;
        let syn = Frame::tcp(client.local_addr()?, client.peer_addr()?, SYN, 77);
        host.run(|| Raw::new()?.send(&syn))??;
        within("verdict", || Ok((packets(&loaded)? > before).then_some(())))?;
        transfer(&mut client, accepted.stream(), 100_000)?;
        transfer(accepted.stream(), &mut client, 100_000)?;
    }
    drop((accepted, client));
    loaded.unload()
}

/// A source that the operator had blocked was served as long as its connection lasted, and no rule could
/// name it.
#[test]
fn a_blocked_source_is_not_served_any_more() -> anyhow::Result<()> {
    const DIVERT: &str = "divert tcp 10.77.2.0/24 port 7000\n";
    if !privileged("a_blocked_source_is_not_served_any_more") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let rules = Rules::new(&loaded.config);
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let mut accepted = relay.accept()?;
    transfer(&mut client, accepted.stream(), 1000)?;

    let report = rules.apply(&format!("{DIVERT}drop from {}\n", Topology::client_address(0)))?;
    ensure!(report.closing_ports.is_empty(), "{:?}", report.closing_ports);
    let shown = show(&rules.config)?;
    ensure!(shown.difference.is_none(), "{:?}", shown.difference);
    ensure!(shown.in_force.rules.contains(&"drop from 10.77.1.11/32".to_owned()), "{shown}");
    client.write_all(b"blocked")?;
    // The client sends it again and again.
    within("drop/source", || Ok((loaded.verdict("drop/source")? >= 2).then_some(())))?;
    accepted.stream().set_nonblocking(true)?;
    let read = accepted.stream().read(&mut [0; 16]);
    ensure!(read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "it is served");
    accepted.stream().set_nonblocking(false)?;

    rules.apply(&format!("{DIVERT}drop from 192.0.2.0/24\n"))?;
    let mut received = [0; 7];
    accepted.stream().read_exact(&mut received)?;
    ensure!(&received == b"blocked", "the connection goes on when its client is let in again");
    transfer(accepted.stream(), &mut client, 100_000)?;
    drop((accepted, client));
    loaded.unload()
}

#[test]
fn a_wrong_line_changes_nothing() -> anyhow::Result<()> {
    if !privileged("a_wrong_line_changes_nothing") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let rules = Rules::new(&loaded.config);
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let too_many = (0..1000).fold(String::new(), |mut text, n| {
        let _ = writeln!(text, "drop tcp 10.{}.{}.0/24 port any", n >> 8, n & 255);
        let _ = writeln!(text, "divert tcp 192.0.2.1 port {}", 1000 + n);
        text
    });
    for (text, said) in [
        ("divert tcp 10.77.2.0/24 port 70000", ":1: `70000` is not a port"),
        (&too_many, "more than 131072 combinations"),
    ] {
        let error = rules.apply(text).err().context("it was not refused")?.to_string();
        ensure!(error.contains(said), "`{error}` does not say `{said}`");
        ensure!(show(&rules.config)?.difference.is_none());
        let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
        transfer(&mut client, relay.accept()?.stream(), 1000)?;
    }
    loaded.unload()
}

/// 10,000 rules, whose classes have other numbers in the two variants.
fn ten_thousand(variant: bool) -> String {
    let mut text = String::from(
        "divert tcp 10.77.2.0/24 port 7000\npass tcp 10.77.2.0/24 port 7001\n\
         drop tcp 10.77.2.0/24 port 7002\ndrop udp fd77:2::/64 port 7000-7999\n",
    );
    // Before all others or after them, and at other ports.
    let first = if variant { 1000 } else { 20_000 };
    let action = if variant { "drop" } else { "divert" };
    for n in 0..9996_u32 {
        let (a, b, port) = (n >> 8, n & 255, first + n % 5000);
        let _ = writeln!(text, "{action} tcp 172.16.{}.{b}/32 port {port}", 100 + a);
    }
    text
}

/// What the rules say of a frame, in both variants.
struct Stream {
    verdict: &'static str,
    action: u32,
    frame: Vec<u8>,
    packets: u64,
}

/// Runs the loaded program over one frame after the other, again and again, until it is told to
/// stop. The calling thread's signals are blocked from then on: one, a child's end for example, ends a
/// burst early with EINTR (`bpf_test_timer_continue`), after nobody knows how
/// many packets.
fn run(program: &Xdp, streams: &mut [Stream], stop: &AtomicBool) -> anyhow::Result<()> {
    const BURST: u32 = 256;
    SigSet::all().thread_block()?;
    while !stop.load(Ordering::Relaxed) {
        for stream in &mut *streams {
            let data_in = Some(&*stream.frame);
            let options = TestRunOptions { data_in, repeat: BURST, ..TestRunOptions::default() };
            let action = program.test_run(options)?.return_value;
            ensure!(action == stream.action, "{}: action {action}", stream.verdict);
            stream.packets += u64::from(BURST);
        }
        // About as long as the bursts have taken: others run on this processor too.
        std::thread::sleep(Duration::from_micros(150));
    }
    Ok(())
}

#[test]
fn ten_thousand_rules_are_replaced_a_hundred_times_under_traffic() -> anyhow::Result<()> {
    if !privileged("ten_thousand_rules_are_replaced_a_hundred_times_under_traffic") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let rules = Rules::new(&loaded.config);
    rules.apply(&ten_thousand(true))?;
    let mut relay = FakeRelay::start(&loaded.config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    let client_end = client.local_addr()?;
    let mut accepted = relay.accept()?;
    let before = gateway::status(&loaded.config)?.verdicts;

    let address = admit_test_runs(&loaded.config.pin_directory())?;
    let ipv4 = |port: u16, flags: u8| {
        Frame::tcp(client_end, (Topology::server_address(0), port).into(), flags, 7)
    };
    let ends: [SocketAddr; 2] =
        [Topology::client_address_ipv6(0), Topology::server_address_ipv6(0)]
            .map(|address| (address, 7500).into());
    let mut streams = [
        ("divert/established", ipv4(PORT, ACK), REDIRECT),
        ("pass/rule", ipv4(7001, SYN), PASS),
        ("drop/rule", ipv4(7002, ACK), DROP),
        ("drop/rule", Frame::udp(ends[0], ends[1]), DROP),
        ("pass/no_rule", ipv4(9, SYN), PASS),
    ]
    .map(|(verdict, frame, action)| Stream {
        verdict,
        action,
        frame: Frame { link: (address, frame.link.1), ..frame }.bytes(),
        packets: 0,
    });
    let stop = AtomicBool::new(false);
    let pin = loaded.config.pin_directory().join("prog_ingress");
    let program = Xdp::from_pin(pin, XdpAttachType::Interface)?;
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let runner = scope.spawn(|| topology.gateway.run(|| run(&program, &mut streams, &stop))?);
        let applied = (0..100).try_for_each(|round| -> anyhow::Result<()> {
            let start = Instant::now();
            let report = rules.apply(&ten_thousand(round % 2 == 1))?;
            slowest = slowest.max(start.elapsed());
            ensure!(report.now.rules == 10_000 && report.added.len() == 9996, "round {round}");
            if round % 10 == 0 {
                transfer(&mut client, accepted.stream(), 10_000)?;
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        runner.join().expect("the runner")?;
        applied
    })?;

    let after = gateway::status(&loaded.config)?.verdicts;
    let packets: u64 = streams.iter().map(|stream| stream.packets).sum();
    println!("the slowest of 100 took {slowest:?}; {packets} packets meanwhile");
    ensure!(slowest < APPLY_PATIENCE, "one took {slowest:?}");
    for (name, count) in &after {
        let counted = count - before[name];
        let streams = streams.iter().filter(|stream| stream.verdict == *name);
        let wanted: u64 = streams.map(|stream| stream.packets).sum();
        // The connection itself, and what hosts say to each other without being asked.
        let besides = name.starts_with("return/")
            || ["divert/established", "pass/ethertype", "pass/protocol", "pass/ipv6_extension"]
                .contains(name);
        let right = if besides { counted >= wanted } else { counted == wanted };
        ensure!(right, "{name}: {counted} packets, but {wanted} were sent");
    }
    drop(accepted);
    loaded.unload()
}

/// A host's UDP socket, with the patience of a test.
fn udp(host: &Host, address: IpAddr) -> anyhow::Result<UdpSocket> {
    let socket = host.run(|| UdpSocket::bind((address, 0)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The next datagram: what it says, and who sent it. A signal is no answer.
fn receive(socket: &UdpSocket) -> anyhow::Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 100];
    let (length, peer) = uninterrupted(|| socket.recv_from(&mut buffer))?;
    buffer.truncate(length);
    Ok((buffer, peer))
}

#[test]
fn ipv6_connections_are_diverted_and_answered() -> anyhow::Result<()> {
    if !privileged("ipv6_connections_are_diverted_and_answered") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(2, 2)?;
    // Also where the clients are within the diverted prefix.
    for prefix in [Topology::SERVER_NETWORK_IPV6, "::/0"] {
        let mut config = topology.config(PORT, Framing::Lines);
        config.services[0].destinations = vec![prefix.parse().map_err(anyhow::Error::msg)?];
        let loaded = topology.load(&config)?;
        let mut relay = FakeRelay::start_at(&config, (Ipv6Addr::UNSPECIFIED, PORT).into())?;
        for (client_index, host) in topology.clients.iter().enumerate() {
            let server = Topology::server_address_ipv6(client_index);
            let mut client = connect(host, server, PORT)?;
            let mut accepted = relay.accept()?;
            ensure!(accepted.client.ip() == Topology::client_address_ipv6(client_index));
            ensure!(accepted.server == SocketAddr::from((server, PORT)));
            transfer(&mut client, accepted.stream(), 1_000_000)?;
            transfer(accepted.stream(), &mut client, 1_000_000)?;
        }
        ensure!(loaded.verdict("divert/new")? == 2 && loaded.verdict("return/forwarded")? > 0);
        ensure!(loaded.verdict("pass/no_flow")? == 0);

        // Another port takes the ordinary path.
        let server = Topology::server_address_ipv6(0);
        let listener = topology.servers[0].run(|| listen(server, PORT + 1))??;
        let mut client = connect(&topology.clients[0], server, PORT + 1)?;
        let (mut direct, peer) = accept(&listener)?;
        ensure!(peer.ip() == Topology::client_address_ipv6(0), "the server sees {peer}");
        transfer(&mut client, &mut direct, 100_000)?;
        loaded.unload()?;
    }

    topology.gateway.sysctl("net/ipv6/conf/all/forwarding", "0")?;
    let mut config = topology.config(PORT, Framing::Lines);
    config.services[0].destinations = vec!["::/0".parse().map_err(anyhow::Error::msg)?];
    let error = topology.load(&config).err().context("it was not refused")?.to_string();
    ensure!(error.contains("sysctl -w net.ipv6.conf.all.forwarding=1"), "{error}");
    Ok(())
}

#[test]
fn datagrams_are_diverted_and_answered() -> anyhow::Result<()> {
    if !privileged("datagrams_are_diverted_and_answered") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let rules = Rules::new(&loaded.config);
    rules.apply("divert udp 10.77.2.0/24 port 5000\ndivert udp fd77:2::/64 port 5000\n")?;
    let _relay = FakeRelay::start(&loaded.config, PORT)?;
    for (client, server) in [
        (Topology::client_address(0).into(), IpAddr::from(Topology::server_address(0))),
        (Topology::client_address_ipv6(0).into(), Topology::server_address_ipv6(0).into()),
    ] {
        let socket = udp(&topology.clients[0], client)?;
        let target = SocketAddr::from((server, 5000));
        // Nobody waits at the relay: the server gets it.
        let there = topology.servers[0].run(|| UdpSocket::bind(target))??;
        there.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"ordinary", target)?;
        ensure!(receive(&there)? == (b"ordinary".to_vec(), socket.local_addr()?));

        let here = gateway::in_namespace(&loaded.config.namespace(), || UdpSocket::bind(target))??;
        here.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"diverted", target)?;
        let (message, peer) = receive(&here)?;
        ensure!(message == b"diverted" && peer == socket.local_addr()?);
        here.send_to(b"answer", peer)?;
        ensure!(receive(&socket)? == (b"answer".to_vec(), target));
    }
    ensure!(loaded.verdict("divert/datagram")? == 2 && loaded.verdict("pass/no_listener")? == 2);
    loaded.unload()
}

#[test]
fn in_mode_all_a_rule_is_enough() -> anyhow::Result<()> {
    if !privileged("in_mode_all_a_rule_is_enough") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    config.gateway.mode = Mode::All;
    let loaded = topology.load(&config)?;
    let relay = FakeRelay::start(&config, PORT)?;
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    // The table of flows is not told of it.
    let (mut accepted, _) = accept(&relay.listener)?;
    transfer(&mut client, &mut accepted, 100_000)?;
    transfer(&mut accepted, &mut client, 100_000)?;
    let status = gateway::status(&config)?;
    ensure!(status.rules.mode == Mode::All && status.pending == 0 && status.established == 0);
    ensure!(status.verdicts["divert/rule"] > 0 && status.verdicts["divert/new"] == 0);
    loaded.unload()
}

/// No connection of the relay's notices.
#[test]
fn the_mode_is_changed_while_loaded() -> anyhow::Result<()> {
    if !privileged("the_mode_is_changed_while_loaded") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let gateway = &topology.gateway;
    let mut config = loaded.config.clone();
    let mut relay = FakeRelay::start(&config, PORT)?;
    let mut open = Vec::new();
    for (mode, verdict) in [
        (Mode::New, "divert/new"),
        (Mode::All, "divert/rule"),
        (Mode::New, "divert/new"),
        (Mode::All, "divert/rule"),
    ] {
        let former = gateway::status(&config)?.rules.mode;
        config.gateway.mode = mode;
        let told = gateway.run(|| gateway::status(&config))??.to_string();
        ensure!(told.contains("  MODE       gateway.mode is") == (mode != former), "{told}");
        let report = gateway.run(|| apply(&config))??;
        ensure!(report.mode == mode && report.former_mode == (mode != former).then_some(former));
        let words = format!("mode: {} → {}", former.name(), mode.name());
        ensure!(report.to_string().contains(&words) == (mode != former), "{report}");
        let status = gateway.run(|| gateway::status(&config))??;
        ensure!(status.rules.mode == mode && !status.to_string().contains("MODE"), "{status}");
        ensure!(show(&config)?.difference.is_none());

        let before = loaded.verdict(verdict)?;
        let client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
        let mut accepted = relay.accept()?;
        open.push((client, accepted.stream().try_clone()?));
        // Not closed: its flow stays.
        std::mem::forget(accepted);
        ensure!(loaded.verdict(verdict)? > before, "{verdict}");
        for (client, stream) in &mut open {
            transfer(client, stream, 10_000)?;
            transfer(stream, client, 10_000)?;
        }
    }
    loaded.unload()
}
