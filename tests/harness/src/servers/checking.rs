//! Servers that answer every message, and check all that a server can know of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::clients::load::Directory;
use crate::clients::payload::{Arrival, Payload, Sequence};
use crate::clients::wire::Wire;
use crate::kafka;
use crate::kafka::lasting::{LastingConsumer, LastingProducer, lasting, rejoin};
use crate::system::process::wait_until;

const NOBODY: u32 = u32::MAX;
/// Complaints kept for the report.
const KEPT_COMPLAINTS: usize = 10;
const START_PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);

/// What the servers shall expect.
#[derive(Clone, Debug)]
pub struct ServerPlan {
    /// Bootstrap brokers.
    pub brokers: String,
    /// What stands before `uplink` and `downlink`.
    pub prefix: String,
    /// The servers' partitions.
    pub partitions: Vec<u16>,
    /// Partition of the downlink that every record must name.
    pub relay: u16,
    /// Checks the messages.
    pub payload: Payload,
    /// How the clients tell messages apart.
    pub wire: Wire,
}

/// What the servers have seen, together.
#[derive(Debug, Default)]
pub struct Tally {
    /// Messages that came for the first time.
    pub delivered: AtomicU64,
    /// Messages that came again.
    pub duplicated: AtomicU64,
    /// Messages that came after a later one of the same client.
    pub out_of_order: AtomicU64,
    /// Records at the wrong server, under the wrong key or with wrong addresses.
    pub misrouted: AtomicU64,
    /// Messages that are not as the client sent them.
    pub corrupted: AtomicU64,
    /// Connections begun.
    pub opened: AtomicU64,
    /// Connections ended.
    pub closed: AtomicU64,
    /// By partition, connections begun.
    pub opened_at: Vec<AtomicU64>,
    owners: Vec<AtomicU32>,
    /// By partition, the offset that is read next.
    places: Vec<AtomicI64>,
    /// What reading a partition has said last, by partition.
    troubles: Mutex<HashMap<u16, String>>,
    complaints: Mutex<Vec<String>>,
}

impl Tally {
    /// The first few things that were wrong.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().expect("no panic under this lock").clone()
    }

    fn complain(&self, counter: &AtomicU64, what: impl FnOnce() -> String) {
        counter.fetch_add(1, Relaxed);
        let mut complaints = self.complaints.lock().expect("no panic under this lock");
        if complaints.len() < KEPT_COMPLAINTS {
            complaints.push(what());
        }
    }
}

/// Running servers. Dropping them stops them.
#[derive(Debug)]
pub struct Servers {
    /// Counters.
    pub tally: Arc<Tally>,
    uplink: String,
    partitions: Vec<u16>,
    brokers: String,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Servers {
    /// Starts one thread and one consumer for each partition, reading what comes from now on.
    pub fn start(plan: &ServerPlan, directory: &Directory) -> Result<Self> {
        let settings =
            [("enable.idempotence", "true"), ("message.timeout.ms", "0"), ("linger.ms", "1")];
        let producer: LastingProducer = lasting(&plan.brokers, &settings)?;
        // Finds the topic's leader now, so that the first replies need not wait for it.
        producer
            .client()
            .fetch_metadata(Some(&format!("{}downlink", plan.prefix)), START_PATIENCE)?;
        let places = plan.partitions.iter().copied().max().map_or(0, |last| usize::from(last) + 1);
        let tally = Arc::new(Tally {
            opened_at: std::iter::repeat_with(AtomicU64::default).take(places).collect(),
            owners: directory.iter().map(|_| AtomicU32::new(NOBODY)).collect(),
            places: std::iter::repeat_with(AtomicI64::default).take(places).collect(),
            ..Tally::default()
        });
        let uplink = format!("{}uplink", plan.prefix);
        let mut servers = Self {
            tally,
            uplink: uplink.clone(),
            partitions: plan.partitions.clone(),
            brokers: plan.brokers.clone(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for partition in &plan.partitions {
            let place = i32::from(*partition);
            // Its leader may just be another one.
            let mut end = 0;
            wait_until(START_PATIENCE, "the end of a partition to be known", || {
                let found = producer.client().fetch_watermarks(&uplink, place, START_PATIENCE);
                end = found.as_ref().map_or(end, |(_, end)| *end);
                Ok(found.is_ok())
            })?;
            let server = Server {
                uplink: uplink.clone(),
                start: end,
                partition: *partition,
                plan: plan.clone(),
                downlink: format!("{}downlink", plan.prefix),
                reply_header: plan.relay.to_string(),
                directory: Arc::clone(directory),
                tally: Arc::clone(&servers.tally),
                producer: producer.clone(),
                clients: HashMap::new(),
                keys: HashMap::new(),
            };
            let stop = Arc::clone(&servers.stop);
            let thread = std::thread::Builder::new()
                .name(format!("server-{partition}"))
                .spawn(move || server.run(&stop))?;
            servers.threads.push(thread);
        }
        Ok(servers)
    }

    /// Refuses servers of which one has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        while let Some(ended) = self.threads.iter().position(JoinHandle::is_finished) {
            join(self.threads.swap_remove(ended))?;
        }
        Ok(())
    }

    /// How far each has read its partition, and what has hindered it last: for who waits in vain.
    pub fn progress(&self) -> String {
        let troubles = self.tally.troubles.lock().expect("no panic under this lock");
        let count = self.partitions.iter().max().map_or(0, |last| last + 1);
        let ends = kafka::record_counts(&self.brokers, &self.uplink, count);
        let of = |partition: &u16| {
            let end = match &ends {
                Ok(ends) => ends[usize::from(*partition)].to_string(),
                Err(error) => format!("{error:#}"),
            };
            let read = self.tally.places[usize::from(*partition)].load(Relaxed);
            let trouble = troubles.get(partition).map_or("no error", String::as_str);
            format!("partition {partition} is read to {read} of {end} ({trouble})")
        };
        self.partitions.iter().map(of).collect::<Vec<_>>().join(", ")
    }

    /// Stops them.
    pub fn stop(mut self) -> Result<Arc<Tally>> {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).try_for_each(join)?;
        Ok(Arc::clone(&self.tally))
    }
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().map_err(|_| anyhow!("a server's thread panicked"))?
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Server {
    partition: u16,
    uplink: String,
    /// Offset of its first record.
    start: i64,
    plan: ServerPlan,
    downlink: String,
    reply_header: String,
    directory: Directory,
    tally: Arc<Tally>,
    producer: LastingProducer,
    /// By client number.
    clients: HashMap<u32, Sequence>,
    /// Connection key to client address.
    keys: HashMap<Vec<u8>, String>,
}

/// The headers of an uplink record.
#[derive(Debug, Default)]
struct Labels<'a> {
    kind: Option<&'a str>,
    client: &'a str,
    destination: &'a str,
    protocol: &'a str,
    reply: &'a str,
    reason: Option<&'a str>,
}

impl<'a> Labels<'a> {
    fn of(record: &'a BorrowedMessage<'_>) -> Result<Self> {
        let mut labels = Self::default();
        for header in record.headers().context("a record without headers")?.iter() {
            let value = std::str::from_utf8(header.value.unwrap_or_default())?;
            match header.key {
                "kind" => labels.kind = Some(value),
                "client" => labels.client = value,
                "destination" => labels.destination = value,
                "protocol" => labels.protocol = value,
                "reply" => labels.reply = value,
                "reason" => labels.reason = Some(value),
                _ => {}
            }
        }
        Ok(labels)
    }
}

impl Server {
    fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let partition = i32::from(self.partition);
        // Needed for `assign`, though nothing is committed.
        let group = format!("{}check-{}", self.plan.prefix, self.partition);
        let settings =
            [("group.id", &*group), ("enable.auto.commit", "false"), ("fetch.wait.max.ms", "50")];
        let consumer: LastingConsumer = lasting(&self.plan.brokers, &settings)?;
        let mut own = TopicPartitionList::new();
        own.add_partition_offset(&self.uplink, partition, Offset::Offset(self.start))?;
        consumer.assign(&own)?;
        while !stop.load(Relaxed) {
            rejoin(consumer.client());
            rejoin(self.producer.client());
            match consumer.poll(POLL) {
                Some(Ok(record)) => {
                    self.take(&record, stop)?;
                    let place = &self.tally.places[usize::from(self.partition)];
                    place.store(record.offset() + 1, Relaxed);
                }
                None => {}
                // librdkafka goes on trying; a broker that is away for good shows as lost messages.
                Some(Err(error @ (KafkaError::MessageConsumption(_) | KafkaError::Global(_)))) => {
                    let mut troubles =
                        self.tally.troubles.lock().expect("no panic under this lock");
                    troubles.insert(self.partition, error.to_string());
                }
                Some(Err(error)) => {
                    return Err(error).context("a server cannot read its partition");
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, record: &BorrowedMessage<'_>, stop: &AtomicBool) -> Result<()> {
        let labels = match Labels::of(record) {
            Ok(labels) => labels,
            Err(error) => {
                self.tally.complain(&self.tally.misrouted, || format!("{error:#}"));
                return Ok(());
            }
        };
        let key = record.key().unwrap_or_default();
        match labels.kind {
            Some("open") => {
                self.tally.opened.fetch_add(1, Relaxed);
                self.tally.opened_at[usize::from(self.partition)].fetch_add(1, Relaxed);
                if self.keys.insert(key.to_owned(), labels.client.to_owned()).is_some() {
                    self.misrouted(&labels, "a connection key came twice");
                }
            }
            None => {
                self.check(key, record.payload().unwrap_or_default(), &labels);
                self.reply(record, stop)?;
            }
            Some("close") => {
                self.tally.closed.fetch_add(1, Relaxed);
                if labels.reason.is_none() {
                    self.misrouted(&labels, "a close record without a reason");
                }
                if self.keys.remove(key).is_none() {
                    self.misrouted(&labels, "a close record without its open record");
                }
            }
            Some(_) => self.misrouted(&labels, "a record of unknown kind"),
        }
        Ok(())
    }

    fn misrouted(&self, labels: &Labels<'_>, what: &str) {
        self.tally.complain(&self.tally.misrouted, || {
            format!("server at partition {}: {what}: {labels:?}", self.partition)
        });
    }

    fn check(&mut self, key: &[u8], payload: &[u8], labels: &Labels<'_>) {
        let tally = Arc::clone(&self.tally);
        let Some(stamp) = self.plan.payload.decode(payload) else {
            return tally.complain(&tally.corrupted, || format!("not as sent: {labels:?}"));
        };
        let Some(ends) = self.directory.get(stamp.client as usize).and_then(|ends| ends.get())
        else {
            return tally.complain(&tally.corrupted, || format!("no client sent it: {stamp:?}"));
        };
        let owner = &tally.owners[stamp.client as usize];
        let first = owner.compare_exchange(NOBODY, u32::from(self.partition), Relaxed, Relaxed);
        if first.is_err_and(|owner| owner != u32::from(self.partition)) {
            self.misrouted(labels, "the client's messages went to another server before");
        }
        if self.keys.get(key).is_none_or(|client| client != labels.client) {
            self.misrouted(labels, "the key's open record named another client, or there is none");
        }
        if labels.client != ends.client.to_string() {
            self.misrouted(labels, &format!("the client's address is {}", ends.client));
        }
        if labels.destination != ends.destination.to_string() {
            self.misrouted(labels, &format!("the client addressed {}", ends.destination));
        }
        if labels.protocol != self.plan.wire.protocol() || labels.reply != self.reply_header {
            self.misrouted(labels, "wrong protocol or downlink partition");
        }
        let counter = match self.clients.entry(stamp.client).or_default().arrive(stamp.sequence) {
            Arrival::Duplicate => {
                return tally.complain(&tally.duplicated, || format!("twice: {stamp:?}"));
            }
            Arrival::OutOfOrder => {
                tally.complain(&tally.out_of_order, || format!("late: {stamp:?}"));
                &tally.delivered
            }
            Arrival::InOrder => &tally.delivered,
        };
        counter.fetch_add(1, Relaxed);
    }

    fn reply(&self, record: &BorrowedMessage<'_>, stop: &AtomicBool) -> Result<()> {
        let mut reply = BaseRecord::to(&self.downlink)
            .partition(i32::from(self.plan.relay))
            .key(record.key().unwrap_or_default())
            .payload(record.payload().unwrap_or_default());
        while !stop.load(Relaxed) {
            match self.producer.send(reply) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    reply = back;
                    // The producer's own thread makes room as the broker acknowledges.
                    self.producer.flush(POLL).ok();
                    rejoin(self.producer.client());
                }
                Err((error, _)) => return Err(error).context("a server cannot reply"),
            }
        }
        Ok(())
    }
}
