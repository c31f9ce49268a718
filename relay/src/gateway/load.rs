//! `load`: programs into the kernel, maps filled, everything attached and pinned.

use std::path::Path;

use aya::maps::xdp::{DevMap, DevMapHash};
use aya::maps::{Array, Map, MapError};
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpMode;
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfLoader};
use millrace_common::abi::{ABI_VERSION, GatewayConfig, MAX_CLIENT_LINKS, map};
use serde::Serialize;

use super::error::{GatewayError, causes, errno};
use super::host::{Device, Report, in_namespace};
use super::kernel;
use super::netdev;
use super::object::{ObjectFile, verify};
use super::rules::RuleSet;
use super::rules::command::InForce;
use super::rules::compile::Compiled;
use super::rules::tables::RuleTables;
use super::state::{self, Lock, State};
use super::topology::{self, RELAY_DEVICE, Topology};
use super::unload::undo;
use crate::config::{Config, Mode};

/// The programs, by their names in the object.
pub(super) const PROGRAMS: [&str; 3] = ["ingress", "egress", "pass"];
const MAPS: [&str; 10] = [
    map::CONFIG,
    map::HEARTBEAT,
    map::ACTIVE_SET,
    map::PORT_CLASSES,
    map::RULES,
    map::PENDING,
    map::ESTABLISHED,
    map::COUNTERS,
    map::RELAY_LINK,
    map::CLIENT_LINKS,
];

/// What was loaded.
#[derive(Debug, Serialize)]
pub struct LoadReport {
    /// The instance.
    pub instance: String,
    /// Client-facing devices that now run `ingress`.
    pub devices: Vec<String>,
    /// Steering rules in force.
    pub rules: usize,
    /// The eBPF object.
    pub object: std::path::PathBuf,
    /// Where the pins are.
    pub pin_directory: std::path::PathBuf,
    /// The relay namespace.
    pub namespace: std::path::PathBuf,
}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "instance `{}` is loaded: {} rule(s) on {}; nothing is diverted until a relay runs",
            self.instance,
            self.rules,
            self.devices.join(", ")
        )
    }
}

/// Loads an instance in the calling thread's network namespace. Either all of it is there
/// afterwards, or nothing.
pub fn load(config: &Config, report: Report<'_>) -> Result<LoadReport, GatewayError> {
    super::require_root("`relay load`")?;
    load_object_file(config, &ObjectFile::find()?, report)
}

/// [`load`] with a given object file.
pub fn load_object_file(
    config: &Config,
    object: &ObjectFile,
    report: Report<'_>,
) -> Result<LoadReport, GatewayError> {
    super::require_root("`relay load`")?;
    let lock = Lock::take()?;
    if State::read(config)?.is_some() {
        return Err(GatewayError::AlreadyLoaded { instance: config.gateway.instance.clone() });
    }
    kernel::check(report)?;
    let rules = RuleSet::of(config)?;
    let compiled = Compiled::of(&rules)?;
    let devices = devices(config)?;
    topology::check(config, &rules)?;
    if config.pin_directory().exists() {
        return Err(GatewayError::NameTaken {
            what: format!("the directory {}", config.pin_directory().display()),
        });
    }

    let state = State::of(config);
    state.create(config)?;
    let built = build(config, object, &devices, &compiled, report)
        .and_then(|()| state::draft_rules(config, &InForce::of(config, &rules))?.keep());
    if let Err(error) = built {
        report(&format!("failed: {error}; undoing what was done"));
        if let Err(second) = undo(config, &state, report) {
            report(&format!("could not undo everything: {second}; run `relay unload`"));
        }
        return Err(error);
    }
    drop(lock);
    Ok(LoadReport {
        instance: state.instance,
        devices: state.devices,
        rules: rules.rules.len(),
        object: object.path.clone(),
        pin_directory: state.pin_directory,
        namespace: config.namespace(),
    })
}

/// Every step that changes the host, the diversion itself last.
fn build(
    config: &Config,
    object: &ObjectFile,
    devices: &[(String, Device)],
    rules: &Compiled,
    report: Report<'_>,
) -> Result<(), GatewayError> {
    let pins = config.pin_directory();
    state::mount_bpffs(report)?;
    report(&format!("mkdir {}", pins.display()));
    std::fs::create_dir(&pins).map_err(GatewayError::io(format!("create {}", pins.display())))?;

    report(&format!("load the programs and maps of {}", object.path.display()));
    let mut ebpf = load_object(object)?;
    let topology = topology::create(config, devices, report)?;

    report(&format!("{} class(es) of ports with rules", rules.class_count()));
    fill(&mut ebpf, config, &topology)?;
    RuleTables::of(&mut ebpf)
        .expect("load_object has checked the maps")
        .replace(rules, config.gateway.mode == Mode::All)?;
    pin(&mut ebpf, &pins)?;

    let gateway_device = topology::gateway_device(config);
    report(&format!("[{}] attach XDP program pass to {RELAY_DEVICE}", config.gateway.instance));
    let program = xdp(&mut ebpf, "pass", &object.path)?;
    let link = in_namespace(&config.namespace(), || {
        attach(program, "pass", RELAY_DEVICE, topology.relay_ifindex)
    })??;
    pin_link(link, &pins, "pass")?;
    report(&format!("attach XDP program egress to {gateway_device}"));
    let program = xdp(&mut ebpf, "egress", &object.path)?;
    let link = attach(program, "egress", &gateway_device, topology.gateway_ifindex)?;
    pin_link(link, &pins, "egress")?;
    let program = xdp(&mut ebpf, "ingress", &object.path)?;
    for (name, device) in devices {
        report(&format!("attach XDP program ingress to {name}"));
        let link = attach(program, "ingress", name, device.ifindex)?;
        pin_link(link, &pins, name)?;
    }
    aim_answers(&mut ebpf, devices, report)
}

/// Has answers redirected to the devices that can send them. Asked after attaching: many drivers
/// can only while they run a program.
fn aim_answers(
    ebpf: &mut Ebpf,
    devices: &[(String, Device)],
    report: Report<'_>,
) -> Result<(), GatewayError> {
    let mut links = DevMapHash::try_from(map_mut(ebpf, map::CLIENT_LINKS))
        .map_err(GatewayError::bpf(format!("open the map {}", map::CLIENT_LINKS)))?;
    for (name, device) in devices {
        let sends = netdev::sends_redirected(device.ifindex)
            .map_err(GatewayError::io(format!("ask what {name} can do with XDP")))?;
        if sends == Some(false) {
            report(&format!(
                "{name} cannot send redirected frames: answers go through the host's stack, which \
                 is slower (on a veth: `ethtool -K PEER gro on` at its other end, then load again)"
            ));
            continue;
        }
        links
            .insert(device.ifindex, device.ifindex, None, 0)
            .map_err(GatewayError::bpf(format!("fill the map {}", map::CLIENT_LINKS)))?;
    }
    Ok(())
}

/// The client-facing devices, each there and free.
fn devices(config: &Config) -> Result<Vec<(String, Device)>, GatewayError> {
    let names = &config.gateway.devices;
    if names.len() > MAX_CLIENT_LINKS as usize {
        return Err(GatewayError::TooManyDevices { devices: names.len(), limit: MAX_CLIENT_LINKS });
    }
    let mut devices = Vec::with_capacity(names.len());
    for name in names {
        let device =
            Device::find(name)?.ok_or_else(|| GatewayError::NoDevice { device: name.clone() })?;
        if let Some(id) = device.program() {
            return Err(GatewayError::ForeignProgram { device: name.clone(), id });
        }
        devices.push((name.clone(), device));
    }
    Ok(devices)
}

/// Creates the maps and has the programs verified.
fn load_object(object: &ObjectFile) -> Result<Ebpf, GatewayError> {
    let refused = |what: &str, reason: String| GatewayError::Refused {
        what: what.to_owned(),
        path: object.path.clone(),
        reason: reason + &kernel::hint(),
    };
    let mut ebpf = EbpfLoader::new()
        .load(&object.bytes)
        .map_err(|error| refused("the maps", causes(&error)))?;
    for name in PROGRAMS {
        verify(xdp(&mut ebpf, name, &object.path)?)
            .map_err(|error| refused(&format!("program `{name}`"), causes(&error)))?;
    }
    if let Some(missing) = MAPS.iter().find(|name| ebpf.map(name).is_none()) {
        return Err(GatewayError::BadObject {
            path: object.path.clone(),
            problem: format!("it has no map {missing}"),
        });
    }
    Ok(ebpf)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str, path: &Path) -> Result<&'a mut Xdp, GatewayError> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(|| {
        GatewayError::BadObject {
            path: path.to_owned(),
            problem: format!("it has no XDP program {name}"),
        }
    })
}

fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut Map {
    ebpf.map_mut(name).expect("load_object has checked the maps")
}

fn fill(ebpf: &mut Ebpf, config: &Config, topology: &Topology) -> Result<(), GatewayError> {
    let failed = |name: &str| GatewayError::bpf::<MapError>(format!("fill the map {name}"));
    let value = GatewayConfig {
        abi_version: ABI_VERSION,
        relay_nsid: topology.nsid,
        heartbeat_timeout_ns: u64::from(config.gateway.heartbeat_timeout_ms) * 1_000_000,
        relay_mac: topology.relay_mac,
        reserved: [0; 2],
    };
    Array::try_from(map_mut(ebpf, map::CONFIG))
        .and_then(|mut map| map.set(0, value, 0))
        .map_err(failed(map::CONFIG))?;

    DevMap::try_from(map_mut(ebpf, map::RELAY_LINK))
        .map_err(failed(map::RELAY_LINK))?
        .set(0, topology.gateway_ifindex, None, 0)
        .map_err(GatewayError::bpf(format!("fill the map {}", map::RELAY_LINK)))
}

/// Pins maps and programs; the links follow one by one.
fn pin(ebpf: &mut Ebpf, directory: &Path) -> Result<(), GatewayError> {
    for name in MAPS {
        map_mut(ebpf, name)
            .pin(directory.join(name))
            .map_err(GatewayError::bpf(format!("pin the map {name}")))?;
    }
    for (name, program) in ebpf.programs_mut() {
        program
            .pin(directory.join(format!("prog_{name}")))
            .map_err(GatewayError::bpf(format!("pin the program {name}")))?;
    }
    Ok(())
}

fn pin_link(link: FdLink, directory: &Path, name: &str) -> Result<(), GatewayError> {
    link.pin(directory.join(link_pin(name)))
        .map(drop)
        .map_err(GatewayError::bpf(format!("pin the link to {name}")))
}

/// Name of a link's pin. A bpffs refuses dots, which device names may have; a colon they may not.
pub(super) fn link_pin(name: &str) -> String {
    format!("link_{}", name.replace('.', ":"))
}

fn attach(
    program: &mut Xdp,
    name: &'static str,
    device: &str,
    ifindex: u32,
) -> Result<FdLink, GatewayError> {
    let link = program
        .attach_to_if_index(ifindex, XdpMode::Driver)
        .map_err(|error| attach_error(name, device, &error))?;
    program
        .take_link(link)
        .map_err(|error| causes(&error))
        .and_then(|link| {
            FdLink::try_from(link).map_err(|_| format!("no XDP link{}", kernel::hint()))
        })
        .map_err(|reason| GatewayError::Attach { program: name, device: device.to_owned(), reason })
}

/// Tells the operator what a driver's bare error number means.
fn attach_error(program: &'static str, name: &str, error: &ProgramError) -> GatewayError {
    let device = Device::find(name).ok().flatten();
    let driver = || {
        let kind = device.as_ref().and_then(|device| device.linkinfo.as_ref()?.info_kind.clone());
        kind.unwrap_or_else(|| "unknown".to_owned())
    };
    match errno(error) {
        Some(libc::EOPNOTSUPP) => {
            GatewayError::NoNativeXdp { device: name.to_owned(), driver: driver() }
        }
        Some(libc::ERANGE | libc::EMSGSIZE) => GatewayError::Mtu {
            device: name.to_owned(),
            mtu: device.as_ref().map_or(0, |device| device.mtu),
            reason: "its driver does not run XDP programs at this MTU".to_owned(),
        },
        Some(libc::EBUSY | libc::EEXIST) => GatewayError::ForeignProgram {
            device: name.to_owned(),
            id: device.as_ref().and_then(Device::program).unwrap_or(0),
        },
        _ => GatewayError::Attach { program, device: name.to_owned(), reason: causes(error) },
    }
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    fn refused(errno: i32) -> String {
        let error = ProgramError::SyscallError(SyscallError {
            call: "bpf_link_create",
            io_error: std::io::Error::from_raw_os_error(errno),
        });
        attach_error("ingress", "no-such-device", &error).to_string()
    }

    #[test]
    fn a_drivers_refusal_is_explained() {
        assert!(refused(libc::EOPNOTSUPP).contains("has no native XDP"));
        assert!(refused(libc::ERANGE).contains("does not run XDP programs at this MTU"));
        assert!(refused(libc::EBUSY).contains("already runs an XDP program"));
        let other = refused(libc::ENOMEM);
        assert!(other.contains("`ingress`") && other.contains("Cannot allocate"), "{other}");
    }

    #[test]
    fn a_link_pin_has_no_dot() {
        assert_eq!(link_pin("eth1.100"), "link_eth1:100");
    }
}
