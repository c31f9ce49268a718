//! Writes to the registry topic, and knows which of its records are acknowledged.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::Timestamp;
use rdkafka::error::KafkaResult;
use rdkafka::message::Message as _;
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};

use crate::config::Config;
use crate::kafka::client::writer_config;
use crate::kafka::{LogContext, NO_TIME, brokers_clock, logs_as_ours, own_unix_ms, rejoin};

use super::Write;

/// Time for the first connection. Without a connection the first record takes longer.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// What the delivery reports have brought.
struct Reports {
    log: LogContext,
    /// The offset after the last record that was acknowledged.
    end: AtomicI64,
    /// A record failed and will not be written.
    failed: AtomicBool,
}

logs_as_ours!(Reports);

impl ProducerContext for Reports {
    /// When it was written, by the host's clock.
    type DeliveryOpaque = Box<i64>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<i64>) {
        match result {
            Ok(record) => {
                if let Timestamp::LogAppendTime(appended) = record.timestamp() {
                    brokers_clock().learn(*sent, appended, own_unix_ms(), Instant::now());
                }
                self.end.fetch_max(record.offset() + 1, Ordering::SeqCst);
            }
            Err((error, record)) => {
                let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
                tracing::warn!(%error, key, "a record of the registry was not written");
                self.failed.store(true, Ordering::SeqCst);
            }
        }
    }
}

/// A writer of the registry.
pub(super) struct Author {
    producer: BaseProducer<Reports>,
    topic: String,
}

impl Author {
    pub(super) fn new(config: &Config) -> KafkaResult<Self> {
        let reports = Reports {
            log: LogContext::new(&config.kafka),
            end: AtomicI64::new(0),
            failed: AtomicBool::new(false),
        };
        let mut client = writer_config(&config.kafka);
        // Each record is read back before the next ones are written, so little waits.
        client.set("linger.ms", "0");
        let producer: BaseProducer<_> = client.create_with_context(reports)?;
        let topic = config.kafka.registry_topic();
        // An idempotent producer asks for its id twice a second, if it has a connection then; and it
        // makes none before it is asked for something.
        if let Err(error) = producer.client().fetch_metadata(Some(&topic), METADATA_TIMEOUT) {
            tracing::debug!(%error, "the author of the registry has no connection yet");
        }
        Ok(Self { producer, topic })
    }

    pub(super) fn write(&self, write: &Write) -> KafkaResult<()> {
        let key = write.key.to_string();
        // Only the order of the records counts, so no clock of ours may be a reason to refuse one.
        let mut record = BaseRecord::with_opaque_to(&self.topic, Box::new(own_unix_ms()))
            .partition(0)
            .timestamp(NO_TIME)
            .key(&key);
        if let Some(value) = &write.value {
            record = record.payload(value);
        }
        self.producer.send(record).map_err(|(error, _)| error)
    }

    /// Serves delivery reports. True if one of them reports a failure.
    pub(super) fn poll(&self) -> bool {
        self.producer.poll(Duration::ZERO);
        rejoin(self.producer.client());
        self.producer.context().failed.swap(false, Ordering::SeqCst)
    }

    /// True if a reader whose next offset is `next` has read everything that was written.
    pub(super) fn is_read_back(&self, next: i64) -> bool {
        self.producer.in_flight_count() == 0
            && self.producer.context().end.load(Ordering::SeqCst) <= next
    }

    /// The producer's fatal error, if it has one.
    pub(super) fn fatal(&self) -> Option<String> {
        self.producer.client().fatal_error().map(|(_, reason)| reason)
    }

    /// Waits until everything is written. False if it was given up.
    pub(super) fn finish(&self, patience: Duration) -> bool {
        let flushed = self.producer.flush(patience);
        if let Err(error) = &flushed {
            tracing::warn!(%error, "the last records of the registry were not written");
            self.producer.purge(PurgeConfig::default().queue().inflight());
            self.producer.poll(Duration::ZERO);
        }
        flushed.is_ok()
    }
}
