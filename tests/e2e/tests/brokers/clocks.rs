//! A relay whose clock is wrong, or is set while it runs.

use std::time::{Duration, Instant};

use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::clock::Clock;
use millrace_harness::system::process::{run, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);
const HOUR: i64 = 3600;
const MESSAGES: usize = 20;

fn clock(name: &str, ahead: i64) -> Clock {
    let name = format!("millrace-clock-{name}-{}", std::process::id());
    Clock::ahead(&std::env::temp_dir().join(name), ahead).unwrap()
}

/// Messages, replies and a dead letter, and then a ledger that balances.
fn serve(relay: &Direct) {
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    let mut last = None;
    for number in 0..MESSAGES {
        let text = format!("message {number}");
        client.send(text.as_bytes()).unwrap();
        let record = server.next(&text, |record| record.value == text.as_bytes());
        let record = record.unwrap_or_else(|error| {
            panic!("{error}: {:?}; {}", relay.instance.stats(), relay.instance.relay_stderr())
        });
        server.reply(&record, text.as_bytes()).unwrap();
        assert_eq!(client.receive().unwrap(), text.as_bytes());
        last = Some(record);
    }
    let malformed = Record { key: "nobody".to_owned(), ..last.unwrap() };
    server.reply(&malformed, b"a dead letter").unwrap();
    assert_eq!(Letters::read(relay, 1).unwrap()[0].reason(), "malformed_key");
    assert_eq!(relay.instance.stats().unwrap().total("messages_refused").unwrap(), 0);
    let mut told = String::new();
    let balanced = wait_until(PATIENCE, "the ledger to balance", || {
        let ledger = run("relay ledger", &mut relay.instance.command("ledger", false), PATIENCE)?;
        told = format!("{ledger:?}");
        Ok(ledger.status.success())
    });
    assert!(balanced.is_ok(), "{told}");
}

#[test]
fn a_clock_that_is_ahead_or_behind_costs_no_message_and_is_told() {
    for (name, ahead, side) in [
        ("ahead", 2 * HOUR, "ahead of the broker's"),
        ("behind", -8 * 24 * HOUR, "behind the broker's"),
    ] {
        let clock = clock(name, ahead);
        let mut relay = Direct::build(name, |_| {}).unwrap();
        relay.instance.set_environment(clock.environment());
        relay.instance.start().unwrap();
        assert!(relay.instance.relay_stderr().contains(side), "{}", relay.instance.relay_stderr());
        serve(&relay);
        relay.instance.stop().unwrap();
    }
}

#[test]
fn with_topics_that_go_by_the_writers_clock_none_is_lost_either() {
    let clock = clock("created", 2 * HOUR);
    let mut relay = Direct::build("created", |_| {}).unwrap();
    for topic in ["uplink", "downlink", "registry", "associations", "held", "deadletter"] {
        relay.topics.create_with(topic, 1, &[("message.timestamp.type", "CreateTime")]).unwrap();
    }
    relay.instance.set_environment(clock.environment());
    relay.instance.start().unwrap();
    serve(&relay);
    let lines = relay.instance.relay_stderr().lines().count();
    assert!(lines < 60, "{lines} lines: {}", relay.instance.relay_stderr());
    relay.instance.stop().unwrap();
}

#[test]
fn a_clock_that_is_set_back_delays_no_stop() {
    let clock = clock("back", 0);
    let mut relay = Direct::build("back", |_| {}).unwrap();
    relay.instance.set_environment(clock.environment());
    relay.instance.start().unwrap();
    clock.set(-HOUR).unwrap();
    serve(&relay);
    let begun = Instant::now();
    relay.instance.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
