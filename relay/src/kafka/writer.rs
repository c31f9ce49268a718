//! What writes the uplink's records: librdkafka, or the relay itself.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::time::Duration;

use millrace_wire::batch::{self, Tag};
use millrace_wire::uplink::Settings;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::{Config, UplinkEngine};
use crate::dial::Dial;
use crate::kafka::client::{DATA, batch_bytes, client_id, fitting_config};
use crate::kafka::context::LogContext;
use crate::kafka::ffi::{NativeProducer, NativeReport};
use crate::kafka::trust::{self, TrustError};
use crate::kafka::wire::WireProducer;
use crate::model::{Headers, Partition};
use crate::ring::Wake;

/// How long a broker may take for a batch (`request.timeout.ms` of librdkafka).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no producer.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// librdkafka refuses its configuration.
    #[error("the Kafka client refuses its configuration: {0}; see kafka.properties")]
    Librdkafka(#[from] KafkaError),
    /// There can be no TLS.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// There are no descriptors left, or the like.
    #[error("cannot wait for brokers: {0}")]
    Io(#[from] io::Error),
}

/// What a record has in common with others.
#[derive(Clone, Copy)]
pub(crate) struct Constant<'a> {
    /// Its key.
    pub(crate) key: &'a [u8],
    /// Its first headers.
    pub(crate) headers: &'a [(&'static CStr, Box<[u8]>)],
    /// Where all that is kept in Kafka's format, if it will be needed again.
    pub(crate) encoded: Option<&'a OnceLock<Box<[u8]>>>,
}

impl<'a> Constant<'a> {
    /// Those headers.
    pub(crate) fn headers(self) -> impl Iterator<Item = (&'a CStr, &'a [u8])> + Clone {
        self.headers.iter().map(|(name, value)| (*name, &**value))
    }

    fn encode(self) -> Box<[u8]> {
        let headers = self.headers().map(|(name, value)| (name.to_bytes(), value));
        batch::Constant::encode(self.key, headers)
    }
}

/// The headers of a record that follow its first ones.
#[derive(Clone, Copy, Default)]
pub(crate) struct FurtherHeaders<'a> {
    /// One of the relay's own, before the others.
    pub(crate) first: Option<(&'static CStr, &'a [u8])>,
    /// Those of its protocol.
    pub(crate) of_protocol: Headers<'a>,
    /// And one behind them.
    pub(crate) last: Option<(&'static CStr, &'a [u8])>,
}

impl<'a> FurtherHeaders<'a> {
    /// All of them, in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a CStr, &'a [u8])> + Clone {
        self.first.into_iter().chain(self.of_protocol.iter()).chain(self.last)
    }
}

impl batch::Headers for FurtherHeaders<'_> {
    #[inline]
    fn each(&self, mut each: impl FnMut(&[u8], &[u8])) {
        if let Some((name, value)) = self.first {
            each(name.to_bytes(), value);
        }
        if !self.of_protocol.is_empty() {
            self.of_protocol.iter().for_each(|(name, value)| each(name.to_bytes(), value));
        }
        if let Some((name, value)) = self.last {
            each(name.to_bytes(), value);
        }
    }
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
                    sasl: None,
                    linger: Duration::from_micros(kafka.linger_us().into()),
                    request_timeout: REQUEST_TIMEOUT,
                };
                let tls = kafka.tls.as_ref().map(trust::client_config).transpose()?;
                let sasl = kafka.sasl.clone();
                Ok(Self::Millrace(Box::new(WireProducer::new(settings, tls, sasl, wake)?)))
            }
        }
    }

    /// How long a batch waits for more records, in microseconds. None if that cannot change.
    pub(crate) fn linger_us(&self) -> Option<Dial> {
        match self {
            Self::Librdkafka(_) => None,
            Self::Millrace(wire) => Some(wire.linger_us()),
        }
    }

    /// Takes a copy of a record, whose headers follow the constant ones.
    pub(crate) fn produce(
        &mut self,
        partition: Partition,
        (constant, value): (Constant<'_>, &[u8]),
        unix_ms: i64,
        headers: &FurtherHeaders<'_>,
        tag: Tag,
    ) -> Result<(), RDKafkaErrorCode> {
        match self {
            Self::Librdkafka(native) => {
                let headers = constant.headers().chain(headers.iter());
                native.produce(partition, constant.key, value, unix_ms, headers, tag.token)
            }
            Self::Millrace(wire) => match constant.encoded {
                Some(encoded) => {
                    let encoded = encoded.get_or_init(|| constant.encode());
                    wire.produce(partition, (encoded, value), unix_ms, headers, tag)
                }
                None => wire.produce(partition, (&constant.encode(), value), unix_ms, headers, tag),
            },
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
            Self::Millrace(wire) => wire.poll(room, weighed, on_report),
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
