//! Replies for a client who is away wait, and come in order when it is back: at whichever relay, and
//! after any restart.

use std::time::Duration;

use millrace_harness::clients::tcp::Client;
use millrace_harness::kafka;
use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::process::wait_until;
use millrace_relay::model::IdentityKind;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const PATIENCE: Duration = Duration::from_secs(30);

fn identified(config: &mut millrace_relay::config::Config) {
    config.services[0].identity = IdentityKind::Address;
}

/// Connects, learns its key, and leaves.
fn visit(relay: &Direct, server: &HandServer) -> Record {
    let client = relay.connect().unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    drop(client);
    server.next("close", |record| record.kind() == "close").unwrap();
    open
}

fn values(numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    numbers.map(|number| format!("reply {number}").into_bytes()).collect()
}

fn expect_in_order(client: &mut Client, numbers: std::ops::Range<u32>) {
    for value in values(numbers) {
        assert_eq!(client.receive().unwrap(), value);
    }
}

fn wait_for(relay: &Direct, counter: &str, count: u64) {
    wait_until(PATIENCE, counter, || Ok(relay.instance.stats()?.count(counter)? == count)).unwrap();
}

#[test]
fn a_thousand_replies_wait_and_come_in_order_through_the_other_relay() {
    let mut first = Direct::build("held", identified).unwrap();
    let mut second = Direct::beside(&first, 1, identified).unwrap();
    first.instance.start().unwrap();
    second.instance.start().unwrap();
    let server = HandServer::on(&first.brokers, first.topics.prefix(), &[0]).unwrap();
    let open = visit(&first, &server);
    assert!(open.key.ends_with("/echo/127.0.0.1"), "{}", open.key);
    server.reply_many(&open, values(0..1000)).unwrap();
    wait_for(&first, "replies_held", 1000);
    wait_until(PATIENCE, "the downlink's offset to pass them", || {
        Ok(first.committed_downlink()? == Some(1000))
    })
    .unwrap();
    let mut client = second.connect().unwrap();
    expect_in_order(&mut client, 0..1000);
    // The client is there: what still comes to its old connection goes the same way.
    server.reply(&open, b"reply 1000").unwrap();
    expect_in_order(&mut client, 1000..1001);
    wait_for(&second, "held_delivered", 1001);
    for relay in [&first, &second] {
        wait_for(relay, "held_waiting", 0);
    }
    drop(client);
    let mut again = first.connect().unwrap();
    let is_new = |record: &Record| record.kind() == "open" && record.header("reply") == "0";
    let open = server.next("open", is_new).unwrap();
    server.reply(&open, b"nothing came before").unwrap();
    assert_eq!(again.receive().unwrap(), b"nothing came before");
    assert_eq!(first.record_count("deadletter").unwrap(), 0);
}

#[test]
fn what_waits_is_written_in_batches_that_its_topic_takes() {
    let mut relay = Direct::build("fitting", identified).unwrap();
    relay.topics.create_with("held", 8, &[("max.message.bytes", "20000")]).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let open = visit(&relay, &server);
    let long = |number: u32| format!("reply {number:0100}").into_bytes();
    server.reply_many(&open, (0..1000).map(long)).unwrap();
    wait_for(&relay, "replies_held", 1000);
    assert_eq!(relay.record_count("deadletter").unwrap(), 0);
}

#[test]
fn what_waits_outlives_the_relay_and_what_came_while_it_was_down_waits_too() {
    let mut relay = Direct::build("restart", identified).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let open = visit(&relay, &server);
    server.reply_many(&open, values(0..1000)).unwrap();
    wait_for(&relay, "replies_held", 1000);
    relay.instance.stop().unwrap();
    server.reply_many(&open, values(1000..1100)).unwrap();
    relay.instance.start().unwrap();
    wait_for(&relay, "held_waiting", 1100);
    // Killed before anybody came: nothing is lost by that.
    relay.instance.kill().unwrap();
    relay.instance.start().unwrap();
    let mut client = relay.connect().unwrap();
    expect_in_order(&mut client, 0..1100);
    wait_for(&relay, "held_waiting", 0);
    drop(client);
    relay.instance.stop().unwrap();
    relay.instance.start().unwrap();
    wait_for(&relay, "held_waiting", 0);
    assert_eq!(relay.record_count("deadletter").unwrap(), 0);
}

#[test]
fn a_reply_that_comes_just_after_its_client_has_closed_waits_for_it() {
    let mut relay = Direct::build("closed", identified).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let client = relay.connect().unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    drop(client);
    // Within `half_close_ms`: the relay still sends, as to one that has only ended its side.
    server.reply(&open, b"late").unwrap();
    wait_for(&relay, "replies_held", 1);
    let mut client = relay.connect().unwrap();
    assert_eq!(client.receive().unwrap(), b"late");
    wait_for(&relay, "held_waiting", 0);
}

#[test]
fn what_is_beyond_the_limits_becomes_dead_letters() {
    let mut relay = Direct::build("limits", |config| {
        identified(config);
        config.hold.max_per_client = 10;
        config.hold.max_age_ms = 3000;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let open = visit(&relay, &server);
    server.reply_many(&open, values(0..12)).unwrap();
    let letters = Letters::read(&relay, 12).unwrap();
    let reasons = |reason: &str| {
        let of_reason = letters.iter().filter(|letter| letter.reason() == reason);
        of_reason.map(|letter| letter.value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(reasons("hold_limit"), values(10..12));
    assert_eq!(reasons("hold_age"), values(0..10));
    wait_for(&relay, "held_waiting", 0);
    let mut client = relay.connect().unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    server.reply(&open, b"nothing came before").unwrap();
    assert_eq!(client.receive().unwrap(), b"nothing came before");
}

/// A reply as another relay holds it.
fn hold(relay: &Direct, partition: i32, value: &str) {
    let topic = format!("{}held", relay.topics.prefix());
    let producer: BaseProducer = kafka::client(&relay.brokers)
        .set("topic.metadata.refresh.interval.ms", "500")
        .create()
        .unwrap();
    let header = |key, value| Header { key, value: Some(value) };
    let headers = OwnedHeaders::new()
        .insert(header("millrace.kind", "reply"))
        .insert(header("millrace.relay", "9-1"))
        .insert(header("millrace.offset", "5"));
    let written = || {
        let record = BaseRecord::to(&topic).partition(partition).key("echo/127.0.0.1");
        let sent = producer.send(record.payload(value).headers(headers.clone()));
        Ok(sent.is_ok())
    };
    // Until the partition is known.
    wait_until(PATIENCE, "the partition to be known", written).unwrap();
    producer.flush(PATIENCE).unwrap();
}

#[test]
fn what_waits_in_a_partition_that_was_added_is_read() {
    let mut relay = Direct::build("grown", identified).unwrap();
    relay.instance.start().unwrap();
    relay.topics.grow("held", 8).unwrap();
    for partition in [7, 4] {
        hold(&relay, partition, "added");
    }
    wait_for(&relay, "held_waiting", 2);
    let mut client = relay.connect().unwrap();
    for _ in 0..2 {
        assert_eq!(client.receive().unwrap(), b"added");
    }
    wait_for(&relay, "held_delivered", 2);
    wait_for(&relay, "held_waiting", 0);
    assert_eq!(relay.record_count("held").unwrap(), 4, "two replies, and a mark for each");
}
