//! Two relays that share servers: who belongs to whom is fair, agreed on, and outlives a relay.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::kafka;
use millrace_harness::relay::fleet::{Fleet, config};
use millrace_harness::servers::by_hand::Record;
use millrace_harness::system::meter::resident_bytes;
use millrace_harness::system::process::wait_until;
use millrace_relay::config::Config;
use millrace_relay::model::{IdentityKind, Incarnation, RelayId, ServiceId};
use millrace_relay::route::Associations;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const PATIENCE: Duration = Duration::from_secs(30);
const KEEP_MS: u32 = 600_000;

fn by_address(config: &mut Config) {
    config.services[0].identity = IdentityKind::Address;
    config.services[0].association_keep_ms = KEEP_MS;
}

/// An address of the loopback device that only one client of a test uses.
fn source(number: usize) -> IpAddr {
    let [high, low] = u16::try_from(number).expect("few clients").to_be_bytes();
    Ipv4Addr::new(127, 1, high, low).into()
}

/// The mean by weight, 5 % around it, and the clients of each server.
fn assert_fair(clients: &[u64], weights: &[u32]) {
    let (all, weight): (u64, u32) = (clients.iter().sum(), weights.iter().sum());
    for (count, share) in clients.iter().zip(weights) {
        let off = (count * u64::from(weight)).abs_diff(all * u64::from(*share));
        assert!(off * 20 <= all * u64::from(*share), "{clients:?} of {all}, weights {weights:?}");
    }
}

#[test]
fn two_thousand_clients_at_once_are_spread_by_weight_over_both_relays() {
    const WEIGHTS: [u32; 8] = [1, 1, 2, 1, 1, 4, 1, 1];
    const CLIENTS: usize = 2000;
    const MESSAGES: usize = 5;
    const AT_ONCE: usize = 16;
    let weigh = |config: &mut Config| {
        for (server, weight) in config.services[0].servers.iter_mut().zip(WEIGHTS) {
            server.capacity = NonZeroU32::new(weight).unwrap();
        }
    };
    let mut fleet = Fleet::new("storm", 2, 8, weigh).unwrap();
    (0..2).for_each(|relay| fleet.start(relay).unwrap());
    let relay_of = |number: usize| number / AT_ONCE % 2;
    let begin = std::sync::Barrier::new(AT_ONCE);
    let connect = |thread: usize| -> Result<Vec<(usize, Client)>> {
        begin.wait();
        let numbers = (thread..CLIENTS).step_by(AT_ONCE);
        let client = |number| {
            let target = fleet.address(relay_of(number));
            let mut client = Client::connect_from(source(0), target, lines())?;
            for sequence in 0..MESSAGES {
                client.send(format!("{number}:{sequence}").as_bytes())?;
            }
            Ok((number, client))
        };
        numbers.map(client).collect()
    };
    let mut clients: Vec<(usize, Client)> = std::thread::scope(|scope| {
        let connect = &connect;
        let threads: Vec<_> =
            (0..AT_ONCE).map(|thread| scope.spawn(move || connect(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap().unwrap()).collect()
    });
    fleet.wait_associations(&[0, 1], CLIENTS as u64).unwrap();
    let counts = fleet.associations(0).unwrap();
    assert_eq!(fleet.associations(1).unwrap(), counts, "both relays know the same");
    println!("associations per server, by weight {WEIGHTS:?}: {counts:?}");
    assert_fair(&counts, &WEIGHTS);

    // Each client's records are in one partition, its server's, and in order.
    let server = fleet.server(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
    let mut seen: HashMap<String, (u16, usize)> = HashMap::new();
    let mut opened = [0; 8];
    for _ in 0..CLIENTS * (1 + MESSAGES) {
        let record = server.next("a record", |_| true).unwrap();
        if record.kind() != "message" {
            assert_eq!(record.header("server"), format!("server-{}", record.partition));
            assert_eq!(record.header("epoch"), "0");
        }
        let (partition, next) = seen.entry(record.key.clone()).or_insert((record.partition, 0));
        assert_eq!(record.partition, *partition);
        if record.kind() == "open" {
            assert_eq!(*next, 0);
            opened[usize::from(record.partition)] += 1;
        } else {
            let text = String::from_utf8(record.value).unwrap();
            assert_eq!(text.split_once(':').unwrap().1, (*next - 1).to_string());
        }
        *next += 1;
    }
    assert_eq!(seen.len(), CLIENTS);
    assert_eq!(opened.to_vec(), counts);

    // The second relay is killed; its return ends what it had. The first one's clients stay.
    fleet.relays[1].kill().unwrap();
    fleet.start(1).unwrap();
    clients.retain(|(number, _)| relay_of(*number) == 0);
    fleet.wait_associations(&[0, 1], clients.len() as u64).unwrap();
    clients[0].1.send(b"still here").unwrap();
    server.next("a message after the kill", |record| record.value == b"still here").unwrap();
    let mut back = Client::connect_from(source(0), fleet.address(1), lines()).unwrap();
    back.send(b"back").unwrap();
    server.next("a message through the second relay", |record| record.value == b"back").unwrap();
    drop((clients, back));
    fleet.wait_associations(&[0, 1], 0).unwrap();
}

/// Connects a client and returns it with the name of its server.
fn connect(fleet: &Fleet, relay: usize, number: usize) -> Result<(Client, String)> {
    let mut client = Client::connect_from(source(number), fleet.address(relay), lines())?;
    let text = format!("client {number} at {relay}");
    client.send(text.as_bytes())?;
    let all = fleet.server(&[0, 1, 2, 3])?;
    let address = client.address()?.to_string();
    let is_it =
        |record: &Record| record.header("client") == address && record.value == text.as_bytes();
    let record = all.next("the client's message", is_it)?;
    Ok((client, format!("server-{}", record.partition)))
}

#[test]
fn a_client_with_an_identity_finds_its_server_again() {
    const CLIENTS: usize = 6;
    let mut fleet = Fleet::new("return", 2, 4, by_address).unwrap();
    (0..2).for_each(|relay| fleet.start(relay).unwrap());
    let all = |fleet: &Fleet, relay| {
        let clients = (0..CLIENTS).map(|number| connect(fleet, relay, number).unwrap());
        clients.unzip::<_, _, Vec<Client>, Vec<String>>()
    };
    let (clients, servers) = all(&fleet, 0);
    drop(clients);
    fleet.wait_associations(&[0, 1], CLIENTS as u64).unwrap();
    let (clients, again) = all(&fleet, 1);
    assert_eq!(again, servers, "through another relay");
    drop(clients);
    fleet.relays[1].stop().unwrap();
    fleet.relays[0].stop().unwrap();
    fleet.start(0).unwrap();
    fleet.wait_associations(&[0], CLIENTS as u64).unwrap();
    let (_clients, again) = all(&fleet, 0);
    assert_eq!(again, servers, "after a stop of all relays");
    // The clients are connected when the relay dies.
    fleet.relays[0].kill().unwrap();
    fleet.start(0).unwrap();
    fleet.wait_associations(&[0], CLIENTS as u64).unwrap();
    let (_clients, again) = all(&fleet, 0);
    assert_eq!(again, servers, "after a kill");
    // One address is one client, however many connections it has, and wherever.
    let _more = connect(&fleet, 0, 0).unwrap();
    fleet.start(1).unwrap();
    let (_elsewhere, server) = connect(&fleet, 1, 0).unwrap();
    assert_eq!(server, servers[0]);
    fleet.wait_associations(&[0, 1], CLIENTS as u64).unwrap();
}

#[test]
fn a_relay_that_is_killed_for_good_has_no_clients_any_more() {
    const CLIENTS: usize = 12;
    let quick = |config: &mut Config| config.registry.relay_timeout_ms = 1500;
    let mut fleet = Fleet::new("gone", 2, 4, quick).unwrap();
    (0..2).for_each(|relay| fleet.start(relay).unwrap());
    let clients: Vec<_> =
        (0..2 * CLIENTS).map(|number| connect(&fleet, number % 2, number).unwrap()).collect();
    fleet.wait_associations(&[0, 1], 2 * CLIENTS as u64).unwrap();
    fleet.relays[1].kill().unwrap();
    fleet.wait_associations(&[0], CLIENTS as u64).unwrap();
    // They are over in the log too: the relay that coordinates has said so, or does it now.
    let written = || {
        let stats = fleet.relays[0].stats()?;
        Ok(stats.count_by("association_records", "written")? >= 2 * CLIENTS as u64)
    };
    wait_until(PATIENCE, "the tombstones", written).unwrap();
    drop(clients);
    fleet.wait_associations(&[0], 0).unwrap();
    fleet.relays[0].stop().unwrap();
    // A relay of another number has nothing to go by but the log.
    fleet.start(1).unwrap();
    fleet.wait_associations(&[1], 0).unwrap();
}

#[test]
fn nonsense_among_the_associations_is_counted_and_harms_nobody() {
    let mut fleet = Fleet::new("nonsense", 1, 4, by_address).unwrap();
    let topic = fleet.relays[0].config.kafka.associations_topic();
    fleet.start(0).unwrap();
    let (_client, server) = connect(&fleet, 0, 1).unwrap();
    fleet.wait_associations(&[0], 1).unwrap();
    // The partition of a key is the one that the relay's producer takes.
    let producer: BaseProducer =
        kafka::client(&kafka::brokers()).set("partitioner", "murmur2").create().unwrap();
    let good = r#"{"version":1,"server":"server-0","generation":1,"relay":9,"incarnation":1,"state":"connected"}"#;
    let later = good.replace("\"version\":1", "\"version\":7");
    let key = format!("lines/{}", source(1));
    let records: [(&str, Option<&str>, Option<&str>, &str); 9] = [
        ("no slash", Some(good), None, "malformed_key"),
        ("lines/127.1.0.0:80", Some(good), None, "malformed_key"),
        ("nobody/127.1.0.0", Some(good), None, "unknown_service"),
        ("lines/127.1.0.9", Some("{"), None, "malformed_value"),
        ("lines/127.1.0.9", Some("\u{0}\u{fffd}"), None, "malformed_value"),
        ("lines/127.1.0.9", None, Some("many"), "malformed_header"),
        ("lines/127.1.0.9", Some(&later), None, "version"),
        (&key, Some(good), None, "superseded"),
        (&key, None, Some("0"), "superseded"),
    ];
    let mut expected: HashMap<&str, u64> = HashMap::new();
    for (key, value, header, reason) in records {
        *expected.entry(reason).or_default() += 1;
        let mut record = BaseRecord::to(&topic).key(key);
        record.payload = value;
        let generation = Header { key: "generation", value: header };
        record.headers = header.map(|_| OwnedHeaders::new().insert(generation));
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    wait_until(PATIENCE, "every refusal to be counted", || {
        let stats = fleet.relays[0].stats()?;
        for (reason, count) in &expected {
            if stats.count_by("association_records_refused", reason)? < *count {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .unwrap();
    assert_eq!(connect(&fleet, 0, 1).unwrap().1, server, "what was known stays");
    // A new run reads the same; the relay has written its own record again, so that it is the last.
    fleet.relays[0].stop().unwrap();
    fleet.start(0).unwrap();
    assert_eq!(connect(&fleet, 0, 1).unwrap().1, server);
}

fn fill(fleet: &Fleet, associations: u32) -> Result<()> {
    let topic = fleet.relays[0].config.kafka.associations_topic();
    let producer: BaseProducer =
        kafka::client(&kafka::brokers()).set("partitioner", "murmur2").create()?;
    for number in 0..associations {
        let key = format!("lines/{}", Ipv4Addr::from(0x0a00_0000 + number));
        let value = format!(
            r#"{{"version":1,"server":"server-{}","generation":1,"relay":9,"incarnation":1,"state":"connected"}}"#,
            number % 4
        );
        let mut record = BaseRecord::to(&topic).key(&key).payload(&value);
        while let Err((error, refused)) = producer.send(record) {
            let full = rdkafka::types::RDKafkaErrorCode::QueueFull;
            ensure!(error.rdkafka_error_code() == Some(full), "{error}");
            producer.poll(Duration::from_millis(10));
            record = refused;
        }
    }
    Ok(producer.flush(PATIENCE)?)
}

/// Nanoseconds for a client that comes and goes, while there are so many others: the least of some
/// rounds.
fn allotment_ns(servers: u16, clients: u32) -> u128 {
    const PAIRS: u32 = 2000;
    let config = config("unused.", 0, servers, 7000);
    let associations = Associations::new(&config.services, RelayId(0), Incarnation::new(1));
    let client = |number: u32| {
        let address = SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), 1));
        associations.identity(ServiceId(0), (address, address), None)
    };
    for number in 0..clients {
        associations.associate(ServiceId(0), client(number)).unwrap();
    }
    let round = |_| {
        let started = Instant::now();
        for number in clients..clients + PAIRS {
            let server = associations.associate(ServiceId(0), client(number)).unwrap().server;
            associations.dissociate(ServiceId(0), client(number), server);
        }
        started.elapsed().as_nanos() / u128::from(PAIRS)
    };
    (0..10).map(round).min().unwrap_or_default()
}

#[test]
#[ignore = "prints figures: `cargo xtask test -p millrace-e2e --test delivery associations:: -- --ignored --nocapture`"]
fn what_a_hundred_thousand_associations_cost() {
    const MANY: u32 = 100_000;
    let mut fleet = Fleet::new("many", 1, 4, by_address).unwrap();
    for associations in [0, MANY] {
        fill(&fleet, associations).unwrap();
        let started = Instant::now();
        fleet.start(0).unwrap();
        let (took, process) = (started.elapsed(), fleet.relays[0].process_id().unwrap());
        let resident = resident_bytes(process).unwrap() >> 10;
        println!("{associations} associations: ready after {took:?}, {resident} KiB resident");
        assert_eq!(fleet.associations(0).unwrap(), [u64::from(associations) / 4; 4]);
        fleet.relays[0].stop().unwrap();
    }
    for clients in [100, 1000, 10_000, MANY] {
        println!("allotment, 8 servers, {clients} clients: {} ns", allotment_ns(8, clients));
    }
    for servers in [8, 64, 512, 4096] {
        println!("allotment, {servers} servers, 1000 clients: {} ns", allotment_ns(servers, 1000));
    }
}
