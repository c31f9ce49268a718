//! `guest`: what runs inside the virtual machine of `cargo xtask vm-test`. Checks of the gateway and
//! the relay under the kernel at hand, one after another, until one fails; one line of JSON for each
//! on standard output, and one at the end.

mod checks;
mod large;
mod settings;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use serde_json::{Value, json};

use checks::{Guest, REFUSAL, WORK};

/// Checks Millrace under this kernel. It builds namespaces, loads XDP programs and, given its own
/// machine, cleans up all but the pktgen module's threads.
///
/// Example: guest --packets 20000
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Packets that pktgen sends at the loaded program
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    packets: u64,
    /// Seconds that pktgen may take for them
    #[arg(long, default_value_t = 60)]
    pktgen_limit_s: u64,
    /// This kernel is too old: `relay load` must say so
    #[arg(long)]
    expect_refusal: bool,
}

/// What a check has found.
struct Finding {
    /// For people.
    detail: String,
    /// For programs.
    figures: Value,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(passed) => {
            println!("{}", json!({ "end": true, "passed": passed }));
            ExitCode::SUCCESS
        }
        Err(()) => ExitCode::FAILURE,
    }
}

/// All checks; `Err` after the first that failed, which has been reported.
fn run(arguments: &Arguments) -> Result<usize, ()> {
    if let Err(error) = root() {
        report("root", Instant::now(), &Err(error));
        return Err(());
    }
    let started = Instant::now();
    let limit = Duration::from_secs(arguments.pktgen_limit_s);
    let mut guest = match Guest::new(arguments.packets, limit) {
        Ok(guest) => guest,
        Err(error) => {
            report("hosts", started, &Err(error));
            return Err(());
        }
    };
    let checks = if arguments.expect_refusal { REFUSAL } else { WORK };
    for (name, check) in checks {
        let started = Instant::now();
        let outcome = check(&mut guest);
        report(name, started, &outcome);
        if outcome.is_err() {
            return Err(());
        }
    }
    Ok(checks.len())
}

fn root() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "network namespaces and XDP programs want root");
    Ok(())
}

fn report(check: &str, started: Instant, outcome: &Result<Finding>) {
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let line = match outcome {
        Ok(finding) => json!({
            "check": check, "passed": true, "took_ms": took_ms,
            "detail": finding.detail, "figures": finding.figures,
        }),
        Err(error) => json!({
            "check": check, "passed": false, "took_ms": took_ms, "detail": format!("{error:#}"),
        }),
    };
    println!("{line}");
}
