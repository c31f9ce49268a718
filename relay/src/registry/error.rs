//! Why the registry is not available.

use std::time::Duration;

use rdkafka::error::KafkaError;

use crate::kafka::OpenError;

/// Why the registry is not available.
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
        "topic {topic} does not exist: no relay has created it yet; start one with `relay run`, or set \
         kafka.topic_prefix to that of the running relays"
    )]
    Missing {
        /// The registry.
        topic: String,
    },
    /// Relays agree on the order of its records, and records of different partitions have no order.
    #[error(
        "topic {topic} has {partitions} partitions and must have one; delete it and let a relay \
         create it, or set another kafka.topic_prefix"
    )]
    Partitions {
        /// The registry.
        topic: String,
        /// How many it has.
        partitions: usize,
    },
    /// Reading it takes too long.
    #[error(
        "topic {topic} was read only up to offset {records} within {timeout:?}; the cluster is slow, or \
         registry.start_timeout_ms is too short"
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
