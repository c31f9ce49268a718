//! The configuration file: one instance, its gateway, its relay, its services and their servers.
//!
//! Everything is checked when it is read, and a mistake is reported with its place. Sample:
//! `docs/millrace.toml`.

mod absence;
mod registry;
mod service;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::codec::{Otherwise, ProtocolKind};
use crate::model::Partition;

pub use absence::{Absence, Then};
pub use registry::RegistrySection;
pub use service::{Server, Service};

/// Longest instance name: `NAME-gw` must fit an interface name (15 bytes).
const MAX_INSTANCE_LENGTH: usize = 12;
/// Longest `kafka.topic_prefix`: Kafka's names of topics have at most 249 characters.
const MAX_PREFIX_LENGTH: usize = 200;
/// Most worker threads; the token of a delivery report has 7 bits for them.
pub const MAX_WORKERS: usize = 128;
/// Most connections of a worker; the token of a delivery report has 22 bits for them.
pub const MAX_CONNECTIONS: u32 = 1 << 22;
/// Largest message in bytes; above it librdkafka wants other limits at the brokers too.
pub const MAX_MESSAGE_BYTES: u32 = 16 << 20;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {path}: {source}; name an existing file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not TOML, or a key or value that does not belong there.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// Well-formed, but it makes no sense.
    #[error("{key}: {problem}")]
    Invalid {
        /// Which setting.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

fn invalid(key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key: key.into(), problem: problem.into() }
}

/// A whole configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The XDP side.
    pub gateway: GatewaySection,
    /// The process.
    #[serde(default)]
    pub relay: RelaySection,
    /// The cluster.
    #[serde(default)]
    pub kafka: KafkaSection,
    /// Servers that register.
    #[serde(default)]
    pub registry: RegistrySection,
    /// Replies for clients who are away.
    #[serde(default)]
    pub hold: HoldSection,
    /// What is diverted, and to whom.
    #[serde(rename = "service")]
    pub services: Vec<Service>,
}

/// The XDP side.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySection {
    /// Name of everything the instance puts on the host.
    #[serde(default = "default_instance")]
    pub instance: String,
    /// Client-facing network devices.
    pub devices: Vec<String>,
    /// Where on these devices the program may run.
    #[serde(default)]
    pub xdp: XdpPolicy,
    /// A relay that has not stamped its heartbeat for so long gets no new connections.
    #[serde(default = "default_heartbeat_timeout_ms")]
    pub heartbeat_timeout_ms: u32,
    /// Which packets a `divert` rule diverts.
    #[serde(default)]
    pub mode: Mode,
    /// File of steering rules, relative to the configuration; without one, every service's
    /// destinations are diverted at its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<PathBuf>,
}

impl GatewaySection {
    /// An instance on these devices, everything else with its default.
    pub fn new(instance: impl Into<String>, devices: &[&str]) -> Self {
        Self {
            instance: instance.into(),
            devices: devices.iter().map(ToString::to_string).collect(),
            xdp: XdpPolicy::default(),
            heartbeat_timeout_ms: default_heartbeat_timeout_ms(),
            mode: Mode::default(),
            rules: None,
        }
    }
}

/// Which packets a `divert` rule diverts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Those of connections that begin after the rule is in force, until they end.
    #[default]
    New,
    /// All that it covers: by rule alone, without a table of flows.
    All,
}

impl Mode {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::All => "all",
        }
    }
}

/// Where the program may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpPolicy {
    /// In the drivers only: a device whose driver cannot is refused.
    #[default]
    Native,
    /// In the kernel's stack: slower, with any device.
    Generic,
    /// In the driver where it can, else in the kernel's stack, which `load` and `status` say.
    NativeOrGeneric,
}

/// The process.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelaySection {
    /// This relay's number: its partition of the downlink.
    pub id: u16,
    /// Worker threads; 0: one for each processor.
    pub workers: usize,
    /// Most connections of one worker; one more is closed at once.
    pub max_connections: u32,
    /// Receive buffers of one worker, a power of two.
    pub receive_buffers: u16,
    /// Size of one receive buffer in bytes.
    pub receive_buffer_bytes: u32,
    /// How long a busy worker collects what the kernel has for it before it looks. Microseconds; a
    /// bound on the delay it adds; 0: not at all. Needs Linux 6.12, and has no effect before.
    pub batch_wait_us: u32,
    /// Replies waiting for one client, in bytes: above it the client is not read from.
    pub reply_pause_bytes: usize,
    /// Replies waiting for one client, in bytes: above it further ones stay in Kafka until the client
    /// has read on.
    pub reply_limit_bytes: usize,
    /// Replies that stay in Kafka for one client, in bytes and 128 more for each: above it the
    /// connection is closed. 0: above `reply_limit_bytes`.
    pub reply_backlog_bytes: usize,
    /// All that is kept in memory for one connection (what came in pieces, what was received while it
    /// was not read from, replies that wait), in bytes: above it the connection is closed. The other
    /// bounds come first with their defaults: this one holds whatever they are set to.
    pub max_connection_bytes: usize,
    /// How long a client may leave a reply unread before its connection is closed: the downlink's
    /// offset is not committed past it.
    pub reply_timeout_ms: u32,
    /// How long replies are still sent to a client that has ended its side.
    pub half_close_ms: u32,
    /// How long a stop may take in all, whatever is the matter. The last part of it, at most 6 s, is kept
    /// for what follows the messages; what Kafka has not acknowledged until then is given up and counted.
    /// A relay that has not ended by itself when all of it is over ends all the same, says what it has
    /// waited for, and fails.
    pub stop_timeout_ms: u32,
}

impl Default for RelaySection {
    fn default() -> Self {
        Self {
            id: 0,
            workers: 0,
            max_connections: 8192,
            receive_buffers: 1024,
            receive_buffer_bytes: 16384,
            batch_wait_us: 100,
            reply_pause_bytes: 256 << 10,
            reply_limit_bytes: 1 << 20,
            reply_backlog_bytes: 64 << 20,
            max_connection_bytes: 16 << 20,
            reply_timeout_ms: 60_000,
            half_close_ms: 2000,
            stop_timeout_ms: 30_000,
        }
    }
}

/// The cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSection {
    /// Bootstrap brokers, `HOST:PORT` with commas between.
    pub brokers: String,
    /// Put before `uplink` and `downlink`.
    pub topic_prefix: String,
    /// How long the producer waits for a batch to fill. Microseconds; a floor under latency.
    pub linger_us: u32,
    /// Unacknowledged bytes of one partition: of messages, above which its clients are not read from, and
    /// of `open` and `close` records, above which connections that would begin are refused. Each record
    /// counts 512 beside its own.
    pub partition_in_flight_bytes: usize,
    /// Partitions of the uplink, at least: those that no declared server has are leased to servers
    /// that register.
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
            linger_us: 500,
            partition_in_flight_bytes: 16 << 20,
            uplink_partitions: 0,
            replication: -1,
            properties: HashMap::new(),
        }
    }
}

impl KafkaSection {
    /// Client to server: one partition a server.
    pub fn uplink_topic(&self) -> String {
        format!("{}uplink", self.topic_prefix)
    }

    /// Server to client: one partition a relay.
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

    /// The consumer group whose member with the registry's partition coordinates.
    pub fn coordinator_group(&self) -> String {
        format!("{}coordinator", self.topic_prefix)
    }

    /// The consumer group under which the reader of an uplink partition commits its position.
    pub fn server_group(&self, partition: Partition) -> String {
        format!("{}server-{partition}", self.topic_prefix)
    }
}

/// Replies for clients who are away: those of services whose clients have an identity that outlives
/// their connection. What is beyond a bound becomes a dead letter.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HoldSection {
    /// How long a reply waits. Kafka must keep the records of the topic for longer than twice that.
    pub max_age_ms: u64,
    /// Replies that wait for one client.
    pub max_per_client: u32,
    /// Replies that wait for all clients, in bytes of their values and 128 for each.
    pub max_bytes: u64,
}

impl Default for HoldSection {
    fn default() -> Self {
        Self { max_age_ms: 86_400_000, max_per_client: 10_000, max_bytes: 256 << 20 }
    }
}

fn default_instance() -> String {
    "millrace".to_owned()
}

const fn default_heartbeat_timeout_ms() -> u32 {
    2000
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: Self = toml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        if let Some(rules) = &mut config.gateway.rules {
            *rules = path.parent().unwrap_or(Path::new("")).join(&*rules);
        }
        for service in &mut config.services {
            if let Some(mqtt) = &mut service.mqtt {
                mqtt.load(path.parent().unwrap_or(Path::new(""))).map_err(|problem| {
                    invalid(format!("service `{}`: mqtt.passwords", service.name), problem)
                })?;
            }
        }
        config.check()?;
        Ok(config)
    }

    /// What a type cannot say.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_gateway()?;
        self.check_relay()?;
        self.check_kafka()?;
        self.registry.check()?;
        self.check_services()
    }

    fn check_gateway(&self) -> Result<(), ConfigError> {
        let instance = &self.gateway.instance;
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if instance.is_empty()
            || instance.len() > MAX_INSTANCE_LENGTH
            || !instance.chars().all(allowed)
            || instance.starts_with('-')
        {
            return Err(invalid(
                "gateway.instance",
                format!(
                    "`{instance}` must be 1 to {MAX_INSTANCE_LENGTH} of a-z, 0-9 and `-`, not starting with `-`"
                ),
            ));
        }
        if self.gateway.devices.is_empty() {
            return Err(invalid("gateway.devices", "name at least one client-facing device"));
        }
        if let Some(bad) = self
            .gateway
            .devices
            .iter()
            .find(|name| name.is_empty() || name.len() > 15 || name.contains(['/', ' ']))
        {
            return Err(invalid("gateway.devices", format!("`{bad}` is not an interface name")));
        }
        let mut devices = HashSet::new();
        if let Some(twice) = self.gateway.devices.iter().find(|name| !devices.insert(*name)) {
            return Err(invalid("gateway.devices", format!("`{twice}` is named twice")));
        }
        if self.gateway.heartbeat_timeout_ms < 100 {
            return Err(invalid("gateway.heartbeat_timeout_ms", "must be at least 100"));
        }
        Ok(())
    }

    fn check_relay(&self) -> Result<(), ConfigError> {
        let relay = &self.relay;
        if relay.workers > MAX_WORKERS {
            return Err(invalid("relay.workers", format!("at most {MAX_WORKERS}")));
        }
        if relay.max_connections == 0 || relay.max_connections > MAX_CONNECTIONS {
            return Err(invalid("relay.max_connections", format!("from 1 to {MAX_CONNECTIONS}")));
        }
        if !relay.receive_buffers.is_power_of_two() || relay.receive_buffers > 32_768 {
            return Err(invalid("relay.receive_buffers", "a power of two up to 32768"));
        }
        if !(64..=1 << 20).contains(&relay.receive_buffer_bytes) {
            return Err(invalid("relay.receive_buffer_bytes", "from 64 to 1048576"));
        }
        if relay.batch_wait_us > 100_000 {
            return Err(invalid("relay.batch_wait_us", "at most 100000"));
        }
        if relay.stop_timeout_ms < 1000 {
            return Err(invalid("relay.stop_timeout_ms", "at least 1000"));
        }
        if relay.reply_timeout_ms < 1000 {
            return Err(invalid("relay.reply_timeout_ms", "at least 1000"));
        }
        if relay.reply_pause_bytes >= relay.reply_limit_bytes {
            return Err(invalid(
                "relay.reply_pause_bytes",
                "must be below relay.reply_limit_bytes",
            ));
        }
        if relay.max_connection_bytes < relay.reply_limit_bytes {
            return Err(invalid(
                "relay.max_connection_bytes",
                "must not be below relay.reply_limit_bytes, which is a part of it",
            ));
        }
        Ok(())
    }

    fn check_kafka(&self) -> Result<(), ConfigError> {
        for broker in self.kafka.brokers.split(',') {
            if !broker.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
            }) {
                return Err(invalid("kafka.brokers", format!("`{broker}` is not HOST:PORT")));
            }
        }
        let is_legal = |character: char| {
            character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
        };
        let prefix = &self.kafka.topic_prefix;
        if prefix.len() > MAX_PREFIX_LENGTH || !prefix.chars().all(is_legal) {
            let problem = format!(
                "`{prefix}` must be up to {MAX_PREFIX_LENGTH} of a-z, A-Z, 0-9, `.`, `_` and `-`: it \
                 begins the names of topics"
            );
            return Err(invalid("kafka.topic_prefix", problem));
        }
        if self.kafka.partition_in_flight_bytes < 1 << 16 {
            return Err(invalid("kafka.partition_in_flight_bytes", "at least 65536"));
        }
        if !matches!(self.kafka.replication, -1 | 1..=32_767) {
            return Err(invalid("kafka.replication", "-1, or from 1 to 32767"));
        }
        Ok(())
    }

    fn check_services(&self) -> Result<(), ConfigError> {
        if self.services.is_empty() {
            return Err(invalid("service", "there is none; add a [[service]]"));
        }
        let (mut names, mut ports) = (HashSet::new(), HashSet::new());
        let (mut servers, mut partitions) = (HashSet::new(), HashSet::new());
        for service in &self.services {
            let key = format!("service `{}`", service.name);
            if service.name.is_empty() || !names.insert(&service.name) {
                return Err(invalid(key, "needs a name that no other service has"));
            }
            if service.name.contains('/') {
                let problem = "a name has no `/`: it ends there in the keys of records";
                return Err(invalid(key, problem));
            }
            if service.port == 0 {
                return Err(invalid(key, "needs a port from 1 to 65535"));
            }
            if !ports.insert(service.port) {
                let problem = format!(
                    "port {} is another service's; each has a port of its own",
                    service.port
                );
                return Err(invalid(key, problem));
            }
            if service.destinations.is_empty() && self.gateway.rules.is_none() {
                let problem = "needs at least one destination prefix, or gateway.rules a file";
                return Err(invalid(key, problem));
            }
            if !(1..=MAX_MESSAGE_BYTES).contains(&service.max_message_bytes) {
                return Err(invalid(
                    key,
                    format!("max_message_bytes goes from 1 to {MAX_MESSAGE_BYTES}"),
                ));
            }
            service.check_protocol().map_err(|problem| invalid(key.clone(), problem))?;
            if service.servers.is_empty() && self.kafka.uplink_partitions == 0 {
                let problem = "needs at least one [[service.server]], or kafka.uplink_partitions \
                               for servers that register";
                return Err(invalid(key, problem));
            }
            for server in &service.servers {
                if server.id.is_empty() || !servers.insert(&server.id) {
                    let problem = format!(
                        "server `{}`: needs an id that no other server has, of whatever service",
                        server.id
                    );
                    return Err(invalid(key, problem));
                }
                if !partitions.insert(server.partition) {
                    return Err(invalid(
                        key,
                        format!(
                            "server `{}`: partition {} is taken; two servers must not share one",
                            server.id, server.partition
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether connections of some service are handed on to the server that the client addressed.
    pub fn hands_on(&self) -> bool {
        self.services.iter().any(|service| {
            service.protocol == ProtocolKind::Auto && service.auto.otherwise == Otherwise::HandOn
        })
    }

    /// Partitions that the uplink needs: one more than the highest that a server has.
    pub fn partitions(&self) -> usize {
        let servers = self.services.iter().flat_map(|service| &service.servers);
        let declared = servers.map(|server| server.partition.index() + 1).max().unwrap_or_default();
        declared.max(usize::from(self.kafka.uplink_partitions))
    }

    /// Directory of run-time files: `/run/millrace/INSTANCE`; for a relay without gateway that is
    /// not root's, `$XDG_RUNTIME_DIR/millrace/INSTANCE` (XDG Base Directory Specification).
    pub fn run_directory(&self) -> PathBuf {
        let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|own| !own.is_empty());
        let base = match own {
            Some(own) if !rustix::process::geteuid().is_root() => PathBuf::from(own),
            _ => PathBuf::from("/run"),
        };
        base.join("millrace").join(&self.gateway.instance)
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.run_directory().join("relay.sock")
    }

    /// Directory of the pins: `/sys/fs/bpf/INSTANCE`.
    pub fn pin_directory(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.gateway.instance)
    }

    /// The relay namespace's file.
    pub fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.gateway.instance)
    }
}

#[cfg(test)]
mod tests;
