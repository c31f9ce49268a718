//! What one client may have of a service: connections, messages in a second, time without a word.

use std::time::{Duration, Instant};

use millrace_harness::relay::direct::Direct;
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::process::wait_until;

fn closed(instance: &Instance, reason: &str) -> u64 {
    instance.stats().unwrap().count_by("connections_closed", reason).unwrap_or_default()
}

#[test]
fn a_connection_is_read_from_no_faster_than_it_may_send() {
    const RATE: u32 = 200;
    let mut relay = Direct::build("rate", |config| {
        config.services[0].max_messages_per_second = RATE;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    for number in 0..3 * RATE {
        client.send(format!("{number:<250}").as_bytes()).unwrap();
    }
    let mut times = Vec::new();
    for number in 0..3 * RATE {
        let record = server.next("message", |record| record.kind() == "message").unwrap();
        assert_eq!(record.value, format!("{number:<250}").as_bytes(), "none is lost, and in order");
        times.push(record.unix_ms);
    }
    // A second's worth at once, the rest at the rate. What is received in one piece is one batch.
    let took = times[times.len() - 1] - times[0];
    assert!(
        took >= 1000,
        "{took} ms for three seconds' messages, of which one second's come at once"
    );
    assert!(relay.instance.stats().unwrap().count("throttles").unwrap() > 0);
    relay.instance.stop().unwrap();
}

#[test]
fn an_address_has_no_more_connections_than_it_may() {
    let mut relay = Direct::build("addresses", |config| {
        config.services[0].max_connections_per_address = 2;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let greet = |number: u8| {
        let mut client = relay.connect().unwrap();
        client.send(&[number]).unwrap();
        client
    };
    let first = greet(1);
    let mut second = greet(2);
    for _ in 0..2 {
        server.next("message", |record| record.kind() == "message").unwrap();
    }
    let mut third = relay.connect().unwrap();
    third.wait_end().unwrap();
    wait_until(Duration::from_secs(10), "the refusal to be counted", || {
        Ok(closed(&relay.instance, "too_many_connections") == 1)
    })
    .unwrap();
    second.send(b"on").unwrap();
    server.next("the others go on", |record| record.value == b"on").unwrap();
    drop(first);
    server.next("close", |record| record.kind() == "close").unwrap();
    let _fourth = greet(4);
    server.next("one may follow who has left", |record| record.value == [4]).unwrap();
    relay.instance.stop().unwrap();
}

#[test]
fn no_more_is_kept_for_a_connection_than_may_be() {
    let mut relay = Direct::build("memory", |config| {
        config.services[0].max_message_bytes = 65_536;
        config.relay.reply_pause_bytes = 1000;
        config.relay.reply_limit_bytes = 10_000;
        config.relay.max_connection_bytes = 10_000;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let kept = || relay.instance.stats().unwrap().count("connection_bytes").unwrap();
    let frame = |sent: usize| [&40_000_u32.to_be_bytes()[..], &vec![b'x'; sent]].concat();
    let mut small = relay.connect().unwrap();
    small.send_bytes(&frame(5000)).unwrap();
    wait_until(Duration::from_secs(10), "the beginning of a message to be kept", || {
        Ok(kept() >= 5000)
    })
    .unwrap();
    let mut large = relay.connect().unwrap();
    large.send_bytes(&frame(20_000)).unwrap();
    large.wait_end().unwrap();
    wait_until(Duration::from_secs(10), "the end to be counted", || {
        Ok(closed(&relay.instance, "memory_limit") == 1)
    })
    .unwrap();
    assert!((5000..10_000).contains(&kept()), "{} bytes are kept", kept());
    small.end().unwrap();
    small.wait_end().unwrap();
    wait_until(Duration::from_secs(10), "nothing to be kept", || Ok(kept() == 0)).unwrap();
}

#[test]
fn a_silent_client_is_closed_and_one_that_speaks_is_not() {
    let mut relay = Direct::build("idle", |config| {
        config.services[0].idle_timeout_ms = 1000;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let began = Instant::now();
    let mut silent = relay.connect().unwrap();
    let mut speaker = relay.connect().unwrap();
    let silent_key = {
        let address = silent.address().unwrap().to_string();
        server.next("open", |record| record.header("client") == address).unwrap().key
    };
    // Until the other one is closed, this one says something every 200 ms.
    std::thread::scope(|scope| {
        let ended = scope.spawn(move || silent.wait_end().unwrap());
        while !ended.is_finished() {
            speaker.send(b"here").unwrap();
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    assert!(began.elapsed() >= Duration::from_secs(1), "it was closed before its time");
    let close = server
        .next("close", |record| record.kind() == "close" && record.key == silent_key)
        .unwrap();
    assert_eq!(close.header("reason"), "idle_timeout");
    assert_eq!(closed(&relay.instance, "idle_timeout"), 1);
    relay.instance.stop().unwrap();
}
