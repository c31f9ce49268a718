//! The topics of an instance: there with enough partitions, or made.

mod cluster;
mod fit;
mod refusal;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::Config;
use crate::kafka::client::{RECORD_OVERHEAD_BYTES, USUAL_RECORD_BYTES, longest_record};
use crate::kafka::questions::{ask_again, described, watermarks};

use cluster::{Cluster, TIMEOUT};
use fit::Wanted;
use refusal::Refused;

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
    /// librdkafka does not take its properties, of which some come from `kafka.tls` and `kafka.sasl`.
    #[error("kafka.properties: {problem}")]
    Properties {
        /// Which, and why.
        problem: String,
    },
    /// A broker is reached, and TLS or SASL comes to nothing.
    #[error(
        "kafka.tls, kafka.sasl, kafka.properties: the relay cannot talk to {brokers} with these settings \
         for TLS and SASL: {reason}"
    )]
    Unspoken {
        /// The bootstrap brokers.
        brokers: String,
        /// librdkafka's word.
        reason: String,
    },
    /// Nobody answers.
    #[error(
        "no Kafka broker answers at {brokers} ({reason}); start one (`cargo xtask kafka start`) \
         or set kafka.brokers, and kafka.tls, kafka.sasl or kafka.properties if it needs TLS or SASL"
    )]
    NoBroker {
        /// The bootstrap brokers.
        brokers: String,
        /// librdkafka's words.
        reason: String,
    },
    /// The cluster does not make what is missing.
    #[error(
        "the cluster did not create the missing topics and partitions for this relay: {missing}. \
         {remedy}"
    )]
    Refused {
        /// Each topic with what it needs, and why it is refused.
        missing: String,
        /// What to do.
        remedy: &'static str,
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
    /// Longest batches that they take.
    pub batch_limits: BatchLimits,
}

/// Longest batches in bytes that topics take (`max.message.bytes`); None where that is not known.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchLimits {
    /// The uplink.
    pub uplink: Option<u32>,
    /// Both `held` and `deadletter`.
    pub kept: Option<u32>,
}

impl BatchLimits {
    /// Longest message whose record is taken by the topics, and by the producers that were made by this
    /// configuration. Not less than the longest that it allows.
    pub fn longest_message(self, config: &Config) -> u32 {
        let needed = longest_record(config);
        let produced = needed.max(USUAL_RECORD_BYTES);
        // A topic of which nothing is known takes at least what it was made for.
        let taken = |most: Option<u32>| most.map_or(needed, |most| most.min(produced));
        taken(self.uplink).min(taken(self.kept)).max(needed) - RECORD_OVERHEAD_BYTES
    }
}

/// Compares the topics with what they must be; changes nothing.
pub async fn look_at_topics(config: &Config) -> Result<Topics, TopicError> {
    look(config, &Cluster::new(config)?).await
}

async fn look(config: &Config, cluster: &Cluster) -> Result<Topics, TopicError> {
    let mut topics = Topics::default();
    let all = Wanted::all(config);
    let kept = [config.kafka.held_topic(), config.kafka.deadletter_topic()];
    let names: Vec<&str> = all.iter().map(|wanted| &*wanted.name).collect();
    for (wanted, found) in all.iter().zip(cluster.find(&names).await?) {
        let Some(found) = found else {
            topics.missing.push(wanted.name.clone());
            continue;
        };
        topics.differences.extend(fit::compare(wanted, &found));
        let limit = found.setting("max.message.bytes").and_then(|limit| limit.parse().ok());
        let Some(limit) = limit else { continue };
        if wanted.name == config.kafka.uplink_topic() {
            topics.batch_limits.uplink = Some(limit);
        } else if kept.contains(&wanted.name) {
            let kept = &mut topics.batch_limits.kept;
            *kept = Some(kept.map_or(limit, |other| other.min(limit)));
        }
    }
    Ok(topics)
}

/// Makes sure that every topic exists, with a partition for every server and for this relay.
/// Partitions are added where they are missing, never taken away. Then says how the topics are.
pub async fn ensure_topics(config: &Config) -> Result<Topics, TopicError> {
    let cluster = Cluster::new(config)?;
    ensure(&cluster, &Wanted::all(config)).await?;
    look(config, &cluster).await
}

/// A topic that lacks partitions, or is not there.
#[derive(Clone, Copy)]
struct Lacking<'a> {
    wanted: &'a Wanted,
    /// Partitions with a leader.
    there: i32,
}

/// Those of the topics that lack something now.
fn lacking<'a>(
    cluster: &Cluster,
    topics: impl IntoIterator<Item = &'a Wanted>,
) -> Result<Vec<Lacking<'a>>, TopicError> {
    let mut lacking = Vec::new();
    for wanted in topics {
        let there = cluster.led_partitions(&wanted.name)?;
        if there < wanted.least() {
            lacking.push(Lacking { wanted, there });
        }
    }
    Ok(lacking)
}

async fn ensure(cluster: &Cluster, all: &[Wanted]) -> Result<(), TopicError> {
    let began = Instant::now();
    let deadline = began + LEADERS_TIMEOUT;
    let mut left = lacking(cluster, all)?;
    // By topic, what was there when the cluster took a request about it.
    let mut asked: BTreeMap<&str, i32> = BTreeMap::new();
    while !left.is_empty() {
        // Creation is acknowledged before every broker knows of it. And another relay may have made
        // the topic meanwhile, with fewer partitions: what is there now is what is missing something.
        let due = |of: &&Lacking<'_>| asked.get(&*of.wanted.name) != Some(&of.there);
        let due: Vec<_> = left.iter().filter(due).copied().collect();
        let too_few = ask(cluster, &due).await?;
        for of in &due {
            asked.insert(&of.wanted.name, of.there);
        }
        for wanted in &too_few {
            asked.remove(&*wanted.name);
        }
        if let Some(wanted) = too_few.first() {
            if began.elapsed() >= BROKERS_TIMEOUT {
                return Err(wanted.problem(format!(
                    "the cluster has fewer brokers than the topic should have replicas \
                     (`kafka.replication` is {}; -1 uses the brokers' default)",
                    wanted.replication
                )));
            }
            tokio::time::sleep(BROKERS_TIMEOUT / 10).await;
        }
        left = lacking(cluster, left.iter().map(|of| of.wanted))?;
        if let Some(of) = left.first() {
            if Instant::now() > deadline {
                let enough = of.wanted.least();
                return Err(of.wanted.problem(format!(
                    "{enough} partitions did not appear in {LEADERS_TIMEOUT:?}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    for wanted in all.iter().filter(|wanted| asked.contains_key(&*wanted.name)) {
        let left = deadline.saturating_duration_since(Instant::now());
        await_leaders(cluster, wanted, left)?;
    }
    Ok(())
}

/// Waits until each partition has a leader that answers: a broker tells that it leads one before it
/// does.
fn await_leaders(cluster: &Cluster, wanted: &Wanted, patience: Duration) -> Result<(), TopicError> {
    let (client, topic) = (cluster.admin.inner(), &*wanted.name);
    let deadline = Instant::now() + patience;
    let left = || deadline.saturating_duration_since(Instant::now());
    let unled = |error: KafkaError| {
        wanted.problem(format!(
            "not every partition has a leader that answers, {LEADERS_TIMEOUT:?} after it was \
             created ({error}); the brokers' logs may say why"
        ))
    };
    let partitions = ask_again(left(), |left| described(client, topic, left)).map_err(unled)?;
    for partition in partitions {
        watermarks(client, topic, partition, left()).map_err(unled)?;
    }
    Ok(())
}

/// Asks for all that is missing: one request for topics, and one for partitions. Gives back those for
/// which there are not as many brokers as replicas; none is there while the controller takes them for
/// gone. The others are there, or will be.
async fn ask<'a>(
    cluster: &Cluster,
    lacking: &[Lacking<'a>],
) -> Result<Vec<&'a Wanted>, TopicError> {
    let admin = &cluster.admin;
    let options =
        AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let (absent, short): (Vec<_>, Vec<_>) =
        lacking.iter().map(|of| (of.wanted, of.there)).partition(|(_, there)| *there == 0);
    let absent: Vec<_> = absent.into_iter().map(|(wanted, _)| wanted).collect();
    let short: Vec<_> = short.into_iter().map(|(wanted, _)| wanted).collect();
    let mut answers = Vec::new();
    if !absent.is_empty() {
        let properties: Vec<_> = absent.iter().map(|wanted| wanted.properties()).collect();
        let new: Vec<_> = absent.iter().zip(&properties).map(new_topic).collect();
        answers.push((&absent, admin.create_topics(&new, &options).await));
    }
    if !short.is_empty() {
        let new: Vec<_> = short.iter().map(|wanted| new_partitions(wanted)).collect();
        answers.push((&short, admin.create_partitions(&new, &options).await));
    }
    let (mut too_few, mut refused) = (Vec::new(), Vec::new());
    for (asked, answer) in answers {
        let told = match answer {
            Ok(told) => told,
            Err(error) => {
                refused.extend(asked.iter().map(|wanted| Refused::by_client(wanted, &error)));
                continue;
            }
        };
        for told in told {
            match told {
                Ok(topic) => tracing::info!(topic, "created"),
                // Another relay was faster; or the controller has it, and not every broker does yet,
                // which is waited for anyway.
                Err((
                    _,
                    RDKafkaErrorCode::TopicAlreadyExists
                    | RDKafkaErrorCode::InvalidPartitions
                    | RDKafkaErrorCode::RequestTimedOut,
                )) => {}
                Err((topic, code)) => {
                    let Some(wanted) = asked.iter().find(|wanted| wanted.name == topic) else {
                        continue;
                    };
                    if code == RDKafkaErrorCode::InvalidReplicationFactor {
                        too_few.push(*wanted);
                    } else {
                        refused.push(Refused::by_cluster(wanted, code));
                    }
                }
            }
        }
    }
    if refused.is_empty() { Ok(too_few) } else { Err(refusal::told(&refused)) }
}

fn new_topic<'a>(
    (wanted, properties): (&&'a Wanted, &'a Vec<(&'static str, String)>),
) -> NewTopic<'a> {
    let replication = TopicReplication::Fixed(wanted.replication);
    let mut new = NewTopic::new(&wanted.name, wanted.partitions, replication);
    new.config.extend(properties.iter().map(|(name, value)| (*name, &**value)));
    new
}

fn new_partitions(wanted: &Wanted) -> NewPartitions<'_> {
    NewPartitions::new(&wanted.name, usize::try_from(wanted.partitions).expect("positive"))
}

#[cfg(test)]
mod tests;
