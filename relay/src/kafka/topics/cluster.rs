//! What is asked of the cluster about topics.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::producer::BaseProducer;

use crate::config::Config;
use crate::kafka::client::{client_config, producer_config};
use crate::kafka::questions::a_broker;

use super::super::context::LogContext;
use super::TopicError;
use super::fit::Found;

/// How long the cluster may take to answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// How long librdkafka may take to say why it has reached nobody.
const WORDS: Duration = Duration::from_millis(200);

/// Refuses properties that librdkafka does not know, or cannot use. Asks nobody.
pub fn check_properties(config: &Config) -> Result<(), TopicError> {
    let refused = |error: KafkaError| TopicError::Properties { problem: in_words(error) };
    producer_config(config).create_native_config().map_err(refused)?;
    // Files that do not exist, or do not fit each other, are seen only when a client is made.
    let client = client_config(&config.kafka);
    client.create::<BaseConsumer>().map_err(refused)?;
    client.create::<BaseProducer>().map_err(refused)?;
    Ok(())
}

fn in_words(error: KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, problem, key, value) => format!("{key} = {value}: {problem}"),
        KafkaError::ClientCreation(problem) => problem,
        other => other.to_string(),
    }
}

/// Two clients of the cluster: one that changes things, and one that tells why nobody answers.
pub(crate) struct Cluster {
    pub(crate) admin: AdminClient<LogContext>,
    observer: BaseConsumer<LogContext>,
    brokers: String,
}

impl Cluster {
    pub(crate) fn new(config: &Config) -> Result<Self, TopicError> {
        check_properties(config)?;
        let kafka = &config.kafka;
        let client: ClientConfig = client_config(kafka);
        let refused = |error: KafkaError| TopicError::Properties { problem: in_words(error) };
        Ok(Self {
            admin: client.create_with_context(LogContext::new(kafka)).map_err(refused)?,
            observer: client.create_with_context(LogContext::new(kafka)).map_err(refused)?,
            brokers: kafka.brokers.clone(),
        })
    }

    /// Why nobody has answered.
    fn no_broker(&self, source: &KafkaError) -> TopicError {
        // What has happened to its connections is told in its polls.
        if self.observer.poll(WORDS).is_some() {
            tracing::debug!("a consumer without partitions has read something");
        }
        let brokers = self.brokers.clone();
        match self.observer.context().last_error() {
            Some((RDKafkaErrorCode::SSL | RDKafkaErrorCode::Authentication, reason)) => {
                TopicError::Unspoken { brokers, reason }
            }
            Some((_, reason)) => {
                TopicError::NoBroker { brokers, reason: format!("{source}; {reason}") }
            }
            None => TopicError::NoBroker { brokers, reason: source.to_string() },
        }
    }

    fn metadata(&self, topic: &str) -> Result<Metadata, TopicError> {
        self.observer.fetch_metadata(Some(topic), TIMEOUT).map_err(|source| self.no_broker(&source))
    }

    /// Partitions of a topic that have a leader; 0: there is no such topic.
    pub(crate) fn led_partitions(&self, topic: &str) -> Result<i32, TopicError> {
        let metadata = self.metadata(topic)?;
        let partitions = of(&metadata, topic).map_or(&[][..], MetadataTopic::partitions);
        let led = partitions.iter().filter(|partition| partition.leader() >= 0).count();
        Ok(i32::try_from(led).unwrap_or(i32::MAX))
    }

    /// The topics as they are, in their order; none where there is no such topic. Their configuration is
    /// asked of a broker, not of the controller as librdkafka does by itself: each broker knows it
    /// (KIP-133), and who has no controller at the moment still tells.
    pub(super) async fn find(&self, topics: &[&str]) -> Result<Vec<Option<Found>>, TopicError> {
        let (mut found, mut there, mut broker) = (Vec::new(), Vec::new(), None);
        for topic in topics {
            let metadata = self.metadata(topic)?;
            broker = a_broker(&metadata);
            found.push(of(&metadata, topic).map(|found| {
                there.push(ResourceSpecifier::Topic(topic));
                let partitions = found.partitions().iter();
                let replicas = partitions.map(|partition| partition.replicas().len()).collect();
                Found { replicas, settings: None }
            }));
        }
        if there.is_empty() {
            return Ok(found);
        }
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).broker_id(broker);
        let told = self.admin.describe_configs(&there, &options).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the cluster did not report the topics' configuration");
            Vec::new()
        });
        for resource in told {
            let resource = match resource {
                Ok(resource) => resource,
                Err(code) => {
                    tracing::debug!(%code, "the cluster did not report a topic's configuration");
                    continue;
                }
            };
            let OwnedResourceSpecifier::Topic(name) = &resource.specifier else { continue };
            let place = topics.iter().position(|topic| topic == name);
            let Some(Some(found)) = place.and_then(|place| found.get_mut(place)) else { continue };
            let entries = resource.entries.into_iter();
            let known = entries.filter_map(|entry| Some((entry.name, entry.value?)));
            found.settings = Some(known.collect());
        }
        Ok(found)
    }
}

fn of<'a>(metadata: &'a Metadata, topic: &str) -> Option<&'a MetadataTopic> {
    metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none())
}
