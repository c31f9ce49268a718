//! The ledger cries no wolf, and is not silent: transactions, retention, topics made anew.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use millrace_harness::kafka;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::process::{run, wait_until};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

fn ledger(relay: &Direct) -> Result<Value> {
    let mut command = relay.instance.command("ledger", false);
    let finished = run("relay ledger", command.arg("--json"), PATIENCE)?;
    let ledger: Value = serde_json::from_str(finished.stdout.trim())?;
    ensure!(ledger["balanced"] == finished.status.success(), "{finished:?}");
    Ok(ledger)
}

fn wait_balanced(relay: &Direct) -> Result<Value> {
    let mut last = Value::Null;
    let waited = wait_until(PATIENCE, "a ledger that balances", || {
        last = ledger(relay)?;
        Ok(last["balanced"] == true)
    });
    waited.map_err(|error| error.context(last.to_string()))?;
    Ok(last)
}

fn started(name: &str) -> Result<(Direct, HandServer)> {
    let mut relay = Direct::build(name, |_| {})?;
    relay.instance.start()?;
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0])?;
    Ok((relay, server))
}

fn transactional(relay: &Direct) -> Result<BaseProducer> {
    let id = format!("{}server", relay.topics.prefix());
    let producer: BaseProducer =
        kafka::client(&relay.brokers).set("transactional.id", id).create()?;
    producer.init_transactions(PATIENCE)?;
    Ok(producer)
}

/// A transaction with so many replies.
fn transact(
    relay: &Direct,
    producer: &BaseProducer,
    to: &Record,
    replies: usize,
    commit: bool,
) -> Result<()> {
    producer.begin_transaction()?;
    let topic = format!("{}downlink", relay.topics.prefix());
    for _ in 0..replies {
        let header = Header { key: "note", value: Some("transaction") };
        let record = BaseRecord::to(&topic)
            .partition(0)
            .key(to.key.as_str())
            .payload("reply")
            .headers(OwnedHeaders::new().insert(header));
        producer.send(record).map_err(|(error, _)| error)?;
    }
    producer.flush(PATIENCE)?;
    if commit {
        producer.commit_transaction(PATIENCE)?;
    } else {
        producer.abort_transaction(PATIENCE)?;
    }
    Ok(())
}

#[test]
fn marks_of_transactions_are_no_replies() -> Result<()> {
    let (mut relay, server) = started("transact")?;
    let mut client = relay.connect()?;
    let open = server.next("open", |record| record.kind() == "open")?;
    let producer = transactional(&relay)?;
    for commit in [true, false, true, true] {
        transact(&relay, &producer, &open, 5, commit)?;
    }
    for _ in 0..15 {
        ensure!(client.receive()? == b"reply");
    }
    let found = wait_balanced(&relay)?;
    let downlink = &found["downlink"];
    for (term, count) in [("produced", 15), ("sent", 15), ("waiting", 0)] {
        ensure!(downlink[term] == count, "{term}: {found}");
    }
    // Four marks, and what was aborted.
    ensure!(downlink["marks"] == 9, "{found}");
    drop(client);
    relay.instance.stop()?;
    relay.instance.start()?;
    let found = wait_balanced(&relay)?;
    ensure!(found["downlink"]["produced"] == 0, "{found}");
    Ok(())
}

#[test]
fn what_was_read_may_be_deleted_and_what_was_not_may_not() -> Result<()> {
    let (relay, server) = started("retained")?;
    let mut client = relay.connect()?;
    for number in 0..20 {
        client.send(format!("message {number}").as_bytes())?;
    }
    server.next("the last", |record| record.value == b"message 19")?;
    // `open` and fifteen messages.
    relay.commit_uplink(0, 16)?;
    wait_balanced(&relay)?;
    relay.topics.delete_records("uplink", 0, 16)?;
    let found = wait_balanced(&relay)?;
    ensure!(found["uplink"]["deleted"] == 15, "{found}");
    ensure!(found["servers"]["server"]["waiting"] == 5, "{found}");
    relay.topics.delete_records("uplink", 0, 18)?;
    let found = ledger(&relay)?;
    ensure!(found["servers"]["server"]["deleted"] == 2, "{found}");
    let problems = found["problems"].to_string();
    ensure!(problems.contains("2 messages were deleted before it had read them"), "{problems}");
    Ok(())
}

#[test]
fn an_uplink_that_was_made_anew_is_not_missed() -> Result<()> {
    let (relay, server) = started("remade")?;
    let mut client = relay.connect()?;
    for number in 0..20 {
        client.send(format!("message {number}").as_bytes())?;
    }
    server.next("the last", |record| record.value == b"message 19")?;
    wait_balanced(&relay)?;
    relay.topics.delete_one("uplink")?;
    wait_until(PATIENCE, "the topic to be there again", || {
        Ok(relay.topics.create("uplink", 1).is_ok())
    })?;
    let found = wait_balanced(&relay)?;
    ensure!(found["uplink"]["deleted"] == 20, "{found}");
    Ok(())
}

#[test]
fn the_age_of_what_waits_is_told_with_its_retention() -> Result<()> {
    let mut relay = Direct::build("waiting", |_| {})?;
    relay.topics.create_with("uplink", 1, &[("retention.ms", "3600000")])?;
    // More than half of how long its topic keeps it: less would be no warning.
    let written = (SystemTime::now() - Duration::from_mins(40)).duration_since(UNIX_EPOCH)?;
    let topic = format!("{}uplink", relay.topics.prefix());
    let producer: BaseProducer = kafka::client(&relay.brokers).create()?;
    let record = BaseRecord::<str, str>::to(&topic).partition(0).payload("nobody reads it");
    producer
        .send(record.timestamp(i64::try_from(written.as_millis())?))
        .map_err(|(error, _)| error)?;
    producer.flush(PATIENCE)?;
    relay.instance.start()?;
    let mut client = relay.connect()?;
    client.send(b"nor this")?;
    let mut seen = Value::Null;
    wait_until(2 * PATIENCE, "what waits to be seen", || {
        seen = relay.instance.stats()?.0["waiting"]["server"].clone();
        Ok(seen["messages"] == 3)
    })?;
    ensure!(seen["retention_ms"] == 3_600_000, "{seen}");
    let minutes = seen["oldest_ms"].as_u64().map(|age| age / 60_000);
    ensure!(minutes.is_some_and(|minutes| (40..45).contains(&minutes)), "{seen}");
    let status = run("relay status", &mut relay.instance.command("status", false), PATIENCE)?;
    ensure!(status.stdout.contains("server server: 3 messages wait"), "{}", status.stdout);
    ensure!(status.stdout.contains("WARNING: the oldest will be deleted in"), "{}", status.stdout);
    let said = relay.instance.relay_stderr();
    ensure!(said.contains("will soon delete the oldest"), "{said}");
    Ok(())
}
