//! Connections between the same ends in two zones. The second was mixed into the first once.

use std::net::{Shutdown, SocketAddr, TcpStream};

use anyhow::{Context as _, ensure};
use millrace_common::flow::FlowKey;
use millrace_common::icmp;
use millrace_common::packet::PacketBytes as _;
use millrace_common::verdict::Verdict;
use millrace_common::zone::{Zone, Zones};
use millrace_harness::gateway::fake_relay::within;
use millrace_harness::gateway::test_run::{
    Bench, DROP, Family, LOOPBACK, PASS, Programs, REDIRECT, RULES, flow,
};
use millrace_harness::net::frames::flag::{ACK, SYN};
use millrace_harness::net::frames::{Frame, SERVICE_TAG, TAG};
use millrace_harness::net::raw_socket::Raw;

use super::related::fragment;

const BY_DEVICE: Zones = Zones { by_device: true, by_vlan: false };
const BY_VLAN: Zones = Zones { by_device: false, by_vlan: true };
const BY_BOTH: Zones = Zones { by_device: true, by_vlan: true };
/// Where no frame of a test run comes from.
const ELSEWHERE: (u32, u32) = (99, 7);
/// The tag of a frame here, as a VLAN.
const VLAN: u32 = 100;

/// Where a frame with these tags comes from.
fn here(zones: Zones, tags: &[u16]) -> Zone {
    let vlans = tags.iter().fold(0, |vlans, _| vlans << 12 | VLAN);
    Zone::new(zones, LOOPBACK, vlans)
}

fn elsewhere(zones: Zones) -> Zone {
    Zone::new(zones, ELSEWHERE.0, ELSEWHERE.1)
}

/// Puts a flow of the relay's into a zone.
fn put(programs: &mut Programs, key: FlowKey, zone: Zone, accepted: bool) -> anyhow::Result<()> {
    programs.begin_in(key, zone)?;
    if accepted {
        programs.accept_in(key, zone)?;
    } else {
        programs.established()?.remove(&key)?;
    }
    Ok(())
}

fn forget(programs: &mut Programs, key: &FlowKey) -> anyhow::Result<()> {
    programs.established()?.remove(key)?;
    let _ = programs.pending()?.remove(key);
    Ok(())
}

/// The ICMP error of a router about what the relay has answered to this segment.
fn report(family: Family, segment: &Frame) -> anyhow::Result<Vec<u8>> {
    let answer = Frame::tcp(segment.destination, segment.source, ACK, 7).bytes();
    let (answer, router) = (&answer[14..], family.host(1, 5).into());
    let words = match family {
        Family::Ipv4 => {
            let words = answer.words(0).context("a short segment")?;
            icmp::fragmentation_needed(&words, router, 1300).to_vec()
        }
        Family::Ipv6 => {
            let words = answer.words(0).context("a short segment")?;
            icmp::packet_too_big(&words, router, 1300).to_vec()
        }
    };
    let mut frame = segment.bytes();
    frame.truncate(segment.network_at());
    frame.extend(words.into_iter().flat_map(u32::to_ne_bytes));
    Ok(frame)
}

/// Everything about zones, of one family.
pub(super) fn zones(programs: &mut Programs, bench: &Bench, family: Family) -> anyhow::Result<()> {
    programs.close_ports()?; // whatever earlier rules have left open
    let connection = TcpStream::connect(family.server())?;
    let accepted = bench.listeners[usize::from(family == Family::Ipv6)].accept()?;
    for zones in [BY_DEVICE, BY_VLAN, BY_BOTH] {
        programs.zones(zones)?;
        for tags in [&[][..], &[TAG], &[SERVICE_TAG, TAG]] {
            beginning(programs, family, zones, tags)?;
            kept_apart(programs, family, zones, (accepted.1, tags))?;
            unknown(programs, family, zones, tags)?;
        }
        fragments(programs, family, zones)?;
    }
    programs.zones(BY_DEVICE)?;
    ruled(programs, family, accepted.1)?;
    left_over(programs, family, accepted.1, || {
        // The client ends it first, whoever else holds its socket: the other end has TIME-WAIT else.
        connection.shutdown(Shutdown::Both)?;
        drop((connection, accepted.0));
        Ok(())
    })?;
    if family == Family::Ipv4 {
        handshake(programs)?;
    }
    // Where there is one zone, a connection's packets may come from anywhere.
    programs.zones(Zones::default())?;
    let segment = family.from_client(ACK).from_port(45_000);
    put(programs, flow(&segment), Zone::ANY, true)?;
    for tags in [&[][..], &[TAG], &[SERVICE_TAG, TAG]] {
        programs.ingress(&segment.tagged(tags), Verdict::DivertEstablished, REDIRECT)?;
    }
    forget(programs, &flow(&segment))
}

/// A flow is in the zone of its SYN.
fn beginning(
    programs: &mut Programs,
    family: Family,
    zones: Zones,
    tags: &[u16],
) -> anyhow::Result<()> {
    let frame = |flags| family.from_client(flags).from_port(45_000).tagged(tags);
    let key = flow(&frame(SYN));
    programs.ingress(&frame(SYN), Verdict::DivertNew, REDIRECT)?;
    ensure!(programs.pending()?.get(&key, 0)?.zone == here(zones, tags), "{zones:?} {tags:?}");
    programs.ingress(&frame(ACK), Verdict::DivertPending, REDIRECT)?;
    if zones.by_vlan {
        let other = if tags.is_empty() { &[TAG][..] } else { &[] };
        programs.ingress(&frame(ACK).tagged(other), Verdict::PassOtherZone, PASS)?;
    }
    forget(programs, &key)
}

/// What comes from another zone than the connection's goes to its server, and changes nothing.
fn kept_apart(
    programs: &mut Programs,
    family: Family,
    zones: Zones,
    (client, tags): (SocketAddr, &[u16]),
) -> anyhow::Result<()> {
    let frame = |flags| Frame::tcp(client, family.server(), flags, 7).tagged(tags);
    let (syn, segment) = (frame(SYN), frame(ACK));
    let key = flow(&segment);
    let (first, report) = (fragment(family, &segment, 3, 0, true), report(family, &segment)?);
    let (here, elsewhere) = (here(zones, tags), elsewhere(zones));
    for (accepted, verdict) in [(false, Verdict::DivertPending), (true, Verdict::DivertEstablished)]
    {
        put(programs, key, elsewhere, accepted)?;
        for frame in [&segment, &syn] {
            programs.ingress(frame, Verdict::PassOtherZone, PASS)?;
        }
        programs.expect("ingress", &first, Verdict::PassFragment, PASS)?;
        programs.expect("ingress", &report, Verdict::PassProtocol, PASS)?;
        ensure!(programs.has(&key)? == (true, accepted), "another zone has erased the flow");

        put(programs, key, here, accepted)?;
        programs.ingress(&segment, verdict, REDIRECT)?;
        programs.expect("ingress", &first, Verdict::DivertFragment, REDIRECT)?;
        programs.expect("ingress", &report, Verdict::DivertReport, REDIRECT)?;
    }
    forget(programs, &key)
}

/// What rules say of connections that are kept apart.
fn ruled(programs: &mut Programs, family: Family, client: SocketAddr) -> anyhow::Result<()> {
    let frame = |flags| Frame::tcp(client, family.server(), flags, 7);
    let (syn, segment) = (frame(SYN), frame(ACK));
    let key = flow(&segment);
    let (here, elsewhere) = (here(BY_DEVICE, &[]), elsewhere(BY_DEVICE));
    put(programs, key, elsewhere, true)?;
    for (action, verdict, returned) in
        [("pass", Verdict::PassOtherZone, PASS), ("drop", Verdict::DropRule, DROP)]
    {
        let rule = |network| format!("{action} tcp {network} port 7000\n");
        programs.rules(&[rule("10.77.2.0/24"), rule("fd77:2::/64")].concat(), false)?;
        programs.ingress(&syn, verdict, returned)?;
        programs.ingress(&segment, Verdict::PassOtherZone, PASS)?;
        ensure!(programs.has(&key)? == (true, true), "another zone has erased the flow");
    }
    // Nor does a rule alone mix them.
    put(programs, key, elsewhere, true)?;
    programs.rules(RULES, true)?;
    programs.ingress(&segment, Verdict::PassOtherZone, PASS)?;
    programs.ingress(&syn, Verdict::PassOtherZone, PASS)?;
    programs.rules(RULES, false)?;
    // What is dropped for its source is dropped in every zone where a rule is for its destination.
    programs.rules(&format!("{RULES}drop from {}\n", client.ip()), false)?;
    programs.ingress(&segment, Verdict::DropSource, DROP)?;
    programs.rules(&format!("drop from {}\n", client.ip()), false)?;
    programs.ingress(&segment, Verdict::PassOtherZone, PASS)?;
    put(programs, key, here, true)?;
    programs.ingress(&segment, Verdict::DropSource, DROP)?;
    programs.rules(RULES, false)?;
    forget(programs, &key)
}

/// A flow whose zone is not known is in that of its next segment.
fn unknown(
    programs: &mut Programs,
    family: Family,
    zones: Zones,
    tags: &[u16],
) -> anyhow::Result<()> {
    let segment = family.from_client(ACK).from_port(45_000).tagged(tags);
    let key = flow(&segment);
    for (accepted, verdict) in [(false, Verdict::DivertPending), (true, Verdict::DivertEstablished)]
    {
        put(programs, key, Zone::UNKNOWN, accepted)?;
        programs.ingress(&segment, verdict, REDIRECT)?;
        let zone = if accepted {
            programs.established()?.get(&key)?.zone
        } else {
            programs.pending()?.get(&key, 0)?.zone
        };
        ensure!(zone == here(zones, tags), "{zones:?} {tags:?}: {zone:?}");
        programs.ingress(&segment, verdict, REDIRECT)?;
    }
    forget(programs, &key)
}

/// Fragments of one zone do not end those of another with the same number.
fn fragments(programs: &mut Programs, family: Family, zones: Zones) -> anyhow::Result<()> {
    let segment = family.from_client(ACK).from_port(45_000);
    let key = flow(&segment);
    let part =
        |tags: &[u16], offset, more| fragment(family, &segment.tagged(tags), 5, offset, more);
    put(programs, key, here(zones, &[]), true)?;
    programs.expect("ingress", &part(&[], 0, true), Verdict::DivertFragment, REDIRECT)?;
    programs.expect("ingress", &part(&[], 1200, true), Verdict::DivertFragment, REDIRECT)?;
    let (verdict, action) = if zones.by_vlan {
        (Verdict::PassFragment, PASS)
    } else {
        (Verdict::DivertFragment, REDIRECT)
    };
    for (offset, more) in [(0, true), (1200, true)] {
        programs.expect("ingress", &part(&[TAG], offset, more), verdict, action)?;
    }
    programs.expect("ingress", &part(&[], 2400, false), Verdict::DivertFragment, REDIRECT)?;
    forget(programs, &key)
}

/// What an ended connection has left keeps nobody out for longer than the relay takes to notice.
fn left_over(
    programs: &mut Programs,
    family: Family,
    client: SocketAddr,
    end: impl FnOnce() -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let syn = Frame::tcp(client, family.server(), SYN, 7);
    let key = flow(&syn);
    put(programs, key, elsewhere(BY_DEVICE), false)?;
    programs.ingress(&syn, Verdict::PassOtherZone, PASS)?;
    end()?;
    put(programs, key, elsewhere(BY_DEVICE), true)?;
    programs.ingress(&syn, Verdict::PassOtherZone, PASS)?;
    within("the end of the connection", || {
        put(programs, key, elsewhere(BY_DEVICE), false)?;
        let outcome = programs.run("ingress", &syn.bytes())?;
        Ok((outcome.counted == [(Verdict::DivertNew.name(), 1)]).then_some(()))
    })?;
    ensure!(programs.pending()?.get(&key, 0)?.zone == here(BY_DEVICE, &[]));
    forget(programs, &key)
}

/// A handshake that has begun in another zone is not disturbed. Its SYN was answered towards nobody.
fn handshake(programs: &mut Programs) -> anyhow::Result<()> {
    let syn = Family::Ipv4.from_client(SYN).from(Family::Ipv4.host(1, 77)).from_port(45_001);
    let key = flow(&syn);
    put(programs, key, elsewhere(BY_DEVICE), false)?;
    programs.ingress(&syn, Verdict::DivertNew, REDIRECT)?;
    Raw::new()?.send(&syn)?;
    within("a handshake", || {
        put(programs, key, elsewhere(BY_DEVICE), false)?;
        let outcome = programs.run("ingress", &syn.bytes())?;
        Ok((outcome.counted == [(Verdict::PassOtherZone.name(), 1)]).then_some(()))
    })?;
    forget(programs, &key)
}
