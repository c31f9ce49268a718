//! What would stand in a load's way or make it slow: facts in, findings out, nothing changed.
//!
//! The facts are gathered by [`super::facts`]; here is what they mean, and what to do about it.
//! Head room is no question in native mode: no program of ours makes a packet longer.

use std::fmt;

use serde::Serialize;

use crate::config::XdpPolicy;
use crate::gateway::finding::{Finding, Severity};

use super::drivers;
use super::error::GatewayError;
use super::known::{Above, Bpffs, Facts, LinkFacts, Occupant, Peer, SysctlTrial};
use super::netdev::XdpFeatures;
use super::sysctls;

/// What a veth can have (`max_mtu` of `ip -details link`), and so the link to the relay.
pub(super) const MAX_LINK_MTU: u32 = 65_535;
/// What a driver needs of the page that a packet lies in: `XDP_PACKET_HEADROOM` (`linux/bpf.h`),
/// `struct skb_shared_info` on 64-bit machines, an Ethernet header.
const PAGE_OVERHEAD: u32 = 256 + 320 + 14;

/// Why tags have to be seen.
pub(super) const NAMED_BY_RULES: &str = "the rules name VLANs";

/// How a program is attached to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// In the device's driver.
    Native,
    /// In the kernel's stack, after the packet has become a socket buffer.
    Generic,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

impl Finding {
    pub(super) const FOREIGN_PROGRAM: &str = "foreign_program";
    pub(super) const NO_NATIVE_XDP: &str = "no_native_xdp";
    pub(super) const DEVICE_GONE: &str = "device_gone";

    /// A refusal in the words of an error, which say what to do.
    pub(super) fn of_error(error: &GatewayError) -> Self {
        Self {
            severity: Severity::Refuses,
            subject: "host".to_owned(),
            code: error.code(),
            what: error.to_string(),
            remedy: None,
        }
    }

    pub(super) fn no_device(device: &str) -> Self {
        Self::refuses(
            device,
            "no_device",
            format!(
                "there is no network device `{device}` in this network namespace; set \
                 gateway.devices to devices that exist"
            ),
            "ip -brief link",
        )
    }

    pub(super) fn foreign_program(device: &str, occupant: &Occupant) -> Self {
        let id = occupant.id;
        if let Some(instance) = &occupant.instance {
            return Self::refuses(
                device,
                Self::FOREIGN_PROGRAM,
                format!(
                    "device `{device}` already runs an XDP program (id {id}): that of the Millrace \
                     instance `{instance}`, and there is room for one. Take another device, or unload \
                     that instance with its own configuration (gateway.instance = \"{instance}\")"
                ),
                "relay unload --config THAT_CONFIGURATION",
            );
        }
        // With a link in place, the kernel refuses `xdp off`: "Can't replace active BPF XDP link".
        if let Some(link) = occupant.link {
            return Self::refuses(
                device,
                Self::FOREIGN_PROGRAM,
                format!(
                    "device `{device}` already runs an XDP program (id {id}, see `bpftool prog show \
                     id {id}`), held by link {link} (see `bpftool link show id {link}`), and there is \
                     room for only one; end the process that has the link, or"
                ),
                format!("bpftool link detach id {link}"),
            );
        }
        Self::refuses(
            device,
            Self::FOREIGN_PROGRAM,
            format!(
                "device `{device}` already runs an XDP program (id {id}, see `bpftool prog show \
                 id {id}`), and there is room for only one; remove it with the tool that attached \
                 it, or"
            ),
            format!("ip link set dev {device} xdp off"),
        )
    }

    pub(super) fn no_native_xdp(device: &str, driver: &str) -> Self {
        Self::refuses(
            device,
            Self::NO_NATIVE_XDP,
            format!(
                "device `{device}` (driver {driver}) has no native XDP that can redirect; use a \
                 device whose driver has it, or allow the slow generic mode"
            ),
            "gateway.xdp = \"native-or-generic\"",
        )
    }

    pub(super) fn mtu(device: &str, mtu: u32, reason: &str) -> Self {
        Self::refuses(
            device,
            "mtu",
            format!("device `{device}` cannot be used with MTU {mtu}: {reason}; lower it"),
            format!("ip link set dev {device} mtu 1500"),
        )
    }

    /// A driver that has native XDP, and refuses it as the device is.
    pub(super) fn driver_refuses(device: &str, driver: &str, answer: &str) -> Self {
        Self::refuses(
            device,
            "driver_refuses",
            format!(
                "driver {driver} does not run the program on `{device}` as the device is set up now: \
                 {answer}; docs/design/drivers.md has what drivers ask for, and the kernel's log may \
                 say more"
            ),
            "dmesg | tail",
        )
    }

    /// Without the tags, all VLANs would be one.
    pub(super) fn untags(device: &str, wanted: &str) -> Self {
        Self::refuses(
            device,
            "untags",
            format!(
                "device `{device}` takes VLAN tags off before the program sees them, but {wanted}"
            ),
            format!("ethtool -K {device} rxvlan off"),
        )
    }

    /// An old kernel; there is nothing to type.
    fn segments_shortened(device: &str, mtu: u32, longest: u32) -> Self {
        Self {
            severity: Severity::Costs,
            subject: device.to_owned(),
            code: "segments_shortened",
            what: format!(
                "this kernel cannot redirect frames in several buffers (Linux 6.3 and later can): \
                 diverted connections use segments for MTU {longest} on all devices, although \
                 `{device}` has MTU {mtu}, and longer datagrams are lost if a rule diverts them"
            ),
            remedy: None,
        }
    }

    /// A kernel tells only root what it has; and not even root what is forbidden here.
    pub(super) fn kernel_unanswered(is_root: bool, answers: &[String]) -> Self {
        if is_root {
            return Self {
                severity: Severity::Note,
                subject: "host".to_owned(),
                code: "kernel_unanswered",
                what: answers.join("; "),
                remedy: None,
            };
        }
        Self::new(
            Severity::Note,
            "host",
            "kernel_unanswered",
            "the kernel did not say whether it has everything that a load needs; it answers only \
             root",
            "sudo relay load --check",
        )
    }

    /// Only root can make a network namespace to try them in.
    fn sysctls_untried() -> Self {
        Self::new(
            Severity::Note,
            "host",
            "sysctls_untried",
            "only root can try whether the relay namespace can have gateway.sysctls",
            "sudo relay load --check",
        )
    }

    /// Only root sees what is loaded.
    pub(super) fn instances_hidden() -> Self {
        Self::new(
            Severity::Note,
            "host",
            "instances_hidden",
            "only root can see whether this instance is loaded already",
            "sudo relay load --check",
        )
    }

    /// The kernel keeps the link of a device that is gone, for nothing.
    pub(super) fn device_gone(device: &str) -> Self {
        Self::refuses(
            device,
            Self::DEVICE_GONE,
            format!(
                "device `{device}` was removed after the instance was loaded, and its program \
                 with it, even if the device is back now; when it is there"
            ),
            "relay load --replace",
        )
    }
}

/// Everything that there is to say, what matters most first.
pub(super) fn judge(facts: &Facts, policy: XdpPolicy) -> Vec<Finding> {
    let mut findings = Vec::new();
    judge_host(facts, &mut findings);
    for (name, link) in &facts.devices {
        match link {
            None => findings.push(Finding::no_device(name)),
            Some(link) => judge_device(name, link, facts, policy, &mut findings),
        }
    }
    judge_above(facts, &mut findings);
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// Frames for another address than the device's own are somebody else's (`pass/other_host`), unless the
/// configuration says that they are for this gateway. It alone knows that: a macvlan may be a guest's.
fn judge_above(facts: &Facts, findings: &mut Vec<Finding>) {
    let shared = |address| facts.shared_addresses.contains(address);
    let devices = || facts.devices.iter().filter_map(|(name, link)| Some((name, link.as_ref()?)));
    let mut all = facts.shared_addresses.clone();
    for (_, link) in devices() {
        for Above { address, .. } in &link.above {
            if !all.contains(address) {
                all.push(*address);
            }
        }
    }
    let all: Vec<_> = all.iter().map(|address| format!("\"{address}\"")).collect();
    for (name, link) in devices() {
        let missing = link.above.iter().filter(|above| !shared(&above.address));
        let missing: Vec<_> = missing
            .map(|Above { name, kind, address }| format!("`{name}` ({kind}) has {address}"))
            .collect();
        if missing.is_empty() {
            continue;
        }
        findings.push(Finding::new(
            Severity::Note,
            name,
            "shared_addresses",
            format!(
                "on top of device `{name}`, {}, which is not its own hardware address: what clients \
                 send there takes the ordinary path (pass/other_host); if they know the gateway by \
                 it, have it diverted too",
                missing.join(", ")
            ),
            format!("gateway.shared_addresses = [{}]", all.join(", ")),
        ));
    }
}

/// The mode in which `ingress` will be attached, as far as can be known before.
pub(super) fn planned(link: &LinkFacts, policy: XdpPolicy) -> AttachMode {
    match policy {
        XdpPolicy::Generic => AttachMode::Generic,
        XdpPolicy::NativeOrGeneric if lacks_native(link) => AttachMode::Generic,
        XdpPolicy::Native | XdpPolicy::NativeOrGeneric => AttachMode::Native,
    }
}

/// Whether answers may be redirected to a device. What is redirected to one that does not send it is
/// lost without a trace; so a kernel that cannot say what a device can do (before Linux 6.3) leaves it
/// to the driver's name, and a driver that is not known gets its packets from the stack. So does one that
/// sends no frames in several buffers, where there may be some.
pub(super) fn answers_redirected(link: &LinkFacts, processors: usize, page_size: u32) -> bool {
    let sends = match link.features {
        Some(features) => {
            let in_one = link.mtu <= one_page(page_size);
            features.has(XdpFeatures::SEND) && (in_one || features.has(XdpFeatures::SEND_FRAGS))
        }
        None => drivers::find(&link.driver).is_some(),
    };
    sends && drivers::all_processors_send(link, processors)
}

/// The longest packet that lies in one page: a frame of a longer one comes in several buffers.
const fn one_page(page_size: u32) -> u32 {
    page_size.saturating_sub(PAGE_OVERHEAD)
}

/// The MTU of the link to the relay: the largest packet that every client-facing device can carry, and
/// the kernel can redirect.
pub(super) fn link_mtu<'a>(
    links: impl IntoIterator<Item = &'a LinkFacts>,
    policy: XdpPolicy,
    page_size: u32,
) -> u32 {
    let longest = |link| longest_redirected(link, policy, page_size).unwrap_or(u32::MAX);
    links.into_iter().map(|link| link.mtu.min(longest(link))).min().unwrap_or(1500)
}

/// The longest packet that can be redirected from and to a device, if there is a limit. Before Linux 6.3,
/// the kernel refuses to redirect frames in several buffers when the program has run (`xdp_do_redirect`,
/// `net/core/filter.c`). It learned that by the same series of changes as to say what a device can do.
fn longest_redirected(link: &LinkFacts, policy: XdpPolicy, page_size: u32) -> Option<u32> {
    // In generic mode, and by the stack, no frame is redirected in the buffers of a driver.
    let redirects =
        planned(link, policy) == AttachMode::Native || drivers::find(&link.driver).is_some();
    (link.features.is_none() && redirects).then(|| one_page(page_size))
}

fn lacks_native(link: &LinkFacts) -> bool {
    link.features.is_some_and(|features| {
        !features.has(XdpFeatures::BASIC) || !features.has(XdpFeatures::REDIRECT)
    })
}

fn judge_host(facts: &Facts, findings: &mut Vec<Finding>) {
    if !facts.forwards {
        findings.push(Finding::refuses(
            "host",
            "no_forwarding",
            "this host does not forward IPv4 packets, so it is not a gateway",
            "sysctl -w net.ipv4.ip_forward=1",
        ));
    }
    if !facts.waits_for_programs {
        findings.push(Finding::of_error(&GatewayError::NoGracePeriod));
    }
    match facts.bpffs {
        Bpffs::Usable => {}
        Bpffs::NoMountPoint => findings.push(Finding::refuses(
            "host",
            "no_bpffs",
            "there is no directory /sys/fs/bpf to mount the BPF file system on, which keeps the \
             programs; is sysfs mounted?",
            "mount -t sysfs sysfs /sys",
        )),
        Bpffs::Unknown => findings.push(Finding::refuses(
            "host",
            "no_bpffs",
            "this kernel has no BPF file system, which keeps the programs; use one built with \
             CONFIG_BPF_SYSCALL, as all distributions' are",
            "grep bpf /proc/filesystems",
        )),
    }
    match &facts.sysctls {
        SysctlTrial::Refused(refused) => findings.extend(refused.iter().map(sysctls::finding)),
        SysctlTrial::Untried => findings.push(Finding::sysctls_untried()),
    }
    let links = facts.devices.iter().filter_map(|(name, link)| Some((name, link.as_ref()?.mtu)));
    if let Some((smallest, least)) = links.clone().min_by_key(|(_, mtu)| *mtu) {
        for (name, mtu) in links.filter(|(_, mtu)| *mtu > least) {
            findings.push(Finding::new(
                Severity::Note,
                name,
                "mtu_differs",
                format!(
                    "diverted connections use segments for MTU {least}, that of {smallest}, also \
                     on {name} with its MTU {mtu}; give both the same MTU"
                ),
                format!("ip link set dev {smallest} mtu {mtu}"),
            ));
        }
    }
}

fn judge_device(
    name: &str,
    link: &LinkFacts,
    facts: &Facts,
    policy: XdpPolicy,
    findings: &mut Vec<Finding>,
) {
    if !link.ethernet {
        findings.push(Finding::refuses(
            name,
            "no_ethernet",
            format!(
                "packets of device `{name}` (driver {}) have no Ethernet header, and the programs \
                 would misread them; take devices that have one",
                link.driver
            ),
            "ip -brief link",
        ));
    }
    if let Some(vrf) = &link.vrf {
        findings.push(Finding::refuses(
            name,
            "vrf",
            format!(
                "device `{name}` belongs to the VRF `{vrf}`, but answers are routed by the main \
                 tables; take it out of the VRF"
            ),
            format!("ip link set dev {name} nomaster"),
        ));
    }
    if let Some(occupant) = &link.program {
        findings.push(Finding::foreign_program(name, occupant));
    }
    if link.mtu > MAX_LINK_MTU {
        let reason = format!("the link to the relay carries at most {MAX_LINK_MTU}");
        findings.push(Finding::mtu(name, link.mtu, &reason));
    }
    if policy == XdpPolicy::Native && lacks_native(link) {
        findings.push(Finding::no_native_xdp(name, &link.driver));
    }
    if !link.up {
        findings.push(Finding::new(
            Severity::Note,
            name,
            "down",
            format!("device `{name}` is down; no packet arrives until it is up"),
            format!("ip link set dev {name} up"),
        ));
    }
    match planned(link, policy) {
        AttachMode::Native => judge_native(name, link, facts, policy, findings),
        AttachMode::Generic => findings.push(generic(name, link)),
    }
    if let Some(longest) = longest_redirected(link, policy, facts.page_size)
        && longest < link.mtu
    {
        findings.push(Finding::segments_shortened(name, link.mtu, longest));
    }
    judge_merging(name, link, findings);
    if link.untags && facts.zones.told().by_vlan {
        let zones = facts.zones.name();
        let wanted = format!("gateway.zones = \"{zones}\" tells networks apart by them");
        findings.push(Finding::untags(name, &wanted));
    } else if link.untags && facts.rules_name_vlans {
        findings.push(Finding::untags(name, NAMED_BY_RULES));
    }
    if let Some(peer) = &link.peer {
        judge_veth(name, link, peer, findings);
    }
}

/// The price of generic XDP (`netif_receive_generic_xdp` and `generic_xdp_install`,
/// `net/core/dev.c`).
pub(super) fn generic(name: &str, link: &LinkFacts) -> Finding {
    Finding::new(
        Severity::Costs,
        name,
        "generic",
        format!(
            "device `{name}` (driver {}) runs the program in generic mode: every packet becomes a \
             socket buffer first, and is copied if it lacks 256 bytes of head room; a device with \
             native XDP is several times as fast",
            link.driver
        ),
        "gateway.xdp = \"native\"",
    )
}

fn judge_native(
    name: &str,
    link: &LinkFacts,
    facts: &Facts,
    policy: XdpPolicy,
    findings: &mut Vec<Finding>,
) {
    let severity = match policy {
        XdpPolicy::Native => Severity::Refuses,
        // Tried all the same.
        _ => Severity::Costs,
    };
    drivers::judge(name, link, facts.processors, severity, findings);
    let frags = link.features.is_none_or(|features| features.has(XdpFeatures::FRAGS));
    let room = one_page(facts.page_size);
    if !frags && link.mtu > room {
        findings.push(Finding::new(
            Severity::Costs,
            name,
            "mtu_without_frags",
            format!(
                "driver {} does not report that it supports packets in several buffers: with MTU \
                 {} it may refuse the program (one page holds {room} bytes)",
                link.driver, link.mtu
            ),
            format!("ip link set dev {name} mtu 1500"),
        ));
    }
}

/// Packets merged by the device are larger than what came in, and programs see them so, if the
/// driver runs programs then at all.
fn judge_merging(name: &str, link: &LinkFacts, findings: &mut Vec<Finding>) {
    for (on, code, feature) in [(link.lro, "lro", "lro"), (link.gro_hw, "gro_hw", "rx-gro-hw")] {
        if on {
            findings.push(Finding::new(
                Severity::Costs,
                name,
                code,
                format!(
                    "device `{name}` merges received packets ({feature}): some drivers then \
                     refuse XDP, others turn merging off by themselves"
                ),
                format!("ethtool -K {name} {feature} off"),
            ));
        }
    }
}

fn judge_veth(name: &str, link: &LinkFacts, peer: &Peer, findings: &mut Vec<Finding>) {
    let other = match peer {
        Peer::Here { name, .. } => name,
        Peer::Elsewhere => "PEER",
    };
    if link.features.is_some_and(|features| !features.has(XdpFeatures::SEND)) {
        findings.push(Finding::new(
            Severity::Costs,
            name,
            "veth_peer_without_napi",
            format!(
                "device `{name}` is a veth whose other end does not poll, and so accepts no \
                 redirected frames: answers go through the host's stack; at the other end, run"
            ),
            format!("ethtool -K {other} gro on"),
        ));
    }
    let (severity, what) = match peer {
        Peer::Here { completes_checksums: true, .. } => return,
        Peer::Here { .. } => (Severity::Costs, "leaves checksums to hardware that does not exist"),
        Peer::Elsewhere => {
            (Severity::Note, "may leave checksums to hardware, which cannot be checked from here")
        }
    };
    findings.push(Finding::new(
        severity,
        name,
        "veth_checksums",
        format!(
            "device `{name}` is a veth, and its other end {what}: such packets arrive at the \
             relay as corrupt and are dropped; at the other end, run"
        ),
        format!("ethtool -K {other} tx off tso off"),
    ));
}

#[cfg(test)]
mod tests;
