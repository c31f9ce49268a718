//! `bench-gateway`: what it costs to divert a connection, beside TPROXY and plain forwarding.

mod report;
mod variants;
mod work;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use millrace_bench::program::{self, Brokers, PlottedOutput};
use millrace_harness::system::interrupt;

use crate::report::{Comparison, Report};
use crate::variants::{Offloads, Road, Variant};
use crate::work::{Amounts, Work};

/// The same clients and the same work by several roads through a gateway.
const ROADS: [(Road, Offloads); 9] = [
    (Road::Forwarded, Offloads::Off),
    (Road::ForwardedNative, Offloads::Off),
    (Road::ForwardedGeneric, Offloads::Off),
    (Road::Tproxy, Offloads::Off),
    (Road::Diverted, Offloads::Off),
    (Road::Forwarded, Offloads::On),
    (Road::Tproxy, Offloads::On),
    (Road::TproxyRelay, Offloads::Off),
    (Road::DivertedRelay, Offloads::Off),
];

/// Measures connections, round trips, throughput and processor time of connections that Millrace
/// diverts, that TPROXY takes, and that are forwarded without and past the XDP programs.
///
/// Example: bench-gateway --rounds 3 --plot gateway.svg
#[derive(Debug, Parser)]
#[command(name = "bench-gateway", version)]
struct Arguments {
    /// Rounds; every road is measured in each, and the medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Connections of one measurement
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
    /// Messages of one measurement, and four times as many with the larger window
    #[arg(long, default_value_t = 20_000,
        value_parser = clap::value_parser!(u64).range(32..=1_000_000))]
    messages: u64,
    /// Megabytes of one stream, and a quarter as many in large messages
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    megabytes: u64,
    /// One round of very little, to see that everything works
    #[arg(long, conflicts_with_all = ["rounds", "connections", "messages", "megabytes"])]
    quick: bool,
    #[command(flatten)]
    output: PlottedOutput,
    #[command(flatten)]
    brokers: Brokers,
}

fn main() -> ExitCode {
    program::main("bench-gateway", || run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    program::require_root()?;
    let brokers = arguments.brokers.begin()?;
    let (rounds, amounts) = if arguments.quick {
        (1, Amounts { connections: 40, messages: 200, megabytes: 4 })
    } else {
        let Arguments { rounds, connections, messages, megabytes, .. } = *arguments;
        (rounds, Amounts { connections, messages, megabytes })
    };
    let mut variants = Vec::new();
    for (road, offloads) in ROADS {
        interrupt::check()?;
        let variant = Variant::build(road, offloads, &brokers)?;
        eprintln!("ready: {}", variant.name);
        variants.push(variant);
    }
    let (relays, servers): (Vec<_>, Vec<_>) =
        (0..variants.len()).partition(|index| variants[*index].has_relay());
    let mut comparisons = [
        Comparison::new(
            "path",
            "The path alone: the same TCP server at its end",
            servers,
            &[Work::Connect, Work::Single, Work::Windowed, Work::Upload, Work::Download],
        ),
        Comparison::new(
            "relay",
            "The relay: to Kafka and back, beside a TCP server that echoes",
            [vec![0], relays].concat(),
            &[Work::Connect, Work::Single, Work::Windowed, Work::Large],
        ),
    ];
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for comparison in &mut comparisons {
            comparison.round(round as usize, &variants, &amounts)?;
        }
    }
    for variant in &variants {
        variant.check()?;
    }
    let report = Report::new(rounds, &amounts, &variants, &comparisons)?;
    drop(variants);
    arguments.output.print(&report)
}
