//! `load --replace`: other programs on the links of a loaded instance, with its maps, and on other
//! devices.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::change::Change;
use super::coalesce;
use super::devices;
use super::error::GatewayError;
use super::host::Report;
use super::links::{self, Slot, Swap, pinned_info, pinned_program, program_pin};
use super::load::{self, MAPS, PINNED};
use super::lock::Lock;
use super::losses;
use super::object::ObjectFile;
use super::read_config;
use super::state::{self, State, ignore_missing};
use super::sysctls;
use super::topology;
use super::traffic_control;
use crate::config::Config;

/// What was replaced.
#[derive(Debug, Serialize)]
pub struct ReplaceReport {
    /// The instance.
    pub instance: String,
    /// Client-facing devices that run `ingress` now.
    pub devices: Vec<String>,
    /// The kernel's ids of the programs, by name.
    pub programs: BTreeMap<&'static str, Replaced>,
    /// The eBPF object.
    pub object: std::path::PathBuf,
}

/// The kernel's ids of a program.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Replaced {
    /// Before.
    pub from: u32,
    /// Now.
    pub to: u32,
}

impl std::fmt::Display for ReplaceReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let programs: Vec<_> = self
            .programs
            .iter()
            .map(|(name, Replaced { from, to })| format!("{name} {from} → {to}"))
            .collect();
        let programs = programs.join(", ");
        let devices = self.devices.join(", ");
        write!(f, "instance `{}` has its programs replaced on {devices}: {programs}", self.instance)
    }
}

/// Replaces the programs of a loaded instance by those of the object that [`ObjectFile::find`]
/// finds, and takes up and lets go of devices as the configuration says. Rules, flows and counters
/// stay; no packet is lost. Either all programs are replaced, or none.
pub fn replace(config: &Config, report: Report<'_>) -> Result<ReplaceReport, GatewayError> {
    super::require_root("`relay load --replace`")?;
    replace_by(config, &ObjectFile::find()?, report)
}

/// [`replace`] with a given object file.
pub fn replace_by(
    config: &Config,
    object: &ObjectFile,
    report: Report<'_>,
) -> Result<ReplaceReport, GatewayError> {
    super::require_root("`relay load --replace`")?;
    let _lock = Lock::take()?;
    let state = State::of_loaded(config)?;
    let pins = &state.pin_directory;
    read_config(config, pins)?;
    // The devices are looked up by their names, which mean something else elsewhere.
    let gateway = topology::find(&topology::gateway_device(config))?;
    sysctls::check(config)?;
    let change = Change::of(config, state.clone())?;
    all_pinned(pins)?;

    report(&format!("load the programs of {} with the instance's maps", object.path.display()));
    let mut ebpf = load::load_object(object, Some(pins))?;
    let drafts: Vec<_> = PINNED.iter().map(|name| pins.join(draft(name))).collect();
    let mut replaced = BTreeMap::new();
    let collected = coalesce::in_force(config)?;
    let settings = sysctls::apply(config, state::read_sysctls(config)?, report)?;
    let result = (|| {
        coalesce::apply(config, report)?;
        for (name, draft) in PINNED.into_iter().zip(&drafts) {
            // What a replacement that was killed has left.
            remove(draft)?;
            load::pin_program(&mut ebpf, name, draft)?;
            let from = pinned_info(&pins.join(program_pin(name)))?.id();
            replaced.insert(name, Replaced { from, to: pinned_info(draft)?.id() });
        }
        let slots = Slot::all(config, &change.kept);
        let swaps = slots
            .iter()
            .map(|slot| {
                let program = pinned_program(&pins.join(draft(slot.program)))?;
                Ok(Swap { slot, program })
            })
            .collect::<Result<_, GatewayError>>()?;
        change.begin(config, (&mut ebpf, object), report)?;
        let done = traffic_control::replace(config, |name| pins.join(draft(name)), report)
            .and_then(|()| links::swap(swaps, report));
        if done.is_err() {
            let former = |name: &str| pins.join(program_pin(name));
            if let Err(second) = traffic_control::replace(config, former, report) {
                report(&format!("could not go back: {second}"));
            }
        }
        done
    })();
    if let Err(error) = result {
        let undone = [
            change.undo(config, report),
            settings.undo(report),
            coalesce::set(config, collected, report),
        ];
        for second in undone.into_iter().filter_map(Result::err) {
            report(&format!("could not go back: {second}"));
        }
        for draft in &drafts {
            remove(draft)?;
        }
        return Err(error);
    }
    for (name, draft) in PINNED.into_iter().zip(&drafts) {
        std::fs::rename(draft, pins.join(program_pin(name)))
            .map_err(GatewayError::io(format!("rename {}", draft.display())))?;
    }
    losses::attach(&mut ebpf, pins, gateway.ifindex, report)?;
    let state = change.finish(config, &mut ebpf, report)?;
    for changed in devices::refresh(config, &state)? {
        report(&changed.to_string());
    }
    Ok(ReplaceReport {
        instance: state.instance,
        devices: state.devices,
        programs: replaced,
        object: object.path.clone(),
    })
}

/// Every pin that is reused must be there: what is not would be made anew, and empty.
pub(super) fn all_pinned(pins: &Path) -> Result<(), GatewayError> {
    let programs = PINNED.iter().map(|name| program_pin(name));
    let mut all = MAPS.iter().map(|name| (*name).to_owned()).chain(programs);
    match all.find(|name| !pins.join(name).exists()) {
        None => Ok(()),
        Some(missing) => Err(GatewayError::PinMissing { path: pins.join(missing) }),
    }
}

/// Where a program is pinned until its links have it.
fn draft(name: &str) -> String {
    format!("new_{name}")
}

fn remove(pin: &Path) -> Result<(), GatewayError> {
    ignore_missing(std::fs::remove_file(pin))
        .map_err(GatewayError::io(format!("remove {}", pin.display())))
}
