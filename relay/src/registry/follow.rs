//! Reads the registry topic, from its beginning on.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::Config;
use crate::kafka::{LogContext, client_config};

use super::{Change, Outcome, Registry, RegistryError};

/// How long the cluster may take to describe the topic.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a look for records lasts while the registry is read for the first time.
const POLL: Duration = Duration::from_millis(100);
/// Most records of a round.
const ROUND_RECORDS: usize = 1000;

/// A reader of the registry.
pub(super) struct Follower {
    consumer: BaseConsumer<LogContext>,
    topic: String,
    next: i64,
    /// Of the topic, when it was opened. The end of a partition is told only when nothing is written
    /// for a while, and where compaction has taken the last records away, nothing else tells it.
    end: i64,
    at_end: bool,
}

impl Follower {
    /// One at the beginning of the topic, which must have one partition.
    pub(super) fn open(config: &Config) -> Result<Self, RegistryError> {
        let topic = config.kafka.registry_topic();
        let mut client = client_config(&config.kafka);
        client
            // `assign` wants one; nothing is committed.
            .set("group.id", format!("{}registry-reader", config.kafka.topic_prefix))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("fetch.error.backoff.ms", "50")
            .set("queued.max.messages.kbytes", "16384");
        let consumer: BaseConsumer<LogContext> = client.create_with_context(LogContext)?;
        let metadata = consumer
            .fetch_metadata(Some(&topic), METADATA_TIMEOUT)
            .map_err(|source| RegistryError::Unreadable { topic: topic.clone(), source })?;
        let partitions = metadata.topics().first().map_or(0, |found| found.partitions().len());
        if partitions == 0 {
            return Err(RegistryError::Missing { topic });
        }
        if partitions != 1 {
            return Err(RegistryError::Partitions { topic, partitions });
        }
        let mut all = TopicPartitionList::new();
        all.add_partition_offset(&topic, 0, Offset::Beginning)?;
        consumer.assign(&all)?;
        let (_, end) = consumer
            .fetch_watermarks(&topic, 0, METADATA_TIMEOUT)
            .map_err(|source| RegistryError::Unreadable { topic: topic.clone(), source })?;
        Ok(Self { consumer, topic, next: 0, end, at_end: end == 0 })
    }

    /// The name of the topic.
    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// The offset behind what was read.
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    /// Passes on what has come, and waits for something if nothing has. False: there was nothing.
    pub(super) fn read(
        &mut self,
        patience: Duration,
        mut each: impl FnMut(i64, &[u8], Option<&[u8]>),
    ) -> bool {
        let mut patience = patience;
        for round in 0..ROUND_RECORDS {
            match self.consumer.poll(patience) {
                None => return round > 0,
                Some(Ok(record)) => {
                    each(record.offset(), record.key().unwrap_or_default(), record.payload());
                    self.next = record.offset() + 1;
                    self.at_end |= self.next >= self.end;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => self.at_end = true,
                Some(Err(error)) => {
                    tracing::warn!(%error, "reading the registry; trying on");
                    return round > 0;
                }
            }
            patience = Duration::ZERO;
        }
        true
    }

    /// Reads to the end of the topic.
    pub(super) fn catch_up(
        &mut self,
        timeout: Duration,
        mut each: impl FnMut(i64, &[u8], Option<&[u8]>),
    ) -> Result<(), RegistryError> {
        let deadline = Instant::now() + timeout;
        while !self.at_end {
            self.read(POLL, &mut each);
            if Instant::now() >= deadline && !self.at_end {
                let (topic, records) = (self.topic.clone(), self.next);
                return Err(RegistryError::Slow { topic, timeout, records });
            }
        }
        Ok(())
    }
}

/// The registry for whoever only looks, and for as long as he does.
pub struct Watch {
    follower: Follower,
    registry: Registry,
}

impl Watch {
    /// Reads the registry as it is now.
    pub fn open(config: &Config) -> Result<Self, RegistryError> {
        let timeout = Duration::from_millis(config.registry.start_timeout_ms.into());
        let (mut follower, mut registry) = (Follower::open(config)?, Registry::default());
        follower.catch_up(timeout, |offset, key, value| {
            registry.apply(offset, key, value);
        })?;
        Ok(Self { follower, registry })
    }

    /// What it says.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Takes what has come, and waits for something if nothing has. `each` sees the registry after
    /// each record that has changed something.
    pub fn read_on(&mut self, patience: Duration, mut each: impl FnMut(&Registry, &Change)) {
        let Self { follower, registry } = self;
        follower.read(patience, |offset, key, value| {
            if let Outcome::Changed(change) = registry.apply(offset, key, value) {
                each(registry, &change);
            }
        });
    }
}

/// The registry as it is now.
pub fn read(config: &Config) -> Result<Registry, RegistryError> {
    Watch::open(config).map(|watch| watch.registry)
}
