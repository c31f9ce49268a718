//! Facts in, findings out.

use serde::Deserialize;

use super::super::known::{Channels, SourceFacts};
use crate::config::Zones;

use super::*;

const ALL: XdpFeatures = XdpFeatures(
    XdpFeatures::BASIC.0
        | XdpFeatures::REDIRECT.0
        | XdpFeatures::SEND.0
        | XdpFeatures::FRAGS.0
        | XdpFeatures::SEND_FRAGS.0,
);

fn occupant(id: u32, instance: Option<&str>) -> Occupant {
    Occupant { id, link: None, instance: instance.map(ToOwned::to_owned) }
}

#[test]
fn a_program_of_another_instance_is_not_to_be_torn_off() {
    let remedy = |instance| {
        let link = LinkFacts { program: Some(occupant(7, instance)), ..card() };
        let facts = host(vec![("eth1".to_owned(), Some(link))]);
        let mut findings = judge(&facts, XdpPolicy::Native);
        let Finding { what, remedy, .. } = findings.remove(0);
        (what, remedy.expect("a command"))
    };
    assert_eq!(remedy(None).1, "ip link set dev eth1 xdp off");
    let (what, command) = remedy(Some("blue"));
    assert!(what.contains("the Millrace instance `blue`"), "{what}");
    assert_eq!(command, "relay unload --config THAT_CONFIGURATION");
}

/// A network card with nothing to say about it.
fn card() -> LinkFacts {
    LinkFacts {
        driver: "ice".to_owned(),
        mtu: 1500,
        up: true,
        ethernet: true,
        vrf: None,
        program: None,
        features: Some(ALL),
        channels: None,
        lro: false,
        gro_hw: false,
        untags: false,
        peer: None,
        above: Vec::new(),
        sources: SourceFacts::default(),
    }
}

fn host(devices: Vec<(String, Option<LinkFacts>)>) -> Facts {
    Facts {
        forwards: true,
        page_size: 4096,
        processors: 8,
        waits_for_programs: true,
        bpffs: Bpffs::Usable,
        shared_addresses: Vec::new(),
        zones: Zones::One,
        rules_name_vlans: false,
        sysctls: SysctlTrial::default(),
        devices,
    }
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

    let facts =
        host(vec![("eth1".to_owned(), Some(card())), ("eth2".to_owned(), Some(jumbo(Some(ALL))))]);
    let findings = judge(&facts, XdpPolicy::Native);
    assert_eq!((findings.len(), findings[0].code), (1, "mtu_differs"));
    assert_eq!(findings[0].subject, "eth2");
    assert_eq!(findings[0].remedy.as_deref(), Some("ip link set dev eth1 mtu 9000"));
}

/// Before, the link to the relay had the devices' MTU under every kernel: SYNs passed, and full segments
/// vanished.
#[test]
fn an_old_kernel_redirects_no_more_than_a_page() {
    let jumbo = |driver: &str, features| LinkFacts {
        mtu: 9000,
        driver: driver.to_owned(),
        features,
        ..card()
    };
    let mtu = |link, policy| link_mtu([&card(), &link], policy, 4096);
    let alone = |link: &LinkFacts, policy| link_mtu([link], policy, 4096);
    for (link, policy, longest) in [
        (jumbo("ice", Some(ALL)), XdpPolicy::Native, 9000),
        (jumbo("ice", None), XdpPolicy::Native, 3506),
        // Answers are redirected to the one, and go to the other by the stack.
        (jumbo("ice", None), XdpPolicy::Generic, 3506),
        (jumbo("bridge", None), XdpPolicy::Generic, 9000),
    ] {
        assert_eq!(alone(&link, policy), longest, "{link:?}");
        let found = judge(&host(vec![("eth1".to_owned(), Some(link.clone()))]), policy);
        let told = found.iter().any(|finding| finding.code == "segments_shortened");
        assert_eq!(told, longest < 9000, "{found:?}");
        assert_eq!(mtu(link, policy), 1500);
    }
    assert_eq!(link_mtu([&jumbo("ice", None)], XdpPolicy::Native, 65_536), 9000);
    assert_eq!(link_mtu([], XdpPolicy::Native, 4096), 1500);
}

#[test]
fn zones_by_vlan_need_the_tags() {
    let untags = || vec![("eth1".to_owned(), Some(LinkFacts { untags: true, ..card() }))];
    for (zones, refused) in [
        (Zones::One, false),
        (Zones::Device, false),
        (Zones::Vlan, true),
        (Zones::DeviceAndVlan, true),
    ] {
        let found = codes(&Facts { zones, ..host(untags()) }, XdpPolicy::Native);
        assert_eq!(found.contains(&(Severity::Refuses, "untags")), refused, "{found:?}");
    }
    let told = judge(&Facts { zones: Zones::Vlan, ..host(untags()) }, XdpPolicy::Native);
    assert_eq!(told[0].remedy.as_deref(), Some("ethtool -K eth1 rxvlan off"));
    let told = judge(&Facts { rules_name_vlans: true, ..host(untags()) }, XdpPolicy::Native);
    assert_eq!((told[0].severity, told[0].code), (Severity::Refuses, "untags"));
    assert!(told[0].what.ends_with("but the rules name VLANs"), "{}", told[0].what);
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

/// Before, `pass/other_host` grew and nothing said what to write.
#[test]
fn addresses_on_top_of_a_device_are_told_until_they_are_shared() {
    let [router, lan] =
        ["00:00:5e:00:01:33", "02:00:00:00:00:07"].map(|text| text.parse().unwrap());
    let above = |name: &str, kind: &str, address| Above {
        name: name.to_owned(),
        kind: kind.to_owned(),
        address,
    };
    let first = LinkFacts { above: vec![above("vrrp1", "macvlan", router)], ..card() };
    let second = LinkFacts { above: vec![above("br0", "bridge", lan)], ..card() };
    let devices = vec![("eth1".to_owned(), Some(first)), ("eth2".to_owned(), Some(second))];
    let mut facts = Facts { shared_addresses: vec![lan], ..host(devices) };
    let findings = judge(&facts, XdpPolicy::Native);
    assert_eq!((findings.len(), findings[0].code), (1, "shared_addresses"));
    assert!(findings[0].what.contains("`vrrp1` (macvlan) has 00:00:5e:00:01:33"), "{findings:?}");
    let line = "gateway.shared_addresses = [\"02:00:00:00:00:07\", \"00:00:5e:00:01:33\"]";
    assert_eq!(findings[0].remedy.as_deref(), Some(line));
    facts.shared_addresses.push(router);
    assert_eq!(judge(&facts, XdpPolicy::Native), []);
}

#[test]
fn veths_have_two_traps() {
    let veth = |features, peer| LinkFacts {
        driver: "veth".to_owned(),
        features,
        peer: Some(peer),
        ..card()
    };
    let here = |completes_checksums| Peer::Here { name: "veth9".to_owned(), completes_checksums };
    assert_eq!(said(XdpPolicy::Native, veth(Some(ALL), here(true))), []);
    let found = said(XdpPolicy::Native, veth(Some(ALL), here(false)));
    assert_eq!(found, [(Severity::Costs, "veth_checksums")]);
    let found = said(XdpPolicy::Native, veth(Some(ALL), Peer::Elsewhere));
    assert_eq!(found, [(Severity::Note, "veth_checksums")]);
    let facts =
        host(vec![("eth1".to_owned(), Some(veth(Some(without(XdpFeatures::SEND)), here(true))))]);
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

/// A host's facts in a file, as `load --check --json` prints them, and what is to be said of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    #[expect(dead_code, reason = "for people")]
    about: String,
    facts: Facts,
    expected: Vec<Expected>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    severity: String,
    code: String,
    remedy: Option<String>,
}

const HOSTS: [(&str, &str); 10] = [
    ("mlx5", include_str!("hosts/mlx5.json")),
    ("ice", include_str!("hosts/ice.json")),
    ("i40e", include_str!("hosts/i40e.json")),
    ("ixgbe", include_str!("hosts/ixgbe.json")),
    ("ena", include_str!("hosts/ena.json")),
    ("gve", include_str!("hosts/gve.json")),
    ("virtio_net", include_str!("hosts/virtio_net.json")),
    ("bnxt", include_str!("hosts/bnxt.json")),
    ("veth", include_str!("hosts/veth.json")),
    ("bridge", include_str!("hosts/bridge.json")),
];

/// Before, nothing was said of channels, of processors or of what a driver asks for, and a load on
/// five of these hosts failed midway or lost answers.
#[test]
fn ten_hosts_are_judged_rightly() {
    for (name, text) in HOSTS {
        let Recorded { facts, expected, .. } = serde_json::from_str(text).expect(name);
        let found: Vec<_> = judge(&facts, XdpPolicy::Native)
            .into_iter()
            .map(|Finding { severity, code, remedy, .. }| Expected {
                severity: severity.to_string(),
                code: code.to_owned(),
                remedy,
            })
            .collect();
        assert_eq!(found, expected, "{name}");
        // With a mode to fall back to, a driver's limits are no reason not to try.
        let refuses = judge(&facts, XdpPolicy::NativeOrGeneric)
            .iter()
            .any(|finding| finding.severity == Severity::Refuses);
        assert!(!refuses, "{name}");
    }
}

/// What is redirected to a device that does not send it is lost without a trace.
#[test]
fn answers_are_redirected_only_where_every_processor_sends() {
    let with = |driver: &str, features, combined| {
        let channels = Some(Channels { combined, ..Channels::default() });
        let link = LinkFacts { driver: driver.to_owned(), features, channels, ..card() };
        answers_redirected(&link, 8, 4096)
    };
    assert!(with("ice", Some(ALL), 4) && with("mlx5_core", Some(ALL), 8));
    assert!(!with("mlx5_core", Some(ALL), 7) && !with("i40e", Some(ALL), 1));
    assert!(!with("ice", Some(without(XdpFeatures::SEND)), 8));
    // Before, frames in several buffers were redirected to devices that do not send them.
    let in_one = Some(without(XdpFeatures::SEND_FRAGS));
    let jumbo = LinkFacts { mtu: 9000, features: in_one, ..card() };
    assert!(!answers_redirected(&jumbo, 8, 4096) && answers_redirected(&jumbo, 8, 65_536));
    assert!(with("ice", in_one, 4));
    // Before Linux 6.3 the kernel cannot say: a bridge never sends.
    assert!(with("ice", None, 4) && !with("bridge", None, 4) && !with("i40e", None, 4));
}

/// Before, `load` found the one out when half of its work was done, misread the packets of the second
/// and asked the wrong tables about the third.
#[test]
fn hosts_and_devices_that_cannot_be_used_are_refused_before() {
    let facts = Facts { waits_for_programs: false, ..host(Vec::new()) };
    let findings = judge(&facts, XdpPolicy::Native);
    assert_eq!((findings[0].code, findings[0].severity), ("no_grace_period", Severity::Refuses));
    let tun = LinkFacts { ethernet: false, ..card() };
    assert_eq!(said(XdpPolicy::Native, tun), [(Severity::Refuses, "no_ethernet")]);
    let member = LinkFacts { vrf: Some("red".to_owned()), ..card() };
    assert_eq!(said(XdpPolicy::Generic, member)[0], (Severity::Refuses, "vrf"));
}

/// Before, the remedy was `xdp off`, which the kernel refuses while a link is in place.
#[test]
fn a_program_that_a_link_holds_has_its_own_remedy() {
    let link =
        LinkFacts { program: Some(Occupant { id: 7, link: Some(12), instance: None }), ..card() };
    let findings = judge(&host(vec![("eth1".to_owned(), Some(link))]), XdpPolicy::Native);
    assert_eq!(findings[0].remedy.as_deref(), Some("bpftool link detach id 12"));
}
