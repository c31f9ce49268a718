//! A broker that hangs, and one that is killed and comes back, in the middle of a run.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use millrace_harness::clients::wire::frames;
use millrace_harness::kafka::{self, OwnBroker};
use millrace_harness::relay::cluster::{Cluster, ClusterPlan};
use millrace_harness::relay::direct::Direct;
use millrace_harness::relay::judged_run::{Outcome, RunPlan, Snapshot, run};
use millrace_harness::system::privilege;
use millrace_harness::system::process::{run as run_command, wait_until};
use millrace_relay::config::UplinkEngine;
use rustix::process::Signal;
use socket2::SockRef;

/// Much more than sockets and the relay can hold between them.
const PLAN: fn() -> RunPlan =
    || RunPlan { clients: 4, messages: 120_000, size: 1000, window: u32::MAX, wire: frames() };
const DISTURB_AT: u64 = 10_000;

fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("millrace-broker-{name}-{}", std::process::id()))
}

fn build(name: &str, broker: &OwnBroker) -> Cluster {
    build_with(name, broker, kafka::section("", "").engine)
}

fn build_with(name: &str, broker: &OwnBroker, engine: UplinkEngine) -> Cluster {
    let plan = ClusterPlan { brokers: broker.address().to_owned(), ..ClusterPlan::small(name, 2) };
    let mut cluster = Cluster::build_with(plan, |config| {
        config.kafka.engine = engine;
        config.kafka.partition_in_flight_bytes = 1 << 20;
    })
    .unwrap();
    cluster.start().unwrap();
    cluster
}

fn assert_whole(outcome: &Outcome) {
    assert!(outcome.is_flawless(), "{outcome:#?}");
    assert_eq!(outcome.disconnected, 0, "{outcome:#?}");
    assert_eq!((outcome.sent, outcome.delivered, outcome.replied), (120_000, 120_000, 120_000));
}

#[test]
fn a_broker_that_hangs_for_20_seconds_slows_the_clients_and_loses_nothing() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let broker = OwnBroker::start(&directory("hang")).unwrap();
    let mut cluster = build("hang", &broker);
    let hang = Duration::from_secs(20);
    let mut stopped: Option<(Instant, bool)> = None;
    let mut last = (Instant::now(), 0);
    let mut stalled = Duration::ZERO;
    let mut quiet = None;
    let mut observe = |cluster: &mut Cluster, snapshot: &Snapshot| -> Result<()> {
        let used = |cluster: &Cluster| -> Result<Duration> {
            let (user, system) = cluster.instance.stats()?.cpu_us()?;
            Ok(Duration::from_micros(user + system))
        };
        match stopped {
            None if snapshot.delivered >= DISTURB_AT => {
                broker.signal(Signal::STOP)?;
                stopped = Some((Instant::now(), true));
            }
            Some((since, true)) => {
                if snapshot.sent != last.1 {
                    last = (Instant::now(), snapshot.sent);
                }
                stalled = stalled.max(last.0.elapsed());
                if quiet.is_none() && stalled > hang / 4 {
                    quiet = Some((Instant::now(), used(cluster)?));
                }
                if since.elapsed() >= hang {
                    assert!(snapshot.sent < PLAN().messages, "the clients were not slowed");
                    let (quiet_since, before) = quiet.expect("the clients stood still");
                    let busy = used(cluster)?.saturating_sub(before).as_secs_f64()
                        / quiet_since.elapsed().as_secs_f64();
                    assert!(busy < 0.2, "who only waits takes {busy:.2} of a processor");
                    broker.signal(Signal::CONT)?;
                    stopped = Some((since, false));
                }
            }
            _ => {}
        }
        Ok(())
    };
    let outcome = run(&mut cluster, &PLAN(), &mut observe).unwrap();
    assert!(matches!(stopped, Some((_, false))), "the broker was not stopped in mid-run");
    assert!(stalled > hang / 2, "the clients stood still for {stalled:?} only");
    assert_whole(&outcome);
}

#[test]
fn a_broker_that_is_killed_and_restarted_loses_nothing() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let broker = OwnBroker::start(&directory("kill")).unwrap();
    for engine in [UplinkEngine::Librdkafka, UplinkEngine::Millrace] {
        let mut cluster = build_with("kill", &broker, engine);
        let mut killed = false;
        let mut observe = |_: &mut Cluster, snapshot: &Snapshot| -> Result<()> {
            if !killed && snapshot.delivered >= DISTURB_AT {
                broker.signal(Signal::KILL)?;
                broker.restart()?;
                killed = true;
            }
            Ok(())
        };
        let outcome = run(&mut cluster, &PLAN(), &mut observe).unwrap();
        assert!(killed, "the broker was not killed in mid-run");
        assert_whole(&outcome);
    }
}

/// Clients that leave while the relay does not read from them: some of them at once, with what they have
/// sent counted, and the others as soon as that can be.
#[test]
fn who_leaves_while_the_broker_hangs_does_not_stay_as_a_connection() {
    const EACH: usize = 30;
    const LEAST: u64 = 90;
    const PATIENCE: Duration = Duration::from_mins(1);
    let broker = OwnBroker::start(&directory("leave")).unwrap();
    let mut relay = Direct::at(broker.address(), "leave", |config| {
        config.kafka.partition_in_flight_bytes = 64 << 10;
        config.relay.half_close_ms = 100;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let count = |what: &str| relay.instance.stats().and_then(|stats| stats.count(what)).unwrap();
    let wait = |what: &str, expected: u64| {
        let waited = wait_until(PATIENCE, what, || Ok(count(what) == expected));
        assert!(waited.is_ok(), "{what}: {} instead of {expected}", count(what));
    };
    let connect = || TcpStream::connect(relay.target()).unwrap();
    let mut busy = connect();
    let mut clients: Vec<TcpStream> = (0..3 * EACH).map(|_| connect()).collect();
    wait("connections", 1 + 3 * EACH as u64);
    broker.signal(Signal::STOP).unwrap();
    let message = frames().framed(&[b'x'; 250]);
    busy.write_all(&message.repeat(300)).unwrap();
    wait_until(PATIENCE, "the bound", || Ok(count("messages_received") >= LEAST)).unwrap();
    let before = count("messages_received");
    assert!(before < 300, "the bound does not stop anybody");
    for client in &mut clients {
        client.write_all(&message).unwrap();
    }
    wait("messages_received", before + 3 * EACH as u64);
    // From now on nobody is read from.
    let ended = clients.split_off(2 * EACH);
    for client in &mut clients {
        client.write_all(&message).unwrap();
    }
    let with_rest = clients.split_off(EACH);
    for client in clients {
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    }
    drop((ended, with_rest));
    wait("connections", 1 + EACH as u64);
    assert_eq!(count("messages_received"), before + 4 * EACH as u64, "of those who have reset");
    broker.signal(Signal::CONT).unwrap();
    wait("connections", 1);
    wait("messages_acknowledged", 300 + 5 * EACH as u64);
    relay.instance.stop().unwrap();
}

#[test]
fn that_a_broker_acknowledges_nothing_is_told_and_that_it_does_again() {
    const PATIENCE: Duration = Duration::from_mins(1);
    let broker = OwnBroker::start(&directory("silent")).unwrap();
    let mut relay = Direct::at(broker.address(), "silent", |_| {}).unwrap();
    relay.instance.start().unwrap();
    let mut client = relay.connect().unwrap();
    client.send(b"before").unwrap();
    let count = |what: &str| relay.instance.stats().and_then(|stats| stats.count(what));
    let acknowledged = |messages| move |count: u64| count == messages;
    let wait = |what: &str, holds: &dyn Fn(u64) -> bool| {
        wait_until(PATIENCE, what, || Ok(holds(count(what)?))).unwrap();
    };
    wait("messages_acknowledged", &acknowledged(1));
    wait("kafka_silent_ms", &|ms| ms == 0);

    broker.signal(Signal::STOP).unwrap();
    client.send(b"meanwhile").unwrap();
    wait("kafka_silent_ms", &|ms| ms >= 1000);
    assert_eq!(count("records_waiting").unwrap(), 1);
    let mut command = relay.instance.command("status", false);
    let status = run_command("relay status", &mut command, PATIENCE).unwrap().stdout;
    assert!(status.contains("WARNING: Kafka has acknowledged nothing for "), "{status}");
    let says = |what: &str| {
        wait_until(PATIENCE, what, || Ok(relay.instance.relay_stderr().contains(what))).unwrap();
    };
    says("Kafka has acknowledged nothing for 10 s (1 records wait");
    says("Kafka has acknowledged nothing for 20 s (1 records wait");

    broker.signal(Signal::CONT).unwrap();
    says("Kafka acknowledges records again, after ");
    wait("messages_acknowledged", &acknowledged(2));
    wait("kafka_silent_ms", &|ms| ms == 0);
    relay.instance.stop().unwrap();
}
