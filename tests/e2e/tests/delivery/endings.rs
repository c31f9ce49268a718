//! A relay ends in good order and in its time, whatever is the matter; and goes on when what it only talks
//! to has gone.

use std::io::{Read as _, Write as _, pipe};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_harness::clients::web::speak_http;
use millrace_harness::kafka::OwnBroker;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::privilege;
use millrace_harness::system::process::{Finished, Process, wait_until};
use millrace_relay::config::Config;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(30);

/// What runs the relay, from a shell that does something before.
fn command(direct: &Direct, before: &str) -> Command {
    let relay = direct.instance.command("run", false);
    let mut command = Command::new("env");
    // The tests themselves may have been started with `nohup`.
    command.args(["--default-signal=HUP", "sh", "-c", &format!("{before}; exec \"$@\""), "sh"]);
    command.arg(relay.get_program()).args(relay.get_args()).args(["--no-gateway", "127.0.0.1"]);
    command
}

fn started(direct: &Direct, before: &str) -> Process {
    let relay = Process::spawn("relay run", &mut command(direct, before)).unwrap();
    relay.wait_line("relay ready:", PATIENCE).unwrap();
    relay
}

fn told_to_stop(relay: Process, signal: Signal) -> Finished {
    relay.signal(signal).unwrap();
    let finished = relay.wait(PATIENCE).unwrap();
    assert!(finished.status.success(), "{finished:?}");
    finished
}

/// A message goes through it.
fn serves(direct: &Direct) {
    let server = HandServer::on(&direct.brokers, direct.topics.prefix(), &[0]).unwrap();
    direct.connect().unwrap().send(b"still there").unwrap();
    server.next("a message", |record| record.value == b"still there").unwrap();
}

/// A relay whose outputs are ours; dropping it kills it.
struct Mute(Child);

impl Mute {
    fn wait(&mut self) -> Result<ExitStatus> {
        let mut ended = None;
        wait_until(PATIENCE, "the relay to end", || {
            ended = self.0.try_wait()?;
            Ok(ended.is_some())
        })?;
        ended.context("just seen")
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_reader_of_the_log_that_goes_away_or_stands_still_costs_lines_and_nothing_else() {
    for stands_still in [false, true] {
        let direct = Direct::build("mute", |config| config.relay.stop_timeout_ms = 10_000).unwrap();
        let (reader, mut errors) = pipe().unwrap();
        let (answers, output) = pipe().unwrap();
        let kept = if stands_still {
            // As many bytes as a pipe takes (pipe(7)): the next one waits for ever.
            errors.write_all(&vec![b'\n'; 65_536]).unwrap();
            Some(reader)
        } else {
            drop(reader);
            None
        };
        drop(answers);
        let mut command = command(&direct, ":");
        command.env("RUST_LOG", "debug").stderr(errors).stdout(output);
        let mut relay = Mute(command.spawn().unwrap());
        drop(command);
        wait_until(PATIENCE, "the relay to answer", || Ok(direct.instance.stats().is_ok()))
            .unwrap();
        if !stands_still {
            wait_until(PATIENCE, "lines to be lost", || {
                Ok(direct.instance.stats()?.count("log_lines_lost")? > 0)
            })
            .unwrap();
        }
        serves(&direct);
        kill_process(Pid::from_child(&relay.0), Signal::TERM).unwrap();
        let status = relay.wait().unwrap();
        assert!(status.success(), "stands still {stands_still}: {status}");
        drop(kept);
    }
}

#[test]
fn a_command_whose_reader_has_gone_keeps_its_exit_code() {
    let direct = Direct::build("unread", |_| {}).unwrap();
    let run = |arguments: &[&str]| {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut command = Command::new(direct.instance.program());
        command.args(arguments).stderr(writer.try_clone().unwrap()).stdout(writer);
        command.status().unwrap().code()
    };
    let config = direct.instance.config_file();
    assert_eq!(run(&["check", "--config", config.to_str().unwrap()]), Some(0));
    assert_eq!(run(&["check", "--config", "/nonexistent"]), Some(1));
}

#[test]
fn a_closed_terminal_stops_nothing() {
    let direct = Direct::build("terminal", |_| {}).unwrap();
    // As `nohup` starts it, nothing is reloaded either.
    for (begins, reloads) in [(":", true), ("trap '' HUP", false)] {
        let relay = started(&direct, begins);
        relay.signal(Signal::HUP).unwrap();
        if reloads {
            let says = || Ok(relay.stderr().contains("the configuration was reloaded"));
            wait_until(PATIENCE, "the relay to have reloaded", says).unwrap();
        }
        let finished = told_to_stop(relay, Signal::TERM);
        assert!(finished.stdout.contains("{\"stopped\":"), "{finished:?}");
        assert!(finished.stderr.contains("SIGTERM"), "{finished:?}");
        assert_eq!(finished.stderr.contains("reloaded"), reloads, "{finished:?}");
    }
}

#[test]
fn a_stop_during_the_start_is_one_at_once() {
    let direct = Direct::build("early", |config| {
        // Nobody listens there, and it is waited for.
        config.kafka.brokers = "127.0.0.1:1".to_owned();
    })
    .unwrap();
    let relay = Process::spawn("relay run", &mut command(&direct, ":")).unwrap();
    let status = format!("/proc/{}/status", relay.id());
    wait_until(PATIENCE, "the relay to watch for signals", || {
        let status = std::fs::read_to_string(&status)?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.context("no SigCgt")?.trim(), 16)?;
        Ok(caught >> (Signal::TERM.as_raw() - 1) & 1 == 1)
    })
    .unwrap();
    let begun = Instant::now();
    let finished = told_to_stop(relay, Signal::TERM);
    assert!(finished.stderr.contains("has served no client"), "{finished:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn files_may_run_out_for_a_while() {
    let direct = Direct::build("files", |_| {}).unwrap();
    let relay = started(&direct, "ulimit -Sn 200");
    let id = Pid::from_raw(relay.id().cast_signed());
    let hard = getrlimit(Resource::Nofile).maximum;
    let raised = prlimit(id, Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    assert_eq!(raised.current, hard, "it was raised at the start");
    // The descriptors below it are open since the start.
    prlimit(id, Resource::Nofile, Rlimit { current: Some(5), maximum: hard }).unwrap();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| direct.instance.stats());
        wait_until(PATIENCE, "the relay to say that it takes nobody", || {
            Ok(relay.stderr().contains("the control socket cannot accept connections now"))
        })
        .unwrap();
        prlimit(id, Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
        asked.join().unwrap().unwrap();
    });
    serves(&direct);
    told_to_stop(relay, Signal::TERM);
}

#[test]
fn too_few_files_are_said_at_the_start() {
    let direct = Direct::build("few", |_| {}).unwrap();
    let relay = started(&direct, "ulimit -n 300");
    serves(&direct);
    let finished = told_to_stop(relay, Signal::TERM);
    assert!(finished.stderr.contains("too few files may be open"), "{finished:?}");
    // Half of the files, less those for connections that are on their way when a worker is full.
    assert!(finished.stderr.contains("each accepts only 134"), "{finished:?}");
}

/// A connection to the relay of a client that takes next to nothing.
fn slow_client(to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// A relay that has sent all of a response to a client that does not read it, and waits for that.
fn flushing(name: &str, adjust: impl FnOnce(&mut Config)) -> (Direct, TcpStream) {
    const PARTS: usize = 24;
    let part = vec![b'p'; 256 << 10];
    let mut direct = Direct::build(name, |config| {
        speak_http(&mut config.services[0]);
        config.relay.reply_limit_bytes = 8 << 20;
        adjust(config);
    })
    .unwrap();
    direct.instance.start().unwrap();
    let server = HandServer::on(&direct.brokers, direct.topics.prefix(), &[0]).unwrap();
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, direct.instance.config.services[0].port.first));
    let mut slow = slow_client(at);
    slow.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let request = server.next("the request", |record| record.kind() == "message").unwrap();
    for number in 0..PARTS {
        server.reply_part(&request, (number, PARTS), &part).unwrap();
    }
    wait_until(PATIENCE, "the response to be in memory", || {
        let stats = direct.instance.stats()?;
        Ok(stats.count("replies_received")? == PARTS as u64
            && stats.count("connection_bytes")? > part.len() as u64)
    })
    .unwrap();
    (direct, slow)
}

#[test]
fn who_was_given_a_minute_to_read_has_no_more_than_others_at_a_stop() {
    let (mut direct, slow) = flushing("flushing", |_| {});
    let begun = Instant::now();
    direct.instance.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(slow);
}

#[test]
fn connections_end_with_the_time_of_the_stop() {
    let (mut direct, mut slow) = flushing("late", |config| {
        config.relay.half_close_ms = 120_000;
        config.relay.stop_timeout_ms = 3000;
    });
    let begun = Instant::now();
    direct.instance.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let _ = slow.read_to_end(&mut Vec::new());
}

#[test]
fn a_stop_without_a_broker_ends_in_its_time_and_the_log_stays_readable() {
    const STOP_MS: u32 = 5000;
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let directory = std::env::temp_dir().join(format!("millrace-endings-{}", std::process::id()));
    let broker = OwnBroker::start(&directory).unwrap();
    // It stands still, stops in good order, is killed.
    for signal in [Signal::STOP, Signal::TERM, Signal::KILL] {
        let direct = Direct::build("outage", |config| {
            broker.address().clone_into(&mut config.kafka.brokers);
            config.relay.stop_timeout_ms = STOP_MS;
        })
        .unwrap();
        let relay = started(&direct, ":");
        let mut client = direct.connect().unwrap();
        let received = |count| Ok(direct.instance.stats()?.count("messages_received")? == count);
        client.send(b"before").unwrap();
        // A broker that stood still has to come back to its controller first.
        wait_until(4 * PATIENCE, "a message to be acknowledged", || {
            Ok(direct.instance.stats()?.count("messages_acknowledged")? == 1)
        })
        .unwrap();
        match signal {
            Signal::TERM => broker.stop().unwrap(),
            _ => broker.signal(signal).unwrap(),
        }
        client.send(b"after").unwrap();
        wait_until(PATIENCE, "a message to be read", || received(2)).unwrap();
        if signal != Signal::STOP {
            let used = || {
                let (user, system) = direct.instance.stats().unwrap().cpu_us().unwrap();
                Duration::from_micros(user + system)
            };
            let (begun, before) = (Instant::now(), relay.stderr().lines().count());
            let used_before = used();
            wait_until(PATIENCE, "ten seconds", || Ok(begun.elapsed() >= Duration::from_secs(10)))
                .unwrap();
            let busy =
                used().saturating_sub(used_before).as_secs_f64() / begun.elapsed().as_secs_f64();
            assert!(busy < 0.2, "who only waits for a broker takes {busy:.2} of a processor");
            let more = relay.stderr().lines().count() - before;
            assert!(more < 60, "{more} lines in ten seconds:\n{}", relay.stderr());
        }
        let begun = Instant::now();
        relay.signal(Signal::TERM).unwrap();
        let finished = relay.wait(PATIENCE).unwrap();
        let (took, most) = (begun.elapsed(), Duration::from_millis(STOP_MS.into()));
        assert!(took < most + Duration::from_secs(2), "{took:?}: {finished:?}");
        assert!(finished.status.success(), "{signal:?} {took:?}: {finished:?}");
        let last = finished.stdout.lines().next_back().unwrap_or_default();
        assert!(last.contains("\"unacknowledged_at_stop\":1"), "{last}");
        match signal {
            Signal::STOP => broker.signal(Signal::CONT).unwrap(),
            Signal::TERM => broker.restart().unwrap(),
            _ => {}
        }
    }
}
