//! A device of a loaded instance that is back after it was removed: examined as by `load`, attached, and
//! told to the programs. The calling thread is in the network namespace of the gateway's devices.

use std::path::Path;

use aya::maps::Map;
use aya::maps::xdp::DevMapHash;
use aya::programs::Xdp;
use millrace_common::abi::map;
use millrace_common::link::ClientDevice;

use super::devices::DeviceTable;
use super::error::GatewayError;
use super::facts;
use super::host::{Device, Named, Report};
use super::known::LinkFacts;
use super::links::{self, link_pin, linked_program, pin_link, pinned_program, program_pin};
use super::load;
use super::lock::Lock;
use super::offered::Offered;
use super::preflight::AttachMode;
use super::reverse_path;
use super::state::{self, State, ignore_missing};
use super::traffic_control;
use super::{open_map, read_config, unusable};
use crate::config::{Config, Zones};

/// What has become of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Became {
    /// There is no such device any more, or it is none of the instance's.
    Gone,
    /// Its program is attached in this mode; whether answers are redirected to it.
    Attached { mode: AttachMode, answers_redirected: bool },
    /// It had its program all the time, or somebody else has put it there.
    Known { answers_redirected: bool },
}

/// Why it could not be attached.
#[derive(Debug)]
pub(super) struct Refusal {
    pub error: GatewayError,
    /// What the device was like when its driver or the kernel refused the program. `None`: it was not
    /// asked.
    pub tried: Option<Box<LinkFacts>>,
}

impl From<GatewayError> for Refusal {
    fn from(error: GatewayError) -> Self {
        Self { error, tried: None }
    }
}

/// A device of a loaded instance, looked up under the lock of all that change what is loaded.
struct Returned<'a> {
    config: Config,
    state: State,
    number: u16,
    name: &'a str,
    device: Device,
}

/// Attaches a device again. `None`: it still is what it was when that failed before.
pub(super) fn take_up(
    config: &Config,
    name: &str,
    failed: Option<&LinkFacts>,
    _lock: &Lock,
    report: Report<'_>,
) -> Result<Option<Became>, Refusal> {
    let Some(returned) = Returned::find(config, name)? else { return Ok(Some(Became::Gone)) };
    let linked = linked_program(returned.pins(), name).ok();
    let is_attached = linked.is_some() && returned.device.program() == linked;
    let facts = if is_attached { returned.gather()? } else { returned.examine(report)? };
    let Some(facts) = facts else { return Ok(Some(Became::Gone)) };
    returned.check_place()?;
    if is_attached {
        return Ok(Some(Became::Known { answers_redirected: returned.tell(&facts, report)? }));
    }
    if failed == Some(&facts) {
        return Ok(None);
    }
    let mode = returned
        .attach(linked, &facts, report)
        .map_err(|error| Refusal { error, tried: Some(Box::new(facts.clone())) })?;
    let answers_redirected = returned.tell(&facts, report)?;
    Ok(Some(Became::Attached { mode, answers_redirected }))
}

impl<'a> Returned<'a> {
    /// `None` if it is not there, or the instance does not have it.
    fn find(config: &Config, name: &'a str) -> Result<Option<Self>, GatewayError> {
        let Some(state) = State::read(config)? else { return Ok(None) };
        let number = state.numbered().find(|(_, device)| *device == name).map(|(number, _)| number);
        let Some(number) = number else { return Ok(None) };
        // What is half loaded is nobody's to complete.
        if !state::is_complete(config) {
            return Ok(None);
        }
        let Some(device) = Device::find(name)? else { return Ok(None) };
        let value = read_config(config, &state.pin_directory)?;
        let mut config = config.clone();
        config.gateway.devices = vec![name.to_owned()];
        config.gateway.zones = Zones::of(value.active_set.zones());
        Ok(Some(Self { config, state, number, name, device }))
    }

    fn pins(&self) -> &Path {
        &self.state.pin_directory
    }

    /// What is known of it. `None` if it is gone again.
    fn gather(&self) -> Result<Option<LinkFacts>, GatewayError> {
        Ok(facts::gather(&self.config)?.devices.into_iter().find_map(|(_, link)| link))
    }

    /// The same, judged as `load` does.
    fn examine(&self, report: Report<'_>) -> Result<Option<LinkFacts>, GatewayError> {
        Ok(load::examine(&self.config, report)?.into_iter().next())
    }

    /// Refuses a device that the programs could not tell from another one that is there.
    fn check_place(&self) -> Result<(), GatewayError> {
        let occupant = DeviceTable::open(self.pins())?.occupant(self.device.ifindex)?;
        let Some(other) = occupant.filter(|number| *number != self.number) else { return Ok(()) };
        let mut devices = self.state.numbered();
        let Some((_, name)) = devices.find(|(number, _)| *number == other) else { return Ok(()) };
        let slot = |device: &Device| ClientDevice::slot(device.ifindex);
        match Device::find(name)? {
            Some(device) if slot(&device) == slot(&self.device) => {
                Err(GatewayError::DeviceSlot { device: self.name.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Attaches the program that its link had: the traced one, while a trace runs. The kernel detaches what
    /// is not pinned when this process ends, and a device that the programs do not know is taken up by the
    /// next look: so it does not matter where this ends.
    fn attach(
        &self,
        linked: Option<u32>,
        facts: &LinkFacts,
        report: Report<'_>,
    ) -> Result<AttachMode, GatewayError> {
        let pins = self.pins();
        let mut program: Xdp = match linked.and_then(|id| links::program(id, "ingress").ok()) {
            Some(program) => program,
            None => pinned_program(&pins.join(program_pin("ingress")))?,
        };
        let slot = (self.name, self.device.ifindex);
        let (link, mode) = load::attach_ingress(&mut program, slot, facts, &self.config, report)?;
        ignore_missing(std::fs::remove_file(pins.join(link_pin(self.name))))
            .map_err(GatewayError::io(format!("remove the former link to {}", self.name)))?;
        pin_link(link, pins, self.name)?;
        if mode == AttachMode::Generic {
            traffic_control::attach_untag(&self.config, report)?;
        }
        Ok(mode)
    }

    /// Tells the programs of it. Whether answers are redirected to it. By [`DeviceTable::place`] it is
    /// known that it was done, so that comes last.
    fn tell(&self, facts: &LinkFacts, report: Report<'_>) -> Result<bool, GatewayError> {
        let present: Vec<_> = Named::all()?
            .into_iter()
            .filter(|present| self.state.devices.contains(&present.name))
            .map(|present| present.device.ifindex)
            .collect();
        Offered::open(self.pins())?.count(&present)?;
        let links = Map::DevMapHash(open_map(self.pins(), map::CLIENT_LINKS)?);
        let mut links = DevMapHash::try_from(links).map_err(unusable(map::CLIENT_LINKS))?;
        let redirected =
            load::aim_answers(&mut links, (self.name, self.device.ifindex), facts, report)?;
        if !redirected {
            // As a rule it is not there.
            let _ = links.remove(self.device.ifindex);
        }
        let check = reverse_path::decide(self.config.gateway.reverse_path, &facts.sources);
        DeviceTable::open(self.pins())?.place(self.number, (self.name, &self.device), &check)?;
        Ok(redirected)
    }
}
