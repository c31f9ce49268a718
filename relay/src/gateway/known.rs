//! What is known of a host and its devices, for [`mod@super::preflight`] to judge.

use serde::{Deserialize, Serialize};

use crate::config::{HardwareAddress, Zones};

use super::netdev::XdpFeatures;

/// What is known of the host and the configured devices.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Whether it forwards IPv4.
    pub forwards: bool,
    /// Bytes of a page of memory.
    pub page_size: u32,
    /// Processors, whichever of them are at hand.
    pub processors: usize,
    /// Whether the kernel can wait until no program runs any more (membarrier(2)).
    pub waits_for_programs: bool,
    /// What becomes of the pins.
    pub bpffs: Bpffs,
    /// Those of the configuration: frames for them are diverted.
    #[serde(default)]
    pub shared_addresses: Vec<HardwareAddress>,
    /// What the configuration tells zones apart by.
    #[serde(default)]
    pub zones: Zones,
    /// Whether the rules of the configuration name VLANs.
    #[serde(default)]
    pub rules_name_vlans: bool,
    /// Whether a network namespace can have the settings of the configuration.
    #[serde(default)]
    pub sysctls: SysctlTrial,
    /// The devices by name; null if there is none of that name.
    pub devices: Vec<(String, Option<LinkFacts>)>,
}

/// What came out when settings were tried in a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SysctlTrial {
    /// Nothing: only root can make one.
    Untried,
    /// It cannot have these.
    Refused(Vec<SysctlRefusal>),
}

impl Default for SysctlTrial {
    fn default() -> Self {
        Self::Refused(Vec::new())
    }
}

/// A setting that a network namespace cannot have.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SysctlRefusal {
    /// As sysctl(8) names it.
    pub name: String,
    /// Why not.
    pub why: String,
}

/// The BPF file system that the pins need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bpffs {
    /// Mounted, or the kernel can do it.
    Usable,
    /// No directory to mount it on.
    NoMountPoint,
    /// The kernel has none.
    Unknown,
}

/// What is known of a device that is there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each on its own")]
pub struct LinkFacts {
    /// As `ethtool -i` names it.
    pub driver: String,
    /// Bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether its packets begin with an Ethernet header.
    pub ethernet: bool,
    /// The VRF that it belongs to.
    pub vrf: Option<String>,
    /// What runs there already.
    pub program: Option<Occupant>,
    /// Null: the kernel is too old to say (Linux 6.3).
    pub features: Option<XdpFeatures>,
    /// Null: the driver does not say.
    pub channels: Option<Channels>,
    /// Whether the card merges received packets.
    pub lro: bool,
    /// The same, so that they can be taken apart again.
    pub gro_hw: bool,
    /// Whether it takes VLAN tags off, so that no program sees them.
    #[serde(default)]
    pub untags: bool,
    /// Of a veth.
    pub peer: Option<Peer>,
    /// What has another hardware address than it.
    #[serde(default)]
    pub above: Vec<Above>,
    /// What decides how far sources are checked on it.
    #[serde(default)]
    pub sources: SourceFacts,
}

/// What the host asks of the sources of packets that come in by a device, and what keeps the programs from
/// asking as much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFacts {
    /// The larger of `net.ipv4.conf.all.rp_filter` and the device's own, which is the one that counts
    /// (Documentation/networking/ip-sysctl.rst): 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// Names of the devices on top of it: routes may name these, while packets come in by the one below.
    pub above: Vec<String>,
    /// Whether a default route has several next hops, one by this device and one by another.
    pub several_ways: bool,
    /// Whether the marks of packets choose their routes (`net.ipv4.conf.*.src_valid_mark`): the programs run
    /// before a packet has any.
    pub marked: bool,
}

/// A device on top of another: a VLAN, a macvlan, or the bridge or bond that the other is a part of.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Above {
    /// Its name.
    pub name: String,
    /// What `ip` calls its kind.
    pub kind: String,
    /// Its own hardware address.
    pub address: HardwareAddress,
}

/// Channels of a device, as `ethtool -l` shows them: those that are used, and the most there can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Channels {
    /// For receiving alone.
    pub rx: u32,
    /// For sending alone.
    pub tx: u32,
    /// For both.
    pub combined: u32,
    /// The most for receiving.
    pub most_rx: u32,
    /// The most for sending.
    pub most_tx: u32,
    /// The most for both.
    pub most_combined: u32,
}

impl Channels {
    /// Those that send.
    pub(super) const fn sending(&self) -> u32 {
        self.tx + self.combined
    }

    /// The most that could send.
    pub(super) const fn most_sending(&self) -> u32 {
        self.most_tx + self.most_combined
    }

    /// What sets their number, of the kind that the device has.
    pub(super) fn command(&self, name: &str, count: u32) -> String {
        if self.combined > 0 {
            format!("ethtool -L {name} combined {count}")
        } else {
            format!("ethtool -L {name} rx {count} tx {count}")
        }
    }
}

/// An XDP program that a device runs already.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Occupant {
    /// The kernel's id.
    pub id: u32,
    /// The link that holds it there, if one does.
    pub link: Option<u32>,
    /// The instance of ours whose program it is.
    pub instance: Option<String>,
}

/// A veth's other end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// In this network namespace.
    Here {
        /// Its name.
        name: String,
        /// Whether it leaves no checksum to hardware.
        completes_checksums: bool,
    },
    /// In another one, where it cannot be asked.
    Elsewhere,
}
