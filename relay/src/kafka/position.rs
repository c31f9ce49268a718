//! How far the readers of partitions are, asked of the cluster.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSection;
use crate::kafka::client::client_config;
use crate::model::Partition;

use super::context::LogContext;
use super::retention::Retention;

/// A consumer that looks; `group` is whose commits it can see. It commits nothing by itself.
pub fn observer(kafka: &KafkaSection, group: &str) -> KafkaResult<BaseConsumer<LogContext>> {
    client_config(kafka)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        // Behind the last record there may be marks of transactions.
        .set("enable.partition.eof", "true")
        .create_with_context(LogContext::new(kafka))
}

/// The offset that a consumer's group has committed, if it ever has. Blocks for up to `patience`.
pub fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    patience: Duration,
) -> KafkaResult<Option<i64>> {
    let told = committed_with_note(consumer, topic, partition, patience)?;
    Ok(told.map(|(offset, _)| offset))
}

/// The same, with what the group has noted beside it (`metadata` in Kafka's words).
pub fn committed_with_note<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    patience: Duration,
) -> KafkaResult<Option<(i64, String)>> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, partition);
    let told = match consumer.committed_offsets(asked, patience) {
        // Some brokers know no group before its first commit; others say that it has no offset.
        Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupIdNotFound) => {
            return Ok(None);
        }
        told => told.map_err(|error| explained(consumer, error))?,
    };
    let elements = told.elements();
    let told = elements.first().map(|element| (element.offset(), element.metadata().to_owned()));
    Ok(match told {
        Some((Offset::Offset(offset), note)) => Some((offset, note)),
        _ => None,
    })
}

/// How many of a client's events are looked through for the cause of an error.
const MOST_EVENTS: usize = 16;

/// Why a question about a group had no answer. For librdkafka (2.12.1) that is a time-out even where the
/// cluster forbids to ask; the refusal is among the client's events.
fn explained<C: ConsumerContext>(consumer: &BaseConsumer<C>, error: KafkaError) -> KafkaError {
    // Of a client that reads, the events are records.
    let reads = consumer.assignment().map_or(true, |assigned| assigned.count() > 0);
    if !is_late(&error) || reads {
        return error;
    }
    let events = std::iter::from_fn(|| consumer.poll(Duration::ZERO)).take(MOST_EVENTS);
    let codes = events.filter_map(|event| event.err()?.rdkafka_error_code());
    let forbidden = RDKafkaErrorCode::GroupAuthorizationFailed;
    if codes.into_iter().any(|code| code == forbidden) {
        return KafkaError::OffsetFetch(forbidden);
    }
    error
}

/// Whether an answer did not come in time.
pub(crate) fn is_late(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::OperationTimedOut | Code::WaitingForCoordinator)
    )
}

/// What waits in an uplink partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Records that its reader has not committed; all of them if there is no commit.
    pub records: u64,
    /// There is no commit, and whoever had read all of them would have none any more: see
    /// `is_outlived`.
    pub outlived: bool,
    /// The partition's end when that was found out.
    pub end: i64,
}

/// What waits in an uplink partition. Blocks for some times `patience`.
pub fn unread(
    kafka: &KafkaSection,
    partition: Partition,
    retention: Retention,
    patience: Duration,
) -> KafkaResult<Unread> {
    let consumer = observer(kafka, &kafka.server_group(partition))?;
    let (topic, number) = (kafka.uplink_topic(), i32::from(partition.0));
    let (begin, end) = consumer.fetch_watermarks(&topic, number, patience)?;
    if begin == end {
        return Ok(Unread { end, ..Unread::default() });
    }
    let committed = committed(&consumer, &topic, number, patience)?;
    let next = committed.map_or(begin, |at| at.max(begin));
    let records = u64::try_from(end - next).unwrap_or_default();
    let outlived =
        committed.is_none() && is_outlived(&consumer, &topic, number, retention, patience)?;
    Ok(Unread { records, outlived, end })
}

/// Whether a partition's reader, which lives, has read what is before `end`.
pub fn has_read<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    (topic, partition): (&str, i32),
    end: i64,
    retention: Retention,
    patience: Duration,
) -> KafkaResult<bool> {
    match committed(consumer, topic, partition, patience)? {
        Some(committed) => Ok(committed >= end),
        None => is_outlived(consumer, topic, partition, retention, patience),
    }
}

/// Whether all records of a partition are older than offsets become. The reader's commit of the last one
/// would be forgotten by now: that there is none says nothing of a reader that lives.
fn is_outlived<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    retention: Retention,
    patience: Duration,
) -> KafkaResult<bool> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = now.saturating_sub(retention.duration()).as_millis();
    let mut asked = TopicPartitionList::new();
    let since = Offset::Offset(i64::try_from(since).unwrap_or(i64::MAX));
    asked.add_partition_offset(topic, partition, since)?;
    let told = consumer.offsets_for_times(asked, patience)?;
    // The end: there is none as new as that.
    Ok(told.elements().first().map(TopicPartitionListElem::offset) == Some(Offset::End))
}

/// Commits anew what the reader of an uplink partition has committed, so that it is not forgotten while
/// nobody reads there. False if there is nothing, or it may not be committed any more. Blocks.
pub(crate) fn renew(
    kafka: &KafkaSection,
    partition: Partition,
    patience: Duration,
    may_commit: impl FnOnce() -> bool,
) -> KafkaResult<bool> {
    let group = observer(kafka, &kafka.server_group(partition))?;
    let (topic, number) = (kafka.uplink_topic(), i32::from(partition.0));
    let Some((offset, note)) = committed_with_note(&group, &topic, number, patience)? else {
        return Ok(false);
    };
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, number, Offset::Offset(offset))?;
    list.elements()[0].set_metadata(&note);
    if !may_commit() {
        return Ok(false);
    }
    group.commit(&list, CommitMode::Sync)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn a_group_that_the_brokers_do_not_know_has_committed_nothing() {
        let cluster = MockCluster::new(1).expect("a cluster");
        cluster.create_topic("topic", 1, 1).expect("a topic");
        let kafka =
            KafkaSection { brokers: cluster.bootstrap_servers(), ..KafkaSection::default() };
        let group = observer(&kafka, "group").expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("topic", 0, Offset::Offset(7)).expect("an offset");
        group.commit(&list, CommitMode::Sync).expect("committed");
        let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND;
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[unknown]);
        assert_eq!(committed(&group, "topic", 0, PATIENCE), Ok(None));
        assert_eq!(committed(&group, "topic", 0, PATIENCE), Ok(Some(7)));
    }
}
