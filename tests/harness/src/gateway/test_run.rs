//! The real eBPF object in the kernel, run over single frames by `BPF_PROG_TEST_RUN`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::maps::xdp::{DevMap, DevMapHash};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use millrace_common::abi::{self, ABI_VERSION, GatewayConfig, Heartbeat, Intake, LIFE_PORT, map};
use millrace_common::flow::{FlowKey, FlowState, PendingState};
use millrace_common::link::{ClientDevice, HardwareAddress};
use millrace_common::verdict::Verdict;
use millrace_common::zone::{Zone, Zones};
use millrace_relay::gateway::Established;
use millrace_relay::gateway::object::verify;
use millrace_relay::gateway::rules::RuleSet;
use millrace_relay::gateway::rules::compile::Compiled;
use millrace_relay::gateway::rules::place::DeviceNumbers;
use millrace_relay::gateway::rules::tables::{Present, RuleTables};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::net::frames::Frame;
use crate::net::netns::{Host, link};
use crate::net::socket_table;
use crate::system::process::wait_until;

/// The longest that the kernel takes to let go of a socket.
const PATIENCE: Duration = Duration::from_secs(20);

/// `XDP_DROP`.
pub const DROP: u32 = 1;
/// `XDP_PASS`.
pub const PASS: u32 = 2;
/// `XDP_TX`.
pub const SEND_BACK: u32 = 3;
/// `XDP_REDIRECT`.
pub const REDIRECT: u32 = 4;

/// Of the gateway's client-facing device.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Of the client.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// What the programs are told is the relay's.
pub const RELAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
/// The relay's run.
pub const GENERATION: u64 = 42;
/// With a rule and a listener, for TCP and UDP.
pub const PORT: u16 = 7000;
/// With a rule, and nobody listens.
pub const CLOSED_PORT: u16 = 7001;
/// The client's.
pub const CLIENT_PORT: u16 = 40_000;
/// The rules, unless a case has others.
pub const RULES: &str = "divert tcp 10.77.2.0/24 port 7000-7001\n\
                         divert udp 10.77.2.0/24 port 7000-7001\n\
                         divert tcp fd77:2::/64 port 7000-7001\n\
                         divert udp fd77:2::/64 port 7000-7001\n\
                         exclude 10.77.1.66\nexclude fd77:1::66\n";

/// The two families, for cases that must not tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `10.77.0.0/16`.
    Ipv4,
    /// `fd77::/16`.
    Ipv6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// A host of a network: 1 has the clients, 2 the servers, 3 is nowhere.
    pub fn host(self, network: u8, host: u8) -> IpAddr {
        match self {
            Self::Ipv4 => IpAddr::from([10, 77, network, host]),
            Self::Ipv6 => {
                let host = u16::from_str_radix(&host.to_string(), 16).expect("digits");
                Ipv6Addr::new(0xfd77, network.into(), 0, 0, 0, 0, 0, host).into()
            }
        }
    }

    /// The client.
    pub fn client(self) -> SocketAddr {
        (self.host(1, 11), CLIENT_PORT).into()
    }

    /// The server, at [`PORT`].
    pub fn server(self) -> SocketAddr {
        (self.host(2, 11), PORT).into()
    }

    /// A segment of the client's to [`PORT`].
    pub fn from_client(self, flags: u8) -> Frame {
        Frame::tcp(self.client(), self.server(), flags, 7)
    }

    /// A segment to a host of the clients' network, as the relay sends it.
    pub fn from_relay(self, client: IpAddr, flags: u8, sequence: u32) -> Frame {
        Frame::tcp(self.server(), (client, CLIENT_PORT).into(), flags, sequence)
    }
}

/// What rules call the devices 1 and 2.
const DEVICES: [&str; 2] = ["lo", "client"];
/// The device by which the frames of a test run come in, unless they say otherwise.
pub const LOOPBACK: u32 = 1;
/// `BPF_MAP_TYPE_HASH`.
pub const HASH: u32 = 1;
/// `BPF_MAP_TYPE_LRU_HASH`.
pub const LRU_HASH: u32 = 9;

/// The object with another map as `PENDING`: of this type, with so many entries.
pub fn with_pending(bytes: &[u8], kind: u32, entries: u32) -> anyhow::Result<Vec<u8>> {
    let file = object::File::parse(bytes)?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(map::PENDING));
    let section = file.section_by_name("maps").context("no section `maps`")?;
    let (start, _) = section.file_range().context("an empty section `maps`")?;
    let at = usize::try_from(start + symbol.context("no symbol PENDING")?.address())?;
    let mut bytes = bytes.to_vec();
    ensure!(bytes[at..at + 4] == LRU_HASH.to_le_bytes(), "PENDING is an LRU hash");
    bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
    bytes[at + 12..at + 16].copy_from_slice(&entries.to_le_bytes());
    Ok(bytes)
}

/// The key of a frame's flow, with its source as the client.
pub fn flow(frame: &Frame) -> FlowKey {
    let end = |address: SocketAddr| (address.ip().into(), address.port());
    FlowKey::new(end(frame.source), end(frame.destination))
}

/// The clock of the heartbeat.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let positive = |part: i64| u64::try_from(part).expect("since boot");
    positive(now.tv_sec) * 1_000_000_000 + positive(now.tv_nsec)
}

/// What a program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Verdicts counted, and how often.
    pub counted: Vec<(&'static str, u64)>,
    /// The frame as it came out.
    pub out: Vec<u8>,
    /// The program's action.
    pub returned: u32,
}

/// The object in the kernel, and its maps.
#[derive(Debug)]
pub struct Programs {
    /// As aya has it.
    pub ebpf: Ebpf,
    /// Every verdict that a case has expected and got.
    pub seen: BTreeSet<Verdict>,
    /// In force, and the ports without a rule whose connections go on.
    rules: (Compiled, Vec<u16>),
}

impl Programs {
    fn load(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new().load(bytes)?;
        for (name, program) in ebpf.programs_mut() {
            verify(program).with_context(|| format!("load {name}"))?;
        }
        let rules = (Compiled::of(&RuleSet::default(), &DeviceNumbers::default())?, Vec::new());
        Ok(Self { ebpf, seen: BTreeSet::new(), rules })
    }

    /// The usual state: [`RULES`], a relay that is alive, both links.
    fn configure(&mut self, bench: &Bench) -> anyhow::Result<()> {
        self.config(ABI_VERSION, bench.nsid)?;
        self.heartbeat(now_ns(), GENERATION)?;
        self.rules(RULES, false)?;
        let (relay, client) = (bench.relay_ifindex, bench.client_ifindex);
        DevMap::try_from(self.map(map::RELAY_LINK)?)?.set(0, relay, None, 0)?;
        DevMapHash::try_from(self.map(map::CLIENT_LINKS)?)?.insert(client, client, None, 0)?;
        for (number, ifindex) in [(1, LOOPBACK), (2, client)] {
            self.device(ifindex, ClientDevice::new(number, HardwareAddress::new(GATEWAY_MAC)))?;
        }
        Ok(())
    }

    /// Says what tells zones apart.
    pub fn zones(&mut self, zones: Zones) -> anyhow::Result<()> {
        let mut map: Array<_, GatewayConfig> = Array::try_from(self.map(map::CONFIG)?)?;
        let config = map.get(&0, 0)?;
        let active_set = config.active_set.with_zones(zones);
        Ok(map.set(0, GatewayConfig { active_set, ..config }, 0)?)
    }

    /// Says what a client-facing device is.
    pub fn device(&mut self, ifindex: u32, device: ClientDevice) -> anyhow::Result<()> {
        let mut devices: Array<_, ClientDevice> = Array::try_from(self.map(map::CLIENT_DEVICES)?)?;
        Ok(devices.set(ClientDevice::slot(ifindex), device, 0)?)
    }

    /// Puts rules into force; connections at ports that had rules before go on.
    pub fn rules(&mut self, text: &str, by_rule: bool) -> anyhow::Result<()> {
        let devices = DeviceNumbers::configured(&DEVICES.map(str::to_owned));
        let next = Compiled::of(&RuleSet::parse("rules", text)?, &devices)?;
        let present = Present { compiled: &self.rules.0, closing: &self.rules.1 };
        let closing = tables(&mut self.ebpf)?.replace(Some(&present), &next, by_rule)?;
        self.rules = (next, closing);
        Ok(())
    }

    /// Ends the connections at ports that have no rule any more; gives their number.
    pub fn close_ports(&mut self) -> anyhow::Result<usize> {
        let ports = std::mem::take(&mut self.rules.1);
        tables(&mut self.ebpf)?.close_ports(&ports)?;
        Ok(ports.len())
    }

    /// A map of the object.
    pub fn map(&mut self, name: &str) -> anyhow::Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    /// Says what the loader says, with a heartbeat that does not grow old meanwhile.
    pub fn config(&mut self, abi_version: u32, relay_nsid: u32) -> anyhow::Result<()> {
        let mut map: Array<_, GatewayConfig> = Array::try_from(self.map(map::CONFIG)?)?;
        let value = GatewayConfig {
            abi_version,
            relay_nsid,
            heartbeat_timeout_ns: 3_600_000_000_000,
            relay_mac: RELAY_MAC,
            active_set: map.get(&0, 0)?.active_set,
        };
        Ok(map.set(0, value, 0)?)
    }

    /// Says what a relay says.
    pub fn heartbeat(&mut self, stamp_ns: u64, generation: u64) -> anyhow::Result<()> {
        let value = Heartbeat { stamp_ns, generation, intake: Intake::default() };
        Ok(Array::try_from(self.map(map::HEARTBEAT)?)?.set(0, value, 0)?)
    }

    /// Says what keeps new connections away from a relay that lives: bits of [`Intake`].
    pub fn intake(&mut self, bits: u64) -> anyhow::Result<()> {
        let value = Heartbeat { stamp_ns: now_ns(), generation: GENERATION, intake: Intake(bits) };
        Ok(Array::try_from(self.map(map::HEARTBEAT)?)?.set(0, value, 0)?)
    }

    /// What became of SYNs, by the way that they came. No entry is there at first.
    pub fn offers(&mut self) -> anyhow::Result<HashMap<&mut MapData, abi::Path, abi::Offers>> {
        Ok(HashMap::try_from(self.map(map::OFFERS)?)?)
    }

    /// Ways by which new connections pass.
    pub fn closed_paths(&mut self) -> anyhow::Result<HashMap<&mut MapData, abi::Path, u32>> {
        Ok(HashMap::try_from(self.map(map::CLOSED_PATHS)?)?)
    }

    /// The flows on their way.
    pub fn pending(&mut self) -> anyhow::Result<HashMap<&mut MapData, FlowKey, PendingState>> {
        Ok(HashMap::try_from(self.map(map::PENDING)?)?)
    }

    /// The accepted flows.
    pub fn established(&mut self) -> anyhow::Result<Established<&mut MapData>> {
        Established::of(&mut self.ebpf).context("an object without flows")
    }

    /// Lets the present relay accept a flow.
    pub fn accept(&mut self, flow: FlowKey) -> anyhow::Result<()> {
        self.accept_in(flow, Zone::ANY)
    }

    /// The same of a flow in a zone.
    pub fn accept_in(&mut self, flow: FlowKey, zone: Zone) -> anyhow::Result<()> {
        Ok(self.established()?.insert(flow, FlowState { generation: GENERATION, zone })?)
    }

    /// Lets a flow of the present relay be on its way.
    pub fn begin(&mut self, flow: FlowKey) -> anyhow::Result<()> {
        self.begin_in(flow, Zone::ANY)
    }

    /// The same of a flow in a zone.
    pub fn begin_in(&mut self, flow: FlowKey, zone: Zone) -> anyhow::Result<()> {
        let state = PendingState { generation: GENERATION, offered_ns: 0, zone };
        Ok(self.pending()?.insert(flow, state, 0)?)
    }

    /// Whether a flow is on its way to the relay, and whether it is accepted.
    pub fn has(&mut self, flow: &FlowKey) -> anyhow::Result<(bool, bool)> {
        let pending = self.pending()?.get(flow, 0);
        let pending = pending.is_ok_and(|state| state != PendingState::SERVERS);
        Ok((pending, self.established()?.get(flow).is_ok()))
    }

    /// Packets by verdict.
    pub fn counters(&mut self) -> anyhow::Result<Vec<u64>> {
        let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(self.map(map::COUNTERS)?)?;
        (0..Verdict::ALL.len())
            .map(|index| Ok(counters.get(&u32::try_from(index)?, 0)?.iter().sum()))
            .collect()
    }

    /// Verdicts counted since an earlier reading of [`Self::counters`], and how often.
    pub fn counted_since(&mut self, before: &[u64]) -> anyhow::Result<Vec<(&'static str, u64)>> {
        Ok(std::iter::zip(before, self.counters()?)
            .zip(Verdict::ALL)
            .filter(|((before, after), _)| after > before)
            .map(|((before, after), verdict)| (verdict.name(), after - before))
            .collect())
    }

    /// Runs a program over a frame and checks the action, the counter, and gives the frame as it
    /// came out.
    pub fn expect(
        &mut self,
        program: &str,
        frame: &[u8],
        verdict: Verdict,
        action: u32,
    ) -> anyhow::Result<Vec<u8>> {
        let Outcome { counted, out, returned } = self.run(program, frame)?;
        ensure!(
            counted == [(verdict.name(), 1)] && returned == action,
            "{program}: expected {} and action {action}, but counted {counted:?} and got action \
             {returned}",
            verdict.name(),
        );
        self.seen.insert(verdict);
        Ok(out)
    }

    /// Runs a program over a frame.
    pub fn run(&mut self, program: &str, frame: &[u8]) -> anyhow::Result<Outcome> {
        self.run_on(LOOPBACK, program, frame)
    }

    /// The same as if this device had received the frame. Another one than [`LOOPBACK`] has to run a
    /// program in its driver: only then can it hand a frame to one.
    pub fn run_on(&mut self, ifindex: u32, program: &str, frame: &[u8]) -> anyhow::Result<Outcome> {
        let before = self.counters()?;
        let mut out = vec![0; frame.len()];
        let context = (ifindex != LOOPBACK).then(|| received_by(ifindex, frame.len()));
        let result = self.program(program)?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: context.as_deref(),
            ..TestRunOptions::default()
        })?;
        out.truncate(usize::try_from(result.data_size_out)?);
        let counted = self.counted_since(&before)?;
        Ok(Outcome { counted, out, returned: result.return_value })
    }

    /// [`Self::expect`] of the ingress program.
    pub fn ingress(
        &mut self,
        frame: &Frame,
        verdict: Verdict,
        action: u32,
    ) -> anyhow::Result<Vec<u8>> {
        let bytes = frame.bytes();
        let out = self.expect("ingress", &bytes, verdict, action)?;
        if action == PASS {
            ensure!(out == bytes, "{}: what is passed was changed", verdict.name());
        }
        Ok(out)
    }

    /// [`Self::expect`] of the egress program.
    pub fn egress(
        &mut self,
        frame: &Frame,
        verdict: Verdict,
        action: u32,
    ) -> anyhow::Result<Vec<u8>> {
        self.expect("egress", &frame.bytes(), verdict, action)
    }

    /// A program, to be attached.
    pub fn program_mut(&mut self, name: &str) -> anyhow::Result<&mut Xdp> {
        Ok(self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
    }

    /// A program.
    pub fn program(&self, name: &str) -> anyhow::Result<&Xdp> {
        Ok(self.ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?)
    }
}

/// `struct xdp_md`: where the packet begins and ends, its metadata, and the device that received it.
pub fn received_by(ifindex: u32, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).expect("a frame's");
    let (data, meta, queue, egress) = (0, 0, 0, 0);
    [data, length, meta, ifindex, queue, egress].map(u32::to_ne_bytes).concat()
}

fn tables(ebpf: &mut Ebpf) -> anyhow::Result<RuleTables<&mut MapData>> {
    RuleTables::of(ebpf).context("an object without rules")
}

/// Lets frames of test runs for a certain hardware address, which it gives, count as frames for a
/// loaded gateway: as if loopback, by which they come in, were another of its client-facing devices.
/// The address is the relay's, and so a frame that is diverted can be run again.
pub fn admit_test_runs(pins: &Path) -> anyhow::Result<[u8; 6]> {
    let array = |name| anyhow::Ok(Map::Array(MapData::from_pin(pins.join(name))?));
    let config: Array<_, GatewayConfig> = Array::try_from(array(map::CONFIG)?)?;
    let address = config.get(&0, 0)?.relay_mac;
    let mut devices: Array<_, ClientDevice> = Array::try_from(array(map::CLIENT_DEVICES)?)?;
    let device = ClientDevice::new(ClientDevice::MAX_NUMBER, HardwareAddress::new(address));
    devices.set(ClientDevice::slot(LOOPBACK), device, 0)?;
    Ok(address)
}

/// A gateway with a device towards the clients, and a relay namespace where sockets of both
/// families wait at [`PORT`].
#[derive(Debug)]
pub struct Bench {
    /// Of both families, at [`PORT`].
    pub listeners: Vec<TcpListener>,
    _sockets: Vec<UdpSocket>,
    /// The relay's sign that its process lives.
    life: Mutex<Option<UdpSocket>>,
    /// The relay namespace.
    pub relay: Host,
    /// The gateway.
    pub gateway: Host,
    /// The client, behind `eth1`.
    pub client: Host,
    /// The relay namespace's identifier.
    pub nsid: u32,
    relay_ifindex: u32,
    /// Of the client-facing device.
    pub client_ifindex: u32,
}

impl Bench {
    /// Makes it.
    pub fn new() -> anyhow::Result<Self> {
        let gateway = Host::new("gateway")?;
        let relay = Host::new("relay")?;
        let client = Host::new("client")?;
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        gateway.ip(&format!("netns set {} 5", relay.name()))?;
        link(&gateway, "gw", "", &relay, "relay0", "")?;
        link(&gateway, "eth1", "10.77.1.1/24", &client, "eth0", "10.77.1.11/24")?;
        gateway.ip("address add fd77:1::1/64 dev eth1 nodad")?;
        // IPv6 answers for an address only where it is.
        gateway.ip("address add fd77:1::1/128 dev gw nodad")?;
        gateway.ip("link set dev eth1 address 02:00:00:00:00:01")?;
        for client in ["10.77.1.11", "fd77:1::11"] {
            gateway.ip(&format!(
                "neigh replace {client} lladdr 02:00:00:00:00:02 dev eth1 nud permanent"
            ))?;
        }
        // The relay has the server's address, so that connections can be made without the programs.
        for (server, clients, servers) in [
            ("10.77.2.11/32", "10.77.1.0/24", "10.77.2.0/24"),
            ("fd77:2::11/128", "fd77:1::/64", "fd77:2::/64"),
        ] {
            relay.ip(&format!("address add {server} dev relay0 nodad"))?;
            relay.ip(&format!("route add {clients} dev relay0"))?;
            gateway.ip(&format!("route add {servers} dev gw"))?;
        }
        let everywhere: [SocketAddr; 2] =
            [([0; 4], PORT).into(), (Ipv6Addr::UNSPECIFIED, PORT).into()];
        let listeners = relay.run(|| listeners(&everywhere))??;
        let sockets = relay.run(|| sockets(&everywhere))??;
        let life = Mutex::new(Some(life(&relay)?));
        let index = |device: &str| -> anyhow::Result<u32> {
            let answer = gateway.ip(&format!("-json link show dev {device}"))?;
            let answer: serde_json::Value = serde_json::from_str(&answer)?;
            Ok(u32::try_from(answer[0]["ifindex"].as_u64().context("no ifindex")?)?)
        };
        Ok(Self {
            listeners,
            _sockets: sockets,
            life,
            nsid: 5,
            relay_ifindex: index("gw")?,
            client_ifindex: index("eth1")?,
            relay,
            gateway,
            client,
        })
    }

    /// Does `work` while the relay's process is gone, and its sockets are not.
    pub fn without_process(&self, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.life.lock().expect("nobody panics with it").take();
        wait_until(PATIENCE, "the end of the relay's process", || {
            Ok(self.relay.run(|| socket_table::inode("udp", LIFE_PORT, 0))??.is_none())
        })?;
        work()?;
        *self.life.lock().expect("nobody panics with it") = Some(life(&self.relay)?);
        Ok(())
    }

    /// Runs `cases` inside the gateway with a configured object.
    pub fn with_programs<T: Send>(
        &self,
        bytes: &[u8],
        cases: impl FnOnce(&mut Programs) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.gateway.run(|| {
            let mut programs = Programs::load(bytes)?;
            programs.configure(self)?;
            cases(&mut programs)
        })?
    }
}

/// A socket of one family only.
fn socket(address: SocketAddr, kind: socket2::Type) -> std::io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listeners(addresses: &[SocketAddr]) -> std::io::Result<Vec<TcpListener>> {
    let listen = |address: &SocketAddr| {
        let socket = socket(*address, socket2::Type::STREAM)?;
        socket.listen(16)?;
        Ok(socket.into())
    };
    addresses.iter().map(listen).collect()
}

fn life(relay: &Host) -> anyhow::Result<UdpSocket> {
    let address = ([127, 0, 0, 1], LIFE_PORT).into();
    Ok(relay.run(|| socket(address, socket2::Type::DGRAM))??.into())
}

fn sockets(addresses: &[SocketAddr]) -> std::io::Result<Vec<UdpSocket>> {
    let bind = |address: &SocketAddr| Ok(socket(*address, socket2::Type::DGRAM)?.into());
    addresses.iter().map(bind).collect()
}
