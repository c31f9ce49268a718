//! Dead letters, read as anybody may read them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use millrace_relay::config::KafkaSection;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka;
use crate::relay::direct::Direct;

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The original's key.
    pub key: Vec<u8>,
    /// The original's value.
    pub value: Vec<u8>,
    headers: BTreeMap<String, Vec<u8>>,
}

impl Letter {
    /// A header's value, if it is there.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(Vec::as_slice)
    }

    /// A header's value as text; empty if it is not there.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(self.header(name).unwrap_or_default()).into_owned()
    }

    /// Why it is a dead letter.
    pub fn reason(&self) -> String {
        self.text("millrace.reason")
    }
}

/// Reads dead letters.
#[derive(Debug)]
pub struct Letters;

impl Letters {
    /// The first `count` dead letters of a relay, in their order.
    pub fn read(relay: &Direct, count: usize) -> Result<Vec<Letter>> {
        Self::of(&relay.instance.config.kafka, count)
    }

    /// The first `count` dead letters there, in their order.
    pub fn of(config: &KafkaSection, count: usize) -> Result<Vec<Letter>> {
        let group = format!("{}letters", config.topic_prefix);
        let consumer: BaseConsumer =
            kafka::client(&config.brokers).set("group.id", group).create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&config.deadletter_topic(), 0, Offset::Beginning)?;
        consumer.assign(&list)?;
        let deadline = Instant::now() + PATIENCE;
        let mut letters = Vec::new();
        while letters.len() < count {
            if Instant::now() > deadline {
                bail!("{count} dead letters did not come: {letters:?}");
            }
            let Some(record) = consumer.poll(POLL) else { continue };
            let record = record?;
            let headers = record.headers().into_iter().flat_map(Headers::iter);
            letters.push(Letter {
                key: record.key().unwrap_or_default().to_vec(),
                value: record.payload().unwrap_or_default().to_vec(),
                headers: headers
                    .map(|header| {
                        (header.key.to_owned(), header.value.unwrap_or_default().to_vec())
                    })
                    .collect(),
            });
        }
        Ok(letters)
    }
}
