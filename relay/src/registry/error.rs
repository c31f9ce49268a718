//! Why a relay has no registry.

use std::time::Duration;

use rdkafka::error::KafkaError;

use crate::kafka::OpenError;

/// Why a relay has no registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// librdkafka refuses.
    #[error("the Kafka client refuses its configuration: {0}; see kafka.properties")]
    Client(#[from] KafkaError),
    /// The topic cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No relay has ever run with these topics.
    #[error(
        "there is no topic {topic}: no relay has made it yet; start one with `relay run`, or set \
         kafka.topic_prefix to that of the relays that run"
    )]
    Missing {
        /// The registry.
        topic: String,
    },
    /// Its order is what relays agree on, and there is none between partitions.
    #[error(
        "topic {topic} has {partitions} partitions and must have one; delete it and let a relay \
         make it, or set another kafka.topic_prefix"
    )]
    Partitions {
        /// The registry.
        topic: String,
        /// How many it has.
        partitions: usize,
    },
    /// Reading it takes too long.
    #[error(
        "topic {topic} was read up to offset {records} only within {timeout:?}; is the cluster \
         slow, or registry.start_timeout_ms too short?"
    )]
    Slow {
        /// The registry.
        topic: String,
        /// How long it was tried.
        timeout: Duration,
        /// How far it came.
        records: i64,
    },
    /// Two relays would share a partition of the downlink.
    #[error(
        "another relay with relay.id = {relay} is running ({place}); give each relay an id of its \
         own, or stop the other one"
    )]
    SameRelay {
        /// The id of both.
        relay: u16,
        /// What is known about the other one.
        place: String,
    },
    /// What this relay writes does not come back.
    #[error("the cluster did not take this relay's record in topic {topic} within {timeout:?}")]
    Unwritable {
        /// The registry.
        topic: String,
        /// How long it was tried.
        timeout: Duration,
    },
    /// The operating system refuses a thread.
    #[error("cannot start the registry's thread: {0}")]
    Thread(std::io::Error),
}
