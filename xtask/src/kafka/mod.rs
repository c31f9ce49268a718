//! `cargo xtask kafka`: an Apache Kafka on loopback for demo, tests and benchmarks.

mod config;
pub(crate) mod jars;
pub(crate) mod matrix;
mod node;
mod wire;

use std::{net::SocketAddr, path::PathBuf, process::Command};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use node::{Node, Options, Started};

use crate::{
    paths, process,
    setup::{self, Part},
};
use node::State;

/// Kafka's default is 9 s. A single broker has no replacement, and on a busy machine it may be silent for
/// that long.
const SESSION_TIMEOUT_MS: u32 = 30_000;

/// What to do with the broker.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Start Kafka and print its address when it serves; do nothing else if it already runs
    #[command(after_help = "Example:\n  cargo xtask kafka start\n  \
        cargo xtask kafka start --dir /tmp/second --port 0     # another one, on any free port")]
    Start {
        #[command(flatten)]
        place: Place,
        /// Port for clients, on 127.0.0.1; 0 takes any free port [default: its former port, else 9092,
        /// else any free port]
        #[arg(long)]
        port: Option<u16>,
        /// Time for which the broker may be silent before its controller presumes it gone, in
        /// milliseconds. A broker that was killed serves again after this time. A broker that the machine
        /// did not run for this long loses its partitions for a moment
        #[arg(long, default_value_t = SESSION_TIMEOUT_MS, value_name = "MS",
            value_parser = clap::value_parser!(u32).range(2000..=60_000))]
        session_timeout_ms: u32,
        /// A property of the broker that overrides ours; may be given several times. Not kept for the
        /// next start
        #[arg(long = "set", value_name = "NAME=VALUE")]
        properties: Vec<String>,
    },
    /// Stop Kafka; its data stays
    #[command(after_help = "Example:\n  cargo xtask kafka stop")]
    Stop {
        #[command(flatten)]
        place: Place,
    },
    /// Report whether Kafka runs, and where; exit code 1 if it does not serve
    #[command(after_help = "Example:\n  cargo xtask kafka status")]
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Show the end of Kafka's log
    #[command(after_help = "Example:\n  cargo xtask kafka logs --follow")]
    Logs {
        #[command(flatten)]
        place: Place,
        /// Keep showing what is written
        #[arg(long, short)]
        follow: bool,
        /// Number of lines
        #[arg(long, short = 'n', default_value_t = 40)]
        lines: u32,
    },
}

/// Which node to use.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Folder of the node [default: target/kafka/node]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Place {
    fn node(&self) -> Result<Node> {
        Node::at(&self.dir.clone().unwrap_or_else(paths::kafka_node))
    }
}

/// Runs one of the actions.
pub(crate) fn run(action: &Action) -> Result<()> {
    match action {
        Action::Start { place, port, session_timeout_ms, properties } => {
            setup::ensure(&[Part::Kafka])?;
            let options = Options {
                port: *port,
                session_timeout_ms: *session_timeout_ms,
                properties: config::overrides(properties)?,
            };
            let broker = match place.node()?.start(&options)? {
                Started::Before(broker) => {
                    process::say(format!("Kafka is already running (pid {}).", broker.pid()));
                    broker
                }
                Started::Now(broker) => {
                    process::say(format!("Kafka is running (pid {}).", broker.pid()));
                    broker
                }
            };
            println!("{}", broker.address());
        }
        Action::Stop { place } => {
            let stopped = place.node()?.stop()?;
            process::say(if stopped { "Kafka has stopped." } else { "Kafka was not running." });
        }
        Action::Status { place } => match place.node()?.state() {
            State::Ready(broker) => {
                println!("Kafka serves on {} (pid {}).", broker.address(), broker.pid());
            }
            State::Stopped => {
                bail!("Kafka is not running: start it with `cargo xtask kafka start`")
            }
            State::Held(broker) => bail!(
                "Kafka (pid {0}) is suspended (SIGSTOP): `kill -CONT {0}` resumes it",
                broker.pid()
            ),
            State::Silent(broker) => bail!(
                "Kafka (pid {}) does not answer on {}: see `cargo xtask kafka logs`",
                broker.pid(),
                broker.address()
            ),
        },
        Action::Logs { place, follow, lines } => {
            let log = place.node()?.log();
            if !log.is_file() {
                bail!("no log at {}: Kafka has not run there", log.display());
            }
            let mut tail = Command::new("tail");
            tail.args(["-n", &lines.to_string()]).arg(log);
            if *follow {
                tail.arg("-F");
            }
            process::replace(&mut tail)?;
        }
    }
    Ok(())
}

/// The broker for demo, tests and benchmarks: the given one, or the shared node, which is started if
/// necessary.
pub(crate) fn for_run(brokers: Option<&str>) -> Result<Cluster> {
    if let Some(brokers) = brokers {
        return Ok(Cluster { brokers: brokers.to_owned(), started: None });
    }
    let node = Node::at(&paths::kafka_node())?;
    let options = Options { session_timeout_ms: SESSION_TIMEOUT_MS, ..Options::default() };
    let (address, started): (SocketAddr, _) = match node.start(&options)? {
        Started::Before(broker) => (broker.address(), None),
        Started::Now(broker) => {
            process::say(format!(
                "Kafka runs on {} (pid {}); `cargo xtask kafka stop` stops it.",
                broker.address(),
                broker.pid()
            ));
            (broker.address(), Some(node))
        }
    };
    Ok(Cluster { brokers: address.to_string(), started })
}

/// A cluster to run against.
#[derive(Debug)]
pub(crate) struct Cluster {
    brokers: String,
    started: Option<Node>,
}

impl Cluster {
    /// Its addresses, in the form of librdkafka's `bootstrap.servers`.
    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Stops the node if it was started for this run.
    pub(crate) fn release(self) -> Result<()> {
        if let Some(node) = self.started {
            node.stop()?;
            process::say("Kafka, started for this run, has stopped.");
        }
        Ok(())
    }
}
