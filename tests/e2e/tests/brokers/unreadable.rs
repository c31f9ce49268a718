//! Replies in every compression that Kafka has, and such as nobody can read.

use std::path::PathBuf;
use std::time::Duration;

use millrace_harness::kafka::{self, OwnBroker};
use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::process::{run, wait_until};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const PATIENCE: Duration = Duration::from_secs(30);
const CODECS: [&str; 4] = ["gzip", "snappy", "lz4", "zstd"];

fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("millrace-unreadable-{name}-{}", std::process::id()))
}

/// Writes values under one key as one compressed batch.
fn write(brokers: &str, topic: &str, codec: &str, key: &str, values: &[String]) {
    let producer: BaseProducer = kafka::client(brokers)
        .set("compression.type", codec)
        .set("linger.ms", "200")
        .create()
        .unwrap();
    for value in values {
        let record = BaseRecord::to(topic).partition(0).key(key).payload(value);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

fn long(text: &str) -> Vec<String> {
    (0..20).map(|number| format!("{text} {number} {}", "x".repeat(100))).collect()
}

fn first(server: &HandServer) -> Record {
    server.next("a message", |record| record.kind() == "message").unwrap()
}

#[test]
fn every_compression_is_read_in_the_downlink_and_in_the_registry() {
    let mut relay = Direct::build("codecs", |_| {}).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let (downlink, registry) = (
        format!("{}downlink", relay.topics.prefix()),
        format!("{}registry", relay.topics.prefix()),
    );
    let mut client = relay.connect().unwrap();
    client.send(b"hello").unwrap();
    let to = first(&server);
    for codec in CODECS {
        write(&relay.brokers, &downlink, codec, &to.key, &long(codec));
        for expected in long(codec) {
            assert_eq!(client.receive().unwrap(), expected.as_bytes(), "{codec}");
        }
        write(&relay.brokers, &registry, codec, "nobody", &long(codec));
    }
    // Whoever compresses, the topic may do so as well.
    for codec in CODECS {
        relay.topics.set("downlink", &[("compression.type", codec)]).unwrap();
        server.reply(&to, codec.as_bytes()).unwrap();
        assert_eq!(client.receive().unwrap(), codec.as_bytes());
    }
    drop(client);
    relay.instance.stop().unwrap();
    relay.instance.start().unwrap();
    relay.instance.stop().unwrap();
}

#[test]
fn replies_that_cannot_be_read_become_dead_letters_and_the_others_are_sent() {
    let broker = OwnBroker::start(&directory("letters")).unwrap();
    let mut relay = Direct::at(broker.address(), "damaged", |_| {}).unwrap();
    relay.instance.start().unwrap();
    relay.instance.stop().unwrap();
    let downlink = format!("{}downlink", relay.topics.prefix());
    write(&relay.brokers, &downlink, "none", "nobody", &["before".to_owned()]);
    write(&relay.brokers, &downlink, "gzip", "nobody", &long("damaged"));
    write(&relay.brokers, &downlink, "none", "nobody", &["behind".to_owned()]);
    broker.stop().unwrap();
    let log = broker.data().join(format!("{downlink}-0/00000000000000000000.log"));
    let mut bytes = std::fs::read(&log).unwrap();
    let begins: Vec<_> =
        (0..bytes.len() - 3).filter(|at| bytes[*at..][..3] == [0x1f, 0x8b, 8]).collect();
    assert!(!begins.is_empty(), "nothing is compressed");
    for at in begins {
        bytes[at + 10..at + 40].fill(0xff);
    }
    std::fs::write(&log, bytes).unwrap();
    broker.restart().unwrap();

    relay.instance.start().unwrap();
    wait_until(PATIENCE, "all to be dead letters", || {
        let stats = relay.instance.stats()?;
        let letters = |reason| stats.count_by("replies_dead_lettered", reason).unwrap_or_default();
        Ok((letters("unreadable"), letters("malformed_key")) == (20, 2))
    })
    .unwrap();
    let letters = Letters::read(&relay, 22).unwrap();
    let mut offsets: Vec<u32> = letters
        .iter()
        .filter(|letter| letter.reason() == "unreadable")
        .map(|letter| letter.text("millrace.offset").parse().unwrap())
        .collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (1..21).collect::<Vec<_>>());
    // It goes on with what follows.
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    client.send(b"hello").unwrap();
    server.reply(&first(&server), b"good day").unwrap();
    assert_eq!(client.receive().unwrap(), b"good day");
    let said = relay.instance.relay_stderr();
    assert_eq!(said.matches("replies cannot be read").count(), 1, "{said}");
    let mut command = relay.instance.command("ledger", false);
    let ledger = run("relay ledger", command.arg("--json"), PATIENCE).unwrap();
    assert!(ledger.status.success(), "{ledger:?}");
    relay.instance.stop().unwrap();
}
