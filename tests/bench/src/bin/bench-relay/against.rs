//! The relay of another commit, as one more subject.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use millrace_relay::codec::Framing;
use millrace_relay::config::{
    Config, HoldSection, KafkaSection, RegistrySection, RelaySection, Service,
};
use serde::Serialize;
use toml::{Table, Value};

/// A commit and its `relay`.
#[derive(Clone, Debug)]
pub(crate) struct Against {
    /// As git names it.
    pub(crate) revision: String,
    /// The program.
    pub(crate) program: PathBuf,
}

impl std::str::FromStr for Against {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (revision, program) = text.split_once('=').context(
            "it must be REVISION=PROGRAM; `cargo xtask bench relay --against REVISION` builds the program",
        )?;
        let program = Path::new(program);
        ensure!(program.is_file(), "there is no program {}", program.display());
        Ok(Self { revision: revision.to_owned(), program: program.to_owned() })
    }
}

/// A configuration that says nothing but what is not the default, so that a relay reads it that lacks
/// some of today's settings.
pub(crate) fn sparse(config: &Config) -> Result<String> {
    let mut table = Table::try_from(config)?;
    without_defaults(&mut table, "relay", &RelaySection::default())?;
    without_defaults(&mut table, "kafka", &KafkaSection::default())?;
    without_defaults(&mut table, "registry", &RegistrySection::default())?;
    without_defaults(&mut table, "hold", &HoldSection::default())?;
    // None is served, and older relays do not know the section.
    table.remove("metrics");
    if let Some(Value::Table(gateway)) = table.get_mut("gateway") {
        gateway.retain(|key, _| ["instance", "devices"].contains(&key));
    }
    if let Some(Value::Array(services)) = table.get_mut("service") {
        for table in services {
            // None of these values is one of a service that is measured.
            let default = Service { framing: None, ..Service::new("", 0, Framing::Lines) };
            let default = Table::try_from(default)?;
            let table = table.as_table_mut().context("a service is a table")?;
            table.retain(|key, value| default.get(key) != Some(value));
        }
    }
    Ok(toml::to_string(&table)?)
}

fn without_defaults(table: &mut Table, section: &str, default: &impl Serialize) -> Result<()> {
    let default = Table::try_from(default)?;
    if let Some(Value::Table(section)) = table.get_mut(section) {
        section.retain(|key, value| default.get(key) != Some(value));
    }
    Ok(())
}
