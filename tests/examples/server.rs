//! A server behind Millrace in Rust: sends every message back to the client it came from.
//!
//! Usage: `server BROKERS PARTITION PREFIX [--rate N]`, or `lease` for the partition, which registers:
//! `server 127.0.0.1:9092 lease millrace. --id chat-7 --service chat --address 203.0.113.17`.
//! (and `--capacity N`). Then SIGTERM drains it. `--rate` is the most messages a second that it reads.
//! The contract: docs/kafka-contract.md.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use millrace_tests::interrupt;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};

const MILLISECOND: Duration = Duration::from_millis(1);
/// The rate is kept over so long.
const CATCH_UP: Duration = Duration::from_millis(100);

#[derive(Parser)]
struct Arguments {
    brokers: String,
    /// A number, or `lease`.
    partition: String,
    prefix: String,
    #[arg(long, required_if_eq("partition", "lease"))]
    id: Option<String>,
    #[arg(long, required_if_eq("partition", "lease"))]
    service: Option<String>,
    #[arg(long, required_if_eq("partition", "lease"))]
    address: Option<String>,
    /// Share of the clients, in proportion to other servers'.
    #[arg(long, default_value_t = 1)]
    capacity: u32,
    #[arg(long)]
    rate: Option<f64>,
}

/// A registration, renewed, and the coordinator's answers to it.
struct Lease {
    id: String,
    topic: String,
    registration: Value,
    renewal: Instant,
    registry: BaseConsumer,
    producer: BaseProducer,
    held: Option<Value>,
    /// What a former coordinator writes does not count any more.
    term: i64,
}

/// What the process is to do.
#[derive(PartialEq)]
enum Next {
    Serve,
    /// Everything for it is read.
    End,
}

impl Lease {
    fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let topic = format!("{}registry", arguments.prefix);
        let id = arguments.id.clone().context("no --id")?;
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let registration = json!({
            "version": 1, "service": arguments.service, "address": arguments.address, "state": "live",
            "capacity": arguments.capacity,
            "instance": format!("{}-{}", std::process::id(), started.as_micros()), // this process
        });
        let registry: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &arguments.brokers)
            .set("group.id", format!("{topic}-{id}")) // `assign` wants one; nothing is committed
            .set("enable.auto.commit", "false")
            .create()?;
        // The answer comes behind the registration: nothing before the present end need be read.
        let (_, end) = registry.fetch_watermarks(&topic, 0, Duration::from_secs(10))?;
        let mut answers = TopicPartitionList::new();
        answers.add_partition_offset(&topic, 0, Offset::Offset(end))?;
        registry.assign(&answers)?;
        let (producer, renewal) = (producer(&arguments.brokers)?, Instant::now());
        interrupt::watch()?; // SIGTERM drains, below
        Ok(Self { id, topic, registration, renewal, registry, producer, held: None, term: 0 })
    }

    /// Renews in time and reads what has come.
    fn keep(&mut self, wait: Duration) -> anyhow::Result<Next> {
        if self.registration["state"] == "live" && interrupt::check().is_err() {
            self.registration["state"] = "draining".into();
            self.renewal = Instant::now();
        }
        if Instant::now() >= self.renewal {
            let (key, value) = (format!("server/{}", self.id), self.registration.to_string());
            let record = BaseRecord::to(&self.topic).partition(0).key(&key).payload(&value);
            self.producer.send(record).map_err(|(error, _)| error)?;
            let lease_ms = self.held.as_ref().and_then(|held| held["lease_ms"].as_u64());
            self.renewal = Instant::now() + Duration::from_millis(lease_ms.unwrap_or(3000)) / 3;
        }
        self.producer.poll(Duration::ZERO);
        let Some(Ok(record)) = self.registry.poll(wait) else { return Ok(Next::Serve) };
        let Some(value) = record.payload() else { return Ok(Next::Serve) };
        let (id, key) = (&self.id, record.key().unwrap_or_default());
        if key == b"coordinator" {
            self.term = record.offset();
        } else if key == format!("refusal/{id}").as_bytes() {
            let refusal: Value = serde_json::from_slice(value)?;
            if refusal["instance"] == self.registration["instance"] {
                bail!("server {id}: refused: {}", refusal["reason"]);
            }
        } else if key == format!("lease/{id}").as_bytes() {
            let lease: Value = serde_json::from_slice(value)?;
            let term = lease["term"].as_i64().unwrap_or_default();
            if term < self.term {
                return Ok(Next::Serve);
            }
            self.term = term;
            if lease["instance"] != self.registration["instance"] {
                // Under our id, and later than ours.
                if self.held.is_some() {
                    bail!("server {id}: superseded by {}", lease["instance"]);
                }
            } else if lease["state"] != "gone" {
                self.held = Some(lease);
            } else if self.registration["state"] == "draining" {
                return Ok(Next::End);
            } else {
                bail!("server {id}: gone");
            }
        }
        Ok(Next::Serve)
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut lease = None;
    let partition = if arguments.partition == "lease" {
        let mut waiting = Lease::new(&arguments)?;
        while waiting.held.is_none() {
            waiting.keep(Duration::from_millis(100))?;
        }
        let held = waiting.held.as_ref().context("no lease")?;
        println!("lease: partition {}, epoch {}", held["partition"], held["epoch"]);
        let partition = held["partition"].to_string();
        lease = Some(waiting);
        partition
    } else {
        arguments.partition.clone()
    };
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &arguments.brokers)
        .set("group.id", format!("{}server-{partition}", arguments.prefix)) // the position is committed under it
        .set("auto.offset.reset", "earliest") // first start: read what has been waiting, too
        .set("enable.auto.commit", "false") // committed below, when the replies are safe
        .create()?;
    let mut own = TopicPartitionList::new();
    let uplink = format!("{}uplink", arguments.prefix);
    own.add_partition_offset(&uplink, partition.parse()?, Offset::Stored)?;
    consumer.assign(&own)?;
    let producer = producer(&arguments.brokers)?;
    serve(&arguments, &consumer, &producer, lease)
}

fn serve(
    arguments: &Arguments,
    consumer: &BaseConsumer,
    producer: &BaseProducer,
    mut lease: Option<Lease>,
) -> anyhow::Result<()> {
    let (downlink, mut uncommitted) = (format!("{}downlink", arguments.prefix), 0);
    let interval = arguments.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let mut next_read = Instant::now();
    loop {
        if let Some(lease) = &mut lease
            && lease.keep(Duration::ZERO)? == Next::End
        {
            return Ok(());
        }
        // What is not read waits in the partition. A sleep is never shorter than some 60 µs.
        let early = next_read.saturating_duration_since(Instant::now());
        if early >= MILLISECOND {
            std::thread::sleep(early);
        }
        let patience = match (uncommitted, &lease) {
            (0, None) => Duration::from_secs(1),
            (0, Some(_)) => Duration::from_millis(100), // it is kept in between
            _ => Duration::ZERO,
        };
        let record = match consumer.poll(patience) {
            Some(Err(error)) => {
                eprintln!("server {}: {error}", arguments.partition); // librdkafka goes on trying
                continue;
            }
            Some(Ok(record)) => Some(record),
            None => None,
        };
        if let Some(record) = &record {
            uncommitted += 1;
            // A partition that had another holder may still get what was meant for that one.
            let mine = lease.as_ref().is_none_or(|lease| {
                header(record, "server").map_or(true, |server| server == lease.id)
            });
            if header(record, "kind").is_err() && mine {
                let reply = BaseRecord::to(&downlink)
                    .partition(header(record, "reply")?.parse()?)
                    .key(record.key().unwrap_or_default())
                    .payload(record.payload().unwrap_or_default());
                producer.send(reply).map_err(|(error, _)| error)?;
                // What was lost while the broker was waited for is made up for, as far as it is little.
                let since = Instant::now().checked_sub(CATCH_UP).unwrap_or(next_read);
                next_read = next_read.max(since) + interval.unwrap_or_default();
            }
        }
        let is_slow = record.is_none() || interval.is_some_and(|interval| interval > MILLISECOND);
        if uncommitted == 1000 || is_slow && uncommitted > 0 {
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

fn producer(brokers: &str) -> anyhow::Result<BaseProducer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0") // a broker that is away is waited for
        .set("linger.ms", "0") // a client waits, too
        .create()?)
}

fn header<'a>(record: &'a impl Message, name: &str) -> anyhow::Result<&'a str> {
    let headers = record.headers().context("a record without headers")?;
    let found = headers.iter().find(|header| header.key == name);
    let value = found.and_then(|header| header.value).ok_or_else(|| anyhow!("no header {name}"))?;
    Ok(std::str::from_utf8(value)?)
}
