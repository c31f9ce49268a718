//! The producer behind one small trait, so that another engine can stand beside librdkafka.

use std::ffi::CString;
use std::sync::Arc;
use std::time::Instant;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::codec::{Decimal, Headers};
use crate::config::{Config, KafkaSection};
use crate::ring::{Kind, Wake};
use crate::route::Partition;

use super::clock::{NO_TIME, brokers_clock};
use super::context::LogContext;
use super::deadletter::Refused;
use super::desk::Desk;
use super::ffi::{NativeProducer, NativeRecord, NativeReport};
use super::late::{Lateness, Rescue};
use super::leases::Leases;
use super::mending::{Again, Mending, Next};
use super::record::{Identity, Incarnation, header};
use super::written::Written;

/// What a record may weigh beside its payload: key, headers and the batch's own bytes.
const RECORD_OVERHEAD_BYTES: u32 = 128 << 10;

/// librdkafka's `batch.size`, unless told otherwise.
const DEFAULT_BATCH_BYTES: u32 = 1_000_000;

/// Whose record a report is about, small enough to travel through librdkafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Not a message but an `open` or `close` record.
    pub control: bool,
    /// The worker wants to know when Kafka has acknowledged it.
    pub acknowledge: bool,
    /// It has headers of its protocol, which are booked.
    pub weighed: bool,
    /// The worker, 7 bits.
    pub worker: u8,
    /// The slot, 22 bits.
    pub slot: u32,
    /// The user of the slot.
    pub generation: u32,
}

impl Token {
    fn pack(self) -> u64 {
        u64::from(self.control) << 63
            | u64::from(self.worker) << 56
            | u64::from(self.acknowledge) << 55
            | u64::from(self.weighed) << 54
            | u64::from(self.slot) << 32
            | u64::from(self.generation)
    }

    #[allow(clippy::cast_possible_truncation)]
    pub(super) fn unpack(token: u64) -> Self {
        Self {
            control: token >> 63 == 1,
            worker: (token >> 56 & 0x7f) as u8,
            acknowledge: token >> 55 & 1 == 1,
            weighed: token >> 54 & 1 == 1,
            slot: (token >> 32 & 0x3f_ffff) as u32,
            generation: token as u32,
        }
    }
}

/// Why Kafka will never have a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryFailure {
    /// Larger than the client or the broker allows (`message.max.bytes`).
    TooLarge,
    /// The relay may not write to the topic.
    Authorization,
    /// The topic or partition is gone.
    UnknownPartition,
    /// The partition is another server's by now; the relay was paused, and did not know.
    LeaseOver,
    /// Given up when the relay stopped before the acknowledgement came.
    Purged,
    /// Anything else; the log has librdkafka's code.
    Other,
}

impl DeliveryFailure {
    /// Every failure, in the order of the counters.
    pub const ALL: [Self; 6] = [
        Self::TooLarge,
        Self::Authorization,
        Self::UnknownPartition,
        Self::LeaseOver,
        Self::Purged,
        Self::Other,
    ];

    /// How counters name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Authorization => "authorization",
            Self::UnknownPartition => "unknown_partition",
            Self::LeaseOver => "lease_over",
            Self::Purged => "unacknowledged_at_stop",
            Self::Other => "other",
        }
    }
}

impl From<RDKafkaErrorCode> for DeliveryFailure {
    fn from(code: RDKafkaErrorCode) -> Self {
        match code {
            RDKafkaErrorCode::MessageSizeTooLarge => Self::TooLarge,
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed => Self::Authorization,
            RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition => Self::UnknownPartition,
            RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight => Self::Purged,
            _ => Self::Other,
        }
    }
}

/// What became of a record.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Its partition.
    pub partition: Partition,
    /// Its payload, and what headers its protocol has given it.
    pub booked_bytes: usize,
    /// Whose it was.
    pub token: Token,
    /// The number of a refused message in its connection; of others 0.
    pub message: u64,
    /// Acknowledged by all in-sync replicas, or why it never will be.
    pub result: Result<(), DeliveryFailure>,
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProduceError {
    /// Not now; again after a report.
    Full,
    /// Not yet, nor what comes after it for the same partition; others may be.
    Later,
    /// Never.
    Refused(DeliveryFailure),
}

/// Takes records and reports on each exactly once. Records of one partition are delivered in the
/// order in which they were taken.
pub trait Producer: Send {
    /// Takes a copy of a record; its timestamp is in Unix milliseconds.
    fn produce(
        &mut self,
        identity: &Identity,
        kind: Kind,
        headers: Headers<'_>,
        payload: &[u8],
        unix_ms: i64,
    ) -> Result<(), ProduceError>;

    /// Passes on the reports that have come, without waiting. False if there was nothing to do.
    fn poll(&mut self, on_report: &mut dyn FnMut(Report)) -> bool;

    /// Said before the records of a batch.
    fn look(&mut self) {}

    /// Gives up what is not acknowledged; it is reported.
    fn purge(&mut self);

    /// Why this producer will never deliver anything again.
    fn fatal(&self) -> Option<String>;
}

/// The token of a connection's record.
pub(super) fn token(identity: &Identity, kind: Kind, headers: Headers<'_>) -> Token {
    Token {
        control: !kind.is_message(),
        acknowledge: identity.acknowledge && kind.is_message(),
        weighed: !headers.is_empty(),
        worker: identity.key.worker,
        slot: identity.key.slot,
        generation: identity.key.generation,
    }
}

/// librdkafka.
pub struct RdKafkaProducer {
    native: NativeProducer<LogContext>,
    desk: Arc<Desk>,
    leases: Arc<Leases>,
    lateness: Lateness,
    rescue: Rescue,
    /// This relay's run, once there is a record of it.
    run: Option<Incarnation>,
    written: Arc<Written>,
    /// Records for servers that registered are taken.
    may_write: bool,
    purged: bool,
    mending: Mending,
}

impl RdKafkaProducer {
    /// A producer for the uplink, which takes batches of `batch_bytes`; `wake` is woken when reports
    /// come. Messages that Kafka refuses for good are handed in at the desk.
    pub fn new(
        config: &Config,
        batch_bytes: Option<u32>,
        wake: Wake,
        desk: Arc<Desk>,
        leases: Arc<Leases>,
    ) -> Result<Self, KafkaError> {
        let topic = config.kafka.uplink_topic();
        let native = NativeProducer::new(
            &uplink_config(config, batch_bytes),
            LogContext::new(&config.kafka),
            &topic,
            wake.clone(),
        )?;
        let lateness = Lateness::new(config.partitions());
        let rescue = Rescue::new(config, leases.clone());
        desk.tell_of_room(wake);
        Ok(Self {
            native,
            desk,
            leases,
            lateness,
            rescue,
            run: None,
            written: Arc::new(Written::new(config.partitions())),
            may_write: true,
            purged: false,
            mending: Mending::default(),
        })
    }

    /// Goes on with what is sent again.
    fn mend(&mut self, on_report: &mut dyn FnMut(Report)) {
        if self.purged {
            for again in self.mending.give_up() {
                let error = Some((RDKafkaErrorCode::PurgeQueue, again.record));
                let report = NativeReport { error, ..again.report };
                Self::settle((&self.desk, &self.written), report, on_report);
            }
            return;
        }
        while self.has_room() {
            match self.mending.next() {
                Next::Wait => return,
                Next::Refuse(again) => {
                    let error = Some((again.code, again.record));
                    let report = NativeReport { error, ..again.report };
                    Self::settle((&self.desk, &self.written), report, on_report);
                }
                Next::Send(again) => {
                    if self.send_again(&again) {
                        self.mending.sent();
                    } else {
                        self.mending.not_sent(again);
                    }
                    return;
                }
            }
        }
    }

    /// False if librdkafka does not take it now.
    fn send_again(&mut self, again: &Again) -> bool {
        let NativeRecord { key, value, headers } = &again.record;
        let named =
            |(name, value): &(String, Vec<u8>)| Some((CString::new(&**name).ok()?, value.clone()));
        let headers: Vec<_> = headers.iter().filter_map(named).collect();
        let unix_ms = if self.mending.is_timeless() { NO_TIME } else { brokers_clock().unix_ms() };
        let headers = headers.iter().map(|(name, value)| (&**name, &**value));
        let (partition, token) = (again.report.partition, again.report.token);
        let sent = self.native.produce(partition, key, value, unix_ms, headers, token).is_ok();
        if sent {
            self.lateness.produced(partition);
        }
        sent
    }

    /// Passes a report on that is final.
    fn settle(
        (desk, written): (&Desk, &Written),
        report: NativeReport,
        on_report: &mut dyn FnMut(Report),
    ) {
        let token = Token::unpack(report.token);
        let mut message = 0;
        let result = report.error.map_or(Ok(()), |(code, record)| {
            tracing::debug!(%code, partition = report.partition.0, "record not delivered");
            let failure = code.into();
            message = record.message_number();
            if failure != DeliveryFailure::Purged && !token.control {
                let NativeRecord { key, value, headers } = record;
                let partition = i32::from(report.partition.0);
                desk.hand_in_refused(Refused { failure, partition, key, value, headers });
            }
            Err(failure)
        });
        if result.is_ok() {
            written.acknowledged(report.partition, report.offset, !token.control);
        }
        on_report(Report {
            partition: report.partition,
            booked_bytes: report.booked_bytes,
            token,
            message,
            result,
        });
    }

    /// How far it has written.
    pub fn written(&self) -> Arc<Written> {
        self.written.clone()
    }

    /// Whether a refused message may be handed in. While the desk is full no report is taken, so what
    /// they are about stays booked, and the clients wait; when the stop's time is over, nothing does.
    fn has_room(&self) -> bool {
        self.purged || self.desk.has_room_for_refused()
    }
}

/// What has come too late is looked for as far as it is known.
impl Drop for RdKafkaProducer {
    fn drop(&mut self) {
        if let Some(run) = self.run {
            let rescue = &mut self.rescue;
            self.lateness.finish(&self.leases, |partition, offsets| {
                rescue.look_through(run, partition, offsets);
            });
        }
    }
}

impl Producer for RdKafkaProducer {
    fn produce(
        &mut self,
        identity: &Identity,
        kind: Kind,
        of_protocol: Headers<'_>,
        payload: &[u8],
        unix_ms: i64,
    ) -> Result<(), ProduceError> {
        if self.mending.is_active() {
            return Err(ProduceError::Full);
        }
        if identity.epoch > 0 && !self.may_write {
            return Err(ProduceError::Later);
        }
        let number;
        let (name, more) = match kind {
            Kind::Open => {
                let former = identity.moved_from.as_deref();
                (Some("open"), former.map(|server| (header::MOVED_FROM, server)))
            }
            Kind::Message { sequence } => {
                number = Decimal::new(sequence);
                (None, Some((header::SEQUENCE, number.as_bytes())))
            }
            Kind::Close(reason) => (Some("close"), Some((header::REASON, reason.as_bytes()))),
        };
        let headers = identity
            .headers_of(kind)
            .iter()
            .map(|(name, value)| (*name, &**value))
            .chain(name.map(|name| (header::KIND, name.as_bytes())))
            .chain(of_protocol.iter())
            .chain(more);
        let token = token(identity, kind, of_protocol).pack();
        let (partition, key) = (identity.partition, &identity.printed);
        let unix_ms =
            if self.mending.is_timeless() { NO_TIME } else { brokers_clock().correct(unix_ms) };
        let produced = if self.leases.is_over(partition, identity.epoch) {
            Err(DeliveryFailure::LeaseOver)
        } else {
            match self.native.produce(partition, key, payload, unix_ms, headers.clone(), token) {
                Err(RDKafkaErrorCode::QueueFull) => return Err(ProduceError::Full),
                produced => produced.map_err(DeliveryFailure::from),
            }
        };
        match produced {
            Ok(()) => {
                self.lateness.produced(partition);
                self.run = Some(identity.key.incarnation);
                self.mending.taken();
                Ok(())
            }
            Err(_) if kind.is_message() && !self.has_room() => Err(ProduceError::Full),
            Err(failure) => {
                if kind.is_message() {
                    self.desk
                        .hand_in_refused(Refused::at_once(failure, identity, payload, headers));
                }
                Err(ProduceError::Refused(failure))
            }
        }
    }

    fn poll(&mut self, on_report: &mut dyn FnMut(Report)) -> bool {
        let Self { native, desk, written, mending, purged, lateness, .. } = self;
        let room = || *purged || desk.has_room_for_refused();
        let weighed = |token| Token::unpack(token).weighed;
        let was_active = mending.is_active();
        let events = native.poll(room, weighed, |report| {
            let is_there = report.error.is_none() && report.offset >= 0;
            lateness.reported(report.partition, is_there.then_some(report.offset));
            if let Some(report) = mending.report(report) {
                Self::settle((desk, written), report, on_report);
            }
        });
        if let Some(run) = self.run {
            let rescue = &mut self.rescue;
            self.lateness.judge(&self.leases, |partition, offsets| {
                rescue.look_through(run, partition, offsets);
            });
        }
        if mending.is_active() {
            if !was_active {
                tracing::warn!(
                    "the uplink refuses a batch: its records are sent again one by one. If its \
                     max.message.bytes was made smaller, start the relay again"
                );
            }
            self.mend(on_report);
        }
        events > 0
    }

    fn look(&mut self) {
        self.may_write = self.purged || self.leases.is_fresh(Instant::now());
    }

    fn purge(&mut self) {
        // The stop's time is over: nothing waits for the registry any more.
        self.purged = true;
        self.native.purge();
    }

    fn fatal(&self) -> Option<String> {
        self.native.fatal_error()
    }
}

/// The name that the cluster knows our clients by (`client.id`), unless `kafka.properties` has another.
const CLIENT: &str = "millrace";
/// What is put behind it, by what the client is for: quotas go by the whole. A cluster that slows the
/// messages of clients down must not slow down registrations and leases with them.
pub(super) const CONTROL: &str = "control";
pub(super) const DATA: &str = "data";

/// What every client of the cluster has in common; one for the registry, associations, topics and
/// offsets.
pub(crate) fn client_config(kafka: &KafkaSection) -> ClientConfig {
    client_for(kafka, CONTROL)
}

/// One that messages and replies go by.
pub(super) fn data_config(kafka: &KafkaSection) -> ClientConfig {
    client_for(kafka, DATA)
}

fn client_for(kafka: &KafkaSection, purpose: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("reconnect.backoff.max.ms", "1000")
        // Topics are made as they should be, and not by a question about them. Of producers this is not
        // the default.
        .set("allow.auto.create.topics", "false")
        // Brokers that have come or gone are known within this time, and not only within librdkafka's
        // five minutes.
        .set("topic.metadata.refresh.interval.ms", "10000")
        // A peer that hangs is not a broken connection; keep-alives tell those apart.
        .set("socket.keepalive.enable", "true");
    for (key, value) in &kafka.properties {
        config.set(key, value);
    }
    let client = kafka.properties.get("client.id").map_or(CLIENT, String::as_str);
    config.set("client.id", format!("{client}-{purpose}"));
    config
}

/// How often a client of the control traffic looks whether the brokers throttle it.
const STATISTICS_INTERVAL_MS: &str = "5000";

/// What every producer here has: a record is written once, by all in-sync replicas, however long the
/// brokers are away.
fn written_once(mut config: ClientConfig) -> ClientConfig {
    config.set("enable.idempotence", "true").set("acks", "all").set("message.timeout.ms", "0");
    config
}

/// A producer of the registry or of associations.
pub(crate) fn writer_config(kafka: &KafkaSection) -> ClientConfig {
    let mut config = written_once(client_config(kafka));
    config.set("statistics.interval.ms", STATISTICS_INTERVAL_MS);
    config
}

/// Longest record that a service's messages can become.
pub(super) fn longest_record(config: &Config) -> u32 {
    let longest = config.services.iter().map(|service| service.max_message_bytes).max();
    longest.unwrap_or_default() + RECORD_OVERHEAD_BYTES
}

/// librdkafka's properties for the uplink. The bounds are ours ([`crate::ring::Credit`]), so its
/// own are out of the way; and a record waits as long as the broker is away.
pub fn producer_config(config: &Config) -> ClientConfig {
    let mut client = written_once(data_config(&config.kafka));
    client
        .set("linger.ms", (f64::from(config.kafka.linger_us) / 1000.0).to_string())
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", "2147483647")
        .set("message.max.bytes", longest_record(config).max(1_000_000).to_string());
    client
}

/// The same for a topic that takes batches of `most_bytes` (`max.message.bytes`): larger ones would be
/// refused whole, with every record in them.
fn uplink_config(config: &Config, most_bytes: Option<u32>) -> ClientConfig {
    let mut client = producer_config(config);
    if let Some(most_bytes) = most_bytes {
        let asked = client.get("batch.size").and_then(|size| size.parse().ok());
        let batch = asked.unwrap_or(DEFAULT_BATCH_BYTES).min(most_bytes).max(1);
        client.set("batch.size", batch.to_string());
    }
    client
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_batch_is_larger_than_its_topic_takes() {
        let text = include_str!("../../../docs/millrace.toml");
        let mut config: Config = toml::from_str(text).expect("the sample");
        let size = |config: &Config, most| {
            uplink_config(config, most).get("batch.size").map(str::to_owned)
        };
        assert_eq!(size(&config, None), None, "librdkafka's own");
        assert_eq!(size(&config, Some(262_144)).as_deref(), Some("262144"));
        assert_eq!(size(&config, Some(4 << 20)).as_deref(), Some("1000000"));
        config.kafka.properties.insert("batch.size".to_owned(), "500000".to_owned());
        assert_eq!(size(&config, Some(4 << 20)).as_deref(), Some("500000"));
        assert_eq!(size(&config, Some(262_144)).as_deref(), Some("262144"));
    }

    #[test]
    fn messages_and_control_traffic_have_names_of_their_own() {
        let mut kafka = KafkaSection::default();
        let names = |kafka: &KafkaSection| {
            [data_config(kafka), client_config(kafka), writer_config(kafka)]
                .map(|config| config.get("client.id").unwrap_or_default().to_owned())
        };
        assert_eq!(names(&kafka), ["millrace-data", "millrace-control", "millrace-control"]);
        kafka.properties.insert("client.id".to_owned(), "edge".to_owned());
        assert_eq!(names(&kafka), ["edge-data", "edge-control", "edge-control"]);
    }

    proptest! {
        #[test]
        fn a_token_survives_the_journey(
            (control, acknowledge, weighed) in any::<(bool, bool, bool)>(),
            worker in 0..128_u8,
            slot in 0..crate::config::MAX_CONNECTIONS,
            generation in any::<u32>(),
        ) {
            let token = Token { control, acknowledge, weighed, worker, slot, generation };
            prop_assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
