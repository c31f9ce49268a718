//! What the programs that measure or show have in common: how they begin and how they end.

use std::fmt::Display;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use millrace_harness::kafka;
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

/// Refuses whoever may not build hosts.
pub fn require_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this makes network namespaces and loads XDP programs: run it as root"
    );
    Ok(())
}

/// Watches for signals, and gives the brokers to use, which answer.
pub fn begin_with_brokers(named: Option<&str>) -> Result<String> {
    interrupt::watch()?;
    let brokers = named.map_or_else(kafka::brokers, str::to_owned);
    kafka::check_brokers(&brokers)?;
    Ok(brokers)
}

/// Prints a report. If it is wanted as JSON that is the last line of standard output, and the text
/// goes to standard error.
pub fn print(report: &(impl Display + Serialize), json: bool) -> Result<()> {
    if json {
        eprintln!("{report}");
        println!("{}", serde_json::to_string(report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}
