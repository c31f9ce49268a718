//! `[kafka]`: the cluster, the names of topics and groups in it, and what writes to the uplink.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::security::{self, SaslSection, TlsSection};
use super::{ConfigError, invalid};
use crate::model::Partition;

/// Longest `kafka.topic_prefix`: a topic's name in Kafka has at most 249 characters.
const MAX_PREFIX_LENGTH: usize = 200;

/// The cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSection {
    /// Bootstrap brokers, `HOST:PORT`, separated by commas.
    pub brokers: String,
    /// Prefix of the names of all topics and groups.
    pub topic_prefix: String,
    /// Encryption; without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSection>,
    /// Who the relay is to the cluster; without it, nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl: Option<SaslSection>,
    /// How long the producer waits for a batch to fill; a lower bound of the latency. Microseconds. By
    /// default 500 with `librdkafka`, and 0 with `millrace`, whose batches fill while those before them are
    /// on their way.
    pub linger_us: Option<u32>,
    /// What writes messages to the uplink. Replies, and all other traffic with Kafka, are librdkafka's.
    pub engine: UplinkEngine,
    /// Limit of unacknowledged bytes of one partition. Beyond it in messages, the partition's clients are
    /// not read from; beyond it in `open` and `close` records, new connections are refused. Each record
    /// counts 512 bytes in addition to its own.
    pub partition_in_flight_bytes: usize,
    /// Minimum number of partitions of the uplink. Those that no declared server has are leased to
    /// servers that register.
    pub uplink_partitions: u16,
    /// Replication factor of topics that the relay creates; -1: the broker's default.
    pub replication: i32,
    /// Further librdkafka properties, by their own names.
    pub properties: HashMap<String, String>,
}

impl Default for KafkaSection {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".to_owned(),
            topic_prefix: "millrace.".to_owned(),
            tls: None,
            sasl: None,
            linger_us: None,
            engine: UplinkEngine::default(),
            partition_in_flight_bytes: 16 << 20,
            uplink_partitions: 0,
            replication: -1,
            properties: HashMap::new(),
        }
    }
}

/// The parts of HOST:PORT.
fn host_and_port(broker: &str) -> Option<(&str, u16)> {
    let (host, port) = broker.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    (!host.is_empty()).then_some((host, port))
}

/// What writes messages to the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkEngine {
    /// librdkafka.
    #[default]
    Librdkafka,
    /// The relay itself: less processor time and less latency.
    Millrace,
}

impl KafkaSection {
    /// How long a batch waits for more records. Microseconds.
    pub fn linger_us(&self) -> u32 {
        self.linger_us.unwrap_or(match self.engine {
            UplinkEngine::Librdkafka => 500,
            UplinkEngine::Millrace => 0,
        })
    }

    /// Refuses what Kafka would refuse, or what would silently not apply.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for broker in self.brokers.split(',') {
            if host_and_port(broker).is_none() {
                return Err(invalid("kafka.brokers", format!("`{broker}` is not HOST:PORT")));
            }
        }
        let is_legal = |character: char| {
            character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
        };
        let prefix = &self.topic_prefix;
        if prefix.len() > MAX_PREFIX_LENGTH || !prefix.chars().all(is_legal) {
            let problem = format!(
                "`{prefix}` must have at most {MAX_PREFIX_LENGTH} of a-z, A-Z, 0-9, `.`, `_` and `-`: the \
                 names of topics begin with it"
            );
            return Err(invalid("kafka.topic_prefix", problem));
        }
        security::check(self.tls.as_ref(), self.sasl.as_ref(), &self.properties)
            .map_err(|(key, problem)| invalid(key, problem))?;
        self.check_engine().map_err(|problem| invalid("kafka.properties", problem))
    }

    /// No property of librdkafka's that would silently not apply to the uplink.
    fn check_engine(&self) -> Result<(), String> {
        /// These the relay's own producer has too, or they are the default that it knows.
        const BOTH: [&str; 2] = ["batch.size", "client.id"];
        /// What those begin with that concern librdkafka's consumers and its log.
        const OF_OTHERS: [&str; 17] = [
            "auto.",
            "check.crcs",
            "client.rack",
            "coordinator.",
            "debug",
            "enable.auto.",
            "enable.partition.eof",
            "fetch.",
            "group.",
            "heartbeat.",
            "isolation.level",
            "log",
            "max.partition.",
            "max.poll.",
            "partition.assignment.",
            "queued.",
            "session.",
        ];
        if self.engine != UplinkEngine::Millrace {
            return Ok(());
        }
        let is_plain = |name: &str, value: &str| {
            name == "security.protocol" && value.eq_ignore_ascii_case("plaintext")
        };
        let mut names: Vec<&str> = self
            .properties
            .iter()
            .filter(|(name, value)| !BOTH.contains(&&***name) && !is_plain(name, value))
            .map(|(name, _)| &**name)
            .filter(|name| !OF_OTHERS.iter().any(|of_others| name.starts_with(of_others)))
            .collect();
        names.sort_unstable();
        match names.first() {
            None => Ok(()),
            Some(name) if ["security.", "ssl.", "sasl."].iter().any(|of| name.starts_with(of)) => {
                Err(format!(
                    "`{name}` is librdkafka's, and would not apply to the uplink, which kafka.engine = \
                     \"millrace\" writes without it: say it in [kafka.tls] or [kafka.sasl]"
                ))
            }
            Some(name) => Err(format!(
                "`{name}` is librdkafka's, and would not apply to the uplink, which kafka.engine = \
                 \"millrace\" writes without it; compression needs kafka.engine = \"librdkafka\""
            )),
        }
    }

    /// Hosts and ports of the bootstrap brokers.
    pub fn bootstrap(&self) -> Vec<(String, u16)> {
        let each = self.brokers.split(',').filter_map(host_and_port);
        each.map(|(host, port)| (host.trim().to_owned(), port)).collect()
    }

    /// Client to server: one partition per server.
    pub fn uplink_topic(&self) -> String {
        format!("{}uplink", self.topic_prefix)
    }

    /// Server to client: one partition per relay.
    pub fn downlink_topic(&self) -> String {
        format!("{}downlink", self.topic_prefix)
    }

    /// Registrations and leases: one partition, whose order all relays agree on.
    pub fn registry_topic(&self) -> String {
        format!("{}registry", self.topic_prefix)
    }

    /// Client and server: the associations of all relays.
    pub fn associations_topic(&self) -> String {
        format!("{}associations", self.topic_prefix)
    }

    /// Replies for clients that are away.
    pub fn held_topic(&self) -> String {
        format!("{}held", self.topic_prefix)
    }

    /// What could not be delivered, and why.
    pub fn deadletter_topic(&self) -> String {
        format!("{}deadletter", self.topic_prefix)
    }

    /// The consumer group under which a relay commits its position in the downlink.
    pub fn relay_group(&self, relay: u16) -> String {
        format!("{}relay-{relay}", self.topic_prefix)
    }

    /// The consumer group that chooses the coordinator: the member with the registry's partition.
    pub fn coordinator_group(&self) -> String {
        format!("{}coordinator", self.topic_prefix)
    }

    /// The consumer group under which the reader of an uplink partition commits its position.
    pub fn server_group(&self, partition: Partition) -> String {
        format!("{}server-{partition}", self.topic_prefix)
    }
}
