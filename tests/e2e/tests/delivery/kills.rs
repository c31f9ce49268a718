//! `kill -9` of a server, of a relay, of the coordinator and of Kafka, in turn, while clients talk.
//!
//! `MILLRACE_SEED` repeats a run, `MILLRACE_ROUNDS` says how many kills there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use millrace_harness::clients::persistent::{Persistent, Seen};
use millrace_harness::dice::Dice;
use millrace_harness::kafka::OwnBroker;
use millrace_harness::relay::fleet::Fleet;
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::{Record, all_records};
use millrace_harness::system::process::{Process, run, wait_until};
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(1);
const RELAYS: u16 = 2;
const SERVERS: u16 = 2;
const PARTITIONS: u16 = 4;
const CLIENTS: usize = 8;
/// Every client gets so many echoes before the next kill.
const ECHOES: u64 = 20;
const ROUNDS: u32 = 20;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Server,
    Relay,
    Coordinator,
    Kafka,
}

/// Dropped in this order: each needs what comes after it.
struct Scene {
    servers: Vec<Process>,
    fleet: Fleet,
    broker: OwnBroker,
}

impl Scene {
    fn new() -> Result<Self> {
        let directory: PathBuf =
            std::env::temp_dir().join(format!("millrace-kills-{}", std::process::id()));
        let broker = OwnBroker::start(&directory)?;
        let fleet = Fleet::at(broker.address(), "kills", (RELAYS, 0), |config| {
            config.relay.workers = 1;
            config.kafka.uplink_partitions = PARTITIONS;
            config.registry.lease_ms = 3000;
            config.registry.session_timeout_ms = 6000;
        })?;
        let mut scene = Self { servers: Vec::new(), fleet, broker };
        for relay in 0..usize::from(RELAYS) {
            scene.fleet.start(relay)?;
        }
        for number in 0..SERVERS {
            let server = scene.server(number)?;
            scene.servers.push(server);
        }
        Ok(scene)
    }

    /// A server that registers, once it has its lease.
    fn server(&self, number: u16) -> Result<Process> {
        let address = format!("192.0.2.{}", number + 1);
        self.fleet.lease(&format!("server-{number}"), &address, &[])
    }

    /// Which relay coordinates, as that relay itself says.
    fn coordinator(&self) -> Result<usize> {
        let mut found = None;
        wait_until(PATIENCE, "a coordinator", || {
            found = (0..self.fleet.relays.len()).find(|index| {
                let stats = self.fleet.relays[*index].stats();
                let names = |stats: Value| stats["registry"]["coordinator"]["relay"].as_u64();
                stats.is_ok_and(|stats| names(stats.0) == Some(*index as u64))
            });
            Ok(found.is_some())
        })?;
        found.context("just found")
    }

    /// Kills one, and brings it back.
    fn kill(&mut self, victim: Victim, dice: &mut Dice) -> Result<()> {
        match victim {
            Victim::Server => {
                let number = dice.below(usize::from(SERVERS));
                let server = self.servers.remove(number);
                server.signal(Signal::KILL)?;
                server.wait(PATIENCE)?;
                let again = self.server(u16::try_from(number)?)?;
                self.servers.insert(number, again);
            }
            Victim::Relay => {
                let number = dice.below(usize::from(RELAYS));
                self.fleet.relays[number].kill()?;
                self.fleet.start(number)?;
            }
            Victim::Coordinator => {
                let former = self.coordinator()?;
                self.fleet.relays[former].kill()?;
                let next = self.coordinator()?;
                ensure!(next != former, "a dead relay coordinates");
                self.fleet.start(former)?;
            }
            Victim::Kafka => {
                self.broker.signal(Signal::KILL)?;
                self.broker.restart()?;
            }
        }
        Ok(())
    }

    /// For whoever looks for what went wrong: what the relays know of the registry, and what they have said.
    fn state(&self) -> String {
        let of = |relay: &Instance| {
            let registry = relay.stats().map(|stats| stats.0["registry"].to_string());
            let registry = registry.unwrap_or_else(|error| format!("{error:#}"));
            format!("registry: {registry}\n{}", relay.relay_stderr())
        };
        self.fleet.relays.iter().map(of).collect::<Vec<_>>().join("\n")
    }

    /// What `relay ledger` says of a relay.
    fn ledger(&self, relay: usize) -> Result<Value> {
        let mut command = self.fleet.relays[relay].command("ledger", false);
        let finished = run("relay ledger", command.arg("--json"), PATIENCE)?;
        serde_json::from_str(finished.stdout.trim()).with_context(|| finished.stderr.clone())
    }
}

/// The value of an environment variable, or something else.
fn setting<T: std::str::FromStr>(name: &str, otherwise: impl FnOnce() -> T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(otherwise()),
    }
}

#[test]
fn nothing_acknowledged_is_lost_whoever_is_killed() -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed: u64 = setting("MILLRACE_SEED", || now)?;
    let rounds: u32 = setting("MILLRACE_ROUNDS", || ROUNDS)?;
    println!("MILLRACE_SEED={seed} repeats this run");
    let mut dice = Dice::new(seed);
    let mut scene = Scene::new()?;
    let addresses: Vec<_> = (0..usize::from(RELAYS)).map(|r| scene.fleet.address(r)).collect();
    let clients = Persistent::start(CLIENTS, &addresses);
    clients.wait_for_echoes(&[0; CLIENTS], ECHOES)?;

    let mut recoveries: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    let victims = [Victim::Server, Victim::Relay, Victim::Coordinator, Victim::Kafka];
    for round in 0..rounds as usize {
        let victim = victims[round % victims.len()];
        let killed = Instant::now();
        scene
            .kill(victim, &mut dice)
            .with_context(|| format!("round {round}: {victim:?}\n{}", scene.state()))?;
        clients.wait_for_echoes(&clients.echoes(), ECHOES).with_context(|| {
            format!("round {round}: after the kill of {victim:?}\n{}", scene.state())
        })?;
        recoveries.entry(format!("{victim:?}")).or_default().push(killed.elapsed());
    }
    let connects = clients.connects();
    let all_seen = clients.stop()?;
    let records = all_records(scene.broker.address(), scene.fleet.prefix(), PARTITIONS)?;
    check(&records, &all_seen)?;
    let (echoed, repeated): (usize, u64) = all_seen
        .iter()
        .fold((0, 0), |sum, seen| (sum.0 + seen.echoed.len(), sum.1 + seen.repeated));
    println!(
        "{rounds} kills: {echoed} lines echoed, {repeated} of them more than once, {} unanswered, \
         {connects} connections, {} records; from kill to recovery {recoveries:.1?}",
        all_seen.iter().map(|seen| seen.unanswered.len()).sum::<usize>(),
        records.len(),
    );
    for relay in 0..usize::from(RELAYS) {
        let ledger = scene.ledger(relay)?;
        ensure!(ledger["balanced"] == true, "the ledger of relay {relay}: {ledger:#}");
    }
    Ok(())
}

/// What was echoed is in the partition of the server that it was for, once; the messages of each
/// connection are there in order.
fn check(records: &[Record], seen: &[Seen]) -> Result<()> {
    let mut lines: HashMap<&[u8], u32> = HashMap::new();
    let mut last: HashMap<&str, u64> = HashMap::new();
    let mut readers: BTreeMap<(u16, &str), BTreeSet<&str>> = BTreeMap::new();
    for record in records {
        let reader = (record.partition, record.header("epoch"));
        readers.entry(reader).or_default().insert(record.header("server"));
        if record.kind() != "message" {
            continue;
        }
        *lines.entry(&record.value).or_default() += 1;
        let sequence: u64 = record.header("sequence").parse()?;
        let before = last.insert(&record.key, sequence).unwrap_or_default();
        ensure!(sequence == before + 1, "{sequence} follows {before} on {}", record.key);
    }
    for (reader, servers) in readers {
        ensure!(servers.len() == 1, "one lease of {servers:?}: {reader:?}");
    }
    for line in seen.iter().flat_map(|seen| &seen.echoed) {
        let times = lines.get(line.as_bytes()).copied().unwrap_or_default();
        ensure!(times == 1, "`{line}` was echoed, and is in the uplink {times} times");
    }
    for line in seen.iter().flat_map(|seen| &seen.unanswered) {
        let times = lines.get(line.as_bytes()).copied().unwrap_or_default();
        ensure!(times <= 1, "`{line}` was sent once, and is in the uplink {times} times");
    }
    Ok(())
}
