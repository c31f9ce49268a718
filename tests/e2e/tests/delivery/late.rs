//! A relay that stood still, its clocks with it as it were, and writes for a server whose partition has
//! become another's meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::kafka;
use millrace_harness::relay::dead_letters::{Letter, Letters};
use millrace_harness::relay::fleet::{Fleet, SERVICE};
use millrace_harness::system::process::wait_until;
use millrace_relay::registry;
use millrace_relay::route::ServerState;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(40);
/// Longer than the relay stands still: it wakes and believes in what it knew.
const RELAY_TIMEOUT: Duration = Duration::from_secs(9);
const MESSAGES: usize = 100;
/// Before the word of the other lease, so that the relay writes before it has read that.
const NONSENSE: usize = 20_000;

struct Log {
    producer: BaseProducer,
    topic: String,
}

impl Log {
    fn write(&self, key: &str, value: &Value) -> Result<()> {
        let value = value.to_string();
        let record = BaseRecord::to(&self.topic).partition(0).key(key).payload(&value);
        self.producer.send(record).map_err(|(error, _)| error)?;
        Ok(())
    }

    fn end(&self) -> Result<i64> {
        self.producer.flush(PATIENCE)?;
        Ok(i64::try_from(kafka::record_count(&kafka::brokers(), &self.topic, 1)?)?)
    }
}

#[test]
fn messages_for_a_former_holder_become_dead_letters_also_after_kafka_has_taken_them() {
    let mut fleet = Fleet::new("late", 1, 0, |config| {
        config.relay.workers = 1;
        config.kafka.uplink_partitions = 1;
        config.registry.lease_ms = 60_000;
        config.registry.relay_timeout_ms = u32::try_from(RELAY_TIMEOUT.as_millis()).unwrap();
    })
    .unwrap();
    fleet.start(0).unwrap();
    let config = fleet.relays[0].config.clone();
    let log = Log {
        producer: kafka::client(&kafka::brokers()).create().unwrap(),
        topic: config.kafka.registry_topic(),
    };
    let registration = |address: &str| {
        json!({
            "version": 1, "service": SERVICE, "address": address, "instance": "by hand",
            "capacity": 1,
        })
    };
    log.write("server/a", &registration("192.0.2.7")).unwrap();
    wait_until(PATIENCE, "the lease", || {
        let servers = fleet.registry(0)?.servers;
        Ok(servers.iter().any(|server| server.id == "a" && server.state == ServerState::Live))
    })
    .unwrap();
    let namespace = Path::new("/proc/self/ns/net");
    let mut client = Client::connect(namespace, fleet.address(0), lines()).unwrap();
    client.send(b"in time").unwrap();
    let uplink = config.kafka.uplink_topic();
    let count = || kafka::record_count(&kafka::brokers(), &uplink, 1);
    wait_until(PATIENCE, "the first message to be in Kafka", || Ok(count()? == 2)).unwrap();
    let lease = registry::read(&config).unwrap().leases()["a"].clone();

    fleet.relays[0].signal(Signal::STOP).unwrap();
    let stood_still = Instant::now();
    for _ in 0..NONSENSE {
        log.write("nonsense", &Value::Null).unwrap();
    }
    let term = log.end().unwrap();
    log.write("coordinator", &json!({"version": 1, "relay": 9, "incarnation": 1})).unwrap();
    let mut former = serde_json::to_value(&lease).unwrap();
    former["term"] = term.into();
    former["state"] = "gone".into();
    let mut next = registration("192.0.2.8");
    for (name, value) in [
        ("term", json!(term)),
        ("state", json!("live")),
        ("partition", json!(lease.partition)),
        ("epoch", json!(lease.epoch + 1)),
        ("lease_ms", json!(60_000)),
        ("from", json!(count().unwrap())),
    ] {
        next[name] = value;
    }
    log.write("lease/a", &former).unwrap();
    log.write("lease/b", &next).unwrap();
    assert_eq!(log.end().unwrap(), term + 3);
    let words: Vec<_> = (0..MESSAGES).map(|number| format!("too late {number}")).collect();
    for word in &words {
        client.send(word.as_bytes()).unwrap();
    }
    assert!(stood_still.elapsed() < RELAY_TIMEOUT, "the machine is too slow for this test");
    fleet.relays[0].signal(Signal::CONT).unwrap();

    // Refused by the relay if it knew already, which ends the connection, or given to Kafka's client and
    // found there.
    let mut received = 0;
    let letters = config.kafka.deadletter_topic();
    wait_until(PATIENCE, "every message that the relay has taken to be a dead letter", || {
        let stats = fleet.relays[0].stats()?;
        received = usize::try_from(stats.count("messages_received")?)? - 1;
        let all = received == MESSAGES || stats.count("connections")? == 0;
        let written = kafka::record_count(&kafka::brokers(), &letters, 1)?;
        Ok(all && received > 0 && usize::try_from(written)? == received)
    })
    .unwrap();
    let letters = Letters::of(&config.kafka, received).unwrap();
    let value = |letter: &Letter| String::from_utf8_lossy(&letter.value).into_owned();
    let mut found: Vec<_> = letters.iter().map(value).collect();
    found.sort_by_key(|word| words.iter().position(|of| of == word));
    assert_eq!(found, words[..received]);
    let of = |reason| letters.iter().filter(|letter| letter.reason() == reason).count();
    println!("{} found in Kafka, {} refused", of("server_gone"), of("lease_over"));
    assert_eq!(of("server_gone") + of("lease_over"), received);
}
