//! Whether the relay may do in Kafka what it has to do, asked before anything else: what is forbidden is
//! refused in many ways, most of which librdkafka calls a time-out.
//!
//! The rights that are granted come with a topic's description (KIP-430). They are listed for operators in
//! docs/brokers.md; a test runs the relay with these and no others.

use std::fmt;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, DefaultConsumerContext};
use rdkafka::error::RDKafkaErrorCode;

use crate::config::{Config, KafkaSection};
use crate::kafka::client::client_config;
use crate::kafka::ffi::Operation;
use crate::kafka::questions::a_broker;

use super::ffi::{DescribedGroup, DescribedTopic, describe_group, describe_rights};

/// How long the cluster may take to tell.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A right that the relay has not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    /// `topic` or `group`.
    kind: &'static str,
    name: String,
    operation: Operation,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, operation } = self;
        write!(f, "{} on {kind} {name}", operation.name())
    }
}

/// The relay may not do what it has to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "Kafka does not grant this relay the rights that it needs: {missing}; grant them \
     (docs/brokers.md has the whole list), or use another user in kafka.properties"
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

/// Refuses to go on without a right that is needed for topics that are there, or for the group of the
/// relay. Says what works less well without another one. Blocks.
pub fn check_rights(config: &Config) -> Result<Topics, RightsError> {
    let kafka = &config.kafka;
    let needed = needed(kafka);
    let mut names: Vec<&str> = needed.iter().map(|(topic, _)| topic.as_str()).collect();
    names.dedup();
    let Ok(client) = client_config(kafka).create::<BaseConsumer<DefaultConsumerContext>>() else {
        // Whoever needs one says what is wrong.
        return Ok(Topics::Unknown);
    };
    let deadline = Instant::now() + TIMEOUT;
    let left = || deadline.saturating_duration_since(Instant::now());
    let not_told = |error| tracing::debug!(%error, "the cluster did not report the relay's rights");
    // librdkafka would ask the controller, which not every cluster names; and every broker knows them.
    let broker = client.fetch_metadata(names.first().copied(), left());
    let told = broker
        .and_then(|metadata| describe_rights(client.client(), &names, a_broker(&metadata), left()));
    let Ok(told) = told.map_err(not_told) else { return Ok(Topics::Unknown) };
    let mut missing = missing(&needed, &told);
    let on_group = |group: String| {
        let told = describe_group(client.client(), &group, left()).map_err(not_told).ok()??;
        missing_on_group(&group, &told)
    };
    missing.extend(on_group(kafka.relay_group(config.relay.id)));
    let office = on_group(kafka.coordinator_group());
    if !missing.is_empty() {
        let all: Vec<_> = missing.iter().chain(&office).map(ToString::to_string).collect();
        return Err(RightsError { missing: all.join(", ") });
    }
    let uplink = [(kafka.uplink_topic(), Operation::Read)];
    for missing in self::missing(&uplink, &told) {
        tracing::warn!(
            %missing,
            "Kafka does not grant this right: `relay ledger` cannot read the uplink, and what \
             waits for a server that is gone cannot become dead letters"
        );
    }
    let all_there = told.iter().all(|topic| topic.error.is_none());
    // Said once: where a topic is not there, the rights are asked for again when it is.
    if let Some(missing) = office.filter(|_| all_there) {
        tracing::error!(
            %missing,
            "Kafka does not grant this right: this relay will not coordinate, and unless another \
             relay does, no server can register or drain"
        );
    }
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
            missing.push(Missing { kind: "topic", name: topic.clone(), operation: *operation });
        }
    }
    missing
}

/// READ, which includes DESCRIBE, on a group in which the relay commits, or is a member.
fn missing_on_group(group: &str, told: &DescribedGroup) -> Option<Missing> {
    let forbidden = told.error == Some(RDKafkaErrorCode::GroupAuthorizationFailed);
    let granted = told.operations.as_ref();
    let missing = forbidden || granted.is_some_and(|granted| !granted.contains(&Operation::Read));
    missing.then(|| Missing { kind: "group", name: group.to_owned(), operation: Operation::Read })
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
        let right = Missing { kind: "topic", name: "a".to_owned(), operation: Operation::Read };
        assert_eq!(found, [right]);
    }

    #[test]
    fn who_may_only_look_at_its_group_may_not_commit() {
        let told = |error, operations: Option<&[Operation]>| {
            let operations = operations.map(<[Operation]>::to_vec);
            missing_on_group("g", &DescribedGroup { error, operations }).map(|of| of.to_string())
        };
        let missing = Some("READ on group g".to_owned());
        assert_eq!(told(None, Some(&[])), missing);
        assert_eq!(told(Some(RDKafkaErrorCode::GroupAuthorizationFailed), None), missing);
        assert_eq!(told(None, Some(&[Operation::Read])), None);
        assert_eq!(told(None, None), None, "older brokers do not tell");
        assert_eq!(told(Some(RDKafkaErrorCode::GroupIdNotFound), None), None);
    }
}
