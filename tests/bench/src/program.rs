//! What the programs that measure or show have in common: how they begin and how they end.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use millrace_harness::kafka;
use millrace_harness::net::netns::bpf_object;
use millrace_harness::system::interrupt;
use serde::Serialize;

/// Runs a program's body, and says under its name why it failed.
pub fn main(name: &str, body: impl FnOnce() -> Result<()>) -> ExitCode {
    match body() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The option for a report on standard output.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// Print the report as one JSON object in the last line; progress goes to standard error
    #[arg(long)]
    json: bool,
}

impl Output {
    /// Prints a report. If it is wanted as JSON that is the last line of standard output, and the text
    /// goes to standard error.
    pub fn print(&self, report: &(impl Display + Serialize)) -> Result<()> {
        if self.json {
            eprintln!("{report}");
            println!("{}", serde_json::to_string(report)?);
        } else {
            println!("{report}");
        }
        Ok(())
    }
}

/// A report that can be drawn.
pub trait Plot: Display + Serialize {
    /// Draws the report into a file.
    fn plot(&self, path: &Path) -> Result<()>;
}

/// The options for a report that can be drawn.
#[derive(Debug, clap::Args)]
pub struct PlottedOutput {
    #[command(flatten)]
    output: Output,
    /// Draw the report into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl PlottedOutput {
    /// Draws a report if that is wanted, and prints it.
    pub fn print(&self, report: &impl Plot) -> Result<()> {
        if let Some(path) = &self.plot {
            report.plot(path).with_context(|| format!("--plot {}", path.display()))?;
        }
        self.output.print(report)
    }
}

/// The option for the brokers.
#[derive(Debug, clap::Args)]
pub struct Brokers {
    /// Kafka brokers, HOST:PORT with commas between [default: 127.0.0.1:9092]
    #[arg(long)]
    brokers: Option<String>,
}

impl Brokers {
    /// Watches for signals, and gives the brokers to use, which answer.
    pub fn begin(&self) -> Result<String> {
        interrupt::watch()?;
        let brokers = self.brokers.clone().unwrap_or_else(kafka::brokers);
        kafka::check_brokers(&brokers)?;
        Ok(brokers)
    }
}

/// Watches for signals, and gives the bytes of the gateway's eBPF object.
pub fn begin_with_object() -> Result<Vec<u8>> {
    interrupt::watch()?;
    let path = bpf_object()?;
    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Refuses whoever may not build hosts.
pub fn require_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this makes network namespaces and loads XDP programs: run it as root"
    );
    Ok(())
}
