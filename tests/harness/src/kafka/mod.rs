//! Topics, watermarks, and a broker of one's own for the tests that hurt it.

pub mod certificates;
pub mod lasting;
pub mod requests;
pub mod three_brokers;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_relay::config::{KafkaSection, UplinkEngine};
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};

use crate::system::paths;
use crate::system::process::{STOP_PATIENCE, run_ok, stands_still, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// The brokers to use: `MILLRACE_BROKERS`, or those that `cargo xtask kafka start` runs.
pub fn brokers() -> String {
    std::env::var("MILLRACE_BROKERS").unwrap_or_else(|_| "127.0.0.1:9092".to_owned())
}

/// What a relay's configuration says of Kafka. What writes the uplink is librdkafka, or what
/// `MILLRACE_ENGINE` names (`kafka.engine`): so every test can be run with either.
pub fn section(brokers: &str, prefix: &str) -> KafkaSection {
    let engine = match std::env::var("MILLRACE_ENGINE").as_deref() {
        Ok("millrace") => UplinkEngine::Millrace,
        Ok("librdkafka") | Err(_) => UplinkEngine::Librdkafka,
        Ok(other) => panic!("MILLRACE_ENGINE={other}: it must be librdkafka or millrace"),
    };
    KafkaSection {
        brokers: brokers.to_owned(),
        topic_prefix: prefix.to_owned(),
        engine,
        ..KafkaSection::default()
    }
}

/// Settings that every client here needs.
pub fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    // After a broker's return nobody shall wait for the default's 10 seconds.
    config.set("reconnect.backoff.max.ms", "1000");
    config
}

/// Refuses brokers that do not answer.
pub fn check_brokers(brokers: &str) -> Result<()> {
    let consumer: BaseConsumer = client(brokers).create()?;
    let metadata = consumer.fetch_metadata(None, Duration::from_secs(10)).with_context(|| {
        format!(
            "no Kafka broker answers at {brokers}: start one with `cargo xtask kafka start`, or \
             name another with --brokers HOST:PORT"
        )
    })?;
    ensure!(!metadata.brokers().is_empty(), "{brokers} answers, but has no broker in service");
    Ok(())
}

/// The topics of one run; they are deleted when this is dropped.
#[derive(Debug)]
pub struct Topics {
    brokers: String,
    prefix: String,
}

impl Topics {
    /// Topics under a prefix that nothing else uses.
    pub fn new(brokers: &str, name: &str) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let prefix = format!("{name}-{}-{number}.", std::process::id());
        Self { brokers: brokers.to_owned(), prefix }
    }

    /// What stands before `uplink` and `downlink`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Makes one with so many partitions, for runs without a relay.
    pub fn create(&self, name: &str, partitions: i32) -> Result<String> {
        self.create_with(name, partitions, &[])
    }

    /// Makes one with so many partitions and these properties.
    pub fn create_with(
        &self,
        name: &str,
        partitions: i32,
        properties: &[(&str, &str)],
    ) -> Result<String> {
        self.create_as(name, partitions, TopicReplication::Fixed(-1), properties)
    }

    /// Makes one whose only partition has these brokers; the first leads it.
    pub fn create_on(
        &self,
        name: &str,
        brokers: &[i32],
        properties: &[(&str, &str)],
    ) -> Result<String> {
        self.create_as(name, 1, TopicReplication::Variable(&[brokers]), properties)
    }

    fn create_as(
        &self,
        name: &str,
        partitions: i32,
        replication: TopicReplication<'_>,
        properties: &[(&str, &str)],
    ) -> Result<String> {
        let name = format!("{}{name}", self.prefix);
        let mut topic = NewTopic::new(&name, partitions, replication);
        topic.config.extend(properties);
        let admin = self.admin()?;
        let results = wait(admin.create_topics([&topic], &AdminOptions::new()))??;
        for result in results {
            result.map_err(|(name, error)| anyhow::anyhow!("cannot make topic {name}: {error}"))?;
        }
        Ok(name)
    }

    /// Gives one other properties, in place of those that it was made with.
    pub fn set(&self, name: &str, properties: &[(&str, &str)]) -> Result<()> {
        let name = format!("{}{name}", self.prefix);
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(&name));
        change.entries.extend(properties.iter().copied());
        let admin = self.admin()?;
        for result in wait(admin.alter_configs([&change], &AdminOptions::new()))?? {
            result.map_err(|(_, error)| anyhow::anyhow!("cannot change topic {name}: {error}"))?;
        }
        Ok(())
    }

    /// Gives one more partitions: so many in all.
    pub fn grow(&self, name: &str, partitions: usize) -> Result<()> {
        let name = format!("{}{name}", self.prefix);
        let more = NewPartitions::new(&name, partitions);
        let admin = self.admin()?;
        for result in wait(admin.create_partitions([&more], &AdminOptions::new()))?? {
            result.map_err(|(name, error)| anyhow::anyhow!("{name} does not grow: {error}"))?;
        }
        Ok(())
    }

    /// Deletes one of them.
    pub fn delete_one(&self, name: &str) -> Result<()> {
        let name = format!("{}{name}", self.prefix);
        let admin = self.admin()?;
        for result in wait(admin.delete_topics(&[&name], &AdminOptions::new()))?? {
            result.map_err(|(name, error)| anyhow::anyhow!("cannot delete {name}: {error}"))?;
        }
        Ok(())
    }

    /// Deletes records of a partition, before an offset.
    pub fn delete_records(&self, name: &str, partition: i32, before: i64) -> Result<()> {
        let name = format!("{}{name}", self.prefix);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&name, partition, Offset::Offset(before))?;
        let admin = self.admin()?;
        wait(admin.delete_records(&list, &AdminOptions::new()))??;
        Ok(())
    }

    /// Deletes one and makes it again, as soon as the cluster lets that be done.
    pub fn make_anew(&self, name: &str, partitions: i32) -> Result<()> {
        self.delete_one(name)?;
        wait_until(PATIENCE, "the topic to be made again", || {
            Ok(self.create(name, partitions).is_ok())
        })
    }

    /// Deletes all of them.
    pub fn delete(&self) -> Result<()> {
        let consumer: BaseConsumer = client(&self.brokers).create()?;
        let metadata = consumer.fetch_metadata(None, PATIENCE)?;
        let names: Vec<&str> = metadata
            .topics()
            .iter()
            .map(MetadataTopic::name)
            .filter(|name| name.starts_with(&self.prefix))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let admin = self.admin()?;
        for result in wait(admin.delete_topics(&names, &AdminOptions::new()))?? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((name, error)) => anyhow::bail!("cannot delete topic {name}: {error}"),
            }
        }
        Ok(())
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(client(&self.brokers).create()?)
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        if let Err(error) = self.delete() {
            eprintln!("the topics {}* are left behind: {error:#}", self.prefix);
        }
    }
}

fn wait<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, future).await })
        .context("the broker did not answer in time")
}

/// Which broker leads a partition, if one does.
pub fn leader(brokers: &str, topic: &str, partition: i32) -> Result<Option<i32>> {
    let consumer: BaseConsumer = client(brokers).create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
    let found = partitions.into_iter().find(|found| found.id() == partition);
    Ok(found.map(MetadataPartition::leader).filter(|leader| *leader >= 0))
}

/// Records in each partition of a topic.
pub fn record_counts(brokers: &str, topic: &str, partitions: u16) -> Result<Vec<u64>> {
    let consumer: BaseConsumer = client(brokers).create()?;
    let count = |partition: u16| {
        let (low, high) = consumer.fetch_watermarks(topic, partition.into(), PATIENCE)?;
        Ok(u64::try_from(high - low)?)
    };
    (0..partitions).map(count).collect()
}

/// Records in all partitions of a topic.
pub fn record_count(brokers: &str, topic: &str, partitions: i32) -> Result<u64> {
    Ok(record_counts(brokers, topic, u16::try_from(partitions)?)?.iter().sum())
}

/// A broker that only one test uses, so that it may be stopped and killed. Dropping it ends it and
/// deletes its data.
#[derive(Debug)]
pub struct OwnBroker {
    xtask: PathBuf,
    directory: PathBuf,
    address: String,
    properties: Vec<String>,
}

impl OwnBroker {
    /// Starts one on a free port, with its data in `directory`.
    pub fn start(directory: &Path) -> Result<Self> {
        Self::start_with(directory, &[])
    }

    /// One with these properties (`NAME=VALUE`) of the broker in place of ours.
    pub fn start_with(directory: &Path, properties: &[&str]) -> Result<Self> {
        Self::start_at(directory, 0, properties)
    }

    /// One at this port, which the properties may speak of.
    pub fn start_at(directory: &Path, port: u16, properties: &[&str]) -> Result<Self> {
        let mut broker = Self {
            xtask: paths::xtask()?,
            directory: directory.to_owned(),
            address: String::new(),
            properties: properties.iter().map(|property| (*property).to_owned()).collect(),
        };
        broker.address = broker.xtask(&["start", "--port", &port.to_string()])?;
        Ok(broker)
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Stops it in good order; its data stays.
    pub fn stop(&self) -> Result<()> {
        self.xtask(&["stop"]).map(drop)
    }

    /// Starts it again where it was, after its process was killed, and waits until it serves.
    pub fn restart(&self) -> Result<()> {
        let address = self.xtask(&["start"])?;
        ensure!(address == self.address, "the broker has moved from {} to {address}", self.address);
        Ok(())
    }

    /// Sends its process a signal; after SIGKILL, waits until it is gone, after SIGSTOP, until its last thread
    /// stands still.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let state = std::fs::read_to_string(self.directory.join("broker.json"))?;
        let state: serde_json::Value = serde_json::from_str(&state)?;
        let pid = state["pid"].as_i64().context("broker.json names no pid")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("broker.json names no process")?;
        kill_process(pid, signal)?;
        if signal == Signal::STOP {
            wait_until(STOP_PATIENCE, "the broker to stand still", || stands_still(pid))?;
        }
        if signal == Signal::KILL {
            wait_until(PATIENCE, "the broker's process to be gone", || {
                Ok(!Path::new("/proc").join(pid.to_string()).exists())
            })?;
        }
        Ok(())
    }

    fn xtask(&self, action: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.xtask);
        command.arg("kafka").args(action).arg("--dir").arg(&self.directory);
        if action.first() == Some(&"start") {
            // It is to be killed, and to come back soon.
            command.args(["--session-timeout-ms", "4000"]);
            for property in &self.properties {
                command.args(["--set", property]);
            }
        }
        let finished = run_ok("xtask kafka", &mut command, Duration::from_mins(2))?;
        Ok(finished.stdout.trim().to_owned())
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        if let Err(error) = self.xtask(&["stop"]) {
            eprintln!("the broker in {} is left behind: {error:#}", self.directory.display());
            return;
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
