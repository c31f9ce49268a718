//! Packets that were lost after the programs had aimed them at a device: counted by reason, by programs
//! on the kernel's tracepoints. A kernel that does not let them be attached costs the reasons, and
//! nothing else: `load` and `status` say so.

use std::path::Path;

use aya::Ebpf;
use aya::maps::{Array, Map, MapData, MapError, MapInfo, PerCpuHashMap};
use aya::programs::RawTracePoint;
use aya::programs::links::FdLink;
use millrace_common::abi::map;
use millrace_common::loss::{Loss, LossSetup};
use serde::Serialize;

use super::btf::{self, Structures};
use super::error::{GatewayError, causes};
use super::host::Report;
use super::links::{link_pin, pin_link};
use super::object::{map_mut, verified};
use super::state::ignore_missing;
use super::topology::RELAY_DEVICE;
use super::{open_map, unusable};

/// The programs, and the tracepoints that they are attached to, whose names their links have.
const TRACEPOINTS: [(&str, &str); 2] =
    [("refused", "xdp_redirect_err"), ("unsent", "xdp_devmap_xmit")];

/// Packets that a device did not take, for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Index of the device that they were aimed at.
    pub ifindex: u32,
    /// Its name; null if it is gone.
    pub device: Option<String>,
    /// Whether they were for the relay; if not, they were answers.
    pub to_relay: bool,
    /// The error's number; 0: none was given.
    pub errno: u32,
    /// Its name.
    pub error: String,
    /// How many, since `load`.
    pub packets: u64,
}

/// What counts them.
pub(super) struct Counters {
    losses: PerCpuHashMap<MapData, Loss, u64>,
    /// Tracepoints without a program.
    pub uncounted: Vec<&'static str>,
}

impl Counters {
    pub(super) fn open(pins: &Path) -> Result<Self, GatewayError> {
        let losses = Map::PerCpuHashMap(open_map(pins, map::LOSSES)?);
        let missing = |name: &&str| !pins.join(link_pin(name)).exists();
        Ok(Self {
            losses: PerCpuHashMap::try_from(losses).map_err(unusable(map::LOSSES))?,
            uncounted: TRACEPOINTS.iter().map(|(_, name)| *name).filter(missing).collect(),
        })
    }

    /// What they have counted, the most first.
    pub(super) fn read(&self, gateway_ifindex: u32) -> Result<Vec<Lost>, GatewayError> {
        let mut losses = self
            .losses
            .iter()
            .map(|entry| {
                let (Loss { ifindex, errno }, counts) = entry?;
                Ok(Lost {
                    ifindex,
                    device: None,
                    to_relay: ifindex == gateway_ifindex,
                    errno,
                    error: name(errno),
                    packets: counts.iter().sum(),
                })
            })
            .collect::<Result<Vec<_>, MapError>>()
            .map_err(unusable(map::LOSSES))?;
        losses.sort_by_key(|lost| std::cmp::Reverse(lost.packets));
        Ok(losses)
    }
}

/// Has losses counted from now on, if the kernel lets them be.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    pins: &Path,
    gateway_ifindex: u32,
    report: Report<'_>,
) -> Result<(), GatewayError> {
    let prepared = prepare(ebpf, pins, gateway_ifindex);
    for (name, tracepoint) in TRACEPOINTS {
        // That of a program that was replaced.
        ignore_missing(std::fs::remove_file(pins.join(link_pin(tracepoint))))
            .map_err(GatewayError::io(format!("remove the former link to {tracepoint}")))?;
        report(&format!("attach program {name} to the tracepoint {tracepoint}"));
        let started = prepared.clone().and_then(|()| start(ebpf, pins, (name, tracepoint)));
        if let Err(reason) = started {
            report(&format!(
                "costs: packets that the kernel drops after a redirect are not counted at \
                 {tracepoint}, only seen as a difference of totals: {reason}"
            ));
        }
    }
    Ok(())
}

/// Tells the programs what they must know.
fn prepare(ebpf: &mut Ebpf, pins: &Path, gateway_ifindex: u32) -> Result<(), String> {
    let setup = setup(pins, gateway_ifindex)?;
    Array::try_from(map_mut(ebpf, map::LOSS_SETUP))
        .and_then(|mut map| map.set(0, setup, 0))
        .map_err(|error| causes(&error))
}

fn start(ebpf: &mut Ebpf, pins: &Path, (name, tracepoint): (&str, &str)) -> Result<(), String> {
    let program: &mut RawTracePoint = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("the object has no program {name}"))?;
    verified(|| program.load()).map_err(|error| causes(&error))?;
    let link = program
        .attach(tracepoint)
        .and_then(|id| program.take_link(id))
        .map_err(|error| causes(&error))?;
    pin_link(FdLink::from(link), pins, tracepoint).map_err(|error| error.to_string())
}

/// What the programs must know. The thread is in the gateway's network namespace.
fn setup(pins: &Path, gateway_ifindex: u32) -> Result<LossSetup, String> {
    let id = |name| {
        let info = MapInfo::from_pin(pins.join(name)).map_err(|error| causes(&error))?;
        Ok::<_, String>(info.id())
    };
    let bytes = std::fs::read(btf::KERNEL).map_err(|error| format!("{}: {error}", btf::KERNEL))?;
    let structures = Structures::of(&bytes).ok_or("the kernel's types cannot be read")?;
    let place = |path: &[&str]| {
        structures.place(path).ok_or_else(|| format!("this kernel has no {}", path.join(".")))
    };
    let namespace = rustix::fs::stat("/proc/thread-self/ns/net").map_err(|error| error.to_string());
    Ok(LossSetup {
        relay_link: id(map::RELAY_LINK)?,
        client_links: id(map::CLIENT_LINKS)?,
        gateway_ifindex,
        // The kernel's number has 32 bits.
        namespace: u32::try_from(namespace?.st_ino).map_err(|error| error.to_string())?,
        ifindex_at: place(&["net_device", "ifindex"])?,
        net_at: place(&["net_device", "nd_net", "net"])?,
        number_at: place(&["net", "ns", "inum"])?,
    })
}

impl Lost {
    /// Why, as far as the number says it, and what helps.
    pub fn cause(&self) -> String {
        let device = self.device.as_deref().unwrap_or("a device that is gone");
        let again = "`relay unload` and `relay load`";
        match (i32::try_from(self.errno).unwrap_or(0), self.to_relay) {
            (0 | libc::ENOSPC | libc::ENOBUFS | libc::EBUSY | libc::EAGAIN, true) => {
                "its queue was full: more came at once than the relay's stack took; some in a burst \
                 are no fault, and clients send them again"
                    .to_owned()
            }
            (0 | libc::ENOSPC | libc::ENOBUFS | libc::EBUSY | libc::EAGAIN, false) => format!(
                "its queue was full; some in a burst are no fault, and are sent again: \
                 `ethtool -g {device}` shows its length"
            ),
            (libc::ENETDOWN, _) => format!("it is down: `ip link set dev {device} up`"),
            (libc::EMSGSIZE, true) => format!(
                "they were longer than its MTU, which somebody has lowered: `ip link set dev {device} \
                 mtu 65535`"
            ),
            (libc::EMSGSIZE, false) => format!(
                "they were longer than its MTU, which somebody has lowered: raise it again, or {again}"
            ),
            (libc::EOPNOTSUPP, true) => format!(
                "{RELAY_DEVICE} takes no redirected frames, or, before Linux 6.3, none in several \
                 buffers: see `relay load --check`, then {again}"
            ),
            (libc::EOPNOTSUPP, false) => format!(
                "it does not send what XDP hands it, or not in several buffers: on a veth, `ethtool \
                 -K PEER gro on` at its other end; {again} have the host's stack send it"
            ),
            (libc::ENXIO, true) => {
                format!("{RELAY_DEVICE} in the relay namespace is down, or does not poll: {again}")
            }
            (libc::ENXIO, false) => format!(
                "it has no queue for the processor, or does not poll: `ethtool -l {device}` shows its \
                 channels; on a veth, `ethtool -K PEER gro on` at its other end; {again} have the \
                 host's stack send it"
            ),
            (libc::ENODEV | libc::ENOENT | libc::EINVAL, _) => {
                "it is gone, or was made anew: see DETACHED in `relay status`".to_owned()
            }
            (number, _) => format!(
                "{}; `perf trace -e xdp:xdp_redirect_err -e xdp:xdp_devmap_xmit` shows more",
                std::io::Error::from_raw_os_error(number)
            ),
        }
    }
}

/// An error's name, of those that are known from here.
fn name(errno: u32) -> String {
    let known = [
        (0, "no error"),
        (libc::ENOENT, "ENOENT"),
        (libc::ENXIO, "ENXIO"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EBUSY, "EBUSY"),
        (libc::ENODEV, "ENODEV"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EMSGSIZE, "EMSGSIZE"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::ENETDOWN, "ENETDOWN"),
        (libc::ENOBUFS, "ENOBUFS"),
    ];
    let known = known.iter().find(|(number, _)| u32::try_from(*number) == Ok(errno));
    known.map_or_else(|| format!("error {errno}"), |(_, name)| (*name).to_owned())
}
