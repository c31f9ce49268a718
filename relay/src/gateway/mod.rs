//! The gateway: the XDP programs on the host, and the relay's handles on them.
//!
//! In the order of an instance's life: [`preflight()`] looks at host and devices; [`load()`] finds and
//! checks the eBPF object, makes the relay namespace and the link to it, attaches and pins;
//! [`rules`] says what is diverted and may be replaced at any time, as the programs may by
//! [`replace()`]; [`status()`] looks at the pins, [`trace()`] at a client's packets; a relay takes hold of
//! the pins with [`Gateway::open`], says that it is alive with a [`Heartbeat`] and which connections
//! it has with a [`FlowTable`] per thread; [`unload()`] removes everything. The programs, maps and
//! links are pinned, and go on without any process of ours.

mod attached;
mod btf;
mod change;
mod coalesce;
mod counts;
mod devices;
mod diversion;
mod drivers;
mod error;
mod facts;
mod finding;
mod flows;
mod heartbeat;
mod host;
mod kernel;
mod known;
mod links;
mod load;
mod lock;
mod losses;
mod netdev;
mod netlink;
pub mod object;
mod offered;
mod place;
mod preflight;
mod reattach;
mod replace;
mod reverse_path;
mod rtnetlink;
pub mod rules;
mod state;
mod status;
mod sysctls;
mod topology;
mod trace;
mod traced;
mod traffic_control;
mod unload;
mod watch;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aya::maps::{Array, Map, MapData, MapError};
pub use millrace_common::abi::Intake;
use millrace_common::abi::{self, ABI_VERSION, GatewayConfig, map};

use crate::config::{Config, Zones};

pub use self::counts::{Counted, Counts, Flows};
pub use self::diversion::{Diversion, Evidence, PathEvidence};
use self::error::errno;
pub use self::error::{FlowError, GatewayError, RuleMistake};
pub use self::facts::{DevicePlan, Preflight, preflight};
pub use self::finding::{Finding, Severity};
pub use self::flows::{Established, FlowTable};
pub use self::heartbeat::Heartbeat;
pub use self::host::{Report, enter_namespace, in_namespace};
pub use self::kernel::{Version, minimum as minimum_kernel};
pub use self::known::{
    Above, Bpffs, Channels, Facts, LinkFacts, Occupant, Peer, SourceFacts, SysctlRefusal,
    SysctlTrial,
};
pub use self::load::{LoadReport, load, load_object_file};
use self::lock::Lock;
pub use self::losses::Lost;
pub use self::netdev::XdpFeatures;
pub use self::preflight::AttachMode;
pub use self::replace::{ReplaceReport, Replaced, replace, replace_by};
pub use self::reverse_path::SourceCheck;
pub use self::rtnetlink::Link;
use self::rules::tables::RuleTables;
pub use self::status::{NamespaceStatus, RelayStatus, Status, status};
pub use self::sysctls::SysctlStatus;
pub use self::topology::{RELAY_DEVICE, gateway_device};
pub use self::trace::{TraceEnd, TraceOptions, TraceSummary, trace, trace_by};
pub use self::traced::Traced;
pub use self::unload::unload;
pub use self::watch::{DeviceNews, News, Watch};
pub use crate::gateway::attached::{DeviceStatus, ProgramStatus};

/// Has the programs of a loaded instance take a heartbeat of this age for that of a dead relay.
pub fn set_heartbeat_timeout(pins: &Path, timeout: Duration) -> Result<(), GatewayError> {
    // The same map says which rules are in force, and another command may be changing them.
    let _lock = Lock::take_soon()?;
    let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    RuleTables::open(pins)?.set_heartbeat_timeout(timeout_ns).map(drop)
}

/// A running relay's hold on a loaded instance.
#[derive(Debug)]
pub struct Gateway {
    pins: PathBuf,
    namespace: PathBuf,
    zones: Zones,
    generation: Option<u64>,
}

impl Gateway {
    /// Takes hold of a loaded instance, in whatever network namespace the process is.
    pub fn open(config: &Config) -> Result<Self, GatewayError> {
        require_root("`relay run`")?;
        let pins = config.pin_directory();
        let value = read_config(config, &pins)?;
        if config.hands_on() && !value.active_set.hands_on() {
            return Err(GatewayError::HandsNothingOn { instance: config.gateway.instance.clone() });
        }
        let configured_ms = u64::from(config.gateway.heartbeat_timeout_ms);
        let loaded_ms = value.heartbeat_timeout_ns / 1_000_000;
        if configured_ms != loaded_ms {
            tracing::warn!("{}", heartbeat_timeout_difference(configured_ms, loaded_ms));
        }
        let zones = Zones::of(value.active_set.zones());
        if config.gateway.zones != zones {
            tracing::warn!("{}", zones_difference(config.gateway.zones, zones));
        }
        Ok(Self { pins, namespace: config.namespace(), zones, generation: None })
    }

    /// Begins a new run of the relay: its number, unlike any before it. What former runs have left
    /// in the flow table is taken out. Call it once, before [`Self::heartbeat`] and
    /// [`Self::flow_table`].
    pub fn start_generation(&mut self) -> Result<u64, GatewayError> {
        let former = self.present()?.generation;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        // The clock may have been set back; the number must grow all the same.
        let generation = u64::try_from(now).unwrap_or(0).max(former + 1);
        flows::forget_former(&self.pins, generation)?;
        self.generation = Some(generation);
        Ok(generation)
    }

    /// The last beat of the last run.
    fn present(&self) -> Result<abi::Heartbeat, GatewayError> {
        let map = self.map(map::HEARTBEAT, Map::Array)?;
        Array::try_from(map).and_then(|map| map.get(&0, 0)).map_err(unusable(map::HEARTBEAT))
    }

    /// The heartbeat of this run.
    pub fn heartbeat(&self) -> Result<Heartbeat, GatewayError> {
        let map = self.map(map::HEARTBEAT, Map::Array)?;
        let map = Array::try_from(map).map_err(unusable(map::HEARTBEAT))?;
        let config = self.map(map::CONFIG, Map::Array)?;
        let config = Array::try_from(config).map_err(unusable(map::CONFIG))?;
        Heartbeat::new(map, config, self.generation(), &self.namespace)
    }

    /// What becomes of diverted packets. No path is closed.
    pub fn diversion(&self) -> Result<Diversion, GatewayError> {
        let mut diversion = Diversion::open(&self.pins, &self.namespace)?;
        for path in diversion.look()?.paths {
            diversion.set_closed(path.key(), false)?;
        }
        Ok(diversion)
    }

    /// What the gateway has counted.
    pub fn counts(&self, config: &Config) -> Result<Counts, GatewayError> {
        Counts::open(config)
    }

    /// A handle on the flow maps for one thread.
    pub fn flow_table(&self) -> Result<FlowTable, GatewayError> {
        FlowTable::open(&self.pins, self.generation(), self.zones.told())
    }

    /// Has the programs follow the gateway's devices, their hardware addresses and those that come back
    /// after they were removed, for as long as what it gives lives.
    pub fn watch(&self, config: &Config) -> Result<Watch, GatewayError> {
        Watch::start(config, &self.namespace)
    }

    /// The relay namespace, where listeners belong: see [`in_namespace`].
    pub fn namespace(&self) -> &Path {
        &self.namespace
    }

    fn generation(&self) -> u64 {
        self.generation.expect("start_generation comes first")
    }

    fn map(&self, name: &str, kind: fn(MapData) -> Map) -> Result<Map, GatewayError> {
        open_map(&self.pins, name).map(kind)
    }
}

/// Opens a pinned map.
fn open_map(pins: &Path, name: &str) -> Result<MapData, GatewayError> {
    MapData::from_pin(pins.join(name)).map_err(unusable(name))
}

fn unusable(name: &str) -> impl FnOnce(MapError) -> GatewayError {
    GatewayError::bpf(format!("use the map {name}"))
}

/// Reads what the loader has told the programs, and refuses a loader of another version.
fn read_config(config: &Config, pins: &Path) -> Result<GatewayConfig, GatewayError> {
    let instance = &config.gateway.instance;
    let data = MapData::from_pin(pins.join(map::CONFIG)).map_err(|error| match errno(&error) {
        Some(libc::ENOENT | libc::ENOTDIR) => {
            GatewayError::NotLoaded { instance: instance.clone() }
        }
        _ => unusable(map::CONFIG)(error),
    })?;
    let value: GatewayConfig = Array::try_from(Map::Array(data))
        .and_then(|map| map.get(&0, 0))
        .map_err(unusable(map::CONFIG))?;
    if value.abi_version != ABI_VERSION {
        return Err(GatewayError::AbiMismatch {
            what: format!("the loaded instance `{instance}`"),
            found: value.abi_version,
            ours: ABI_VERSION,
        });
    }
    Ok(value)
}

/// What to say where configuration and programs have different heartbeat timeouts.
fn heartbeat_timeout_difference(configured_ms: u64, loaded_ms: u64) -> String {
    format!(
        "gateway.heartbeat_timeout_ms is {configured_ms} in the configuration, but {loaded_ms} in the \
         loaded instance, which counts; `relay rules apply` puts the former into force"
    )
}

/// What to say where configuration and programs tell other zones apart.
fn zones_difference(configured: Zones, loaded: Zones) -> String {
    format!(
        "gateway.zones is \"{}\" in the configuration, but \"{}\" in the loaded instance, which counts; \
         `relay unload` and `relay load` put the former into force",
        configured.name(),
        loaded.name()
    )
}

fn require_root(action: &'static str) -> Result<(), GatewayError> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(GatewayError::NotRoot { action })
    }
}
