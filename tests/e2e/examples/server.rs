//! A server behind Millrace in Rust: sends every message back to the client it came from.
//!
//! Usage: `server BROKERS PARTITION PREFIX [--rate N]`, or `lease` for the partition, which registers:
//! `server 127.0.0.1:9092 lease millrace. --id chat-7 --service chat --address 203.0.113.17`.
//! (and `--capacity N`). Then SIGTERM drains it. `--rate` is the most messages a second that it reads.
//! The contract: docs/kafka-contract.md.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use clap::Parser;
use millrace_harness::system::interrupt;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig,
};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use serde_json::{Value, json};

const MILLISECOND: Duration = Duration::from_millis(1);
/// Records that are answered before their offset is committed.
const BATCH: i64 = 1000;
/// Brokers forget an offset that nobody commits for `offsets.retention.minutes`.
const RECOMMIT: Duration = Duration::from_secs(30);
/// A producer that was told that all brokers are down may never ask them again.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two tries of what has failed.
const PAUSE: Duration = Duration::from_secs(1);
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
    brokers: String,
    registration: Value,
    renewal: Instant,
    registry: BaseConsumer,
    producer: BaseProducer<Replies>,
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
        let (brokers, held, term) = (arguments.brokers.clone(), None, 0);
        Ok(Self { id, topic, brokers, registration, renewal, registry, producer, held, term })
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
            if let Err((error, _)) = self.producer.send(record) {
                eprintln!("server {}: {error}; with a new producer", self.id);
                self.producer = producer(&self.brokers)?;
            }
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
            let refusal: Value = serde_json::from_slice(value).unwrap_or_default();
            if refusal["instance"] == self.registration["instance"] {
                bail!("server {id}: refused: {}", refusal["reason"]);
            }
        } else if key == format!("lease/{id}").as_bytes() {
            let lease: Value = serde_json::from_slice(value).unwrap_or_default();
            let term = lease["term"].as_i64().unwrap_or(-1);
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
    let place = Place::new(&arguments, partition.parse()?)?;
    serve(&arguments, place, lease)
}

/// A partition of the uplink, and how far it is answered.
struct Place {
    consumer: BaseConsumer,
    topic: String,
    partition: i32,
    /// Everything before it was read.
    read: i64,
    /// And before it answered, and committed.
    done: i64,
    committed: Instant,
    /// Of the last record, by its own time.
    last_ms: Option<i64>,
}

impl Place {
    fn new(arguments: &Arguments, partition: i32) -> anyhow::Result<Self> {
        let topic = format!("{}uplink", arguments.prefix);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &arguments.brokers)
            // The position is committed under it.
            .set("group.id", format!("{}server-{partition}", arguments.prefix))
            .set("enable.auto.commit", "false") // committed below, when the replies are safe
            .set("auto.offset.reset", "error") // decided below
            .create()?;
        let (read, done, committed) = (0, 0, Instant::now());
        let mut place = Self { consumer, topic, partition, read, done, committed, last_ms: None };
        let known = place.ask(|place| {
            let known = place.consumer.committed_offsets(place.at(Offset::Invalid)?, PAUSE * 10)?;
            let known = known.elements().first().map(|known| (known.error(), known.offset()));
            let (error, offset) = known.unwrap_or((Ok(()), Offset::Invalid));
            error.map(|()| offset)
        });
        place.go_on(known.to_raw().filter(|offset| *offset >= 0))?;
        place.commit()?; // so that the group has an offset, whoever asks for it
        Ok(place)
    }

    /// Asks the brokers, for as long as they are away.
    fn ask<T>(&self, question: impl Fn(&Self) -> KafkaResult<T>) -> T {
        loop {
            match question(self) {
                Ok(answer) => return answer,
                Err(error) => eprintln!("server {}: {error}; trying on", self.partition),
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn at(&self, offset: Offset) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, self.partition, offset)?;
        Ok(list)
    }

    /// Reads on there; without an offset, what has been waiting, too.
    fn go_on(&mut self, offset: Option<i64>) -> anyhow::Result<()> {
        let (first, end) = self.ask(|place| {
            place.consumer.fetch_watermarks(&place.topic, place.partition, PAUSE * 10)
        });
        self.read = offset.map_or(first, |offset| offset.max(first).min(end));
        // Another log than before: what is new in it is known by its time.
        if let Some(last_ms) = self.last_ms.filter(|_| offset.is_some_and(|offset| offset > end)) {
            let found = self.ask(|place| {
                let time = place.at(Offset::Offset(last_ms))?;
                let found = place.consumer.offsets_for_times(time, PAUSE * 10)?;
                Ok(found.elements().first().and_then(|found| found.offset().to_raw()))
            });
            self.read = found.filter(|offset| *offset >= 0).unwrap_or(end);
        }
        if let Some(offset) = offset.filter(|offset| *offset != self.read) {
            eprintln!(
                "server {}: offset {offset} is not there (the log has {first} to {end}): going on \
                 at {}",
                self.partition, self.read
            );
        }
        Ok(self.consumer.assign(&self.at(Offset::Offset(self.read))?)?)
    }

    /// All that was read is answered.
    fn commit(&mut self) -> anyhow::Result<()> {
        (self.done, self.committed) = (self.read, Instant::now());
        Ok(self.consumer.commit(&self.at(Offset::Offset(self.done))?, CommitMode::Async)?)
    }
}

/// What becomes of the replies that a producer was given.
#[derive(Default)]
struct Replies {
    /// One will never be delivered, and another producer may do better.
    failed: AtomicBool,
    delivered: AtomicU64,
    /// All brokers were down. A quiet producer is told so as well, when a broker closes connections
    /// that idle.
    told: AtomicBool,
}

impl ClientContext for Replies {
    fn error(&self, error: KafkaError, _reason: &str) {
        let down = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        self.told.fetch_or(down, Ordering::Relaxed);
    }
}

impl ProducerContext for Replies {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => self.judge(error),
        }
    }
}

impl Replies {
    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn judge(&self, error: &KafkaError) {
        eprintln!("server: a reply was not delivered: {error}");
        // That no broker will ever take, whoever sends it.
        let too_large = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
        self.failed.fetch_or(!too_large, Ordering::Relaxed);
    }
}

/// Whether replies still come through a producer.
struct Watch {
    /// Nothing waited then, or something was delivered.
    since: Instant,
    delivered: u64,
}

impl Watch {
    fn is_lost(&mut self, producer: &BaseProducer<Replies>) -> bool {
        let replies = producer.context();
        let delivered = replies.delivered.load(Ordering::Relaxed);
        if producer.in_flight_count() == 0 || delivered != self.delivered {
            (self.since, self.delivered) = (Instant::now(), delivered);
            replies.told.store(false, Ordering::Relaxed);
        }
        let silent = replies.told.load(Ordering::Relaxed) && self.since.elapsed() > PATIENCE;
        silent || replies.has_failed()
    }
}

fn serve(arguments: &Arguments, mut place: Place, mut lease: Option<Lease>) -> anyhow::Result<()> {
    let downlink = format!("{}downlink", arguments.prefix);
    let partitions = RefCell::new(0);
    let mut replies = producer(&arguments.brokers)?;
    let mut watch = Watch { since: Instant::now(), delivered: 0 };
    let interval = arguments.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let mut next_read = Instant::now();
    loop {
        if let Some(lease) = &mut lease
            && lease.keep(Duration::ZERO)? == Next::End
        {
            return Ok(());
        }
        replies.poll(Duration::ZERO);
        if watch.is_lost(&replies) {
            // What is not committed is read and answered again.
            replies.purge(PurgeConfig::default().queue().inflight());
            std::thread::sleep(PAUSE);
            replies = producer(&arguments.brokers)?;
            watch = Watch { since: Instant::now(), delivered: 0 };
            place.go_on(Some(place.done))?;
        }
        // What is not read waits in the partition. A sleep is never shorter than some 60 µs.
        let early = next_read.saturating_duration_since(Instant::now());
        if early >= MILLISECOND {
            std::thread::sleep(early);
        }
        let is_full = place.read - place.done >= BATCH;
        let patience = match (place.read == place.done, &lease) {
            (true, None) => Duration::from_secs(1),
            (true, Some(_)) => Duration::from_millis(100), // it is kept in between
            _ => Duration::ZERO,
        };
        let polled = (!is_full).then(|| place.consumer.poll(patience)).flatten().transpose();
        let mut is_lost = false;
        let record = polled.unwrap_or_else(|error| {
            eprintln!("server {}: {error}", arguments.partition); // librdkafka goes on trying
            is_lost = is_out_of_range(&error);
            None
        });
        if is_lost {
            drop(record);
            place.go_on(Some(place.read))?;
            continue;
        }
        if let Some(record) = &record
            && let Some(partition) = reply_to(record, lease.as_ref().map(|lease| &*lease.id))
            && place.ask(|_| has(&replies, &downlink, partition, &mut partitions.borrow_mut()))
        {
            let reply = BaseRecord::to(&downlink)
                .partition(partition)
                .key(record.key().unwrap_or_default())
                .payload(record.payload().unwrap_or_default());
            if let Err((error, _)) = replies.send(reply) {
                replies.context().judge(&error);
            }
            // What was lost while the broker was waited for is made up for, as far as it is little.
            let since = Instant::now().checked_sub(CATCH_UP).unwrap_or(next_read);
            next_read = next_read.max(since) + interval.unwrap_or_default();
        }
        let read = record.as_ref().map(|record| record.offset() + 1);
        let last_ms = record.as_ref().and_then(|record| record.timestamp().to_millis());
        let is_slow = record.is_none() || interval.is_some_and(|interval| interval > MILLISECOND);
        drop(record);
        place.read = read.unwrap_or(place.read);
        place.last_ms = last_ms.or(place.last_ms);
        let answered = replies.in_flight_count() == 0 && !replies.context().has_failed();
        let due = is_slow && place.read != place.done || place.committed.elapsed() > RECOMMIT;
        if answered && (is_full || due) {
            place.commit()?;
        } else if is_full || read.is_none() && place.read != place.done {
            std::thread::sleep(Duration::from_micros(500)); // until the broker has the replies
        }
    }
}

/// Whether the downlink has a partition, if it is there at all; `known` is how many it has.
fn has(
    producer: &BaseProducer<Replies>,
    downlink: &str,
    partition: i32,
    known: &mut i32,
) -> KafkaResult<bool> {
    if !(0..*known).contains(&partition) {
        let metadata = producer.client().fetch_metadata(Some(downlink), PAUSE * 10)?;
        let topic = metadata.topics().first().filter(|topic| topic.error().is_none());
        *known =
            topic.map_or(0, |topic| i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX));
        if *known > 0 && !(0..*known).contains(&partition) {
            eprintln!("server: partition {partition} of {downlink}, for a reply, is not there");
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the log does not have an offset any more: deleted by retention, or lost with a broker.
fn is_out_of_range(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AutoOffsetReset, LogTruncation, OffsetOutOfRange};
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| [AutoOffsetReset, LogTruncation, OffsetOutOfRange].contains(&code))
}

fn producer(brokers: &str) -> anyhow::Result<BaseProducer<Replies>> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0") // a broker that is away is waited for
        .set("message.max.bytes", "1000000000") // the topic knows how much is too much
        .set("linger.ms", "0") // a client waits, too
        .create_with_context(Replies::default())?)
}

/// The partition of the downlink, if the record is a message for this server.
fn reply_to(record: &BorrowedMessage<'_>, server: Option<&str>) -> Option<i32> {
    let look = || {
        let headers = || record.headers().into_iter().flat_map(Headers::iter);
        let text = |name: &str| {
            let header = headers().filter(|header| header.key == name).last()?;
            std::str::from_utf8(header.value?).ok()
        };
        // A client came or went; or it was meant for who had the partition before.
        if headers().any(|header| header.key == "kind")
            || server.is_some_and(|id| text("server").is_some_and(|of| of != id))
        {
            return Ok(None);
        }
        text("reply").and_then(|reply| reply.parse().ok()).map(Some).ok_or(())
    };
    // rdkafka panics at a header whose name is not UTF-8.
    let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look));
    looked.unwrap_or(Err(())).unwrap_or_else(|()| {
        eprintln!("server: record {} is no message: no header `reply`", record.offset());
        None
    })
}
