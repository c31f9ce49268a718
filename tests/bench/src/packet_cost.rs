//! What the packet benchmarks have in common: rules and flows in bulk, and one frame that becomes
//! packets of many flows.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use millrace_common::abi::{GatewayConfig, map};
use millrace_common::bench::Variation;
use millrace_common::flow::FlowState;
use millrace_harness::gateway::test_run::{Family, GATEWAY_MAC, GENERATION, Programs, RULES, flow};
use millrace_harness::net::frames::{Frame, flag};
use millrace_harness::net::netns::bpf_object;
use millrace_relay::gateway::object::verify;
use rustix::time::{ClockId, clock_gettime};

/// With a rule that passes.
pub const PASSED_PORT: u16 = 7010;
/// With a rule that drops.
pub const DROPPED_PORT: u16 = 7011;
/// Without a rule.
pub const OTHER_PORT: u16 = 9;

/// Sources that packets come from.
#[derive(Clone, Copy, Debug)]
pub struct Sources {
    /// Of all of them.
    family: Family,
    /// The last four bytes of the first one's address.
    first: u32,
    /// How many.
    count: u32,
}

impl Sources {
    /// The clients that have connections: `10.80.0.0/12`, or `fd77:1::1000:0/108`.
    pub fn clients(family: Family, count: u32) -> Self {
        let first = match family {
            Family::Ipv4 => u32::from_be_bytes([10, 80, 0, 0]),
            Family::Ipv6 => 0x1000_0000,
        };
        Self { family, first, count }
    }

    /// Sources that nobody has: `11.0.0.0/8` and upwards, or `fd77:1::2000:0` and upwards.
    pub fn spoofed(family: Family, count: u32) -> Self {
        let first = match family {
            Family::Ipv4 => u32::from_be_bytes([11, 0, 0, 0]),
            Family::Ipv6 => 0x2000_0000,
        };
        Self { family, first, count }
    }

    /// How many.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The address of one of them.
    pub fn address(&self, index: u32) -> IpAddr {
        let last = self.first + index;
        match self.family {
            Family::Ipv4 => Ipv4Addr::from(last).into(),
            Family::Ipv6 => {
                let network = u128::from(Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 0));
                Ipv6Addr::from(network + u128::from(last)).into()
            }
        }
    }

    /// What makes packets of all of them out of one frame.
    pub fn vary(&self, frame: &Frame) -> Variation {
        let network_at = u32::try_from(frame.network_at()).expect("short");
        let port = frame.destination.port().into();
        let (source_at, checksum_at, port_at, hops_at) = match self.family {
            Family::Ipv4 => (12, network_at + 10, 22, 8),
            Family::Ipv6 => (20, 0, 42, 7),
        };
        let [link @ .., fifth, sixth] = frame.link.0;
        Variation {
            source_at: network_at + source_at,
            first_source: self.first,
            sources: self.count,
            checksum_at,
            port_at: network_at + port_at,
            port,
            other_port: port,
            others: 0,
            hops_at: network_at + hops_at,
            link_high: u32::from_be_bytes(link),
            link_low: u16::from_be_bytes([fifth, sixth]).into(),
        }
    }
}

/// So many rules, for ports of the same class as those of [`RULES`], which are among them; and one
/// that passes and one that drops.
pub fn rules(count: usize) -> String {
    let mut text = format!(
        "{RULES}pass tcp 10.77.2.11 port {PASSED_PORT}\npass tcp fd77:2::11 port {PASSED_PORT}\n\
         drop tcp 10.77.2.0/24 port {DROPPED_PORT}\ndrop tcp fd77:2::/64 port {DROPPED_PORT}\n"
    );
    let present = text.lines().filter(|line| !line.starts_with("exclude")).count();
    for number in 0..count.saturating_sub(present) {
        let half = number / 2;
        let protocol = if half % 2 == 0 { "tcp" } else { "udp" };
        let destination = if number % 2 == 0 {
            format!("20.{}.{}.0/24", half / 256, half % 256)
        } else {
            format!("fd78:{half:x}::/32")
        };
        writeln!(text, "divert {protocol} {destination} port 7000-7001").expect("to a string");
    }
    text
}

/// Makes the flow of a frame established for every client.
pub fn establish(programs: &mut Programs, frame: &Frame, clients: &Sources) -> Result<()> {
    let mut established = programs.established()?;
    let state = FlowState { generation: GENERATION, ..FlowState::default() };
    for index in 0..clients.count {
        established.insert(flow(&frame.from(clients.address(index))), state)?;
    }
    Ok(())
}

/// Has diverted frames keep their destination's hardware address: a test run goes on with the frame
/// as it came out, and one for another host would be passed.
pub fn keep_address(programs: &mut Programs) -> Result<()> {
    let mut map: Array<_, GatewayConfig> = Array::try_from(programs.map(map::CONFIG)?)?;
    let config = map.get(&0, 0)?;
    Ok(map.set(0, GatewayConfig { relay_mac: GATEWAY_MAC, ..config }, 0)?)
}

/// A later segment of a client's.
pub fn segment(family: Family) -> Frame {
    family.from_client(flag::ACK)
}

/// The benchmarks' own programs.
#[derive(Debug)]
pub struct Prologue(Ebpf);

impl Prologue {
    /// Loads them: the object lies beside the gateway's.
    pub fn load() -> Result<Self> {
        let path = object()?;
        let mut ebpf = EbpfLoader::new().load_file(&path)?;
        for (name, program) in ebpf.programs_mut() {
            verify(program).with_context(|| format!("load {name}"))?;
        }
        Ok(Self(ebpf))
    }

    /// Lets packets vary, and then go on as `program`.
    pub fn aim(&mut self, program: &Xdp, variation: Variation) -> Result<()> {
        let no_map = |name: &str| format!("no map {name}");
        let map = self.0.map_mut("VARIATION").with_context(|| no_map("VARIATION"))?;
        Array::<_, [u32; Variation::WORDS]>::try_from(map)?.set(0, variation.words(), 0)?;
        let map = self.0.map_mut("UNDER_TEST").with_context(|| no_map("UNDER_TEST"))?;
        Ok(ProgramArray::try_from(map)?.set(0, program.fd()?, 0)?)
    }

    /// The program that varies.
    pub fn vary(&self) -> Result<&Xdp> {
        Ok(self.0.program("vary").context("no program vary")?.try_into()?)
    }

    /// The program that drops.
    pub fn drop(&self) -> Result<&Xdp> {
        Ok(self.0.program("drop").context("no program drop")?.try_into()?)
    }

    /// The same, to be attached.
    pub fn drop_mut(&mut self) -> Result<&mut Xdp> {
        Ok(self.0.program_mut("drop").context("no program drop")?.try_into()?)
    }
}

fn object() -> Result<PathBuf> {
    let path = bpf_object()?.with_file_name("bench.bpf.o");
    ensure!(
        path.is_file(),
        "there is no eBPF object {}; build it with `cargo xtask build-ebpf`",
        path.display()
    );
    Ok(path)
}

/// Runs a program over a frame so many times; processor time of a packet in nanoseconds.
///
/// The calling thread's processor time, for what else runs on the machine would be in the other; and
/// the kernel's own figure has whole nanoseconds only.
pub fn nanoseconds(program: &Xdp, frame: &[u8], packets: u32) -> Result<f64> {
    let options =
        TestRunOptions { data_in: Some(frame), repeat: packets, ..TestRunOptions::default() };
    let before = thread_time();
    program.test_run(options)?;
    Ok(thread_time_since(before).as_secs_f64() * 1e9 / f64::from(packets))
}

/// What a program costs; processor time of a packet in nanoseconds, by test run.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Of a program that only passes.
    pub trivial: f64,
    /// The same behind what comes before the program under test; `trivial` if nothing does.
    pub floor: f64,
    /// Of the program under test behind the same.
    pub total: f64,
}

impl Cost {
    /// Measures packets of many flows, right after the floors.
    pub fn of_varied(
        prologue: &mut Prologue,
        pass: &Xdp,
        program: &Xdp,
        (frame, variation): (&[u8], Variation),
        packets: u32,
    ) -> Result<Self> {
        let trivial = nanoseconds(pass, frame, packets)?;
        prologue.aim(pass, variation)?;
        let floor = nanoseconds(prologue.vary()?, frame, packets)?;
        prologue.aim(program, variation)?;
        Ok(Self { trivial, floor, total: nanoseconds(prologue.vary()?, frame, packets)? })
    }

    /// Measures one packet repeated, right after its floor.
    pub fn of_same(pass: &Xdp, program: &Xdp, frame: &[u8], packets: u32) -> Result<Self> {
        let trivial = nanoseconds(pass, frame, packets)?;
        Ok(Self { trivial, floor: trivial, total: nanoseconds(program, frame, packets)? })
    }

    /// Of the program under test alone.
    pub fn own(&self) -> f64 {
        self.total - self.floor + self.trivial
    }

    /// The same as a ratio to the program that only passes.
    pub fn ratio(&self) -> f64 {
        self.own() / self.trivial
    }

    /// The best of each: what else runs on the machine only ever adds.
    pub fn best(all: &[Self]) -> Self {
        let least = |figure: fn(&Self) -> f64| all.iter().map(figure).fold(f64::INFINITY, f64::min);
        Self {
            trivial: least(|cost| cost.trivial),
            floor: least(|cost| cost.floor),
            total: least(|cost| cost.total),
        }
    }
}

/// Processor time of the calling thread so far.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let positive = |part: i64| u64::try_from(part).expect("since the thread began");
    Duration::from_secs(positive(time.tv_sec)) + Duration::from_nanos(positive(time.tv_nsec))
}

/// What the calling thread has used since an earlier reading.
pub fn thread_time_since(before: Duration) -> Duration {
    thread_time().checked_sub(before).expect("a clock that goes forward")
}
