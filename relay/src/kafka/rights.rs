//! Whether the relay may do in Kafka what it has to do, asked before anything else: what is forbidden is
//! refused in many ways, most of which librdkafka calls a time-out.
//!
//! The rights that are granted come with a topic's description (KIP-430). They are listed for operators in
//! docs/brokers.md; a test runs the relay with these and no others.

use std::fmt;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, DefaultConsumerContext};
use rdkafka::error::RDKafkaErrorCode;

use crate::config::KafkaSection;
use crate::kafka::client::client_config;
use crate::kafka::ffi::Operation;

use super::ffi::{DescribedTopic, describe_rights};

/// How long the cluster may take to tell.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A right that the relay has not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    topic: String,
    operation: Operation,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on topic {}", self.operation.name(), self.topic)
    }
}

/// The relay may not do what it has to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "Kafka does not allow this relay what it needs: {missing}; grant it (docs/brokers.md has the whole \
     list), or use another user in kafka.properties"
)]
pub struct RightsError {
    missing: String,
}

/// Whether the topics are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topics {
    /// All are there.
    There,
    /// Some are not, or the cluster does not tell.
    Unknown,
}

/// Refuses to go on without a right that is needed for topics that are there. Says what works less well
/// without another one. Blocks.
pub fn check_rights(kafka: &KafkaSection) -> Result<Topics, RightsError> {
    let needed = needed(kafka);
    let mut names: Vec<&str> = needed.iter().map(|(topic, _)| topic.as_str()).collect();
    names.dedup();
    let Ok(client) = client_config(kafka).create::<BaseConsumer<DefaultConsumerContext>>() else {
        // Whoever needs one says what is wrong.
        return Ok(Topics::Unknown);
    };
    let told = match describe_rights(client.client(), &names, TIMEOUT) {
        Ok(told) => told,
        Err(error) => {
            tracing::debug!(%error, "the cluster does not tell the relay's rights");
            return Ok(Topics::Unknown);
        }
    };
    let missing = missing(&needed, &told);
    if !missing.is_empty() {
        let all: Vec<_> = missing.iter().map(ToString::to_string).collect();
        return Err(RightsError { missing: all.join(", ") });
    }
    let uplink = [(kafka.uplink_topic(), Operation::Read)];
    for missing in self::missing(&uplink, &told) {
        tracing::warn!(
            %missing,
            "Kafka does not allow this: `relay ledger` cannot look, and what waits for a server that is \
             gone cannot become dead letters"
        );
    }
    let all_there = told.iter().all(|topic| topic.error.is_none());
    Ok(if all_there { Topics::There } else { Topics::Unknown })
}

/// By topic, so that names that are the same follow one another.
fn needed(kafka: &KafkaSection) -> Vec<(String, Operation)> {
    use Operation::{Read, Write};
    [
        (kafka.uplink_topic(), &[Write][..]),
        (kafka.downlink_topic(), &[Read]),
        (kafka.registry_topic(), &[Read, Write]),
        (kafka.associations_topic(), &[Read, Write]),
        (kafka.held_topic(), &[Read, Write]),
        (kafka.deadletter_topic(), &[Write]),
    ]
    .into_iter()
    .flat_map(|(topic, operations)| operations.iter().map(move |of| (topic.clone(), *of)))
    .collect()
}

/// Those of the rights that the cluster says are not granted.
fn missing(needed: &[(String, Operation)], told: &[DescribedTopic]) -> Vec<Missing> {
    let mut missing = Vec::new();
    for (topic, operation) in needed {
        let Some(found) = told.iter().find(|found| found.name == *topic) else { continue };
        let forbidden = found.error == Some(RDKafkaErrorCode::TopicAuthorizationFailed);
        let granted = found.operations.as_ref();
        if forbidden || granted.is_some_and(|granted| !granted.contains(operation)) {
            missing.push(Missing { topic: topic.clone(), operation: *operation });
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str, operations: Option<&[Operation]>) -> DescribedTopic {
        let operations = operations.map(<[Operation]>::to_vec);
        DescribedTopic { name: name.to_owned(), error: None, id: None, operations }
    }

    #[test]
    fn a_right_that_is_not_granted_is_named_with_its_topic() {
        let needed = needed(&KafkaSection::default());
        let all: Vec<_> = needed
            .iter()
            .map(|(name, _)| topic(name, Some(&[Operation::Read, Operation::Write])))
            .collect();
        assert_eq!(missing(&needed, &all), []);
        for (name, operation) in &needed {
            let mut told = all.clone();
            for of in told.iter_mut().filter(|of| of.name == *name) {
                of.operations.as_mut().unwrap().retain(|granted| granted != operation);
            }
            let missing = missing(&needed, &told);
            assert_eq!(missing.len(), 1, "{missing:?}");
            assert_eq!(missing[0].to_string(), format!("{} on topic {name}", operation.name()));
        }
    }

    #[test]
    fn what_the_cluster_does_not_tell_is_not_missing() {
        let needed = [("a".to_owned(), Operation::Read), ("b".to_owned(), Operation::Write)];
        let mut gone = topic("b", None);
        gone.error = Some(RDKafkaErrorCode::UnknownTopicOrPartition);
        assert_eq!(missing(&needed, &[topic("a", None), gone]), []);
        let mut hidden = topic("a", None);
        hidden.error = Some(RDKafkaErrorCode::TopicAuthorizationFailed);
        let found = missing(&needed, &[hidden]);
        assert_eq!(found, [Missing { topic: "a".to_owned(), operation: Operation::Read }]);
    }
}
