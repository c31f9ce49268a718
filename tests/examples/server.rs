//! A server behind Millrace in Rust: sends every message back to the client it came from.
//!
//! Usage: `server BROKERS PARTITION PREFIX`, for example `server 127.0.0.1:9092 0 millrace.`
//! The contract: docs/kafka-contract.md.

use std::time::Duration;

use anyhow::{Context, anyhow};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [brokers, partition, prefix] = arguments.as_slice() else {
        anyhow::bail!("usage: server BROKERS PARTITION PREFIX");
    };
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", format!("{prefix}server-{partition}")) // the position is committed under it
        .set("auto.offset.reset", "earliest") // first start: read what has been waiting, too
        .set("enable.auto.commit", "false") // committed below, when the replies are safe
        .create()?;
    let mut own = TopicPartitionList::new();
    own.add_partition_offset(&format!("{prefix}uplink"), partition.parse()?, Offset::Stored)?;
    consumer.assign(&own)?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0") // a broker that is away is waited for
        .set("linger.ms", "0") // a client waits, too
        .create()?;

    let (downlink, mut uncommitted) = (format!("{prefix}downlink"), 0);
    loop {
        let patience = if uncommitted == 0 { Duration::from_secs(1) } else { Duration::ZERO };
        let record = match consumer.poll(patience) {
            Some(Err(error)) => {
                eprintln!("server {partition}: {error}"); // librdkafka goes on trying
                continue;
            }
            Some(Ok(record)) => Some(record),
            None => None,
        };
        if let Some(record) = &record {
            uncommitted += 1;
            if header(record, "kind")? == "message" {
                let reply = BaseRecord::to(&downlink)
                    .partition(header(record, "reply")?.parse()?)
                    .key(record.key().unwrap_or_default())
                    .payload(record.payload().unwrap_or_default());
                producer.send(reply).map_err(|(error, _)| error)?;
            }
        }
        if uncommitted == 1000 || record.is_none() && uncommitted > 0 {
            // Until the broker has the replies. `flush` polls for 100 ms at a time, come what may.
            while producer.in_flight_count() > 0 {
                std::thread::sleep(Duration::from_micros(500));
                producer.poll(Duration::ZERO);
            }
            consumer.commit_consumer_state(CommitMode::Async)?;
            uncommitted = 0;
        }
    }
}

fn header<'a>(record: &'a impl Message, name: &str) -> anyhow::Result<&'a str> {
    let headers = record.headers().context("a record without headers")?;
    let found = headers.iter().find(|header| header.key == name);
    let value = found.and_then(|header| header.value).ok_or_else(|| anyhow!("no header {name}"))?;
    Ok(std::str::from_utf8(value)?)
}
