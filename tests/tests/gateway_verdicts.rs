//! Every verdict of the real eBPF object, by `BPF_PROG_TEST_RUN`.

use std::collections::BTreeSet;
use std::net::TcpListener;

use anyhow::{Context as _, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::xdp::{DevMap, DevMapHash};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use millrace_common::abi::{ABI_VERSION, GatewayConfig, Heartbeat, map};
use millrace_common::flow::{Address, FlowKey, FlowState};
use millrace_common::packet::TCP;
use millrace_common::rule::{Action, RuleKey};
use millrace_common::verdict::Verdict;
use millrace_tests::netns::{Host, bpf_object, link, privileged};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const RELAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const CLIENT: [u8; 4] = [10, 77, 1, 11];
const STRANGER: [u8; 4] = [10, 77, 1, 99];
const UNROUTED: [u8; 4] = [192, 0, 2, 1];
const SERVER: [u8; 4] = [10, 77, 2, 11];
const CLIENT_PORT: u16 = 40_000;
const PORT: u16 = 7000;
const CLOSED_PORT: u16 = 7001;
const GENERATION: u64 = 42;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A TCP segment, with what the cases vary.
#[derive(Clone, Copy)]
struct Segment {
    source: ([u8; 4], u16),
    destination: ([u8; 4], u16),
    flags: u8,
    sequence: u32,
}

impl Segment {
    const fn from_client(flags: u8) -> Self {
        Self { source: (CLIENT, CLIENT_PORT), destination: (SERVER, PORT), flags, sequence: 7 }
    }

    const fn from_relay(client: [u8; 4], flags: u8, sequence: u32) -> Self {
        Self { source: (SERVER, PORT), destination: (client, CLIENT_PORT), flags, sequence }
    }

    const fn to_port(self, port: u16) -> Self {
        Self { destination: (self.destination.0, port), ..self }
    }

    fn flow(&self) -> FlowKey {
        FlowKey::new(
            TCP,
            (Address::from_ipv4(self.source.0), self.source.1),
            (Address::from_ipv4(self.destination.0), self.destination.1),
        )
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(GATEWAY_MAC);
        frame.extend(CLIENT_MAC);
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
        frame.extend(self.source.0);
        frame.extend(self.destination.0);
        frame.extend(self.source.1.to_be_bytes());
        frame.extend(self.destination.1.to_be_bytes());
        frame.extend(self.sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(*b"data");
        frame.resize(64, 0);
        frame
    }
}

/// The object in the kernel, and its maps.
struct Programs {
    ebpf: Ebpf,
    seen: BTreeSet<Verdict>,
}

impl Programs {
    fn load(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new().load(bytes)?;
        for (name, program) in ebpf.programs_mut() {
            let program: &mut Xdp = program.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        Ok(Self { ebpf, seen: BTreeSet::new() })
    }

    /// The usual state: one rule, a relay that is alive, both links.
    fn configure(
        &mut self,
        nsid: u32,
        relay_ifindex: u32,
        client_ifindex: u32,
    ) -> anyhow::Result<()> {
        self.config(ABI_VERSION, nsid)?;
        self.heartbeat(now_ns(), GENERATION)?;
        let mut rules: LpmTrie<_, RuleKey, u32> = LpmTrie::try_from(self.map(map::RULES)?)?;
        for port in [PORT, CLOSED_PORT] {
            let key = RuleKey::new(TCP, port.to_be_bytes(), Address::from_ipv4([10, 77, 2, 0]));
            rules.insert(
                &Key::new(RuleKey::FIXED_BITS + 96 + 24, key),
                Action::Divert as u32,
                0,
            )?;
        }
        DevMap::try_from(self.map(map::RELAY_LINK)?)?.set(0, relay_ifindex, None, 0)?;
        DevMapHash::try_from(self.map(map::CLIENT_LINKS)?)?.insert(
            client_ifindex,
            client_ifindex,
            None,
            0,
        )?;
        Ok(())
    }

    fn map(&mut self, name: &str) -> anyhow::Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    fn config(&mut self, abi_version: u32, relay_nsid: u32) -> anyhow::Result<()> {
        let value = GatewayConfig {
            abi_version,
            relay_nsid,
            heartbeat_timeout_ns: 3_600_000_000_000,
            relay_mac: RELAY_MAC,
            reserved: [0; 2],
        };
        Ok(Array::try_from(self.map(map::CONFIG)?)?.set(0, value, 0)?)
    }

    fn heartbeat(&mut self, stamp_ns: u64, generation: u64) -> anyhow::Result<()> {
        let value = Heartbeat { stamp_ns, generation };
        Ok(Array::try_from(self.map(map::HEARTBEAT)?)?.set(0, value, 0)?)
    }

    fn flows(&mut self, name: &str) -> anyhow::Result<HashMap<&mut MapData, FlowKey, FlowState>> {
        Ok(HashMap::try_from(self.map(name)?)?)
    }

    fn has(&mut self, name: &str, flow: &FlowKey) -> anyhow::Result<bool> {
        Ok(self.flows(name)?.get(flow, 0).is_ok())
    }

    fn counters(&mut self) -> anyhow::Result<Vec<u64>> {
        let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(self.map(map::COUNTERS)?)?;
        (0..Verdict::ALL.len())
            .map(|index| Ok(counters.get(&u32::try_from(index)?, 0)?.iter().sum()))
            .collect()
    }

    /// Runs a program over a frame and checks the action, the counter, and gives the frame as it
    /// came out.
    fn expect(
        &mut self,
        program: &str,
        frame: &[u8],
        verdict: Verdict,
        action: u32,
    ) -> anyhow::Result<Vec<u8>> {
        let before = self.counters()?;
        let mut out = vec![0; frame.len()];
        let result = self.program(program)?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })?;
        let counted: Vec<_> = std::iter::zip(before, self.counters()?)
            .zip(Verdict::ALL)
            .filter(|((before, after), _)| after > before)
            .map(|((before, after), verdict)| (verdict.name(), after - before))
            .collect();
        ensure!(
            counted == [(verdict.name(), 1)] && result.return_value == action,
            "{program}: expected {} and action {action}, but counted {counted:?} and got action {}",
            verdict.name(),
            result.return_value
        );
        self.seen.insert(verdict);
        Ok(out)
    }

    fn ingress(&mut self, frame: &[u8], verdict: Verdict, action: u32) -> anyhow::Result<Vec<u8>> {
        self.expect("ingress", frame, verdict, action)
    }

    fn program(&self, name: &str) -> anyhow::Result<&Xdp> {
        Ok(self.ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?)
    }
}

fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// A gateway with a device towards the clients, and a relay namespace with a listener on [`PORT`].
struct Bench {
    _listener: TcpListener,
    relay: Host,
    gateway: Host,
    _client: Host,
    nsid: u32,
    relay_ifindex: u32,
    client_ifindex: u32,
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        let gateway = Host::new("gateway")?;
        let relay = Host::new("relay")?;
        let client = Host::new("client")?;
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        gateway.ip(&format!("netns set {} 5", relay.name()))?;
        link(&gateway, "gw", "", &relay, "relay0", "")?;
        link(&gateway, "eth1", "10.77.1.1/24", &client, "eth0", "10.77.1.11/24")?;
        gateway.ip("link set dev eth1 address 02:00:00:00:00:01")?;
        gateway.ip("neigh replace 10.77.1.11 lladdr 02:00:00:00:00:02 dev eth1 nud permanent")?;
        let listener = relay.run(|| TcpListener::bind(("0.0.0.0", PORT)))??;
        let index = |device: &str| -> anyhow::Result<u32> {
            let answer = gateway.ip(&format!("-json link show dev {device}"))?;
            let answer: serde_json::Value = serde_json::from_str(&answer)?;
            Ok(u32::try_from(answer[0]["ifindex"].as_u64().context("no ifindex")?)?)
        };
        Ok(Self {
            _listener: listener,
            nsid: 5,
            relay_ifindex: index("gw")?,
            client_ifindex: index("eth1")?,
            relay,
            gateway,
            _client: client,
        })
    }

    /// Runs `cases` inside the gateway with a configured object.
    fn with_programs<T: Send>(
        &self,
        bytes: &[u8],
        cases: impl FnOnce(&mut Programs) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.gateway.run(|| {
            let mut programs = Programs::load(bytes)?;
            programs.configure(self.nsid, self.relay_ifindex, self.client_ifindex)?;
            cases(&mut programs)
        })?
    }
}

fn unsupported(programs: &mut Programs) -> anyhow::Result<()> {
    let syn = Segment::from_client(SYN).frame();
    let with = |offset: usize, bytes: &[u8]| {
        let mut frame = syn.clone();
        frame[offset..offset + bytes.len()].copy_from_slice(bytes);
        frame
    };
    for (frame, verdict) in [
        (syn[..33].to_vec(), Verdict::PassTruncated),
        (syn[..53].to_vec(), Verdict::PassTruncated),
        (with(12, &[0x08, 0x06]), Verdict::PassEtherType),
        (with(12, &[0x86, 0xdd]), Verdict::PassEtherType),
        (with(12, &[0x81, 0x00]), Verdict::PassEtherType),
        (with(14, &[0x65]), Verdict::PassMalformedIpv4),
        (with(14, &[0x44]), Verdict::PassMalformedIpv4),
        (with(14, &[0x46]), Verdict::PassIpv4Options),
        (with(20, &[0x20, 0]), Verdict::PassFragment),
        (with(20, &[0, 1]), Verdict::PassFragment),
        (with(23, &[17]), Verdict::PassProtocol),
        (with(46, &[0x40]), Verdict::PassMalformedTcp),
        (with(46, &[0xf0]), Verdict::PassMalformedTcp),
    ] {
        let out = programs.ingress(&frame, verdict, PASS)?;
        ensure!(out == frame, "{}: the frame was changed", verdict.name());
    }
    Ok(())
}

fn beginning(programs: &mut Programs, nsid: u32) -> anyhow::Result<()> {
    let syn = Segment::from_client(SYN);
    let frame = syn.frame();
    programs.ingress(&syn.to_port(9).frame(), Verdict::PassNoRule, PASS)?;

    programs.config(ABI_VERSION + 1, nsid)?;
    programs.ingress(&frame, Verdict::PassUnconfigured, PASS)?;
    programs.config(ABI_VERSION, nsid)?;

    programs.heartbeat(0, 0)?;
    programs.ingress(&frame, Verdict::PassNoHeartbeat, PASS)?;
    programs.heartbeat(1, GENERATION)?;
    let mut config =
        GatewayConfig { abi_version: ABI_VERSION, relay_nsid: nsid, ..Default::default() };
    config.heartbeat_timeout_ns = 1;
    Array::try_from(programs.map(map::CONFIG)?)?.set(0, config, 0)?;
    programs.ingress(&frame, Verdict::PassNoHeartbeat, PASS)?;
    programs.config(ABI_VERSION, nsid)?;
    programs.heartbeat(now_ns(), GENERATION)?;

    // What a SYN that is passed leaves of an earlier connection between the same ends: nothing.
    let closed = syn.to_port(CLOSED_PORT);
    for name in [map::PENDING, map::ESTABLISHED] {
        let state = FlowState { generation: GENERATION };
        programs.flows(name)?.insert(closed.flow(), state, 0)?;
    }
    programs.ingress(&closed.frame(), Verdict::PassNoListener, PASS)?;
    for name in [map::PENDING, map::ESTABLISHED] {
        ensure!(!programs.has(name, &closed.flow())?, "{name} still has the passed flow");
    }

    // An answer to a SYN, or a contradiction, opens nothing.
    for flags in [SYN | ACK, SYN | RST, SYN | FIN] {
        programs.ingress(&Segment::from_client(flags).frame(), Verdict::PassNoFlow, PASS)?;
    }

    let out = programs.ingress(&frame, Verdict::DivertNew, REDIRECT)?;
    ensure!(out[..6] == RELAY_MAC && out[6..] == frame[6..], "only the destination changes");
    ensure!(programs.has(map::PENDING, &syn.flow())?, "the flow is pending");
    ensure!(!programs.has(map::ESTABLISHED, &syn.flow())?, "the flow is not established");
    Ok(())
}

fn following(programs: &mut Programs) -> anyhow::Result<()> {
    let segment = Segment::from_client(ACK);
    let frame = segment.frame();
    let flow = segment.flow();
    programs.ingress(&segment.to_port(CLOSED_PORT).frame(), Verdict::PassNoFlow, PASS)?;
    let out = programs.ingress(&frame, Verdict::DivertPending, REDIRECT)?;
    ensure!(out[..6] == RELAY_MAC && out[6..] == frame[6..], "only the destination changes");

    programs.flows(map::ESTABLISHED)?.insert(flow, FlowState { generation: GENERATION }, 0)?;
    programs.ingress(&frame, Verdict::DivertEstablished, REDIRECT)?;
    programs.ingress(&Segment::from_client(RST).frame(), Verdict::DivertEstablished, REDIRECT)?;

    // A relay that has stopped beating keeps what it has; another run of it does not inherit it.
    programs.heartbeat(0, GENERATION)?;
    programs.ingress(&frame, Verdict::DivertEstablished, REDIRECT)?;
    programs.heartbeat(now_ns(), GENERATION + 1)?;
    programs.ingress(&frame, Verdict::PassNoFlow, PASS)?;
    programs.heartbeat(now_ns(), GENERATION)?;
    Ok(())
}

fn returning(programs: &mut Programs) -> anyhow::Result<()> {
    let answer = Segment::from_relay(CLIENT, ACK, 7);
    let frame = answer.frame();
    let out = programs.expect("egress", &frame, Verdict::ReturnForwarded, REDIRECT)?;
    ensure!(out[..6] == CLIENT_MAC, "to the client's hardware address");
    ensure!(out[6..12] == GATEWAY_MAC, "from the device's hardware address");
    ensure!(out[12..] == frame[12..], "nothing else changes");

    let stranger = Segment::from_relay(STRANGER, ACK, 7).frame();
    let out = programs.expect("egress", &stranger, Verdict::ReturnNoNeighbour, PASS)?;
    ensure!(out == stranger, "what the stack gets is as it was");
    let unrouted = Segment::from_relay(UNROUTED, ACK, 7).frame();
    programs.expect("egress", &unrouted, Verdict::ReturnStack, PASS)?;
    let mut icmp = frame.clone();
    icmp[23] = 1;
    programs.expect("egress", &icmp, Verdict::ReturnStack, PASS)?;

    // A reset that refuses a SYN is held back, and the flow is forgotten, so that the client's next
    // SYN finds its server; a reset of a connection that is there goes out.
    let refusal = Segment::from_relay(CLIENT, RST | ACK, 0);
    let flow = refusal.flow().reversed();
    programs.expect("egress", &refusal.frame(), Verdict::ReturnForwarded, REDIRECT)?;
    programs.flows(map::ESTABLISHED)?.remove(&flow)?;
    ensure!(programs.has(map::PENDING, &flow)?, "still pending");
    programs.expect("egress", &refusal.frame(), Verdict::ReturnResetHeld, DROP)?;
    ensure!(!programs.has(map::PENDING, &flow)?, "no longer pending");
    let reset = Segment::from_relay(CLIENT, RST, 7).frame();
    programs.expect("egress", &reset, Verdict::ReturnForwarded, REDIRECT)?;
    Ok(())
}

/// The links are gone: everything goes up, unchanged.
fn without_links(programs: &mut Programs, bench: &Bench) -> anyhow::Result<()> {
    let syn = Segment::from_client(SYN);
    DevMapHash::try_from(programs.map(map::CLIENT_LINKS)?)?.remove(bench.client_ifindex)?;
    let frame = Segment::from_relay(CLIENT, ACK, 7).frame();
    let out = programs.expect("egress", &frame, Verdict::ReturnStack, PASS)?;
    ensure!(out == frame, "what the stack gets is as it was");

    bench.relay.ip("link delete dev relay0")?;
    let out = programs.ingress(&syn.frame(), Verdict::PassNoLink, PASS)?;
    ensure!(out == syn.frame(), "what the stack gets is as it was");
    ensure!(!programs.has(map::PENDING, &syn.flow())?, "the flow is forgotten");
    Ok(())
}

/// The object with `PENDING` as a plain hash of one entry: the LRU hash of the real one makes room
/// by evicting, and is refused memory only by a kernel in distress.
fn with_small_pending(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    const HASH: u32 = 1;
    const LRU_HASH: u32 = 9;
    let file = object::File::parse(bytes)?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(map::PENDING));
    let section = file.section_by_name("maps").context("no section `maps`")?;
    let (start, _) = section.file_range().context("an empty section `maps`")?;
    let at = usize::try_from(start + symbol.context("no symbol PENDING")?.address())?;
    let mut bytes = bytes.to_vec();
    ensure!(bytes[at..at + 4] == LRU_HASH.to_le_bytes(), "PENDING is an LRU hash");
    bytes[at..at + 4].copy_from_slice(&HASH.to_le_bytes());
    bytes[at + 12..at + 16].copy_from_slice(&1u32.to_le_bytes());
    Ok(bytes)
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
        beginning(programs, bench.nsid)?;
        following(programs)?;
        returning(programs)?;
        without_links(programs, &bench)?;
        Ok(std::mem::take(&mut programs.seen))
    })?;

    let bench = Bench::new()?;
    seen.extend(bench.with_programs(&with_small_pending(&bytes)?, |programs| {
        let first = Segment::from_client(SYN);
        let second = Segment { source: (CLIENT, CLIENT_PORT + 1), ..first };
        programs.ingress(&first.frame(), Verdict::DivertNew, REDIRECT)?;
        programs.ingress(&second.frame(), Verdict::PassTableFull, PASS)?;
        programs.ingress(&first.frame(), Verdict::DivertNew, REDIRECT)?;
        Ok(std::mem::take(&mut programs.seen))
    })?);

    let missing: Vec<_> =
        Verdict::ALL.iter().filter(|verdict| !seen.contains(verdict)).map(|v| v.name()).collect();
    ensure!(missing.is_empty(), "never seen: {missing:?}");
    Ok(())
}

/// Prints what a packet costs: `cargo test --release --test gateway_verdicts -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_per_packet() -> anyhow::Result<()> {
    const REPEAT: u32 = 2_000_000;
    if !privileged("cost_per_packet") {
        return Ok(());
    }
    let bytes = std::fs::read(bpf_object()?)?;
    let bench = Bench::new()?;
    bench.with_programs(&bytes, |programs| {
        let segment = Segment::from_client(ACK);
        let state = FlowState { generation: GENERATION };
        programs.flows(map::ESTABLISHED)?.insert(segment.flow(), state, 0)?;
        let pending = Segment { source: (CLIENT, CLIENT_PORT + 1), ..segment };
        programs.flows(map::PENDING)?.insert(pending.flow(), state, 0)?;
        let none = Segment { source: (CLIENT, CLIENT_PORT + 2), ..segment };
        let mut udp = segment.frame();
        udp[23] = 17;
        let mut trivial = 0.0;
        for (what, program, frame) in [
            ("trivial pass", "pass", segment.frame()),
            ("ingress, not TCP", "ingress", udp),
            ("ingress, no rule", "ingress", segment.to_port(9).frame()),
            ("ingress, no flow", "ingress", none.frame()),
            ("ingress, established", "ingress", segment.frame()),
            ("ingress, pending", "ingress", pending.frame()),
            ("ingress, SYN", "ingress", Segment::from_client(SYN).frame()),
            ("egress, forwarded", "egress", Segment::from_relay(CLIENT, ACK, 7).frame()),
        ] {
            // The best of five: what else runs on the machine only ever adds.
            let mut best = f64::INFINITY;
            for _ in 0..5 {
                let options = TestRunOptions {
                    data_in: Some(&frame),
                    repeat: REPEAT,
                    ..TestRunOptions::default()
                };
                let run = programs.program(program)?.test_run(options)?;
                best = best.min(run.duration.as_secs_f64() * 1e9);
            }
            if what == "trivial pass" {
                trivial = best;
            }
            println!("{what:<22} {best:>6.0} ns   {:>5.2} of trivial", best / trivial);
        }
        Ok(())
    })
}
