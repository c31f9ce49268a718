//! Measures how long messages have waited for their servers, and whether their topic will soon delete them.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::kafka::client::client_config;
use crate::kafka::{BrokersClock, LogContext, brokers_clock, committed, observer, watermarks};
use crate::model::Partition;
use crate::registry::RegistryObserver;
use crate::route::ServerState;

use super::RunError;

/// Time in which each server is measured once.
const ROUND: Duration = Duration::from_secs(30);
/// Least time between two measurements, because each needs a Kafka client.
const PAUSE: Duration = Duration::from_secs(1);
/// Timeout of a query to the cluster.
const TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// Messages that will be deleted within this time cause a warning. If the topic keeps them for less than
/// twice this time, the last half of their time counts.
const SOON_MS: u64 = 86_400_000;

/// Messages that wait for a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Messages that its group has not committed.
    pub messages: u64,
    /// Age of the oldest, in milliseconds.
    pub oldest_ms: u64,
    /// How long their topic keeps them (`retention.ms`). Null: without limit, or not known.
    pub retention_ms: Option<u64>,
}

impl Waiting {
    /// Milliseconds until the oldest may be deleted, if that is soon.
    pub fn deleted_in_ms(&self) -> Option<u64> {
        let retention_ms = self.retention_ms?;
        let left = retention_ms.saturating_sub(self.oldest_ms);
        (self.messages > 0 && left <= SOON_MS.min(retention_ms / 2)).then_some(left)
    }
}

type Seen = Arc<Mutex<BTreeMap<String, Waiting>>>;

/// The last measurements, by server. A separate thread measures as long as this exists.
#[derive(Clone, Debug)]
pub(super) struct WaitingWatch {
    seen: Seen,
    _alive: mpsc::Sender<()>,
}

impl WaitingWatch {
    /// Starts the thread.
    pub(super) fn start(config: &Config, registry: RegistryObserver) -> Result<Self, RunError> {
        let (alive, ended) = mpsc::channel();
        let seen = Seen::default();
        let looker = Looker { config: config.clone(), registry, seen: seen.clone() };
        std::thread::Builder::new()
            .name("waiting".to_owned())
            .spawn(move || looker.run(&ended))
            .map_err(RunError::io("start a thread"))?;
        Ok(Self { seen, _alive: alive })
    }

    /// The servers that messages wait for.
    pub(super) fn seen(&self) -> BTreeMap<String, Waiting> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Looker {
    config: Config,
    registry: RegistryObserver,
    seen: Seen,
}

impl Looker {
    fn run(&self, ended: &mpsc::Receiver<()>) {
        loop {
            let servers = self.servers();
            let retention_ms = self.retention_ms();
            let pause = ROUND / u32::try_from(servers.len()).unwrap_or(u32::MAX).max(1);
            self.seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|name, _| servers.contains_key(name));
            if servers.is_empty() && has_ended(ended, ROUND) {
                return;
            }
            for (name, partition) in servers {
                match self.look(partition) {
                    Ok((messages, oldest_ms)) => {
                        self.see(name, Waiting { messages, oldest_ms, retention_ms });
                    }
                    Err(error) => tracing::debug!(
                        %error, name, "cannot determine the number of waiting messages"
                    ),
                }
                if has_ended(ended, pause.max(PAUSE)) {
                    return;
                }
            }
        }
    }

    fn see(&self, name: String, waiting: Waiting) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.get(&name).and_then(Waiting::deleted_in_ms);
        if let (None, Some(left_ms)) = (before, waiting.deleted_in_ms()) {
            let Waiting { messages, oldest_ms, retention_ms } = waiting;
            tracing::warn!(
                server = name,
                messages,
                oldest_ms,
                retention_ms,
                left_ms,
                "messages wait for a server, and the uplink's retention will soon delete the oldest: \
                 bring the server back, or raise the topic's retention.ms"
            );
        }
        seen.insert(name, waiting);
    }

    fn servers(&self) -> BTreeMap<String, Partition> {
        let declared = self.config.services.iter().flat_map(|service| &service.servers);
        let declared = declared.map(|server| (server.id.clone(), server.partition));
        let registered = self.registry.status().servers.into_iter();
        let registered = registered.filter(|server| server.state != ServerState::Gone);
        declared.chain(registered.map(|server| (server.id, server.partition))).collect()
    }

    /// Messages that wait in a partition, and the age of the oldest.
    fn look(&self, partition: Partition) -> KafkaResult<(u64, u64)> {
        let kafka = &self.config.kafka;
        let client = observer(kafka, &kafka.server_group(partition))?;
        let (topic, number) = (kafka.uplink_topic(), i32::from(partition.0));
        let (oldest, end) = watermarks(client.client(), &topic, number, TIMEOUT)?;
        let committed = committed(&client, &topic, number, TIMEOUT)?;
        let first = committed.unwrap_or(oldest).max(oldest);
        if first >= end {
            return Ok((0, 0));
        }
        let unix_ms = time_of(&client, (&topic, number), first)?;
        Ok(((end - first).unsigned_abs(), age_ms(unix_ms, brokers_clock())))
    }

    fn retention_ms(&self) -> Option<u64> {
        let topic = self.config.kafka.uplink_topic();
        let kafka = &self.config.kafka;
        let admin: AdminClient<LogContext> =
            client_config(kafka).create_with_context(LogContext::new(kafka)).ok()?;
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().ok()?;
        let topics = [ResourceSpecifier::Topic(&topic)];
        let told = runtime.block_on(async {
            tokio::time::timeout(2 * TIMEOUT, admin.describe_configs(&topics, &options)).await
        });
        let resource = told.ok()?.ok()?.into_iter().next()?.ok()?;
        // -1: without limit.
        resource.get("retention.ms")?.value.as_ref()?.parse().ok()
    }
}

/// The age of a record by the broker's time, as retention computes it. 0 if the record cannot be read, or is
/// from the future.
fn age_ms(unix_ms: Option<i64>, clock: &BrokersClock) -> u64 {
    let age = unix_ms.map_or(0, |unix_ms| clock.unix_ms().saturating_sub(unix_ms));
    u64::try_from(age).unwrap_or_default()
}

/// Waits for this long. True if nobody wants the measurements any more.
fn has_ended(ended: &mpsc::Receiver<()>, pause: Duration) -> bool {
    ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout)
}

/// The time of a record in Unix milliseconds, if it arrives.
fn time_of(
    client: &BaseConsumer<LogContext>,
    (topic, partition): (&str, i32),
    offset: i64,
) -> KafkaResult<Option<i64>> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    client.assign(&list)?;
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        if let Some(Ok(record)) = client.poll(POLL) {
            return Ok(record.timestamp().to_millis());
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::own_unix_ms;

    #[test]
    fn a_message_has_waited_for_as_long_as_the_broker_says_whatever_this_host_s_clock() {
        const DAY: i64 = 86_400_000;
        let (clock, now) = (BrokersClock::new(), own_unix_ms());
        let broker = now - DAY;
        clock.learn(now, broker, now, Instant::now());
        // Within the time of the test, by the clock of a host that is a day ahead.
        assert!(age_ms(Some(broker - 1000), &clock) < 600_000);
        assert!(age_ms(Some(broker - DAY), &clock) >= DAY.unsigned_abs());
        assert_eq!(age_ms(Some(broker + DAY / 2), &clock), 0, "younger than now");
        assert_eq!(age_ms(None, &clock), 0);
    }

    #[test]
    fn what_will_be_deleted_soon_is_told() {
        let deleted_in = |messages, oldest_ms, retention_ms| {
            Waiting { messages, oldest_ms, retention_ms }.deleted_in_ms()
        };
        let week = 7 * SOON_MS;
        assert_eq!(deleted_in(1, week - SOON_MS - 1, Some(week)), None);
        assert_eq!(deleted_in(1, week - SOON_MS, Some(week)), Some(SOON_MS));
        assert_eq!(deleted_in(1, week + 1, Some(week)), Some(0), "it may be by now");
        assert_eq!(deleted_in(0, week, Some(week)), None, "nothing waits");
        assert_eq!(deleted_in(1, week, None), None, "it is kept for ever");
        // Of a topic that keeps messages for a day, none is old when it comes.
        assert_eq!(deleted_in(1, 0, Some(SOON_MS)), None);
        assert_eq!(deleted_in(1, SOON_MS / 2, Some(SOON_MS)), Some(SOON_MS / 2));
    }
}
