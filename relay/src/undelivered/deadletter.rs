//! Dead letters: what cannot be delivered, as it was, with the reason.

use std::sync::atomic::{AtomicU64, Ordering};

use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::producer::BaseRecord;

use crate::model::{DeliveryFailure, Identity, RelayId, UndeliveredReason, reasons};

/// Names of the headers that a dead letter has beside the original's.
pub mod letter {
    /// Why it was not delivered: a name of [`crate::undelivered::deadletter::Reason`].
    pub const REASON: &str = "millrace.reason";
    /// The topic it was read from, or meant for.
    pub const TOPIC: &str = "millrace.topic";
    /// The partition there, in decimal.
    pub const PARTITION: &str = "millrace.partition";
    /// Its offset there, in decimal; none if it was refused.
    pub const OFFSET: &str = "millrace.offset";
    /// The relay that gave it up: its number and its start in Unix milliseconds, `N-MILLISECONDS`.
    pub const RELAY: &str = "millrace.relay";
    /// Its own time, in Unix milliseconds; the letter's is when it was written.
    pub const TIMESTAMP: &str = "millrace.timestamp";
    /// How many bytes the value had before it was cut; only if it was.
    pub const LENGTH: &str = "millrace.length";
}

/// What is left of a value that the topic of dead letters refuses for its length.
pub const CUT_BYTES: usize = 64 << 10;

reasons! {
    /// Why something became a dead letter.
    Reason {
        /// A reply whose key is no connection key of this relay's form.
        MalformedKey = "malformed_key",
        /// A reply to a connection of another relay.
        OtherRelay = "other_relay",
        /// A reply to a connection of an earlier run of the relay.
        FormerRun = "former_run",
        /// A reply to a connection that had ended.
        Stale = "stale",
        /// A reply to a connection that was being closed.
        Closing = "closing",
        /// A reply that does not fit the service's framing or limit.
        Unencodable = "unencodable",
        /// A reply whose connection failed, or was given up, before it was sent.
        ConnectionLost = "connection_lost",
        /// A reply to a client who is away, and for whom, or for all, enough replies wait.
        HoldLimit = "hold_limit",
        /// A reply that has waited too long for its client.
        HoldAge = "hold_age",
        /// A reply to a client who is away, which Kafka refused at first, and took a newer one of.
        Overtaken = "overtaken",
        /// A message larger than Kafka allows.
        TooLarge = "too_large",
        /// A message for a topic that the relay may not write to.
        Authorization = "authorization",
        /// A message for a topic or partition that is gone.
        UnknownPartition = "unknown_partition",
        /// A message that Kafka refused for another reason.
        Refused = "refused",
        /// A message for a server that had lost its partition when the relay knew of it again.
        LeaseOver = "lease_over",
        /// A message that waited in the partition of a server that is gone.
        ServerGone = "server_gone",
        /// A reply that cannot be read: its batch is compressed in a way that the relay does not know, or
        /// damaged. The letter has neither key nor value.
        Unreadable = "unreadable",
    }
}

impl Reason {
    /// Whether a reply with this fate may wait for its client to come back.
    pub(crate) const fn may_wait(self) -> bool {
        matches!(self, Self::FormerRun | Self::Stale | Self::Closing | Self::ConnectionLost)
    }
}

impl From<UndeliveredReason> for Reason {
    fn from(reason: UndeliveredReason) -> Self {
        match reason {
            UndeliveredReason::Stale => Self::Stale,
            UndeliveredReason::Closing => Self::Closing,
            UndeliveredReason::Unencodable => Self::Unencodable,
            UndeliveredReason::ConnectionLost => Self::ConnectionLost,
        }
    }
}

impl From<DeliveryFailure> for Reason {
    fn from(failure: DeliveryFailure) -> Self {
        match failure {
            DeliveryFailure::TooLarge => Self::TooLarge,
            DeliveryFailure::Authorization => Self::Authorization,
            DeliveryFailure::UnknownPartition => Self::UnknownPartition,
            DeliveryFailure::LeaseOver => Self::LeaseOver,
            DeliveryFailure::Purged | DeliveryFailure::Other => Self::Refused,
        }
    }
}

/// Dead letters that Kafka has acknowledged, by [`Reason`].
#[derive(Debug, Default)]
pub struct LetterCounts([AtomicU64; Reason::ALL.len()]);

impl LetterCounts {
    pub(crate) fn count(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Ordering::Release);
    }

    /// How many there are, by name.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Acquire));
        Reason::ALL.iter().map(|reason| reason.name()).zip(counts)
    }
}

/// Who gives a record up: relay and run.
#[derive(Clone, Debug)]
pub(crate) struct Sender(String);

impl Sender {
    pub(crate) fn new(relay: RelayId, incarnation: crate::model::Incarnation) -> Self {
        Self(format!("{}-{}", relay.0, incarnation.value()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A message that Kafka has refused for good, which is stored nowhere.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) failure: DeliveryFailure,
    pub(crate) partition: i32,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

impl Refused {
    /// What it takes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len());
        self.key.len() + self.value.len() + headers.sum::<usize>()
    }

    /// A message that was refused at once.
    pub(crate) fn at_once<'a>(
        failure: DeliveryFailure,
        identity: &Identity,
        value: &[u8],
        headers: impl Iterator<Item = (&'a std::ffi::CStr, &'a [u8])>,
    ) -> Self {
        let headers = headers.map(|(name, value)| (name.to_string_lossy().into(), value.to_vec()));
        Self {
            failure,
            partition: i32::from(identity.partition.0),
            key: identity.printed.to_vec(),
            value: value.to_vec(),
            headers: headers.collect(),
        }
    }
}

/// A record as it will stand among the dead letters.
pub(crate) struct Letter<'a> {
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: OwnedHeaders,
}

impl<'a> Letter<'a> {
    /// A record that was read.
    pub(crate) fn of_record(
        record: &'a BorrowedMessage<'_>,
        reason: Reason,
        sender: &Sender,
    ) -> Self {
        let offset = Some(record.offset());
        let unix_ms = record.timestamp().to_millis().map(|unix_ms| unix_ms.to_string());
        let headers = record
            .headers()
            .map_or_else(OwnedHeaders::new, BorrowedHeaders::detach)
            .insert(Header { key: letter::TIMESTAMP, value: unix_ms.as_ref() });
        Self {
            key: record.key(),
            value: record.payload(),
            headers: add(headers, reason, (record.topic(), record.partition()), offset, sender),
        }
    }

    /// What stands at an offset and cannot be read.
    pub(crate) fn of_unreadable(
        place: (&str, i32),
        offset: i64,
        reason: Reason,
        sender: &Sender,
    ) -> Self {
        let headers = add(OwnedHeaders::new(), reason, place, Some(offset), sender);
        Self { key: None, value: None, headers }
    }

    /// A message that was refused.
    pub(crate) fn of_refused(refused: &'a Refused, topic: &str, sender: &Sender) -> Self {
        let mut headers = OwnedHeaders::new_with_capacity(refused.headers.len() + 5);
        for (key, value) in &refused.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let reason = refused.failure.into();
        Self {
            key: Some(&refused.key),
            value: Some(&refused.value),
            headers: add(headers, reason, (topic, refused.partition), None, sender),
        }
    }

    /// Cuts the value and says how long it was.
    pub(crate) fn cut(mut self) -> Self {
        if let Some(value) = self.value
            && value.len() > CUT_BYTES
        {
            let length = value.len().to_string();
            self.headers =
                self.headers.insert(Header { key: letter::LENGTH, value: Some(&length) });
            self.value = Some(&value[..CUT_BYTES]);
        }
        self
    }

    /// The record for the topic of dead letters.
    pub(crate) fn record<D>(self, topic: &'a str, opaque: D) -> BaseRecord<'a, [u8], [u8], D>
    where
        D: rdkafka::util::IntoOpaque,
    {
        let mut record = BaseRecord::with_opaque_to(topic, opaque).headers(self.headers);
        record.key = self.key;
        record.payload = self.value;
        record
    }
}

fn add(
    headers: OwnedHeaders,
    reason: Reason,
    (topic, partition): (&str, i32),
    offset: Option<i64>,
    sender: &Sender,
) -> OwnedHeaders {
    let (partition, offset) = (partition.to_string(), offset.map(|offset| offset.to_string()));
    headers
        .insert(Header { key: letter::REASON, value: Some(reason.name()) })
        .insert(Header { key: letter::TOPIC, value: Some(topic) })
        .insert(Header { key: letter::PARTITION, value: Some(&partition) })
        .insert(Header { key: letter::OFFSET, value: offset.as_ref() })
        .insert(Header { key: letter::RELAY, value: Some(sender.as_str()) })
}
