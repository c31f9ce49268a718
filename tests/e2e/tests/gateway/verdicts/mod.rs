//! Every verdict of the real eBPF object, by `BPF_PROG_TEST_RUN`.

use std::net::IpAddr;

use anyhow::ensure;
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, HashMap};
use millrace_common::abi::{self, ABI_VERSION, GatewayConfig, Intake, map};
use millrace_common::flow::PendingState;
use millrace_common::link::{ClientDevice, HardwareAddress};
use millrace_common::verdict::Verdict;
use millrace_harness::gateway::test_run::{
    Bench, CLIENT_MAC, CLIENT_PORT, CLOSED_PORT, DROP, Family, GATEWAY_MAC, GENERATION, HASH,
    LOOPBACK, PASS, Programs, REDIRECT, RELAY_MAC, RULES, SEND_BACK, flow, now_ns, with_pending,
};
use millrace_harness::net::frames::flag::{ACK, FIN, RST, SYN};
use millrace_harness::net::frames::{Frame, SERVICE_TAG, TAG};
use millrace_harness::net::netns::{Host, bpf_object};
use millrace_harness::system::privilege::privileged;

mod lost;
mod places;
mod related;
mod reverse_path;
mod zones;

fn unsupported(programs: &mut Programs) -> anyhow::Result<()> {
    let ipv4 = Family::Ipv4.from_client(SYN).bytes();
    let ipv6 = Family::Ipv6.from_client(SYN).bytes();
    let with = |frame: &[u8], offset: usize, bytes: &[u8]| {
        let mut frame = frame.to_vec();
        frame[offset..offset + bytes.len()].copy_from_slice(bytes);
        frame
    };
    for (frame, verdict) in [
        (ipv4[..33].to_vec(), Verdict::PassTruncated),
        (ipv4[..53].to_vec(), Verdict::PassTruncated),
        (ipv6[..53].to_vec(), Verdict::PassTruncated),
        (ipv6[..73].to_vec(), Verdict::PassTruncated),
        (with(&ipv4, 12, &[0x08, 0x06]), Verdict::PassEtherType),
        (Family::Ipv4.from_client(SYN).tagged(&[TAG; 3]).bytes(), Verdict::PassTooManyTags),
        (with(&ipv4, 14, &[0x65]), Verdict::PassMalformedIpv4),
        (with(&ipv4, 14, &[0x44]), Verdict::PassMalformedIpv4),
        (with(&ipv4, 14, &[0x46]), Verdict::PassIpv4Options),
        (with(&ipv6, 14, &[0x45]), Verdict::PassMalformedIpv6),
        (with(&ipv6, 20, &[0]), Verdict::PassIpv6Extension),
        (with(&ipv6, 20, &[44]), Verdict::PassFragment),
        (with(&ipv4, 20, &[0x20, 0]), Verdict::PassFragment),
        (with(&ipv4, 20, &[0, 1]), Verdict::PassFragment),
        (with(&ipv4, 23, &[1]), Verdict::PassProtocol),
        (with(&ipv6, 20, &[58]), Verdict::PassProtocol),
        (with(&ipv4, 46, &[0x40]), Verdict::PassMalformedTcp),
        (with(&ipv4, 46, &[0xf0]), Verdict::PassMalformedTcp),
        (with(&ipv4, 23, &[17]), Verdict::PassMalformedUdp),
    ] {
        let out = programs.expect("ingress", &frame, verdict, PASS)?;
        ensure!(out == frame, "{}: the frame was changed", verdict.name());
    }
    Ok(())
}

/// What a diverted frame must look like: the relay's address, no tags, nothing else.
fn is_diverted(out: &[u8], frame: &Frame) -> anyhow::Result<()> {
    let bare = frame.tagged(&[]).bytes();
    ensure!(out[..6] == RELAY_MAC, "to the relay's hardware address");
    ensure!(out[6..] == bare[6..], "nothing but the destination and the tags changes");
    Ok(())
}

/// Frames that a device sees and that are for somebody else. They were diverted once, and answered by
/// the gateway as well as by the host that they were for.
fn others(programs: &mut Programs, frame: &Frame, verdict: Verdict) -> anyhow::Result<()> {
    const VIRTUAL_ROUTER: [u8; 6] = [0, 0, 0x5e, 0, 1, 0x33];
    let to = |address: [u8; 6]| Frame { link: (address, frame.link.1), ..frame.clone() };
    for address in [VIRTUAL_ROUTER, [2, 0, 0, 0, 0, 2], [3, 0, 0, 0, 0, 1], [0xff; 6]] {
        programs.ingress(&to(address), Verdict::PassOtherHost, PASS)?;
    }
    let map = programs.map(map::SHARED_ADDRESSES)?;
    let mut shared: HashMap<_, u64, u32> = HashMap::try_from(map)?;
    let key = HardwareAddress::new(VIRTUAL_ROUTER).number();
    shared.insert(key, 0, 0)?;
    programs.ingress(&to(VIRTUAL_ROUTER), verdict, REDIRECT)?;
    HashMap::<_, u64, u32>::try_from(programs.map(map::SHARED_ADDRESSES)?)?.remove(&key)?;
    // A device that nobody has told of, and one whose address has changed.
    programs.device(LOOPBACK, ClientDevice::default())?;
    programs.ingress(frame, Verdict::PassOtherHost, PASS)?;
    programs.device(LOOPBACK, ClientDevice::new(1, HardwareAddress::new([2, 0, 0, 0, 0, 9])))?;
    programs.ingress(frame, Verdict::PassOtherHost, PASS)?;
    programs.device(LOOPBACK, ClientDevice::new(1, HardwareAddress::new(GATEWAY_MAC)))
}

fn beginning(programs: &mut Programs, nsid: u32, syn: &Frame) -> anyhow::Result<()> {
    programs.ingress(&syn.to_port(9), Verdict::PassNoRule, PASS)?;

    programs.config(ABI_VERSION + 1, nsid)?;
    programs.ingress(syn, Verdict::PassUnconfigured, PASS)?;
    programs.config(ABI_VERSION, nsid)?;

    programs.heartbeat(0, 0)?;
    programs.ingress(syn, Verdict::PassNoHeartbeat, PASS)?;
    programs.heartbeat(1, GENERATION)?;
    let mut map: Array<_, GatewayConfig> = Array::try_from(programs.map(map::CONFIG)?)?;
    let config = map.get(&0, 0)?;
    map.set(0, GatewayConfig { heartbeat_timeout_ns: 1, ..config }, 0)?;
    programs.ingress(syn, Verdict::PassNoHeartbeat, PASS)?;
    programs.config(ABI_VERSION, nsid)?;
    programs.heartbeat(now_ns(), GENERATION)?;

    // What a SYN that is passed leaves of an earlier connection between the same ends: nothing.
    let closed = syn.to_port(CLOSED_PORT);
    programs.begin(flow(&closed))?;
    programs.accept(flow(&closed))?;
    programs.ingress(&closed, Verdict::PassNoListener, PASS)?;
    ensure!(programs.has(&flow(&closed))? == (false, false), "the passed flow is still there");
    let excluded = if syn.source.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }.host(1, 66);
    programs.ingress(&syn.from(excluded), Verdict::PassExcluded, PASS)?;

    // An answer to a SYN, or a contradiction, opens nothing.
    for flags in [SYN | ACK, SYN | RST, SYN | FIN] {
        let frame = Frame::tcp(syn.source, syn.destination, flags, 7).tagged(&syn.tags);
        programs.ingress(&frame, Verdict::PassNoFlow, PASS)?;
    }

    is_diverted(&programs.ingress(syn, Verdict::DivertNew, REDIRECT)?, syn)?;
    ensure!(programs.has(&flow(syn))? == (true, false), "the flow is pending and not accepted");
    Ok(())
}

fn following(programs: &mut Programs, segment: &Frame) -> anyhow::Result<()> {
    let key = flow(segment);
    programs.ingress(&segment.to_port(CLOSED_PORT), Verdict::PassNoFlow, PASS)?;
    is_diverted(&programs.ingress(segment, Verdict::DivertPending, REDIRECT)?, segment)?;

    programs.accept(key)?;
    is_diverted(&programs.ingress(segment, Verdict::DivertEstablished, REDIRECT)?, segment)?;
    let reset = Frame::tcp(segment.source, segment.destination, RST, 7);
    programs.ingress(&reset, Verdict::DivertEstablished, REDIRECT)?;

    // A relay that has stopped beating keeps what it has; another run of it does not inherit it.
    programs.heartbeat(0, GENERATION)?;
    programs.ingress(segment, Verdict::DivertEstablished, REDIRECT)?;
    programs.heartbeat(now_ns(), GENERATION + 1)?;
    programs.ingress(segment, Verdict::PassNoFlow, PASS)?;
    programs.heartbeat(now_ns(), GENERATION)?;

    // Neither do other rules end it: not at a port without any, and not where a rule drops.
    for rules in ["", "drop tcp 0.0.0.0/0 port any\ndrop tcp ::/0 port any"] {
        programs.rules(rules, false)?;
        programs.ingress(segment, Verdict::DivertEstablished, REDIRECT)?;
    }
    programs.rules(RULES, false)?;
    Ok(())
}

/// What keeps a new connection from a relay that lives, and what becomes of a SYN that is sent again.
fn unanswered(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    let (syn, ack) = (family.from_client(SYN), family.from_client(ACK));
    let (syn, ack) = (syn.from_port(51_000), ack.from_port(51_000));
    // A test run comes in by the loopback device.
    let number = if family == Family::Ipv4 { 4 } else { 6 };
    let path = |number| abi::Path { ifindex: 1, family: number };
    programs.offers()?.insert(path(number), abi::Offers::default(), 0)?;
    let offers = |programs: &mut Programs| -> anyhow::Result<abi::Offers> {
        Ok(programs.offers()?.get(&path(number), 0)?)
    };

    programs.intake(Intake::FULL)?;
    programs.ingress(&syn, Verdict::PassRelayFull, PASS)?;
    programs.intake(Intake::CUT)?;
    programs.ingress(&syn, Verdict::PassUnanswered, PASS)?;
    programs.intake(Intake::PATHS_CLOSED)?;
    programs.closed_paths()?.insert(path(10 - number), 0, 0)?;
    programs.ingress(&syn.from_port(51_001), Verdict::DivertNew, REDIRECT)?;
    programs.closed_paths()?.insert(path(number), 0, 0)?;
    programs.ingress(&syn, Verdict::PassUnanswered, PASS)?;
    for number in [4, 6] {
        programs.closed_paths()?.remove(&path(number))?;
    }
    programs.intake(0)?;

    // What is doubled on the way is not sent again; the client's answer counts once.
    for _ in 0..2 {
        programs.ingress(&syn, Verdict::DivertNew, REDIRECT)?;
        ensure!(offers(programs)? == abi::Offers::default());
    }
    for _ in 0..2 {
        programs.ingress(&ack, Verdict::DivertPending, REDIRECT)?;
        ensure!(offers(programs)? == abi::Offers { answered: 1, ..abi::Offers::default() });
    }
    // The same ends again, and no answer.
    let offered_ago = |programs: &mut Programs, frame: &Frame, ago_ns: u64| {
        let offered_ns = now_ns() - ago_ns;
        let state = PendingState { generation: GENERATION, offered_ns, ..PendingState::SERVERS };
        anyhow::Ok(programs.pending()?.insert(flow(frame), state, 0)?)
    };
    offered_ago(programs, &syn, abi::SENT_AGAIN_NS)?;
    programs.ingress(&syn, Verdict::DivertNew, REDIRECT)?;
    offered_ago(programs, &syn, abi::IN_VAIN_NS)?;
    programs.ingress(&syn, Verdict::PassUnanswered, PASS)?;
    let counted = offers(programs)?;
    ensure!((counted.repeated, counted.in_vain, counted.sources) == (1, 1, 0), "{counted:?}");
    let other = syn.from(family.host(1, 12));
    offered_ago(programs, &other, abi::SENT_AGAIN_NS)?;
    programs.ingress(&other, Verdict::DivertNew, REDIRECT)?;
    ensure!(offers(programs)?.sources == 1);
    // It is the server's now: so are its segments, and the relay's late answer comes to nothing.
    programs.ingress(&ack, Verdict::PassNoFlow, PASS)?;
    let answer = Frame::tcp(syn.destination, syn.source, SYN | ACK, 7);
    programs.egress(&answer, Verdict::ReturnAnswerHeld, DROP)?;
    // Until it is opened anew.
    programs.ingress(&syn, Verdict::DivertNew, REDIRECT)?;
    programs.egress(&answer, Verdict::ReturnForwarded, REDIRECT)?;
    programs.heartbeat(now_ns(), GENERATION)?;
    Ok(())
}

fn datagrams(programs: &mut Programs, datagram: &Frame) -> anyhow::Result<()> {
    is_diverted(&programs.ingress(datagram, Verdict::DivertDatagram, REDIRECT)?, datagram)?;
    programs.ingress(&datagram.to_port(CLOSED_PORT), Verdict::PassNoListener, PASS)?;
    programs.ingress(&datagram.to_port(9), Verdict::PassNoRule, PASS)?;
    programs.heartbeat(0, GENERATION)?;
    programs.ingress(datagram, Verdict::PassNoHeartbeat, PASS)?;
    programs.heartbeat(now_ns(), GENERATION)?;
    Ok(())
}

/// Which rule decides, and on what.
fn ruling(programs: &mut Programs) -> anyhow::Result<()> {
    let (syn, segment) = (Family::Ipv4.from_client(SYN), Family::Ipv4.from_client(RST));
    let datagram = Frame::udp(syn.source, syn.destination);
    programs.rules(
        "pass tcp 10.77.2.11 port 7000\npass udp 10.77.2.11 port 7000\n\
         divert tcp 10.77.2.0/24 port any\ndrop tcp 10.77.0.0/16 port 7002\n\
         drop udp 10.77.0.0/16 port 7002\ndivert tcp 10.77.2.0/24 port 7003-7005",
        false,
    )?;
    programs.ingress(&syn, Verdict::PassRule, PASS)?;
    programs.ingress(&datagram, Verdict::PassRule, PASS)?;
    // The longer prefix is decisive before the narrower port.
    programs.ingress(&syn.to_port(7002), Verdict::PassNoListener, PASS)?;
    programs.rules("drop tcp 10.77.0.0/16 port 7002\ndrop udp 10.77.0.0/16 port 7002", false)?;
    programs.ingress(&segment.to_port(7003), Verdict::PassNoFlow, PASS)?;
    ensure!(programs.close_ports()? == 65_535, "all ports but one have lost their rules");
    // Every packet, not only one that opens.
    for frame in [syn, segment, datagram] {
        programs.ingress(&frame.to_port(7002), Verdict::DropRule, DROP)?;
        programs.ingress(&frame.to_port(7003), Verdict::PassNoRule, PASS)?;
    }
    programs.rules(RULES, false)?;
    Ok(())
}

/// What comes from a source that is not served: on a connection too that the relay has.
fn dropped_sources(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    let of = |flags| family.from_client(flags).from_port(44_000);
    let (syn, segment, other) = (of(SYN), of(ACK), family.host(1, 12));
    let datagram = Frame::udp(syn.source, syn.destination);
    let client = syn.source.ip();
    let network = if family == Family::Ipv4 { "10.77.1.0/24" } else { "fd77:1::/64" };
    programs.close_ports()?; // whatever earlier rules have left open
    programs.accept(flow(&segment))?;
    programs.ingress(&segment, Verdict::DivertEstablished, REDIRECT)?;
    for by_rule in [true, false] {
        programs.rules(&format!("{RULES}drop from {client}\n"), by_rule)?;
        for frame in [&syn, &segment, &datagram] {
            programs.ingress(frame, Verdict::DropSource, DROP)?;
            programs.ingress(&frame.to_port(9), Verdict::PassNoRule, PASS)?;
        }
    }
    programs.ingress(&syn.from(other), Verdict::DivertNew, REDIRECT)?;
    // The longer prefix decides.
    programs.rules(&format!("{RULES}drop from {network}\nexclude {client}\n"), false)?;
    programs.ingress(&syn.from_port(44_001), Verdict::PassExcluded, PASS)?;
    programs.ingress(&segment, Verdict::DivertEstablished, REDIRECT)?;
    programs.ingress(&syn.from(other), Verdict::DropSource, DROP)?;
    // Of a port without a rule, what the relay has.
    programs.rules(&format!("drop from {client}\n"), false)?;
    programs.ingress(&segment, Verdict::DropSource, DROP)?;
    programs.ingress(&syn.from_port(44_001), Verdict::PassNoRule, PASS)?;
    programs.rules(RULES, false)?;
    programs.ingress(&segment, Verdict::DivertEstablished, REDIRECT)?;
    programs.established()?.remove(&flow(&segment))?;
    Ok(())
}

/// Mode `all`: by rule alone.
fn by_rule(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    programs.rules(RULES, true)?;
    let (syn, segment) = (family.from_client(SYN), family.from_client(ACK));
    let (syn, segment) = (syn.from_port(50_000), segment.from_port(50_000));
    for frame in [&syn, &segment] {
        is_diverted(&programs.ingress(frame, Verdict::DivertRule, REDIRECT)?, frame)?;
        programs.ingress(&frame.from(family.host(1, 66)), Verdict::PassExcluded, PASS)?;
        programs.heartbeat(0, GENERATION)?;
        programs.ingress(frame, Verdict::PassNoHeartbeat, PASS)?;
        programs.heartbeat(now_ns(), GENERATION)?;
    }
    ensure!(programs.has(&flow(&syn))? == (false, false), "no flow is kept");
    programs.ingress(&syn.to_port(CLOSED_PORT), Verdict::PassNoListener, PASS)?;
    programs.ingress(&segment.to_port(CLOSED_PORT), Verdict::DivertRule, REDIRECT)?;
    // What the relay has accepted stays with it while it hangs.
    programs.accept(flow(&segment))?;
    programs.heartbeat(0, GENERATION)?;
    programs.ingress(&segment, Verdict::DivertEstablished, REDIRECT)?;
    programs.heartbeat(now_ns(), GENERATION)?;
    programs.rules(RULES, false)?;
    Ok(())
}

fn returning(programs: &mut Programs, family: Family) -> anyhow::Result<()> {
    let client = family.client().ip();
    let answer = family.from_relay(client, ACK, 7);
    let out = programs.egress(&answer, Verdict::ReturnForwarded, REDIRECT)?;
    ensure!(out[..6] == CLIENT_MAC, "to the client's hardware address");
    ensure!(out[6..12] == GATEWAY_MAC, "from the device's hardware address");
    ensure!(out[12..] == answer.bytes()[12..], "nothing else changes");
    let datagram = Frame::udp(answer.source, answer.destination);
    programs.egress(&datagram, Verdict::ReturnForwarded, REDIRECT)?;

    let stranger = family.from_relay(family.host(1, 99), ACK, 7);
    let out = programs.egress(&stranger, Verdict::ReturnNoNeighbour, PASS)?;
    ensure!(out == stranger.bytes(), "what the stack gets is as it was");
    let unrouted = family.from_relay(family.host(3, 1), ACK, 7);
    programs.egress(&unrouted, Verdict::ReturnNoRoute, PASS)?;
    programs.egress(&answer.tagged(&[TAG]), Verdict::ReturnStack, PASS)?;
    let mut icmp = answer.bytes();
    icmp[if family == Family::Ipv4 { 23 } else { 20 }] = 1;
    programs.expect("egress", &icmp, Verdict::ReturnStack, PASS)?;

    // A reset that refuses a SYN is held back, and the flow is forgotten, so that the client's next
    // SYN finds its server; a reset of a connection that is there goes out.
    let refusal = family.from_relay(client, RST | ACK, 0);
    let key = flow(&refusal).reversed();
    programs.egress(&refusal, Verdict::ReturnForwarded, REDIRECT)?;
    programs.established()?.remove(&key)?;
    ensure!(programs.has(&key)? == (true, false), "still pending");
    programs.egress(&refusal, Verdict::ReturnResetHeld, DROP)?;
    ensure!(programs.has(&key)? == (false, false), "no longer pending");
    programs.egress(&family.from_relay(client, RST, 7), Verdict::ReturnForwarded, REDIRECT)?;
    Ok(())
}

/// A segment that its way does not carry: back comes the ICMP error that says so. The same from a
/// router belongs to the relay as long as it has the flow.
fn too_long(programs: &mut Programs, family: Family, client: IpAddr) -> anyhow::Result<()> {
    let headers = if family == Family::Ipv4 { 20 + 20 } else { 40 + 20 };
    let answer = |length: usize| Frame {
        payload: vec![7; length - headers],
        ..family.from_relay(client, ACK, 7)
    };
    programs.egress(&answer(1300), Verdict::ReturnForwarded, REDIRECT)?;
    let answer = answer(1301);
    let mut told = programs.egress(&answer, Verdict::ReturnTooLong, SEND_BACK)?;
    ensure!((&told[..6], &told[6..12]) == (&answer.link.1[..], &answer.link.0[..]), "back");
    let repeated = told.len() - 14 - if family == Family::Ipv4 { 28 } else { 48 };
    ensure!(told.ends_with(&answer.bytes()[14..14 + repeated]), "it repeats the segment");
    let mtu_at = 14 + if family == Family::Ipv4 { 26 } else { 46 };
    ensure!(told[mtu_at..mtu_at + 2] == 1300u16.to_be_bytes(), "the MTU of the route");
    if family == Family::Ipv4 {
        let mut fragmentable = answer.bytes();
        fragmentable[20] &= !0x40;
        let out = programs.expect("egress", &fragmentable, Verdict::ReturnFragmented, PASS)?;
        ensure!(out == fragmentable, "what the stack gets is as it was");
    }

    told[..6].copy_from_slice(&GATEWAY_MAC);
    let key = flow(&answer).reversed();
    programs.expect("ingress", &told, Verdict::PassProtocol, PASS)?;
    programs.begin(key)?;
    let out = programs.expect("ingress", &told, Verdict::DivertReport, REDIRECT)?;
    ensure!(out[..6] == RELAY_MAC && out[6..] == told[6..], "only the destination changes");
    programs.pending()?.remove(&key)?;
    programs.accept(key)?;
    programs.expect("ingress", &told, Verdict::DivertReport, REDIRECT)?;
    let tagged = [&told[..12], &[0x81, 0, 0, 5], &told[12..]].concat();
    let out = programs.expect("ingress", &tagged, Verdict::DivertReport, REDIRECT)?;
    ensure!(out[12..] == told[12..], "the tag is gone");
    told[..6].copy_from_slice(&CLIENT_MAC);
    programs.expect("ingress", &told, Verdict::PassProtocol, PASS)?;
    programs.established()?.remove(&key)?;
    Ok(())
}

/// What keeps an answer from its client, each by its own reason.
fn kept_from_the_client(
    programs: &mut Programs,
    gateway: &Host,
    family: Family,
) -> anyhow::Result<()> {
    let (length, client) =
        if family == Family::Ipv4 { (32, "10.77.1.11") } else { (128, "fd77:1::11") };
    let ip = format!("-{}", if family == Family::Ipv4 { 4 } else { 6 });
    let away = |host: u8| family.host(3, host);
    for (host, kind, verdict) in [
        (1, "blackhole", Verdict::ReturnBlackhole),
        (2, "unreachable", Verdict::ReturnUnreachable),
        (3, "prohibit", Verdict::ReturnProhibited),
    ] {
        gateway.ip(&format!("{ip} route add {kind} {}/{length}", away(host)))?;
        let frame = family.from_relay(away(host), ACK, 7);
        let out = programs.egress(&frame, verdict, PASS)?;
        ensure!(out == frame.bytes(), "what the stack gets is as it was");
    }

    gateway
        .ip(&format!("{ip} route add {}/{length} via {client} dev eth1 mtu lock 1300", away(4)))?;
    too_long(programs, family, away(4))?;

    let version = if family == Family::Ipv4 { "ipv4" } else { "ipv6" };
    // A test run comes in by the loopback device.
    let forwarding = format!("net/{version}/conf/lo/forwarding");
    let frame = family.from_relay(family.client().ip(), ACK, 7);
    gateway.sysctl(&forwarding, "0")?;
    programs.egress(&frame, Verdict::ReturnForwardingOff, PASS)?;
    gateway.sysctl(&forwarding, "1")?;
    programs.egress(&frame, Verdict::ReturnForwarded, REDIRECT)?;
    Ok(())
}

/// The links are gone: everything goes up, unchanged.
fn without_links(programs: &mut Programs, bench: &Bench) -> anyhow::Result<()> {
    DevMapHash::try_from(programs.map(map::CLIENT_LINKS)?)?.remove(bench.client_ifindex)?;
    let frame = Family::Ipv4.from_relay(Family::Ipv4.client().ip(), ACK, 7);
    let out = programs.egress(&frame, Verdict::ReturnNoRedirect, PASS)?;
    ensure!(out == frame.bytes(), "what the stack gets is as it was");

    bench.relay.ip("link delete dev relay0")?;
    for tags in [&[][..], &[TAG], &[SERVICE_TAG, TAG]] {
        let syn = Family::Ipv4.from_client(SYN).tagged(tags);
        programs.ingress(&syn, Verdict::PassNoLink, PASS)?;
        ensure!(programs.has(&flow(&syn))? == (false, false), "the flow is forgotten");
    }
    Ok(())
}

#[test]
fn every_verdict() -> anyhow::Result<()> {
    if !privileged("every_verdict") {
        return Ok(());
    }
    let bytes = std::fs::read(bpf_object()?)?;
    let bench = Bench::new()?;
    let mut seen = bench.with_programs(&bytes, |programs| {
        unsupported(programs)?;
        for (family, port) in [(Family::Ipv4, 41_000), (Family::Ipv6, 42_000)] {
            for (tags, port) in [&[][..], &[TAG], &[SERVICE_TAG, TAG]].into_iter().zip(port..) {
                let frame = |flags| family.from_client(flags).from_port(port).tagged(tags);
                beginning(programs, bench.nsid, &frame(SYN))?;
                others(programs, &frame(SYN), Verdict::DivertNew)?;
                following(programs, &frame(ACK))?;
                others(programs, &frame(ACK), Verdict::DivertEstablished)?;
                let datagram = Frame::udp(family.client(), family.server()).tagged(tags);
                datagrams(programs, &datagram)?;
                others(programs, &datagram, Verdict::DivertDatagram)?;
            }
            by_rule(programs, family)?;
            dropped_sources(programs, family)?;
            places::places(programs, family)?;
            programs.ingress(&family.from_client(SYN), Verdict::DivertNew, REDIRECT)?;
            programs.accept(flow(&family.from_client(SYN)))?;
            returning(programs, family)?;
            kept_from_the_client(programs, &bench.gateway, family)?;
            unanswered(programs, family)?;
            related::fragments(programs, family)?;
            zones::zones(programs, &bench, family)?;
            reverse_path::checked(programs, &bench, family)?;
        }
        ruling(programs)?;
        lost::lost_flows(programs, &bench)?;
        without_links(programs, &bench)?;
        Ok(std::mem::take(&mut programs.seen))
    })?;

    // The LRU hash of the real object makes room by evicting, and is refused memory only by a kernel
    // in distress.
    let bench = Bench::new()?;
    seen.extend(bench.with_programs(&with_pending(&bytes, HASH, 1)?, |programs| {
        let first = Family::Ipv4.from_client(SYN);
        programs.ingress(&first, Verdict::DivertNew, REDIRECT)?;
        programs.ingress(&first.from_port(CLIENT_PORT + 1), Verdict::PassTableFull, PASS)?;
        programs.ingress(&first, Verdict::DivertNew, REDIRECT)?;
        Ok(std::mem::take(&mut programs.seen))
    })?);

    let missing: Vec<_> = Verdict::ALL.iter().filter(|it| !seen.contains(it)).collect();
    ensure!(missing.is_empty(), "never seen: {missing:?}");
    Ok(())
}
