//! `relay rules`: put a set of rules into force, and show the one that is.

use std::collections::HashSet;
use std::fmt;

use aya::maps::MapError;
use millrace_common::abi;
use serde::Serialize;

use super::compile::Compiled;
use super::in_force::InForce;
use super::place::DeviceNumbers;
use super::tables::{Present, RuleTables};
use super::{GatewayError, RuleSet};
use crate::config::{Config, Mode};
use crate::gateway::flows::{Established, open_pending};
use crate::gateway::host::Device;
use crate::gateway::lock::Lock;
use crate::gateway::state::{self, State};
use crate::gateway::{Gateway, devices, facts, read_config, require_root, topology};

/// Lines of rules that are shown to people before they are referred to `--json`.
const SHOWN: usize = 20;

/// What `relay rules check` found.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// Where the rules were written.
    pub source: String,
    /// Rules, and what is said of sources.
    pub rules: usize,
    /// Classes of ports that the same rules cover.
    pub classes: usize,
    /// Prefixes of all classes.
    pub entries: usize,
}

/// What `relay rules apply` changed.
#[derive(Debug, Serialize)]
pub struct ApplyReport {
    /// What is in force now.
    #[serde(flatten)]
    pub now: CheckReport,
    /// Rules that were not in force before.
    pub added: Vec<String>,
    /// Rules that are not in force any more.
    pub removed: Vec<String>,
    /// TCP ports without a rule whose old connections go on.
    pub closing_ports: Vec<u16>,
    /// Devices whose hardware addresses the programs did not know, in words.
    pub devices: Vec<String>,
    /// Which packets the rules divert.
    pub mode: Mode,
    /// The mode before, if it was another one.
    pub former_mode: Option<Mode>,
    /// A relay whose heartbeat is older gets no new connections.
    pub heartbeat_timeout_ms: u64,
    /// What that was before, if it was something else.
    pub former_heartbeat_timeout_ms: Option<u64>,
}

/// What `relay rules show` sees in the kernel.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The rules, their mode and their source.
    #[serde(flatten)]
    pub in_force: InForce,
    /// Classes of ports that the same rules cover.
    pub classes: usize,
    /// Prefixes of all classes.
    pub entries: usize,
    /// How the maps differ from these rules; absent if they don't.
    pub difference: Option<String>,
}

/// Reads and compiles the rules of a configuration; changes nothing and needs no privilege.
pub fn check(config: &Config) -> Result<CheckReport, GatewayError> {
    let set = RuleSet::of(config)?;
    let compiled = Compiled::of(&set, &DeviceNumbers::configured(&config.gateway.devices))?;
    Ok(CheckReport::of(&InForce::of(config, &set), &compiled))
}

/// Replaces the rules of a loaded instance by those of its configuration, all at once, and its mode
/// and its heartbeat's timeout as well. Connections that are diverted go on, whatever the new rules
/// say of their destinations.
pub fn apply(config: &Config) -> Result<ApplyReport, GatewayError> {
    require_root("`relay rules apply`")?;
    let set = RuleSet::of(config)?;
    Compiled::of(&set, &DeviceNumbers::configured(&config.gateway.devices))?;
    let _lock = Lock::take()?;
    let loaded = State::of_loaded(config)?;
    read_config(config, &loaded.pin_directory)?;
    let compiled = Compiled::of(&set, &loaded.device_numbers())?;
    // Run elsewhere than `load`, it cannot see whether the gateway forwards and what its devices
    // do.
    if Device::find(&topology::gateway_device(config))?.is_some() {
        topology::check_forwarding(&set)?;
        facts::check_vlans(config, &set)?;
    }
    // An apply that was killed has left its draft: what the kernel holds is not known then.
    let killed = state::has_draft(config);
    let former = state::read_rules(config)?;
    let in_force = former.compile(&loaded.device_numbers())?;
    let present = Present { compiled: &in_force, closing: &former.closing_ports };
    let mut now = InForce::of(config, &set);
    let draft = state::draft_rules(config, &now)?;

    let mut tables = RuleTables::open(&loaded.pin_directory)?;
    let by_rule = config.gateway.mode == Mode::All;
    let closing = match tables.replace((!killed).then_some(&present), &compiled, by_rule) {
        Ok(closing) => closing,
        Err(error) => {
            if !killed {
                draft.discard()?;
            }
            return Err(error);
        }
    };
    now.closing_ports = close(config, &mut tables, closing)?;
    state::draft_rules(config, &now)?.keep()?;
    let heartbeat_timeout_ms = u64::from(config.gateway.heartbeat_timeout_ms);
    let former_ms = tables.set_heartbeat_timeout(heartbeat_timeout_ms * 1_000_000)? / 1_000_000;

    let devices = devices::refresh(config, &loaded)?;
    let before: HashSet<&String> = former.rules.iter().collect();
    let after: HashSet<&String> = now.rules.iter().collect();
    let but = |rules: &[String], others: &HashSet<&String>| {
        rules.iter().filter(|rule| !others.contains(rule)).cloned().collect()
    };
    Ok(ApplyReport {
        mode: now.mode,
        former_mode: (former.mode != now.mode).then_some(former.mode),
        now: CheckReport::of(&now, &compiled),
        added: but(&now.rules, &before),
        removed: but(&former.rules, &after),
        closing_ports: now.closing_ports,
        devices: devices.iter().map(ToString::to_string).collect(),
        heartbeat_timeout_ms,
        former_heartbeat_timeout_ms: (former_ms != heartbeat_timeout_ms).then_some(former_ms),
    })
}

/// Shows the rules in force, and whether the maps agree.
pub fn show(config: &Config) -> Result<Shown, GatewayError> {
    require_root("`relay rules show`")?;
    let _lock = Lock::take()?;
    let loaded = State::of_loaded(config)?;
    read_config(config, &loaded.pin_directory)?;
    let in_force = state::read_rules(config)?;
    let compiled = in_force.compile(&loaded.device_numbers())?;
    let present = Present { compiled: &compiled, closing: &in_force.closing_ports };
    let tables = RuleTables::open(&loaded.pin_directory)?;
    Ok(Shown {
        classes: compiled.class_count(),
        entries: compiled.entries(),
        difference: tables.difference(&present, in_force.mode == Mode::All)?,
        in_force,
    })
}

/// Of ports that have no rule any more, ends diversion where no connection is left; gives the
/// others. Since the new set is in force no connection can have begun there.
fn close(
    config: &Config,
    tables: &mut RuleTables<aya::maps::MapData>,
    ports: Vec<u16>,
) -> Result<Vec<u16>, GatewayError> {
    if ports.is_empty() {
        return Ok(ports);
    }
    let gateway = Gateway::open(config)?;
    let generation = gateway.present()?.generation;
    let mut busy: HashSet<u16> = HashSet::new();
    let pins = config.pin_directory();
    let failed = || GatewayError::bpf::<MapError>("read the table of flows");
    // In this order: a flow is in `PENDING` before it is accepted.
    let pending = open_pending(&pins)?;
    let pending = pending.iter().map(|flow| flow.map(|(key, state)| (key, state.generation)));
    let accepted = Established::open(&pins)?;
    let accepted = accepted.iter().map(|flow| flow.map(|(key, state)| (key, state.generation)));
    for flow in pending.chain(accepted) {
        let (key, of) = flow.map_err(failed())?;
        if of == generation {
            busy.insert(u16::from_be_bytes(key.ports.destination()));
        }
    }
    let (kept, free): (Vec<_>, Vec<_>) = ports.into_iter().partition(|port| busy.contains(port));
    tables.close_ports(&free)?;
    Ok(kept)
}

impl CheckReport {
    fn of(set: &InForce, compiled: &Compiled) -> Self {
        Self {
            source: set.source.clone(),
            rules: set.rules.len(),
            classes: compiled.class_count(),
            entries: compiled.entries(),
        }
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rule(s) of {}: {} class(es) of ports, {} of {} entries",
            self.rules,
            self.source,
            self.classes,
            self.entries,
            abi::MAX_SET_ENTRIES
        )
    }
}

/// Some lines with a mark before each, and how many more there are.
fn list(f: &mut fmt::Formatter<'_>, mark: &str, lines: &[String]) -> fmt::Result {
    for line in lines.iter().take(SHOWN) {
        write!(f, "\n{mark}{line}")?;
    }
    match lines.len().checked_sub(SHOWN) {
        None | Some(0) => Ok(()),
        Some(more) => write!(f, "\n{mark}… and {more} more; --json shows all"),
    }
}

fn closing(f: &mut fmt::Formatter<'_>, ports: &[u16]) -> fmt::Result {
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    if ports.is_empty() {
        return Ok(());
    }
    write!(f, "\nwithout a rule, but with connections that continue: tcp port ")?;
    f.write_str(&ports.join(", "))
}

impl fmt::Display for ApplyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (added, removed) = (self.added.len(), self.removed.len());
        write!(f, "in force: {}; {added} added, {removed} removed", self.now)?;
        list(f, "+ ", &self.added)?;
        list(f, "- ", &self.removed)?;
        self.devices.iter().try_for_each(|changed| write!(f, "\n{changed}"))?;
        if let Some(former) = self.former_mode {
            write!(f, "\nmode: {} → {}", former.name(), self.mode.name())?;
        }
        if let Some(former_ms) = self.former_heartbeat_timeout_ms {
            write!(f, "\nheartbeat timeout: {former_ms} ms → {} ms", self.heartbeat_timeout_ms)?;
        }
        closing(f, &self.closing_ports)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let InForce { source, mode, rules, closing_ports } = &self.in_force;
        write!(f, "# {} rule(s) of {source}, mode {}", rules.len(), mode.name())?;
        for rule in rules {
            write!(f, "\n{rule}")?;
        }
        closing(f, closing_ports)
    }
}
