//! The command line.

mod disconnect;
mod generate;
mod ledger;
mod reload;
mod rules;
mod servers;
mod status;
mod trace;
mod tune;

use std::fmt::Display;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand};
use millrace_relay::config::{Config, Listen};
use millrace_relay::control::RunError;
use millrace_relay::logging::{self, Purpose};
use millrace_relay::tune::Saved;
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
    /// Create the relay namespace and attach the XDP programs; changes this host, needs root.
    ///
    /// Prints every change before making it. A load that fails undoes what it has done. Nothing is
    /// diverted until a relay runs.
    ///
    /// --check reports what would make a load fail (exit code 1) and what would make it slow, with the
    /// command that fixes each, and how far sources would be checked on each device. --replace replaces
    /// the programs of a loaded instance by those of the current eBPF object, each device in one atomic
    /// step: no packet is lost, and rules, flows and counters stay.
    #[command(after_help = "Examples:\n  relay load --check --config docs/millrace.toml\n  \
        sudo relay load --config /etc/millrace/millrace.toml\n  sudo relay load --replace")]
    Load {
        #[command(flatten)]
        config: ConfigFile,
        /// Report what would make a load fail, and change nothing; exit code 1 if anything would.
        #[arg(long)]
        check: bool,
        /// Replace the programs of a loaded instance, and keep its maps.
        #[arg(long, conflicts_with = "check")]
        replace: bool,
        /// Print one JSON document instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Remove everything that `load` has created; needs root.
    #[command(after_help = "Example:\n  sudo relay unload --config /etc/millrace/millrace.toml")]
    Unload(ConfigFile),
    /// Show devices, rules, packets by verdict, and the running relay's counters; needs root.
    #[command(after_help = "Examples:\n  sudo relay status\n  sudo relay status --watch\n  \
            sudo relay status --interval 5 --json | jq .rates.packets_per_s")]
    Status {
        #[command(flatten)]
        config: ConfigFile,
        /// Print one JSON document instead of text.
        #[arg(long)]
        json: bool,
        /// Look twice, SECONDS apart, and also show packets and messages per second.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
        interval: Option<u32>,
        /// Repeat once per interval (default: 1 s) until interrupted; with --json, one document per
        /// line.
        #[arg(long)]
        watch: bool,
    },
    /// Check that everything is accounted for: the running relay's counters against Kafka's partitions.
    ///
    /// Uplink: received = acknowledged + waiting + dead letters + refused, and the partitions hold as
    /// many records of this run as were acknowledged. "Waiting" is what remains; while nothing moves, it
    /// is compared with the bytes that are booked for it.
    ///
    /// Downlink: what was produced since the run began, without marks of transactions = sent + not
    /// wanted + orders + held + dead letters + vanished + waiting, and no offset is committed past what
    /// is settled (the relay has a second for this).
    ///
    /// For each server: records in its partition = committed + waiting.
    ///
    /// Under traffic, the counters are taken before and after the partitions are read, and a count
    /// between the two is correct. Records that retention may have deleted, or that went with a topic,
    /// are reported but do not count as missing. Messages and replies that were deleted before they
    /// were read are a problem.
    ///
    /// Reads every record since the relay's start. Exit code 1 if a line does not balance.
    #[command(after_help = "Examples:\n  relay ledger --config /etc/millrace/millrace.toml\n  \
        relay ledger --json | jq .balanced")]
    Ledger {
        #[command(flatten)]
        config: ConfigFile,
        /// Print one JSON document instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Show each packet of one client and what happens to it; needs root.
    ///
    /// Meanwhile the devices run traced variants of the programs, which are installed and removed in
    /// atomic steps: no packet is lost, and an instance that is not traced pays nothing. If a trace was
    /// killed, `relay load --replace` puts the usual programs back.
    #[command(after_help = "Examples:\n  sudo relay trace 198.51.100.7\n  \
        sudo relay trace 198.51.100.7 --seconds 10 --json | \
        jq -r '.verdict // empty' | sort | uniq -c")]
    Trace(trace::Arguments),
    /// Check a configuration file and its rules; changes nothing and needs no privilege.
    ///
    /// It also checks the file that `relay tune save` has written beside it, if there is one. A wrong line there
    /// does not keep a relay from starting, but it is not applied: exit code 1.
    ///
    /// With --brokers it also asks Kafka, and compares the existing topics with what they should be:
    /// partitions, replicas, clean-up policy, retention, longest record, source of timestamps. Exit code
    /// 1 if a difference matters.
    #[command(after_help = "Examples:\n  relay check --config docs/millrace.toml\n  \
        relay check --brokers --config /etc/millrace/millrace.toml")]
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Also compare the topics of kafka.brokers.
        #[arg(long)]
        brokers: bool,
    },
    /// Check steering rules, put them into force while traffic flows, or show them.
    #[command(subcommand, after_help = rules::HELP)]
    Rules(rules::Rules),
    /// Show the servers of all relays, drain or forget one, or spread clients evenly.
    #[command(subcommand, after_help = servers::HELP)]
    Servers(servers::Servers),
    /// Close the connections of the clients in a prefix that the running relay serves; needs root.
    ///
    /// A client's server is told by a record `close` with the reason `disconnected`. What a client has
    /// sent before is delivered. Connections that were handed on to a server are reset.
    ///
    /// A client may connect again, and is served again, unless a rule says otherwise. To keep it away,
    /// put a rule into force first: `drop from PREFIX`, or `exclude PREFIX`, which leaves it to its
    /// servers and the host's firewall.
    #[command(after_help = "Examples:\n  sudo relay disconnect 198.51.100.7\n  \
        sudo relay disconnect 2001:db8:7::/48 --json --config /etc/millrace/millrace.toml")]
    Disconnect(disconnect::Arguments),
    /// Show and change the settings of the running relay while it serves; needs root.
    ///
    /// docs/settings.md has every setting, and for which connections a change takes effect. A change lasts
    /// until the relay ends, unless it is saved.
    #[command(after_help = tune::HELP)]
    Tune(tune::Arguments),
    /// Have a running relay read its configuration again. Needs root.
    #[command(after_help = reload::HELP)]
    Reload(reload::Arguments),
    /// Write man pages, and completions for shells, into a folder: for who makes packages.
    #[command(hide = true, after_help = "Example:\n  relay generate /tmp/relay")]
    Generate(generate::Arguments),
    /// Serve clients until SIGTERM or SIGINT; then deliver what was read, and stop. Needs root.
    ///
    /// The stop takes no longer than `relay.stop_timeout_ms`. Exit code 1 if the relay could not
    /// continue, or did not stop in that time.
    ///
    /// SIGHUP has it read its configuration again: see `relay reload`.
    ///
    /// Prints `relay ready: …` when it serves clients, and its counters as one line of JSON at the end.
    /// The log goes to standard error; `RUST_LOG` sets its level (default: info).
    #[command(
        after_help = "Examples:\n  sudo relay run --config /etc/millrace/millrace.toml\n  relay run --config millrace.toml --no-gateway 127.0.0.1\n  sudo relay run --config millrace.toml --no-gateway --transparent --netns /run/netns/gateway\n  sudo relay run --metrics 127.0.0.1:9742"
    )]
    Run {
        #[command(flatten)]
        config: ConfigFile,
        /// Listen on this address, for clients that connect directly; no XDP, no root.
        #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "0.0.0.0")]
        no_gateway: Option<IpAddr>,
        /// Also accept connections to addresses of other hosts, which a TPROXY rule sends here.
        #[arg(long, requires = "no_gateway")]
        transparent: bool,
        /// Listen in this network namespace, and reach Kafka from the current one. Needs root.
        #[arg(long, value_name = "FILE", requires = "no_gateway")]
        netns: Option<PathBuf>,
        /// Serve metrics at http://ADDRESS:PORT/metrics, to everybody who can connect; instead of
        /// `metrics.listen`. docs/metrics.md lists them.
        #[arg(long, value_name = "ADDRESS:PORT")]
        metrics: Option<Listen>,
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
                ensure!(found.passes(), "{} finding(s) prevent a load", found.refusals().count());
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
            Command::Disconnect(arguments) => arguments.run()?,
            Command::Run { config, no_gateway, transparent, netns, metrics } => {
                let mode = no_gateway.map_or(control::Mode::Gateway, |address| {
                    let address = Some(address);
                    control::Mode::Direct(control::Place { namespace: netns, address, transparent })
                });
                run(&config, mode, metrics)?;
            }
            Command::Check { config: file, brokers } => {
                let config = file.read()?;
                let rules = gateway::rules::command::check(&config)?;
                kafka::check_properties(&config)?;
                print(format_args!(
                    "{}: instance `{}`, {} service(s): no mistakes found\n{rules}",
                    file.config.display(),
                    config.gateway.instance,
                    config.services.len()
                ))?;
                tune::check(&config, &file.config)?;
                if brokers {
                    check_topics(&config)?;
                }
            }
            Command::Tune(arguments) => arguments.run()?,
            Command::Rules(rules) => rules.run()?,
            Command::Servers(servers) => servers.run()?,
            Command::Reload(arguments) => arguments.run()?,
            Command::Generate(arguments) => arguments.run()?,
        }
        Ok(())
    }
}

/// The steps go to standard error: standard output is for the answer.
fn step(step: &str) {
    logging::say(&format!("+ {step}"));
}

/// The reader of the answer has read enough, as `head` does.
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
        print(format_args!("topic {topic} does not exist; `relay run` creates it"))?;
    }
    topics.differences.iter().try_for_each(print)?;
    let differences = topics.differences.len();
    ensure!(
        differences == 0,
        "the topics differ from what they should be in {differences} point(s)"
    );
    print(format_args!("{}: the topics are as they should be", config.kafka.brokers))
}

fn run(file: &ConfigFile, mode: control::Mode, metrics: Option<Listen>) -> anyhow::Result<()> {
    let mut config = file.read()?;
    config.metrics.listen = metrics.or(config.metrics.listen);
    let config = &config;
    let saved = Saved::place(&file.config, &config.gateway.instance);
    let saved = Saved::read(&saved).with_context(|| format!("read {}", saved.display()))?;
    let services = config.services.len();
    let ended = control::run(config, mode, &saved, |threads| {
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
