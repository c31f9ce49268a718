//! Where a packet's answer would go: asked of what begins something new, and of nothing else.

use anyhow::ensure;
use aya::programs::xdp::XdpMode;
use millrace_common::link::{ClientDevice, HardwareAddress, ReversePath};
use millrace_common::verdict::Verdict;
use millrace_harness::gateway::test_run::{
    Bench, CLOSED_PORT, Family, GATEWAY_MAC, PASS, Programs, REDIRECT, RULES, flow,
};
use millrace_harness::net::frames::flag::{ACK, SYN};
use millrace_harness::net::frames::{Frame, TAG};

/// What the host's routing says of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// It is behind the device by which the frame comes in.
    Here,
    /// It is behind another device.
    Elsewhere,
    /// There is no route to it, or one that leads nowhere.
    Nowhere,
}

use Source::{Elsewhere, Here, Nowhere};

/// Frames that come in by the device towards the clients.
struct Incoming<'a> {
    programs: &'a mut Programs,
    ifindex: u32,
    /// No two of them are of one flow.
    port: u16,
}

impl Incoming<'_> {
    fn check(&mut self, check: ReversePath) -> anyhow::Result<()> {
        let device = ClientDevice::new(2, HardwareAddress::new(GATEWAY_MAC));
        self.programs.device(self.ifindex, device.with_reverse_path(check))
    }

    /// A frame of a flow of its own, and what becomes of it.
    fn expect(&mut self, frame: &Frame, verdict: Verdict, action: u32) -> anyhow::Result<Frame> {
        self.port += 1;
        let frame = frame.from_port(self.port);
        self.expect_again(&frame, verdict, action)?;
        Ok(frame)
    }

    fn expect_again(&mut self, frame: &Frame, verdict: Verdict, action: u32) -> anyhow::Result<()> {
        let sent = frame.bytes();
        let came = self.programs.run_on(self.ifindex, "ingress", &sent)?;
        ensure!(
            came.counted == [(verdict.name(), 1)] && came.returned == action,
            "from {}, {} tag(s): expected {}, and not {:?}",
            frame.source,
            frame.tags.len(),
            verdict.name(),
            came.counted
        );
        ensure!(action != PASS || came.out == sent, "what is passed was changed");
        self.programs.seen.insert(verdict);
        Ok(())
    }
}

/// Every kind of source under every check.
pub(super) fn checked(
    programs: &mut Programs,
    bench: &Bench,
    family: Family,
) -> anyhow::Result<()> {
    let gateway = &bench.gateway;
    let (ip, length) = if family == Family::Ipv4 { ("-4", 32) } else { ("-6", 128) };
    for (host, kind) in [(1, "blackhole"), (2, "unreachable"), (3, "prohibit")] {
        gateway.ip(&format!("{ip} route add {kind} {}/{length}", family.host(4, host)))?;
    }
    let sources = [
        (family.client().ip(), Here),
        // Its hardware address is not known.
        (family.host(1, 98), Here),
        (family.host(2, 98), Elsewhere),
        (family.host(4, 98), Nowhere),
        (family.host(4, 1), Nowhere),
        (family.host(4, 2), Nowhere),
        (family.host(4, 3), Nowhere),
        // The gateway's own.
        (family.host(1, 1), Nowhere),
    ];
    let program = programs.program_mut("pass")?;
    let link = program.attach("eth1", XdpMode::Driver)?;
    let port = if family == Family::Ipv4 { 45_000 } else { 46_000 };
    let mut incoming = Incoming { programs, ifindex: bench.client_ifindex, port };
    let syn = family.from_client(SYN);
    let datagram = Frame::udp(syn.source, syn.destination);
    let segment = family.from_client(ACK);
    for by_rule in [false, true] {
        incoming.programs.rules(RULES, by_rule)?;
        let new = if by_rule { Verdict::DivertRule } else { Verdict::DivertNew };
        for check in [ReversePath::Off, ReversePath::Loose, ReversePath::Strict] {
            incoming.check(check)?;
            for (source, is) in sources {
                for (tags, taken) in [
                    (&[][..], check == ReversePath::Off || is == Here),
                    // The route names the VLAN's device.
                    (&[TAG], check == ReversePath::Off || is != Nowhere),
                ] {
                    let taken = taken || check == ReversePath::Loose && is == Elsewhere;
                    // Without flows, what follows a SYN is to go where the SYN went.
                    let segment = by_rule.then_some((&segment, new));
                    let both = [(&syn, new), (&datagram, Verdict::DivertDatagram)];
                    for (frame, verdict) in both.into_iter().chain(segment) {
                        let frame = frame.from(source).tagged(tags);
                        if taken {
                            incoming.expect(&frame, verdict, REDIRECT)?;
                            continue;
                        }
                        let frame = incoming.expect(&frame, Verdict::PassReversePath, PASS)?;
                        let has = incoming.programs.has(&flow(&frame))?;
                        ensure!(has == (false, false), "a flow is kept");
                    }
                }
            }
        }
    }
    incoming.programs.rules(RULES, false)?;
    not_asked(&mut incoming, bench, family)?;
    incoming.check(ReversePath::Off)?;
    programs.program_mut("pass")?.detach(link)?;
    Ok(())
}

/// What begins nothing, what is refused anyway, and what the kernel does not tell.
fn not_asked(incoming: &mut Incoming<'_>, bench: &Bench, family: Family) -> anyhow::Result<()> {
    incoming.check(ReversePath::Strict)?;
    let from = |host, flags| {
        let server = family.server();
        Frame::tcp((family.host(2, host), 47_000).into(), server, flags, 7)
    };
    let segment = from(98, ACK);
    incoming.programs.begin(flow(&segment))?;
    incoming.expect_again(&segment, Verdict::DivertPending, REDIRECT)?;
    incoming.programs.accept(flow(&segment))?;
    incoming.expect_again(&segment, Verdict::DivertEstablished, REDIRECT)?;
    incoming.expect(&from(97, SYN).to_port(CLOSED_PORT), Verdict::PassNoListener, PASS)?;
    incoming.expect(&from(97, SYN), Verdict::PassReversePath, PASS)?;
    let exclude = format!("{RULES}exclude {}\n", family.host(2, 97));
    incoming.programs.rules(&exclude, false)?;
    incoming.expect(&from(97, SYN), Verdict::PassExcluded, PASS)?;
    incoming.programs.rules(RULES, false)?;

    // A link that does not forward is asked in vain: it says nothing about the source.
    let version = if family == Family::Ipv4 { "ipv4" } else { "ipv6" };
    let forwarding = format!("net/{version}/conf/gw/forwarding");
    bench.gateway.sysctl(&forwarding, "0")?;
    incoming.expect(&from(98, SYN), Verdict::DivertNew, REDIRECT)?;
    bench.gateway.sysctl(&forwarding, "1")?;
    incoming.expect(&from(98, SYN), Verdict::PassReversePath, PASS)?;
    incoming.programs.established()?.remove(&flow(&segment))?;
    Ok(())
}
