//! Records of a partition, one after another, for the tests that look at each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders, ToBytes};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka;

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

/// A record of the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Connection key.
    pub key: String,
    /// Payload.
    pub value: Vec<u8>,
    /// Headers by name.
    pub headers: BTreeMap<String, String>,
    /// Partition.
    pub partition: u16,
    /// Its time, in Unix milliseconds; 0 if it has none.
    pub unix_ms: i64,
}

impl Record {
    /// A header's value; empty if there is no such header.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// `open`, `close`, or `message`, which is not written.
    pub fn kind(&self) -> &str {
        self.headers.get("kind").map_or("message", String::as_str)
    }

    fn of(record: &BorrowedMessage<'_>) -> Result<Self> {
        let headers = record.headers().context("a record without headers")?;
        let headers = headers.iter().map(|header| {
            let value = String::from_utf8(header.value.unwrap_or_default().to_owned())?;
            Ok((header.key.to_owned(), value))
        });
        Ok(Self {
            key: String::from_utf8(record.key().unwrap_or_default().to_owned())?,
            value: record.payload().unwrap_or_default().to_owned(),
            headers: headers.collect::<Result<_>>()?,
            partition: u16::try_from(record.partition())?,
            unix_ms: record.timestamp().to_millis().unwrap_or_default(),
        })
    }
}

/// All records that the uplink has now, in the order of each partition. Connections that have just
/// ended may still add theirs.
pub fn all_records(brokers: &str, prefix: &str, partitions: u16) -> Result<Vec<Record>> {
    let counts = kafka::record_counts(brokers, &format!("{prefix}uplink"), partitions)?;
    let mut records = Vec::new();
    for (partition, count) in (0..).zip(counts) {
        let reader = HandServer::on(brokers, prefix, &[partition])?;
        for _ in 0..count {
            records.push(reader.next("a record of the uplink", |_| true)?);
        }
    }
    Ok(records)
}

/// Headers for a record.
fn owned<'a, V: ToBytes + ?Sized + 'a>(
    headers: impl Iterator<Item = (&'a str, &'a V)>,
) -> OwnedHeaders {
    headers.fold(OwnedHeaders::new(), |all, (key, value)| {
        all.insert(Header { key, value: Some(value) })
    })
}

/// A server that does only what it is told.
pub struct HandServer {
    consumer: BaseConsumer,
    producer: BaseProducer,
    uplink: String,
    downlink: String,
}

impl HandServer {
    /// Reads these partitions of the uplink with this prefix, at these brokers, from their start.
    pub fn on(brokers: &str, prefix: &str, partitions: &[u16]) -> Result<Self> {
        let consumer: BaseConsumer =
            kafka::client(brokers).set("group.id", format!("{prefix}by-hand")).create()?;
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            let partition = i32::from(*partition);
            list.add_partition_offset(&format!("{prefix}uplink"), partition, Offset::Beginning)?;
        }
        consumer.assign(&list)?;
        let producer = kafka::client(brokers).set("enable.idempotence", "true").create()?;
        let (uplink, downlink) = (format!("{prefix}uplink"), format!("{prefix}downlink"));
        Ok(Self { consumer, producer, uplink, downlink })
    }

    /// The next record that `wanted` takes; others are skipped.
    pub fn next(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> Result<Record> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(record) = self.poll()?.filter(&wanted) {
                return Ok(record);
            }
        }
        bail!("no record came within {PATIENCE:?}: {what}")
    }

    /// The next record, if one comes soon.
    pub fn poll(&self) -> Result<Option<Record>> {
        self.consumer.poll(POLL).map(|record| Record::of(&record?)).transpose()
    }

    /// Answers a record with a value and these headers, and does not wait for Kafka.
    pub fn reply_soon(&self, to: &Record, value: &[u8], headers: &[(&str, &str)]) -> Result<()> {
        let headers = owned(headers.iter().copied());
        self.send(to, Some(value), headers)?;
        self.producer.poll(Duration::ZERO);
        Ok(())
    }

    /// Answers an HTTP client's first request with one of the `parts` of a response, each as long as
    /// this one, and does not wait for Kafka.
    pub fn reply_part(
        &self,
        to: &Record,
        (number, parts): (usize, usize),
        part: &[u8],
    ) -> Result<()> {
        let (number, length) = (number.to_string(), (parts * part.len()).to_string());
        let headers = [
            ("http.request", "1"),
            ("http.part", &number),
            ("http.header.content-length", &length),
        ];
        self.reply_soon(to, part, &headers)
    }

    /// Answers a record.
    pub fn reply(&self, to: &Record, value: &[u8]) -> Result<()> {
        self.produce(to, Some(value), OwnedHeaders::new())
    }

    /// Answers a record and has the connection closed then.
    pub fn reply_and_close(&self, to: &Record, value: &[u8]) -> Result<()> {
        let close = Header { key: "close", value: Some("1") };
        self.produce(to, Some(value), OwnedHeaders::new().insert(close))
    }

    /// Answers a record many times.
    pub fn reply_many(&self, to: &Record, values: impl IntoIterator<Item = Vec<u8>>) -> Result<()> {
        for value in values {
            self.send(to, Some(&value), OwnedHeaders::new())?;
        }
        Ok(self.producer.flush(PATIENCE)?)
    }

    /// Writes a record to its partition of the uplink, as only a relay should.
    pub fn forge(&self, record: &Record) -> Result<()> {
        let headers = owned(record.headers.iter().map(|(key, value)| (&**key, &**value)));
        let forged = BaseRecord::to(&self.uplink)
            .partition(record.partition.into())
            .key(record.key.as_str())
            .payload(&record.value)
            .headers(headers);
        self.producer.send(forged).map_err(|(error, _)| error)?;
        Ok(self.producer.flush(PATIENCE)?)
    }

    /// Answers a record with a value, or none, and with these headers.
    pub fn reply_with(
        &self,
        to: &Record,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Result<()> {
        let headers = owned(headers.iter().copied());
        self.produce(to, value, headers)
    }

    fn produce(&self, to: &Record, value: Option<&[u8]>, headers: OwnedHeaders) -> Result<()> {
        self.send(to, value, headers)?;
        Ok(self.producer.flush(PATIENCE)?)
    }

    fn send(&self, to: &Record, value: Option<&[u8]>, headers: OwnedHeaders) -> Result<()> {
        let mut reply = BaseRecord::to(&self.downlink)
            .partition(to.header("reply").parse()?)
            .key(to.key.as_str())
            .headers(headers);
        reply.payload = value;
        self.producer.send(reply).map_err(|(error, _)| error)?;
        Ok(())
    }
}
