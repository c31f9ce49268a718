//! Allotment, and several relays that fold one log.

mod room;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::codec::Framing;
use crate::config::{Absence, Server, Service, Then};
use crate::model::{
    Association, ClientIdentity, IdentityKind, Incarnation, Partition, Refusal, RelayId, ServerId,
    ServiceId,
};

use super::policy::Policy;
use super::record::{Key, Value};
use super::table::{Content, Holder, Incoming, Table};
use super::*;

fn service(name: &str, servers: u16, first_partition: u16) -> Service {
    Service {
        destinations: vec!["192.0.2.0/24".parse().unwrap()],
        servers: (first_partition..first_partition + servers)
            .map(|partition| {
                let id = format!("{name}-{partition}");
                Server::new(id, Ipv4Addr::LOCALHOST.into(), Partition(partition))
            })
            .collect(),
        ..Service::new(name, 7000 + first_partition, Framing::Lines)
    }
}

fn client(number: u16) -> ClientIdentity {
    ClientIdentity::Connection {
        client: (Ipv4Addr::LOCALHOST, number).into(),
        server: ([192, 0, 2, 1], 7000).into(),
    }
}

fn associations(services: &[Service]) -> Associations {
    Associations::new(services, RelayId(0), Incarnation::new(1))
}

proptest! {
    #[test]
    fn each_new_client_gets_a_server_with_the_fewest(
        steps in prop::collection::vec((any::<bool>(), 0..60_u16, 0..2_u16), 1..300),
    ) {
        let associations = associations(&[service("a", 3, 0), service("b", 2, 3)]);
        let mut model: HashMap<(u16, u16), (Association, u32)> = HashMap::new();
        for (connect, number, service) in steps {
            let id = ServiceId(service);
            if !connect {
                let known = model.get_mut(&(service, number));
                let server = known.as_ref().map_or(ServerId(0), |(known, _)| known.server);
                associations.dissociate(id, client(number), server);
                if let Some((_, connections)) = known {
                    *connections -= 1;
                }
                model.retain(|_, (_, connections)| *connections > 0);
                continue;
            }
            let load = |model: &HashMap<_, (Association, u32)>, partition: u16| {
                model.values().filter(|(found, _)| found.partition == Partition(partition)).count()
            };
            let servers = if service == 0 { 0..3 } else { 3..5 };
            let fewest = servers.clone().map(|partition| load(&model, partition)).min().unwrap();
            let found = associations.associate(id, client(number)).unwrap();
            prop_assert!(servers.contains(&found.partition.0));
            if let Some((known, connections)) = model.get_mut(&(service, number)) {
                prop_assert_eq!(&*known, &found, "an association stays");
                *connections += 1;
            } else {
                prop_assert_eq!(load(&model, found.partition.0), fewest);
                model.insert((service, number), (found, 1));
            }
        }
        let total: u32 = associations.counts().values().flat_map(BTreeMap::values).sum();
        prop_assert_eq!(total as usize, model.len());
        prop_assert_eq!(associations.clients(), model.len());
    }
}

#[test]
fn ties_go_round() {
    let associations = associations(&[service("a", 3, 0)]);
    let mut hits = [0; 3];
    for number in 0..30 {
        let found = associations.associate(ServiceId(0), client(number)).unwrap();
        associations.dissociate(ServiceId(0), client(number), found.server);
        hits[found.partition.index()] += 1;
    }
    assert_eq!(hits, [10; 3], "short connections in turn load all servers alike");
}

#[test]
fn capacity_is_the_share() {
    let mut services = [service("a", 2, 0)];
    services[0].servers[1].capacity = NonZeroU32::new(3).unwrap();
    let associations = associations(&services);
    for number in 0..40 {
        associations.associate(ServiceId(0), client(number)).unwrap();
    }
    assert_eq!(associations.counts()["a"], [("a-0".into(), 10), ("a-1".into(), 30)].into());
}

#[test]
fn preferred_servers_come_first_while_one_is_live() {
    let mut services = [service("a", 3, 0)];
    services[0].prefer = [("zone".into(), "north".into()), ("disk".into(), "fast".into())].into();
    let north = BTreeMap::from([("zone".to_owned(), "north".to_owned())]);
    services[0].servers[0].labels = north.clone();
    services[0].servers[1].labels = services[0].prefer.clone();
    services[0].servers[1].labels.insert("rack".into(), "7".into());
    let associations = associations(&services);
    for number in 0..10 {
        associations.associate(ServiceId(0), client(number)).unwrap();
    }
    assert_eq!(associations.counts()["a"]["a-1"], 10, "it alone has all the labels");
    let mut link = ServerLink::declared(ServiceId(0), &services[0].servers[1]);
    link.state = ServerState::Away;
    associations.set_server(link);
    for number in 10..20 {
        associations.associate(ServiceId(0), client(number)).unwrap();
    }
    let counts = &associations.counts()["a"];
    assert_eq!((counts["a-0"], counts["a-1"], counts["a-2"]), (5, 10, 5), "all others are alike");
}

#[test]
fn clients_of_a_server_that_is_not_live() {
    let mut services = [service("a", 2, 0)];
    services[0].absence = Absence { after_ms: 0, ..Absence::default() };
    let id = ServiceId(0);
    for (state, then, stays) in [
        (ServerState::Away, Then::Keep, true),
        (ServerState::Away, Then::Reassign, false),
        (ServerState::Draining, Then::Keep, false),
        (ServerState::Gone, Then::Keep, false),
    ] {
        services[0].absence.then = then;
        let associations = associations(&services);
        let first = associations.associate(id, client(0)).unwrap();
        let mut link = ServerLink::declared(id, &services[0].servers[first.partition.index()]);
        link.state = state;
        associations.set_server(link.clone());
        let again = associations.associate(id, client(0)).unwrap();
        assert_eq!(again == first, stays, "{state:?}, {then:?}");
        for number in 1..10 {
            assert_ne!(associations.associate(id, client(number)).unwrap(), first);
        }
        let mut other = ServerLink::declared(id, &services[0].servers[1 - first.partition.index()]);
        other.state = ServerState::Away;
        associations.set_server(other);
        assert_eq!(associations.associate(id, client(20)), Err(Refusal::NoServer));
        assert!(associations.concerns().is_empty(), "nobody else is there: they stay");
        link.state = ServerState::Live;
        associations.set_server(link);
        assert_eq!(associations.associate(id, client(20)), Ok(first));
    }
    services[0].absence.then = Then::Refuse;
    let associations = associations(&services);
    let first = associations.associate(id, client(0)).unwrap();
    let mut link = ServerLink::declared(id, &services[0].servers[first.partition.index()]);
    link.state = ServerState::Away;
    associations.set_server(link);
    assert_eq!(associations.associate(id, client(0)), Err(Refusal::ServerAway));
    assert!(associations.associate(id, client(1)).is_ok(), "others are not concerned");
    assert_eq!(associations.concerns()[0].measure, Measure::Refuse);
}

#[test]
fn a_moved_connection_is_counted_where_it_is() {
    let services = [service("a", 2, 0)];
    let associations = associations(&services);
    let id = ServiceId(0);
    let first = associations.associate(id, client(0)).unwrap();
    let mut link = ServerLink::declared(id, &services[0].servers[first.partition.index()]);
    link.state = ServerState::Draining;
    associations.set_server(link.clone());
    let concern = &associations.concerns()[0];
    assert_eq!(concern.server, first.server);
    let second = associations.reassociate(id, client(0), first.server);
    assert_ne!(second.server, first.server);
    assert_eq!(associations.moved(), [(first.name.to_string(), 1)].into());
    assert!(associations.concerns().is_empty());
    associations.dissociate(id, client(0), second.server);
    assert!(associations.counts()["a"].values().all(|count| *count == 0));
}

/// A record of the simulated log: key, value, generation of a tombstone.
type Logged = (Key, Option<Vec<u8>>, u64);

/// A relay of the simulation: its table, how far it has read, and its connections.
struct Relay {
    table: Table,
    me: Holder,
    read: usize,
    connections: Vec<(Key, ServerId)>,
}

const KEEP_MS: u64 = 50;

fn holder(relay: u16, run: u64) -> Holder {
    (RelayId(relay), Incarnation::new(run))
}

fn policies(keep_ms: u32) -> Arc<[Policy]> {
    let mut service = service("a", 3, 0);
    service.identity = IdentityKind::Address;
    service.association_keep_ms = keep_ms;
    [Policy::from(&service)].into()
}

fn key(number: u8) -> Key {
    let identity = ClientIdentity::Address(IpAddr::from([192, 0, 2, number]));
    Key { service: ServiceId(0), identity }
}

impl Relay {
    fn new(me: Holder, gone: &[Holder], keep_ms: u32, log: &[Logged], now: u64) -> Self {
        let policies = policies(keep_ms);
        let mut table = Table::new(me, policies.clone());
        for server in service("a", 3, 0).servers {
            let link = ServerLink::declared(ServiceId(0), &server);
            let id = table.server_named(&link.name, link.service, 0).unwrap();
            table.servers.set(id, link, &policies, 0);
        }
        for (relay, run) in gone {
            table.relay_gone(*relay, *run, now);
        }
        let mut relay = Self { table, me, read: 0, connections: Vec::new() };
        relay.read(log, log.len(), now);
        relay.table.begin(now);
        relay
    }

    fn read(&mut self, log: &[Logged], most: usize, now: u64) {
        for (key, value, generation) in log.iter().skip(self.read).take(most) {
            self.read += 1;
            let record = match value {
                Some(value) => Incoming::Entry(Value::parse(value).unwrap()),
                None => Incoming::End { generation: *generation },
            };
            let _ = self.table.apply(key.clone(), record, now);
        }
    }

    fn write(&mut self, log: &mut Vec<Logged>, most: usize) {
        for outgoing in self.table.take_unwritten(most) {
            log.push(match outgoing.content {
                Content::End { generation } => (outgoing.key, None, generation),
                Content::Entry { server, generation, until } => {
                    let me = (self.me.0.0, self.me.1.value());
                    let value = Value::new(&server, generation, me, until);
                    (outgoing.key, Some(serde_json::to_vec(&value).unwrap()), 0)
                }
            });
        }
    }
}

/// Everybody writes and reads all there is, until nobody has anything to say.
fn settle(relays: &mut [Relay], log: &mut Vec<Logged>, now: u64) {
    for _ in 0..100 {
        for relay in &mut *relays {
            relay.table.expire(now);
            relay.write(log, usize::MAX);
        }
        for relay in &mut *relays {
            relay.read(log, usize::MAX, now);
        }
        if relays.iter().all(|relay| relay.table.unwritten() == 0) {
            return;
        }
    }
    panic!("the relays do not come to rest");
}

fn compacted(log: &[Logged]) -> Vec<Logged> {
    let mut last: HashMap<&Key, usize> = HashMap::new();
    log.iter().enumerate().for_each(|(index, (key, ..))| {
        last.insert(key, index);
    });
    let kept = log
        .iter()
        .enumerate()
        .filter(|(index, (key, value, _))| last[key] == *index && value.is_some());
    kept.map(|(_, record)| record.clone()).collect()
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Connect(usize, u8),
    Disconnect(usize, usize),
    Read(usize, usize),
    Write(usize, usize),
    /// `kill -9`, and the other relays hear of it.
    Kill(usize),
    /// The first hears that the second, which runs, is gone.
    Suspect(usize, usize),
    /// The first hears that the second runs.
    Hear(usize, usize),
    /// Another relay coordinates.
    Coordinate(usize),
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_usize, 0..6_u8).prop_map(|(relay, client)| Step::Connect(relay, client)),
        4 => (0..3_usize, any::<usize>()).prop_map(|(relay, which)| Step::Disconnect(relay, which)),
        4 => (0..3_usize, 1..5_usize).prop_map(|(relay, most)| Step::Read(relay, most)),
        4 => (0..3_usize, 1..5_usize).prop_map(|(relay, most)| Step::Write(relay, most)),
        1 => (0..3_usize).prop_map(Step::Kill),
        2 => (0..3_usize, 0..3_usize).prop_map(|(relay, other)| Step::Suspect(relay, other)),
        2 => (0..3_usize, 0..3_usize).prop_map(|(relay, other)| Step::Hear(relay, other)),
        1 => (0..3_usize).prop_map(Step::Coordinate),
        1 => (0..2 * KEEP_MS).prop_map(Step::Time),
    ]
}

/// In the end relays agree, each connected client is associated once, and whoever reads the log
/// later, compacted or not, agrees too.
fn relays_agree_after(steps: &[Step], keep: u64) -> Result<(), TestCaseError> {
    let keep = u32::try_from(keep).unwrap();
    let (mut log, mut now, mut run, mut gone) = (Vec::new(), 1000, 1, Vec::new());
    let mut relays: Vec<_> =
        (0..3).map(|id| Relay::new(holder(id, 1), &gone, keep, &log, now)).collect();
    let mut coordinator = 0;
    relays[coordinator].table.set_coordinates(true);
    for step in steps.iter().copied() {
        match step {
            Step::Connect(index, client) => {
                let relay = &mut relays[index];
                let server = relay.table.connect(key(client), now, |_| true).unwrap();
                relay.connections.push((key(client), server));
            }
            Step::Disconnect(index, which) => {
                let relay = &mut relays[index];
                if !relay.connections.is_empty() {
                    let which = which % relay.connections.len();
                    let (key, server) = relay.connections.swap_remove(which);
                    relay.table.disconnect(&key, server, now);
                }
            }
            Step::Read(index, most) => relays[index].read(&log, most, now),
            Step::Write(index, most) => relays[index].write(&mut log, most),
            Step::Kill(index) => {
                run += 1;
                let (id, dead) = relays[index].me;
                gone.push((id, dead));
                relays[index] = Relay::new(holder(id.0, run), &gone, keep, &log, now);
                relays[index].table.set_coordinates(index == coordinator);
                for relay in &mut relays {
                    relay.table.relay_gone(id, dead, now);
                }
            }
            Step::Suspect(relay, other) => {
                let (id, run) = relays[other].me;
                relays[relay].table.relay_gone(id, run, now);
            }
            Step::Hear(relay, other) => {
                let (id, run) = relays[other].me;
                relays[relay].table.relay_runs(id, run, now);
            }
            Step::Coordinate(index) => {
                relays[coordinator].table.set_coordinates(false);
                coordinator = index;
                relays[coordinator].table.set_coordinates(true);
            }
            Step::Time(ms) => {
                now += ms;
                for relay in &mut relays {
                    relay.table.expire(now);
                }
            }
        }
    }
    // Whoever runs goes on saying so.
    let running: Vec<_> = relays.iter().map(|relay| relay.me).collect();
    for relay in &mut relays {
        for (id, run) in &running {
            relay.table.relay_runs(*id, *run, now);
        }
    }
    settle(&mut relays, &mut log, now);
    now += 2 * KEEP_MS;
    settle(&mut relays, &mut log, now);

    let mut connected: Vec<Key> =
        relays.iter().flat_map(|relay| &relay.connections).map(|(key, _)| key.clone()).collect();
    connected.sort();
    connected.dedup();
    let facts = relays[0].table.facts();
    prop_assert_eq!(facts.keys().cloned().collect::<Vec<_>>(), connected);
    for relay in &relays[1..] {
        prop_assert_eq!(&relay.table.facts(), &facts);
    }
    for log in [log.clone(), compacted(&log)] {
        let late = Relay::new(holder(9, 1), &gone, keep, &log, now);
        prop_assert_eq!(&late.table.facts(), &facts);
        for (_, server) in late.table.servers.all() {
            let clients = facts.values().filter(|(name, _)| *name == server.name).count();
            prop_assert_eq!(server.clients as usize, clients);
        }
    }
    Ok(())
}

/// A relay's record that was written before it read that another one's of the same generation was
/// first, and had ended: found by the test below.
#[test]
fn a_connection_of_an_older_millrace_counts_until_its_relay_is_gone() {
    let associations = associations(&[service("a", 2, 0)]);
    let record = serde_json::to_vec(&Value::new("a-0", 3, (7, 1), None)).unwrap();
    associations.apply(b"a/127.0.0.1:4000", Some(&record), None);
    associations.begin();
    assert_eq!(associations.clients_of("a-0"), 1);
    // The connection from that port is another client, whatever the old record says of it.
    let server = associations.associate(ServiceId(0), client(4000)).unwrap();
    assert_eq!(&*server.name, "a-1", "the one with the fewest");
    associations.set_coordinator(true);
    associations.relay_gone(RelayId(7), Incarnation::new(1));
    assert_eq!((associations.clients_of("a-0"), associations.clients_of("a-1")), (0, 1));
    let written = associations.take_unwritten(10);
    let keys: Vec<_> = written.iter().map(|record| associations.print(&record.key)).collect();
    assert_eq!(keys, ["a/tcp:127.0.0.1:4000>192.0.2.1:7000", "a/127.0.0.1:4000"]);
    assert_eq!(written[1].content, Content::End { generation: 3 });
}

#[test]
fn a_record_that_outlives_its_entry_counts() {
    use Step::{Connect, Disconnect, Time, Write};
    let steps = [
        Connect(0, 3),
        Disconnect(0, 0),
        Connect(0, 3),
        Disconnect(0, 0),
        Write(0, 1),
        Connect(2, 3),
        Time(KEEP_MS),
        Write(0, 1),
        Write(2, 1),
        Disconnect(2, 0),
        Connect(2, 3),
    ];
    relays_agree_after(&steps, KEEP_MS).unwrap();
    relays_agree_after(&[&steps[..], &[Disconnect(2, 0)]].concat(), KEEP_MS).unwrap();
}

proptest! {
    /// Whatever three relays do, however late they read, and whoever takes whom for gone for a while.
    #[test]
    fn relays_agree(
        steps in prop::collection::vec(step(), 1..80),
        keep in prop_oneof![Just(0), Just(KEEP_MS)],
    ) {
        relays_agree_after(&steps, keep)?;
    }

    /// Any bytes at all are refused or taken, never more.
    #[test]
    fn nonsense_is_counted(
        key in prop_oneof![Just(b"a/192.0.2.1".to_vec()), prop::collection::vec(any::<u8>(), 0..30)],
        value in prop::option::of(prop::collection::vec(any::<u8>(), 0..60)),
        header in prop::option::of(prop::collection::vec(any::<u8>(), 0..8)),
    ) {
        let associations = associations(&[service("a", 1, 0)]);
        associations.apply(&key, value.as_deref(), header.as_deref());
        let stats = associations.log_stats();
        prop_assert_eq!(stats.read.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}
