//! What runs where: the programs of a loaded instance, and the devices that they are on.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use aya::maps::xdp::DevMapHash;
use aya::maps::{Map, MapError};
use millrace_common::abi::map;
use serde::Serialize;

use crate::config::{Config, HardwareAddress};
use crate::gateway::devices::DeviceTable;
use crate::gateway::error::GatewayError;
use crate::gateway::finding::Finding;
use crate::gateway::host::Device;
use crate::gateway::links::{info_of, linked_program, occupant, pinned_info, program_pin};
use crate::gateway::load::PINNED;
use crate::gateway::open_map;
use crate::gateway::reverse_path::{self, SourceCheck, Surroundings};

/// A client-facing device.
#[derive(Debug, Serialize)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// `native`, `generic`, … as attached; `none`; or `not in this network namespace`.
    pub mode: &'static str,
    /// The program that the instance's link holds there, if the link is there.
    pub program_id: Option<u32>,
    /// That program's name in the kernel.
    pub program: Option<String>,
    /// Why the program that runs there is not the instance's, whose it is, and how to remove it; null if it
    /// runs none, or the instance's.
    pub other_program: Option<String>,
    /// The hardware address that it has now; null if it is not in this network namespace.
    pub hardware_address: Option<HardwareAddress>,
    /// The hardware address by which the programs know it: frames for others are passed. Null if the
    /// device is not in this network namespace, or not the one that was loaded.
    pub known_address: Option<HardwareAddress>,
    /// Whether answers are redirected to it; if not, they go through the host's stack. Null if the device
    /// is not in this network namespace: then it cannot be told.
    pub redirects_answers: Option<bool>,
    /// How far the programs check the sources of what comes in by it: `off`, `loose` or `strict`. Null as
    /// `known_address`.
    pub reverse_path: Option<&'static str>,
    /// How far they would after a load now, and why.
    pub wanted_reverse_path: Option<SourceCheck>,
}

/// A loaded program.
#[derive(Clone, Debug, Serialize)]
pub struct ProgramStatus {
    /// The kernel's id.
    pub id: u32,
    /// When it was loaded: seconds since 1970; null before Linux 4.15.
    pub loaded_unix_s: Option<u64>,
    /// Packets that it has run for; null unless the kernel counts (`sysctl
    /// kernel.bpf_stats_enabled=1`, Linux 5.1).
    pub run_count: Option<u64>,
    /// Time that it has run, nanoseconds; as `run_count`.
    pub run_time_ns: Option<u64>,
}

impl DeviceStatus {
    /// Whether it runs the program that it should.
    pub fn is_right(&self, ingress: &ProgramStatus) -> bool {
        self.program_id == Some(ingress.id)
    }

    pub(super) fn of(
        config: &Config,
        surroundings: &Surroundings,
        pins: &Path,
        number: u16,
        name: &str,
    ) -> Result<Self, GatewayError> {
        let found = Device::find(name)?;
        let mode = found.as_ref().map_or("not in this network namespace", Device::mode);
        let failed =
            || GatewayError::bpf::<MapError>(format!("read the map {}", map::CLIENT_LINKS));
        let links = DevMapHash::try_from(Map::DevMapHash(open_map(pins, map::CLIENT_LINKS)?))
            .map_err(failed())?;
        let ifindex = found.as_ref().map(|found| found.ifindex);
        let hardware_address = found.as_ref().and_then(Device::mac).map(HardwareAddress);
        let (mut known_address, mut reverse_path, mut wanted_reverse_path) = (None, None, None);
        if let Some(device) = &found {
            let table = DeviceTable::open(pins)?;
            known_address = table.known(number, device.ifindex)?;
            reverse_path = table.check(number, device.ifindex)?.map(reverse_path::name);
            if known_address.is_some() {
                wanted_reverse_path = Some(surroundings.check(config, name, device)?);
            }
        }
        let redirects_answers = ifindex.map(|ifindex| links.get(ifindex, 0).is_ok());
        // Without its link, what runs there is not ours.
        let program_id = linked_program(pins, name).ok();
        let other_program = match &found {
            Some(device) => other_program(name, device, pins)?,
            None => None,
        };
        let program = program_id.and_then(|id| info_of(id)?.name_as_str().map(str::to_owned));
        Ok(Self {
            name: name.to_owned(),
            mode,
            program_id,
            program,
            other_program,
            hardware_address,
            known_address,
            redirects_answers,
            reverse_path,
            wanted_reverse_path,
        })
    }
}

/// Tells of the program of a device, if it is not the one that the instance's link holds.
fn other_program(name: &str, device: &Device, pins: &Path) -> Result<Option<String>, GatewayError> {
    let is_other = |device: &Device| {
        device.program().is_some() && device.program() != linked_program(pins, name).ok()
    };
    if !is_other(device) {
        return Ok(None);
    }
    // It may have been replaced between the two looks.
    let Some(device) = Device::find(name)?.filter(is_other) else { return Ok(None) };
    let occupant = occupant(&device);
    Ok(occupant.map(|occupant| Finding::foreign_program(name, &occupant).to_string()))
}

/// The pinned programs, by name.
pub(super) fn programs(pins: &Path) -> Result<BTreeMap<&'static str, ProgramStatus>, GatewayError> {
    PINNED
        .into_iter()
        .map(|name| {
            let info = pinned_info(&pins.join(program_pin(name)))?;
            let loaded = info.loaded_at().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            // Both are 0 unless the kernel counts.
            let counted = info.run_count() > 0;
            let run_time_ns = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
            let status = ProgramStatus {
                id: info.id(),
                loaded_unix_s: loaded.map(|since| since.as_secs()),
                run_count: counted.then(|| info.run_count()),
                run_time_ns: counted.then_some(run_time_ns),
            };
            Ok((name, status))
        })
        .collect()
}

impl std::fmt::Display for ProgramStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "id {}", self.id)?;
        if let Some(since) = self.loaded_unix_s {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            write!(f, ", loaded {} ago", ago(now.saturating_sub(since)))?;
        }
        match (self.run_count, self.run_time_ns) {
            (Some(count), Some(time_ns)) => {
                write!(f, ", {count} packets at {} ns", time_ns / count.max(1))
            }
            _ => Ok(()),
        }
    }
}

/// A time span in its two largest units.
fn ago(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans() {
        let spans = [0, 59, 60, 3599, 3600, 86_399, 86_400, 900_000].map(ago);
        assert_eq!(
            spans,
            [
                "0 s",
                "59 s",
                "1 min 0 s",
                "59 min 59 s",
                "1 h 0 min",
                "23 h 59 min",
                "1 d 0 h",
                "10 d 10 h"
            ]
        );
    }
}
