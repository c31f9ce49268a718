//! Reads a topic from its beginning, and on from there: for logs whose whole content counts.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSection;

use super::{LogContext, client_config};

/// How long the cluster may take to describe the topic.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// A reader of all partitions of a topic.
pub(crate) struct TopicReader {
    consumer: BaseConsumer<LogContext>,
    topic: String,
    partitions: usize,
    /// The ends of those partitions that are not yet read as far as they went when the topic was
    /// opened. librdkafka tells an end too, but only when a fetch has waited half a second for more
    /// (`fetch.wait.max.ms`); that is needed where compaction has taken the last records away.
    behind: BTreeMap<i32, i64>,
}

impl TopicReader {
    /// One at the beginning of the topic, which has no partitions if it is not there. `name` tells it
    /// apart from other readers; nothing is committed.
    pub(crate) fn open(kafka: &KafkaSection, topic: String, name: &str) -> KafkaResult<Self> {
        let mut client = client_config(kafka);
        client
            .set("group.id", format!("{}{name}", kafka.topic_prefix))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("fetch.error.backoff.ms", "50")
            .set("queued.max.messages.kbytes", "16384");
        let consumer: BaseConsumer<LogContext> = client.create_with_context(LogContext)?;
        let metadata = consumer.fetch_metadata(Some(&topic), METADATA_TIMEOUT)?;
        let partitions: Vec<i32> = metadata
            .topics()
            .iter()
            .flat_map(MetadataTopic::partitions)
            .map(MetadataPartition::id)
            .collect();
        let mut all = TopicPartitionList::new();
        for partition in &partitions {
            all.add_partition_offset(&topic, *partition, Offset::Beginning)?;
        }
        // Before anything is fetched: the broker answers a connection's requests in turn, and a fetch
        // waits for records.
        let mut behind = BTreeMap::new();
        for partition in &partitions {
            let (start, end) = consumer.fetch_watermarks(&topic, *partition, METADATA_TIMEOUT)?;
            if start < end {
                behind.insert(*partition, end);
            }
        }
        if !partitions.is_empty() {
            consumer.assign(&all)?;
        }
        Ok(Self { consumer, topic, partitions: partitions.len(), behind })
    }

    /// The name of the topic.
    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// How many partitions it has.
    pub(crate) fn partitions(&self) -> usize {
        self.partitions
    }

    /// How many of them are not yet read as far as they went when it was opened.
    pub(crate) fn behind(&self) -> usize {
        self.behind.len()
    }

    /// Passes on what has come, at most so many records, and waits for something if nothing has.
    /// False: there was nothing. After an error it may be called again.
    pub(crate) fn read(
        &mut self,
        patience: Duration,
        most: usize,
        mut each: impl FnMut(&BorrowedMessage<'_>),
    ) -> KafkaResult<bool> {
        let mut patience = patience;
        for round in 0..most {
            match self.consumer.poll(patience) {
                None => return Ok(round > 0),
                Some(Ok(record)) => {
                    each(&record);
                    let (partition, next) = (record.partition(), record.offset() + 1);
                    if self.behind.get(&partition).is_some_and(|end| next >= *end) {
                        self.behind.remove(&partition);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.behind.remove(&partition);
                }
                Some(Err(error)) => return Err(error),
            }
            patience = Duration::ZERO;
        }
        Ok(true)
    }
}
