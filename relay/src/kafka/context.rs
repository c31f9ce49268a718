//! What every client of librdkafka here has: our log, and a way back to the cluster.
//!
//! librdkafka (2.12.1) can lose the cluster for good. While a controller takes all brokers for gone,
//! they list no broker in their metadata; librdkafka then drops those that it knows and orders a new
//! bootstrap, which the end of the same response calls off again if it comes later. From then on it
//! asks nobody any more ("no usable brokers"), and never says more than that all brokers are down. So
//! [`rejoin`](super::ffi::rejoin) gives such a client the configured brokers again. (librdkafka's issue
//! 5430 tells of the same end.)

use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::KafkaSection;
use crate::kafka::client::{CONTROL, DATA};

/// A client gets its brokers no more often: librdkafka remembers them each time, and in an outage says
/// once in a while that all are down.
const REJOIN_INTERVAL: Duration = Duration::from_secs(5);

/// How often it gets them after it has lost all: what it is given at once can be dropped once more, if
/// another broker answers that there is none, and nothing needs to tell of that.
const REJOINS: u8 = 2;

/// How long the brokers have told clients to wait because of a quota.
struct Throttled {
    ms: AtomicU64,
}

impl Throttled {
    const fn new() -> Self {
        Self { ms: AtomicU64::new(0) }
    }

    fn add(&self, client: &str, broker: &str, throttle_ms: u64) {
        if throttle_ms == 0 {
            return;
        }
        self.ms.fetch_add(throttle_ms, Ordering::Relaxed);
        tracing::warn!(
            broker,
            throttle_ms,
            "the brokers throttle clients for {client}: a quota of their client.id or their user \
             is used up; `relay status` shows for how long"
        );
    }
}

static THROTTLED_DATA: Throttled = Throttled::new();
static THROTTLED_CONTROL: Throttled = Throttled::new();

/// Takes what a broker says to a client that messages go by.
pub(crate) fn data_throttled(broker: &str, throttle_ms: u64) {
    THROTTLED_DATA.add(DATA, broker, throttle_ms);
}

/// For how many milliseconds this process was told to wait, by what its clients are for.
pub(crate) fn throttled_ms() -> [(&'static str, u64); 2] {
    [(DATA, &THROTTLED_DATA), (CONTROL, &THROTTLED_CONTROL)]
        .map(|(purpose, throttled)| (purpose, throttled.ms.load(Ordering::Relaxed)))
}

/// The throttling in librdkafka's statistics since the last ones (STATISTICS.md, `throttle` of
/// `brokers`): which broker, and milliseconds.
fn throttling(statistics: &[u8]) -> Option<(String, u64)> {
    let statistics: serde_json::Value = serde_json::from_slice(statistics).ok()?;
    let brokers = statistics["brokers"].as_object()?.iter();
    let sums = brokers.map(|(name, broker)| {
        (name.clone(), broker["throttle"]["sum"].as_u64().unwrap_or_default())
    });
    sums.max_by_key(|(_, ms)| *ms)
}

/// Passes librdkafka's log to ours, and notices that a client has lost all brokers.
#[derive(Debug)]
pub struct LogContext {
    brokers: CString,
    /// So often it is still to be given some.
    due: AtomicU8,
    rejoined: Mutex<Option<Instant>>,
    /// What it was told last of an error that has a cause: that all brokers are down has one.
    last_error: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

/// A context that has a [`LogContext`].
pub trait Watched: ClientContext {
    /// Its own.
    fn watch(&self) -> &LogContext;
}

impl LogContext {
    /// For one client of the configured cluster.
    pub fn new(kafka: &KafkaSection) -> Self {
        Self {
            // A client could not have been made with a NUL in it.
            brokers: CString::new(kafka.brokers.as_str()).unwrap_or_default(),
            due: AtomicU8::new(0),
            rejoined: Mutex::default(),
            last_error: Mutex::default(),
        }
    }

    /// Whether the client has lost all brokers and is to be given some.
    pub(crate) fn has_lost(&self) -> bool {
        self.due.load(Ordering::Relaxed) > 0
    }

    /// What the client was told last of its connections.
    pub(crate) fn last_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The brokers that the client should be given now, if it has lost all of its own.
    pub(crate) fn to_rejoin(&self, now: Instant) -> Option<&CStr> {
        let mut last = self.rejoined.lock().unwrap_or_else(PoisonError::into_inner);
        let soon = last.is_some_and(|last| now.saturating_duration_since(last) < REJOIN_INTERVAL);
        if soon {
            return None;
        }
        let less = |due: u8| due.checked_sub(1);
        self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        *last = Some(now);
        Some(&self.brokers)
    }
}

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => tracing::error!(facility, message, "kafka"),
            RDKafkaLogLevel::Warning => tracing::warn!(facility, message, "kafka"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(facility, message, "kafka");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(facility, message, "kafka"),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        if let Some((broker, ms)) = throttling(statistics) {
            THROTTLED_CONTROL.add(CONTROL, &broker, ms);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The end of a partition is news for who asked for it, and no error.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.due.store(REJOINS, Ordering::Relaxed);
        } else if let Some(code) = error.rdkafka_error_code() {
            let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some((code, reason.to_owned()));
        }
        tracing::warn!(%error, reason, "kafka");
    }
}

impl ConsumerContext for LogContext {}

impl Watched for LogContext {
    fn watch(&self) -> &LogContext {
        self
    }
}

/// Makes a context that takes reports or rebalances, and has a [`LogContext`] in its field `log`, log as
/// that does.
macro_rules! logs_as_ours {
    ($context:ident $(<$parameter:ident: $bound:path>)?) => {
        impl $(<$parameter: $bound + 'static>)? rdkafka::client::ClientContext
            for $context $(<$parameter>)?
        {
            fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
                rdkafka::client::ClientContext::log(&self.log, level, facility, message);
            }
            fn stats_raw(&self, statistics: &[u8]) {
                rdkafka::client::ClientContext::stats_raw(&self.log, statistics);
            }
            fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
                rdkafka::client::ClientContext::error(&self.log, error, reason);
            }
        }

        impl $(<$parameter: $bound + 'static>)? $crate::kafka::Watched
            for $context $(<$parameter>)?
        {
            fn watch(&self) -> &$crate::kafka::LogContext {
                &self.log
            }
        }
    };
}
pub(crate) use logs_as_ours;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttling_is_read_from_the_statistics() {
        let statistics = br#"{"brokers":{"a:9092/1":{"throttle":{"min":0,"max":3,"sum":5,"cnt":2}},
            "b:9092/2":{"throttle":{"sum":700}},"bootstrap":{}}}"#;
        assert_eq!(throttling(statistics), Some(("b:9092/2".to_owned(), 700)));
        for nothing in [&b"{}"[..], b"", br#"{"brokers":{}}"#] {
            assert_eq!(throttling(nothing), None);
        }
        let throttled = Throttled::new();
        throttled.add("data", "a", 0);
        throttled.add("data", "a", 40);
        throttled.add("data", "a", 2);
        assert_eq!(throttled.ms.load(Ordering::Relaxed), 42);
    }

    #[test]
    fn a_client_that_has_lost_all_brokers_gets_them_and_not_too_often() {
        let kafka =
            KafkaSection { brokers: "192.0.2.1:9092".to_owned(), ..KafkaSection::default() };
        let (context, now) = (LogContext::new(&kafka), Instant::now());
        let error = |code| context.error(KafkaError::Global(code), "a test");
        error(RDKafkaErrorCode::BrokerTransportFailure);
        assert_eq!((context.has_lost(), context.to_rejoin(now)), (false, None));
        error(RDKafkaErrorCode::AllBrokersDown);
        assert!(context.has_lost());
        assert_eq!(context.to_rejoin(now), Some(c"192.0.2.1:9092"));
        assert_eq!((context.has_lost(), context.to_rejoin(now)), (true, None));
        error(RDKafkaErrorCode::AllBrokersDown);
        assert_eq!(context.to_rejoin(now + REJOIN_INTERVAL / 2), None);
        for time in 1..=2 {
            let then = now + REJOIN_INTERVAL * time;
            assert_eq!(
                context.to_rejoin(then),
                Some(c"192.0.2.1:9092"),
                "after the last loss twice"
            );
        }
        assert_eq!(
            (context.has_lost(), context.to_rejoin(now + REJOIN_INTERVAL * 3)),
            (false, None)
        );
    }
}
