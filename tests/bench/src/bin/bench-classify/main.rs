//! `bench-classify`: what a packet costs in the gateway's programs, for every way through them, beside
//! a program that does nothing.

mod report;
mod rows;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use millrace_bench::packet_cost::{self, Cost, Prologue, Sources, segment};
use millrace_bench::program::{self, PlottedOutput};
use millrace_harness::gateway::test_run::{Bench, Family, Programs};
use millrace_harness::system::interrupt;

use crate::report::Report;
use crate::rows::Row;

/// Measures the processor time that a packet takes in the gateway's programs, by `BPF_PROG_TEST_RUN`
/// of the real object, as a ratio to a program that only passes.
///
/// Each measurement has its own floor right before it, so that what else the machine does weighs on
/// both. Rows with `each packet` or `each of` send every packet of another flow, at random: their
/// look-ups miss the processor's caches, the others' hit them.
///
/// Example: bench-classify --json --plot classify.svg
#[derive(Debug, Parser)]
#[command(name = "bench-classify", version)]
struct Arguments {
    /// Rounds; each measures every way once, and the median and the best count
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Packets of one measurement
    #[arg(long, default_value_t = 500_000,
        value_parser = clap::value_parser!(u32).range(1000..=10_000_000))]
    packets: u32,
    /// Established flows
    #[arg(long, default_value_t = 1_000_000,
        value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    flows: u32,
    /// Steering rules
    #[arg(long, default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(8..=16_384))]
    rules: u32,
    /// One round with few packets, flows and rules, to see that everything works
    #[arg(long, conflicts_with_all = ["rounds", "packets", "flows", "rules"])]
    quick: bool,
    /// Only what has this in its name
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    #[command(flatten)]
    output: PlottedOutput,
}

impl Arguments {
    fn selects(&self, row: &Row) -> bool {
        self.only.as_ref().is_none_or(|text| row.name.contains(text))
    }
}

fn main() -> ExitCode {
    program::main("bench-classify", || run(Arguments::parse()))
}

fn run(mut arguments: Arguments) -> Result<()> {
    program::require_root()?;
    if arguments.quick {
        arguments = Arguments { rounds: 1, packets: 1000, flows: 1000, rules: 100, ..arguments };
    }
    let bytes = program::begin_with_object()?;
    let bench = Bench::new()?;
    let mut report =
        Report::new(arguments.rounds, arguments.packets, arguments.flows, arguments.rules)?;
    for family in Family::BOTH {
        let clients = Sources::clients(family, arguments.flows);
        for (by_rule, rows) in
            [(false, rows::all(family, &clients)), (true, rows::by_rule(family, &clients))]
        {
            let stage = Stage { arguments: &arguments, family, clients, by_rule, rows: &rows };
            bench.with_programs(&bytes, |programs| stage.run(programs, &mut report))?;
        }
    }
    arguments.output.print(&report)
}

/// Measurements over the same state.
struct Stage<'a> {
    arguments: &'a Arguments,
    family: Family,
    clients: Sources,
    by_rule: bool,
    rows: &'a [Row],
}

impl Stage<'_> {
    fn run(&self, programs: &mut Programs, report: &mut Report) -> Result<()> {
        let Arguments { rounds, rules, .. } = *self.arguments;
        let mode = if self.by_rule { "by rule" } else { "by flow" };
        eprintln!("{:?}, {mode}: {rules} rules, {} flows …", self.family, self.arguments.flows);
        programs.rules(&packet_cost::rules(rules as usize), self.by_rule)?;
        if !self.by_rule {
            packet_cost::establish(programs, &segment(self.family), &self.clients)?;
        }
        packet_cost::keep_address(programs)?;
        let mut prologue = Prologue::load()?;
        for round in 1..=rounds {
            eprintln!("round {round} of {rounds}");
            for row in self.rows.iter().filter(|row| self.arguments.selects(row)) {
                interrupt::check()?;
                let cost = self
                    .cost(row, programs, &mut prologue)
                    .with_context(|| format!("{:?}, {}", self.family, row.name))?;
                report.add(self.family, row, cost);
            }
        }
        Ok(())
    }

    /// A packet's cost. Every packet must get the row's verdict.
    fn cost(&self, row: &Row, programs: &mut Programs, prologue: &mut Prologue) -> Result<Cost> {
        let packets = self.arguments.packets;
        row.prepare(programs)?;
        let before = programs.counters()?;
        let (pass, program) = (programs.program("pass")?, programs.program(row.program)?);
        let cost = match row.variation {
            Some(variation) => {
                Cost::of_varied(prologue, pass, program, (&row.frame, variation), packets)?
            }
            None => Cost::of_same(pass, program, &row.frame, packets)?,
        };
        let counted = programs.counted_since(&before)?;
        let expected = [(row.verdict.name(), u64::from(packets))];
        ensure!(counted == expected, "expected {expected:?}, but counted {counted:?}");
        Ok(cost)
    }
}
