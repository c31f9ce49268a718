//! `[gateway]`: how packets are diverted.

use millrace_common::zone;
use serde::{Deserialize, Serialize};

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
