//! `status`: what is loaded, and what it has done.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use aya::maps::{Array, Map, MapError, PerCpuArray};
use millrace_common::abi::{self, GatewayConfig, map};
use millrace_common::verdict::Verdict;
use serde::Serialize;

use crate::config::{Config, Mode, Zones};
use crate::gateway::attached::{DeviceStatus, ProgramStatus, programs};
use crate::gateway::rules::in_force::InForce;

use super::coalesce;
use super::diversion::{Diversion, Evidence, PathEvidence};
use super::error::GatewayError;
use super::flows::{Established, open_pending};
use super::heartbeat::monotonic_ns;
use super::losses::Lost;
use super::reverse_path::{self, Surroundings};
use super::rtnetlink::Link;

use super::state::{self, State};
use super::sysctls::{self, SysctlStatus};
use super::{heartbeat_timeout_difference, open_map, read_config, zones_difference};

/// Rules that the text shows; a gateway may have thousands.
const SHOWN_RULES: usize = 10;

/// What is loaded, and what it has done. Numbers are since `load`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The instance.
    pub instance: String,
    /// [`millrace_common::abi::ABI_VERSION`] of the loader.
    pub abi_version: u32,
    /// Client-facing devices.
    pub devices: Vec<DeviceStatus>,
    /// The loaded programs, by name.
    pub programs: BTreeMap<&'static str, ProgramStatus>,
    /// What tells apart networks whose addresses may overlap.
    pub zones: Zones,
    /// That of the configuration, if it is another one: the former counts.
    pub configured_zones: Option<Zones>,
    /// `gateway.mode` of the configuration, if it is another one than that in force.
    pub configured_mode: Option<Mode>,
    /// Steering rules, as `relay rules show` has them.
    pub rules: InForce,
    /// Packets by verdict, all processors together.
    pub verdicts: BTreeMap<&'static str, u64>,
    /// Settings of the relay namespace.
    pub namespace: NamespaceStatus,
    /// The relay's sign of life.
    pub relay: RelayStatus,
    /// What became of diverted packets.
    pub diversion: Evidence,
    /// Flows in `PENDING`: begun and not accepted, accepted, or closed a while ago.
    pub pending: u64,
    /// Flows that the relay has accepted and not closed.
    pub established: u64,
}

/// Settings of the relay namespace.
#[derive(Debug, Serialize)]
pub struct NamespaceStatus {
    /// How long its end of the veth collects packets. Microseconds; 0: it does not.
    pub coalesce_us: u32,
    /// That of the configuration, if it is another one: the former counts.
    pub configured_coalesce_us: Option<u32>,
    /// Those of `gateway.sysctls`.
    pub sysctls: Vec<SysctlStatus>,
}

/// The relay's sign of life, as the programs see it.
#[derive(Clone, Debug, Serialize)]
pub struct RelayStatus {
    /// Whether new connections are offered to it.
    pub alive: bool,
    /// Whether it has as many connections as it may have, or cannot accept more: new ones pass.
    pub full: bool,
    /// Whether nothing that is diverted arrives there: new connections pass.
    pub cut: bool,
    /// Since all of its workers have last gone round their loop, as far as it was told; absent if there
    /// is no relay, or it says itself that new connections should not come: it has stopped in good
    /// order, or a worker hangs.
    pub heartbeat_age_ms: Option<u64>,
    /// From this age on the relay counts as dead.
    pub heartbeat_timeout_ms: u64,
    /// That of the configuration, if it is another one: the former counts.
    pub configured_heartbeat_timeout_ms: Option<u64>,
    /// The last run of the relay; 0 before the first.
    pub generation: u64,
}

/// Inspects a loaded instance.
pub fn status(config: &Config) -> Result<Status, GatewayError> {
    super::require_root("`relay status`")?;
    let state = State::of_loaded(config)?;
    let pins = &state.pin_directory;
    let value = read_config(config, pins)?;
    let surroundings = Surroundings::read()?;
    let (zones, configured) = (Zones::of(value.active_set.zones()), config.gateway.zones);
    let rules = state::read_rules(config)?;
    Ok(Status {
        instance: state.instance.clone(),
        abi_version: value.abi_version,
        devices: state
            .numbered()
            .map(|(number, name)| DeviceStatus::of(config, &surroundings, pins, number, name))
            .collect::<Result<_, GatewayError>>()?,
        programs: programs(pins)?,
        zones,
        configured_zones: (configured != zones).then_some(configured),
        configured_mode: (config.gateway.mode != rules.mode).then_some(config.gateway.mode),
        rules,
        verdicts: verdicts(pins)?,
        namespace: namespace(config)?,
        relay: relay(config, pins, &value)?,
        diversion: Diversion::open(pins, &config.namespace())?.look()?,
        pending: count(open_pending(pins)?.iter())?,
        established: count(Established::open(pins)?.iter())?,
    })
}

fn namespace(config: &Config) -> Result<NamespaceStatus, GatewayError> {
    let (coalesce_us, configured) = (coalesce::in_force(config)?, config.gateway.coalesce_us);
    Ok(NamespaceStatus {
        coalesce_us,
        configured_coalesce_us: (configured != coalesce_us).then_some(configured),
        sysctls: sysctls::status(config)?,
    })
}

pub(super) fn verdicts(pins: &Path) -> Result<BTreeMap<&'static str, u64>, GatewayError> {
    let failed = || GatewayError::bpf::<MapError>(format!("read the map {}", map::COUNTERS));
    let counters: PerCpuArray<_, u64> =
        PerCpuArray::try_from(Map::PerCpuArray(open_map(pins, map::COUNTERS)?)).map_err(failed())?;
    Verdict::ALL
        .iter()
        .map(|verdict| {
            let values = counters.get(&(*verdict as u32), 0).map_err(failed())?;
            Ok((verdict.name(), values.iter().sum()))
        })
        .collect()
}

pub(super) fn relay(
    config: &Config,
    pins: &Path,
    value: &GatewayConfig,
) -> Result<RelayStatus, GatewayError> {
    let failed = || GatewayError::bpf::<MapError>(format!("read the map {}", map::HEARTBEAT));
    let heartbeat: Array<_, abi::Heartbeat> =
        Array::try_from(Map::Array(open_map(pins, map::HEARTBEAT)?)).map_err(failed())?;
    let abi::Heartbeat { stamp_ns, generation, intake } = heartbeat.get(&0, 0).map_err(failed())?;
    let configured_ms = u64::from(config.gateway.heartbeat_timeout_ms);
    let loaded_ms = value.heartbeat_timeout_ns / 1_000_000;
    let age_ns = (stamp_ns != 0).then(|| monotonic_ns().saturating_sub(stamp_ns));
    Ok(RelayStatus {
        alive: age_ns.is_some_and(|age| age < value.heartbeat_timeout_ns),
        heartbeat_age_ms: age_ns.map(|age| age / 1_000_000),
        full: intake.has(abi::Intake::FULL),
        cut: intake.has(abi::Intake::CUT),
        heartbeat_timeout_ms: loaded_ms,
        configured_heartbeat_timeout_ms: (configured_ms != loaded_ms).then_some(configured_ms),
        generation,
    })
}

/// While flows come and go an iteration may meet one twice: an estimate, bounded by the table.
fn count<T>(mut flows: impl Iterator<Item = Result<T, MapError>>) -> Result<u64, GatewayError> {
    flows
        .try_fold(0, |count, flow| flow.map(|_| count + 1))
        .map_err(GatewayError::bpf("count the flows"))
}

impl Status {
    /// What is not as it should be on a device.
    fn warn(&self, device: &DeviceStatus, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceStatus { name, program, program_id, .. } = device;
        if device.mode == "generic" {
            writeln!(f, "  SLOW       {name} runs in generic mode; see `relay load --check`")?;
        }
        if let Some(other) = &device.other_program {
            return writeln!(f, "  FOREIGN    nothing is diverted from {name}: {other}");
        }
        if device.mode == "none" && program_id.is_some() {
            return writeln!(
                f,
                "  GONE       nothing is diverted from {name}: the device of this name is not the \
                 one that was loaded; a running relay attaches it, or says why not (DETACHED); so \
                 does `relay load --replace`"
            );
        }
        if let (Some(now), Some(known)) = (device.hardware_address, device.known_address)
            && now != known
        {
            writeln!(
                f,
                "  ADDRESS    nothing is diverted from {name}: its hardware address was {known} and \
                 is {now} now; a running relay follows within a second, `relay rules apply` at once"
            )?;
        }
        if let (Some(now), Some(wanted)) = (device.reverse_path, &device.wanted_reverse_path)
            && now != reverse_path::name(wanted.mode)
        {
            writeln!(
                f,
                "  SOURCES    what comes in by {name} is checked by reverse path {now}, and would be by \
                 {wanted}: `relay rules apply` puts that into force"
            )?;
        }
        match (self.programs.get("ingress"), program_id) {
            (_, None) => writeln!(
                f,
                "  MISSING    nothing is diverted from {name}: its link is gone; if the device is there, \
                 fix it with `relay load --replace`"
            ),
            (Some(ingress), Some(_)) if !device.is_right(ingress) => writeln!(
                f,
                "  REPLACED   {name} runs `{}`, as it does while `relay trace` runs; if a trace \
                 was killed, fix it with `relay load --replace`",
                program.as_deref().unwrap_or("another program")
            ),
            _ => Ok(()),
        }
    }
}

impl Status {
    /// Whether what is diverted is answered.
    fn write_diversion(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let evidence = &self.diversion;
        if self.relay.full {
            writeln!(
                f,
                "  FULL       the relay has as many connections as it may have, or cannot accept more: \
                 new ones take the ordinary path; see `relay.max_connections` and the log"
            )?;
        }
        if self.relay.cut {
            writeln!(
                f,
                "  CUT        nothing that is diverted arrives at the relay, and new connections take \
                 the ordinary path: {}",
                evidence.cause_of_loss()
            )?;
        }
        for path in evidence.paths.iter().filter(|path| path.closed) {
            writeln!(
                f,
                "  SILENT     no client of {} gets an answer, and new connections take the ordinary \
                 path there; the relay's log has the cause",
                path.name()
            )?;
        }
        let Evidence { diverted, received, forwarded, left_to_stack, .. } = evidence;
        writeln!(
            f,
            "diversion    {diverted} packets diverted, {received} received by the relay's device ({} \
             lost or on their way); {forwarded} packets of the relay redirected, {left_to_stack} left to \
             the host's stack",
            evidence.lost()
        )?;
        for Link { name, sent, send_dropped, .. } in &evidence.devices {
            writeln!(f, "  {name:<22} has sent {sent} packets, and dropped {send_dropped}")?;
        }
        for lost in &evidence.losses {
            let whose = if lost.to_relay { "for the relay" } else { "of the relay" };
            let device = lost.device.as_deref().unwrap_or("a device that is gone");
            let Lost { packets, error, .. } = lost;
            writeln!(
                f,
                "  LOST       {device} did not take {packets} packets {whose} ({error}): {}",
                lost.cause()
            )?;
        }
        if !evidence.uncounted.is_empty() {
            writeln!(
                f,
                "  UNCOUNTED  packets that the kernel drops after a redirect are counted in the totals \
                 alone, not by reason: no program is attached to {}; `relay load --replace` tries it \
                 again and says why not",
                evidence.uncounted.join(" and ")
            )?;
        }
        for path in &evidence.paths {
            let PathEvidence { answered, repeated, in_vain, .. } = path;
            if answered + repeated + in_vain > 0 {
                writeln!(
                    f,
                    "  {:<22} {answered} handshakes answered; {repeated} SYNs sent again, {in_vain} \
                     passed in the end",
                    path.name()
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for NamespaceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const REMEDY: &str = "`relay load --replace` puts that into force";
        if self.coalesce_us > 0 {
            writeln!(f, "coalesce     for {} µs", self.coalesce_us)?;
        }
        if let Some(configured) = self.configured_coalesce_us {
            writeln!(
                f,
                "  COALESCE   packets for the relay are collected for {} µs, and gateway.coalesce_us is \
                 {configured}: {REMEDY}",
                self.coalesce_us
            )?;
        }
        for SysctlStatus { name, now, configured } in &self.sysctls {
            let now = now.as_deref().unwrap_or("not there");
            writeln!(f, "sysctl       {name} = {now}")?;
            match configured.as_deref() {
                None => {}
                Some("") => writeln!(
                    f,
                    "  SYSCTLS    {name} is not in gateway.sysctls any more: `relay load --replace` undoes it"
                )?,
                Some(value) => writeln!(
                    f,
                    "  SYSCTLS    {name} is {now}, and gateway.sysctls says {value}: {REMEDY}"
                )?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "instance     {} (ABI version {})", self.instance, self.abi_version)?;
        for device in &self.devices {
            let program = device
                .program_id
                .map_or_else(|| "no program".to_owned(), |id| format!("program {id}"));
            let answers = match device.redirects_answers {
                Some(true) => ", answers redirected",
                Some(false) => ", answers by the host's stack",
                None => "",
            };
            let (name, mode) = (&device.name, device.mode);
            let check = device.reverse_path.map(|check| format!(", reverse path {check}"));
            let check = check.unwrap_or_default();
            writeln!(f, "device       {name}: {mode}, {program}{answers}{check}")?;
            self.warn(device, f)?;
        }
        for (name, program) in &self.programs {
            writeln!(f, "program      {name}: {program}")?;
        }
        if self.zones != Zones::One {
            writeln!(f, "zones        by {}", self.zones.name())?;
        }
        if let Some(configured) = self.configured_zones {
            writeln!(f, "  ZONES      {}", zones_difference(configured, self.zones))?;
        }
        write!(f, "{}", self.namespace)?;
        let InForce { source, mode, rules, .. } = &self.rules;
        writeln!(f, "rules        {} of {source}, mode {}", rules.len(), mode.name())?;
        if let Some(configured) = self.configured_mode {
            let configured = configured.name();
            writeln!(
                f,
                "  MODE       gateway.mode is \"{configured}\" in the configuration, which `relay rules \
                 apply` puts into force"
            )?;
        }
        for rule in rules.iter().take(SHOWN_RULES) {
            writeln!(f, "rule         {rule}")?;
        }
        if rules.len() > SHOWN_RULES {
            writeln!(f, "rule         … `relay rules show` has all")?;
        }
        let relay = &self.relay;
        match relay.heartbeat_age_ms {
            None => writeln!(
                f,
                "relay        none, or it does not serve; new connections take the ordinary path"
            )?,
            Some(age) if relay.alive => writeln!(
                f,
                "relay        alive, last beat {age} ms ago (timeout {} ms), generation {}",
                relay.heartbeat_timeout_ms, relay.generation
            )?,
            Some(age) => writeln!(
                f,
                "relay        dead, last beat {age} ms ago (timeout {} ms); new connections take \
                 the ordinary path",
                relay.heartbeat_timeout_ms
            )?,
        }
        if let Some(configured_ms) = relay.configured_heartbeat_timeout_ms {
            let loaded_ms = relay.heartbeat_timeout_ms;
            let difference = heartbeat_timeout_difference(configured_ms, loaded_ms);
            writeln!(f, "  TIMEOUT    {difference}")?;
        }
        self.write_diversion(f)?;
        writeln!(f, "flows        {} established, {} pending", self.established, self.pending)?;
        write!(f, "packets")?;
        let seen: Vec<_> = self.verdicts.iter().filter(|(_, packets)| **packets > 0).collect();
        if seen.is_empty() {
            return write!(f, "      none yet");
        }
        for (name, packets) in seen {
            write!(f, "\n  {name:<22} {packets}")?;
        }
        Ok(())
    }
}
