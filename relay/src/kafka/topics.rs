//! The topics of an instance: there with enough partitions, or made.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::Config;

use super::again::{ask_again, described, watermarks};
use super::producer::client_config;

/// How long the cluster may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take until all partitions of a topic that was made have leaders that answer.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long there may be too few brokers for a topic: a controller that was slow takes brokers for gone.
const BROKERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the topics are not there.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// Nobody answers.
    #[error(
        "no Kafka broker answers at {brokers} ({source}); start one (`cargo xtask kafka start`) or \
         set kafka.brokers"
    )]
    NoBroker {
        /// The bootstrap brokers.
        brokers: String,
        /// librdkafka's word.
        source: KafkaError,
    },
    /// The cluster answers, but will not.
    #[error("topic {topic}: {problem}")]
    Topic {
        /// Which topic.
        topic: String,
        /// Why not.
        problem: String,
    },
}

/// Partitions of [`KafkaSection::associations_topic`] and [`KafkaSection::held_topic`] when a relay
/// creates them: clients are spread over them by their identity.
///
/// [`KafkaSection::associations_topic`]: crate::config::KafkaSection::associations_topic
/// [`KafkaSection::held_topic`]: crate::config::KafkaSection::held_topic
const IDENTITY_PARTITIONS: i32 = 4;

/// What a topic must be.
struct Wanted {
    name: String,
    partitions: i32,
    /// Kafka's properties of a topic that is created.
    properties: &'static [(&'static str, &'static str)],
    /// Whether partitions are added to one that has fewer. Not where the partition is the hash of a
    /// key.
    grows: bool,
}

impl Wanted {
    fn problem(&self, problem: String) -> TopicError {
        TopicError::Topic { topic: self.name.clone(), problem }
    }
}

/// The last record of each key is what counts (`cleanup.policy`, Kafka's topic configuration). A
/// tombstone stays for a day, so that who reads meanwhile sees it.
const COMPACTED: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("delete.retention.ms", "86400000"),
    ("segment.ms", "3600000"),
    ("min.cleanable.dirty.ratio", "0.1"),
];

/// Makes sure that every topic exists, with a partition for every server and for this relay.
/// Partitions are added where they are missing, never taken away.
pub async fn ensure_topics(config: &Config) -> Result<(), TopicError> {
    let admin: AdminClient<DefaultClientContext> =
        client_config(&config.kafka).create().map_err(|source| no_broker(config, source))?;
    let kafka = &config.kafka;
    let uplink = i32::try_from(config.partitions()).expect("partitions are u16");
    let downlink = i32::from(config.relay.id) + 1;
    for (name, partitions, properties, grows) in [
        (kafka.uplink_topic(), uplink, &[][..], true),
        (kafka.downlink_topic(), downlink, &[], true),
        (kafka.registry_topic(), 1, COMPACTED, false),
        (kafka.associations_topic(), IDENTITY_PARTITIONS, COMPACTED, false),
        (kafka.held_topic(), IDENTITY_PARTITIONS, &[], false),
        (kafka.deadletter_topic(), 1, &[], false),
    ] {
        ensure(config, &admin, &Wanted { name, partitions, properties, grows }).await?;
    }
    Ok(())
}

fn no_broker(config: &Config, source: KafkaError) -> TopicError {
    TopicError::NoBroker { brokers: config.kafka.brokers.clone(), source }
}

async fn ensure(
    config: &Config,
    admin: &AdminClient<DefaultClientContext>,
    wanted: &Wanted,
) -> Result<(), TopicError> {
    let began = std::time::Instant::now();
    let deadline = began + LEADERS_TIMEOUT;
    let mut asked = None;
    loop {
        // Creation is acknowledged before every broker knows of it. And another relay may have made
        // the topic meanwhile, with fewer partitions: what is there now is what is missing something.
        let there = partitions(config, admin, &wanted.name)?;
        let enough = if wanted.grows { wanted.partitions } else { 1 };
        if there >= enough {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            return if asked.is_some() { await_leaders(admin, wanted, left) } else { Ok(()) };
        }
        if asked != Some(there) {
            match ask(config, admin, wanted, there).await? {
                Asked::Taken => asked = Some(there),
                Asked::TooFewBrokers if began.elapsed() < BROKERS_TIMEOUT => {
                    tokio::time::sleep(BROKERS_TIMEOUT / 10).await;
                }
                Asked::TooFewBrokers => {
                    return Err(wanted.problem(format!(
                        "fewer brokers are there than it should have replicas (`kafka.replication` \
                         is {}; -1 is what the brokers say)",
                        config.kafka.replication
                    )));
                }
            }
        }
        if std::time::Instant::now() > deadline {
            return Err(wanted
                .problem(format!("{enough} partitions did not appear in {LEADERS_TIMEOUT:?}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until each partition has a leader that answers: a broker tells that it leads one before it
/// does.
fn await_leaders(
    admin: &AdminClient<DefaultClientContext>,
    wanted: &Wanted,
    patience: Duration,
) -> Result<(), TopicError> {
    let (client, topic) = (admin.inner(), &*wanted.name);
    let deadline = std::time::Instant::now() + patience;
    let left = || deadline.saturating_duration_since(std::time::Instant::now());
    let unled = |error: KafkaError| {
        wanted.problem(format!(
            "not every partition has a leader that answers, {LEADERS_TIMEOUT:?} after it was made \
             ({error}); the brokers' logs may say why"
        ))
    };
    let partitions = ask_again(left(), |left| described(client, topic, left)).map_err(unled)?;
    for partition in partitions {
        watermarks(client, topic, partition, left()).map_err(unled)?;
    }
    Ok(())
}

/// What the cluster says to a request for topics or partitions.
enum Asked {
    /// They are there, or will be.
    Taken,
    /// There are not as many brokers as replicas; none, while the controller takes them for gone.
    TooFewBrokers,
}

/// Asks for what is missing.
async fn ask(
    config: &Config,
    admin: &AdminClient<DefaultClientContext>,
    wanted: &Wanted,
    there: i32,
) -> Result<Asked, TopicError> {
    let Wanted { name: topic, partitions: count, properties, .. } = wanted;
    let options =
        AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let results = if there == 0 {
        let replication = TopicReplication::Fixed(config.kafka.replication);
        let mut new = NewTopic::new(topic, *count, replication);
        new.config.extend(properties.iter().copied());
        admin.create_topics([&new], &options).await
    } else {
        let count = usize::try_from(*count).expect("positive");
        admin.create_partitions([&NewPartitions::new(topic, count)], &options).await
    };
    for result in results.map_err(|error| wanted.problem(error.to_string()))? {
        match result {
            Ok(_) => tracing::info!(topic, partitions = count, "created"),
            // Another relay was faster; or the controller has it, and not every broker does yet, which
            // is waited for anyway.
            Err((
                _,
                RDKafkaErrorCode::TopicAlreadyExists
                | RDKafkaErrorCode::InvalidPartitions
                | RDKafkaErrorCode::RequestTimedOut,
            )) => {}
            Err((_, RDKafkaErrorCode::InvalidReplicationFactor)) => {
                return Ok(Asked::TooFewBrokers);
            }
            Err((_, code)) => return Err(wanted.problem(code.to_string())),
        }
    }
    Ok(Asked::Taken)
}

/// Partitions of a topic that have a leader; 0: there is no such topic.
fn partitions(
    config: &Config,
    admin: &AdminClient<DefaultClientContext>,
    topic: &str,
) -> Result<i32, TopicError> {
    let metadata = admin
        .inner()
        .fetch_metadata(Some(topic), TIMEOUT)
        .map_err(|source| no_broker(config, source))?;
    let led = metadata
        .topics()
        .iter()
        .filter(|found| found.name() == topic && found.error().is_none())
        .flat_map(rdkafka::metadata::MetadataTopic::partitions)
        .filter(|partition| partition.leader() >= 0)
        .count();
    Ok(i32::try_from(led).unwrap_or(i32::MAX))
}
