//! The thread that reads and writes the topic of associations.
//!
//! A worker never waits for it. A change is in the table at once, and the table knows which clients' records
//! are to be written ([`Associations::take_unwritten`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};

use crate::config::Config;
use crate::kafka::client::writer_config;
use crate::kafka::{
    Known, LogContext, NO_TIME, OpenError, Retry, TopicReader, logs_as_ours, record_header, rejoin,
};
use crate::model::Incarnation;
use crate::stop::{StopPart, StopTime};

use super::Associations;
use super::record::{GENERATION, Value};
use super::table::{Content, Outgoing};

/// Poll timeout of the reader, and so the longest wait before a change is written.
const POLL: Duration = Duration::from_millis(50);
/// Records read before the thread writes what is to be written.
const MOST_READ: usize = 10_000;
/// Records taken from the table at a time, under its lock.
const MOST_TAKEN: usize = 64;
/// Most records that Kafka has not acknowledged. The rest waits in the table, where a client's latest state
/// replaces the one before.
const MOST_IN_FLIGHT: i32 = 10_000;
/// Longest silence of the cluster while the topic is read at the start.
const START_SILENCE: Duration = Duration::from_secs(30);
/// How often associations whose time is over are ended.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(100);

/// Why the associations could not be read.
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
    /// The error of the last record that Kafka did not accept, until it is taken.
    refusal: Mutex<Option<KafkaError>>,
}

logs_as_ours!(Reports);

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Outgoing>;

    fn delivery(&self, result: &DeliveryResult<'_>, record: Box<Outgoing>) {
        match result {
            Ok(_) => {
                self.associations.log_stats().written.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => self.refused(error.clone(), *record),
        }
    }
}

impl Reports {
    fn refused(&self, error: KafkaError, record: Outgoing) {
        self.associations.put_back(record);
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn take_refusal(&self) -> Option<KafkaError> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
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
    retry: Retry,
    /// Records written at the last look.
    written: u64,
}

impl AssociationLog {
    /// Reads the topic to its end into the table, which then knows what all relays have done.
    pub fn open(
        config: &Config,
        incarnation: Incarnation,
        associations: Arc<Associations>,
        stop_time: StopTime,
    ) -> Result<Self, LogError> {
        let topic = config.kafka.associations_topic();
        let reader = TopicReader::open(&config.kafka, topic.clone(), "associations", Known::Made)?;
        let reader = reader.growing();
        let mut writer = writer_config(&config.kafka);
        writer
            .set("linger.ms", "5")
            // Java's partitioner: a key has the same partition whoever writes it.
            .set("partitioner", "murmur2");
        let mut log = Self {
            reader,
            producer: writer.create_with_context(Reports {
                log: LogContext::new(&config.kafka),
                associations: associations.clone(),
                refusal: Mutex::default(),
            })?,
            topic,
            me: (config.relay.id, incarnation.value()),
            associations,
            stop_time,
            retry: Retry::default(),
            written: 0,
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
        tracing::info!(records, clients, took_ms = took.as_millis(), "associations have been read");
        Ok(())
    }

    /// Runs until `stop`, then writes what is left within the time of the stop. `stop` is set when the
    /// workers have ended. An error is the producer's fatal one.
    pub fn run(mut self, stop: &AtomicBool) -> Result<(), String> {
        let mut expired = Instant::now();
        while !stop.load(Ordering::SeqCst) {
            self.write()?;
            self.read();
            if expired.elapsed() >= EXPIRE_INTERVAL {
                expired = Instant::now();
                self.associations.expire();
            }
        }
        loop {
            self.write()?;
            let left =
                self.associations.unwritten() + usize::from(self.producer.in_flight_count() > 0);
            if left == 0 {
                return Ok(());
            }
            if self.stop_time.is_over(StopPart::Rest) {
                tracing::warn!(left, "some associations were not written; the next run ends them");
                // Closing its clients would wait for a cluster that does not answer. The process ends now.
                std::mem::forget(self);
                return Ok(());
            }
            self.producer.poll(POLL);
            rejoin(self.producer.client());
        }
    }

    fn read(&mut self) {
        let associations = &self.associations;
        let read = self.reader.read(POLL, MOST_READ, |record| take(associations, record));
        if let Err(error) = read {
            tracing::warn!(%error, "reading associations failed; retrying");
        }
    }

    /// Gives the producer what it has room for. What it refuses goes back to the table, and nothing is tried
    /// for a while, because it would only be refused again.
    fn write(&mut self) -> Result<(), String> {
        self.producer.poll(Duration::ZERO);
        rejoin(self.producer.client());
        self.heed_reports()?;
        while self.retry.is_due(Instant::now()) && self.producer.in_flight_count() < MOST_IN_FLIGHT
        {
            let records = self.associations.take_unwritten(MOST_TAKEN);
            if records.is_empty() {
                break;
            }
            for record in records {
                self.produce(record);
            }
            self.heed_reports()?;
        }
        Ok(())
    }

    /// Pauses if something was refused since the last call.
    fn heed_reports(&mut self) -> Result<(), String> {
        let written = self.associations.log_stats().written.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.written, written) != written {
            self.retry.reset();
        }
        let Some(error) = self.producer.context().take_refusal() else { return Ok(()) };
        if let Some((code, reason)) = self.producer.client().fatal_error() {
            return Err(format!("associations: {code}: {reason}"));
        }
        let pause = self.retry.refused(Instant::now());
        let (topic, left) = (&self.topic, self.associations.unwritten());
        tracing::warn!(
            %error, topic, left, pause_ms = pause.as_millis(),
            "associations could not be written; the relay will retry"
        );
        Ok(())
    }

    fn produce(&self, record: Outgoing) {
        let key = self.associations.print(&record.key);
        let (mut value, mut headers) = (None, None);
        match &record.content {
            Content::End { generation } => {
                let generation = generation.to_string();
                let key = GENERATION.to_str().expect("ASCII");
                let header = Header { key, value: Some(&generation) };
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
            self.producer.context().refused(error, *refused.delivery_opaque);
        }
    }
}

fn take(associations: &Associations, record: &BorrowedMessage<'_>) {
    let generation = record_header(record, GENERATION);
    associations.apply(record.key().unwrap_or_default(), record.payload(), generation);
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::thread::JoinHandle;

    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::model::RelayId;
    use crate::model::ServiceId;

    const PATIENCE: Duration = Duration::from_secs(30);
    const CLIENTS: u16 = 10;

    struct Running {
        associations: Arc<Associations>,
        stop: Arc<AtomicBool>,
        thread: JoinHandle<Result<(), String>>,
    }

    impl Running {
        /// A thread with something to write.
        fn start(cluster: &MockCluster<'_, DefaultProducerContext>) -> Self {
            let config = format!(
                r#"
                gateway = {{ devices = ["eth0"] }}
                kafka = {{ brokers = "{}" }}
                [[service]]
                name = "test"
                destinations = ["192.0.2.0/24"]
                port = 7000
                framing = {{ type = "lines" }}
                server = [{{ id = "a", address = "192.0.2.1", partition = 0 }}]
                "#,
                cluster.bootstrap_servers()
            );
            let config: Config = toml::from_str(&config).expect("valid");
            cluster.create_topic(&config.kafka.associations_topic(), 1, 1).expect("a topic");
            let incarnation = Incarnation::new(1);
            let associations =
                Arc::new(Associations::new(&config.services, RelayId(0), incarnation));
            let stop_time = StopTime::new(&config.relay);
            let log = AssociationLog::open(&config, incarnation, associations.clone(), stop_time)
                .expect("a log");
            for port in 0..CLIENTS {
                let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 1000 + port));
                let who = associations.identity(ServiceId(0), (client, client), None);
                associations.associate(ServiceId(0), who).expect("a server");
            }
            let stop = Arc::<AtomicBool>::default();
            let stopped = stop.clone();
            let thread = std::thread::spawn(move || log.run(&stopped));
            Self { associations, stop, thread }
        }

        fn wait(&self, what: &str, condition: impl Fn(&Associations) -> bool) {
            let begun = Instant::now();
            while !condition(&self.associations) {
                assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn what_is_refused_is_tried_again_less_and_less_often() {
        let cluster = MockCluster::new(1).expect("a cluster");
        let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::Produce, &[refusal; 1000]);
        let running = Running::start(&cluster);
        let tries = |associations: &Associations| {
            associations.log_stats().put_back.load(Ordering::Relaxed) / u64::from(CLIENTS)
        };
        running.wait("the first refusals", |associations| tries(associations) >= 3);
        // Of these there were hundreds a second.
        let (before, begun) = (tries(&running.associations), Instant::now());
        running.wait("time to pass", |_| begun.elapsed() > Duration::from_secs(2));
        let more = tries(&running.associations) - before;
        assert!(more <= 10, "{more} tries in two seconds");
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
        running.wait("everything to be written", |associations| {
            associations.log_stats().written.load(Ordering::Relaxed) == u64::from(CLIENTS)
        });
        running.stop.store(true, Ordering::SeqCst);
        running.thread.join().expect("no panic").expect("nothing was fatal");
    }

    #[test]
    fn a_fatal_error_ends_it() {
        let cluster = MockCluster::new(1).expect("a cluster");
        let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &[refusal]);
        let running = Running::start(&cluster);
        let told = running.thread.join().expect("no panic").expect_err("nothing can be written");
        assert!(told.starts_with("associations: "), "{told}");
    }
}
