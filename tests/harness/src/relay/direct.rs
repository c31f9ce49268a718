//! A relay without gateway on the loopback, for the tests of what becomes of records.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use millrace_relay::config::Config;
use millrace_relay::kafka::committed_with_note;
use millrace_relay::model::Partition;
use millrace_relay::undelivered::postponed_before;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::clients::tcp::Client;
use crate::clients::wire::frames;
use crate::kafka::{self, Topics};
use crate::net::free_port;
use crate::relay::echo_service;
use crate::relay::instance::Instance;

const PATIENCE: Duration = Duration::from_secs(20);

/// A relay with one server, whose partition is 0.
#[derive(Debug)]
pub struct Direct {
    /// The relay. Stopped before its topics are deleted.
    pub instance: Instance,
    /// Its topics, unless it uses another's.
    pub topics: Topics,
    /// Bootstrap brokers.
    pub brokers: String,
    target: SocketAddr,
}

impl Direct {
    /// A relay with other settings, not yet started. Messages have at most 255 bytes.
    pub fn build(name: &str, adjust: impl FnOnce(&mut Config)) -> Result<Self> {
        Self::at(&kafka::brokers(), name, adjust)
    }

    /// The same at these brokers.
    pub fn at(brokers: &str, name: &str, adjust: impl FnOnce(&mut Config)) -> Result<Self> {
        let topics = Topics::new(brokers, name);
        let prefix = topics.prefix().to_owned();
        Self::with_topics(brokers, topics, &prefix, adjust)
    }

    /// Another relay, with its number, at the topics of `first`.
    pub fn beside(first: &Self, id: u16, adjust: impl FnOnce(&mut Config)) -> Result<Self> {
        let unused = Topics::new(&first.brokers, "beside");
        Self::with_topics(&first.brokers, unused, first.topics.prefix(), |config| {
            config.relay.id = id;
            adjust(config);
        })
    }

    fn with_topics(
        brokers: &str,
        topics: Topics,
        prefix: &str,
        adjust: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let brokers = brokers.to_owned();
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut config = echo_service::config(target, "lo")?;
        config.services[0].max_message_bytes = 255;
        brokers.clone_into(&mut config.kafka.brokers);
        prefix.clone_into(&mut config.kafka.topic_prefix);
        config.relay.workers = 1;
        adjust(&mut config);
        Ok(Self { instance: Instance::new(config, None)?, topics, brokers, target })
    }

    /// Where it listens.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// A client.
    pub fn connect(&self) -> Result<Client> {
        Client::connect(Path::new("/proc/self/ns/net"), self.target, frames())
    }

    /// Records in all partitions of one of the topics.
    pub fn record_count(&self, topic: &str) -> Result<u64> {
        let topic = format!("{}{topic}", self.instance.config.kafka.topic_prefix);
        let consumer: BaseConsumer = kafka::client(&self.brokers).create()?;
        let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE)?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        kafka::record_count(&self.brokers, &topic, i32::try_from(partitions)?)
    }

    /// Commits the position of a server.
    pub fn commit_uplink(&self, partition: u16, offset: i64) -> Result<()> {
        let config = &self.instance.config.kafka;
        let group = config.server_group(Partition(partition));
        let consumer: BaseConsumer =
            kafka::client(&self.brokers).set("group.id", group).create()?;
        let mut list = TopicPartitionList::new();
        let topic = config.uplink_topic();
        list.add_partition_offset(&topic, i32::from(partition), Offset::Offset(offset))?;
        Ok(consumer.commit(&list, CommitMode::Sync)?)
    }

    /// Where the relay's next run would go on reading its downlink.
    pub fn committed_downlink(&self) -> Result<Option<i64>> {
        Ok(self.committed_with_note()?.map(|(offset, _)| offset))
    }

    /// How many replies before that the next run would see to.
    pub fn postponed_downlink(&self) -> Result<u64> {
        Ok(self.committed_with_note()?.as_ref().map_or(0, postponed_before))
    }

    fn committed_with_note(&self) -> Result<Option<(i64, String)>> {
        let config = &self.instance.config;
        let group = format!("{}relay-{}", config.kafka.topic_prefix, config.relay.id);
        let consumer: BaseConsumer =
            kafka::client(&self.brokers).set("group.id", group).create()?;
        let (topic, partition) = (config.kafka.downlink_topic(), i32::from(config.relay.id));
        Ok(committed_with_note(&consumer, &topic, partition, PATIENCE)?)
    }
}
