//! The client-facing devices' hardware addresses, told to the programs: they divert what is sent to
//! these, and nothing that a device sees besides.

use std::borrow::{Borrow, BorrowMut};
use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use millrace_common::abi::map;
use millrace_common::link::{ClientDevice, ReversePath};

use crate::config::{Config, HardwareAddress};

use super::error::GatewayError;
use super::host::Device;
use super::reverse_path::{self, SourceCheck, Surroundings};
use super::state::State;
use super::{open_map, unusable};

/// What the programs did not know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// It has another hardware address.
    Address { device: String, from: HardwareAddress, to: HardwareAddress },
    /// Its sources are to be checked otherwise.
    ReversePath { device: String, from: ReversePath, to: SourceCheck },
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { device, from, to } => {
                write!(f, "{device} has another hardware address: {from} before, {to} now")
            }
            Self::ReversePath { device, from, to } => {
                write!(
                    f,
                    "reverse path of {device}: {} before, {to} now",
                    reverse_path::name(*from)
                )
            }
        }
    }
}

/// The two maps.
pub(super) struct DeviceTable<T> {
    devices: Array<T, ClientDevice>,
    shared: HashMap<T, u64, u32>,
}

impl DeviceTable<MapData> {
    /// Those of a loaded instance.
    pub(super) fn open(pins: &Path) -> Result<Self, GatewayError> {
        let devices = Map::Array(open_map(pins, map::CLIENT_DEVICES)?);
        let shared = Map::HashMap(open_map(pins, map::SHARED_ADDRESSES)?);
        Ok(Self {
            devices: Array::try_from(devices).map_err(unusable(map::CLIENT_DEVICES))?,
            shared: HashMap::try_from(shared).map_err(unusable(map::SHARED_ADDRESSES))?,
        })
    }
}

impl<'a> DeviceTable<&'a mut MapData> {
    /// Those of an object; `None` if it is not one of ours.
    pub(super) fn of(ebpf: &'a mut aya::Ebpf) -> Option<Self> {
        let (mut devices, mut shared) = (None, None);
        for (name, present) in ebpf.maps_mut() {
            match name {
                map::CLIENT_DEVICES => devices = Array::try_from(present).ok(),
                map::SHARED_ADDRESSES => shared = HashMap::try_from(present).ok(),
                _ => {}
            }
        }
        Some(Self { devices: devices?, shared: shared? })
    }
}

impl<T: Borrow<MapData>> DeviceTable<T> {
    /// What the programs take for the address of a device; `None` if it is not the one that was
    /// loaded under this number.
    pub(super) fn known(
        &self,
        number: u16,
        ifindex: u32,
    ) -> Result<Option<HardwareAddress>, GatewayError> {
        let known = self.device(number, ifindex)?;
        Ok(known.map(|known| HardwareAddress(known.address().bytes())))
    }

    /// How far the programs check the sources of a device; `None` as [`Self::known`].
    pub(super) fn check(
        &self,
        number: u16,
        ifindex: u32,
    ) -> Result<Option<ReversePath>, GatewayError> {
        Ok(self.device(number, ifindex)?.map(ClientDevice::reverse_path))
    }

    /// The number of the device that stands where one of this index would stand.
    pub(super) fn occupant(&self, ifindex: u32) -> Result<Option<u16>, GatewayError> {
        let number = self.get(ClientDevice::slot(ifindex))?.number();
        Ok((number != 0).then_some(number))
    }

    fn device(&self, number: u16, ifindex: u32) -> Result<Option<ClientDevice>, GatewayError> {
        let known = self.get(ClientDevice::slot(ifindex))?;
        Ok((known.number() == number).then_some(known))
    }

    fn get(&self, slot: u32) -> Result<ClientDevice, GatewayError> {
        self.devices
            .get(&slot, 0)
            .map_err(GatewayError::bpf(format!("read the map {}", map::CLIENT_DEVICES)))
    }
}

/// What the programs are to know of a device.
fn told(
    number: u16,
    name: &str,
    device: &Device,
    check: &SourceCheck,
) -> Result<ClientDevice, GatewayError> {
    let told = ClientDevice::new(number, device.address(name)?.key());
    Ok(told.with_reverse_path(check.mode))
}

impl<T: BorrowMut<MapData>> DeviceTable<T> {
    /// Tells of the devices, in the order of the configuration, each with how far it is checked.
    pub(super) fn fill(
        &mut self,
        devices: &[(String, Device)],
        checks: &[SourceCheck],
    ) -> Result<(), GatewayError> {
        for (number, ((name, device), check)) in (1..).zip(devices.iter().zip(checks)) {
            let slot = ClientDevice::slot(device.ifindex);
            if self.get(slot)?.number() != 0 {
                return Err(GatewayError::DeviceSlot { device: name.clone() });
            }
            self.set(slot, told(number, name, device, check)?)?;
        }
        Ok(())
    }

    /// Tells of devices anew, each with its number, and of no others. One that stays is known all the time.
    pub(super) fn retell(
        &mut self,
        devices: &[(u16, &String, Device)],
        checks: &[SourceCheck],
    ) -> Result<(), GatewayError> {
        let mut slots = HashSet::new();
        for ((number, name, device), check) in devices.iter().zip(checks) {
            let slot = ClientDevice::slot(device.ifindex);
            if !slots.insert(slot) {
                return Err(GatewayError::DeviceSlot { device: (*name).clone() });
            }
            self.set(slot, told(*number, name, device, check)?)?;
        }
        for slot in (0..ClientDevice::SLOTS).filter(|slot| !slots.contains(slot)) {
            if self.get(slot)?.number() != 0 {
                self.set(slot, ClientDevice::default())?;
            }
        }
        Ok(())
    }

    /// Tells of one device, and that the one which had its number before is gone.
    pub(super) fn place(
        &mut self,
        number: u16,
        (name, device): (&str, &Device),
        check: &SourceCheck,
    ) -> Result<(), GatewayError> {
        let slot = ClientDevice::slot(device.ifindex);
        self.set(slot, told(number, name, device, check)?)?;
        for other in (0..ClientDevice::SLOTS).filter(|other| *other != slot) {
            if self.get(other)?.number() == number {
                self.set(other, ClientDevice::default())?;
            }
        }
        Ok(())
    }

    /// Has frames for these addresses looked at, and for no others but the devices' own.
    pub(super) fn share(&mut self, addresses: &[HardwareAddress]) -> Result<(), GatewayError> {
        let failed =
            || GatewayError::bpf::<MapError>(format!("fill the map {}", map::SHARED_ADDRESSES));
        let wanted: Vec<u64> = addresses.iter().map(|address| address.key().number()).collect();
        let present: Vec<u64> = self.shared.keys().collect::<Result<_, _>>().map_err(failed())?;
        for number in present.iter().filter(|number| !wanted.contains(number)) {
            self.shared.remove(number).map_err(failed())?;
        }
        for number in wanted {
            self.shared.insert(number, 0, 0).map_err(failed())?;
        }
        Ok(())
    }

    /// Has the programs know a device by this address from now on. Gives the former one, if it is
    /// another.
    pub(super) fn follow(
        &mut self,
        number: u16,
        ifindex: u32,
        address: HardwareAddress,
    ) -> Result<Option<HardwareAddress>, GatewayError> {
        let Some(device) = self.device(number, ifindex)? else { return Ok(None) };
        if device.address() == address.key() {
            return Ok(None);
        }
        let told = ClientDevice::new(number, address.key());
        let told = told.with_reverse_path(device.reverse_path());
        self.set(ClientDevice::slot(ifindex), told)?;
        Ok(Some(HardwareAddress(device.address().bytes())))
    }

    /// Has the programs check a device so far from now on. Gives how far they did, if it is another.
    fn recheck(
        &mut self,
        number: u16,
        ifindex: u32,
        check: ReversePath,
    ) -> Result<Option<ReversePath>, GatewayError> {
        let Some(device) = self.device(number, ifindex)? else { return Ok(None) };
        let former = device.reverse_path();
        if former == check {
            return Ok(None);
        }
        self.set(ClientDevice::slot(ifindex), device.with_reverse_path(check))?;
        Ok(Some(former))
    }

    fn set(&mut self, slot: u32, device: ClientDevice) -> Result<(), GatewayError> {
        self.devices
            .set(slot, device, 0)
            .map_err(GatewayError::bpf(format!("fill the map {}", map::CLIENT_DEVICES)))
    }
}

/// Tells the programs of a loaded instance what its configuration and its devices say now. Devices
/// that are not in this network namespace stay as they are.
pub(super) fn refresh(config: &Config, state: &State) -> Result<Vec<Changed>, GatewayError> {
    let mut table = DeviceTable::open(&state.pin_directory)?;
    table.share(&config.gateway.shared_addresses)?;
    let (mut changed, surroundings) = (Vec::new(), Surroundings::read()?);
    for (number, name) in state.numbered() {
        let Some(device) = Device::find(name)? else { continue };
        let to = device.address(name)?;
        if let Some(from) = table.follow(number, device.ifindex, to)? {
            changed.push(Changed::Address { device: name.clone(), from, to });
        }
        let to = surroundings.check(config, name, &device)?;
        if let Some(from) = table.recheck(number, device.ifindex, to.mode)? {
            changed.push(Changed::ReversePath { device: name.clone(), from, to });
        }
    }
    Ok(changed)
}
