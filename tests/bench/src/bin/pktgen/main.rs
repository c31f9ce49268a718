//! `pktgen`: packets a second through the gateway's ingress program, beside programs that only drop and
//! only pass.

mod engine;
mod report;
mod road;
mod scenario;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum as _};
use millrace_bench::packet_cost::{self, Cost, Prologue};
use millrace_bench::program::{self, PlottedOutput};
use millrace_harness::gateway::test_run::Programs;
use millrace_harness::system::interrupt;

use crate::engine::{Engine, Passage};
use crate::report::{Report, Round};
use crate::road::Road;
use crate::scenario::{Scenario, Size};

/// Lengths of frames from the Ethernet header on, without the frame check sequence; the last has
/// 1,500 bytes behind the Ethernet header.
const FRAME_BYTES: [u32; 3] = [64, 512, 1514];

/// Measures packets a second through the gateway's ingress program: what is diverted goes to the relay's
/// device and what is passed is forwarded by the stack, both to a device that drops it.
///
/// Beside the rate, what a packet of the same kind costs by test run, without generator, stack and
/// devices.
///
/// Example: pktgen mixture --engine live-frames --plot pktgen.svg
#[derive(Debug, Parser)]
#[command(name = "pktgen", version)]
struct Arguments {
    /// What to send [default: everything]
    scenario: Vec<Scenario>,
    /// Who makes the packets [default: kernel where it has pktgen, else live-frames]
    #[arg(long)]
    engine: Option<Engine>,
    /// Bytes of a frame; may be given several times [default: 64, 512 and 1514]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(60..=1514))]
    size: Vec<u32>,
    /// Packets of one measurement
    #[arg(long, default_value_t = 500_000,
        value_parser = clap::value_parser!(u32).range(1000..=10_000_000))]
    packets: u32,
    /// Rounds; each measures everything once, and the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// One round with few packets, flows and rules, to see that everything works
    #[arg(long, conflicts_with_all = ["packets", "rounds"])]
    quick: bool,
    #[command(flatten)]
    output: PlottedOutput,
}

fn main() -> ExitCode {
    program::main("pktgen", || run(Arguments::parse()))
}

fn run(mut arguments: Arguments) -> Result<()> {
    program::require_root()?;
    let mut size = Size { divisor: 1 };
    if arguments.quick {
        arguments = Arguments { rounds: 1, packets: 5000, ..arguments };
        size = Size { divisor: 100 };
    }
    if arguments.scenario.is_empty() {
        arguments.scenario = Scenario::value_variants().to_vec();
    }
    if arguments.size.is_empty() {
        arguments.size = FRAME_BYTES.to_vec();
    }
    let object = program::begin_with_object()?;
    let road = Road::new()?;
    let (engine, reason) = Engine::choose(arguments.engine, &road.bench.client)?;
    eprintln!("engine {}: {reason}", engine.name());
    let mut report = Report::new(engine, reason, arguments.rounds, arguments.packets)?;
    for scenario in &arguments.scenario {
        for frame_bytes in &arguments.size {
            interrupt::check()?;
            eprintln!("{}, {frame_bytes} bytes …", scenario.name());
            let run = Run {
                road: &road,
                engine,
                scenario: *scenario,
                size,
                frame_bytes: *frame_bytes,
                packets: arguments.packets,
            };
            let rounds = road
                .bench
                .with_programs(&object, |programs| run.rounds(programs, arguments.rounds))
                .with_context(|| format!("{}, {frame_bytes} bytes", scenario.name()))?;
            report.add(*scenario, *frame_bytes, &rounds);
        }
    }
    arguments.output.print(&report)
}

/// One kind of traffic, with frames of one length.
struct Run<'a> {
    road: &'a Road,
    engine: Engine,
    scenario: Scenario,
    size: Size,
    frame_bytes: u32,
    packets: u32,
}

impl Run<'_> {
    fn rounds(&self, programs: &mut Programs, rounds: u32) -> Result<Vec<Round>> {
        let Self { scenario, size, .. } = *self;
        if self.datagrams().is_none() && self.engine == Engine::Kernel {
            return Ok(Vec::new());
        }
        programs.rules(&packet_cost::rules(scenario.rules(size)), false)?;
        if scenario.flows(size) > 0 {
            let frame = scenario.frame(size, self.frame_bytes as usize);
            packet_cost::establish(programs, &frame, &scenario.sources(size))?;
        }
        let mut prologue = Prologue::load()?;
        (0..rounds)
            .map(|_| {
                interrupt::check()?;
                let drop = self.passage("drop", programs, &mut prologue)?;
                let pass = self.passage("pass", programs, &mut prologue)?;
                let passage = match scenario.program() {
                    "drop" => drop,
                    "pass" => pass,
                    program => self.counted(program, programs, &mut prologue)?,
                };
                let cost = self.cost(programs, &mut prologue)?;
                Ok(Round { drop, pass, passage, cost })
            })
            .collect()
    }

    fn datagrams(&self) -> Option<millrace_harness::net::pktgen::Traffic> {
        self.scenario.datagrams(self.size, self.frame_bytes, self.packets.into())
    }

    /// The same packets through one of the programs.
    fn passage(
        &self,
        program: &str,
        programs: &mut Programs,
        prologue: &mut Prologue,
    ) -> Result<Passage> {
        if let (Engine::Kernel, Some(traffic)) = (self.engine, self.datagrams()) {
            let program = match program {
                "drop" => prologue.drop_mut()?,
                name => programs.program_mut(name)?,
            };
            return engine::kernel(self.road, program, &traffic);
        }
        let frame = self.scenario.frame(self.size, self.frame_bytes as usize);
        let subject = match program {
            "drop" => self.road.drop_program()?,
            name => programs.program(name)?,
        };
        prologue.aim(subject, self.scenario.variation(self.size, &frame))?;
        engine::live_frames(self.road, prologue, &frame.bytes(), self.packets)
    }

    /// A passage in which the packets must get the scenario's verdicts.
    fn counted(
        &self,
        program: &str,
        programs: &mut Programs,
        prologue: &mut Prologue,
    ) -> Result<Passage> {
        let before = programs.counters()?;
        let passage = self.passage(program, programs, prologue)?;
        let counted = programs.counted_since(&before)?;
        let expected = self.scenario.verdicts(self.engine);
        let of = |name| counted.iter().find(|(counted, _)| *counted == name).map_or(0, |c| c.1);
        let counts: Vec<_> = expected.iter().map(|verdict| of(verdict.name())).collect();
        // A device has a few packets of its own, of its neighbours.
        let missing = passage.packets.saturating_sub(counts.iter().sum());
        ensure!(
            counts.iter().all(|count| *count > 0) && missing <= passage.packets / 1000,
            "of {} packets, {counted:?} were counted, and not {:?}",
            passage.packets,
            expected.iter().map(|verdict| verdict.name()).collect::<Vec<_>>()
        );
        Ok(passage)
    }

    /// What the program alone costs.
    fn cost(&self, programs: &Programs, prologue: &mut Prologue) -> Result<Cost> {
        let frame = self.scenario.frame(self.size, self.frame_bytes as usize);
        let variation = self.scenario.variation(self.size, &frame);
        let subject = match self.scenario.program() {
            "drop" => self.road.drop_program()?,
            name => programs.program(name)?,
        };
        let pass = programs.program("pass")?;
        Cost::of_varied(prologue, pass, subject, (&frame.bytes(), variation), self.packets)
    }
}
