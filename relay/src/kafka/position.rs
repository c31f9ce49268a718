//! How far the reader of an uplink partition is.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSection;
use crate::route::Partition;

use super::producer::client_config;

/// Records of an uplink partition that its reader has not committed; all of them if it never
/// committed anything. Blocks for up to twice `patience`.
pub fn unread(kafka: &KafkaSection, partition: Partition, patience: Duration) -> KafkaResult<u64> {
    let mut client = client_config(kafka);
    client.set("group.id", kafka.server_group(partition));
    let consumer: BaseConsumer = client.create()?;
    let (topic, number) = (kafka.uplink_topic(), i32::from(partition.0));
    let (begin, end) = consumer.fetch_watermarks(&topic, number, patience)?;
    if begin == end {
        return Ok(0);
    }
    let mut of = TopicPartitionList::new();
    of.add_partition(&topic, number);
    let committed = consumer.committed_offsets(of, patience)?;
    let next = match committed.elements().first().map(TopicPartitionListElem::offset) {
        Some(Offset::Offset(next)) => next.max(begin),
        _ => begin,
    };
    Ok(u64::try_from(end - next).unwrap_or_default())
}
