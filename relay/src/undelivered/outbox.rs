//! The keeper's producer: each record with the job that it does, and what has become of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};

use crate::config::Config;
use crate::kafka::client::fitting_config;
use crate::kafka::clock::{NO_TIME, brokers_clock};
use crate::kafka::context::{LogContext, logs_as_ours};
use crate::kafka::ffi::rejoin;
use crate::kafka::written::LogEnds;

/// Most bytes of values on their way to Kafka; one record may exceed it.
const MOST_BYTES: usize = 16 << 20;
/// And most records.
const MOST_RECORDS: i32 = 10_000;
/// How long a look for reports lasts while there is no room.
const POLL: Duration = Duration::from_millis(10);

/// What a job has come to: acknowledged by Kafka, or refused.
pub(crate) type Outcome<J> = (J, Result<(), RDKafkaErrorCode>);

/// Takes the delivery reports, on the thread that polls.
struct Reports<J> {
    log: LogContext,
    outcomes: Mutex<Vec<Outcome<J>>>,
    bytes: AtomicUsize,
    ends: Arc<LogEnds>,
    /// The broker has refused a time: records go without one.
    timeless: AtomicBool,
}

logs_as_ours!(Reports<J: Send>);

impl<J: Send + Sync + 'static> ProducerContext for Reports<J> {
    type DeliveryOpaque = Box<J>;

    fn delivery(&self, result: &DeliveryResult<'_>, job: Box<J>) {
        let (message, outcome) = match result {
            Ok(message) => {
                self.ends.acknowledged(message.topic(), message.partition(), message.offset());
                (message, Ok(()))
            }
            Err((error, message)) => (message, Err(code(error))),
        };
        self.bytes.fetch_sub(message.payload_len(), Ordering::Relaxed);
        self.end(*job, outcome);
    }
}

impl<J> Reports<J> {
    fn end(&self, job: J, outcome: Result<(), RDKafkaErrorCode>) {
        // Of several in one batch librdkafka does not tell why.
        if let Err(RDKafkaErrorCode::InvalidTimestamp | RDKafkaErrorCode::InvalidRecord) = outcome {
            self.timeless.store(true, Ordering::Relaxed);
        }
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((job, outcome));
    }
}

fn code(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)
}

/// A bounded producer (`acks=all`, idempotent) that waits for as long as the brokers are away.
pub(crate) struct Outbox<J: Send + Sync + 'static>(BaseProducer<Reports<J>>);

impl<J: Send + Sync + 'static> Outbox<J> {
    /// One that notes in `ends` how far it has written.
    ///
    /// `most_bytes`: the longest batch that its topics take, if that is known. A longer one would be
    /// refused whole, with every record in it.
    pub(crate) fn new(
        config: &Config,
        most_bytes: Option<u32>,
        ends: Arc<LogEnds>,
    ) -> Result<Self, KafkaError> {
        let reports = Reports {
            log: LogContext::new(&config.kafka),
            outcomes: Mutex::default(),
            bytes: AtomicUsize::new(0),
            ends,
            timeless: AtomicBool::new(false),
        };
        // Java's partitioner: a key has one partition, whoever writes it.
        let mut client = fitting_config(config, most_bytes);
        client.set("partitioner", "murmur2_random").create_with_context(reports).map(Self)
    }

    /// Sends a record, or takes its refusal as its outcome. It has the broker's time, or none; so one
    /// that was refused for its time is taken when it is sent again.
    pub(crate) fn send(&self, mut record: BaseRecord<'_, [u8], [u8], Box<J>>) {
        let bytes = record.payload.map_or(0, <[u8]>::len);
        let reports = self.0.context();
        let timeless = reports.timeless.load(Ordering::Relaxed);
        record.timestamp = Some(if timeless { NO_TIME } else { brokers_clock().unix_ms() });
        reports.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Err((error, record)) = self.0.send(record) {
            reports.bytes.fetch_sub(bytes, Ordering::Relaxed);
            reports.end(*record.delivery_opaque, Err(code(&error)));
        }
    }

    /// Why nothing will ever be sent again.
    pub(crate) fn fatal(&self) -> Option<String> {
        self.0.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
    }

    /// Waits until another record may be sent; false if the relay stops before.
    pub(crate) fn wait_room(&self, stop: &AtomicBool) -> bool {
        let full = || {
            self.0.context().bytes.load(Ordering::Relaxed) >= MOST_BYTES
                || self.0.in_flight_count() >= MOST_RECORDS
        };
        while full() && !stop.load(Ordering::SeqCst) {
            self.poll(POLL);
        }
        !full()
    }

    fn poll(&self, patience: Duration) {
        self.0.poll(patience);
        rejoin(self.0.client());
    }

    /// What has come to an end, after a wait of at most `patience` for the first report.
    pub(crate) fn outcomes(&self, patience: Duration) -> Vec<Outcome<J>> {
        self.poll(patience);
        let mut outcomes = self.0.context().outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *outcomes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    #[test]
    fn that_nothing_will_ever_be_sent_again_is_told() {
        let cluster = MockCluster::new(1).expect("a cluster");
        let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &[refusal]);
        let text = include_str!("../../../docs/millrace.toml");
        let brokers = cluster.bootstrap_servers();
        let config: Config =
            toml::from_str(&text.replace("127.0.0.1:9092", &brokers)).expect("valid");
        let outbox = Outbox::<u32>::new(&config, None, Arc::default()).expect("a producer");
        assert_eq!(outbox.fatal(), None);
        let begun = Instant::now();
        while outbox.fatal().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(30), "nothing is told");
            outbox.outcomes(POLL);
        }
        // What is sent all the same comes back.
        let mut record = BaseRecord::with_opaque_to("topic", Box::new(7));
        record.payload = Some(&b"x"[..]);
        outbox.send(record);
        let outcomes = outbox.outcomes(Duration::ZERO);
        assert!(matches!(outcomes[..], [(7, Err(RDKafkaErrorCode::Fatal))]), "{outcomes:?}");
    }
}
