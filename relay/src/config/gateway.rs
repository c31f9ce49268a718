//! The gateway's settings.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{HardwareAddress, ReversePath};

/// The XDP side.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySection {
    /// Names everything that the instance puts on the host.
    #[serde(default = "default_instance")]
    pub instance: String,
    /// Client-facing network devices.
    pub devices: Vec<String>,
    /// Hardware addresses that this gateway shares with others (VRRP, RFC 9568 section 7.3). Frames
    /// for them are diverted as those for the devices' own addresses are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_addresses: Vec<HardwareAddress>,
    /// Where on these devices the program may run.
    #[serde(default)]
    pub xdp: XdpPolicy,
    /// A relay one of whose workers has not gone round its loop for this long gets no new connections.
    /// Milliseconds. `relay rules apply` changes it while the instance is loaded.
    #[serde(default = "default_heartbeat_timeout_ms")]
    pub heartbeat_timeout_ms: u32,
    /// Which packets a `divert` rule diverts.
    #[serde(default)]
    pub mode: Mode,
    /// How far the programs check where packets come from, before they divert what begins something new.
    /// `relay rules apply` decides it anew while the instance is loaded.
    #[serde(default)]
    pub reverse_path: ReversePath,
    /// File of steering rules, relative to the configuration. Without one, the destinations of every
    /// service are diverted at its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<PathBuf>,
}

impl GatewaySection {
    /// An instance on these devices, with defaults for everything else.
    pub fn new(instance: impl Into<String>, devices: &[&str]) -> Self {
        Self {
            instance: instance.into(),
            devices: devices.iter().map(ToString::to_string).collect(),
            shared_addresses: Vec::new(),
            xdp: XdpPolicy::default(),
            heartbeat_timeout_ms: default_heartbeat_timeout_ms(),
            mode: Mode::default(),
            reverse_path: ReversePath::default(),
            rules: None,
        }
    }
}

/// Which packets a `divert` rule diverts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Packets of connections that begin after the rule is in force, until they end.
    #[default]
    New,
    /// Every packet that the rule matches: by rule alone, without a table of flows.
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
    /// Only in the drivers: a device whose driver cannot run it is refused.
    #[default]
    Native,
    /// In the kernel's stack: slower, but on any device.
    Generic,
    /// In the driver if it can run it, else in the kernel's stack; `load` and `status` say which.
    NativeOrGeneric,
}

fn default_instance() -> String {
    "millrace".to_owned()
}

const fn default_heartbeat_timeout_ms() -> u32 {
    2000
}
