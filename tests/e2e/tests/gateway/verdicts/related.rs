//! What belongs to a connection without being a segment of it.

use anyhow::ensure;
use millrace_common::verdict::Verdict;
use millrace_harness::gateway::test_run::{
    CLIENT_MAC, DROP, Family, GENERATION, PASS, Programs, REDIRECT, RELAY_MAC, RULES, flow, now_ns,
};
use millrace_harness::net::frames::Frame;
use millrace_harness::net::frames::flag::ACK;

/// A segment as a fragment with this identification, at this offset in bytes; `more` follow.
pub(super) fn fragment(
    family: Family,
    segment: &Frame,
    id: u8,
    offset: u16,
    more: bool,
) -> Vec<u8> {
    let (mut frame, at) = (segment.bytes(), segment.network_at());
    if family == Family::Ipv4 {
        frame[at + 4..at + 6].copy_from_slice(&[7, id]);
        let field = (offset / 8) | if more { 0x2000 } else { 0 };
        frame[at + 6..at + 8].copy_from_slice(&field.to_be_bytes());
    } else {
        frame[at + 6] = 44;
        let [high, low] = (offset | u16::from(more)).to_be_bytes();
        frame.splice(at + 40..at + 40, [6, 0, high, low, 7, 7, 7, id]);
    }
    frame
}

/// Fragments of a client's segment. All of them went to the server once.
pub(super) fn fragments(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    let segment = family.from_client(ACK).from_port(43_000);
    let fragment = |id: u8, offset: u16, more: bool| fragment(family, &segment, id, offset, more);
    let (first, middle, last) =
        (fragment(1, 0, true), fragment(1, 1200, true), fragment(1, 2400, false));
    let all = [&first, &middle, &last];
    for frame in all {
        programs.expect("ingress", frame, Verdict::PassFragment, PASS)?;
    }
    let key = flow(&segment);
    programs.accept(key)?;
    programs.expect("ingress", &middle, Verdict::PassFragment, PASS)?;
    for frame in all {
        let out = programs.expect("ingress", frame, Verdict::DivertFragment, REDIRECT)?;
        ensure!(out[..6] == RELAY_MAC && out[6..] == frame[6..], "only the destination changes");
    }
    programs.rules(&format!("{RULES}drop from {}\n", segment.source.ip()), false)?;
    for frame in all {
        programs.expect("ingress", frame, Verdict::DropSource, DROP)?;
    }
    programs.rules(RULES, false)?;
    let other = fragment(2, 1200, true);
    programs.expect("ingress", &other, Verdict::PassFragment, PASS)?;
    let mut foreign = last.clone();
    foreign[..6].copy_from_slice(&CLIENT_MAC);
    programs.expect("ingress", &foreign, Verdict::PassFragment, PASS)?;
    // Another run of the relay does not inherit them, nor does another segment with the number.
    programs.heartbeat(now_ns(), GENERATION + 1)?;
    programs.expect("ingress", &last, Verdict::PassFragment, PASS)?;
    programs.heartbeat(now_ns(), GENERATION)?;
    programs.expect("ingress", &last, Verdict::DivertFragment, REDIRECT)?;
    programs.established()?.remove(&key)?;
    programs.expect("ingress", &first, Verdict::PassFragment, PASS)?;
    programs.expect("ingress", &last, Verdict::PassFragment, PASS)?;
    Ok(())
}
