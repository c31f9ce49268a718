//! Servers that join get their share of the clients when an operator orders it, and servers that are
//! drained by an operator lose theirs; under load, and no client notices.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_harness::clients::crowd::Crowd;
use millrace_harness::kafka;
use millrace_harness::relay::fleet::{Fleet, SERVICE};
use millrace_harness::servers::by_hand::{Record, all_records};
use millrace_harness::system::process::{Process, run_ok, wait_until};
use serde_json::Value;

/// A machine whose disk stands still holds the broker up for minutes.
const PATIENCE: Duration = Duration::from_mins(5);
/// One test at a time: two crowds are more than two processors like.
static ALONE: Mutex<()> = Mutex::new(());
const RELAYS: usize = 2;
const PARTITIONS: u16 = 4;
/// In each burst of three lines of a client.
const PAUSE: Duration = Duration::from_millis(300);

/// Relays, and servers that register. Dropped in this order: each needs what comes after it.
struct Scene {
    servers: Vec<Process>,
    fleet: Fleet,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let mut fleet = Fleet::new(name, u16::try_from(RELAYS)?, 0, |config| {
            config.relay.workers = 2;
            config.kafka.uplink_partitions = PARTITIONS;
            config.registry.lease_ms = 4000;
        })?;
        (0..RELAYS).try_for_each(|relay| fleet.start(relay))?;
        Ok(Self { servers: Vec::new(), fleet })
    }

    /// One server more, once every relay knows of it.
    fn add_server(&mut self, capacity: u32) -> Result<()> {
        let number = self.servers.len();
        let (id, address) = (format!("server-{number}"), format!("192.0.2.{}", number + 1));
        let capacity = ["--capacity", &capacity.to_string()];
        self.servers.push(self.fleet.lease(&id, &address, &capacity)?);
        wait_until(PATIENCE, "the relays to know of the server", || {
            // Before the first one there is no service with servers.
            let known = |relay| self.fleet.associations(relay).is_ok_and(|of| of.len() > number);
            Ok((0..RELAYS).all(known))
        })
    }

    /// So many clients, a third of them at the second relay.
    fn crowd(&self, clients: usize) -> Result<Crowd> {
        let addresses: Vec<_> =
            (0..clients).map(|number| self.fleet.address(usize::from(number % 3 == 2))).collect();
        let crowd = Crowd::start(&addresses, PAUSE)?;
        self.fleet.wait_associations(&[0, 1], clients as u64)?;
        Ok(crowd)
    }

    /// What both relays have moved, by the name of the former server.
    fn moved(&self) -> Result<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        for relay in &self.fleet.relays {
            let moved: BTreeMap<String, u64> =
                serde_json::from_value(relay.stats()?.0["clients_moved"].clone())?;
            for (id, count) in moved {
                *all.entry(id).or_default() += count;
            }
        }
        Ok(all)
    }

    /// Waits until the servers have seen the end of every connection, and gives all that they saw.
    fn records(&self, clients: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        wait_until(PATIENCE, "every `close`", || {
            records = all_records(&kafka::brokers(), self.fleet.prefix(), PARTITIONS)?;
            let ended =
                |record: &&Record| record.kind() == "close" && record.header("reason") != "moved";
            Ok(records.iter().filter(ended).count() == clients)
        })?;
        Ok(records)
    }
}

/// What a server saw of a connection between its `open` and its `close`.
struct Visit {
    moved_from: Option<String>,
    server: String,
    messages: Vec<u64>,
}

/// Each connection's messages are there once, and one server's follow another's. The moves.
fn check(records: &[Record], lines: u64) -> Result<BTreeMap<String, u64>> {
    let mut visits: HashMap<&str, Vec<Visit>> = HashMap::new();
    let mut names: HashMap<u16, String> = HashMap::new();
    for record in records.iter().filter(|record| record.kind() == "message") {
        names.insert(record.partition, record.header("server").to_owned());
    }
    for record in records {
        let of = visits.entry(&record.key).or_default();
        match record.kind() {
            "open" => of.push(Visit {
                moved_from: record.headers.get("moved_from").cloned(),
                server: names.get(&record.partition).cloned().unwrap_or_default(),
                messages: Vec::new(),
            }),
            "message" => {
                let visit = of.last_mut().context("a message before `open`")?;
                visit.messages.push(record.header("sequence").parse()?);
            }
            _ => {}
        }
    }
    let (mut moves, mut found) = (BTreeMap::new(), 0);
    for (key, mut visits) in visits {
        // The partitions were read one after another. A visit without a message is like no visit.
        visits.retain(|visit| {
            visit.moved_from.iter().for_each(|from| *moves.entry(from.clone()).or_default() += 1);
            !visit.messages.is_empty()
        });
        visits.sort_by_key(|visit| visit.messages[0]);
        for (visit, next) in visits.iter().zip(&visits[1..]) {
            let from = next.moved_from.as_deref();
            ensure!(from == Some(&visit.server), "{key}: {} and then {from:?}", visit.server);
        }
        let all: Vec<u64> = visits.into_iter().flat_map(|visit| visit.messages).collect();
        ensure!(all.iter().copied().eq(1..=all.len() as u64), "{key}: {all:?}");
        found += all.len() as u64;
    }
    ensure!(found == lines, "{found} messages of {lines}");
    Ok(moves)
}

#[test]
fn servers_that_join_get_their_share_when_it_is_ordered() -> Result<()> {
    const CLIENTS: usize = 200;
    const PER_SECOND: u64 = 40;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut scene = Scene::new("rebalance")?;
    scene.add_server(1)?;
    scene.add_server(1)?;
    let mut crowd = scene.crowd(CLIENTS)?;
    crowd.wait_echoed(500)?;
    scene.add_server(1)?;
    scene.add_server(2)?;
    let before = scene.fleet.associations(1)?;
    // Two relays that allot at once may differ by a few.
    ensure!(before[2..] == [0, 0], "nobody moves without an order: {before:?}");
    ensure!(before[..2].iter().all(|of| (95..=105).contains(of)), "not even: {before:?}");

    let (rate, begun) = (PER_SECOND.to_string(), Instant::now());
    let order = ["rebalance", SERVICE, "--wait", "--json", "--per-second", &rate];
    let order = Process::spawn("relay servers", &mut scene.fleet.servers_command(&order))?;
    let mut peak = 0;
    wait_until(PATIENCE, "some clients to move", || {
        let stats = scene.fleet.relays[1].stats()?.0;
        let of = &stats["registry"]["rebalances"][SERVICE];
        let moved = of["moved_from"]
            .as_object()
            .map_or(0, |moved| moved.values().filter_map(Value::as_u64).sum());
        peak = moved.max(peak);
        Ok(of["per_second"] == PER_SECOND && of["ended"].is_null() && moved > 0)
    })?;
    let most = PER_SECOND * (begun.elapsed().as_secs() + 1);
    ensure!(peak <= most, "{peak} have moved in {:?}", begun.elapsed());
    let ended = order.wait(PATIENCE)?;
    ensure!(ended.status.success(), "{ended:?}");
    let took = begun.elapsed();
    let ended: Value = serde_json::from_str(ended.stdout.trim())?;
    ensure!(ended["rebalance"]["ended"] == true, "{ended}");
    let reported: BTreeMap<String, u64> =
        serde_json::from_value(ended["rebalance"]["moved_from"].clone())?;

    crowd.check()?;
    for relay in 0..RELAYS {
        let after = scene.fleet.associations(relay)?;
        for (count, share) in after.iter().zip([40.0, 40.0, 40.0, 80.0]) {
            #[allow(clippy::cast_precision_loss, reason = "few clients")]
            let off = (*count as f64 / share - 1.0).abs();
            ensure!(off <= 0.05, "{after:?}, as relay {relay} knows");
        }
    }
    crowd.wait_echoed(500)?;
    let lines = crowd.stop()?;
    let moved = scene.moved()?;
    let seen = check(&scene.records(CLIENTS)?, lines)?;
    println!("{lines} lines; moved {moved:?} within {took:.1?}");
    ensure!(seen == moved && moved == reported, "{seen:?}, {moved:?}, {reported:?}");
    ensure!(moved.values().sum::<u64>() <= 126, "more have moved than must: {moved:?}");
    // An order with nothing to do ends, too, and says so.
    let order = ["rebalance", SERVICE, "--wait", "--json"];
    let ended = run_ok("relay servers", &mut scene.fleet.servers_command(&order), PATIENCE)?;
    let ended: Value = serde_json::from_str(ended.stdout.trim())?;
    ensure!(ended["rebalance"]["moved_from"] == serde_json::json!({}), "{ended}");
    Ok(())
}

#[test]
fn a_server_that_an_operator_drains_loses_its_clients_and_no_message() -> Result<()> {
    const CLIENTS: usize = 60;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut scene = Scene::new("drained")?;
    for _ in 0..3 {
        scene.add_server(1)?;
    }
    let mut crowd = scene.crowd(CLIENTS)?;
    crowd.wait_echoed(300)?;
    let before = scene.fleet.associations(0)?;
    let order = ["drain", "server-0"];
    run_ok("relay servers", &mut scene.fleet.servers_command(&order), PATIENCE)?;
    let begun = Instant::now();
    wait_until(PATIENCE, "the drained server to be gone", || {
        let stats = scene.fleet.relays[1].stats()?.0;
        Ok(stats["registry"]["servers"][0]["state"] == "gone")
    })?;
    let took = begun.elapsed();
    let after = scene.fleet.associations(0)?;
    ensure!(after[0] == 0 && after.iter().sum::<u64>() == CLIENTS as u64, "{after:?}");
    // Its process is told, and ends; what it had was read by then.
    let server = scene.servers.remove(0).wait(PATIENCE)?;
    ensure!(server.stderr.contains("server-0: gone"), "{}", server.stderr);
    crowd.wait_echoed(300)?;
    let lines = crowd.stop()?;
    let moved = scene.moved()?;
    println!("{lines} lines; {before:?} became {after:?}; gone after {took:.1?}");
    ensure!(moved == [("server-0".to_owned(), before[0])].into(), "{moved:?} of {before:?}");
    let seen = check(&scene.records(CLIENTS)?, lines)?;
    ensure!(seen == moved, "{seen:?}, and the relays say {moved:?}");
    Ok(())
}
