//! Servers that register, relays that coordinate: with the processes and the Kafka of real life.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::kafka;
use millrace_harness::net::free_port;
use millrace_harness::relay::fleet::{Fleet, SERVICE};
use millrace_harness::system::meter::resident_bytes;
use millrace_harness::system::paths;
use millrace_harness::system::process::{Finished, Process, run, wait_until};
use millrace_relay::config::{Config, Server, Service};
use millrace_relay::model::Partition;
use millrace_relay::registry::record::RelayState;
use millrace_relay::registry::{self, Policy, RegistryStatus, ServerStatus};
use millrace_relay::route::ServerState;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(40);
const LEASE_MS: u32 = 1500;
const SESSION_MS: u32 = 6000;

/// Relays with partitions to lease, and a declared server of another service.
struct Relays(Fleet);

/// How the two example servers are started.
#[derive(Clone, Copy, Debug)]
enum Language {
    Python,
    Rust,
}

fn adjust(config: &mut Config) {
    config.relay.workers = 1;
    config.kafka.uplink_partitions = 3;
    config.registry.lease_ms = LEASE_MS;
    config.registry.relay_timeout_ms = 3000;
    config.registry.session_timeout_ms = SESSION_MS;
    let declared = Server::new("declared", Ipv4Addr::new(192, 0, 2, 1).into(), Partition(0));
    config.services.push(Service {
        destinations: config.services[0].destinations.clone(),
        servers: vec![declared],
        ..Service::new("other", free_port().expect("a free port"), lines().0)
    });
}

impl Relays {
    fn start(name: &str, count: u16) -> Result<Self> {
        let mut fleet = Fleet::new(name, count, 0, adjust)?;
        (0..usize::from(count)).try_for_each(|index| fleet.start(index))?;
        Ok(Self(fleet))
    }

    fn client(&self, index: usize) -> Result<Client> {
        Client::connect(Path::new("/proc/self/ns/net"), self.0.address(index), lines())
    }

    fn server(&self, language: Language, id: &str, last: u8, more: &[&str]) -> Result<Process> {
        let mut command = match language {
            Language::Python => Command::new(paths::python_server()),
            Language::Rust => Command::new(paths::example_server()?),
        };
        let address = format!("192.0.2.{last}");
        command.args([&kafka::brokers(), "lease", self.0.prefix(), "--id", id]);
        command.args(["--service", SERVICE, "--address", &address]).args(more);
        Process::spawn(id, &mut command)
    }

    /// One that has its lease, as the first relay that runs knows.
    fn leased(&self, language: Language, id: &str, last: u8, more: &[&str]) -> Result<Process> {
        let server = self.server(language, id, last, more)?;
        let lease = server.wait_line("lease:", PATIENCE)?;
        let (_, epoch) = lease.rsplit_once(' ').context("no epoch")?;
        let epoch: u64 = epoch.parse()?;
        wait_until(PATIENCE, "the relay to know of the lease", || {
            for index in 0..self.0.relays.len() {
                if let Ok(known) = self.server_status(index, id) {
                    return Ok(known.epoch == epoch && known.state == ServerState::Live);
                }
            }
            Ok(false)
        })?;
        Ok(server)
    }

    /// What a relay says of the registry.
    fn status(&self, index: usize) -> Result<RegistryStatus> {
        self.0.registry(index)
    }

    fn server_status(&self, index: usize, id: &str) -> Result<ServerStatus> {
        let servers = self.status(index)?.servers;
        servers.into_iter().find(|server| server.id == id).with_context(|| format!("no {id}"))
    }

    fn wait_state(&self, index: usize, id: &str, state: ServerState) -> Result<()> {
        wait_until(PATIENCE, &format!("{id} to be {}", state.name()), || {
            Ok(self.server_status(index, id).is_ok_and(|server| server.state == state))
        })
    }

    /// Which relay coordinates, once one does.
    fn coordinator(&self, looker: usize) -> Result<usize> {
        let mut found = None;
        wait_until(PATIENCE, "a coordinator", || {
            found = self.status(looker)?.coordinator;
            Ok(found.is_some())
        })?;
        Ok(usize::from(found.context("just found")?.relay))
    }

    fn write(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let producer: BaseProducer = kafka::client(&kafka::brokers()).create()?;
        let topic = format!("{}registry", self.0.prefix());
        let record = BaseRecord::to(&topic).partition(0).key(key).payload(value);
        producer.send(record).map_err(|(error, _)| error)?;
        Ok(producer.flush(PATIENCE)?)
    }

    fn register_by_hand(&self, id: &str, instance: &str, last: u8) -> Result<()> {
        let value = json!({
            "version": 1, "service": SERVICE, "address": format!("192.0.2.{last}"),
            "instance": instance,
        });
        self.write(format!("server/{id}").as_bytes(), value.to_string().as_bytes())
    }

    fn servers(&self, arguments: &[&str]) -> Result<Finished> {
        run("relay servers", &mut self.0.servers_command(arguments), PATIENCE)
    }
}

fn assert_ended(server: Process, success: bool, saying: &str) {
    let ended = server.wait(PATIENCE).unwrap();
    assert_eq!(ended.status.success(), success, "{}", ended.stderr);
    assert!(ended.stderr.contains(saying), "{}", ended.stderr);
}

#[test]
fn servers_register_serve_drain_and_return() {
    let relays = Relays::start("register", 1).unwrap();
    let python = relays.leased(Language::Python, "py", 7, &[]).unwrap();
    relays.wait_state(0, "py", ServerState::Live).unwrap();
    relays.client(0).unwrap().expect_echo(b"to the Python server").unwrap();
    let rust = relays.leased(Language::Rust, "rs", 8, &[]).unwrap();
    relays.wait_state(0, "rs", ServerState::Live).unwrap();
    let mut clients: Vec<_> = (0..4).map(|_| relays.client(0).unwrap()).collect();
    for client in &mut clients {
        client.expect_echo(b"to both").unwrap();
    }
    wait_until(PATIENCE, "the first client to be gone", || {
        Ok(relays.server_status(0, "py")?.clients == Some(2))
    })
    .unwrap();
    for id in ["py", "rs"] {
        let status = relays.server_status(0, id).unwrap();
        assert_eq!((status.clients, status.epoch, status.declared), (Some(2), 1, false));
        assert!(status.renewed_ms_ago.is_some_and(|age| age < u64::from(2 * LEASE_MS)));
    }
    drop(clients);
    for (server, id) in [(python, "py"), (rust, "rs")] {
        server.signal(Signal::TERM).unwrap();
        assert_ended(server, true, "");
        relays.wait_state(0, id, ServerState::Gone).unwrap();
        assert_eq!(relays.server_status(0, id).unwrap().reason.as_deref(), Some("drained"));
    }
    let partition = relays.server_status(0, "rs").unwrap().partition;
    let _rust = relays.leased(Language::Rust, "rs", 8, &[]).unwrap();
    relays.wait_state(0, "rs", ServerState::Live).unwrap();
    let status = relays.server_status(0, "rs").unwrap();
    assert_eq!((status.partition, status.epoch), (partition, 2));
    relays.client(0).unwrap().expect_echo(b"again").unwrap();
}

#[test]
fn a_conflicting_registration_is_told_why_and_a_restart_takes_over() {
    let relays = Relays::start("conflict", 1).unwrap();
    let first = relays.leased(Language::Python, "a", 7, &[]).unwrap();
    let same_address = relays.server(Language::Rust, "b", 7, &[]).unwrap();
    assert_ended(same_address, false, "belongs to server `a` of the same service");
    let declared = relays.server(Language::Python, "declared", 9, &[]).unwrap();
    assert_ended(declared, false, "configuration declares");
    let second = relays.leased(Language::Rust, "a", 7, &[]).unwrap();
    assert_ended(first, false, "superseded by");
    assert_eq!(relays.server_status(0, "a").unwrap().epoch, 2);
    relays.client(0).unwrap().expect_echo(b"to the second").unwrap();
    drop(second);
    let _third = relays.leased(Language::Python, "a", 7, &[]).unwrap();
    assert_eq!(relays.server_status(0, "a").unwrap().epoch, 3);
    let _c = relays.leased(Language::Rust, "c", 8, &[]).unwrap();
    let many = relays.server(Language::Rust, "d", 9, &[]).unwrap();
    assert_ended(many, false, "no partition is free: 2 are leased");
}

#[test]
fn a_server_that_is_killed_is_away_and_reads_on_where_it_stopped() {
    let relays = Relays::start("away", 1).unwrap();
    let server = relays.leased(Language::Rust, "a", 7, &[]).unwrap();
    relays.wait_state(0, "a", ServerState::Live).unwrap();
    let mut client = relays.client(0).unwrap();
    client.expect_echo(b"before").unwrap();
    server.signal(Signal::KILL).unwrap();
    relays.wait_state(0, "a", ServerState::Away).unwrap();
    for number in 0..20 {
        client.send(format!("waiting {number}").as_bytes()).unwrap();
    }
    let rate = 10;
    let _back = relays.leased(Language::Python, "a", 7, &["--rate", &rate.to_string()]).unwrap();
    let begun = Instant::now();
    let mut next = client.receive().unwrap();
    if next == b"before" {
        // It was killed between its reply and its commit: at least once.
        next = client.receive().unwrap();
    }
    for number in 0..20 {
        assert_eq!(next, format!("waiting {number}").as_bytes());
        next = if number < 19 { client.receive().unwrap() } else { Vec::new() };
    }
    let least = Duration::from_secs(20 / rate) / 2;
    assert!(begun.elapsed() > least, "20 messages at {rate} a second in {:?}", begun.elapsed());
    relays.wait_state(0, "a", ServerState::Live).unwrap();
}

#[test]
fn another_relay_takes_over_from_a_coordinator_that_is_killed_and_from_one_that_is_paused() {
    let mut relays = Relays::start("failover", 2).unwrap();
    let first = relays.coordinator(0).unwrap();
    let second = 1 - first;
    let mut server = relays.leased(Language::Rust, "a", 7, &[]).unwrap();
    relays.wait_state(second, "a", ServerState::Live).unwrap();
    let epoch = relays.server_status(second, "a").unwrap().epoch;

    relays.0.relays[first].signal(Signal::STOP).unwrap();
    let paused = Instant::now();
    wait_until(PATIENCE, "the other relay to coordinate", || {
        Ok(relays.coordinator(second)? == second)
    })
    .unwrap();
    println!("a paused coordinator was followed after {:?}", paused.elapsed());
    wait_until(PATIENCE, "the paused relay to be taken for gone", || {
        let status = relays.status(second)?;
        Ok(status.relays[first].state == RelayState::Gone)
    })
    .unwrap();
    relays.0.relays[first].signal(Signal::CONT).unwrap();
    wait_until(PATIENCE, "the paused relay to be back", || {
        let status = relays.status(second)?;
        Ok(status.relays[first].state == RelayState::Live)
    })
    .unwrap();
    relays.client(first).unwrap().expect_echo(b"by the one that was paused").unwrap();
    // Longer than a lease: whoever coordinates now renews it.
    let until = Instant::now() + Duration::from_millis(u64::from(LEASE_MS) * 2);
    while Instant::now() < until {
        for looker in [first, second] {
            let status = relays.server_status(looker, "a").unwrap();
            assert_eq!((status.state, status.epoch), (ServerState::Live, epoch), "{status:?}");
        }
        assert!(server.is_running().unwrap(), "{}", server.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }

    let first = relays.coordinator(0).unwrap();
    let second = 1 - first;
    let term = relays.status(second).unwrap().coordinator.unwrap().term;
    relays.0.relays[first].kill().unwrap();
    let killed = Instant::now();
    wait_until(PATIENCE, "the other relay to coordinate", || {
        let coordinator = relays.status(second)?.coordinator.context("there was one")?;
        Ok(usize::from(coordinator.relay) == second && coordinator.term > term)
    })
    .unwrap();
    println!("a killed coordinator was followed after {:?}", killed.elapsed());
    let _new = relays.leased(Language::Python, "b", 8, &[]).unwrap();
    relays.wait_state(second, "b", ServerState::Live).unwrap();
    assert_eq!(relays.server_status(second, "a").unwrap().state, ServerState::Live);
    relays.0.start(first).unwrap();
    relays.client(first).unwrap().expect_echo(b"by the one that was killed").unwrap();
}

#[test]
fn two_relays_with_one_id_do_not_run() {
    let mut fleet = Fleet::new("same-id", 2, 1, |config| config.relay.id = 0).unwrap();
    fleet.start(0).unwrap();
    let mut command = fleet.relays[1].command("run", false);
    command.args(["--no-gateway", "127.0.0.61"]);
    let ended = run("relay run", &mut command, PATIENCE).unwrap();
    assert!(!ended.status.success());
    assert!(ended.stderr.contains("another relay with relay.id = 0"), "{}", ended.stderr);
    fleet.relays[0].check_running().unwrap();
}

#[test]
fn nonsense_is_counted_and_stalls_nothing() {
    let relays = Relays::start("nonsense", 1).unwrap();
    relays.coordinator(0).unwrap();
    for (key, value) in [
        (&b"\xff\xfe"[..], &b"{}"[..]),
        (b"", b""),
        (b"server", b"{}"),
        (b"relay/00", b"{}"),
        (b"lease/x", b"not JSON"),
        (b"lease/x", br#"{"version":1}"#),
        (b"order/x", br#"{"version":1,"order":"dance"}"#),
        (b"coordinator", b"\x00"),
        (b"relay/3", b"[]"),
        (b"server/x", b"{\"version\":1,\"instance\":\"i\"}"),
    ] {
        relays.write(key, value).unwrap();
    }
    // A term that is not over, by a relay that is none.
    relays.write(b"coordinator", br#"{"version":1,"relay":9,"incarnation":1}"#).unwrap();
    let server = relays.leased(Language::Rust, "a", 7, &[]).unwrap();
    relays.client(0).unwrap().expect_echo(b"through all this").unwrap();
    let status = relays.status(0).unwrap();
    let counts = |reason: &str| status.records_refused.get(reason).copied().unwrap_or_default();
    assert_eq!(counts("malformed_key"), 4, "{status:?}");
    assert_eq!(counts("malformed_value"), 6, "{status:?}");
    assert_eq!(status.refusals["x"], "`service` is missing");
    assert_eq!(status.coordinator.unwrap().relay, 0);

    // A lease of a term that is over, as a coordinator that was paused would write it.
    let mut stale: Value = json!({
        "version": 1, "term": 1, "instance": "i", "state": "gone", "partition": 1, "epoch": 1,
        "lease_ms": 1, "service": SERVICE, "address": "192.0.2.7", "capacity": 1,
    });
    stale["term"] = 0.into();
    relays.write(b"lease/a", stale.to_string().as_bytes()).unwrap();
    wait_until(PATIENCE, "the stale lease to be counted", || {
        let refused = relays.status(0)?.records_refused;
        Ok(refused.get("stale_term").copied().unwrap_or_default() > counts("stale_term"))
    })
    .unwrap();
    relays.client(0).unwrap().expect_echo(b"and this").unwrap();
    drop(server);
    relays.register_by_hand("b", "by hand", 9).unwrap();
    relays.wait_state(0, "b", ServerState::Live).unwrap();
}

#[test]
fn where_no_relay_has_run_an_operator_is_told_so() {
    let relays = Relays(Fleet::new("nobody", 1, 0, adjust).unwrap());
    let listed = relays.servers(&["list"]).unwrap();
    assert!(!listed.status.success());
    assert!(
        listed.stderr.contains("no relay has created it yet; start one with `relay run`"),
        "{}",
        listed.stderr
    );
}

#[test]
fn operators_list_drain_resume_and_forget() {
    let relays = Relays::start("operate", 1).unwrap();
    let server = relays.leased(Language::Python, "a", 7, &[]).unwrap();
    let listed = relays.servers(&["list", "--json"]).unwrap();
    let listed: RegistryStatus = serde_json::from_str(listed.stdout.trim()).unwrap();
    let states: Vec<_> = listed.servers.iter().map(|of| (&*of.id, of.state)).collect();
    assert_eq!(states, [("a", ServerState::Live), ("declared", ServerState::Live)]);

    let unknown = relays.servers(&["drain", "b"]).unwrap();
    assert!(!unknown.status.success());
    assert!(unknown.stderr.contains("there is no server `b`; known servers: a, declared"));
    let idle = relays.servers(&["resume", "a"]).unwrap();
    assert!(idle.stderr.contains("no order is in force"), "{}", idle.stderr);
    let declared = relays.servers(&["forget", "declared"]).unwrap();
    assert!(declared.stderr.contains("is declared in the configuration"));
    let unknown = relays.servers(&["rebalance", "tea"]).unwrap();
    assert!(unknown.stderr.contains("no service `tea` in the configuration; it has: lines"));
    let idle = relays.servers(&["rebalance", SERVICE, "--stop"]).unwrap();
    assert!(idle.stderr.contains("is not being rebalanced"), "{}", idle.stderr);

    for id in ["declared", "a"] {
        assert!(relays.servers(&["drain", id]).unwrap().status.success());
        relays.wait_state(0, id, ServerState::Draining).unwrap();
        relays.wait_state(0, id, ServerState::Gone).unwrap();
    }
    assert_ended(server, false, "gone");
    let drained = relays.server(Language::Python, "a", 7, &[]).unwrap();
    assert_ended(drained, false, "an operator has drained this server");
    for id in ["declared", "a"] {
        assert!(relays.servers(&["resume", id]).unwrap().status.success());
    }
    relays.wait_state(0, "declared", ServerState::Live).unwrap();
    let server = relays.leased(Language::Rust, "a", 7, &[]).unwrap();
    assert!(relays.servers(&["forget", "a"]).unwrap().status.success());
    assert_ended(server, false, "gone");
    let text = relays.servers(&["list"]).unwrap();
    assert!(text.stdout.contains("an operator's order"), "{}", text.stdout);
    // A renewal that the forgotten process had written before it read of its end.
    let gone = relays.server_status(0, "a").unwrap();
    relays.register_by_hand("a", &gone.instance, 7).unwrap();
    wait_until(PATIENCE, "it to be refused", || {
        let refusals = relays.status(0)?.refusals;
        Ok(refusals.get("a").is_some_and(|reason| reason.contains("a new `instance`")))
    })
    .unwrap();
    let still = relays.server_status(0, "a").unwrap();
    assert_eq!((still.state, still.epoch), (ServerState::Gone, gone.epoch));
    let _anew = relays.leased(Language::Python, "a", 7, &[]).unwrap();
    assert_eq!(relays.server_status(0, "a").unwrap().epoch, gone.epoch + 1);
    wait_until(PATIENCE, "the refusal to be taken back", || {
        Ok(relays.status(0)?.refusals.is_empty())
    })
    .unwrap();
}

#[test]
fn what_waits_for_a_server_that_is_gone_becomes_dead_letters_and_its_partition_is_free() {
    let relays = Relays::start("burial", 1).unwrap();
    relays.coordinator(0).unwrap();
    relays.register_by_hand("a", "nobody", 7).unwrap();
    relays.wait_state(0, "a", ServerState::Live).unwrap();
    let partition = relays.server_status(0, "a").unwrap().partition;
    let mut client = relays.client(0).unwrap();
    for _ in 0..5 {
        client.send(b"for nobody").unwrap();
    }
    wait_until(PATIENCE, "the messages to be in Kafka", || {
        Ok(relays.0.relays[0].stats()?.count("messages_acknowledged")? == 5)
    })
    .unwrap();
    drop(client);
    // The other partition for leases has a holder, so the next one gets that of the first.
    relays.register_by_hand("other", "nobody", 9).unwrap();
    relays.wait_state(0, "other", ServerState::Live).unwrap();
    assert!(relays.servers(&["forget", "a"]).unwrap().status.success());
    let letters = relays.0.relays[0].config.kafka.deadletter_topic();
    wait_until(PATIENCE, "the dead letters", || {
        // With what tells of the connection's begin and end.
        Ok(kafka::record_count(&kafka::brokers(), &letters, 1)? == 7)
    })
    .unwrap();
    // It rests for `relay_timeout_ms` first, longer than a server here waits for its answer.
    wait_until(PATIENCE, "the partition to be another server's", || {
        relays.register_by_hand("b", "by hand", 8)?;
        Ok(relays.server_status(0, "b").is_ok_and(|next| next.epoch == 2))
    })
    .unwrap();
    let _next = relays.leased(Language::Rust, "b", 8, &[]).unwrap();
    let next = relays.server_status(0, "b").unwrap();
    assert_eq!((next.partition, next.epoch), (partition, 3));
    relays.client(0).unwrap().expect_echo(b"to its next holder").unwrap();
}

/// The registry as an operator's tool reads it, with no relay running.
#[test]
#[ignore = "writes 100,000 records; prints what reading them costs"]
fn a_registry_of_100_000_entries_is_read_in_seconds() {
    let mut relays = Relays::start("large", 1).unwrap();
    relays.coordinator(0).unwrap();
    relays.0.relays[0].stop().unwrap();
    let start = |relays: &mut Relays| -> Result<(Duration, u64)> {
        let begun = Instant::now();
        relays.0.start(0)?;
        let took = begun.elapsed();
        let rss = resident_bytes(relays.0.relays[0].process_id()?)? >> 10;
        relays.0.relays[0].stop()?;
        Ok((took, rss))
    };
    let before = start(&mut relays).unwrap();
    let registry = registry::read(&relays.0.relays[0].config).unwrap();
    let term = registry.coordination().expect("there was one").0.0;
    let producer: BaseProducer = kafka::client(&kafka::brokers()).create().unwrap();
    let topic = format!("{}registry", relays.0.prefix());
    for number in 0..50_000 {
        let server = json!({
            "version": 1, "service": SERVICE, "address": "192.0.2.9", "capacity": 1, "labels": {},
            "instance": format!("instance-{number}"), "state": "live",
        });
        let mut lease = server.clone();
        let epoch = number + 1;
        for (name, value) in
            [("term", term), ("partition", 2), ("lease_ms", 15_000), ("epoch", epoch)]
        {
            lease[name] = value.into();
        }
        lease["state"] = "gone".into();
        for (kind, value) in [("server", server), ("lease", lease)] {
            let (key, value) = (format!("{kind}/server-{number}"), value.to_string());
            let mut record = BaseRecord::to(&topic).partition(0).key(&key).payload(&value);
            while let Err((_, back)) = producer.send(record) {
                record = back;
                producer.poll(Duration::from_millis(10));
            }
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).unwrap();
    let begun = Instant::now();
    let config = &relays.0.relays[0].config;
    let registry = registry::read(config).unwrap();
    println!("read from Kafka and folded within {:?}", begun.elapsed());
    let status = RegistryStatus::new(&registry, &Policy::new(config), None);
    println!("records refused: {:?}", status.records_refused);
    let after = start(&mut relays).unwrap();
    println!("until ready: {:?} without entries, {:?} with 100,000", before.0, after.0);
    println!("resident memory: {} KiB without entries, {} KiB with 100,000", before.1, after.1);
    assert!(registry.registrations().len() == 50_000, "{:?}", status.records_refused);
}
