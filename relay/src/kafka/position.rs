//! How far the readers of partitions are, asked of the cluster.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSection;
use crate::route::Partition;

use super::producer::client_config;

/// A consumer that looks; `group` is whose commits it can see. It commits nothing by itself.
pub fn observer(kafka: &KafkaSection, group: &str) -> KafkaResult<BaseConsumer> {
    client_config(kafka)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        // Behind the last record there may be marks of transactions.
        .set("enable.partition.eof", "true")
        .create()
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
    let told = consumer.committed_offsets(asked, patience)?;
    let elements = told.elements();
    let told = elements.first().map(|element| (element.offset(), element.metadata().to_owned()));
    Ok(match told {
        Some((Offset::Offset(offset), note)) => Some((offset, note)),
        _ => None,
    })
}

/// Records of an uplink partition that its reader has not committed; all of them if it never
/// committed anything. Blocks for up to twice `patience`.
pub fn unread(kafka: &KafkaSection, partition: Partition, patience: Duration) -> KafkaResult<u64> {
    let consumer = observer(kafka, &kafka.server_group(partition))?;
    let (topic, number) = (kafka.uplink_topic(), i32::from(partition.0));
    let (begin, end) = consumer.fetch_watermarks(&topic, number, patience)?;
    if begin == end {
        return Ok(0);
    }
    let next = committed(&consumer, &topic, number, patience)?.map_or(begin, |at| at.max(begin));
    Ok(u64::try_from(end - next).unwrap_or_default())
}
