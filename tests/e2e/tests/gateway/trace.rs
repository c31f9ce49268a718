//! `relay trace`: what it shows, that it costs nothing while it is off, and how it ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use aya::maps::MapInfo;
use aya::programs::ProgramInfo;
use millrace_harness::gateway::counted_traffic::Datagrams;
use millrace_harness::gateway::fake_relay::{
    Accepted, FakeRelay, PORT, accept, connect, diverts, listen, loaded, transfer, within,
};
use millrace_harness::net::netns::{Host, Loaded, Topology, bpf_object};
use millrace_harness::system::paths;
use millrace_harness::system::privilege::{privileged, shared};
use millrace_harness::system::process::{Process, run_ok, wait_until};
use millrace_relay::config::Config;
use millrace_relay::gateway::{
    self, GatewayError, TraceEnd, TraceOptions, TraceSummary, Traced, object::ObjectFile,
    object::VARIABLE,
};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_mins(1);
const ORDINARY: u16 = 7001;

fn options(client: IpAddr) -> TraceOptions {
    TraceOptions { client, per_second: 1000, count: None, duration: None }
}

/// Traces while `work` is done, which begins when the traced programs are in place.
fn during<T: Send>(
    (host, config): (&Host, &Config),
    options: TraceOptions,
    work: impl FnOnce(&dyn Fn(&str) -> anyhow::Result<()>) -> anyhow::Result<T>,
) -> anyhow::Result<(T, Vec<Traced>, TraceSummary)> {
    let object = ObjectFile::read(&bpf_object()?)?;
    let (seen, ended) = (Mutex::new(Vec::<Traced>::new()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let tracer = scope.spawn(|| {
            let mut tell = |packet: &Traced| {
                seen.lock().expect("no panic").push(packet.clone());
                Ok(())
            };
            let ended = || ended.load(Relaxed);
            host.run(|| {
                gateway::trace_by(config, &object, &options, &mut |_| {}, &ended, &mut tell)
            })?
            .map_err(anyhow::Error::from)
        });
        let shows = |verdict: &str| {
            within(verdict, || {
                ensure!(!tracer.is_finished(), "the trace has ended");
                let seen = seen.lock().expect("no panic");
                Ok(seen.iter().any(|packet| packet.verdict == verdict).then_some(()))
            })
        };
        let worked = until_traced(config, &tracer).and_then(|()| work(&shows));
        ended.store(true, Relaxed);
        let summary = tracer.join().expect("the tracer")?;
        Ok((worked?, seen.lock().expect("no panic").clone(), summary))
    })
}

fn is_traced(config: &Config) -> anyhow::Result<bool> {
    let status = gateway::status(config)?;
    Ok(status.devices[0].program.as_deref() == Some("ingress_traced"))
}

/// Waits until the traced programs run, or the tracer has failed.
fn until_traced<T>(config: &Config, tracer: &ScopedJoinHandle<'_, T>) -> anyhow::Result<()> {
    wait_until(PATIENCE, "the traced programs", || {
        ensure!(!tracer.is_finished(), "the trace has ended");
        is_traced(config)
    })
}

/// Sends a datagram to a server's port where nobody listens.
fn datagram(host: &Host, length: usize) -> anyhow::Result<()> {
    let socket = host.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    socket.send_to(&vec![0; length], (Topology::server_address(0), 9))?;
    Ok(())
}

/// The device runs the pinned program.
fn is_usual(config: &Config) -> anyhow::Result<bool> {
    let status = gateway::status(config)?;
    Ok(status.devices[0].program_id == Some(status.programs["ingress"].id))
}

#[test]
fn it_shows_every_packet_of_the_client_and_none_of_others() -> anyhow::Result<()> {
    if !privileged("it_shows_every_packet_of_the_client_and_none_of_others") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 2)?;
    let loaded = topology.load(&topology.config(PORT, millrace_relay::codec::Framing::Lines))?;
    let config = &loaded.config;
    let (server, address) = (&topology.servers[0], Topology::server_address(0));
    let mut relay = FakeRelay::start(config, PORT)?;
    let listener = server.run(|| listen(address, ORDINARY))??;
    let watched = Topology::client_address(0);

    let (client_port, seen, summary) =
        during((&topology.gateway, config), options(watched.into()), |shows| {
            let mut client_port = 0;
            for host in &topology.clients {
                let mut client = connect(host, address, PORT)?;
                let mut accepted: Accepted<'_> = relay.accept()?;
                if accepted.client.ip() == IpAddr::from(watched) {
                    client_port = accepted.client.port();
                }
                transfer(&mut client, accepted.stream(), 100)?;
                transfer(accepted.stream(), &mut client, 100)?;
                connect(host, address, ORDINARY)?;
                accept(&listener)?;
                datagram(host, 3000)?;
            }
            shows("return/forwarded")?;
            shows("divert/established")?;
            Ok(client_port)
        })?;
    ensure!(is_usual(config)?, "the usual programs are not back");
    ensure!(summary.end == TraceEnd::Stopped && summary.shown == seen.len() as u64, "{summary:?}");
    ensure!(summary.withheld == 0 && summary.lost == 0, "{summary:?}");

    for packet in &seen {
        let client =
            if packet.direction == "from_client" { packet.source } else { packet.destination };
        ensure!(client.ip() == IpAddr::from(watched), "not the client's: {packet:?}");
        ensure!(!packet.meaning.is_empty() && packet.length >= 42, "{packet:?}");
    }
    let find = |verdict: &str| {
        let found = seen.iter().find(|packet| packet.verdict == verdict);
        found.with_context(|| format!("no {verdict}: {seen:#?}"))
    };
    let syn = find("divert/new")?;
    ensure!(syn.source.port() == client_port && syn.destination == (address, PORT).into());
    ensure!(syn.flags == ["SYN"] && syn.protocol == "tcp" && syn.device == "eth1", "{syn:?}");
    let answer = find("return/forwarded")?;
    ensure!(answer.device == gateway::gateway_device(config), "{answer:?}");
    ensure!(answer.direction == "to_client" && answer.source == (address, PORT).into());
    // By the fast path, or, if the client's neighbour entry was not there yet, by the stack.
    let accepting = seen.iter().find(|packet| packet.flags == ["SYN", "ACK"]);
    ensure!(accepting.context("no SYN ACK")?.direction == "to_client", "{accepting:?}");
    ensure!(seen.iter().any(|packet| packet.destination.port() == ORDINARY));
    // What the parser refuses is shown too, as far as it can be read.
    let fragment = find("pass/fragment")?;
    ensure!(fragment.protocol == "udp" && fragment.source.port() == 0, "{fragment:?}");
    loaded.unload()
}

/// The same of a client of IPv6.
#[test]
fn it_shows_ipv6_addresses() -> anyhow::Result<()> {
    if !privileged("it_shows_ipv6_addresses") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 2)?;
    let mut config = topology.config(PORT, millrace_relay::codec::Framing::Lines);
    let prefix = Topology::SERVER_NETWORK_IPV6.parse().map_err(anyhow::Error::msg)?;
    config.services[0].destinations = vec![prefix];
    let loaded = topology.load(&config)?;
    let mut relay = FakeRelay::start_at(&config, (Ipv6Addr::UNSPECIFIED, PORT).into())?;
    let (watched, server) = (Topology::client_address_ipv6(0), Topology::server_address_ipv6(0));

    let (client, seen, _) =
        during((&topology.gateway, &config), options(watched.into()), |shows| {
            let mut watched_end = None;
            for host in &topology.clients {
                let mut client = connect(host, server, PORT)?;
                let mut accepted = relay.accept()?;
                watched_end = watched_end.or(Some(accepted.client));
                transfer(&mut client, accepted.stream(), 100)?;
                transfer(accepted.stream(), &mut client, 100)?;
            }
            shows("return/forwarded")?;
            shows("divert/established")?;
            watched_end.context("no client")
        })?;
    for packet in &seen {
        let (own, other) = if packet.direction == "from_client" {
            (packet.source, packet.destination)
        } else {
            (packet.destination, packet.source)
        };
        ensure!(own.ip() == IpAddr::from(watched), "not the client's: {packet:?}");
        if packet.protocol == "tcp" {
            ensure!((own, other) == (client, (server, PORT).into()), "{packet:?}");
        }
    }
    ensure!(seen.iter().any(|packet| packet.verdict == "divert/new"), "{seen:#?}");
    loaded.unload()
}

/// Of two thousand packets a second.
#[test]
fn it_is_limited_and_ends_by_itself() -> anyhow::Result<()> {
    if !privileged("it_is_limited_and_ends_by_itself") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let config = &loaded.config;
    let (client, server) = (&topology.clients[0], &topology.servers[0]);
    let traffic = Datagrams::start(client, server, Topology::server_address(0), 9000)?;
    let object = ObjectFile::read(&bpf_object()?)?;
    let trace = |options: TraceOptions| {
        let start = Instant::now();
        let summary =
            gateway::trace_by(config, &object, &options, &mut |_| {}, &|| false, &mut |_| Ok(()))?;
        ensure!(is_usual(config)?, "the usual programs are not back");
        anyhow::Ok((summary, start.elapsed()))
    };
    let usual = options(Topology::client_address(0).into());
    let (summary, _) = trace(TraceOptions { count: Some(50), ..usual })?;
    ensure!(summary.end == TraceEnd::Complete && summary.shown == 50, "{summary:?}");

    let duration = Duration::from_millis(1500);
    let limited = TraceOptions { per_second: 10, duration: Some(duration), ..usual };
    let (summary, elapsed) = trace(limited)?;
    let seconds = u64::try_from(elapsed.as_millis())? / 1000 + 2;
    let most = 10 * seconds * std::thread::available_parallelism()?.get() as u64;
    ensure!(summary.end == TraceEnd::Complete && elapsed >= duration, "{elapsed:?} {summary:?}");
    ensure!((1..=most).contains(&summary.shown), "{elapsed:?} {summary:?}");
    ensure!(summary.withheld > 100 && summary.lost == 0, "{summary:?}");
    let (sent, returned) = traffic.finish()?;
    ensure!(sent == returned, "tracing has lost {} of {sent} packets", sent - returned);
    loaded.unload()
}

#[test]
fn nothing_of_it_is_in_the_usual_programs() -> anyhow::Result<()> {
    if !privileged("nothing_of_it_is_in_the_usual_programs") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let maps_of = |info: ProgramInfo| {
        let ids = info.map_ids()?.context("the kernel does not say which maps")?;
        let names = ids.into_iter().map(|id| {
            anyhow::Ok(MapInfo::from_id(id)?.name_as_str().context("no name")?.to_owned())
        });
        names.collect::<anyhow::Result<Vec<_>>>()
    };
    let of_trace = ["AYA_LOGS", "TRACE", ".rodata"];
    for name in ["ingress", "egress"] {
        let pin = loaded.config.pin_directory().join(format!("prog_{name}"));
        let maps = maps_of(ProgramInfo::from_pin(pin)?)?;
        ensure!(maps.contains(&"COUNTERS".to_owned()), "{maps:?}");
        ensure!(!maps.iter().any(|map| of_trace.contains(&map.as_str())), "{name}: {maps:?}");
    }
    // The same question finds them in a traced one.
    during(
        (&topology.gateway, &loaded.config),
        options(Topology::client_address(0).into()),
        |_| {
            let status = topology.gateway.run(|| gateway::status(&loaded.config))??;
            let id = status.devices[0].program_id.context("no program")?;
            let info = aya::programs::loaded_programs()
                .filter_map(Result::ok)
                .find(|info| info.id() == id)
                .context("no such program")?;
            let maps = maps_of(info)?;
            ensure!(maps.contains(&"AYA_LOGS".to_owned()) && maps.contains(&"TRACE".to_owned()));
            Ok(())
        },
    )?;
    loaded.unload()
}

#[test]
fn one_trace_at_a_time_and_unload_ends_it() -> anyhow::Result<()> {
    if !privileged("one_trace_at_a_time_and_unload_ends_it") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, _topology) = loaded()?;
    let config = loaded.config.clone();
    let options = options(Topology::client_address(0).into());
    let object = ObjectFile::read(&bpf_object()?)?;
    let summary = std::thread::scope(|scope| {
        let trace = |ended: fn() -> bool| {
            gateway::trace_by(&config, &object, &options, &mut |_| {}, &ended, &mut |_| Ok(()))
        };
        let tracer = scope.spawn(move || trace(|| false));
        let beside = until_traced(&config, &tracer).and_then(|()| {
            let second = trace(|| true);
            ensure!(matches!(second, Err(GatewayError::AlreadyTraced { .. })), "{second:?}");
            ensure!(is_traced(&config)?, "the second has disturbed the first");
            Ok(())
        });
        // This ends the first, whatever became of the second.
        loaded.unload()?;
        let summary = tracer.join().expect("the tracer")?;
        beside.map(|()| summary)
    })?;
    ensure!(summary.end == TraceEnd::Replaced, "{summary:?}");
    ensure!(!config.run_directory().exists() && !config.pin_directory().exists());
    Ok(())
}

/// The relay attaches what the link of the device had; the trace does not end, nor does it leave anything.
#[test]
fn a_device_that_comes_back_is_traced_on_and_has_the_usual_program_in_the_end() -> anyhow::Result<()>
{
    if !privileged("a_device_that_comes_back_is_traced_on_and_has_the_usual_program_in_the_end") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let config = &loaded.config;
    let mut relay = FakeRelay::start(config, PORT)?;
    let news = relay.watch.news();
    let gone = || wait_until(PATIENCE, "the loss", || Ok(!news.now().detached.is_empty()));
    let back = || {
        wait_until(PATIENCE, "the device to be attached again", || {
            let status = topology.gateway.run(|| gateway::status(config))??;
            Ok(status.devices[0].known_address.is_some() && news.now().detached.is_empty())
        })
    };
    let traced = options(Topology::client_address(0).into());
    let ((), seen, summary) = during((&topology.gateway, config), traced, |shows| {
        topology.remove_client_device()?;
        gone()?;
        topology.restore_client_device()?;
        back()?;
        ensure!(is_traced(config)?, "the traced program is not back");
        let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
        let mut accepted = relay.accept()?;
        transfer(&mut client, accepted.stream(), 100)?;
        shows("divert/established")
    })?;
    ensure!(summary.end == TraceEnd::Stopped, "{summary:?}");
    ensure!(is_usual(config)?, "the usual programs are not back");
    let syn = seen.iter().find(|packet| packet.verdict == "divert/new").context("no SYN")?;
    ensure!(syn.device == "eth1", "{syn:?}");

    // Before, the trace put nothing back anywhere, and failed.
    during((&topology.gateway, config), traced, |_| {
        topology.remove_client_device()?;
        gone()
    })?;
    let status = topology.gateway.run(|| gateway::status(config))??;
    ensure!(status.devices[0].program_id.is_none(), "the link that is dead is still there");
    topology.restore_client_device()?;
    back()?;
    ensure!(is_usual(config)?, "the usual program is not on the device");
    let mut client = connect(&topology.clients[0], Topology::server_address(0), PORT)?;
    transfer(&mut client, relay.accept()?.stream(), 100)?;
    loaded.unload()
}

/// The command, as an operator runs it.
struct Cli {
    config: PathBuf,
}

impl Cli {
    fn new(loaded: &Loaded) -> anyhow::Result<Self> {
        let name = format!("millrace-trace-{}.toml", std::process::id());
        let config = std::env::temp_dir().join(name);
        std::fs::write(&config, toml::to_string(&loaded.config)?)?;
        Ok(Self { config })
    }

    fn command(&self, topology: &Topology, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = topology.gateway.command(&paths::relay()?.display().to_string());
        command.args(arguments).arg("--config").arg(&self.config);
        command.env(VARIABLE, bpf_object()?);
        Ok(command)
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.config);
    }
}

#[test]
fn signals_end_it_in_good_order_and_a_killed_one_is_put_right() -> anyhow::Result<()> {
    if !privileged("signals_end_it_in_good_order_and_a_killed_one_is_put_right") {
        return Ok(());
    }
    let _shared = shared();
    let (loaded, topology) = loaded()?;
    let config = &loaded.config;
    let cli = Cli::new(&loaded)?;
    let client = Topology::client_address(0).to_string();
    let start = || {
        let mut command = cli.command(&topology, &["trace", &client, "--json"])?;
        let tracer = Process::spawn("relay trace", &mut command)?;
        wait_until(PATIENCE, "the traced programs", || is_traced(config))?;
        anyhow::Ok(tracer)
    };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let tracer = start()?;
        datagram(&topology.clients[0], 100)?;
        let line = tracer.wait_line("{", PATIENCE)?;
        ensure!(line.contains("\"protocol\":\"udp\""), "{line}");
        tracer.signal(signal)?;
        let finished = tracer.wait(PATIENCE)?;
        ensure!(finished.status.success(), "{}", finished.stderr);
        let last = finished.stdout.lines().next_back().context("it said nothing")?;
        let summary: serde_json::Value = serde_json::from_str(last)?;
        ensure!(summary["summary"]["end"] == "stopped", "{summary}");
        ensure!(summary["summary"]["shown"] == 1, "{summary}");
        ensure!(is_usual(config)?, "{signal:?}: the usual programs are not back");
    }

    let tracer = start()?;
    tracer.signal(Signal::KILL)?;
    tracer.wait(PATIENCE)?;
    ensure!(is_traced(config)?, "a killed tracer cannot have cleaned up");
    let status = run_ok("status", &mut cli.command(&topology, &["status"])?, PATIENCE)?;
    ensure!(status.stdout.contains("REPLACED   eth1 runs `ingress_traced`"), "{}", status.stdout);
    ensure!(status.stdout.contains("fix it with `relay load --replace`"));
    // Traffic goes on meanwhile, and the next trace and its end put things right, as --replace does.
    diverts(&topology, config, 100_000)?;
    run_ok("load", &mut cli.command(&topology, &["load", "--replace"])?, PATIENCE)?;
    ensure!(is_usual(config)?, "--replace has not put it right");

    let tracer = start()?;
    tracer.signal(Signal::KILL)?;
    tracer.wait(PATIENCE)?;
    let mut command = cli.command(&topology, &["trace", &client, "--seconds", "1"])?;
    run_ok("relay trace", &mut command, PATIENCE)?;
    ensure!(is_usual(config)?, "the next trace has not put it right");
    loaded.unload()
}
