//! `unload`: everything that `load` has made is removed, whatever of it is there.

use std::time::{Duration, Instant};

use aya::programs::links::PinnedLink;

use super::error::GatewayError;
use super::host::{Device, Report};
use super::links::link_pin;
use super::lock::Lock;
use super::state::{self, State, ignore_missing};
use super::topology;
use crate::config::Config;
use crate::tune;

/// How long the kernel may take to detach a program whose last reference is gone.
const DETACH: Duration = Duration::from_secs(5);

/// Removes an instance: links first, so that from then on every packet takes the ordinary path.
pub fn unload(config: &Config, report: Report<'_>) -> Result<(), GatewayError> {
    super::require_root("`relay unload`")?;
    let _lock = Lock::take()?;
    let Some(state) = State::read(config)? else {
        let instance = config.gateway.instance.clone();
        let loaded = State::all().into_iter().map(|state| state.instance).collect();
        return Err(GatewayError::NothingToUnload { instance, loaded });
    };
    undo(config, &state, report)
}

/// What `load` did, undone in reverse. The state file goes last, so that this can be repeated.
pub(super) fn undo(config: &Config, state: &State, report: Report<'_>) -> Result<(), GatewayError> {
    for device in &state.devices {
        detach(state, device, report)?;
    }
    if state.pin_directory.exists() {
        report(&format!("rm -r {}", state.pin_directory.display()));
        ignore_missing(std::fs::remove_dir_all(&state.pin_directory))
            .map_err(GatewayError::io(format!("remove {}", state.pin_directory.display())))?;
    }
    tune::clear(&tune::place(config))
        .map_err(GatewayError::io("take away the tree of settings that a relay has left"))?;
    topology::remove(config, report)?;
    state::unmount_bpffs(report)?;
    State::remove(config, report)
}

/// Detaches `ingress` from a device, and waits until it is: the kernel lets go of an unpinned link
/// a moment later, and until then the device refuses another program.
pub(super) fn detach(state: &State, device: &str, report: Report<'_>) -> Result<(), GatewayError> {
    let pin = state.pin_directory.join(link_pin(device));
    if !pin.exists() {
        return Ok(());
    }
    report(&format!("detach XDP program ingress from {device}"));
    let failed = || format!("detach from {device}");
    let link = PinnedLink::from_pin(&pin).map_err(GatewayError::bpf(failed()))?;
    let link = link.unpin().map_err(GatewayError::io(failed()))?;
    let program = link.info().map_err(GatewayError::bpf(failed()))?.program_id();
    drop(link);
    let deadline = Instant::now() + DETACH;
    // A device that is gone, or lives in another network namespace, is not there to be looked at.
    while Device::find(device)?.and_then(|device| device.program()) == Some(program) {
        if Instant::now() > deadline {
            return Err(GatewayError::Bpf {
                what: failed(),
                reason: format!("another process holds the link of program {program}"),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
