//! `relay servers`: list, drain, resume, forget.

use clap::{Args, Subcommand};
use millrace_relay::registry::record::Command;
use millrace_relay::registry::{Policy, RegistryStatus, order, read};
use serde::Serialize;

use super::{ConfigFile, show};

pub(super) const HELP: &str = "\
The registry is read from Kafka, so that these work on any host that has the configuration. Clients
and the age of a registration are known to running relays: `relay status` shows them.

Examples:
  relay servers list --json | jq '.servers[] | {id, state, partition}'
  relay servers drain chat-7";

#[derive(Debug, Subcommand)]
pub(super) enum Servers {
    /// Show every server with its state, partition and epoch; who coordinates; what was refused.
    #[command(after_help = "Example:\n  relay servers list --config millrace.toml")]
    List {
        #[command(flatten)]
        config: ConfigFile,
        /// One JSON document instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Give a server no new clients; it is gone when its partition is read to the end and its
    /// clients have left.
    #[command(after_help = "The order stays until `relay servers resume`.\n\n\
        Example:\n  relay servers drain chat-7 --config millrace.toml")]
    Drain(About),
    /// Take back what was ordered about a server.
    #[command(after_help = "Example:\n  relay servers resume chat-7 --config millrace.toml")]
    Resume(About),
    /// Take a registered server out of the registry at once, whatever waits for it.
    ///
    /// Its partition goes to another server only when it is read to the end. If the server still
    /// runs, it registers again.
    #[command(after_help = "Example:\n  relay servers forget chat-7 --config millrace.toml")]
    Forget(About),
}

/// An order about one server.
#[derive(Args, Debug)]
pub(super) struct About {
    /// Id of the server.
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// What was ordered.
#[derive(Serialize)]
struct Ordered<'a> {
    server: &'a str,
    /// Null: the former order was taken back.
    order: Option<Command>,
}

impl std::fmt::Display for Ordered<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.order {
            Some(Command::Drain) => "is to be drained",
            Some(Command::Forget) => "is to be forgotten",
            None => "is under no order any more",
        };
        write!(f, "server `{}` {what}; `relay servers list` shows its state", self.server)
    }
}

impl About {
    fn give(&self, command: Option<Command>) -> anyhow::Result<()> {
        order(&self.config.read()?, &self.id, command)?;
        show(&Ordered { server: &self.id, order: command }, self.json)
    }
}

impl Servers {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::List { config, json } => {
                let config = config.read()?;
                let registry = read(&config)?;
                show(&RegistryStatus::new(&registry, &Policy::new(&config), None), *json)
            }
            Self::Drain(about) => about.give(Some(Command::Drain)),
            Self::Resume(about) => about.give(None),
            Self::Forget(about) => about.give(Some(Command::Forget)),
        }
    }
}
