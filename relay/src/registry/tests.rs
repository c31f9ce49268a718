//! A log in memory, a coordinator that writes to it, and whoever else does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

mod over;
mod pool;

use pool::Slow;

use crate::kafka::Unread;
use crate::model::{Incarnation, Partition, RelayId};
use crate::route::{Balance, ServerState};

use super::record::{Coordination, Key, Lease, Refusal, RelayRecord, RelayState, Term, VERSION};
use super::*;

const LEASE: Duration = Duration::from_secs(10);
const FORGET: Duration = Duration::from_secs(100);
/// Rounds of deciding within which everything must come to rest.
const ROUNDS: usize = 20;

/// How far every partition is written.
const END: i64 = 77;

type Log = Vec<(i64, Vec<u8>, Option<Vec<u8>>)>;

#[derive(Default)]
struct World {
    unread: BTreeMap<u16, u64>,
    clients: BTreeMap<String, u32>,
    balances: BTreeMap<String, Balance>,
    buried: Vec<Partition>,
    busy: BTreeSet<Partition>,
    slow: Option<Slow>,
}

impl Facts for World {
    fn unread(&mut self, partition: Partition, since: Instant) -> Option<Unread> {
        let records = self.unread.get(&partition.0).copied().unwrap_or_default();
        let known = Unread { records, outlived: false, end: END };
        let Some(slow) = &mut self.slow else { return Some(known) };
        slow.ask(partition, since).then_some(known)
    }
    fn clients(&self, id: &str) -> u32 {
        self.clients.get(id).copied().unwrap_or_default()
    }
    fn balance(&self, service: &str) -> Option<Balance> {
        self.balances.get(service).cloned()
    }
    fn bury(&mut self, partition: Partition) -> bool {
        self.buried.push(partition);
        true
    }
    fn claim(&mut self, partition: Partition) -> bool {
        !self.busy.contains(&partition)
    }
}

/// One relay that coordinates, with the log before it.
struct Bench {
    log: Log,
    registry: Registry,
    coordinator: Coordinator,
    world: World,
    now: Instant,
}

fn policy() -> Policy {
    let server = crate::config::Server::new("declared", [192, 0, 2, 1].into(), Partition(0));
    let declared = Declared { service: "chat".to_owned(), server };
    Policy {
        lease: LEASE,
        forget: FORGET,
        relay_timeout: LEASE,
        max_capacity: 100,
        services: ["chat".to_owned(), "mail".to_owned()].into(),
        declared: [("declared".to_owned(), declared)].into(),
        declared_partitions: [Partition(0)].into(),
        partitions: 3,
    }
}

fn registration(instance: &str, address: u8) -> serde_json::Value {
    serde_json::json!({
        "version": 1, "service": "chat", "address": format!("192.0.2.{address}"),
        "instance": instance,
    })
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        let mut bench = Self {
            log: Log::new(),
            registry: Registry::default(),
            coordinator: Coordinator::new(policy(), now),
            world: World::default(),
            now,
        };
        bench.take_office();
        bench
    }

    fn append(&mut self, key: &[u8], value: Option<Vec<u8>>) -> Outcome {
        let offset = self.log.last().map_or(0, |(offset, ..)| offset + 1);
        let outcome = self.registry.apply(offset, key, value.as_deref());
        self.coordinator.observe(&self.registry, &outcome, self.now);
        self.log.push((offset, key.to_owned(), value));
        outcome
    }

    fn write(&mut self, key: &Key, value: &impl serde::Serialize) -> Outcome {
        self.append(key.to_string().as_bytes(), Some(serde_json::to_vec(value).unwrap()))
    }

    fn take_office(&mut self) -> Term {
        let record =
            Coordination { version: VERSION, relay: RelayId(0), incarnation: Incarnation::new(1) };
        self.write(&Key::Coordinator, &record);
        let (term, _) = *self.registry.coordination().unwrap();
        self.coordinator.begin(term, &self.registry, self.now);
        term
    }

    /// Relay 3 says that it runs.
    fn beat(&mut self) {
        let record = RelayRecord {
            version: VERSION,
            incarnation: Incarnation::new(7),
            state: RelayState::Live,
            place: String::new(),
        };
        self.write(&Key::Relay(RelayId(3)), &record);
    }

    /// Decides until there is nothing to decide any more.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            let writes = self.coordinator.decide(&self.registry, &mut self.world, self.now);
            if writes.is_empty() {
                return;
            }
            for Write { key, value } in writes {
                self.append(key.to_string().as_bytes(), value);
            }
        }
        panic!("the coordinator goes on writing: {:?}", self.registry);
    }

    fn register(&mut self, id: &str, value: &serde_json::Value) {
        self.write(&Key::Server(id.to_owned()), value);
        self.settle();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    fn lease(&self, id: &str) -> &Lease {
        &self.registry.leases()[id]
    }

    fn refusal(&self, id: &str) -> &str {
        &self.registry.refusals()[id].reason
    }
}

#[test]
fn a_server_registers_renews_goes_away_returns_and_is_forgotten() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    let lease = bench.lease("a").clone();
    assert_eq!((lease.partition, lease.epoch, lease.state), (Partition(1), 1, ServerState::Live));
    assert_eq!((&*lease.instance, lease.lease_ms), ("one", 10_000));
    bench.pass(LEASE / 2);
    bench.register("a", &registration("one", 7));
    bench.pass(LEASE / 2);
    assert_eq!(bench.lease("a"), &lease, "renewed: nothing is written");
    bench.pass(LEASE / 2);
    assert_eq!(bench.lease("a").state, ServerState::Away);
    bench.pass(LEASE);
    bench.register("a", &registration("one", 7));
    assert_eq!((bench.lease("a").state, bench.lease("a").epoch), (ServerState::Live, 1));
    bench.pass(LEASE);
    bench.pass(FORGET);
    assert_eq!(bench.lease("a").state, ServerState::Gone);
    assert_eq!(bench.lease("a").reason.as_deref(), Some("it did not come back"));
    bench.world.unread.insert(1, 5);
    bench.register("a", &registration("two", 7));
    let lease = bench.lease("a");
    assert_eq!((lease.partition, lease.epoch), (Partition(1), 2), "what waits there is its own");
}

#[test]
fn a_new_process_takes_over_and_the_former_cannot_take_it_back() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    bench.register("a", &registration("two", 7));
    let lease = bench.lease("a").clone();
    assert_eq!((&*lease.instance, lease.epoch, lease.partition), ("two", 2, Partition(1)));
    bench.register("a", &registration("one", 7));
    assert_eq!(bench.lease("a"), &lease);
    bench.pass(LEASE * 2);
    assert_eq!(bench.lease("a").state, ServerState::Away, "the other's word does not renew it");
}

#[test]
fn refusals_say_why() {
    let mut bench = Bench::new();
    let mut refused = |id: &str, change: &dyn Fn(&mut serde_json::Value), why: &str| {
        let mut value = registration("one", 9);
        change(&mut value);
        bench.register(id, &value);
        assert!(!bench.registry.leases().contains_key(id), "{id}");
        assert!(bench.refusal(id).contains(why), "{}", bench.refusal(id));
        assert_eq!(bench.registry.refusals()[id].instance, "one");
    };
    refused("a", &|value| value["service"] = "tea".into(), "known services: chat, mail");
    refused("a", &|value| value["address"] = "here".into(), "`address`: invalid IP address");
    refused("a", &|value| value["address"] = "0.0.0.0".into(), "cannot be the address of a server");
    refused("a", &|value| value["address"] = "192.0.2.1".into(), "belongs to server `declared`");
    refused("a", &|value| value["capacity"] = 0.into(), "`capacity`: ");
    refused("a", &|value| value["capacity"] = 101.into(), "more than 100");
    refused("a", &|value| value["state"] = "draining".into(), "no lease to drain");
    refused("declared", &|_| (), "configuration declares");
    refused("a b", &|_| (), "a server's id is");
    bench.register("a", &registration("one", 9));
    assert_eq!(bench.lease("a").state, ServerState::Live);
    assert!(!bench.registry.refusals().contains_key("a"), "the refusal is taken back");
    bench.pass(FORGET + LEASE * 2);
    assert!(bench.registry.refusals().is_empty(), "nobody waits for it any more");
}

#[test]
fn a_partition_is_given_away_again_only_when_it_is_empty() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    bench.register("b", &registration("one", 8));
    bench.register("c", &registration("one", 9));
    assert!(bench.refusal("c").contains("no partition is free: 2 are leased"));
    let mut leaving = registration("one", 7);
    leaving["state"] = "gone".into();
    bench.world.unread.insert(1, 5);
    bench.register("a", &leaving);
    assert_eq!(bench.lease("a").state, ServerState::Gone);
    bench.pass(LEASE);
    assert_eq!(bench.world.buried, [Partition(1)]);
    bench.register("c", &registration("one", 9));
    assert!(bench.refusal("c").contains("1 with unread records of servers that are gone"));
    bench.world.unread.clear();
    bench.pass(LEASE);
    bench.register("c", &registration("one", 9));
    let lease = bench.lease("c");
    assert_eq!((lease.partition, lease.epoch), (Partition(1), 2));
}

#[test]
fn a_server_drains_until_nothing_waits_and_nobody_is_its_client() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    bench.world.unread.insert(1, 5);
    bench.world.clients.insert("a".to_owned(), 1);
    let mut leaving = registration("one", 7);
    leaving["state"] = "draining".into();
    let renew = |bench: &mut Bench| {
        bench.pass(LEASE / 2);
        bench.register("a", &leaving);
        bench.pass(LEASE / 2);
        bench.register("a", &leaving);
        bench.lease("a").state
    };
    assert_eq!(renew(&mut bench), ServerState::Draining);
    bench.world.unread.clear();
    assert_eq!(renew(&mut bench), ServerState::Draining);
    bench.world.clients.clear();
    bench.pass(LEASE / 10);
    assert_eq!(bench.lease("a").state, ServerState::Draining, "not for long enough");
    renew(&mut bench);
    assert_eq!(bench.lease("a").reason.as_deref(), Some("drained"));
    assert_eq!(renew(&mut bench), ServerState::Gone, "its last words change nothing");
}

#[test]
fn an_operator_drains_resumes_and_forgets() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    let drain = serde_json::json!({"version": 1, "order": "drain"});
    for id in ["a", "declared"] {
        bench.write(&Key::Order(id.to_owned()), &drain);
        bench.settle();
        assert_eq!(bench.lease(id).state, ServerState::Draining);
    }
    bench.register("a", &registration("one", 7));
    assert_eq!(bench.lease("a").state, ServerState::Draining);
    bench.pass(LEASE / 10);
    bench.pass(LEASE);
    assert_eq!(bench.lease("declared").state, ServerState::Gone);
    assert_eq!(bench.lease("declared").epoch, 0);
    bench.register("a", &registration("two", 7));
    assert!(bench.refusal("a").contains("an operator"));
    for id in ["a", "declared"] {
        bench.append(format!("order/{id}").as_bytes(), None);
        bench.settle();
    }
    assert!(!bench.registry.leases().contains_key("declared"), "live, as it is declared");
    assert_eq!(bench.lease("a").state, ServerState::Live);
    bench.write(&Key::Order("a".to_owned()), &serde_json::json!({"version": 1, "order": "forget"}));
    bench.settle();
    assert_eq!(bench.lease("a").state, ServerState::Gone);
    assert!(bench.registry.registrations().is_empty() && bench.registry.orders().is_empty());
}

#[test]
fn a_rebalancing_ends_when_loads_stay_even_or_nothing_moves_any_more() {
    let mut bench = Bench::new();
    let order = serde_json::json!({"version": 1, "per_second": 5});
    let (chat, tea) = (Key::Rebalance("chat".to_owned()), Key::Rebalance("tea".to_owned()));
    let ended = |bench: &Bench| bench.registry.rebalances()["chat"].ended.clone();
    let mut balance = Balance { even: false, moved: [("a".to_owned(), 7)].into() };
    bench.world.balances.insert("chat".to_owned(), balance.clone());
    bench.write(&chat, &order);
    bench.write(&tea, &order);
    bench.pass(LEASE);
    assert!(!bench.registry.rebalances().contains_key("tea"), "there is no such service");
    // It goes on for as long as clients move.
    for moved in 8..20 {
        balance.moved.insert("a".to_owned(), moved);
        bench.world.balances.insert("chat".to_owned(), balance.clone());
        bench.pass(LEASE);
        assert_eq!(ended(&bench), None);
    }
    bench.world.balances.get_mut("chat").unwrap().even = true;
    bench.pass(LEASE / 10);
    assert_eq!(ended(&bench), None, "not for long enough");
    bench.pass(LEASE);
    let end = ended(&bench).unwrap();
    assert_eq!((end.even, end.moved, end.moved_from["a"]), (true, 19, 19));
    // One that a former coordinator ends goes on, and so it stands in the log again.
    bench.world.balances.insert("chat".to_owned(), balance);
    bench.write(&chat, &order);
    bench.take_office();
    let mut stale = order.clone();
    stale["ended"] = serde_json::to_value(&end).unwrap();
    let refused = Outcome::Refused(RefusedReason::StaleTerm, Some(chat.clone()));
    assert_eq!(bench.write(&chat, &stale), refused);
    bench.settle();
    assert_eq!(fold(&compacted(&bench.log)).rebalances()["chat"].ended, None);
    bench.pass(LEASE);
    bench.pass(LEASE * 7);
    assert_eq!(ended(&bench).map(|ended| ended.even), Some(false), "nothing has moved");
}

#[test]
fn a_former_coordinator_writes_in_vain_and_what_it_wrote_is_put_right() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    let mut stale = bench.lease("a").clone();
    bench.take_office();
    bench.settle();
    let right = bench.lease("a").clone();
    stale.state = ServerState::Gone;
    let outcome = bench.write(&Key::Lease("a".to_owned()), &stale);
    assert_eq!(
        outcome,
        Outcome::Refused(RefusedReason::StaleTerm, Some(Key::Lease("a".to_owned())))
    );
    bench.settle();
    let last = bench.log.iter().rfind(|(_, key, _)| key == b"lease/a").unwrap();
    let last: Lease = serde_json::from_slice(last.2.as_ref().unwrap()).unwrap();
    assert_eq!(last, Lease { term: last.term, ..right });
    let outcome = bench.append(b"lease/a", None);
    assert_eq!(
        outcome,
        Outcome::Refused(RefusedReason::LeaseNeeded, Some(Key::Lease("a".to_owned())))
    );
}

#[test]
fn a_new_coordinator_gives_everybody_a_whole_lease() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    bench.now += LEASE * 9 / 10;
    bench.take_office();
    bench.pass(LEASE * 9 / 10);
    assert_eq!(bench.lease("a").state, ServerState::Live);
    bench.pass(LEASE / 5);
    assert_eq!(bench.lease("a").state, ServerState::Away);
    bench.take_office();
    bench.settle();
    assert_eq!(bench.lease("a").state, ServerState::Away, "it has said nothing");
}

#[test]
fn a_coordinator_that_stood_still_gives_everybody_a_whole_lease() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 17));
    bench.settle();
    bench.beat();
    let running = |bench: &Bench| {
        let relay = bench.registry.relays()[&RelayId(3)].state;
        (bench.lease("a").state, relay) == (ServerState::Live, RelayState::Live)
    };
    bench.coordinator.look(bench.now);
    bench.now += 3 * LEASE;
    bench.coordinator.look(bench.now);
    bench.settle();
    assert!(running(&bench), "what they have written meanwhile is read now");
    for _ in 0..3 {
        bench.now += LEASE / 3;
        bench.coordinator.look(bench.now);
        bench.settle();
        assert!(running(&bench));
    }
    bench.now += LEASE / 3;
    bench.coordinator.look(bench.now);
    bench.settle();
    assert_eq!(bench.lease("a").state, ServerState::Away);
    assert_eq!(bench.registry.relays()[&RelayId(3)].state, RelayState::Gone);
}

#[test]
fn who_has_registered_long_ago_gets_no_lease_until_it_speaks() {
    let mut bench = Bench::new();
    bench.write(&Key::Server("a".to_owned()), &registration("one", 7));
    bench.now += LEASE;
    bench.settle();
    assert!(bench.registry.leases().is_empty());
    bench.register("a", &registration("one", 7));
    assert_eq!(bench.lease("a").state, ServerState::Live);
    // Another relay, which reads what was there before it.
    bench.write(&Key::Server("b".to_owned()), &registration("one", 8));
    bench.registry = fold(&bench.log);
    bench.coordinator = Coordinator::new(policy(), bench.now);
    bench.take_office();
    bench.settle();
    assert!(!bench.registry.leases().contains_key("b"));
    bench.register("b", &registration("one", 8));
    assert_eq!(bench.lease("b").state, ServerState::Live);
}

#[test]
fn a_silent_relay_is_gone() {
    let mut bench = Bench::new();
    bench.beat();
    bench.pass(LEASE / 2);
    assert_eq!(bench.registry.relays()[&RelayId(3)].state, RelayState::Live);
    bench.pass(LEASE);
    assert_eq!(bench.registry.relays()[&RelayId(3)].state, RelayState::Gone);
}

/// Anything that may stand in the log.
fn record() -> impl Strategy<Value = (Vec<u8>, Option<Vec<u8>>)> {
    let id = prop_oneof![Just("a"), Just("b"), Just("c"), Just("declared"), Just("a b")];
    let server =
        (id.clone(), 0..3_u8, 5..8_u8, 0..8_u8).prop_map(|(id, instance, address, kind)| {
            let mut value = registration(&instance.to_string(), address);
            match kind {
                0 => value["state"] = "draining".into(),
                1 => value["state"] = "gone".into(),
                2 => value["capacity"] = 0.into(),
                _ => {}
            }
            (format!("server/{id}").into_bytes(), Some(value.to_string().into_bytes()))
        });
    let states = ["live", "draining", "away", "gone"];
    let lease = (id.clone(), 0..60_i64, 0..4_u16, 0..4_u64, 0..4_usize).prop_map(
        move |(id, term, partition, epoch, state)| {
            let mut value = registration("0", 5);
            for (name, field) in [
                ("term", term.into()),
                ("partition", partition.into()),
                ("epoch", epoch.into()),
                ("lease_ms", 10_000.into()),
                ("capacity", 1.into()),
                ("state", states[state].into()),
            ] as [(&str, serde_json::Value); 6]
            {
                value[name] = field;
            }
            (format!("lease/{id}").into_bytes(), Some(value.to_string().into_bytes()))
        },
    );
    let order = (id.clone(), any::<bool>()).prop_map(|(id, drain)| {
        let order = if drain { "drain" } else { "forget" };
        let value = format!(r#"{{"version":1,"order":"{order}"}}"#);
        (format!("order/{id}").into_bytes(), Some(value.into_bytes()))
    });
    let rebalance = (any::<bool>(), prop::option::of(0..60_i64)).prop_map(|(known, term)| {
        let mut value = serde_json::json!({"version": 1, "per_second": 5});
        if let Some(term) = term {
            let ended =
                serde_json::json!({"term": term, "even": true, "moved": 0, "moved_from": {}});
            value["ended"] = ended;
        }
        let key = if known { "rebalance/chat" } else { "rebalance/a" };
        (key.as_bytes().to_vec(), Some(value.to_string().into_bytes()))
    });
    let kinds = prop_oneof![
        Just("server"),
        Just("lease"),
        Just("refusal"),
        Just("order"),
        Just("rebalance"),
    ];
    let tombstone = (kinds, id).prop_map(|(kind, id)| (format!("{kind}/{id}").into_bytes(), None));
    let coordinator = (0..3_u16).prop_map(|relay| {
        let value = format!(r#"{{"version":1,"relay":{relay},"incarnation":5}}"#);
        (b"coordinator".to_vec(), Some(value.into_bytes()))
    });
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let nonsense = prop_oneof![
        (bytes(), prop::option::of(bytes())),
        ("(server|lease|relay|order|rebalance)/.{0,3}|coordinator", bytes())
            .prop_map(|(key, value)| (key.into_bytes(), Some(value))),
    ];
    prop_oneof![
        4 => server, 2 => lease, 1 => order, 1 => rebalance, 1 => tombstone, 1 => coordinator,
        1 => nonsense,
    ]
}

/// What compaction leaves of a log, at its most.
fn compacted(log: &Log) -> Log {
    let last: BTreeMap<_, _> = log.iter().map(|(offset, key, _)| (key.clone(), *offset)).collect();
    log.iter()
        .filter(|(offset, key, value)| last[key] == *offset && value.is_some())
        .cloned()
        .collect()
}

fn fold(log: &Log) -> Registry {
    let mut registry = Registry::default();
    for (offset, key, value) in log {
        registry.apply(*offset, key, value.as_deref());
    }
    registry
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// Whatever stands in the log: no panic; the coordinator comes to rest; no partition has two
    /// servers; who reads the log again, whole or compacted, knows the same.
    #[test]
    fn the_log_is_all_there_is_to_know(
        steps in prop::collection::vec((record(), 0..40_u64, any::<bool>()), 1..40),
    ) {
        let mut bench = Bench::new();
        for ((key, value), seconds, settle) in steps {
            bench.append(&key, value);
            bench.now += Duration::from_secs(seconds);
            if settle {
                // Somebody else may have written that it coordinates.
                bench.take_office();
                bench.settle();
            }
        }
        bench.take_office();
        bench.settle();
        let mut holders = BTreeMap::new();
        for (id, lease) in bench.registry.leases().iter().filter(|(_, lease)| lease.is_in_force()) {
            let other = holders.insert(lease.partition, id.clone());
            prop_assert!(other.is_none(), "{other:?} and {id} at {}", lease.partition);
        }
        prop_assert_eq!(&fold(&bench.log), &bench.registry);
        prop_assert_eq!(&fold(&compacted(&bench.log)), &bench.registry);
    }
}

#[test]
fn a_refusal_is_of_its_term() {
    let mut registry = Registry::default();
    let refusal = Refusal {
        version: VERSION,
        term: Term(5),
        instance: "a".to_owned(),
        reason: String::new(),
    };
    let value = serde_json::to_vec(&refusal).unwrap();
    assert_eq!(
        registry.apply(5, b"refusal/a", Some(&value)),
        Outcome::Refused(RefusedReason::MalformedValue, Some(Key::Refusal("a".to_owned()))),
        "nobody knows his term before it begins"
    );
    let outcome = registry.apply(6, b"refusal/a", Some(&value));
    assert_eq!(outcome, Outcome::Changed(Key::Refusal("a".to_owned())));
}
