//! `bench relay`: what a message costs from a client's socket to Kafka's acknowledgement, beside
//! rsyslog, which does the same, and beside two floors that nobody who does it can get below.

mod floors;
mod measure;
mod report;
mod rsyslog;
mod subject;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use millrace_relay::config::KafkaSection;
use millrace_tests::flood::Flood;
use millrace_tests::{bench, interrupt};

use report::Report;
use subject::Subject;

/// The relay's allocator, so that the floors do not stand lower or higher for another one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sends messages from many connections through the relay to Kafka, and through rsyslog (imptcp to
/// omkafka) to the same broker, alternating; and measures two floors: librdkafka alone producing the
/// same records, and the io_uring engine alone receiving.
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
    /// Bytes of a message; may be given several times [default: 100 and 1000]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    size: Vec<u32>,
    /// The relay's worker threads
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// How long every producer waits for a batch to fill, in microseconds
    #[arg(long, default_value_t = KafkaSection::default().linger_us)]
    linger_us: u32,
    /// Print the report as one JSON object in the last line; progress goes to standard error
    #[arg(long)]
    json: bool,
    /// Kafka brokers, HOST:PORT with commas between [default: 127.0.0.1:9092]
    #[arg(long)]
    brokers: Option<String>,
    #[command(subcommand)]
    floor: Option<Floor>,
}

/// A floor runs as a process of its own, so that its processor time is its own.
#[derive(Debug, Subcommand)]
enum Floor {
    #[command(hide = true)]
    Sink(floors::Sink),
    #[command(hide = true)]
    Produce(floors::Produce),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    bench::main("bench relay", || match &arguments.floor {
        Some(Floor::Sink(sink)) => sink.run(),
        Some(Floor::Produce(produce)) => produce.run(),
        None => measure_all(&arguments),
    })
}

fn measure_all(arguments: &Arguments) -> Result<()> {
    let brokers = bench::begin_with_brokers(arguments.brokers.as_deref())?;
    rsyslog::check()?;
    let mut report = Report::new(&brokers, arguments);
    let sizes = if arguments.size.is_empty() { &[100, 1000][..] } else { &arguments.size };
    for size in sizes {
        for (per_write, thousands) in [(1, arguments.single), (100, arguments.batched)] {
            let flood = Flood {
                connections: arguments.connections,
                messages: whole_writes(thousands * 1000, arguments.connections, per_write),
                size: *size as usize,
                per_write,
            };
            ensure!(flood.messages > 0, "too few messages for {} connections", flood.connections);
            report.workload(&flood);
            let setting = measure::Setting {
                flood,
                brokers: &brokers,
                workers: arguments.workers,
                linger_us: arguments.linger_us,
            };
            for round in 1..=arguments.rounds {
                for subject in Subject::ALL {
                    interrupt::check()?;
                    let measured = measure::measure(subject, &setting)?;
                    eprintln!("round {round}: {}", report::line(subject, &measured));
                    report.add(subject, &measured);
                }
            }
        }
    }
    bench::print(&report, arguments.json)
}

/// The largest number of messages, up to `wanted`, that gives every connection the same whole
/// number of writes.
fn whole_writes(wanted: u64, connections: u32, per_write: u32) -> u64 {
    let unit = u64::from(connections) * u64::from(per_write);
    wanted / unit * unit
}
