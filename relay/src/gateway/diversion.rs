//! What becomes of diverted packets, as programs and kernel count it: whoever wants to prove that they
//! are answered compares these.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::xdp::DevMap;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use millrace_common::abi::{self, Offers, map};
use millrace_common::verdict::Verdict;
use serde::Serialize;

use super::error::{GatewayError, errno};
use super::losses::{self, Lost};
use super::rtnetlink::{Link, Links};
use super::topology::RELAY_DEVICE;
use super::{open_map, unusable};

/// A handle on these counters, and on what closes paths.
pub struct Diversion {
    links: Links,
    gateway_ifindex: u32,
    counters: PerCpuArray<MapData, u64>,
    offers: HashMap<MapData, abi::Path, Offers>,
    closed: HashMap<MapData, abi::Path, u32>,
    losses: losses::Counters,
}

/// The counters, all since `load`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Evidence {
    /// Packets that the programs have aimed at the relay's device.
    pub diverted: u64,
    /// Packets that it has received; read after those. The rest was lost on the way, or is on it.
    pub received: u64,
    /// Packets of the relay that the programs have aimed at client-facing devices.
    pub forwarded: u64,
    /// Packets of the relay that were left to the host's stack.
    pub left_to_stack: u64,
    /// The link to the relay, its end in the gateway; null if it is gone.
    pub link: Option<Link>,
    /// Its end in the relay namespace.
    pub relays: Option<Link>,
    /// The client-facing devices that are there.
    pub devices: Vec<Link>,
    /// The ways to clients and back.
    pub paths: Vec<PathEvidence>,
    /// Packets that were lost where the programs had aimed them, by device and reason.
    pub losses: Vec<Lost>,
    /// Tracepoints at which losses are not counted, because the kernel lets no program be attached.
    pub uncounted: Vec<&'static str>,
}

/// A way to clients and back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathEvidence {
    /// Index of the client-facing device.
    pub ifindex: u32,
    /// Its name; null if it is gone.
    pub device: Option<String>,
    /// 4 or 6.
    pub family: u32,
    /// Whether new connections pass there, because nothing is answered.
    pub closed: bool,
    /// Flows whose clients have answered the relay's answer.
    pub answered: u64,
    /// SYNs that were sent again, because nothing was answered, and diverted again.
    pub repeated: u64,
    /// SYNs that were sent again for too long, and passed.
    pub in_vain: u64,
    /// How often such a SYN came from another source than the one before.
    pub sources: u64,
}

impl PathEvidence {
    /// As the maps key it.
    pub const fn key(&self) -> abi::Path {
        abi::Path { ifindex: self.ifindex, family: self.family }
    }

    /// For people.
    pub fn name(&self) -> String {
        let device = self.device.as_deref().unwrap_or("a device that is gone");
        format!("IPv{} on {device}", self.family)
    }
}

impl Diversion {
    pub(super) fn open(pins: &Path, namespace: &Path) -> Result<Self, GatewayError> {
        let open = |name| open_map(pins, name);
        let link = DevMap::try_from(Map::DevMap(open(map::RELAY_LINK)?))
            .and_then(|map| map.get(0, 0))
            .map_err(unusable(map::RELAY_LINK))?;
        Ok(Self {
            links: Links::open(namespace)?,
            gateway_ifindex: link.if_index,
            counters: PerCpuArray::try_from(Map::PerCpuArray(open(map::COUNTERS)?))
                .map_err(unusable(map::COUNTERS))?,
            offers: HashMap::try_from(Map::HashMap(open(map::OFFERS)?))
                .map_err(unusable(map::OFFERS))?,
            closed: HashMap::try_from(Map::HashMap(open(map::CLOSED_PATHS)?))
                .map_err(unusable(map::CLOSED_PATHS))?,
            losses: losses::Counters::open(pins)?,
        })
    }

    /// Reads them.
    pub fn look(&self) -> Result<Evidence, GatewayError> {
        // In this order: what was diverted may not have been received yet.
        let diverted = self.packets(Verdict::is_diversion)?;
        let mut evidence = Evidence {
            diverted,
            forwarded: self.packets(|verdict| verdict == Verdict::ReturnForwarded)?,
            left_to_stack: self.packets(Verdict::leaves_answer_to_stack)?,
            relays: self.links.relays(RELAY_DEVICE)?,
            losses: self.losses.read(self.gateway_ifindex)?,
            uncounted: self.losses.uncounted.clone(),
            ..Evidence::default()
        };
        let mut devices = BTreeMap::new();
        for entry in &self.offers {
            let (path, offers) = entry.map_err(failed(map::OFFERS))?;
            let Offers { answered, repeated, in_vain, sources, .. } = offers;
            let abi::Path { ifindex, family } = path;
            devices.insert(ifindex, None);
            let closed = match self.closed.get(&path, 0) {
                Ok(_) => true,
                Err(MapError::KeyNotFound) => false,
                Err(error) => return Err(failed(map::CLOSED_PATHS)(error)),
            };
            evidence.paths.push(PathEvidence {
                ifindex,
                device: None,
                family,
                closed,
                answered,
                repeated,
                in_vain,
                sources,
            });
        }
        evidence.paths.sort_by_key(PathEvidence::key);
        if let Some(relays) = &evidence.relays {
            evidence.received = relays.received;
            evidence.link = self.links.gateways(self.gateway_ifindex, relays)?;
            for (ifindex, device) in &mut devices {
                *device = self.links.gateways(*ifindex, relays)?;
            }
        }
        for path in &mut evidence.paths {
            path.device = devices[&path.ifindex].as_ref().map(|device| device.name.clone());
        }
        for lost in &mut evidence.losses {
            let device = if lost.to_relay {
                evidence.link.as_ref()
            } else {
                devices.get(&lost.ifindex).and_then(Option::as_ref)
            };
            lost.device = device.map(|device| device.name.clone());
        }
        evidence.devices = devices.into_values().flatten().collect();
        Ok(evidence)
    }

    fn packets(&self, counts: impl Fn(Verdict) -> bool) -> Result<u64, GatewayError> {
        let wanted = Verdict::ALL.iter().filter(|verdict| counts(**verdict));
        wanted
            .map(|verdict| self.counters.get(&(*verdict as u32), 0))
            .try_fold(0, |sum, values| Ok(sum + values?.iter().sum::<u64>()))
            .map_err(failed(map::COUNTERS))
    }

    /// New connections that come by this path are passed from now on, or no longer.
    pub fn set_closed(&mut self, path: abi::Path, closed: bool) -> Result<(), GatewayError> {
        if closed {
            return self.closed.insert(path, 0, 0).map_err(failed(map::CLOSED_PATHS));
        }
        match self.closed.remove(&path) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(failed(map::CLOSED_PATHS)(error)),
        }
    }
}

fn failed(name: &str) -> impl FnOnce(MapError) -> GatewayError {
    GatewayError::bpf(format!("use the map {name}"))
}

impl Evidence {
    /// Packets that were lost between the programs and the relay's device, or are on their way.
    pub const fn lost(&self) -> u64 {
        self.diverted.saturating_sub(self.received)
    }

    /// Why nothing arrives at the relay's device, as far as it can be seen, and what helps.
    pub fn cause_of_loss(&self) -> String {
        match (&self.link, &self.relays) {
            (_, None) => format!(
                "the relay namespace has no device {RELAY_DEVICE}: `relay unload` and `relay load`"
            ),
            (None, _) => "the link to the relay namespace is gone: `relay unload` and `relay load`"
                .to_owned(),
            (Some(Link { name, up: false, .. }), _) => {
                format!("{name} is down: `ip link set dev {name} up`")
            }
            (_, Some(Link { up: false, .. })) => format!(
                "{RELAY_DEVICE} in the relay namespace is down: `relay unload` and `relay load`"
            ),
            (Some(Link { name, .. }), _) => format!(
                "both ends of the link are up; does {RELAY_DEVICE} still run the program `pass` \
                 (`ip -details link`)? `relay status` shows why {name} does not take them (LOST)"
            ),
        }
    }

    /// What kept a device from taking most of the answers that it did not take since an earlier look.
    fn lost_since(&self, before: &Self, device: &str) -> Option<&Lost> {
        let grown = |lost: &Lost| {
            let same = |one: &&Lost| (one.ifindex, one.errno) == (lost.ifindex, lost.errno);
            let then = before.losses.iter().find(same).map_or(0, |one| one.packets);
            lost.packets.saturating_sub(then)
        };
        let here = |lost: &&Lost| {
            !lost.to_relay && lost.device.as_deref() == Some(device) && grown(lost) > 0
        };
        self.losses.iter().filter(here).max_by_key(|lost| grown(lost))
    }

    /// Why no client is answered on a path since an earlier look, as far as it can be seen, and what
    /// helps.
    pub fn cause_of_silence(&self, path: &PathEvidence, before: &Self) -> String {
        let device = path.device.as_deref().unwrap_or_default();
        let sent = |evidence: &Self| {
            evidence.devices.iter().find(|one| one.name == device).map(|one| one.sent)
        };
        let forwarded = self.forwarded.saturating_sub(before.forwarded);
        let left = self.left_to_stack.saturating_sub(before.left_to_stack);
        if let Some(lost) = self.lost_since(before, device) {
            return format!("{device} did not take the answers ({}): {}", lost.error, lost.cause());
        }
        if forwarded == 0 && left == 0 {
            return "the relay's stack answers nothing; see `nstat` in the relay namespace"
                .to_owned();
        }
        if left > forwarded {
            return format!(
                "{left} answers were left to the host's stack, which seems to drop them: look at its \
                 firewall (forward chain), at rp_filter, and whether the server's address is the \
                 host's own, which `pass` rules should take out"
            );
        }
        match (sent(self), sent(before)) {
            (None, _) => "the device is gone: see DETACHED in `relay status`".to_owned(),
            (Some(now), Some(then)) if now.saturating_sub(then) < forwarded => format!(
                "{device} has sent {} of {forwarded} answers that were redirected to it: it does not \
                 send what XDP hands it (on a veth: `ethtool -K PEER gro on` at its other end; `relay \
                 unload` and `relay load` have the host's stack send them)",
                now.saturating_sub(then)
            ),
            _ => format!(
                "{device} has sent the answers; they are lost behind it, or clients of a flood send \
                 SYNs again"
            ),
        }
    }
}
