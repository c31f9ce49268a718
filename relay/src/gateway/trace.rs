//! `trace`: each packet of one client, with its verdict, while other programs run in the place of
//! the usual ones.
//!
//! The usual programs contain nothing of this. The traced ones are loaded with the instance's maps,
//! put on its links, and taken off again at the end; the pins of the programs stay what they were,
//! so that after a tracer that was killed `load --replace` or the next trace puts things right.

use std::collections::HashMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aya::maps::PerCpuArray;
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use millrace_common::flow::Address;
use millrace_common::trace::{self, Client, Desk, Event, global};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use super::error::GatewayError;
use super::heartbeat::monotonic_ns;
use super::host::{Device, Report};
use super::links::{self, Slot, Swap, pinned_program, program_pin};
use super::load::{load_programs, pinned_maps, xdp};
use super::lock::Lock;
use super::object::ObjectFile;
use super::read_config;
use super::replace::all_pinned;
use super::state::State;
use super::traced::{Traced, decode};
use crate::config::Config;

/// The programs that are traced, and what runs in their place.
const TRACED: [(&str, &str); 2] = [("ingress", "ingress_traced"), ("egress", "egress_traced")];
/// How often it is looked whether the trace is to end.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is looked whether the traced programs are still there.
const CHECK: Duration = Duration::from_secs(1);

/// What to trace, and how much of it.
#[derive(Clone, Copy, Debug)]
pub struct TraceOptions {
    /// Whose packets.
    pub client: IpAddr,
    /// Most packets a second that each processor tells.
    pub per_second: u32,
    /// Ends after so many packets.
    pub count: Option<u64>,
    /// Ends after so long.
    pub duration: Option<Duration>,
}

/// Why a trace has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceEnd {
    /// It was told to.
    Stopped,
    /// By count or duration.
    Complete,
    /// Somebody has replaced the traced programs, or unloaded the instance.
    Replaced,
}

/// What a trace has done.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TraceSummary {
    /// Why it has ended.
    pub end: TraceEnd,
    /// Packets shown.
    pub shown: u64,
    /// Packets that were more than the limit allows.
    pub withheld: u64,
    /// Packets that found the log full.
    pub lost: u64,
}

/// Traces until `ended`, or until as much is told as the options allow, with the object that
/// [`ObjectFile::find`] finds. The usual programs are back when it returns.
pub fn trace(
    config: &Config,
    options: &TraceOptions,
    report: Report<'_>,
    ended: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(&Traced) -> std::io::Result<()>,
) -> Result<TraceSummary, GatewayError> {
    super::require_root("`relay trace`")?;
    trace_by(config, &ObjectFile::find()?, options, report, ended, tell)
}

/// [`trace()`] with a given object file.
pub fn trace_by(
    config: &Config,
    object: &ObjectFile,
    options: &TraceOptions,
    report: Report<'_>,
    ended: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(&Traced) -> std::io::Result<()>,
) -> Result<TraceSummary, GatewayError> {
    super::require_root("`relay trace`")?;
    let mut tracer = Tracer::start(config, object, options, report)?;
    let end = tracer.run(options, ended, tell);
    tracer.put_back(report)?;
    tracer.finish(end?, options, tell)
}

/// The traced programs in their place.
struct Tracer<'a> {
    config: &'a Config,
    ebpf: Ebpf,
    logger: EbpfLogger<Collector>,
    events: Receiver<Event>,
    /// The traced programs, by the names of those whose place they have.
    programs: HashMap<&'static str, u32>,
    devices: HashMap<u32, String>,
    /// Between the monotonic clock and that of the day.
    epoch_ns: u64,
    shown: u64,
    /// Held while the tracer lives.
    _only: File,
}

impl<'a> Tracer<'a> {
    fn start(
        config: &'a Config,
        object: &ObjectFile,
        options: &TraceOptions,
        report: Report<'_>,
    ) -> Result<Self, GatewayError> {
        let _lock = Lock::take()?;
        let state = State::of_loaded(config)?;
        let pins = &state.pin_directory;
        read_config(config, pins)?;
        let only = only_one(config)?;
        all_pinned(pins)?;
        report(&format!("load the traced programs of {}", object.path.display()));
        let mut ebpf = load_traced(object, pins, options)?;
        let (sender, events) = channel();
        let logger = EbpfLogger::init_with_logger(&mut ebpf, Collector(Mutex::new(sender)))
            .map_err(GatewayError::bpf("open the log of the traced programs"))?;

        let mut programs = HashMap::new();
        let mut swaps = Vec::new();
        let slots = Slot::all(config, &state);
        for (name, traced) in TRACED {
            let loaded = xdp(&mut ebpf, traced, &object.path)?;
            let failed = || format!("use the program {traced}");
            let id = loaded.info().map_err(GatewayError::bpf(failed()))?.id();
            programs.insert(name, id);
            for slot in slots.iter().filter(|slot| slot.program == name) {
                swaps.push(Swap { slot, program: links::program(id, name)? });
            }
        }
        links::swap(swaps, report)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let devices = names(&slots);
        Ok(Self {
            config,
            ebpf,
            logger,
            events,
            programs,
            devices,
            epoch_ns: now_ns.saturating_sub(monotonic_ns()),
            shown: 0,
            _only: only,
        })
    }

    fn run(
        &mut self,
        options: &TraceOptions,
        ended: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(&Traced) -> std::io::Result<()>,
    ) -> Result<TraceEnd, GatewayError> {
        let start = Instant::now();
        let mut next_check = start + CHECK;
        loop {
            if ended() {
                return Ok(TraceEnd::Stopped);
            }
            if options.duration.is_some_and(|duration| start.elapsed() >= duration) {
                return Ok(TraceEnd::Complete);
            }
            if Instant::now() >= next_check {
                next_check = Instant::now() + CHECK;
                if !self.in_place()? {
                    return Ok(TraceEnd::Replaced);
                }
            }
            self.wait()?;
            if let Some(end) = self.tell_all(options, tell) {
                return Ok(end);
            }
        }
    }

    /// Tells what is in the log. Gives a reason to end, if there is one.
    fn tell_all(
        &mut self,
        options: &TraceOptions,
        tell: &mut dyn FnMut(&Traced) -> std::io::Result<()>,
    ) -> Option<TraceEnd> {
        self.logger.flush();
        loop {
            if options.count.is_some_and(|count| self.shown >= count) {
                return Some(TraceEnd::Complete);
            }
            let event = self.events.try_recv().ok()?;
            if !self.devices.contains_key(&event.ifindex) {
                self.learn(event.ifindex);
            }
            if tell(&Traced::of(&event, &self.devices, self.epoch_ns)).is_err() {
                // Nobody listens any more.
                return Some(TraceEnd::Stopped);
            }
            self.shown += 1;
        }
    }

    /// Looks for the name of a device that has come since.
    fn learn(&mut self, ifindex: u32) {
        if let Ok(Some(state)) = State::read(self.config) {
            self.devices.extend(names(&Slot::all(self.config, &state)));
        }
        // Asked once, though it has no name here.
        self.devices.entry(ifindex).or_insert_with(|| format!("if{ifindex}"));
    }

    /// Waits for the log, but not for long.
    fn wait(&self) -> Result<(), GatewayError> {
        let mut log = [PollFd::new(&self.logger, PollFlags::IN)];
        let timeout = Timespec::try_from(LOOK).expect("a short time");
        match poll(&mut log, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(GatewayError::io("wait for the log")(error.into())),
        }
    }

    /// Whether the devices run the traced programs.
    fn in_place(&self) -> Result<bool, GatewayError> {
        let Some(state) = State::read(self.config)? else { return Ok(false) };
        let slots = Slot::all(self.config, &state);
        Ok(slots
            .iter()
            .filter_map(|slot| Some((slot, self.programs.get(slot.program)?)))
            .all(|(slot, traced)| slot.program_id().is_ok_and(|id| id == *traced)))
    }

    /// Tells what was still in the log when the usual programs were back, and sums up.
    fn finish(
        mut self,
        end: TraceEnd,
        options: &TraceOptions,
        tell: &mut dyn FnMut(&Traced) -> std::io::Result<()>,
    ) -> Result<TraceSummary, GatewayError> {
        let cut_short = self.tell_all(options, tell).is_some();
        let failed = || GatewayError::bpf(format!("read the map {}", trace::MAP));
        let map = self.ebpf.map(trace::MAP).expect("load_traced has checked the maps");
        let desks: PerCpuArray<_, Desk> = PerCpuArray::try_from(map).map_err(failed())?;
        let desks = desks.get(&0, 0).map_err(failed())?;
        let sum = |count: fn(&Desk) -> u64| desks.iter().map(count).sum::<u64>();
        // What nobody wanted to see any more is not lost.
        let missing = sum(|desk| desk.told).saturating_sub(self.shown);
        Ok(TraceSummary {
            end,
            shown: self.shown,
            withheld: sum(|desk| desk.withheld),
            lost: if cut_short { 0 } else { missing },
        })
    }

    /// Puts the usual programs back wherever the traced ones are.
    fn put_back(&self, report: Report<'_>) -> Result<(), GatewayError> {
        let _lock = Lock::take()?;
        let Some(state) = State::read(self.config)? else { return Ok(()) };
        let slots = Slot::all(self.config, &state);
        let swaps = slots
            .iter()
            .filter(|slot| {
                let traced = self.programs.get(slot.program);
                traced.is_some_and(|traced| slot.program_id().is_ok_and(|id| id == *traced))
            })
            .map(|slot| {
                let pin = state.pin_directory.join(program_pin(slot.program));
                Ok(Swap { slot, program: pinned_program(&pin)? })
            })
            .collect::<Result<_, GatewayError>>()?;
        links::put_back(swaps, report)
    }
}

/// The names of the devices whose packets are traced, as far as they are there.
fn names(slots: &[Slot]) -> HashMap<u32, String> {
    let traced = |slot: &&Slot| TRACED.iter().any(|(name, _)| *name == slot.program);
    let name = |slot: &Slot| Some((Device::find(&slot.device).ok()??.ifindex, slot.device.clone()));
    slots.iter().filter(traced).filter_map(name).collect()
}

/// Loads the traced programs with the instance's maps.
fn load_traced(
    object: &ObjectFile,
    pins: &Path,
    options: &TraceOptions,
) -> Result<Ebpf, GatewayError> {
    let client: Client = Address::from(options.client).words();
    let mut loader = EbpfLoader::new();
    pinned_maps(&mut loader, pins);
    loader.override_global(global::CLIENT, &client[..], true);
    loader.override_global(global::LIMIT, &options.per_second, true);
    let ebpf = load_programs(&mut loader, object, &TRACED.map(|(_, traced)| traced))?;
    match ebpf.map(trace::MAP) {
        Some(_) => Ok(ebpf),
        None => Err(GatewayError::BadObject {
            path: object.path.clone(),
            problem: format!("it has no map {}", trace::MAP),
        }),
    }
}

/// One tracer at a time: a second would put the first's programs away.
fn only_one(config: &Config) -> Result<File, GatewayError> {
    let path = config.run_directory().join("trace.lock");
    let file =
        File::create(&path).map_err(GatewayError::io(format!("create {}", path.display())))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(GatewayError::AlreadyTraced { instance: config.gateway.instance.clone() })
        }
        Err(error) => Err(GatewayError::io(format!("lock {}", path.display()))(error.into())),
    }
}

/// Takes the events out of the log's lines.
struct Collector(Mutex<Sender<Event>>);

impl log::Log for Collector {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let Some(event) = decode(&record.args().to_string()) else {
            tracing::warn!(
                line = %record.args(), "the traced programs logged something that is not an event"
            );
            return;
        };
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Its receiver lives as long as the logger.
        let _ = sender.send(event);
    }

    fn flush(&self) {}
}
