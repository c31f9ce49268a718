//! `load`: programs into the kernel, maps filled, everything attached and pinned.

use std::borrow::BorrowMut;
use std::path::Path;

use aya::maps::xdp::{DevMap, DevMapHash};
use aya::maps::{Array, MapData, MapError};
use aya::programs::Xdp;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader};
use millrace_common::abi::{ABI_VERSION, GatewayConfig, MAX_CLIENT_LINKS, map};
use millrace_common::rule::ActiveSet;
use serde::Serialize;

use crate::config::{Config, Mode, XdpPolicy};
use crate::gateway::finding::{Finding, Severity};
use crate::gateway::rules::in_force::InForce;

use super::coalesce;
use super::devices::DeviceTable;
use super::error::{GatewayError, causes};
use super::facts::{self, features};
use super::host::{self, Device, Report, in_namespace};
use super::kernel;
use super::known::LinkFacts;
use super::links::{attach, pin_link, program_pin};
use super::object::{ObjectFile, map_mut, verified};
use super::offered::Offered;
use super::preflight;
use super::preflight::AttachMode;

use super::lock::Lock;
use super::losses;
use super::reverse_path;
use super::rules::RuleSet;
use super::rules::compile::Compiled;
use super::rules::place::DeviceNumbers;
use super::rules::tables::{Present, RuleTables};
use super::state::{self, State};
use super::sysctls;
use super::topology::{self, RELAY_DEVICE, Topology};
use super::traffic_control::{self, ANSWER, UNTAG};
use super::unload::undo;

/// The XDP programs, by their names in the object.
pub(super) const PROGRAMS: [&str; 3] = ["ingress", "egress", "pass"];
/// All that are pinned.
pub(super) const PINNED: [&str; 5] = [PROGRAMS[0], PROGRAMS[1], PROGRAMS[2], ANSWER, UNTAG];
/// The maps that programs and relay share: those that are pinned.
pub(super) const MAPS: [&str; 17] = [
    map::CONFIG,
    map::HEARTBEAT,
    map::PORT_CLASSES,
    map::RULES,
    map::PENDING,
    map::FRAGMENTS,
    map::ESTABLISHED_IPV4,
    map::ESTABLISHED_IPV6,
    map::COUNTERS,
    map::RELAY_LINK,
    map::CLIENT_DEVICES,
    map::SHARED_ADDRESSES,
    map::CLIENT_LINKS,
    map::OFFERS,
    map::CLOSED_PATHS,
    map::LOSS_SETUP,
    map::LOSSES,
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
    facts::loaded(config)?;
    kernel::check(report)?;
    let rules = RuleSet::of(config)?;
    let compiled = Compiled::of(&rules, &DeviceNumbers::configured(&config.gateway.devices))?;
    let facts = examine(config, report)?;
    let devices = devices(config)?;
    topology::check_forwarding(&rules)?;
    topology::check_names(config)?;

    let state = State::of(config);
    state.create(config)?;
    let built = build(config, object, (&devices, &facts), &compiled, report)
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
    (devices, facts): (&[(String, Device)], &[LinkFacts]),
    rules: &Compiled,
    report: Report<'_>,
) -> Result<(), GatewayError> {
    let pins = config.pin_directory();
    state::mount_bpffs(report)?;
    report(&format!("mkdir {}", pins.display()));
    std::fs::create_dir(&pins).map_err(GatewayError::io(format!("create {}", pins.display())))?;

    report(&format!("load the programs and maps of {}", object.path.display()));
    let mut ebpf = load_object(object, None)?;
    let mtu = preflight::link_mtu(facts, config.gateway.xdp, facts::page_size());
    let topology = topology::create(config, mtu, report)?;
    sysctls::apply(config, state::Settings::new(), report)?;

    report(&format!("{} class(es) of ports with rules", rules.class_count()));
    fill(&mut ebpf, config, &topology)?;
    let ifindexes: Vec<_> = devices.iter().map(|(_, device)| device.ifindex).collect();
    Offered::of(&mut ebpf)?.count(&ifindexes)?;
    let setting = config.gateway.reverse_path;
    let checks: Vec<_> =
        facts.iter().map(|link| reverse_path::decide(setting, &link.sources)).collect();
    for ((name, _), check) in devices.iter().zip(&checks) {
        report(&format!("reverse path of {name}: {check}"));
    }
    let mut table = DeviceTable::of(&mut ebpf).expect("load_object has checked the maps");
    table.fill(devices, &checks)?;
    table.share(&config.gateway.shared_addresses)?;
    RuleTables::of(&mut ebpf).expect("load_object has checked the maps").replace(
        Some(&Present {
            compiled: &Compiled::of(&RuleSet::default(), &DeviceNumbers::default())?,
            closing: &[],
        }),
        rules,
        config.gateway.mode == Mode::All,
    )?;
    pin(&mut ebpf, &pins)?;

    attach_veth(&mut ebpf, config, &topology, &object.path, report)?;
    coalesce::apply(config, report)?;
    losses::attach(&mut ebpf, &pins, topology.gateway_ifindex, report)?;
    attach_devices(&mut ebpf, config, (devices, facts), &object.path, report)
}

/// Attaches `ingress` to client-facing devices, and has answers redirected to those that can send them.
pub(super) fn attach_devices(
    ebpf: &mut Ebpf,
    config: &Config,
    (devices, facts): (&[(String, Device)], &[LinkFacts]),
    object: &Path,
    report: Report<'_>,
) -> Result<(), GatewayError> {
    let program = xdp(ebpf, "ingress", object)?;
    let mut generic = false;
    for ((name, device), facts) in devices.iter().zip(facts) {
        let slot = (name.as_str(), device.ifindex);
        let (link, mode) = attach_ingress(program, slot, facts, config, report)?;
        pin_link(link, &config.pin_directory(), name)?;
        generic |= mode == AttachMode::Generic;
    }
    if generic {
        traffic_control::attach_untag(config, report)?;
    }
    let mut links = DevMapHash::try_from(map_mut(ebpf, map::CLIENT_LINKS))
        .map_err(GatewayError::bpf(format!("open the map {}", map::CLIENT_LINKS)))?;
    for ((name, device), facts) in devices.iter().zip(facts) {
        aim_answers(&mut links, (name, device.ifindex), facts, report)?;
    }
    Ok(())
}

/// Attaches the programs of both ends of the link to the relay.
fn attach_veth(
    ebpf: &mut Ebpf,
    config: &Config,
    topology: &Topology,
    object: &Path,
    report: Report<'_>,
) -> Result<(), GatewayError> {
    let pins = config.pin_directory();
    report(&format!("[{}] attach XDP program pass to {RELAY_DEVICE}", config.gateway.instance));
    let program = xdp(ebpf, "pass", object)?;
    let link = in_namespace(&config.namespace(), || {
        let slot = (RELAY_DEVICE, topology.relay_ifindex);
        attach(program, "pass", slot, AttachMode::Native, &pins)
    })??;
    pin_link(link, &pins, "pass")?;
    let device = topology::gateway_device(config);
    report(&format!("attach XDP program egress to {device}"));
    let program = xdp(ebpf, "egress", object)?;
    let slot = (device.as_str(), topology.gateway_ifindex);
    let link = attach(program, "egress", slot, AttachMode::Native, &pins)?;
    pin_link(link, &pins, "egress")?;
    traffic_control::attach_answer(config, report)
}

/// Attaches `ingress` as the policy has it. A driver that was thought able and refuses is one that
/// cannot: only then, and only if it may, the program runs in the kernel's stack.
pub(super) fn attach_ingress(
    program: &mut Xdp,
    slot: (&str, u32),
    facts: &LinkFacts,
    config: &Config,
    report: Report<'_>,
) -> Result<(FdLink, AttachMode), GatewayError> {
    let (name, policy, pins) = (slot.0, config.gateway.xdp, config.pin_directory());
    let mode = preflight::planned(facts, policy);
    report(&format!("attach XDP program ingress to {name} in {mode} mode"));
    let refusal = match attach(program, "ingress", slot, mode, &pins) {
        Err(GatewayError::Unfit(findings)) => findings,
        result => return Ok((result?, mode)),
    };
    let unable = refusal.iter().any(|finding| finding.code == Finding::NO_NATIVE_XDP);
    if mode == AttachMode::Generic || policy != XdpPolicy::NativeOrGeneric || !unable {
        return Err(GatewayError::Unfit(refusal));
    }
    report(&format!("costs: {}", preflight::generic(name, facts)));
    report(&format!("attach XDP program ingress to {name} in generic mode"));
    let mode = AttachMode::Generic;
    Ok((attach(program, "ingress", slot, mode, &pins)?, mode))
}

/// Looks at host and devices before anything is changed: says what it finds, and refuses what
/// would fail. Gives what it knows of the devices, all of which are there.
pub(super) fn examine(config: &Config, report: Report<'_>) -> Result<Vec<LinkFacts>, GatewayError> {
    let facts = facts::gather(config)?;
    let findings = preflight::judge(&facts, config.gateway.xdp);
    let (refusals, others): (Vec<_>, Vec<_>) =
        findings.into_iter().partition(|finding| finding.severity == Severity::Refuses);
    if !refusals.is_empty() {
        return Err(GatewayError::Unfit(refusals));
    }
    for finding in others {
        report(&format!("{}: {finding}", finding.severity));
    }
    Ok(facts.devices.into_iter().filter_map(|(_, link)| link).collect())
}

/// Has answers redirected to a device if it can send them; whether it can. Asked after attaching: many
/// drivers can only while they run a program.
pub(super) fn aim_answers<T: BorrowMut<MapData>>(
    links: &mut DevMapHash<T>,
    (name, ifindex): (&str, u32),
    facts: &LinkFacts,
    report: Report<'_>,
) -> Result<bool, GatewayError> {
    let now = LinkFacts { features: features(name, ifindex)?, ..facts.clone() };
    if !preflight::answers_redirected(&now, host::processors(), facts::page_size()) {
        report(&format!(
            "redirected frames cannot be sent out of {name} by every processor: answers go \
             through the host's stack, which is slower (on a veth: run `ethtool -K PEER gro on` \
             at its other end, then load again)"
        ));
        return Ok(false);
    }
    links
        .insert(ifindex, ifindex, None, 0)
        .map_err(GatewayError::bpf(format!("fill the map {}", map::CLIENT_LINKS)))?;
    Ok(true)
}

/// The client-facing devices.
pub(super) fn devices(config: &Config) -> Result<Vec<(String, Device)>, GatewayError> {
    let names = &config.gateway.devices;
    if names.len() > MAX_CLIENT_LINKS as usize {
        return Err(GatewayError::TooManyDevices { devices: names.len(), limit: MAX_CLIENT_LINKS });
    }
    let mut devices = Vec::with_capacity(names.len());
    for name in names {
        devices.push((name.clone(), topology::find(name)?));
    }
    Ok(devices)
}

/// Creates the maps, or takes those that are pinned in a directory, and has the programs verified.
pub(super) fn load_object(object: &ObjectFile, pins: Option<&Path>) -> Result<Ebpf, GatewayError> {
    let mut loader = EbpfLoader::new();
    if let Some(pins) = pins {
        pinned_maps(&mut loader, pins);
    }
    let mut ebpf = load_programs(&mut loader, object, &PROGRAMS)?;
    traffic_control::load(&mut ebpf, object)?;
    Ok(ebpf)
}

/// Has a loader take the maps that are pinned in a directory.
pub(super) fn pinned_maps(loader: &mut EbpfLoader<'_>, pins: &Path) {
    for name in MAPS {
        loader.map_pin_path(name, pins.join(name));
    }
}

/// Has some programs of an object verified.
pub(super) fn load_programs(
    loader: &mut EbpfLoader<'_>,
    object: &ObjectFile,
    programs: &[&str],
) -> Result<Ebpf, GatewayError> {
    let refused = |what: &str, reason: String| GatewayError::Refused {
        what: what.to_owned(),
        path: object.path.clone(),
        reason: reason + &kernel::hint(),
    };
    let mut ebpf =
        loader.load(&object.bytes).map_err(|error| refused("the maps", causes(&error)))?;
    for name in programs {
        let program = xdp(&mut ebpf, name, &object.path)?;
        verified(|| program.load())
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

/// A program of an object, by its name there.
pub(super) fn xdp<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
    path: &Path,
) -> Result<&'a mut Xdp, GatewayError> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(|| {
        GatewayError::BadObject {
            path: path.to_owned(),
            problem: format!("it has no XDP program {name}"),
        }
    })
}

fn fill(ebpf: &mut Ebpf, config: &Config, topology: &Topology) -> Result<(), GatewayError> {
    let failed = |name: &str| GatewayError::bpf::<MapError>(format!("fill the map {name}"));
    let value = GatewayConfig {
        abi_version: ABI_VERSION,
        relay_nsid: topology.nsid,
        heartbeat_timeout_ns: u64::from(config.gateway.heartbeat_timeout_ms) * 1_000_000,
        relay_mac: topology.relay_mac,
        active_set: ActiveSet::default()
            .with_hands_on(config.hands_on())
            .with_zones(config.gateway.zones.told()),
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
    PINNED.iter().try_for_each(|name| pin_program(ebpf, name, &directory.join(program_pin(name))))
}

/// Pins one program.
pub(super) fn pin_program(ebpf: &mut Ebpf, name: &str, path: &Path) -> Result<(), GatewayError> {
    let program = ebpf.program_mut(name).expect("load_object has loaded the programs");
    program.pin(path).map_err(GatewayError::bpf(format!("pin the program {name}")))
}
