//! What would stand in a load's way or make it slow: facts in, findings out, nothing changed.
//!
//! The facts are gathered by [`super::facts`]; here is what they mean, and what to do about it.
//! Head room is no question in native mode: no program of ours makes a packet longer.

use std::fmt;

use serde::Serialize;

use crate::config::XdpPolicy;
use crate::gateway::finding::{Finding, Severity};

use super::error::GatewayError;
use super::netdev::XdpFeatures;

/// What a veth can have (`max_mtu` of `ip -details link`), and so the link to the relay.
pub(super) const MAX_LINK_MTU: u32 = 65_535;
/// What a driver needs of the page that a packet lies in: `XDP_PACKET_HEADROOM` (`linux/bpf.h`),
/// `struct skb_shared_info` on 64-bit machines, an Ethernet header.
const PAGE_OVERHEAD: u32 = 256 + 320 + 14;

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

/// What is known of the host and the configured devices.
#[derive(Debug)]
pub(super) struct Facts {
    pub forwards: bool,
    pub page_size: u32,
    pub bpffs: Bpffs,
    pub devices: Vec<(String, Option<LinkFacts>)>,
}

/// The BPF file system that the pins need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bpffs {
    /// Mounted, or the kernel can do it.
    Usable,
    /// No directory to mount it on.
    NoMountPoint,
    /// The kernel has none.
    Unknown,
}

/// What is known of a device that is there.
#[derive(Clone, Debug)]
pub(super) struct LinkFacts {
    pub driver: String,
    pub mtu: u32,
    pub up: bool,
    pub program: Option<Occupant>,
    /// `None`: the kernel is too old to say (Linux 6.3).
    pub features: Option<XdpFeatures>,
    pub lro: bool,
    pub gro_hw: bool,
    /// Of a veth.
    pub peer: Option<Peer>,
}

/// An XDP program that a device runs already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Occupant {
    /// The kernel's id.
    pub id: u32,
    /// The instance of ours whose program it is.
    pub instance: Option<String>,
}

/// A veth's other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// In this network namespace.
    Here { name: String, completes_checksums: bool },
    /// In another one, where it cannot be asked.
    Elsewhere,
}

impl Finding {
    pub(super) const FOREIGN_PROGRAM: &str = "foreign_program";
    pub(super) const NO_NATIVE_XDP: &str = "no_native_xdp";

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

    /// The kernel keeps the link of a device that is gone, for nothing.
    pub(super) fn device_gone(device: &str) -> Self {
        Self::refuses(
            device,
            "device_gone",
            format!(
                "device `{device}` was removed after the instance was loaded, and its program \
                 with it, even if the device is back now; when it is there"
            ),
            "relay unload && relay load",
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
            Some(link) => judge_device(name, link, facts.page_size, policy, &mut findings),
        }
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// The mode in which `ingress` will be attached, as far as can be known before.
pub(super) fn planned(link: &LinkFacts, policy: XdpPolicy) -> AttachMode {
    match policy {
        XdpPolicy::Generic => AttachMode::Generic,
        XdpPolicy::NativeOrGeneric if lacks_native(link) => AttachMode::Generic,
        XdpPolicy::Native | XdpPolicy::NativeOrGeneric => AttachMode::Native,
    }
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
    page_size: u32,
    policy: XdpPolicy,
    findings: &mut Vec<Finding>,
) {
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
        AttachMode::Native => judge_native(name, link, page_size, findings),
        AttachMode::Generic => findings.push(generic(name, link)),
    }
    judge_merging(name, link, findings);
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

fn judge_native(name: &str, link: &LinkFacts, page_size: u32, findings: &mut Vec<Finding>) {
    let frags = link.features.is_none_or(|features| features.has(XdpFeatures::FRAGS));
    let room = page_size.saturating_sub(PAGE_OVERHEAD);
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
mod tests {
    use super::*;

    const ALL: XdpFeatures = XdpFeatures(
        XdpFeatures::BASIC.0 | XdpFeatures::REDIRECT.0 | XdpFeatures::SEND.0 | XdpFeatures::FRAGS.0,
    );

    /// A network card with nothing to say about it.
    fn occupant(id: u32, instance: Option<&str>) -> Occupant {
        Occupant { id, instance: instance.map(ToOwned::to_owned) }
    }

    #[test]
    fn a_program_of_another_instance_is_not_to_be_torn_off() {
        let remedy = |instance| {
            let link = LinkFacts { program: Some(occupant(7, instance)), ..card() };
            let mut findings = Vec::new();
            judge_device("eth1", &link, 4096, XdpPolicy::Native, &mut findings);
            let Finding { what, remedy, .. } = findings.remove(0);
            (what, remedy.expect("a command"))
        };
        assert_eq!(remedy(None).1, "ip link set dev eth1 xdp off");
        let (what, command) = remedy(Some("blue"));
        assert!(what.contains("the Millrace instance `blue`"), "{what}");
        assert_eq!(command, "relay unload --config THAT_CONFIGURATION");
    }

    fn card() -> LinkFacts {
        LinkFacts {
            driver: "mlx5_core".to_owned(),
            mtu: 1500,
            up: true,
            program: None,
            features: Some(ALL),
            lro: false,
            gro_hw: false,
            peer: None,
        }
    }

    fn host(devices: Vec<(String, Option<LinkFacts>)>) -> Facts {
        Facts { forwards: true, page_size: 4096, bpffs: Bpffs::Usable, devices }
    }

    fn without(feature: XdpFeatures) -> XdpFeatures {
        XdpFeatures(ALL.0 & !feature.0)
    }

    /// What is said of one device, by severity and code; every remedy is there.
    fn said(policy: XdpPolicy, link: LinkFacts) -> Vec<(Severity, &'static str)> {
        codes(&host(vec![("eth1".to_owned(), Some(link))]), policy)
    }

    fn codes(facts: &Facts, policy: XdpPolicy) -> Vec<(Severity, &'static str)> {
        let findings = judge(facts, policy);
        for finding in &findings {
            assert!(finding.remedy.is_some() && !finding.what.ends_with('.'), "{finding:?}");
        }
        findings.iter().map(|finding| (finding.severity, finding.code)).collect()
    }

    #[test]
    fn a_good_card_has_no_findings() {
        assert_eq!(said(XdpPolicy::Native, card()), []);
        // A kernel that cannot say what a driver can do is given the benefit of the doubt.
        assert_eq!(said(XdpPolicy::Native, LinkFacts { features: None, ..card() }), []);
    }

    #[test]
    fn what_the_host_lacks() {
        let good = || vec![("eth1".to_owned(), Some(card()))];
        let facts = Facts { forwards: false, ..host(good()) };
        assert_eq!(codes(&facts, XdpPolicy::Native), [(Severity::Refuses, "no_forwarding")]);
        for bpffs in [Bpffs::NoMountPoint, Bpffs::Unknown] {
            let facts = Facts { bpffs, ..host(good()) };
            assert_eq!(codes(&facts, XdpPolicy::Native), [(Severity::Refuses, "no_bpffs")]);
        }
        let facts = host(vec![("eth1".to_owned(), None)]);
        assert_eq!(codes(&facts, XdpPolicy::Native), [(Severity::Refuses, "no_device")]);
    }

    #[test]
    fn another_program_is_in_the_way() {
        let link = LinkFacts { program: Some(occupant(7, None)), ..card() };
        assert_eq!(said(XdpPolicy::Native, link), [(Severity::Refuses, "foreign_program")]);
    }

    #[test]
    fn without_native_xdp_the_policy_decides() {
        for lacking in [XdpFeatures::BASIC, XdpFeatures::REDIRECT] {
            let link = || LinkFacts { features: Some(without(lacking)), ..card() };
            assert_eq!(said(XdpPolicy::Native, link()), [(Severity::Refuses, "no_native_xdp")]);
            assert_eq!(said(XdpPolicy::NativeOrGeneric, link()), [(Severity::Costs, "generic")]);
            assert_eq!(planned(&link(), XdpPolicy::NativeOrGeneric), AttachMode::Generic);
        }
        assert_eq!(said(XdpPolicy::Generic, card()), [(Severity::Costs, "generic")]);
        assert_eq!(said(XdpPolicy::NativeOrGeneric, card()), []);
        assert_eq!(planned(&card(), XdpPolicy::NativeOrGeneric), AttachMode::Native);
    }

    #[test]
    fn mtus() {
        let jumbo = |features| LinkFacts { mtu: 9000, features, ..card() };
        assert_eq!(said(XdpPolicy::Native, jumbo(Some(ALL))), []);
        let cramped = Some(without(XdpFeatures::FRAGS));
        let found = said(XdpPolicy::Native, jumbo(cramped));
        assert_eq!(found, [(Severity::Costs, "mtu_without_frags")]);
        assert_eq!(
            said(XdpPolicy::Native, LinkFacts { mtu: 3506, ..jumbo(cramped) }),
            [],
            "one page holds it"
        );
        let link = LinkFacts { mtu: 65_536, ..card() };
        assert_eq!(said(XdpPolicy::Native, link), [(Severity::Refuses, "mtu")]);

        let facts = host(vec![
            ("eth1".to_owned(), Some(card())),
            ("eth2".to_owned(), Some(jumbo(Some(ALL)))),
        ]);
        let findings = judge(&facts, XdpPolicy::Native);
        assert_eq!((findings.len(), findings[0].code), (1, "mtu_differs"));
        assert_eq!(findings[0].subject, "eth2");
        assert_eq!(findings[0].remedy.as_deref(), Some("ip link set dev eth1 mtu 9000"));
    }

    #[test]
    fn merging_devices() {
        let link = LinkFacts { lro: true, gro_hw: true, ..card() };
        let found = said(XdpPolicy::Native, link);
        assert_eq!(found, [(Severity::Costs, "lro"), (Severity::Costs, "gro_hw")]);
    }

    #[test]
    fn a_device_that_is_down() {
        let link = LinkFacts { up: false, ..card() };
        assert_eq!(said(XdpPolicy::Native, link), [(Severity::Note, "down")]);
    }

    #[test]
    fn veths_have_two_traps() {
        let veth = |features, peer| LinkFacts {
            driver: "veth".to_owned(),
            features,
            peer: Some(peer),
            ..card()
        };
        let here =
            |completes_checksums| Peer::Here { name: "veth9".to_owned(), completes_checksums };
        assert_eq!(said(XdpPolicy::Native, veth(Some(ALL), here(true))), []);
        let found = said(XdpPolicy::Native, veth(Some(ALL), here(false)));
        assert_eq!(found, [(Severity::Costs, "veth_checksums")]);
        let found = said(XdpPolicy::Native, veth(Some(ALL), Peer::Elsewhere));
        assert_eq!(found, [(Severity::Note, "veth_checksums")]);
        let facts = host(vec![(
            "eth1".to_owned(),
            Some(veth(Some(without(XdpFeatures::SEND)), here(true))),
        )]);
        let findings = judge(&facts, XdpPolicy::Native);
        assert_eq!((findings.len(), findings[0].code), (1, "veth_peer_without_napi"));
        assert_eq!(findings[0].remedy.as_deref(), Some("ethtool -K veth9 gro on"));
    }

    #[test]
    fn what_refuses_comes_first() {
        let link = LinkFacts { up: false, lro: true, program: Some(occupant(1, None)), ..card() };
        let severities: Vec<_> =
            said(XdpPolicy::Native, link).into_iter().map(|(severity, _)| severity).collect();
        assert_eq!(severities, [Severity::Refuses, Severity::Costs, Severity::Note]);
    }
}
