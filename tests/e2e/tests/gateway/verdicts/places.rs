//! Rules that name where packets come from: a source, a device, a VLAN.

use anyhow::Context as _;
use millrace_common::verdict::Verdict;
use millrace_harness::gateway::test_run::{DROP, Family, PASS, Programs, REDIRECT, RULES, flow};
use millrace_harness::net::frames::flag::{ACK, RST, SYN};
use millrace_harness::net::frames::{Frame, SERVICE_TAG, TAG};

use super::related::fragment;

/// No tag, one, two: as rules name them, for every tag here has identifier 100.
const VLANS: [(&str, &[u16]); 3] =
    [("none", &[]), ("100", &[TAG]), ("100.100", &[SERVICE_TAG, TAG])];

/// Everything about them, of one family.
pub(super) fn places(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    programs.close_ports()?; // whatever earlier rules have left open
    named(programs, family)?;
    ranked(programs, family)?;
    excluded(programs, family)?;
    sources(programs, family)?;
    blocked(programs, family)?;
    programs.rules(RULES, false)
}

fn network(family: Family, number: u8) -> String {
    match family {
        Family::Ipv4 => format!("10.77.{number}.0/24"),
        Family::Ipv6 => format!("fd77:{number}::/64"),
    }
}

fn syn(family: Family) -> Frame {
    family.from_client(SYN).from_port(46_000)
}

/// What a SYN gets, and what its flow is forgotten by.
fn gets(programs: &mut Programs, syn: &Frame, verdict: Verdict) -> anyhow::Result<()> {
    let action = match verdict.name().split_once('/').context("a verdict")?.0 {
        "divert" => REDIRECT,
        "drop" => DROP,
        _ => PASS,
    };
    programs.ingress(syn, verdict, action).with_context(|| format!("{:?}", syn.tags))?;
    let _ = programs.pending()?.remove(&flow(syn));
    Ok(())
}

/// A rule is for packets from the place that it names.
fn named(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    let (servers, syn) = (network(family, 2), syn(family));
    let datagram = Frame::udp(syn.source, syn.destination);
    for (vlan, tags) in VLANS {
        for (place, here) in [
            ("device lo".to_owned(), true),
            ("device client".to_owned(), false),
            (format!("vlan {vlan}"), true),
            ("vlan 99".to_owned(), false),
            ("vlan 100.99".to_owned(), false),
            (format!("device lo vlan {vlan}"), true),
            (format!("device client vlan {vlan}"), false),
            ("device lo vlan 99".to_owned(), false),
        ] {
            let rule = |protocol| format!("divert {protocol} {servers} port 7000 {place}\n");
            programs.rules(&(rule("tcp") + &rule("udp")), false)?;
            let (new, any) = if here {
                (Verdict::DivertNew, Verdict::DivertDatagram)
            } else {
                (Verdict::PassNoRule, Verdict::PassNoRule)
            };
            gets(programs, &syn.tagged(tags), new).context(place.clone())?;
            gets(programs, &datagram.tagged(tags), any).context(place)?;
        }
    }
    Ok(())
}

/// Which rule decides where several are for a packet.
fn ranked(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    let (servers, frame) = (network(family, 2), syn(family).tagged(&[TAG]));
    let (server, client) = (frame.destination.ip(), frame.source.ip());
    // Each comes before those behind it.
    let lines = [
        format!("pass tcp {servers} port any from {client}"),
        format!("divert tcp {servers} port any from {} vlan 100", network(family, 1)),
        format!("pass tcp {server} port any"),
        format!("divert tcp {servers} port any device lo vlan 100"),
        format!("pass tcp {servers} port any vlan 100"),
        format!("divert tcp {servers} port any device lo"),
        format!("pass tcp {servers} port 7000"),
        format!("divert tcp {servers} port any"),
    ];
    for first in 0..lines.len() {
        for others in [&[][..], &["device client", "vlan none", "device client vlan 100"]] {
            let elsewhere =
                others.iter().map(|place| format!("drop tcp {server} port 7000 {place}"));
            let rules: Vec<_> = lines[first..].iter().cloned().chain(elsewhere).collect();
            programs.rules(&rules.join("\n"), false)?;
            let verdict = [Verdict::PassRule, Verdict::DivertNew][first % 2];
            gets(programs, &frame, verdict).with_context(|| format!("{rules:#?}"))?;
        }
    }
    Ok(())
}

/// What is said of sources alone may be so of a place.
fn excluded(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    let (clients, frame) = (network(family, 1), syn(family).tagged(&[TAG]));
    let client = frame.source.ip();
    for (said, verdict) in [
        (format!("exclude {clients} vlan 100"), Verdict::PassExcluded),
        (format!("exclude {clients} vlan 99"), Verdict::DivertNew),
        (format!("drop from {clients} device lo"), Verdict::DropSource),
        (format!("drop from {clients} device client"), Verdict::DivertNew),
        (format!("drop from {client} device client\nexclude {clients}"), Verdict::PassExcluded),
        (format!("drop from {client}\nexclude {clients} device lo"), Verdict::DropSource),
        (format!("drop from {clients}\nexclude {clients} vlan 100"), Verdict::PassExcluded),
        (format!("drop from {clients} vlan 100\nexclude {clients} device lo"), Verdict::DropSource),
    ] {
        programs.rules(&format!("{RULES}{said}\n"), false)?;
        gets(programs, &frame, verdict).context(said)?;
    }
    Ok(())
}

/// A rule that names a source is for that alone: diversion may begin with a few clients.
fn sources(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    let (servers, syn) = (network(family, 2), syn(family));
    let other = syn.from(family.host(1, 12));
    programs.rules(&format!("divert tcp {servers} port 7000 from {}", syn.source.ip()), false)?;
    gets(programs, &syn, Verdict::DivertNew)?;
    gets(programs, &other, Verdict::PassNoRule)?;
    let rules = format!(
        "divert tcp {servers} port 7000 from {clients}\npass tcp {server} port 7000\ndrop tcp {servers} \
         port 7000 from {client} vlan 100",
        clients = network(family, 1),
        server = syn.destination.ip(),
        client = syn.source.ip(),
    );
    programs.rules(&rules, false)?;
    gets(programs, &syn, Verdict::DivertNew)?;
    gets(programs, &syn.tagged(&[TAG]), Verdict::DropSource)?;
    gets(programs, &other.tagged(&[TAG]), Verdict::DivertNew)?;
    gets(programs, &syn.from(family.host(2, 12)), Verdict::PassRule)
}

/// A source may be kept from some destinations alone: on a connection too that the relay has.
fn blocked(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    let of = |flags| family.from_client(flags).from_port(46_000);
    let (syn, segment, server) = (of(SYN), of(ACK), of(SYN).destination.ip());
    let (client, other) = (syn.source.ip(), family.host(1, 12));
    programs.rules(RULES, false)?;
    programs.accept(flow(&segment))?;
    for by_rule in [false, true] {
        let block = format!("drop tcp {server} port 7000 from {client} device lo\n");
        programs.rules(&format!("{RULES}{block}"), by_rule)?;
        for frame in [&syn, &segment, &of(RST), &segment.from_port(46_001)] {
            programs.ingress(frame, Verdict::DropSource, DROP)?;
        }
        // Nothing of this needs the connection; what follows a fragment that was dropped follows nobody.
        programs.expect(
            "ingress",
            &fragment(family, &segment, 9, 0, true),
            Verdict::DropSource,
            DROP,
        )?;
        let later = fragment(family, &segment, 9, 1200, false);
        programs.expect("ingress", &later, Verdict::PassFragment, PASS)?;
        let new = if by_rule { Verdict::DivertRule } else { Verdict::DivertNew };
        gets(programs, &syn.from(other), new)?;
        let datagram = Frame::udp(syn.source, syn.destination);
        programs.ingress(&datagram, Verdict::DivertDatagram, REDIRECT)?;
        programs.ingress(&syn.to_port(7001), Verdict::PassNoListener, PASS)?;
    }
    // Of another place, and without a source, it is about new connections alone.
    for block in [
        format!("drop tcp {server} port 7000 from {client} vlan 100\n"),
        format!("drop tcp {server} port 7000\n"),
    ] {
        programs.rules(&format!("{RULES}{block}"), false)?;
        programs.ingress(&segment, Verdict::DivertEstablished, REDIRECT)?;
    }
    programs.ingress(&syn.from_port(46_001), Verdict::DropRule, DROP)?;
    programs.rules(RULES, false)?;
    programs.ingress(&segment, Verdict::DivertEstablished, REDIRECT)?;
    programs.established()?.remove(&flow(&segment))?;
    Ok(())
}
