//! The topics of an instance: there with enough partitions, or made.

mod cluster;
mod fit;

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::Config;

use super::again::{ask_again, described, watermarks};
use cluster::{Cluster, TIMEOUT};
use fit::Wanted;

pub use cluster::check_properties;
pub use fit::Difference;
pub(crate) use fit::TIMESTAMP_TYPE;

/// How long it may take until all partitions of a topic that was made have leaders that answer.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long there may be too few brokers for a topic: a controller that was slow takes brokers for gone.
const BROKERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the topics are not there.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// librdkafka does not take its properties.
    #[error("kafka.properties: {problem}")]
    Properties {
        /// Which, and why.
        problem: String,
    },
    /// A broker is reached, and TLS or SASL comes to nothing.
    #[error(
        "kafka.properties: {brokers} cannot be spoken to with these settings for TLS and SASL: \
         {reason}"
    )]
    Refused {
        /// The bootstrap brokers.
        brokers: String,
        /// librdkafka's word.
        reason: String,
    },
    /// Nobody answers.
    #[error(
        "no Kafka broker answers at {brokers} ({reason}); start one (`cargo xtask kafka \
         start`) or set kafka.brokers, and kafka.properties if it wants TLS or SASL"
    )]
    NoBroker {
        /// The bootstrap brokers.
        brokers: String,
        /// librdkafka's words.
        reason: String,
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

impl Wanted {
    fn problem(&self, problem: String) -> TopicError {
        TopicError::Topic { topic: self.name.clone(), problem }
    }
}

/// The topics as they are.
#[derive(Clone, Debug, Default)]
pub struct Topics {
    /// Those that are not there. A relay that starts makes them.
    pub missing: Vec<String>,
    /// What is not as the relay would have made it, and matters.
    pub differences: Vec<Difference>,
    /// Longest batch that the uplink takes, if that is known.
    pub uplink_batch_bytes: Option<u32>,
}

/// Compares the topics with what they must be; changes nothing.
pub async fn look_at_topics(config: &Config) -> Result<Topics, TopicError> {
    look(config, &Cluster::new(config)?).await
}

async fn look(config: &Config, cluster: &Cluster) -> Result<Topics, TopicError> {
    let mut topics = Topics::default();
    for wanted in Wanted::all(config) {
        let Some(found) = cluster.find(&wanted.name).await? else {
            topics.missing.push(wanted.name);
            continue;
        };
        topics.differences.extend(fit::compare(&wanted, &found));
        if wanted.name == config.kafka.uplink_topic() {
            let limit = found.setting("max.message.bytes");
            topics.uplink_batch_bytes = limit.and_then(|limit| limit.parse().ok());
        }
    }
    Ok(topics)
}

/// Makes sure that every topic exists, with a partition for every server and for this relay.
/// Partitions are added where they are missing, never taken away. Then says how the topics are.
pub async fn ensure_topics(config: &Config) -> Result<Topics, TopicError> {
    let cluster = Cluster::new(config)?;
    for wanted in Wanted::all(config) {
        ensure(&cluster, &wanted).await?;
    }
    look(config, &cluster).await
}

async fn ensure(cluster: &Cluster, wanted: &Wanted) -> Result<(), TopicError> {
    let began = Instant::now();
    let deadline = began + LEADERS_TIMEOUT;
    let mut asked = None;
    loop {
        // Creation is acknowledged before every broker knows of it. And another relay may have made
        // the topic meanwhile, with fewer partitions: what is there now is what is missing something.
        let there = cluster.led_partitions(&wanted.name)?;
        let enough = if wanted.grows { wanted.partitions } else { 1 };
        if there >= enough {
            let left = deadline.saturating_duration_since(Instant::now());
            return if asked.is_some() { await_leaders(cluster, wanted, left) } else { Ok(()) };
        }
        if asked != Some(there) {
            match ask(cluster, wanted, there).await? {
                Asked::Taken => asked = Some(there),
                Asked::TooFewBrokers if began.elapsed() < BROKERS_TIMEOUT => {
                    tokio::time::sleep(BROKERS_TIMEOUT / 10).await;
                }
                Asked::TooFewBrokers => {
                    return Err(wanted.problem(format!(
                        "fewer brokers are there than it should have replicas (`kafka.replication` \
                         is {}; -1 is what the brokers say)",
                        wanted.replication
                    )));
                }
            }
        }
        if Instant::now() > deadline {
            return Err(wanted
                .problem(format!("{enough} partitions did not appear in {LEADERS_TIMEOUT:?}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until each partition has a leader that answers: a broker tells that it leads one before it
/// does.
fn await_leaders(cluster: &Cluster, wanted: &Wanted, patience: Duration) -> Result<(), TopicError> {
    let (client, topic) = (cluster.admin.inner(), &*wanted.name);
    let deadline = Instant::now() + patience;
    let left = || deadline.saturating_duration_since(Instant::now());
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
async fn ask(cluster: &Cluster, wanted: &Wanted, there: i32) -> Result<Asked, TopicError> {
    let Wanted { name: topic, partitions: count, .. } = wanted;
    let admin = &cluster.admin;
    let options =
        AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let results = if there == 0 {
        let properties = wanted.properties();
        let mut new = NewTopic::new(topic, *count, TopicReplication::Fixed(wanted.replication));
        new.config.extend(properties.iter().map(|(name, value)| (*name, &**value)));
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
