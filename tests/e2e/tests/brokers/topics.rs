//! The topics of an instance: made as they should be, compared with what they should be, and what is told
//! of the difference.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use millrace_harness::kafka::{OwnBroker, brokers};
use millrace_harness::net::free_port;
use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::direct::Direct;
use millrace_harness::relay::echo_service;
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::{HandServer, Record, all_records};
use millrace_harness::system::process::{Finished, run, wait_until};
use rdkafka::mocking::MockCluster;

const PATIENCE: Duration = Duration::from_secs(30);
const ALL: [&str; 6] = ["uplink", "downlink", "registry", "associations", "held", "deadletter"];

fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("millrace-topics-{name}-{}", std::process::id()))
}

fn check(instance: &Instance) -> Finished {
    let mut command = instance.command("check", false);
    run("relay check", command.arg("--brokers"), PATIENCE).unwrap()
}

#[test]
fn topics_are_made_as_they_should_be_where_a_broker_makes_them_by_itself() {
    let broker =
        OwnBroker::start_with(&directory("auto"), &["auto.create.topics.enable=true"]).unwrap();
    let mut relay = Direct::at(broker.address(), "auto", |_| {}).unwrap();
    for _ in 0..2 {
        let looked = check(&relay.instance);
        let missing = looked.stdout.matches("does not exist").count();
        assert_eq!((missing, looked.status.success()), (ALL.len(), true), "{looked:?}");
    }
    relay.instance.start().unwrap();
    let looked = check(&relay.instance);
    assert!(looked.status.success(), "{looked:?}");
    assert!(looked.stdout.contains("the topics are as they should be"), "{looked:?}");
    assert_eq!(relay.instance.stats().unwrap().value()["topics"], serde_json::json!([]));
    relay.instance.stop().unwrap();
}

#[test]
fn a_start_does_not_wait_for_a_controller_that_is_not_there() {
    // The administrator's part of the protocol is what librdkafka's mock cluster lacks: each request of
    // it that goes to a controller ends with a time-out of ten seconds.
    const ONE_TIME_OUT: Duration = Duration::from_secs(10);
    let cluster = MockCluster::new(1).unwrap();
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let mut config = echo_service::config(target, "lo").unwrap();
    config.kafka.brokers = cluster.bootstrap_servers();
    config.relay.workers = 1;
    for (topic, partitions) in ALL.iter().zip([1, 1, 1, 4, 4, 1]) {
        let topic = format!("{}{topic}", config.kafka.topic_prefix);
        cluster.create_topic(&topic, partitions, 1).unwrap();
    }
    let mut instance = Instance::new(config, None).unwrap();
    let began = Instant::now();
    instance.start().unwrap();
    let took = began.elapsed();
    assert!(took < ONE_TIME_OUT, "the start took {took:?}");
    let told = instance.relay_stderr();
    assert!(told.contains("configuration is not told"), "{told}");
}

#[test]
fn what_differs_is_told_at_the_start_by_check_and_in_status() {
    let mut relay = Direct::build("differs", |_| {}).unwrap();
    relay.topics.create_with("associations", 1, &[("cleanup.policy", "delete")]).unwrap();
    let uplink = [
        ("max.message.bytes", "20000"),
        ("retention.ms", "60000"),
        ("message.timestamp.type", "CreateTime"),
    ];
    relay.topics.create_with("uplink", 1, &uplink).unwrap();
    relay.instance.start().unwrap();
    let told = relay.instance.relay_stderr();
    let looked = check(&relay.instance);
    assert!(!looked.status.success(), "{looked:?}");
    let stats = relay.instance.stats().unwrap().value()["topics"].to_string();
    for (topic, setting) in [
        ("associations", "partitions is 1 and should be 4"),
        ("associations", "cleanup.policy is delete and should be compact"),
        ("uplink", "max.message.bytes is 20000"),
        ("uplink", "retention.ms is 60000"),
        ("uplink", "message.timestamp.type is CreateTime and should be LogAppendTime"),
    ] {
        let line = format!("topic {}{topic}: {setting}", relay.topics.prefix());
        assert!(told.contains(&line), "{line}: {told}");
        assert!(looked.stdout.contains(&line), "{line}: {looked:?}");
        let setting = setting.split(' ').next().unwrap();
        assert!(stats.contains(setting), "{setting}: {stats}");
    }
    relay.instance.stop().unwrap();
}

#[test]
fn a_wrong_setting_of_the_client_is_named_as_such() {
    for (name, value, told) in [
        ("no.such.property", "1", "no.such.property"),
        ("compression.type", "best", "compression.type = best"),
        ("ssl.ca.location", "/nowhere", "ssl.ca.location"),
    ] {
        let relay = Direct::build("settings", |config| {
            let properties = &mut config.kafka.properties;
            properties.insert(name.to_owned(), value.to_owned());
            properties.insert("security.protocol".to_owned(), "ssl".to_owned());
        })
        .unwrap();
        for verb in ["check", "run"] {
            let mut command = relay.instance.command(verb, false);
            if verb == "run" {
                command.args(["--no-gateway", "127.0.0.1"]);
            }
            let refused = run("relay", &mut command, PATIENCE).unwrap();
            assert!(!refused.status.success(), "{refused:?}");
            let (stderr, what) = (&refused.stderr, "kafka.properties: ");
            assert!(stderr.contains(what) && stderr.contains(told), "{name}: {refused:?}");
        }
    }
}

#[test]
fn tls_that_a_broker_does_not_speak_is_not_called_no_broker() {
    let relay = Direct::build("tls", |config| {
        let properties = &mut config.kafka.properties;
        properties.insert("security.protocol".to_owned(), "ssl".to_owned());
    })
    .unwrap();
    let refused = check(&relay.instance);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(refused.stderr.contains("SSL") || refused.stderr.contains("TLS"), "{refused:?}");
    assert!(refused.stderr.contains("kafka.properties"), "{refused:?}");
}

#[test]
fn no_batch_is_larger_than_its_topic_takes() {
    const MESSAGES: u32 = 5000;
    let mut relay = Direct::build("batches", |_| {}).unwrap();
    relay.topics.create_with("uplink", 1, &[("max.message.bytes", "20000")]).unwrap();
    relay.instance.start().unwrap();
    let mut client = relay.connect().unwrap();
    let frames: Vec<u8> = (0..MESSAGES)
        .flat_map(|number| {
            let text = format!("{number:0100}");
            [&100_u32.to_be_bytes()[..], text.as_bytes()].concat()
        })
        .collect();
    client.send_bytes(&frames).unwrap();
    wait_until(PATIENCE, "all to be acknowledged", || {
        let stats = relay.instance.stats()?;
        assert_eq!(stats.value()["messages_refused"], serde_json::json!({}));
        Ok(stats.count("messages_acknowledged")? == u64::from(MESSAGES))
    })
    .unwrap();
    relay.instance.stop().unwrap();
}

#[test]
fn of_a_batch_that_has_become_too_large_nothing_is_lost_or_out_of_order() {
    const CLIENTS: usize = 20;
    const EACH: usize = 100;
    let mut relay = Direct::build("divided", |_| {}).unwrap();
    relay.instance.start().unwrap();
    relay.topics.set("uplink", &[("max.message.bytes", "20000")]).unwrap();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| relay.connect().unwrap()).collect();
    for client in &mut clients {
        let frame = |number: usize| {
            [&100_u32.to_be_bytes()[..], format!("{number:0100}").as_bytes()].concat()
        };
        client.send_bytes(&(0..EACH).flat_map(frame).collect::<Vec<u8>>()).unwrap();
    }
    let all = (CLIENTS * EACH) as u64;
    wait_until(PATIENCE, "each message to be somewhere", || {
        let stats = relay.instance.stats()?;
        let letters = stats.count_by("messages_dead_lettered", "too_large").unwrap_or_default();
        Ok(stats.count("messages_acknowledged")? + letters == all)
    })
    .unwrap();
    relay.instance.stop().unwrap();
    let records = all_records(&relay.brokers, relay.topics.prefix(), 1).unwrap();
    let messages = || records.iter().filter(|record| record.kind() == "message");
    for connection in messages().map(|record| &record.key) {
        let of_it = messages().filter(|record| record.key == *connection);
        let sequences: Vec<u64> =
            of_it.map(|record| record.header("sequence").parse().unwrap()).collect();
        assert!(sequences.is_sorted(), "{connection}: {sequences:?}");
    }
    assert!(messages().count() > EACH, "most are taken one by one");
}

#[test]
fn who_is_refused_for_its_time_loses_nothing() {
    const MESSAGES: usize = 50;
    let mut relay = Direct::build("time", |_| {}).unwrap();
    // No clock is as right as that.
    let strict =
        [("message.timestamp.type", "CreateTime"), ("message.timestamp.before.max.ms", "0")];
    for topic in ALL.iter().filter(|topic| **topic != "downlink") {
        relay.topics.create_with(topic, 1, &strict).unwrap();
    }
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    let mut last = None;
    for number in 0..MESSAGES {
        let text = format!("message {number}");
        client.send(text.as_bytes()).unwrap();
        let record = server.next("it", |record| record.kind() == "message").unwrap();
        assert_eq!(record.value, text.as_bytes());
        last = Some(record);
    }
    let malformed = Record { key: "nobody".to_owned(), ..last.unwrap() };
    server.reply(&malformed, b"a dead letter").unwrap();
    assert_eq!(Letters::read(&relay, 1).unwrap()[0].reason(), "malformed_key");
    let last = relay.instance.stop().unwrap();
    assert_eq!(last["messages_refused"], serde_json::json!({}), "{last}");
    assert_eq!(last["connections_closed"].get("kafka_refused"), None, "{last}");
}

#[test]
fn the_brokers_clock_is_learnt() {
    let mut relay = Direct::build("clock", |_| {}).unwrap();
    assert_eq!(relay.brokers, brokers());
    relay.instance.start().unwrap();
    let stats = relay.instance.stats().unwrap();
    let begun = stats.value()["begun_unix_ms"].as_u64().expect("the broker has told");
    let by_host = stats.value()["incarnation"].as_u64().expect("a number");
    assert!(begun.abs_diff(by_host) < 10_000, "one machine, one clock: {begun}, {by_host}");
    assert_eq!(stats.value()["clock_difference_ms"], 0);
    relay.instance.stop().unwrap();
}
