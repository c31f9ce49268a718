//! The thread that reads and writes the topic of associations.
//!
//! A worker never waits for it: what it does is in the table at once, and the table knows which
//! clients' records are to be written ([`Associations::take_unwritten`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};

use crate::config::Config;
use crate::kafka::{
    Incarnation, Known, LogContext, NO_TIME, OpenError, StopTime, TopicReader, is_news,
    logs_as_ours, rejoin, writer_config,
};

use super::Associations;
use super::record::{GENERATION, Value};
use super::table::{Content, Outgoing};

/// How long a look for records lasts; so long a change may wait to be written.
const POLL: Duration = Duration::from_millis(50);
/// Records read between two looks for what is to be written.
const MOST_READ: usize = 10_000;
/// Records taken from the table at a time, under its lock.
const MOST_TAKEN: usize = 64;
/// Records that Kafka has not acknowledged. The rest waits in the table, where the latest state of
/// a client replaces the one before.
const MOST_IN_FLIGHT: i32 = 10_000;
/// How long the cluster may be silent while the topic is read at the start.
const START_SILENCE: Duration = Duration::from_secs(30);
/// How often the table is asked who is away for long enough.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(100);

/// Why the associations are not known.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// librdkafka refuses.
    #[error("the Kafka client refuses its configuration: {0}; see kafka.properties")]
    Client(#[from] KafkaError),
    /// The topic cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The topic cannot be read.
    #[error(
        "topic {topic} could not be read to its end: nothing came for {} s, {partitions} \
         partition(s) were left ({problem}); the relay must know who belongs to whom before it \
         takes clients",
        START_SILENCE.as_secs()
    )]
    Read {
        /// Which topic.
        topic: String,
        /// Partitions whose end was not reached.
        partitions: usize,
        /// librdkafka's last word.
        problem: String,
    },
}

struct Reports {
    log: LogContext,
    associations: Arc<Associations>,
}

logs_as_ours!(Reports);

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Outgoing>;

    fn delivery(&self, result: &DeliveryResult<'_>, record: Box<Outgoing>) {
        match result {
            Ok(_) => {
                self.associations.log_stats().written.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => {
                if is_news(&format!("associations {error}")) {
                    tracing::warn!(%error, "an association was not written; it will be again");
                }
                self.associations.put_back(*record);
            }
        }
    }
}

/// Reads and writes the topic of associations.
pub struct AssociationLog {
    reader: TopicReader,
    producer: BaseProducer<Reports>,
    topic: String,
    me: (u16, u64),
    associations: Arc<Associations>,
    stop_time: StopTime,
}

impl AssociationLog {
    /// Reads the topic to its end into the table, which knows then what all relays have done.
    pub fn open(
        config: &Config,
        incarnation: Incarnation,
        associations: Arc<Associations>,
        stop_time: StopTime,
    ) -> Result<Self, LogError> {
        let topic = config.kafka.associations_topic();
        let reader = TopicReader::open(&config.kafka, topic.clone(), "associations", Known::Made)?;
        let mut writer = writer_config(&config.kafka);
        writer
            .set("linger.ms", "5")
            // As Java's producers do it, so that whoever writes a key finds its partition.
            .set("partitioner", "murmur2");
        let mut log = Self {
            reader,
            producer: writer.create_with_context(Reports {
                log: LogContext::new(&config.kafka),
                associations: associations.clone(),
            })?,
            topic,
            me: (config.relay.id, incarnation.value()),
            associations,
            stop_time,
        };
        log.read_to_end()?;
        Ok(log)
    }

    fn read_to_end(&mut self) -> Result<(), LogError> {
        let started = Instant::now();
        let (mut deadline, mut problem) = (started + START_SILENCE, "no answer".to_owned());
        while self.reader.behind() > 0 {
            let associations = &self.associations;
            match self.reader.read(POLL, MOST_READ, |record| take(associations, record)) {
                Ok(true) => deadline = Instant::now() + START_SILENCE,
                Ok(false) => {}
                Err(error) => problem = error.to_string(),
            }
            if Instant::now() >= deadline {
                let (topic, partitions) = (self.topic.clone(), self.reader.behind());
                return Err(LogError::Read { topic, partitions, problem });
            }
        }
        self.associations.begin();
        let records = self.associations.log_stats().read.load(Ordering::Relaxed);
        let (clients, took) = (self.associations.clients(), started.elapsed());
        tracing::info!(records, clients, took_ms = took.as_millis(), "associations are known");
        Ok(())
    }

    /// Runs until `stop`, then writes what is left, as long as a stop may take. `stop` is set when
    /// the workers have ended.
    pub fn run(mut self, stop: &AtomicBool) {
        let mut expired = Instant::now();
        while !stop.load(Ordering::SeqCst) {
            self.write();
            self.read();
            if expired.elapsed() >= EXPIRE_INTERVAL {
                expired = Instant::now();
                self.associations.expire();
            }
        }
        let deadline = Instant::now() + self.stop_time.left();
        loop {
            self.write();
            let left =
                self.associations.unwritten() + usize::from(self.producer.in_flight_count() > 0);
            if left == 0 {
                return;
            }
            if Instant::now() >= deadline {
                tracing::warn!(left, "associations were not written; the next run ends them");
                return;
            }
            self.producer.poll(POLL);
            rejoin(self.producer.client());
        }
    }

    fn read(&mut self) {
        let associations = &self.associations;
        let read = self.reader.read(POLL, MOST_READ, |record| take(associations, record));
        if let Err(error) = read
            && is_news(&format!("associations {error}"))
        {
            tracing::warn!(%error, "reading associations; trying on");
        }
    }

    /// Gives the producer what it may have.
    fn write(&self) {
        self.producer.poll(Duration::ZERO);
        rejoin(self.producer.client());
        while self.producer.in_flight_count() < MOST_IN_FLIGHT {
            let records = self.associations.take_unwritten(MOST_TAKEN);
            if records.is_empty() {
                return;
            }
            for record in records {
                self.produce(record);
            }
        }
    }

    fn produce(&self, record: Outgoing) {
        let key = self.associations.print(&record.key);
        let (mut value, mut headers) = (None, None);
        match &record.content {
            Content::End { generation } => {
                let generation = generation.to_string();
                let header = Header { key: GENERATION, value: Some(&generation) };
                headers = Some(OwnedHeaders::new().insert(header));
            }
            Content::Entry { server, generation, until } => {
                let written = Value::new(server, *generation, self.me, *until);
                value = Some(serde_json::to_vec(&written).expect("plain data becomes JSON"));
            }
        }
        let mut message = BaseRecord::with_opaque_to(&self.topic, Box::new(record)).key(&key);
        message.payload = value.as_ref();
        message.timestamp = Some(NO_TIME);
        message.headers = headers;
        if let Err((error, refused)) = self.producer.send(message) {
            tracing::debug!(%error, "an association is not taken by the producer now");
            self.associations.put_back(*refused.delivery_opaque);
        }
    }
}

fn take(associations: &Associations, record: &BorrowedMessage<'_>) {
    let generation = record
        .headers()
        .and_then(|headers| headers.iter().find(|header| header.key == GENERATION))
        .map(|header| header.value.unwrap_or_default());
    associations.apply(record.key().unwrap_or_default(), record.payload(), generation);
}
