//! `relay tune`: shows and changes the settings of a running relay, and saves them.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use millrace_relay::config::Config;
use millrace_relay::control::{self, InForce};
use millrace_relay::tune::{Draft, Refusal, Saved, Values};
use serde::Serialize;

use super::{ConfigFile, DEFAULT_CONFIG, print, show};

pub(super) const HELP: &str = "\
Without a subcommand: `list`.

A running relay that is root also shows its settings as files, below /run/millrace/INSTANCE/tune: `cat` gives \
the value in force, and `echo` changes it.

Examples:
  sudo relay tune list service/chat
  sudo relay tune set service/chat/max_messages_per_second 100
  sudo relay tune get relay/batch_wait_us
  sudo relay tune save";

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    tune: Option<Tune>,
    /// Configuration file of the instance.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG, global = true)]
    config: PathBuf,
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Tune {
    /// Show the settings in force.
    #[command(
        after_help = "Example:\n  sudo relay tune list service/chat --json | jq -r '.[] | select(.live).path'"
    )]
    List {
        /// Only this one, or those below it.
        #[arg(value_name = "PATH")]
        path: Option<String>,
    },
    /// Show the value of one setting.
    #[command(after_help = "Example:\n  sudo relay tune get relay/batch_wait_us")]
    Get {
        /// Its path.
        #[arg(value_name = "PATH")]
        path: String,
    },
    /// Change one setting, until the relay ends.
    #[command(
        after_help = "Changes: the running relay.\n\nExample:\n  sudo relay tune set log/filter warn,millrace_relay=debug"
    )]
    Set {
        /// Its path.
        #[arg(value_name = "PATH")]
        path: String,
        /// Its value.
        #[arg(value_name = "VALUE", allow_hyphen_values = true)]
        value: String,
    },
    /// Write what differs from the configuration into INSTANCE.tune beside it, which is applied when the relay
    /// starts.
    ///
    /// Everything else that is in that file is removed. `log/filter` is saved if it is not `info`.
    #[command(
        after_help = "Changes: INSTANCE.tune in the folder of the configuration.\n\nExample:\n  sudo relay tune save --config /etc/millrace/millrace.toml"
    )]
    Save,
}

/// Several settings.
#[derive(Serialize)]
#[serde(transparent)]
struct Listed(Vec<InForce>);

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, InForce { path, value, live, .. }) in self.0.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{path} = {value}{}", if *live { "" } else { "    # read-only" })?;
        }
        Ok(())
    }
}

/// One setting.
#[derive(Serialize)]
struct One {
    path: String,
    value: String,
}

impl fmt::Display for One {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.value)
    }
}

/// What was saved.
#[derive(Serialize)]
struct Written {
    file: String,
    saved: Vec<String>,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.saved.as_slice() {
            [] => write!(f, "{}: nothing differs from the configuration", self.file),
            saved => write!(f, "{}: saved {}", self.file, saved.join(", ")),
        }
    }
}

/// Says that no relay answers.
pub(super) fn no_relay(config: &Config) -> String {
    format!(
        "no relay of instance `{}` runs on this host; `relay status` shows what does",
        config.gateway.instance
    )
}

fn in_force(config: &Config) -> anyhow::Result<Vec<InForce>> {
    control::settings(config)
        .context("cannot ask the running relay for its settings")?
        .with_context(|| no_relay(config))
}

/// Those of that path, or below it.
fn at(settings: Vec<InForce>, path: &str) -> anyhow::Result<Vec<InForce>> {
    let path = path.trim_matches('/');
    let below = format!("{path}/");
    let known: Vec<String> = settings.iter().map(|one| one.path.clone()).collect();
    let found: Vec<_> = settings
        .into_iter()
        .filter(|one| path.is_empty() || one.path == path || one.path.starts_with(&below))
        .collect();
    if found.is_empty() {
        bail!(Refusal::unknown(path, known.iter().map(String::as_str)));
    }
    Ok(found)
}

fn list(config: &Config, path: Option<&str>, json: bool) -> anyhow::Result<()> {
    show(&Listed(at(in_force(config)?, path.unwrap_or_default())?), json)
}

fn get(config: &Config, path: &str, json: bool) -> anyhow::Result<()> {
    let found = at(in_force(config)?, path)?;
    let Some(InForce { path, value, .. }) =
        found.into_iter().find(|one| one.path == path.trim_matches('/'))
    else {
        bail!("`{path}` is a folder of settings; `relay tune list {path}` shows them");
    };
    show(&One { path, value }, json)
}

fn set(config: &Config, path: &str, value: &str, json: bool) -> anyhow::Result<()> {
    let path = path.trim_matches('/');
    let now = control::set(config, path, value)
        .context("the running relay refuses")?
        .with_context(|| no_relay(config))?;
    show(&One { path: path.to_owned(), value: now }, json)
}

fn save(config: &Config, file: &Path, json: bool) -> anyhow::Result<()> {
    let settings = in_force(config)?;
    let configured = Values::new(config, "info", &[])?;
    let live = settings.iter().filter(|one| one.live);
    let values = live.map(|one| (one.path.as_str(), one.value.as_str()));
    let to = Saved::place(file, &config.gateway.instance);
    let saved = Saved::write(&to, values, &configured)
        .with_context(|| format!("write {}", to.display()))?;
    let saved = saved.into_iter().map(str::to_owned).collect();
    show(&Written { file: to.display().to_string(), saved }, json)
}

/// Checks what is saved for an instance, if anything is.
pub(super) fn check(config: &Config, file: &Path) -> anyhow::Result<()> {
    let place = Saved::place(file, &config.gateway.instance);
    let saved = Saved::read(&place).with_context(|| format!("read {}", place.display()))?;
    let wrong = saved.apply(&Draft::new(Values::new(config, "info", &[])?));
    wrong.iter().try_for_each(print)?;
    ensure!(wrong.is_empty(), "{}: {} wrong line(s)", place.display(), wrong.len());
    Ok(())
}

impl Arguments {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let (file, json) = (ConfigFile { config: self.config.clone() }, self.json);
        let config = file.read()?;
        match &self.tune {
            None => list(&config, None, json),
            Some(Tune::List { path }) => list(&config, path.as_deref(), json),
            Some(Tune::Get { path }) => get(&config, path, json),
            Some(Tune::Set { path, value }) => set(&config, path, value, json),
            Some(Tune::Save) => save(&config, &self.config, json),
        }
    }
}
