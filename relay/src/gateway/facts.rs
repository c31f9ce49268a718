//! What the host and its devices are, for [`mod@super::preflight`] to judge. Nothing is changed.

use std::io::ErrorKind;

use rustix::thread::{MembarrierCommand, membarrier_query};
use serde::Serialize;

use crate::config::{Config, HardwareAddress};
use crate::gateway::finding::{Finding, Severity};

use super::error::GatewayError;
use super::host::{self, Device, Named, Offloads};
use super::kernel;
use super::known::{Above, Facts, LinkFacts, Peer};
use super::links::occupant;
use super::netdev::{self, XdpFeatures};
use super::object::ObjectFile;
use super::preflight::{self, AttachMode};

use super::reverse_path::{self, SourceCheck, Surroundings};
use super::rules::RuleSet;
use super::rules::compile::Compiled;
use super::rules::place::DeviceNumbers;
use super::state::{self, State};
use super::sysctls;
use super::topology;

/// What a load would find.
#[derive(Debug, Serialize)]
pub struct Preflight {
    /// The instance.
    pub instance: String,
    /// The configured devices that are there.
    pub devices: Vec<DevicePlan>,
    /// What there is to say, what matters most first.
    pub findings: Vec<Finding>,
    /// What it was judged by.
    pub facts: Facts,
}

/// What would become of a device.
#[derive(Debug, Serialize)]
pub struct DevicePlan {
    /// Its name.
    pub name: String,
    /// Its driver, or `unknown`.
    pub driver: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// How `ingress` would be attached.
    pub mode: AttachMode,
    /// What it can do with XDP; null if the kernel is too old to say (Linux 6.3).
    pub xdp: Option<Vec<&'static str>>,
    /// How far sources would be checked on it.
    pub reverse_path: SourceCheck,
}

impl Preflight {
    /// Whether nothing stands in the way.
    pub fn passes(&self) -> bool {
        self.refusals().next().is_none()
    }

    /// What stands in the way.
    pub fn refusals(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Refuses)
    }
}

impl std::fmt::Display for Preflight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for device in &self.devices {
            let DevicePlan { name, driver, mtu, mode, xdp, reverse_path } = device;
            let xdp = match xdp.as_deref() {
                None => "not known".to_owned(),
                Some([]) => "none".to_owned(),
                Some(features) => features.join(", "),
            };
            writeln!(f, "device   {name}: driver {driver}, MTU {mtu}, XDP: {xdp}; {mode} mode")?;
            writeln!(f, "sources  {name}: reverse path {reverse_path}")?;
        }
        for Finding { severity, subject, what, remedy, .. } in &self.findings {
            write!(f, "{severity:<8} {subject}: {what}")?;
            match remedy {
                Some(remedy) => writeln!(f, ":\n             {remedy}")?,
                None => writeln!(f)?,
            }
        }
        let refusals = self.refusals().count();
        match refusals {
            0 => write!(f, "nothing prevents a load of instance `{}`", self.instance),
            _ => write!(f, "instance `{}` cannot be loaded ({refusals} reason(s))", self.instance),
        }
    }
}

/// Looks at everything that `load` would refuse or stumble over; changes nothing.
pub fn preflight(config: &Config) -> Result<Preflight, GatewayError> {
    let facts = gather(config)?;
    let policy = config.gateway.xdp;
    let mut findings = preflight::judge(&facts, policy);
    let mut loaded = loaded(config);
    let hidden = loaded.as_ref().is_err_and(is_hidden);
    if hidden {
        findings.push(Finding::instances_hidden());
        loaded = Ok(());
    }
    let names = if loaded.is_ok() && !hidden {
        topology::check_names(config)
    } else {
        // The names and the programs are the instance's own.
        findings.retain(|finding| finding.code != Finding::FOREIGN_PROGRAM);
        Ok(())
    };
    let mut unanswered = Vec::new();
    let kernel = kernel::check(&mut |answer| unanswered.push(answer.to_owned()));
    if !unanswered.is_empty() {
        let is_root = rustix::process::geteuid().is_root();
        findings.push(Finding::kernel_unanswered(is_root, &unanswered));
    }
    let obstacles = [
        loaded.err(),
        kernel.err(),
        names.err(),
        check_rules(config).err(),
        ObjectFile::find().err(),
    ];
    findings.splice(0..0, obstacles.iter().flatten().map(Finding::of_error));
    let plan = |(name, link): &(String, Option<LinkFacts>)| {
        let link = link.as_ref()?;
        Some(DevicePlan {
            name: name.clone(),
            driver: link.driver.clone(),
            mtu: link.mtu,
            mode: preflight::planned(link, policy),
            xdp: link.features.map(XdpFeatures::names),
            reverse_path: reverse_path::decide(config.gateway.reverse_path, &link.sources),
        })
    };
    Ok(Preflight {
        instance: config.gateway.instance.clone(),
        devices: facts.devices.iter().filter_map(plan).collect(),
        findings,
        facts,
    })
}

/// Whether only root could have known.
fn is_hidden(error: &GatewayError) -> bool {
    matches!(error, GatewayError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied)
}

/// Refuses rules that are wrong, too many, or for what the host does not forward.
fn check_rules(config: &Config) -> Result<(), GatewayError> {
    let rules = RuleSet::of(config)?;
    Compiled::of(&rules, &DeviceNumbers::configured(&config.gateway.devices))?;
    topology::check_forwarding(&rules)
}

/// Refuses rules that name VLANs if a device hides the tags.
pub(super) fn check_vlans(config: &Config, rules: &RuleSet) -> Result<(), GatewayError> {
    if !rules.names_vlans() {
        return Ok(());
    }
    let mut hidden = Vec::new();
    for name in &config.gateway.devices {
        if Device::find(name)?.is_some() && hides_tags(&Offloads::of(name)?) {
            hidden.push(Finding::untags(name, preflight::NAMED_BY_RULES));
        }
    }
    if hidden.is_empty() { Ok(()) } else { Err(GatewayError::Unfit(hidden)) }
}

fn hides_tags(offloads: &Offloads) -> bool {
    offloads.is_on("rx-vlan-offload")
}

/// Refuses an instance that is loaded.
pub(super) fn loaded(config: &Config) -> Result<(), GatewayError> {
    match State::read(config)? {
        Some(_) => Err(GatewayError::AlreadyLoaded { instance: config.gateway.instance.clone() }),
        None => Ok(()),
    }
}

pub(super) fn gather(config: &Config) -> Result<Facts, GatewayError> {
    let devices = config.gateway.devices.iter();
    let surroundings = Surroundings::read()?;
    let link = |name: &str, device| link(name, &device, &surroundings);
    Ok(Facts {
        forwards: host::sysctl("net/ipv4/ip_forward")?.as_deref() == Some("1"),
        page_size: page_size(),
        processors: host::processors(),
        waits_for_programs: membarrier_query().contains_command(MembarrierCommand::Global),
        bpffs: state::bpffs(),
        shared_addresses: config.gateway.shared_addresses.clone(),
        zones: config.gateway.zones,
        // Whoever loads them reads them again, and says what is wrong with them.
        rules_name_vlans: RuleSet::of(config).is_ok_and(|rules| rules.names_vlans()),
        sysctls: sysctls::try_out(&config.gateway.sysctls)?,
        devices: devices
            .map(|name| {
                Ok((name.clone(), Device::find(name)?.map(|it| link(name, it)).transpose()?))
            })
            .collect::<Result<_, GatewayError>>()?,
    })
}

/// Bytes of a page of memory.
pub(super) fn page_size() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX)
}

/// What is known of a device that is there.
fn link(
    name: &str,
    device: &Device,
    surroundings: &Surroundings,
) -> Result<LinkFacts, GatewayError> {
    let offloads = Offloads::of(name)?;
    Ok(LinkFacts {
        driver: device.driver(name)?,
        mtu: device.mtu,
        up: device.flags.iter().any(|flag| flag == "UP"),
        ethernet: device.is_ethernet(),
        vrf: device.vrf().map(str::to_owned),
        program: occupant(device),
        features: features(name, device.ifindex)?,
        channels: host::channels(name)?,
        lro: offloads.is_on("large-receive-offload"),
        gro_hw: offloads.is_on("rx-gro-hw"),
        untags: hides_tags(&offloads),
        peer: device.is_veth().then(|| peer(device)).transpose()?,
        above: above(device, &surroundings.stacked(name, device)),
        sources: surroundings.facts(name, device)?,
    })
}

/// Those on top of a device of which clients may know the gateway by another hardware address.
fn above(device: &Device, stacked: &[&Named]) -> Vec<Above> {
    let with_address = |named: &&Named| {
        let address = named.device.mac().filter(|_| named.device.is_ethernet())?;
        (named.device.mac() != device.mac()).then(|| Above {
            name: named.name.clone(),
            kind: named.device.kind().unwrap_or("device").to_owned(),
            address: HardwareAddress(address),
        })
    };
    stacked.iter().filter_map(with_address).collect()
}

/// What a device can do with XDP; `None` if the kernel is too old to say.
pub(super) fn features(name: &str, ifindex: u32) -> Result<Option<XdpFeatures>, GatewayError> {
    netdev::features(ifindex)
        .map_err(GatewayError::io(format!("query what {name} can do with XDP")))
}

fn peer(device: &Device) -> Result<Peer, GatewayError> {
    let Some(name) = &device.link else { return Ok(Peer::Elsewhere) };
    let completes_checksums = !Offloads::of(name)?.is_on("tx-checksumming");
    Ok(Peer::Here { name: name.clone(), completes_checksums })
}
