//! The gateway's settings.

use std::path::PathBuf;

use millrace_common::zone;
use serde::{Deserialize, Serialize};

use super::{HardwareAddress, ReversePath, Sysctls};

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
    /// What tells apart networks whose addresses may overlap. Changed by `unload` and `load`.
    #[serde(default)]
    pub zones: Zones,
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
    /// Whether a running relay attaches a device again that comes back after it was removed. If not, that
    /// takes `relay load --replace`.
    #[serde(default = "default_reattach")]
    pub reattach: bool,
    /// File of steering rules, relative to the configuration. Without one, the destinations of every
    /// service are diverted at its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<PathBuf>,
    /// How long the relay's end of the veth collects packets before it looks at them, after it has looked.
    /// Each packet waits for up to that time. Microseconds; 0: none waits. `load --replace` changes it
    /// while the instance is loaded.
    #[serde(default)]
    pub coalesce_us: u32,
    /// Kernel settings of the relay namespace. `load --replace` changes them while the instance is loaded.
    #[serde(default, skip_serializing_if = "Sysctls::is_empty")]
    pub sysctls: Sysctls,
}

impl GatewaySection {
    /// An instance on these devices, with defaults for everything else.
    pub fn new(instance: impl Into<String>, devices: &[&str]) -> Self {
        Self {
            instance: instance.into(),
            devices: devices.iter().map(ToString::to_string).collect(),
            shared_addresses: Vec::new(),
            zones: Zones::default(),
            xdp: XdpPolicy::default(),
            heartbeat_timeout_ms: default_heartbeat_timeout_ms(),
            mode: Mode::default(),
            reverse_path: ReversePath::default(),
            reattach: default_reattach(),
            rules: None,
            coalesce_us: 0,
            sysctls: Sysctls::default(),
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

/// What tells apart networks whose addresses may overlap, such as those of tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Zones {
    /// Nothing: there is one network, and a connection's packets may come by any device and VLAN.
    #[default]
    One,
    /// The client-facing device, whatever the VLAN.
    Device,
    /// The VLAN, whichever the device: a VLAN may have several.
    Vlan,
    /// Both: each device has VLANs of its own.
    DeviceAndVlan,
}

impl Zones {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Device => "device",
            Self::Vlan => "vlan",
            Self::DeviceAndVlan => "device-and-vlan",
        }
    }

    /// What the programs are told.
    pub(crate) const fn told(self) -> zone::Zones {
        zone::Zones {
            by_device: matches!(self, Self::Device | Self::DeviceAndVlan),
            by_vlan: matches!(self, Self::Vlan | Self::DeviceAndVlan),
        }
    }

    /// What they were told.
    pub(crate) const fn of(told: zone::Zones) -> Self {
        match (told.by_device, told.by_vlan) {
            (false, false) => Self::One,
            (true, false) => Self::Device,
            (false, true) => Self::Vlan,
            (true, true) => Self::DeviceAndVlan,
        }
    }
}

fn default_instance() -> String {
    "millrace".to_owned()
}

const fn default_reattach() -> bool {
    true
}

const fn default_heartbeat_timeout_ms() -> u32 {
    2000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_told_as_they_are_written() {
        for zones in [Zones::One, Zones::Device, Zones::Vlan, Zones::DeviceAndVlan] {
            assert_eq!(Zones::of(zones.told()), zones);
            assert_eq!(serde_json::to_value(zones).unwrap(), zones.name());
        }
    }
}
