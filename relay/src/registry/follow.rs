//! Reads the registry topic from its beginning.

use std::time::{Duration, Instant};

use rdkafka::message::Message as _;

use crate::config::Config;
use crate::kafka::{Known, TopicReader};

use super::record::Key;
use super::{Outcome, Registry, RegistryError};

/// Poll timeout while the registry is read for the first time.
const POLL: Duration = Duration::from_millis(100);
/// Most records per round.
const ROUND_RECORDS: usize = 1000;

/// A reader of the registry.
pub(super) struct Follower {
    reader: TopicReader,
    next: i64,
}

impl Follower {
    /// A reader at the beginning of the topic, which must have one partition.
    pub(super) fn open(config: &Config, known: Known) -> Result<Self, RegistryError> {
        let topic = config.kafka.registry_topic();
        let reader = TopicReader::open(&config.kafka, topic.clone(), "registry-reader", known)?;
        match reader.partitions() {
            0 => Err(RegistryError::Missing { topic }),
            1 => Ok(Self { reader, next: 0 }),
            partitions => Err(RegistryError::Partitions { topic, partitions }),
        }
    }

    /// The name of the topic.
    pub(super) fn topic(&self) -> &str {
        self.reader.topic()
    }

    /// The offset after the last record that was read.
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    /// Passes on records that have arrived. Waits if there are none.
    pub(super) fn read(
        &mut self,
        patience: Duration,
        mut each: impl FnMut(i64, &[u8], Option<&[u8]>),
    ) {
        let next = &mut self.next;
        let read = self.reader.read(patience, ROUND_RECORDS, |record| {
            each(record.offset(), record.key().unwrap_or_default(), record.payload());
            *next = record.offset() + 1;
        });
        if let Err(error) = read {
            tracing::warn!(%error, "reading the registry failed; retrying");
        }
    }

    /// Reads to the end of the topic.
    pub(super) fn catch_up(
        &mut self,
        timeout: Duration,
        mut each: impl FnMut(i64, &[u8], Option<&[u8]>),
    ) -> Result<(), RegistryError> {
        let deadline = Instant::now() + timeout;
        while self.reader.behind() > 0 {
            self.read(POLL, &mut each);
            if Instant::now() >= deadline && self.reader.behind() > 0 {
                let (topic, records) = (self.topic().to_owned(), self.next);
                return Err(RegistryError::Slow { topic, timeout, records });
            }
        }
        Ok(())
    }
}

/// The registry, for a reader that writes nothing.
pub struct Watch {
    follower: Follower,
    registry: Registry,
}

impl Watch {
    /// Reads the registry as it is now.
    pub fn open(config: &Config) -> Result<Self, RegistryError> {
        let timeout = Duration::from_millis(config.registry.start_timeout_ms.into());
        let (mut follower, mut registry) =
            (Follower::open(config, Known::Nothing)?, Registry::default());
        follower.catch_up(timeout, |offset, key, value| {
            registry.apply(offset, key, value);
        })?;
        Ok(Self { follower, registry })
    }

    /// Its state so far.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Applies records that have arrived. Waits if there are none. `each` sees the registry after each
    /// record that has changed it.
    pub fn read_on(&mut self, patience: Duration, mut each: impl FnMut(&Registry, &Key)) {
        let Self { follower, registry } = self;
        follower.read(patience, |offset, key, value| {
            if let Outcome::Changed(key) = registry.apply(offset, key, value) {
                each(registry, &key);
            }
        });
    }
}

/// The registry as it is now.
pub fn read(config: &Config) -> Result<Registry, RegistryError> {
    Watch::open(config).map(|watch| watch.registry)
}
