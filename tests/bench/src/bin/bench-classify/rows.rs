//! The packets whose cost is measured: one for each way through the programs that a packet can take
//! again and again.

use millrace_bench::packet_cost::{DROPPED_PORT, OTHER_PORT, PASSED_PORT, Sources, segment};
use millrace_common::bench::Variation;
use millrace_common::verdict::Verdict;
use millrace_harness::gateway::test_run::{
    CLOSED_PORT, Family, GENERATION, Programs, flow, now_ns,
};
use millrace_harness::net::frames::flag::{ACK, RST, SYN};
use millrace_harness::net::frames::{Frame, SERVICE_TAG, TAG};

/// No connection has it.
const UNKNOWN: u16 = 50_000;
/// A connection has it that the relay has not accepted yet.
const PENDING: u16 = 50_001;
/// Sources of a flood of SYNs: four times what the table of pending flows holds.
const SPOOFED: u32 = 1 << 20;

/// What is measured, by its name in the JSON report.
pub(crate) const NO_RULE: &str = "no rule";
pub(crate) const ESTABLISHED: &str = "established flow";
pub(crate) const ESTABLISHED_COLD: &str = "established flow, each packet another";

/// A packet, or packets of many flows, with the same way through a program.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) frame: Vec<u8>,
    /// If every packet is of another flow.
    pub(crate) variation: Option<Variation>,
    /// Its flow has to be on its way when the packets come.
    flow: Option<Frame>,
    /// Whether the relay beats.
    is_alive: bool,
}

impl Row {
    fn ingress(name: &'static str, verdict: Verdict, frame: &Frame) -> Self {
        Self {
            name,
            program: "ingress",
            verdict,
            frame: frame.bytes(),
            variation: None,
            flow: None,
            is_alive: true,
        }
    }

    fn egress(name: &'static str, verdict: Verdict, frame: &Frame) -> Self {
        Self { program: "egress", ..Self::ingress(name, verdict, frame) }
    }

    /// Makes the state that the packets want to find.
    pub(crate) fn prepare(&self, programs: &mut Programs) -> anyhow::Result<()> {
        let now_ns = now_ns();
        // A SYN that was diverted a while ago, and comes again, was not answered: it would be passed.
        // Those of another run of the relay do not count.
        let is_syn = self.verdict == Verdict::DivertNew;
        let generation = if is_syn { now_ns } else { GENERATION };
        programs.heartbeat(if self.is_alive { now_ns } else { 0 }, generation)?;
        if let Some(frame) = &self.flow {
            programs.begin(flow(frame))?;
        }
        Ok(())
    }
}

/// All of one family, in the order of the questions that the program asks.
pub(crate) fn all(family: Family, clients: &Sources) -> Vec<Row> {
    let mut rows = misfits(family);
    rows.extend(unruled(family));
    rows.extend(following(family, clients));
    rows.extend(beginning(family));
    rows.extend(returning(family));
    rows
}

/// Mode `all`: by rule alone.
pub(crate) fn by_rule(family: Family, clients: &Sources) -> Vec<Row> {
    let later = segment(family);
    vec![
        Row::ingress("by rule: SYN", Verdict::DivertRule, &family.from_client(SYN)),
        Row::ingress("by rule: later segment", Verdict::DivertRule, &later),
        Row {
            variation: Some(clients.vary(&later)),
            ..Row::ingress("by rule: each packet of another client", Verdict::DivertRule, &later)
        },
    ]
}

/// What the programs do not understand.
fn misfits(family: Family) -> Vec<Row> {
    let frame = segment(family);
    let with = |offset: usize, bytes: &[u8]| {
        let mut frame = frame.bytes();
        frame[offset..offset + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let row = |name, verdict, frame| Row { frame, ..Row::ingress(name, verdict, &segment(family)) };
    let mut rows = vec![row("ARP", Verdict::PassEtherType, with(12, &[0x08, 0x06]))];
    match family {
        Family::Ipv4 => rows.extend([
            row("IPv4 options", Verdict::PassIpv4Options, with(14, &[0x46])),
            row("fragment", Verdict::PassFragment, with(20, &[0x20, 0])),
            row("ICMP", Verdict::PassProtocol, with(23, &[1])),
        ]),
        Family::Ipv6 => rows.extend([
            row("IPv6 extension header", Verdict::PassIpv6Extension, with(20, &[0])),
            row("fragment", Verdict::PassFragment, with(20, &[44])),
            row("ICMP", Verdict::PassProtocol, with(20, &[58])),
        ]),
    }
    rows
}

/// To ports without a rule.
fn unruled(family: Family) -> Vec<Row> {
    let frame = segment(family).to_port(OTHER_PORT);
    let datagram = Frame::udp(frame.source, frame.destination);
    let row = |name, frame: &Frame| Row::ingress(name, Verdict::PassNoRule, frame);
    vec![
        row(NO_RULE, &frame),
        row("no rule, UDP", &datagram),
        row("no rule, VLAN", &frame.tagged(&[TAG])),
        row("no rule, two VLAN tags", &frame.tagged(&[SERVICE_TAG, TAG])),
    ]
}

/// Of connections that have begun.
fn following(family: Family, clients: &Sources) -> Vec<Row> {
    let later = segment(family);
    let pending = later.from_port(PENDING);
    let established = later.from(clients.address(0));
    let unknown = later.from_port(UNKNOWN);
    let reset = family.from_client(RST).from_port(UNKNOWN);
    let row = Row::ingress;
    vec![
        row("no flow, reset", Verdict::PassNoFlow, &reset),
        row("no flow, VLAN", Verdict::PassNoFlow, &reset.tagged(&[TAG])),
        row("no flow, acknowledgement", Verdict::PassNoFlow, &unknown),
        row(ESTABLISHED, Verdict::DivertEstablished, &established),
        Row {
            variation: Some(clients.vary(&established)),
            ..row(ESTABLISHED_COLD, Verdict::DivertEstablished, &established)
        },
        Row {
            flow: Some(pending.clone()),
            ..row("pending flow", Verdict::DivertPending, &pending)
        },
    ]
}

/// SYNs and datagrams.
fn beginning(family: Family) -> Vec<Row> {
    let syn = family.from_client(SYN);
    let flood = Sources::spoofed(family, SPOOFED);
    let datagram = Frame::udp(syn.source, syn.destination);
    let row = Row::ingress;
    vec![
        row("SYN, rule passes", Verdict::PassRule, &syn.to_port(PASSED_PORT)),
        row("SYN, rule drops", Verdict::DropRule, &syn.to_port(DROPPED_PORT)),
        row("SYN, excluded", Verdict::PassExcluded, &syn.from(family.host(1, 66))),
        Row { is_alive: false, ..row("SYN, no heartbeat", Verdict::PassNoHeartbeat, &syn) },
        row("SYN, no listener", Verdict::PassNoListener, &syn.to_port(CLOSED_PORT)),
        row("SYN, diverted", Verdict::DivertNew, &syn),
        Row {
            variation: Some(flood.vary(&syn)),
            ..row("SYN flood, each of another source", Verdict::DivertNew, &syn)
        },
        row("datagram, diverted", Verdict::DivertDatagram, &datagram),
    ]
}

/// Out of the relay namespace.
fn returning(family: Family) -> Vec<Row> {
    let answer = family.from_relay(family.client().ip(), ACK, 7);
    let stranger = family.from_relay(family.host(1, 99), ACK, 7);
    let unrouted = family.from_relay(family.host(3, 1), ACK, 7);
    let refusal = family.from_relay(family.client().ip(), RST | ACK, 0);
    vec![
        Row::egress("answer, forwarded", Verdict::ReturnForwarded, &answer),
        Row::egress("answer, no neighbour", Verdict::ReturnNoNeighbour, &stranger),
        Row::egress("answer, no route", Verdict::ReturnNoRoute, &unrouted),
        Row::egress("reset, held", Verdict::ReturnResetHeld, &refusal),
    ]
}
