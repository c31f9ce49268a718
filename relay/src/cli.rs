//! The command line.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use millrace_relay::config::Config;
use millrace_relay::gateway;

const DEFAULT_CONFIG: &str = "/etc/millrace/millrace.toml";

/// Takes long-lived client connections off the network path and moves their messages to Kafka.
#[derive(Debug, Parser)]
#[command(name = "relay", version)]
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
    #[command(after_help = "Example:\n  sudo relay load --config /etc/millrace/millrace.toml")]
    Load(ConfigFile),
    /// Remove everything that `load` has made; needs root.
    #[command(after_help = "Example:\n  sudo relay unload --config /etc/millrace/millrace.toml")]
    Unload(ConfigFile),
    /// Show devices, rules, packets by verdict, and whether a relay is alive; needs root.
    #[command(
        after_help = "Examples:\n  sudo relay status\n  sudo relay status --json | jq .verdicts"
    )]
    Status {
        #[command(flatten)]
        config: ConfigFile,
        /// One JSON document instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Check a configuration file; changes nothing and needs no privilege.
    #[command(after_help = "Example:\n  relay check --config docs/millrace.toml")]
    Check(ConfigFile),
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
    pub(crate) fn run(self) -> anyhow::Result<()> {
        // The steps go to standard error: standard output is for what was asked.
        let mut step = |step: &str| eprintln!("+ {step}");
        match self.command {
            Command::Load(file) => {
                println!("{}", gateway::load(&file.read()?, &mut step)?);
            }
            Command::Unload(file) => {
                let config = file.read()?;
                gateway::unload(&config, &mut step)?;
                println!("instance `{}` is unloaded", config.gateway.instance);
            }
            Command::Status { config, json } => {
                let status = gateway::status(&config.read()?)?;
                if json {
                    println!("{}", serde_json::to_string(&status).context("encode the status")?);
                } else {
                    println!("{status}");
                }
            }
            Command::Check(file) => {
                let config = file.read()?;
                println!(
                    "{}: instance `{}`, {} service(s): no mistake found",
                    file.config.display(),
                    config.gateway.instance,
                    config.services.len()
                );
            }
        }
        Ok(())
    }
}
