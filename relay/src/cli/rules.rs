//! `relay rules`: check, apply, show.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use millrace_relay::config::Config;
use millrace_relay::gateway::rules::command;

use super::{ConfigFile, show};

pub(super) const HELP: &str = "\
gateway.rules in the configuration names a file with one rule per line:

  # ACTION PROTOCOL DESTINATION port PORTS [from SOURCE] [device NAME] [vlan VLAN]
  divert tcp 203.0.113.0/24 port 7000-7010
  pass   tcp 203.0.113.7    port 7000         # this server keeps its own clients
  drop   udp 2001:db8::/32  port any
  divert tcp 203.0.113.0/24 port 8883 from 192.0.2.0/24     # begin with some clients
  drop   tcp 203.0.113.9    port 7000 from 198.51.100.0/25  # clients that this server does not serve
  pass   tcp 203.0.113.0/24 port 7000 device eth2 vlan 12   # another tenant's
  exclude 198.51.100.0/24                     # clients that are never diverted
  drop from 198.51.100.7                      # a client that is not served

Of the rules that match a packet, the one with the longest source prefix decides, and those without one come
last. Among equals, the longest destination prefix decides; then what the rule names of a place (device and
VLAN, VLAN, device, neither); then the fewest ports. Packets that match no rule are passed.

A device is one of gateway.devices. A VLAN is a number, OUTER.INNER for two tags, or `none` for frames without a
tag. `exclude` and `drop from` may have a place too.

`exclude` and `drop from` are about sources alone, and come first; of these, the longest prefix decides.
`drop from` drops everything from there to destinations that have a rule, and what comes from there on
connections that are diverted already; `relay disconnect` ends those. Other packets from there take the
ordinary path, where the host's firewall sees them. A `drop` rule with a source does the same for its own
destinations and ports; one without a source closes a destination, and diverted connections go on.

Examples:
  relay rules check new.rules
  sudo relay rules apply
  sudo relay rules show --json | jq .rules";

#[derive(Debug, Subcommand)]
pub(super) enum Rules {
    /// Check a file of rules; changes nothing and needs no privilege.
    #[command(after_help = "Example:\n  relay rules check --config millrace.toml new.rules")]
    Check(Written),
    /// Put the rules into force, all at once, with `gateway.mode`, `gateway.heartbeat_timeout_ms` and
    /// `gateway.reverse_path`; needs root.
    ///
    /// No packet meets a mixture of old and new rules. Diverted connections continue until they end,
    /// whatever the rules say, unless a `drop` line names their clients. If a line is wrong, nothing changes.
    /// Run this in the network namespace in which `load` ran.
    #[command(
        after_help = "Changes on the host: the maps of the instance, and its rules.json below \
        /run/millrace.\n\nExample:\n  sudo relay rules apply --config millrace.toml"
    )]
    Apply(Written),
    /// Show the rules in force, and check that the programs have them; needs root.
    #[command(after_help = "Example:\n  sudo relay rules show --config millrace.toml")]
    Show {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
}

/// Rules as they are written.
#[derive(Args, Debug)]
pub(super) struct Written {
    #[command(flatten)]
    config: ConfigFile,
    /// Use these rules instead of the configuration's.
    file: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
pub(super) struct Output {
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

impl Written {
    fn read(&self) -> anyhow::Result<Config> {
        let mut config = self.config.read()?;
        if let Some(file) = &self.file {
            config.gateway.rules = Some(file.clone());
        }
        Ok(config)
    }
}

impl Rules {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Check(written) => show(&command::check(&written.read()?)?, written.output.json),
            Self::Apply(written) => show(&command::apply(&written.read()?)?, written.output.json),
            Self::Show { config, output } => {
                let shown = command::show(&config.read()?)?;
                show(&shown, output.json)?;
                shown.difference.map_or(Ok(()), |difference| {
                    anyhow::bail!(
                        "the programs have other rules than these: {difference}; fix this with \
                         `relay rules apply`"
                    )
                })
            }
        }
    }
}
