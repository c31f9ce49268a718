//! The command line.

mod ledger;
mod rules;
mod servers;
mod status;
mod trace;

use std::fmt::Display;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand};
use millrace_relay::config::Config;
use millrace_relay::control::RunError;
use millrace_relay::logging::{self, Purpose};
use millrace_relay::{control, gateway, kafka};
use serde::Serialize;

const DEFAULT_CONFIG: &str = "/etc/millrace/millrace.toml";

/// Takes long-lived client connections off the network path and moves their messages to Kafka.
#[derive(Debug, Parser)]
#[command(name = "relay", version, propagate_version = true)]
#[command(after_help = "Example:\n  relay check && sudo relay load && sudo relay run")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the relay namespace and attach the XDP programs; changes this host, needs root.
    ///
    /// Every change is printed before it is made. A load that fails undoes what it has done.
    /// Nothing is diverted until a relay runs.
    ///
    /// With --check it says what a load would find: what would refuse it (exit code 1), what makes
    /// it slow, and what to type against either. With --replace the programs of a loaded instance
    /// are replaced by those of the present eBPF object, each device in one atomic step: no packet
    /// is lost; rules, flows and counters stay.
    #[command(after_help = "Examples:\n  relay load --check --config docs/millrace.toml\n  \
        sudo relay load --config /etc/millrace/millrace.toml\n  sudo relay load --replace")]
    Load {
        #[command(flatten)]
        config: ConfigFile,
        /// Say what stands in the way, and change nothing; exit code 1 if something does.
        #[arg(long)]
        check: bool,
        /// Swap the programs of an instance that is loaded, and keep its maps.
        #[arg(long, conflicts_with = "check")]
        replace: bool,
        /// One JSON document instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Remove everything that `load` has made; needs root.
    #[command(after_help = "Example:\n  sudo relay unload --config /etc/millrace/millrace.toml")]
    Unload(ConfigFile),
    /// Show devices, rules, packets by verdict, and the running relay's counters; needs root.
    #[command(after_help = "Examples:\n  sudo relay status\n  sudo relay status --watch\n  \
            sudo relay status --interval 5 --json | jq .rates.packets_per_s")]
    Status {
        #[command(flatten)]
        config: ConfigFile,
        /// One JSON document instead of text.
        #[arg(long)]
        json: bool,
        /// Look twice, so many seconds apart, and show packets and messages a second too.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
        interval: Option<u32>,
        /// Go on, once in each interval (default: 1 s), until interrupted; with --json a document
        /// a line.
        #[arg(long)]
        watch: bool,
    },
    /// Check that everything is accounted for: counters of the running relay against Kafka's partitions.
    ///
    /// Uplink: received = acknowledged + waiting + dead letters + refused, and as many records of
    /// this run in the partitions as were acknowledged. Downlink: what was produced since the run
    /// began, without marks of transactions = sent + not wanted + orders + held + dead letters +
    /// vanished + waiting, and no offset committed past what is settled (which it has a second for).
    /// What waits to be acknowledged is the rest, and is compared with the bytes that are booked for it while nothing moves. For each server: records in its partition = committed + waiting. Under traffic
    /// the counters are taken before and after the partitions are looked at, and what lies between is
    /// right. Records that retention may have deleted, or that went with a topic, are told and not missed;
    /// messages and replies that were deleted before they were read are a problem.
    /// It reads every record since the relay's start. Exit code 1 if a line does not balance.
    #[command(after_help = "Examples:\n  relay ledger --config /etc/millrace/millrace.toml\n  \
        relay ledger --json | jq .balanced")]
    Ledger {
        #[command(flatten)]
        config: ConfigFile,
        /// One JSON document instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Show each packet of one client and what becomes of it; needs root.
    ///
    /// While it runs, the devices run traced variants of the programs, put there and taken off
    /// again in atomic steps: no packet is lost, and an instance that is not traced pays nothing.
    /// After a tracer that was killed, `relay load --replace` puts the usual programs back.
    #[command(after_help = "Examples:\n  sudo relay trace 198.51.100.7\n  \
        sudo relay trace 198.51.100.7 --seconds 10 --json | \
        jq -r '.verdict // empty' | sort | uniq -c")]
    Trace(trace::Arguments),
    /// Check a configuration file and its rules; changes nothing and needs no privilege.
    ///
    /// With --brokers it asks Kafka too, and compares the topics that are there with what they should
    /// be: partitions, replicas, clean-up, retention, longest record, whose clock. Exit code 1 if
    /// something differs that matters.
    #[command(after_help = "Examples:\n  relay check --config docs/millrace.toml\n  \
        relay check --brokers --config /etc/millrace/millrace.toml")]
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Compare the topics of kafka.brokers, too.
        #[arg(long)]
        brokers: bool,
    },
    /// Check steering rules, put them into force while traffic flows, show them.
    #[command(subcommand, after_help = rules::HELP)]
    Rules(rules::Rules),
    /// Show the servers of all relays, drain one, forget one, spread their clients evenly.
    #[command(subcommand, after_help = servers::HELP)]
    Servers(servers::Servers),
    /// Serve clients until SIGTERM, SIGINT or SIGHUP; then deliver what was read, and end. Needs root.
    ///
    /// The end takes no longer than `relay.stop_timeout_ms`. Exit code 1 if the relay could not go on, or
    /// did not end in that time.
    ///
    /// Prints `relay ready: …` when clients are served, and at the end its counters as one line of
    /// JSON. The log goes to standard error; `RUST_LOG` sets its level (default: info).
    #[command(
        after_help = "Examples:\n  sudo relay run --config /etc/millrace/millrace.toml\n  relay run --config millrace.toml --no-gateway 127.0.0.1\n  sudo relay run --config millrace.toml --no-gateway --transparent --netns /run/netns/gateway"
    )]
    Run {
        #[command(flatten)]
        config: ConfigFile,
        /// Listen at this address, for clients that connect directly; no XDP, no root.
        #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "0.0.0.0")]
        no_gateway: Option<IpAddr>,
        /// Take connections to addresses of other hosts, too, which a TPROXY rule sends here.
        #[arg(long, requires = "no_gateway")]
        transparent: bool,
        /// Listen in this network namespace; Kafka is reached from the present one. Needs root.
        #[arg(long, value_name = "FILE", requires = "no_gateway")]
        netns: Option<PathBuf>,
    },
}

#[derive(Serialize)]
struct Stopped {
    stopped: control::Snapshot,
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// Configuration file of the instance.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

impl ConfigFile {
    fn read(&self) -> anyhow::Result<Config> {
        Ok(Config::read(&self.config)?)
    }
}

impl Cli {
    /// How it writes its log.
    pub(crate) const fn purpose(&self) -> Purpose {
        match self.command {
            Command::Run { .. } => Purpose::Service,
            _ => Purpose::Command,
        }
    }

    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Load { config, check: true, json, .. } => {
                let found = gateway::preflight(&config.read()?)?;
                let shown = show(&found, json);
                ensure!(found.passes(), "{} thing(s) stand in the way", found.refusals().count());
                shown?;
            }
            Command::Load { config, replace: true, json, .. } => {
                show(&gateway::replace(&config.read()?, &mut step)?, json)?;
            }
            Command::Load { config, json, .. } => {
                show(&gateway::load(&config.read()?, &mut step)?, json)?;
            }
            Command::Unload(file) => {
                let config = file.read()?;
                gateway::unload(&config, &mut step)?;
                print(format_args!("instance `{}` is unloaded", config.gateway.instance))?;
            }
            Command::Status { config, json, interval, watch } => {
                status::run(&config.read()?, json, interval, watch)?;
            }
            Command::Ledger { config, json } => ledger::run(&config.read()?, json)?,
            Command::Trace(arguments) => trace::run(&arguments)?,
            Command::Run { config, no_gateway, transparent, netns } => {
                let mode = no_gateway.map_or(control::Mode::Gateway, |address| {
                    let address = Some(address);
                    control::Mode::Direct(control::Place { namespace: netns, address, transparent })
                });
                run(&config.read()?, mode)?;
            }
            Command::Check { config: file, brokers } => {
                let config = file.read()?;
                let rules = gateway::rules::command::check(&config)?;
                kafka::check_properties(&config)?;
                print(format_args!(
                    "{}: instance `{}`, {} service(s): no mistake found\n{rules}",
                    file.config.display(),
                    config.gateway.instance,
                    config.services.len()
                ))?;
                if brokers {
                    check_topics(&config)?;
                }
            }
            Command::Rules(rules) => rules.run()?,
            Command::Servers(servers) => servers.run()?,
        }
        Ok(())
    }
}

/// The steps go to standard error: standard output is for what was asked.
fn step(step: &str) {
    logging::say(&format!("+ {step}"));
}

/// Whoever reads the answer has read enough, as `head` does.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
pub(crate) struct Unread;

/// Prints a line, or several.
fn print(text: impl Display) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Unread.into()),
        printed => printed.context("write to standard output"),
    }
}

/// Prints what was asked for: for people, or as one JSON document.
fn show(answer: &(impl Serialize + Display), json: bool) -> anyhow::Result<()> {
    if json {
        print(serde_json::to_string(answer).context("encode the answer")?)
    } else {
        print(answer)
    }
}

fn check_topics(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let topics = runtime.block_on(kafka::look_at_topics(config))?;
    for topic in &topics.missing {
        print(format_args!("topic {topic} is not there; `relay run` makes it"))?;
    }
    topics.differences.iter().try_for_each(print)?;
    let differences = topics.differences.len();
    ensure!(differences == 0, "{differences} thing(s) about the topics should be otherwise");
    print(format_args!("{}: the topics are as they should be", config.kafka.brokers))
}

fn run(config: &Config, mode: control::Mode) -> anyhow::Result<()> {
    let services = config.services.len();
    let ended = control::run(config, mode, |threads| {
        // It serves, whoever reads this.
        let _ =
            print(format_args!("relay ready: {} workers, {services} services", threads.workers()));
    });
    let snapshot = match ended {
        // Somebody wanted that.
        Err(stopped @ RunError::StoppedAtStart) => {
            tracing::info!("{stopped}");
            return Ok(());
        }
        ended => ended?,
    };
    let stopped = Stopped { stopped: snapshot };
    print(serde_json::to_string(&stopped).context("encode the counters")?)
}
