//! Offsets that are forgotten, that are not in the log, or that are another log's.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use millrace_harness::kafka::{self, OwnBroker};
use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::process::wait_until;
use millrace_relay::config::Server;
use millrace_relay::kafka::{committed, observer};
use millrace_relay::model::Partition;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(30);
/// A minute of retention, and what the broker takes to look.
const FORGETTING: Duration = Duration::from_mins(4);

fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("millrace-offsets-{name}-{}", std::process::id()))
}

fn numbered(count: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(|number| format!("reply {number}").into_bytes())
}

/// Serves one client, who gets so many replies; what the relay has committed then is behind them.
fn serve(relay: &Direct, replies: usize) -> Result<Record> {
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0])?;
    let mut client = relay.connect()?;
    let open = server.next("open", |record| record.kind() == "open")?;
    server.reply_many(&open, numbered(replies))?;
    for reply in numbered(replies) {
        assert_eq!(client.receive()?, reply);
    }
    let end = i64::try_from(replies)?;
    wait_until(PATIENCE, "the replies to be committed", || {
        Ok(relay.committed_downlink()? == Some(end))
    })?;
    Ok(open)
}

fn committed_by_server(relay: &Direct, partition: u16) -> Result<Option<i64>> {
    let kafka = &relay.instance.config.kafka;
    let group = observer(kafka, &kafka.server_group(Partition(partition)))?;
    Ok(committed(&group, &kafka.uplink_topic(), partition.into(), PATIENCE)?)
}

#[test]
fn who_is_quiet_keeps_its_offset_and_a_server_that_did_not_can_be_drained() {
    let short = ["offsets.retention.minutes=1", "offsets.retention.check.interval.ms=500"];
    let broker = OwnBroker::start_with(&directory("quiet"), &short).unwrap();
    let mut relay = Direct::at(broker.address(), "quiet", |config| {
        let service = &mut config.services[0];
        let address = service.servers[0].address;
        service.servers.push(Server::new("other".to_owned(), address, Partition(1)));
    })
    .unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0, 1]).unwrap();
    let mut client = relay.connect().unwrap();
    client.send(b"handled").unwrap();
    let message = server.next("the message", |record| record.value == b"handled").unwrap();
    server.reply_many(&message, numbered(5)).unwrap();
    for reply in numbered(5) {
        assert_eq!(client.receive().unwrap(), reply);
    }
    // `open` and the message: the server has read both, and never says so again.
    relay.commit_uplink(message.partition, 2).unwrap();
    wait_until(FORGETTING, "the server's offset to be forgotten", || {
        Ok(committed_by_server(&relay, message.partition)?.is_none())
    })
    .unwrap();
    assert_eq!(relay.committed_downlink().unwrap(), Some(5), "the relay's is as old");

    let id = ["server", "other"][usize::from(message.partition)];
    relay.instance.order("drain", id).unwrap();
    let moved = server.next("the client at the other server", |record| {
        record.kind() == "open" && record.header("moved_from") == id
    });
    assert_ne!(moved.unwrap().partition, message.partition);

    relay.instance.stop().unwrap();
    relay.instance.start().unwrap();
    let stopped = relay.instance.stop().unwrap();
    assert_eq!((&stopped["downlink_start"], &stopped["replies_received"]), (&5.into(), &0.into()));
    assert_eq!(stopped["downlink_breaks"], serde_json::json!({}));
}

#[test]
fn a_start_without_an_offset_reads_everything_and_says_so() {
    let mut relay = Direct::build("forgotten", |_| {}).unwrap();
    relay.instance.start().unwrap();
    serve(&relay, 3).unwrap();
    relay.instance.stop().unwrap();

    let admin: AdminClient<DefaultClientContext> = kafka::client(&relay.brokers).create().unwrap();
    let group = relay.instance.config.kafka.relay_group(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(admin.delete_groups(&[&group], &AdminOptions::new())).unwrap();

    relay.instance.start().unwrap();
    let letters = Letters::read(&relay, 3).unwrap();
    assert!(letters.iter().all(|letter| letter.reason() == "former_run"), "{letters:?}");
    let stats = relay.instance.stats().unwrap();
    assert_eq!(stats.count_by("downlink_breaks", "offset_forgotten").unwrap(), 3);
    let said = relay.instance.relay_stderr();
    assert!(said.contains("no committed offset of this relay"), "{said}");
}

#[test]
fn an_offset_beyond_the_end_of_the_log_goes_back_to_that_end() {
    let mut relay = Direct::build("beyond", |_| {}).unwrap();
    relay.instance.start().unwrap();
    serve(&relay, 3).unwrap();
    relay.instance.stop().unwrap();

    let config = &relay.instance.config.kafka;
    let consumer: BaseConsumer =
        kafka::client(&relay.brokers).set("group.id", config.relay_group(0)).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&config.downlink_topic(), 0, Offset::Offset(1000)).unwrap();
    consumer.commit(&list, CommitMode::Sync).unwrap();

    relay.instance.start().unwrap();
    wait_until(PATIENCE, "the place to be found", || {
        Ok(relay.instance.stats()?.count_by("downlink_breaks", "tail_lost")? == 997)
    })
    .unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    client.send(b"again").unwrap();
    let message = server.next("the message", |record| record.value == b"again").unwrap();
    server.reply(&message, b"at the end").unwrap();
    assert_eq!(client.receive().unwrap(), b"at the end");
    wait_until(PATIENCE, "the end to be committed", || Ok(relay.committed_downlink()? == Some(4)))
        .unwrap();
    let said = relay.instance.relay_stderr();
    assert!(said.contains("ends before what the relay has read of it"), "{said}");
    assert_eq!(relay.record_count("deadletter").unwrap(), 0, "nothing was read again");
}

#[test]
fn a_downlink_that_is_made_anew_is_read_from_its_beginning() {
    let mut relay = Direct::build("anew", |_| {}).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    server.reply_many(&open, numbered(3)).unwrap();
    for reply in numbered(3) {
        assert_eq!(client.receive().unwrap(), reply);
    }
    wait_until(PATIENCE, "them to be committed", || Ok(relay.committed_downlink()? == Some(3)))
        .unwrap();

    relay.topics.make_anew("downlink", 1).unwrap();
    // More than there were before: the former place is one in the middle of them.
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    server.reply_many(&open, numbered(10)).unwrap();
    // Those at the former place and behind it may come twice: they are read before it is noticed.
    let mut missing: BTreeSet<_> = numbered(10).collect();
    while !missing.is_empty() {
        let reply = client.receive().unwrap();
        assert!(numbered(10).any(|known| known == reply), "{reply:?}");
        missing.remove(&reply);
    }
    let stats = relay.instance.stats().unwrap();
    assert!(stats.count_by("downlink_breaks", "made_anew").unwrap() > 0, "{stats:?}");
    wait_until(PATIENCE, "them to be committed", || Ok(relay.committed_downlink()? == Some(10)))
        .unwrap();

    // And while the relay is down. The cluster forgets the offset with the topic.
    relay.instance.stop().unwrap();
    relay.topics.make_anew("downlink", 1).unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    server.reply_many(&open, numbered(12)).unwrap();
    relay.instance.start().unwrap();
    let letters = Letters::read(&relay, 12).unwrap();
    assert!(letters.iter().all(|letter| letter.reason() == "former_run"), "{letters:?}");
}
