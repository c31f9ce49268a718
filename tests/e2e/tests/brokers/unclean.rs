//! Unclean elections: a replica leads that lacks what was acknowledged.

use std::time::Duration;

use millrace_harness::kafka;
use millrace_harness::kafka::requests::elect_unclean;
use millrace_harness::kafka::three_brokers::ThreeBrokers;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::process::{run, wait_until};
use rustix::process::Signal;

/// Brokers are missed after some seconds, and a group's coordinator may be among them.
const PATIENCE: Duration = Duration::from_mins(1);
/// Replies before the follower is gone, and so many more before the leader is.
const EACH: usize = 10;

/// The leader is gone, and its follower leads with what it has.
fn lead_from_behind(cluster: &ThreeBrokers, topic: &str) {
    let (leader, follower) = (cluster.node(1).unwrap(), cluster.node(2).unwrap());
    leader.signal(Signal::KILL).unwrap();
    follower.restart().unwrap();
    wait_until(PATIENCE, "the follower to lead", || {
        let _ = elect_unclean(follower.address(), topic, 0);
        Ok(kafka::leader(follower.address(), topic, 0)? == Some(2))
    })
    .unwrap();
}

#[test]
#[ignore = "three brokers, and more than a minute: `cargo xtask test-brokers three-nodes` runs it"]
fn a_downlink_that_has_lost_its_tail_is_told_and_read_on_from_its_end() {
    let cluster = ThreeBrokers::start("unclean").unwrap();
    let mut relay = Direct::at(&cluster.addresses(), "unclean", |_| {}).unwrap();
    let (leader, follower) = (cluster.node(1).unwrap(), cluster.node(2).unwrap());
    let downlink = relay.topics.create_on("downlink", &[1, 2], &[("min.insync.replicas", "1")]);
    let downlink = downlink.unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    let mut reply = |from: usize| {
        let replies = || (from..from + EACH).map(|number| format!("reply {number}").into_bytes());
        server.reply_many(&open, replies()).unwrap();
        for reply in replies() {
            assert_eq!(client.receive().unwrap(), reply);
        }
        let end = i64::try_from(from + EACH).unwrap();
        wait_until(PATIENCE, "the replies to be committed", || {
            Ok(relay.committed_downlink()? == Some(end))
        })
        .unwrap();
    };
    // The follower has these,
    reply(0);
    follower.signal(Signal::KILL).unwrap();
    // and those it never gets.
    reply(EACH);
    lead_from_behind(&cluster, &downlink);
    wait_until(PATIENCE, "the loss to be noticed", || {
        let lost = relay.instance.stats()?.count_by("downlink_breaks", "tail_lost");
        Ok(lost.is_ok_and(|lost| lost == EACH as u64))
    })
    .unwrap();
    let said = relay.instance.relay_stderr();
    assert!(said.contains("ends before what the relay has read of it"), "{said}");

    client.send(b"again").unwrap();
    let living = [follower.address(), cluster.node(3).unwrap().address()].join(",");
    let server = HandServer::on(&living, relay.topics.prefix(), &[0]).unwrap();
    let message = server.next("the message", |record| record.value == b"again").unwrap();
    server.reply(&message, b"at the end").unwrap();
    assert_eq!(client.receive().unwrap(), b"at the end", "and nothing before it");
    let end = i64::try_from(EACH).unwrap() + 1;
    wait_until(PATIENCE, "it to be committed", || Ok(relay.committed_downlink()? == Some(end)))
        .unwrap();
    let stats = relay.instance.stats().unwrap();
    assert_eq!(stats.count("replies_sent").unwrap(), 2 * EACH as u64 + 1, "none twice");
    assert_eq!(relay.record_count("deadletter").unwrap(), 0);

    let ledger = run("relay ledger", &mut relay.instance.command("ledger", false), PATIENCE);
    let ledger = ledger.unwrap();
    let lost = format!("{EACH} replies that the relay had read are lost from the cluster");
    assert!(!ledger.status.success() && ledger.stdout.contains(&lost), "{ledger:?}");
    let wrong = ledger.stdout.matches("WRONG").count();
    assert_eq!(wrong, 1, "all else is right: {ledger:?}");
    // Who has led before has to give up what only it has.
    leader.restart().unwrap();
    relay.instance.stop().unwrap();
}

#[test]
#[ignore = "three brokers, and more than a minute: `cargo xtask test-brokers three-nodes` runs it"]
fn an_uplink_that_has_lost_its_tail_ends_the_run_and_the_next_one_goes_on() {
    let cluster = ThreeBrokers::start("unclean-up").unwrap();
    let mut relay = Direct::at(&cluster.addresses(), "unclean-up", |_| {}).unwrap();
    let follower = cluster.node(2).unwrap();
    let uplink = relay.topics.create_on("uplink", &[1, 2], &[("min.insync.replicas", "1")]);
    let uplink = uplink.unwrap();
    relay.instance.start().unwrap();
    let mut client = relay.connect().unwrap();
    let mut send = |from: usize| {
        for number in from..from + EACH {
            client.send(format!("message {number}").as_bytes()).unwrap();
        }
    };
    let acknowledged = |count: usize| {
        wait_until(PATIENCE, "the messages to be acknowledged", || {
            Ok(relay.instance.stats()?.count("messages_acknowledged")? == count as u64)
        })
        .unwrap();
    };
    send(0);
    acknowledged(EACH);
    follower.signal(Signal::KILL).unwrap();
    send(EACH);
    acknowledged(2 * EACH);
    lead_from_behind(&cluster, &uplink);
    // An idempotent producer cannot go on where the broker does not know its last batch.
    send(2 * EACH);
    let mut ended = None;
    wait_until(PATIENCE, "the relay to end", || {
        ended = relay.instance.take_ended()?;
        Ok(ended.is_some())
    })
    .unwrap();
    let ended = ended.unwrap();
    let balance = format!("received={} acknowledged={} refused={EACH}", 3 * EACH, 2 * EACH);
    for told in ["OutOfOrderSequenceNumber", "start the relay again", &balance] {
        assert!(!ended.status.success() && ended.stderr.contains(told), "{told}: {ended:?}");
    }

    relay.instance.start().unwrap();
    let mut client = relay.connect().unwrap();
    client.send(b"again").unwrap();
    let living = [follower.address(), cluster.node(3).unwrap().address()].join(",");
    let server = HandServer::on(&living, relay.topics.prefix(), &[0]).unwrap();
    let message = server.next("the message", |record| record.value == b"again").unwrap();
    server.reply(&message, b"and back").unwrap();
    assert_eq!(client.receive().unwrap(), b"and back");
    let ledger = run("relay ledger", &mut relay.instance.command("ledger", false), PATIENCE);
    let ledger = ledger.unwrap();
    assert!(ledger.status.success(), "{ledger:?}");
    // Of the former run, with its first `open`, the log has what the follower had.
    let before = kafka::record_count(&living, &uplink, 1).unwrap() - 2;
    assert_eq!(before, EACH as u64 + 1, "none twice");
}
