//! The configuration file: one instance, its gateway, its relay, its services and their servers.
//!
//! Everything is checked when it is read, and a mistake is reported with its place. Sample:
//! `docs/millrace.toml`.

mod absence;
mod gateway;
mod hardware;
mod kafka;
mod metrics;
mod registry;
mod reverse_path;
mod security;
mod service;
pub mod settings;
mod sharing;
mod source;
mod sysctls;
mod tcp;

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use absence::{Absence, Then};
pub use gateway::{GatewaySection, Mode, XdpPolicy, Zones};
pub use hardware::HardwareAddress;
pub use kafka::{KafkaSection, UplinkEngine};
pub use metrics::{Listen, MetricsSection};
pub use registry::RegistrySection;
pub use reverse_path::ReversePath;
pub(crate) use security::properties as security_properties;
pub use security::{SaslSection, TlsSection};
pub use service::{Server, Service};
pub use sharing::Sharing;
pub use source::Source;
pub use sysctls::Sysctls;
pub use tcp::TcpSection;

/// Longest instance name: `NAME-gw` must fit an interface name (15 bytes).
const MAX_INSTANCE_LENGTH: usize = 12;
/// Maximum number of worker threads; the token of a delivery report has 7 bits for them.
pub const MAX_WORKERS: usize = 128;
/// Maximum number of connections of a worker; the token of a delivery report has 22 bits for them.
pub const MAX_CONNECTIONS: u32 = 1 << 22;
/// Largest message in bytes; beyond it, librdkafka needs other limits at the brokers too.
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
    /// Replies for clients that are away.
    #[serde(default)]
    pub hold: HoldSection,
    /// What is told to Prometheus.
    #[serde(default)]
    pub metrics: MetricsSection,
    /// What is diverted, and which servers it belongs to.
    #[serde(rename = "service")]
    pub services: Vec<Service>,
    /// The file that it was read from.
    #[serde(skip)]
    pub source: Source,
}

/// The process.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelaySection {
    /// This relay's number: its partition of the downlink.
    pub id: u16,
    /// Worker threads; 0: one per processor.
    pub workers: usize,
    /// Maximum number of connections of one worker. Behind a gateway, further ones take the ordinary path
    /// as soon as one worker has so many; what was on its way then is still accepted, up to a sixteenth
    /// more (16 at least). Otherwise a further one is closed at once.
    pub max_connections: u32,
    /// Number of receive buffers of one worker, a power of two.
    pub receive_buffers: u16,
    /// Size of one receive buffer in bytes.
    pub receive_buffer_bytes: u32,
    /// How long a busy worker lets the kernel collect completions before it looks, which bounds the
    /// delay that this adds. Microseconds; 0: no wait. Needs Linux 6.12; no effect on older kernels.
    pub batch_wait_us: u32,
    /// Bytes of replies that wait for one client, beyond which the client is not read from.
    pub reply_pause_bytes: usize,
    /// Bytes of replies that wait for one client, beyond which further replies stay in Kafka until the
    /// client has read on.
    pub reply_limit_bytes: usize,
    /// Bytes of replies that stay in Kafka for one client, plus 128 for each, beyond which the connection
    /// is closed. 0: it is closed beyond `reply_limit_bytes`.
    pub reply_backlog_bytes: usize,
    /// Bytes kept in memory for one connection (unfinished messages, waiting replies), beyond which it is
    /// closed. With the defaults the other limits are reached first; this one holds whatever they are set
    /// to. What was received before a pause took effect does not count.
    pub max_connection_bytes: usize,
    /// How long a client may leave a reply unread before its connection is closed; meanwhile the
    /// downlink's offset is not committed past the reply. Milliseconds.
    pub reply_timeout_ms: u32,
    /// How long replies are still sent to a client that has ended its side. Milliseconds.
    pub half_close_ms: u32,
    /// Maximum time of a whole stop, in any case. Milliseconds. The last part of it, at most 6 s, is
    /// reserved for what follows the messages; what Kafka has not acknowledged by then is given up and
    /// counted. A relay that has not ended when the time is over ends anyway, says what it waited for, and
    /// fails.
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

/// Replies for clients that are away, of services whose clients have an identity that outlives their
/// connection. A reply beyond a limit becomes a dead letter.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HoldSection {
    /// How long a reply waits. Milliseconds. Kafka must keep the topic's records for more than twice that.
    pub max_age_ms: u64,
    /// Maximum number of replies that wait for one client.
    pub max_per_client: u32,
    /// Maximum bytes of replies that wait for all clients: their values, plus 128 for each.
    pub max_bytes: u64,
}

impl Default for HoldSection {
    fn default() -> Self {
        Self { max_age_ms: 86_400_000, max_per_client: 10_000, max_bytes: 256 << 20 }
    }
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
        let base = path.parent().unwrap_or(Path::new(""));
        if let Some(rules) = &mut config.gateway.rules {
            *rules = base.join(&*rules);
        }
        security::load(config.kafka.tls.as_mut(), config.kafka.sasl.as_mut(), base)
            .map_err(|(key, problem)| invalid(key, problem))?;
        for service in &mut config.services {
            if let Some(mqtt) = &mut service.mqtt {
                mqtt.load(base).map_err(|problem| {
                    invalid(format!("service `{}`: mqtt.passwords", service.name), problem)
                })?;
            }
        }
        config.check()?;
        config.source = Source::of(path, &text, config.serialised()?);
        Ok(config)
    }

    /// Checks what the types cannot express.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_bounds()?;
        self.check_gateway()?;
        self.check_relay()?;
        self.kafka.check()?;
        self.check_services()
    }

    /// The bounds of all settings, which are in the table of them.
    fn check_bounds(&self) -> Result<(), ConfigError> {
        settings::check(&self.serialised()?).map_err(|(key, problem)| invalid(key, problem))
    }

    /// As a document whose keys are those of the file.
    pub fn serialised(&self) -> Result<serde_json::Value, ConfigError> {
        serde_json::to_value(self)
            .map_err(|error| invalid("configuration", format!("cannot be written: {error}")))
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
                    "`{instance}` must have 1 to {MAX_INSTANCE_LENGTH} of a-z, 0-9 and `-`, and not start with `-`"
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
        hardware::check_shared(&self.gateway.shared_addresses)
            .map_err(|problem| invalid("gateway.shared_addresses", problem))?;
        self.gateway.sysctls.check().map_err(|problem| invalid("gateway.sysctls", problem))
    }

    fn check_relay(&self) -> Result<(), ConfigError> {
        let relay = &self.relay;
        if relay.reply_pause_bytes >= relay.reply_limit_bytes {
            return Err(invalid(
                "relay.reply_pause_bytes",
                "must be below relay.reply_limit_bytes",
            ));
        }
        if relay.max_connection_bytes < relay.reply_limit_bytes {
            return Err(invalid(
                "relay.max_connection_bytes",
                "must not be below relay.reply_limit_bytes, which is part of it",
            ));
        }
        Ok(())
    }

    fn check_services(&self) -> Result<(), ConfigError> {
        if self.services.is_empty() {
            return Err(invalid("service", "no service is configured; add a [[service]]"));
        }
        Sharing::check(&self.services).map_err(|overlap| {
            let name = &self.services[overlap.service.index()].name;
            invalid(format!("service `{name}`"), overlap.problem)
        })?;
        let mut names = HashSet::new();
        let (mut servers, mut partitions) = (HashSet::new(), HashSet::new());
        for service in &self.services {
            let key = format!("service `{}`", service.name);
            if service.name.is_empty() || !names.insert(&service.name) {
                return Err(invalid(key, "needs a name that no other service has"));
            }
            if service.name.contains('/') {
                let problem = "the name must not contain `/`: in the keys of records it ends there";
                return Err(invalid(key, problem));
            }
            if service.destinations.is_empty() && self.gateway.rules.is_none() {
                let problem =
                    "needs at least one destination prefix, unless gateway.rules names a file";
                return Err(invalid(key, problem));
            }
            service.check_protocol().map_err(|problem| invalid(key.clone(), problem))?;
            service.check_tcp().map_err(|problem| invalid(key.clone(), problem))?;
            if service.servers.is_empty() && self.kafka.uplink_partitions == 0 {
                let problem = "needs at least one [[service.server]], or kafka.uplink_partitions \
                               for servers that register";
                return Err(invalid(key, problem));
            }
            for server in &service.servers {
                if server.id.is_empty() || !servers.insert(&server.id) {
                    let problem = format!(
                        "server `{}`: needs an id that no other server has, in any service",
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
        self.services.iter().any(Service::hands_on)
    }

    /// Number of partitions that the uplink needs: at least one more than the highest declared one.
    pub fn partitions(&self) -> usize {
        let servers = self.services.iter().flat_map(|service| &service.servers);
        let declared = servers.map(|server| server.partition.index() + 1).max().unwrap_or_default();
        declared.max(usize::from(self.kafka.uplink_partitions))
    }

    /// Directory of run-time files: `/run/millrace/INSTANCE`; for a relay without a gateway that does not
    /// run as root, `$XDG_RUNTIME_DIR/millrace/INSTANCE` (XDG Base Directory Specification).
    pub fn run_directory(&self) -> PathBuf {
        let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|own| !own.is_empty());
        let base = match own {
            Some(own) if !rustix::process::geteuid().is_root() => PathBuf::from(own),
            _ => PathBuf::from("/run"),
        };
        base.join("millrace").join(&self.gateway.instance)
    }

    /// Makes [`Self::run_directory`] and what is above it. Only its owner gets in: whoever can open a
    /// file can also lock it.
    pub fn create_run_directory(&self) -> std::io::Result<PathBuf> {
        let directory = self.run_directory();
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        Ok(directory)
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
