//! `relay reload`: has a running relay read its configuration again.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use millrace_relay::control;
use millrace_relay::tune::{Difference, Reload};
use serde::Serialize;

use super::tune::no_relay;
use super::{ConfigFile, DEFAULT_CONFIG, show};

pub(super) const HELP: &str = "\
The relay reads the file that it was started with, and what `relay tune save` has written beside it. What differs \
from what is in force and can change while a relay runs (`relay tune list`) changes at once, and no connection is \
closed for it. So a setting that was changed by hand and not saved is again as the file has it. The files of MQTT \
users are read again too.

It is done whole or not at all: if something needs a restart, that is named and nothing changes. What the gateway goes \
by is named with its own command. SIGHUP does the same, and `systemctl reload`.

Changes: the running relay.

Exit code 1 if nothing was reloaded; with --check, if nothing would be.

Examples:
  sudo relay reload --check
  sudo relay reload
  sudo relay reload --json | jq -r '.changes[].path'";

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Configuration file of the instance.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Say what would change, and change nothing.
    #[arg(long)]
    check: bool,
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(transparent)]
struct Told {
    reload: Reload,
    #[serde(skip)]
    only_look: bool,
}

impl Told {
    fn lines(f: &mut fmt::Formatter<'_>, head: &str, differences: &[Difference]) -> fmt::Result {
        if differences.is_empty() {
            return Ok(());
        }
        write!(f, "\n{head}:")?;
        for Difference { path, from, to, changed_by } in differences {
            write!(f, "\n  {path}: {} -> {}", quoted(from), quoted(to))?;
            if let Some(how) = changed_by {
                write!(f, "    # {how}")?;
            }
        }
        Ok(())
    }
}

/// What is empty would not be seen.
fn quoted(value: &str) -> &str {
    if value.is_empty() { "(none)" } else { value }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reload { file, changes, restart, others, applied } = &self.reload;
        let outcome = match (applied, self.only_look, restart.is_empty()) {
            (true, ..) => "reloaded",
            (false, true, true) => "can be reloaded",
            (false, true, false) => "cannot be reloaded",
            (false, false, _) => "not reloaded; nothing has changed",
        };
        write!(f, "{}: {outcome}", file.display())?;
        let head = match (applied, restart.is_empty()) {
            (true, _) => "changed",
            (false, true) => "would change",
            (false, false) => "would change as well",
        };
        Self::lines(f, "needs a restart", restart)?;
        Self::lines(f, head, changes)?;
        Self::lines(f, "changed by other commands", others)
    }
}

impl Arguments {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let config = ConfigFile { config: self.config.clone() }.read()?;
        let reload = control::reload_running(&config, self.check)
            .context("the running relay does not reload")?
            .with_context(|| no_relay(&config))?;
        let can = reload.restart.is_empty();
        show(&Told { reload, only_look: self.check }, self.json)?;
        ensure!(can, "something needs a restart: restart the relay, or take it back");
        Ok(())
    }
}
