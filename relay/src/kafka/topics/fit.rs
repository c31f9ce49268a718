//! What the topics of an instance must be, and what those that are there are instead. Without I/O.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::kafka::client::longest_record;

/// Partitions of [`KafkaSection::associations_topic`] and [`KafkaSection::held_topic`] when a relay
/// creates them: clients are spread over them by their identity.
///
/// [`KafkaSection::associations_topic`]: crate::config::KafkaSection::associations_topic
/// [`KafkaSection::held_topic`]: crate::config::KafkaSection::held_topic
const IDENTITY_PARTITIONS: i32 = 4;
/// `message.max.bytes` of a broker that nobody has configured.
const DEFAULT_MAX_MESSAGE_BYTES: u64 = 1_048_588;
/// Records of the uplink and the downlink should be kept for longer: a relay or a server may be away
/// for so long.
const LEAST_RETENTION_MS: u64 = 3_600_000;
/// Held replies are kept for so long when a relay makes their topic, or for as long as they may wait. A
/// broker may keep other records for less.
const HELD_RETENTION_MS: u64 = 7 * 86_400_000;
/// From so many replicas on, one that is away need not stop the writers, and should not be the only one
/// that has a record.
const SEVERAL_REPLICAS: usize = 3;

/// Whose clock a record's time is by. The broker's: a relay whose clock is wrong must neither be refused
/// for it (`message.timestamp.after.max.ms`) nor have its records deleted at once.
const BROKERS_TIME: (&str, &str) = (TIMESTAMP_TYPE, "LogAppendTime");
/// Kafka's name of it.
pub(crate) const TIMESTAMP_TYPE: &str = "message.timestamp.type";

/// The last record of each key is what counts (`cleanup.policy`, Kafka's topic configuration). A
/// tombstone stays for a day, so that who reads meanwhile sees it.
const COMPACTED: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("delete.retention.ms", "86400000"),
    ("segment.ms", "3600000"),
    ("min.cleanable.dirty.ratio", "0.1"),
    BROKERS_TIME,
];
const LOG: &[(&str, &str)] = &[("cleanup.policy", "delete"), BROKERS_TIME];

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Uplink,
    Downlink,
    Registry,
    Associations,
    Held,
    DeadLetter,
}

impl Role {
    const fn is_compacted(self) -> bool {
        matches!(self, Self::Registry | Self::Associations)
    }
}

/// What a topic must be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    role: Role,
    pub(crate) partitions: i32,
    /// Whether partitions are added to one that has fewer. Not where the partition is the hash of a
    /// key.
    pub(crate) grows: bool,
    /// -1: as the brokers have it.
    pub(crate) replication: i32,
    /// Its records must be kept for longer.
    retention_ms: u64,
    /// It must take records of so many bytes; 0: any topic takes them.
    record_bytes: u64,
}

impl Wanted {
    /// All topics of an instance.
    pub(crate) fn all(config: &Config) -> Vec<Self> {
        let kafka = &config.kafka;
        let uplink = i32::try_from(config.partitions()).expect("partitions are u16");
        let downlink = i32::from(config.relay.id) + 1;
        let record_bytes = u64::from(longest_record(config));
        let reply_ms = u64::from(config.relay.reply_timeout_ms).max(LEAST_RETENTION_MS);
        let server_ms = u64::from(config.registry.forget_ms).max(LEAST_RETENTION_MS);
        let held_ms = config.hold.max_age_ms.saturating_mul(2);
        [
            (Role::Uplink, kafka.uplink_topic(), uplink, true, server_ms, record_bytes),
            (Role::Downlink, kafka.downlink_topic(), downlink, true, reply_ms, record_bytes),
            (Role::Registry, kafka.registry_topic(), 1, false, 0, 0),
            (Role::Associations, kafka.associations_topic(), IDENTITY_PARTITIONS, false, 0, 0),
            (Role::Held, kafka.held_topic(), IDENTITY_PARTITIONS, false, held_ms, record_bytes),
            (Role::DeadLetter, kafka.deadletter_topic(), 1, false, 0, record_bytes),
        ]
        .into_iter()
        .map(|(role, name, partitions, grows, retention_ms, record_bytes)| Self {
            name,
            role,
            partitions,
            grows,
            replication: kafka.replication,
            retention_ms,
            record_bytes,
        })
        .collect()
    }

    /// Partitions without which the relay does not run.
    pub(super) const fn least(&self) -> i32 {
        if self.grows { self.partitions } else { 1 }
    }

    /// Kafka's properties of one that is created.
    pub(crate) fn properties(&self) -> Vec<(&'static str, String)> {
        let of_kind = if self.role.is_compacted() { COMPACTED } else { LOG };
        let mut properties: Vec<_> =
            of_kind.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        if self.role == Role::Held {
            properties.push(("retention.ms", self.retention_ms.max(HELD_RETENTION_MS).to_string()));
        }
        if self.record_bytes > DEFAULT_MAX_MESSAGE_BYTES {
            properties.push(("max.message.bytes", self.record_bytes.to_string()));
        }
        properties
    }
}

/// A topic as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// For each partition, how many replicas it has.
    pub(crate) replicas: Vec<usize>,
    /// Its configuration; none if the relay may not look at it.
    pub(crate) settings: Option<BTreeMap<String, String>>,
}

impl Found {
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref()?.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.setting(name)?.parse().ok()
    }
}

/// Something about a topic that is not as the relay would have made it, and matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which topic.
    pub topic: String,
    /// Which property of it, by Kafka's name; or `partitions`, or `replicas`.
    pub setting: String,
    /// What it is.
    pub found: String,
    /// What it should be.
    pub wanted: String,
    /// What comes of it.
    pub why: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, setting, found, wanted, why } = self;
        write!(f, "topic {topic}: {setting} is {found} and should be {wanted}: {why}")
    }
}

/// What matters of how a topic differs from what it must be.
pub(crate) fn compare(wanted: &Wanted, found: &Found) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut differs = |setting: &str, found: String, right: String, why: &str| {
        let (topic, setting, why) = (wanted.name.clone(), setting.to_owned(), why.to_owned());
        differences.push(Difference { topic, setting, found, wanted: right, why });
    };
    let partitions = i32::try_from(found.replicas.len()).unwrap_or(i32::MAX);
    if partitions < wanted.partitions || (wanted.role == Role::Registry && partitions != 1) {
        let why = match wanted.role {
            Role::Registry => "relays agree by its order; delete it, and a relay creates it again",
            Role::Uplink | Role::Downlink => "`relay run` adds what is missing",
            _ => {
                "all clients share the partitions that exist; recreate the topic only while it is \
                 empty, because a client's partition is the hash of its name"
            }
        };
        differs("partitions", partitions.to_string(), wanted.partitions.to_string(), why);
    }
    let fewest = found.replicas.iter().copied().min().unwrap_or_default();
    if let Ok(replication) = usize::try_from(wanted.replication)
        && found.replicas.iter().any(|replicas| *replicas != replication)
    {
        let why = "kafka.replication applies to topics that the relay creates; \
                   kafka-reassign-partitions.sh changes an existing one";
        differs("replicas", fewest.to_string(), replication.to_string(), why);
    }
    if found.settings.is_none() {
        let why = "the relay may not read its configuration (DESCRIBE_CONFIGS), so the rest is \
                   not compared";
        differs("configuration", "not told".to_owned(), "described".to_owned(), why);
        return differences;
    }
    compare_settings(wanted, found, fewest, differs);
    differences
}

fn compare_settings(
    wanted: &Wanted,
    found: &Found,
    replicas: usize,
    mut differs: impl FnMut(&str, String, String, &str),
) {
    let text = |name| found.setting(name).unwrap_or_default().to_owned();
    let policy = if wanted.role.is_compacted() { "compact" } else { "delete" };
    if found.setting("cleanup.policy").is_some_and(|there| there != policy) {
        let why = if wanted.role.is_compacted() {
            "Kafka deletes what is older than retention.ms, although it is still valid"
        } else {
            "of several records with one key, only the last would stay"
        };
        differs("cleanup.policy", text("cleanup.policy"), policy.to_owned(), why);
    }
    let (name, brokers) = BROKERS_TIME;
    if found.setting(name).is_some_and(|there| there != brokers) {
        let why = "the relay's clock decides: records are refused if it is ahead of the broker's by \
                   more than message.timestamp.after.max.ms, and deleted early if it is behind";
        differs(name, text(name), brokers.to_owned(), why);
    }
    if let Some(least) = found.number("min.insync.replicas") {
        let name = "min.insync.replicas";
        let there = i64::try_from(replicas).unwrap_or(i64::MAX);
        if least > there {
            let why = "this is more than there are replicas: no record is ever acknowledged";
            differs(name, least.to_string(), format!("at most {there}"), why);
        } else if least == 1 && replicas >= SEVERAL_REPLICAS {
            let why = "a record is acknowledged while a single broker has it, and is lost with that \
                 broker";
            differs(name, "1".to_owned(), (replicas / 2 + 1).to_string(), why);
        }
    }
    if found.setting("unclean.leader.election.enable") == Some("true") {
        let why = "a broker that lacks acknowledged records may become leader, and the records \
            are lost";
        differs("unclean.leader.election.enable", "true".to_owned(), "false".to_owned(), why);
    }
    if wanted.retention_ms > 0 {
        let least = i64::try_from(wanted.retention_ms).unwrap_or(i64::MAX);
        if found.number("retention.ms").is_some_and(|there| (0..least).contains(&there)) {
            let why = match wanted.role {
                Role::Held => "replies wait for twice hold.max_age_ms",
                Role::Uplink => "messages wait for a server that is away (registry.forget_ms)",
                _ => "replies wait for clients that read slowly, and for a relay that is away",
            };
            differs("retention.ms", text("retention.ms"), format!("at least {least}"), why);
        }
        if found.number("retention.bytes").is_some_and(|there| there >= 0) {
            let why = "Kafka deletes the oldest records beyond this, whether they were read or not";
            differs("retention.bytes", text("retention.bytes"), "-1".to_owned(), why);
        }
    }
    // Of a dead letter the beginning is enough.
    let is_whole = wanted.role != Role::DeadLetter;
    let needs = i64::try_from(wanted.record_bytes).unwrap_or(i64::MAX);
    if is_whole && found.number("max.message.bytes").is_some_and(|there| there < needs) {
        let why = match wanted.role {
            Role::Uplink => {
                "the longest max_message_bytes of a service, with key and headers, needs this \
                 much: longer messages are refused, and their connections closed"
            }
            _ => {
                "the longest max_message_bytes of a service, with key and headers, needs this \
                 much: longer replies are refused"
            }
        };
        differs("max.message.bytes", text("max.message.bytes"), format!("at least {needs}"), why);
    }
}

#[cfg(test)]
mod tests;
