//! `demo`: the whole path on one host, with every message and every reply checked.

mod hold;
mod show;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use millrace_harness::clients::payload::Payload;
use millrace_harness::clients::wire::{frames, lines};
use millrace_harness::kafka;
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, MAX_SERVERS};
use millrace_harness::relay::judged_run::{self, Outcome, RunPlan};
use millrace_harness::system::interrupt;
use serde::Serialize;
use serde_json::Value;

/// Descriptors that the demo needs beside one for each client and its listeners.
const SPARE_FILES: u64 = 200;
const MAX_MESSAGE_BYTES: u32 = 1 << 20;

/// Builds client, gateway and server hosts out of network namespaces, diverts real TCP clients
/// through Millrace and Kafka, and checks every message and every reply.
///
/// Example: demo --clients 200 --servers 4 --messages 100000 --json
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// TCP clients; each connects to one of the servers' own addresses
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    clients: u32,
    /// Server hosts
    #[arg(long, default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SERVERS)))]
    servers: u16,
    /// Messages of all clients together
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    messages: u64,
    /// Bytes of a message
    #[arg(long, default_value_t = 100)]
    size: usize,
    /// Most unanswered messages of one client
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// Print the outcome as one JSON object in the last line; progress goes to standard error
    #[arg(long)]
    json: bool,
    /// Keep the hosts up until Ctrl-C and say how to type into them by hand
    #[arg(long, conflicts_with = "json")]
    hold: bool,
    /// Send lines rather than frames
    #[arg(long)]
    lines: bool,
    /// Kafka brokers, HOST:PORT with commas between [default: 127.0.0.1:9092]
    #[arg(long)]
    brokers: Option<String>,
}

/// The JSON object.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    outcome: Outcome,
    verdicts: Value,
}

fn main() -> ExitCode {
    match demo(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments) -> Result<bool> {
    check(arguments)?;
    interrupt::watch()?;
    let brokers = arguments.brokers.clone().unwrap_or_else(kafka::brokers);
    kafka::check_brokers(&brokers)?;
    let progress = show::Progress { to_stderr: arguments.json };
    progress.line(&format!(
        "building a client host, a gateway host and {} server host(s)",
        arguments.servers
    ));
    let mut cluster = Cluster::build(ClusterPlan {
        name: "demo".to_owned(),
        servers: arguments.servers,
        brokers,
        max_message_bytes: MAX_MESSAGE_BYTES,
    })?;
    progress.line("loading the gateway and starting the relay");
    cluster.start()?;
    if arguments.hold {
        hold::hold(&mut cluster)?;
        return Ok(true);
    }
    let report = show::ordinary_port(&cluster, &progress)
        .and_then(|()| exchange(&mut cluster, arguments, &progress))
        .inspect_err(|_| show::relay_log(&cluster))?;
    if !report.outcome.is_flawless() {
        show::relay_log(&cluster);
    }
    let stopped = cluster.instance.stop()?;
    if arguments.json {
        progress.line(&format!("the relay has stopped: {stopped}"));
    } else {
        progress.line("the relay has stopped in good order");
    }
    drop(cluster);
    show::summary(&report, (arguments.clients, arguments.window), &progress);
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(report.outcome.is_flawless())
}

fn check(arguments: &Arguments) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces and loads XDP programs: run it as root"
    );
    Payload::new(arguments.size)?;
    ensure!(
        arguments.size <= MAX_MESSAGE_BYTES as usize,
        "a message of {} bytes is longer than the demo's services take ({MAX_MESSAGE_BYTES})",
        arguments.size
    );
    ensure!(
        arguments.messages >= u64::from(arguments.clients),
        "{} messages are too few for {} clients: give at least one to each",
        arguments.messages,
        arguments.clients
    );
    ensure!(
        arguments.messages / u64::from(arguments.clients) < u64::from(u32::MAX),
        "{} messages are more than {} clients can number",
        arguments.messages,
        arguments.clients
    );
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let needed = u64::from(arguments.clients) + 8 * u64::from(arguments.servers) + SPARE_FILES;
    ensure!(
        limit.is_none_or(|limit| needed <= limit),
        "{} clients need {needed} open files, but the limit is {}: use fewer clients or raise it \
         with `ulimit -n`",
        arguments.clients,
        limit.unwrap_or_default()
    );
    Ok(())
}

fn exchange(
    cluster: &mut Cluster,
    arguments: &Arguments,
    progress: &show::Progress,
) -> Result<Report> {
    let plan = RunPlan {
        clients: arguments.clients,
        messages: arguments.messages,
        size: arguments.size,
        window: arguments.window,
        wire: if arguments.lines { lines() } else { frames() },
    };
    let mut ticker = show::Ticker::new(progress);
    let outcome = judged_run::run(cluster, &plan, &mut |cluster, snapshot| {
        ticker.observe(cluster, snapshot)
    })?;
    Ok(Report { outcome, verdicts: cluster.instance.verdicts()? })
}
