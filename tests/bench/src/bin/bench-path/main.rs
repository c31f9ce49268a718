//! `bench-path`: what a message and an idle connection cost on the whole path, with the conventional
//! chain of routers and with Millrace.

mod chain;
mod crowd;
mod report;
mod work;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use millrace_bench::program::{self, Brokers, PlottedOutput};

use crate::chain::Road;
use crate::crowd::SignOfLife;
use crate::report::Report;
use crate::work::{Idle, Talk};

/// Measures packets at all hosts, processor time and latency of the conventional chain client –
/// gateway – core router – distributed router – server, and of Millrace at the same gateway.
///
/// Example: bench-path --rounds 3 --plot path.svg
#[derive(Debug, Parser)]
#[command(name = "bench-path", version)]
struct Arguments {
    /// Rounds of every exchange of messages; the medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Messages of one exchange, and four times as many in batches
    #[arg(long, default_value_t = 20_000,
        value_parser = clap::value_parser!(u64).range(640..=1_000_000))]
    messages: u64,
    /// Idle connections
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=8000))]
    connections: u32,
    /// How long idle connections are watched, in seconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=60))]
    idle_seconds: u64,
    /// One round of very little, to see that everything works
    #[arg(long, conflicts_with_all = ["rounds", "messages", "connections", "idle_seconds"])]
    quick: bool,
    #[command(flatten)]
    output: PlottedOutput,
    #[command(flatten)]
    brokers: Brokers,
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Amounts {
    rounds: u32,
    messages: u64,
    connections: u32,
    idle: Duration,
}

fn main() -> ExitCode {
    program::main("bench-path", || run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    program::require_root()?;
    let brokers = arguments.brokers.begin()?;
    let amounts = if arguments.quick {
        Amounts { rounds: 1, messages: 640, connections: 20, idle: Duration::from_secs(2) }
    } else {
        let Arguments { rounds, messages, connections, idle_seconds, .. } = *arguments;
        Amounts { rounds, messages, connections, idle: Duration::from_secs(idle_seconds) }
    };
    let roads = [Road::conventional()?, Road::millrace(&brokers)?];
    let (talks, idles) = measure(&roads, &amounts)?;
    for road in &roads {
        road.check()?;
    }
    drop(roads);
    let report = Report::new(&amounts, &talks, &idles)?;
    arguments.output.print(&report)
}

fn measure(roads: &[Road], amounts: &Amounts) -> Result<(Vec<Talk>, Vec<Idle>)> {
    let mut talks = Vec::new();
    for round in 0..amounts.rounds {
        eprintln!("messages, round {} of {}", round + 1, amounts.rounds);
        for pattern in work::PATTERNS {
            for road in roads {
                talks.push(work::talk(road, pattern, amounts)?);
            }
        }
    }
    let mut idles = Vec::new();
    for road in roads {
        eprintln!("idle connections, {}", road.name);
        idles.push(work::nothing(road, amounts)?);
        for sign in [SignOfLife::Tcp, SignOfLife::Message] {
            idles.push(work::idle(road, sign, amounts)?);
        }
    }
    Ok((talks, idles))
}
