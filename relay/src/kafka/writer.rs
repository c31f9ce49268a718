//! What writes the uplink's records: librdkafka, or the relay itself.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use millrace_wire::batch::Tag;
use millrace_wire::uplink::Settings;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::{Config, UplinkEngine};
use crate::kafka::client::{DATA, batch_bytes, client_id, fitting_config};
use crate::kafka::context::LogContext;
use crate::kafka::ffi::{NativeProducer, NativeReport};
use crate::kafka::wire::WireProducer;
use crate::model::Partition;
use crate::ring::Wake;

/// How long a broker may take for a batch (`request.timeout.ms` of librdkafka).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no producer.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// librdkafka refuses its configuration.
    #[error("the Kafka client refuses its configuration: {0}; see kafka.properties")]
    Librdkafka(#[from] KafkaError),
    /// There are no descriptors left, or the like.
    #[error("cannot wait for brokers: {0}")]
    Io(#[from] io::Error),
}

/// Writes to the uplink's topic.
pub(crate) enum Writer {
    /// `kafka.engine = "librdkafka"`
    Librdkafka(NativeProducer<LogContext>),
    /// `kafka.engine = "millrace"`
    Millrace(Box<WireProducer>),
}

impl Writer {
    /// As `kafka.engine` says, for a topic that takes batches of `most_bytes`. `wake` wakes the thread that
    /// polls.
    pub(crate) fn new(
        config: &Config,
        most_bytes: Option<u32>,
        wake: Wake,
    ) -> Result<Self, WriterError> {
        let kafka = &config.kafka;
        let topic = kafka.uplink_topic();
        match kafka.engine {
            UplinkEngine::Librdkafka => {
                let client = fitting_config(config, most_bytes);
                let context = LogContext::new(kafka);
                Ok(Self::Librdkafka(NativeProducer::new(&client, context, &topic, wake)?))
            }
            UplinkEngine::Millrace => {
                let settings = Settings {
                    topic,
                    partitions: u16::try_from(config.partitions()).unwrap_or(u16::MAX),
                    client_id: client_id(kafka, DATA),
                    bootstrap: kafka.bootstrap(),
                    batch_bytes: batch_bytes(kafka, most_bytes) as usize,
                    linger: Duration::from_micros(kafka.linger_us().into()),
                    request_timeout: REQUEST_TIMEOUT,
                };
                Ok(Self::Millrace(Box::new(WireProducer::new(settings, wake)?)))
            }
        }
    }

    /// Takes a copy of a record.
    pub(crate) fn produce<'a>(
        &mut self,
        partition: Partition,
        (key, value): (&[u8], &[u8]),
        unix_ms: i64,
        headers: impl Iterator<Item = (&'a CStr, &'a [u8])> + Clone,
        tag: Tag,
    ) -> Result<(), RDKafkaErrorCode> {
        match self {
            Self::Librdkafka(native) => {
                native.produce(partition, key, value, unix_ms, headers, tag.token)
            }
            Self::Millrace(wire) => wire.produce(partition, (key, value), unix_ms, headers, tag),
        }
    }

    /// Passes on the reports that have come, without waiting, for as long as there is `room` for what they
    /// tell. False if there was nothing. `weighed` says of a token whether the headers of its record are
    /// booked.
    pub(crate) fn poll(
        &mut self,
        room: impl Fn() -> bool,
        weighed: impl Fn(u64) -> bool,
        on_report: impl FnMut(NativeReport),
    ) -> bool {
        match self {
            Self::Librdkafka(native) => native.poll(room, weighed, on_report) > 0,
            Self::Millrace(wire) => wire.poll(room, on_report),
        }
    }

    /// Becomes readable when a poll has something to do, if that is not told by the wake-up.
    pub(crate) fn readiness(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Librdkafka(_) => None,
            Self::Millrace(wire) => Some(wire.readiness()),
        }
    }

    /// How long it may be before a poll has something to do though nothing happens.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match self {
            Self::Librdkafka(_) => None,
            Self::Millrace(wire) => wire.patience(),
        }
    }

    /// The error after which nothing is delivered any more.
    pub(crate) fn fatal_error(&self) -> Option<String> {
        match self {
            Self::Librdkafka(native) => native.fatal_error(),
            Self::Millrace(wire) => wire.fatal_error(),
        }
    }

    /// Gives up everything that is not acknowledged; each record is reported as purged.
    pub(crate) fn purge(&mut self) {
        match self {
            Self::Librdkafka(native) => native.purge(),
            Self::Millrace(wire) => wire.purge(),
        }
    }
}
