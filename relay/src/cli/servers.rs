//! `relay servers`: list, drain, resume, forget, rebalance.

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::ensure;
use clap::{Args, Subcommand};
use millrace_relay::registry::record::{Key, OrderKind};
use millrace_relay::registry::{
    MAX_PER_SECOND, Policy, RebalanceStatus, RegistryStatus, order, read, rebalance,
};
use serde::Serialize;

use super::{ConfigFile, show};

/// How long a look for the end of a rebalancing lasts.
const LOOK: Duration = Duration::from_millis(200);

pub(super) const HELP: &str = "\
These commands read the registry from Kafka, so they work on any host that has the configuration.
Only running relays know the clients and the age of a registration: `relay status` shows them.

Examples:
  relay servers list --json | jq '.servers[] | {id, state, partition}'
  relay servers drain chat-7
  relay servers rebalance chat --per-second 20 --wait";

#[derive(Debug, Subcommand)]
pub(super) enum Servers {
    /// Show every server with its state, partition and epoch, which relay coordinates, and refusals.
    #[command(after_help = "Example:\n  relay servers list --config millrace.toml")]
    List {
        #[command(flatten)]
        config: ConfigFile,
        /// Print one JSON document instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Give a server no new clients; it is gone when its partition is read to the end and its clients
    /// have left or moved.
    #[command(after_help = "The order stays until `relay servers resume`.\n\n\
        Example:\n  relay servers drain chat-7 --config millrace.toml")]
    Drain(About),
    /// Cancel the order about a server.
    #[command(after_help = "Example:\n  relay servers resume chat-7 --config millrace.toml")]
    Resume(About),
    /// Remove a registered server from the registry at once, whatever waits for it.
    ///
    /// Another server gets its partition only when it is read to the end. A process that still runs
    /// gets no lease again, whatever it writes; a process that starts again does.
    #[command(after_help = "Example:\n  relay servers forget chat-7 --config millrace.toml")]
    Forget(About),
    /// Move clients from fuller to emptier servers, a few at a time, until the loads are even.
    ///
    /// Use it when servers have joined: new clients go to them, but existing clients stay where they
    /// are. The load of a server is its clients in proportion to its capacity. A client moves between
    /// two of its messages, when its server has read and committed what it sent before: nothing is
    /// lost, duplicated or reordered. The rebalancing ends when no move would make two loads more even,
    /// or when nothing has moved for a minute. Clients with several connections to one relay stay.
    #[command(after_help = "Changes: one record in the registry, which every relay acts on.\n\n\
        Examples:\n  relay servers rebalance chat --config millrace.toml\n  \
        relay servers rebalance chat --per-second 20 --wait --json\n  \
        relay servers rebalance chat --stop")]
    Rebalance(Rebalance),
}

/// An order about a service.
#[derive(Args, Debug)]
pub(super) struct Rebalance {
    /// Name of the service.
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Maximum number of clients that move per second, through all relays together.
    #[arg(long, value_name = "N", default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PER_SECOND)))]
    per_second: u32,
    /// Return when it is over, and report what has moved; fails if the loads are not even then.
    #[arg(long)]
    wait: bool,
    /// Cancel the order; clients that have moved stay where they are.
    #[arg(long, conflicts_with_all = ["wait", "per_second"])]
    stop: bool,
    #[command(flatten)]
    config: ConfigFile,
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// An order about one server.
#[derive(Args, Debug)]
pub(super) struct About {
    /// Id of the server.
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// What was ordered.
#[derive(Serialize)]
struct Ordered<'a> {
    server: &'a str,
    /// Null: the former order was taken back.
    order: Option<OrderKind>,
}

impl std::fmt::Display for Ordered<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.order {
            Some(OrderKind::Drain) => "is to be drained",
            Some(OrderKind::Forget) => "is to be forgotten",
            None => "is not under an order any more",
        };
        write!(f, "server `{}` {what}; `relay servers list` shows its state", self.server)
    }
}

/// What was ordered of a service, or what has come of it.
#[derive(Serialize)]
struct Rebalanced<'a> {
    service: &'a str,
    /// Null: the order was taken back.
    rebalance: Option<RebalanceStatus>,
}

impl std::fmt::Display for Rebalanced<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let service = self.service;
        match &self.rebalance {
            None => write!(f, "the rebalancing of `{service}` will stop"),
            Some(of) => {
                write!(
                    f,
                    "rebalancing of `{service}` {of}; `relay servers list` shows its progress"
                )
            }
        }
    }
}

impl Rebalance {
    fn run(&self) -> anyhow::Result<()> {
        let (config, service) = (self.config.read()?, &*self.service);
        let per_second = NonZeroU32::new(self.per_second).filter(|_| !self.stop);
        let mut watch = rebalance(&config, service, per_second)?;
        let mut status = per_second.map(RebalanceStatus::ordered);
        // The order itself comes first, and then its end.
        let (mut is_ordered, order) = (false, Key::Rebalance(service.to_owned()));
        while self.wait && status.as_ref().is_some_and(|of| of.ended.is_none()) {
            watch.read_on(LOOK, |registry, changed| {
                let known = registry.rebalances().get(service).map(RebalanceStatus::new);
                is_ordered |= known.as_ref().is_some_and(|of| of.ended.is_none());
                if *changed == order && is_ordered {
                    status = known;
                }
            });
        }
        let even = status.as_ref().is_none_or(|of| of.ended != Some(false));
        show(&Rebalanced { service, rebalance: status }, self.json)?;
        ensure!(
            even,
            "no client of `{service}` has moved for a minute, and the loads are not even"
        );
        Ok(())
    }
}

impl About {
    fn give(&self, command: Option<OrderKind>) -> anyhow::Result<()> {
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
            Self::Drain(about) => about.give(Some(OrderKind::Drain)),
            Self::Resume(about) => about.give(None),
            Self::Forget(about) => about.give(Some(OrderKind::Forget)),
            Self::Rebalance(rebalance) => rebalance.run(),
        }
    }
}
