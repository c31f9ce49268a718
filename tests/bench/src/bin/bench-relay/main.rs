//! `bench relay`: what a message costs from a client's socket to Kafka's acknowledgement, beside
//! rsyslog, which does the same, and beside two floors that nobody who does it can get below.

mod against;
mod answer;
mod floors;
mod measure;
mod report;
mod rsyslog;
mod subject;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use millrace_bench::flood::Flood;
use millrace_bench::program::{self, Brokers, Output};
use millrace_harness::clients::speech::Speech;
use millrace_harness::system::interrupt;
use millrace_relay::config::UplinkEngine;

use against::Against;
use report::Report;
use subject::Comparison;

/// The relay's allocator, so that the floors do not stand lower or higher for another one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sends messages from many connections through the relay to Kafka, and through rsyslog (imptcp to
/// omkafka) to the same broker, alternating; and measures two floors: librdkafka alone producing the
/// same records, and the io_uring engine alone receiving. Then the relay's protocols beside plain
/// framing: messages to the server alone, and with a server that answers each. With --against also
/// the relay beside that of another commit.
///
/// Example: bench-relay --json
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Connections
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=4000))]
    connections: u32,
    /// Rounds; each measures every subject once, and the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Messages of a measurement with one message a write, in thousands
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    single: u64,
    /// Messages of a measurement with 100 messages a write, in thousands
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(5..=100_000))]
    batched: u64,
    /// Round trips of a measurement, in thousands
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    answered: u64,
    /// What to measure; without it everything
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Bytes of a message; may be given several times [default: 100 and 1000]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    size: Vec<u32>,
    /// The relay's worker threads
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// How long every producer waits for a batch to fill, in microseconds [default: what the relay's
    /// engine has, and 500 for the others]
    #[arg(long)]
    linger_us: Option<u32>,
    /// What writes this relay's uplink (kafka.engine): librdkafka or millrace. Another commit's relay
    /// uses librdkafka
    #[arg(long, default_value = "librdkafka", value_parser = engine)]
    engine: UplinkEngine,
    /// Another commit's relay, to stand beside this one. `cargo xtask bench relay --against REVISION`
    /// builds it.
    #[arg(long, value_name = "REVISION=PROGRAM")]
    against: Option<Against>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    brokers: Brokers,
    #[command(subcommand)]
    floor: Option<Floor>,
}

fn engine(name: &str) -> Result<UplinkEngine, String> {
    match name {
        "librdkafka" => Ok(UplinkEngine::Librdkafka),
        "millrace" => Ok(UplinkEngine::Millrace),
        _ => Err("it must be librdkafka or millrace".to_owned()),
    }
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The relay beside rsyslog and the floors.
    Peers,
    /// The relay beside that of another commit; needs --against.
    Commits,
    /// The relay's protocols beside plain framing.
    Protocols,
}

/// A floor, and the server that answers, run as processes of their own, so that their processor time
/// is their own.
#[derive(Debug, Subcommand)]
enum Floor {
    #[command(hide = true)]
    Answer(answer::Answer),
    #[command(hide = true)]
    Sink(floors::Sink),
    #[command(hide = true)]
    Produce(floors::Produce),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    program::main("bench relay", || match &arguments.floor {
        Some(Floor::Answer(answer)) => answer.run(),
        Some(Floor::Sink(sink)) => sink.run(),
        Some(Floor::Produce(produce)) => produce.run(),
        None => measure_all(&arguments),
    })
}

fn measure_all(arguments: &Arguments) -> Result<()> {
    let brokers = arguments.brokers.begin()?;
    ensure!(
        arguments.only != Some(Part::Commits) || arguments.against.is_some(),
        "--only commits needs --against REVISION"
    );
    let wanted = |part| match arguments.only {
        Some(only) => only == part,
        None => part != Part::Commits || arguments.against.is_some(),
    };
    if wanted(Part::Peers) {
        rsyslog::check()?;
    }
    let mut report = Report::new(&brokers, arguments);
    let sizes = if arguments.size.is_empty() { &[100, 1000][..] } else { &arguments.size };
    let (single, batched) = ((1, arguments.single), (100, arguments.batched));
    let workloads = [
        (Part::Peers, Comparison::Peers, single),
        (Part::Peers, Comparison::Peers, batched),
        (Part::Commits, Comparison::Commits, single),
        (Part::Commits, Comparison::Commits, batched),
        (Part::Protocols, Comparison::Protocols, single),
        (Part::Protocols, Comparison::Protocols, batched),
        (Part::Protocols, Comparison::RoundTrips, (1, arguments.answered)),
    ];
    for size in sizes {
        for (_, comparison, work) in workloads.iter().filter(|(part, ..)| wanted(*part)) {
            measure_one(arguments, &brokers, &mut report, *comparison, *size as usize, *work)?;
        }
    }
    arguments.output.print(&report)
}

/// Measures one workload.
fn measure_one(
    arguments: &Arguments,
    brokers: &str,
    report: &mut Report,
    comparison: Comparison,
    size: usize,
    (per_write, thousands): (u32, u64),
) -> Result<()> {
    let connections = arguments.connections;
    let messages = whole_writes(thousands * 1000, connections, per_write);
    ensure!(messages > 0, "too few messages for {connections} connections");
    let flood = |speech| Flood { speech, connections, messages, size, per_write };
    report.workload(comparison, &flood(Speech::Lines));
    for round in 1..=arguments.rounds {
        for (column, subject) in comparison.subjects().iter().enumerate() {
            interrupt::check()?;
            let setting = measure::Setting {
                flood: flood(subject.speech()),
                brokers,
                workers: arguments.workers,
                linger_us: arguments.linger_us,
                engine: arguments.engine,
                against: arguments.against.as_ref(),
            };
            let measured = measure::measure(*subject, &setting)?;
            eprintln!("round {round}: {}", report::line(*subject, &measured));
            report.add(column, &measured);
        }
    }
    Ok(())
}

/// The largest number of messages, up to `wanted`, that gives every connection the same whole
/// number of writes.
fn whole_writes(wanted: u64, connections: u32, per_write: u32) -> u64 {
    let unit = u64::from(connections) * u64::from(per_write);
    wanted / unit * unit
}
