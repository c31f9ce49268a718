//! The devices of a loaded instance, changed without `unload`: `load --replace` takes up those that
//! the configuration names, those too that were removed and are back, and lets go of the others.

use aya::Ebpf;
use aya::maps::xdp::DevMapHash;
use millrace_common::abi::map;

use super::devices::DeviceTable;
use super::error::GatewayError;
use super::facts;
use super::host::{Device, Report};
use super::links::{link_pin, linked_program};
use super::load;
use super::object::{ObjectFile, map_mut};
use super::offered::Offered;
use super::preflight;
use super::reverse_path;
use super::state::{self, State, ignore_missing};
use super::topology;
use super::unload::detach;
use crate::config::Config;

/// What changes about the devices.
pub(super) struct Change {
    /// Those that are loaded now.
    former: State,
    /// Those that stay, with their links.
    pub kept: State,
    added: Vec<String>,
    removed: Vec<String>,
}

impl Change {
    /// Compares what is loaded with the configuration.
    pub(super) fn of(config: &Config, former: State) -> Result<Self, GatewayError> {
        let (mut kept, mut added) = (Vec::new(), Vec::new());
        for device in &config.gateway.devices {
            let stays = former.devices.contains(device) && !is_back(&former, device)?;
            if stays { &mut kept } else { &mut added }.push(device.clone());
        }
        let configured = |device: &&String| !config.gateway.devices.contains(device);
        let removed: Vec<String> = former.devices.iter().filter(configured).cloned().collect();
        let rules = state::read_rules(config)?.read()?;
        if let Some(device) = removed.iter().find(|device| rules.names_device(device)) {
            return Err(GatewayError::DeviceHasRules { device: device.clone() });
        }
        let kept = State { devices: kept, ..former.clone() }.following(&former);
        Ok(Self { former, kept, added, removed })
    }

    /// Takes up the devices that are new. Until [`Self::finish`], `unload` removes the former ones and
    /// the new ones.
    pub(super) fn begin(
        &self,
        config: &Config,
        (ebpf, object): (&mut Ebpf, &ObjectFile),
        report: Report<'_>,
    ) -> Result<(), GatewayError> {
        if self.added.is_empty() {
            return Ok(());
        }
        let mut only = config.clone();
        only.gateway.devices.clone_from(&self.added);
        let facts = load::examine(&only, report)?;
        let devices = load::devices(&only)?;
        let mut all = self.former.clone();
        all.devices
            .extend(self.added.iter().filter(|name| !self.former.devices.contains(name)).cloned());
        let all = all.following(&self.former);
        all.create(config)?;
        for device in &self.added {
            // The link of a device that is gone holds nothing.
            ignore_missing(std::fs::remove_file(all.pin_directory.join(link_pin(device))))
                .map_err(GatewayError::io(format!("remove the former link to {device}")))?;
        }
        load::attach_devices(ebpf, config, (&devices, &facts), &object.path, report)
    }

    /// Lets go of the devices that were taken up.
    pub(super) fn undo(&self, config: &Config, report: Report<'_>) -> Result<(), GatewayError> {
        for device in &self.added {
            detach(&self.former, device, report)?;
        }
        self.former.create(config)
    }

    /// Lets go of the devices that are not configured any more, and tells the programs of the others.
    /// Gives what is loaded then.
    pub(super) fn finish(
        &self,
        config: &Config,
        ebpf: &mut Ebpf,
        report: Report<'_>,
    ) -> Result<State, GatewayError> {
        let state = State::of(config).following(&self.former);
        for name in &self.removed {
            if let Some(device) = Device::find(name)? {
                let mut links: DevMapHash<_> =
                    DevMapHash::try_from(map_mut(ebpf, map::CLIENT_LINKS)).map_err(
                        GatewayError::bpf(format!("open the map {}", map::CLIENT_LINKS)),
                    )?;
                // Where answers are not redirected, it is not there.
                let _ = links.remove(device.ifindex);
            }
            detach(&self.former, name, report)?;
        }
        if !(self.added.is_empty() && self.removed.is_empty()) {
            let facts = facts::gather(config)?;
            let links = facts.devices.iter().filter_map(|(_, link)| link.as_ref());
            let mtu = preflight::link_mtu(links, config.gateway.xdp, facts.page_size);
            topology::raise_mtu(config, mtu, report)?;
            let (mut devices, mut checks) = (Vec::new(), Vec::new());
            for ((number, name), (_, link)) in state.numbered().zip(&facts.devices) {
                let (Some(link), Some(device)) = (link, Device::find(name)?) else { continue };
                checks.push(reverse_path::decide(config.gateway.reverse_path, &link.sources));
                devices.push((number, name, device));
            }
            let mut table = DeviceTable::of(ebpf).expect("load_object has checked the maps");
            table.retell(&devices, &checks)?;
            let ifindexes: Vec<_> = devices.iter().map(|(.., device)| device.ifindex).collect();
            Offered::of(ebpf)?.count(&ifindexes)?;
        }
        state.create(config)?;
        Ok(state)
    }
}

/// Whether a device was removed since `load`, and one of its name is there now: the link holds nothing.
fn is_back(state: &State, name: &str) -> Result<bool, GatewayError> {
    let Some(device) = Device::find(name)? else { return Ok(false) };
    let linked = linked_program(&state.pin_directory, name).ok();
    Ok(linked.is_none() || device.program() != linked)
}
