//! Questions to the cluster that are asked again while nobody can answer them yet.
//!
//! A topic that was just made is described by a broker before the leaders of its partitions answer,
//! and other brokers learn of it later still; the same holds for a while after a leader has changed.
//! librdkafka asks again for some of these errors only, and at most for as long as one question may
//! take.

use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataBroker, MetadataPartition, MetadataTopic};

/// How long a cluster that is not ready to answer is left alone.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// Asks until there is an answer, or an error that does not pass by itself, for up to `patience`; then
/// the last error is the answer. `ask` is given what is left.
pub(crate) fn ask_again<T>(
    patience: Duration,
    mut ask: impl FnMut(Duration) -> KafkaResult<T>,
) -> KafkaResult<T> {
    let deadline = Instant::now() + patience;
    loop {
        match ask(deadline.saturating_duration_since(Instant::now())) {
            Err(error) if passes(&error) && Instant::now() + PAUSE < deadline => {
                tracing::debug!(%error, "the cluster is not ready to answer; retrying");
                std::thread::sleep(PAUSE);
            }
            answer => return answer,
        }
    }
}

/// The oldest offset of a partition and the one behind its newest record. Blocks for up to `patience`.
pub fn watermarks<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: i32,
    patience: Duration,
) -> KafkaResult<(i64, i64)> {
    ask_again(patience, |left| client.fetch_watermarks(topic, partition, left))
}

/// How long an end that is told short is asked for again.
const SHORT: Duration = Duration::from_secs(2);

/// The same where it is known that the partition has gone as far as `known`: some brokers tell an end that
/// is short of that, for a moment. One that stays so is the end.
pub(crate) fn watermarks_from<C: ClientContext>(
    client: &Client<C>,
    (topic, partition): (&str, i32),
    known: i64,
    patience: Duration,
) -> KafkaResult<(i64, i64)> {
    at_least(known, SHORT, || watermarks(client, topic, partition, patience))
}

fn at_least(
    known: i64,
    patience: Duration,
    mut ask: impl FnMut() -> KafkaResult<(i64, i64)>,
) -> KafkaResult<(i64, i64)> {
    let deadline = Instant::now() + patience;
    loop {
        let (oldest, end) = ask()?;
        if end >= known || Instant::now() + PAUSE > deadline {
            return Ok((oldest, end));
        }
        tracing::debug!(
            end,
            known,
            "a broker reports an end of a partition before records that it has acknowledged"
        );
        std::thread::sleep(PAUSE);
    }
}

/// The partitions of a topic as a broker describes them now; an error if one of them has no leader.
pub(crate) fn described<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    patience: Duration,
) -> KafkaResult<Vec<i32>> {
    let metadata = client.fetch_metadata(Some(topic), patience)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic))?;
    if let Some(error) = found.error() {
        return Err(KafkaError::MetadataFetch(error.into()));
    }
    let partitions = MetadataTopic::partitions(found);
    if partitions.is_empty() || partitions.iter().any(|partition| partition.leader() < 0) {
        return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::LeaderNotAvailable));
    }
    Ok(partitions.iter().map(MetadataPartition::id).collect())
}

/// A broker that can be asked: the one that has told this, if it says who it is.
pub(super) fn a_broker(metadata: &Metadata) -> Option<i32> {
    if metadata.orig_broker_id() >= 0 {
        return Some(metadata.orig_broker_id());
    }
    // A connection to a bootstrap address has no number.
    let (brokers, name) = (metadata.brokers(), metadata.orig_broker_name());
    let told =
        |broker: &&MetadataBroker| name.contains(&format!("{}:{}/", broker.host(), broker.port()));
    brokers.iter().find(told).or(brokers.first()).map(MetadataBroker::id)
}

/// Whether there is no such topic, as far as who was asked knows.
pub(crate) fn is_unknown_topic(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(error.rdkafka_error_code(), Some(Code::UnknownTopicOrPartition | Code::UnknownTopic))
}

/// Whether an error passes by itself: those that Kafka's protocol guide ("Error Codes") calls
/// retriable and a question about a topic or a group can meet, and librdkafka's own words for them.
pub(crate) fn passes(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            // The topic, or its partition, is not known yet, or has no leader yet.
            Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::LeaderNotAvailable
                // Who was asked does not lead it: not yet, or no longer.
                | Code::NotLeaderForPartition
                | Code::ReplicaNotAvailable
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::OffsetNotAvailable
                // A new cluster, or one that has just moved a group's coordinator.
                | Code::NotCoordinator
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                // A connection that broke under the question.
                | Code::NetworkException
                | Code::BrokerTransportFailure
                | Code::RequestTimedOut
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As clients tell it, of metadata and watermarks, and of committed offsets.
    fn told(code: RDKafkaErrorCode) -> [KafkaError; 2] {
        [KafkaError::MetadataFetch(code), KafkaError::OffsetFetch(code)]
    }

    #[test]
    fn what_a_new_topic_or_a_new_leader_answers_passes() {
        for code in [
            RDKafkaErrorCode::UnknownTopicOrPartition,
            RDKafkaErrorCode::UnknownPartition,
            RDKafkaErrorCode::LeaderNotAvailable,
            RDKafkaErrorCode::NotLeaderForPartition,
            RDKafkaErrorCode::FencedLeaderEpoch,
            RDKafkaErrorCode::UnknownLeaderEpoch,
            RDKafkaErrorCode::OffsetNotAvailable,
            RDKafkaErrorCode::CoordinatorLoadInProgress,
        ] {
            assert!(told(code).iter().all(passes), "{code:?}");
        }
    }

    #[test]
    fn a_refusal_stays() {
        for code in [
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::GroupAuthorizationFailed,
            RDKafkaErrorCode::InvalidTopic,
            RDKafkaErrorCode::UnsupportedVersion,
            RDKafkaErrorCode::Fatal,
        ] {
            assert!(!told(code).iter().any(passes), "{code:?}");
        }
        assert!(!passes(&KafkaError::Canceled), "an error without a code");
    }

    #[test]
    fn it_is_asked_until_there_is_an_answer() {
        let mut asked = 0;
        let answer = ask_again(Duration::from_mins(1), |_| {
            asked += 1;
            if asked < 3 {
                Err(KafkaError::MetadataFetch(RDKafkaErrorCode::NotLeaderForPartition))
            } else {
                Ok(asked)
            }
        });
        assert_eq!(answer, Ok(3));
    }

    #[test]
    fn an_end_that_is_short_of_what_is_known_is_asked_for_again() {
        let mut ends = [7, 7, 9].into_iter();
        let told =
            at_least(9, Duration::from_mins(1), || Ok((2, ends.next().expect("asked once more"))));
        assert_eq!(told, Ok((2, 9)));
        let told = at_least(9, PAUSE * 2, || Ok((2, 7)));
        assert_eq!(told, Ok((2, 7)), "it stays so: the rest is lost");
    }

    #[test]
    fn a_refusal_is_the_answer_at_once_and_patience_ends() {
        let refusal = KafkaError::MetadataFetch(RDKafkaErrorCode::TopicAuthorizationFailed);
        let mut asked = 0;
        let answer: KafkaResult<()> = ask_again(Duration::from_mins(1), |_| {
            asked += 1;
            Err(refusal.clone())
        });
        assert_eq!((answer, asked), (Err(refusal), 1));
        let lasting = KafkaError::MetadataFetch(RDKafkaErrorCode::LeaderNotAvailable);
        let answer: KafkaResult<()> = ask_again(PAUSE * 2, |left| {
            assert!(left <= PAUSE * 2);
            Err(lasting.clone())
        });
        assert_eq!(answer, Err(lasting));
    }
}
