//! `relay disconnect`: closes connections that the running relay has.

use anyhow::Context as _;
use clap::Args;
use millrace_relay::control;
use millrace_relay::prefix::Prefix;
use serde::Serialize;

use super::{ConfigFile, show};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Addresses of the clients, IPv4 or IPv6: a prefix, or one address.
    #[arg(value_name = "CLIENT-PREFIX")]
    clients: Prefix,
    #[command(flatten)]
    config: ConfigFile,
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// What has come of it.
#[derive(Serialize)]
struct Disconnected {
    clients: Prefix,
    connections: u64,
}

impl std::fmt::Display for Disconnected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { clients, connections } = self;
        write!(f, "{connections} connection(s) of clients in {clients} closed")
    }
}

impl Arguments {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let (config, clients) = (self.config.read()?, self.clients);
        let connections = control::disconnect(&config, clients)
            .context("cannot give the running relay an order")?
            .with_context(|| {
                format!(
                    "no relay of instance `{}` runs on this host; `relay status` shows what does",
                    config.gateway.instance
                )
            })?;
        show(&Disconnected { clients, connections }, self.json)
    }
}
