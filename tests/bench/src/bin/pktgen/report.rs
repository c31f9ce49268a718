//! What was measured, as a table, as JSON and as a plot.

#![allow(clippy::cast_precision_loss, reason = "counts become rates here")]

use std::fmt;
use std::path::Path;

use anyhow::Result;
use millrace_bench::measure::{Machine, median};
use millrace_bench::packet_cost::Cost;
use millrace_bench::plot::{self, Bars, Scale};
use millrace_bench::program::Plot;
use serde::Serialize;

use crate::engine::{Engine, Passage};
use crate::scenario::Scenario;

/// Everything that was measured of a scenario at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// A program that only drops.
    pub(crate) drop: Passage,
    /// A program that only passes.
    pub(crate) pass: Passage,
    /// The scenario's.
    pub(crate) passage: Passage,
    /// By test run.
    pub(crate) cost: Cost,
}

impl Passage {
    fn mpps(&self) -> f64 {
        self.packets as f64 / self.elapsed.as_secs_f64() / 1e6
    }

    fn processor_ns(&self) -> Option<f64> {
        Some(self.processor?.as_secs_f64() * 1e9 / self.packets as f64)
    }
}

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    engine: &'static str,
    engine_reason: String,
    rounds: u32,
    packets: u32,
    rows: Vec<Line>,
    /// What this engine cannot send.
    left_out: Vec<String>,
}

/// Medians, but for `mpps_best`.
#[derive(Debug, Serialize)]
struct Line {
    scenario: String,
    frame_bytes: u32,
    /// Millions of packets a second.
    mpps: f64,
    mpps_best: f64,
    /// The rate as a part of that of a program that only drops,
    of_drop: f64,
    /// and of one that only passes.
    of_pass: f64,
    /// Processor time of a packet: generator, program, and what becomes of the packet.
    processor_ns: Option<f64>,
    /// The part of the packets that has come to the end of the road.
    arrived: f64,
    /// Processor time of a packet in the program alone.
    test_run_ns: f64,
    /// The same as a ratio to a program that only passes.
    test_run_ratio: f64,
}

impl Report {
    pub(crate) fn new(engine: Engine, reason: String, rounds: u32, packets: u32) -> Result<Self> {
        Ok(Self {
            machine: Machine::this()?,
            engine: engine.name(),
            engine_reason: reason,
            rounds,
            packets,
            rows: Vec::new(),
            left_out: Vec::new(),
        })
    }

    /// Takes the rounds of a scenario in; none if the engine cannot send it.
    pub(crate) fn add(&mut self, scenario: Scenario, frame_bytes: u32, rounds: &[Round]) {
        let scenario = scenario.name();
        if rounds.is_empty() {
            if !self.left_out.contains(&scenario) {
                self.left_out.push(scenario);
            }
            return;
        }
        let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure));
        let processor: Option<Vec<f64>> =
            rounds.iter().map(|round| round.passage.processor_ns()).collect();
        self.rows.push(Line {
            scenario,
            frame_bytes,
            mpps: of(|round| round.passage.mpps()),
            mpps_best: rounds.iter().map(|round| round.passage.mpps()).fold(0.0, f64::max),
            of_drop: of(|round| round.passage.mpps() / round.drop.mpps()),
            of_pass: of(|round| round.passage.mpps() / round.pass.mpps()),
            processor_ns: processor.map(median),
            arrived: of(|round| round.passage.arrived as f64 / round.passage.packets as f64),
            test_run_ns: of(|round| round.cost.own()),
            test_run_ratio: of(|round| round.cost.ratio()),
        });
    }
}

/// Draws rates and costs.
impl Plot for Report {
    fn plot(&self, path: &Path) -> Result<()> {
        let (mut rates, mut costs) = (Bars::default(), Bars::default());
        for line in &self.rows {
            let bytes = format!("{} bytes", line.frame_bytes);
            rates.add(&line.scenario, &bytes, line.mpps);
            costs.add(&line.scenario, &bytes, line.test_run_ns);
        }
        let title = format!("Through the program, by {}", self.engine);
        let charts = [
            rates.chart(&title, "million packets a second; more is better", Scale::Linear),
            costs.chart(
                "The program alone, by test run",
                "nanoseconds a packet; less is better",
                Scale::Linear,
            ),
        ];
        plot::write(path, "Millrace: packets through the XDP program of the gateway", &charts)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, engine, engine_reason, rounds, packets, .. } = self;
        writeln!(f, "{machine}; medians of {rounds} rounds of {packets} packets")?;
        writeln!(f, "engine {engine}: {engine_reason}")?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<14} {:>5} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>8}",
            "scenario",
            "bytes",
            "Mpkt/s",
            "best",
            "of drop",
            "of pass",
            "CPU ns",
            "arrived",
            "program",
            "ratio"
        )?;
        for line in &self.rows {
            let Line { scenario, frame_bytes, mpps, mpps_best, of_drop, of_pass, .. } = line;
            let processor =
                line.processor_ns.map_or_else(|| "-".to_owned(), |ns| format!("{ns:.0}"));
            let arrived = 100.0 * line.arrived;
            let Line { test_run_ns, test_run_ratio, .. } = line;
            writeln!(
                f,
                "{scenario:<14} {frame_bytes:>5} {mpps:>8.3} {mpps_best:>8.3} {of_drop:>8.2} \
                 {of_pass:>8.2} {processor:>8} {arrived:>7.1}% {test_run_ns:>6.1} ns \
                 {test_run_ratio:>8.2}"
            )?;
        }
        if !self.left_out.is_empty() {
            let scenarios = self.left_out.join(", ");
            writeln!(f, "left out, for this engine sends UDP only: {scenarios}")?;
        }
        Ok(())
    }
}
