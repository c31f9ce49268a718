//! The links that hold the programs to their devices: attached by `load`, found again by their
//! pins, and given other programs without a packet in between.

use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, LinkInfo, LinkType, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, ProgramInfo, Xdp, loaded_links};
use aya_obj::programs::XdpAttachType;

use crate::config::Config;
use crate::gateway::finding::Finding;

use super::error::{GatewayError, causes, errno};
use super::host::{Device, Report, command};
use super::kernel;
use super::known::Occupant;
use super::preflight::AttachMode;

use super::state::{State, ignore_missing};
use super::topology::{self, RELAY_DEVICE};

/// A place where a program of the instance runs.
pub(super) struct Slot {
    /// Its name in the object.
    pub program: &'static str,
    /// Where.
    pub device: String,
    pin: PathBuf,
}

impl Slot {
    /// Every place of a loaded instance, in the order in which they are attached: the diversion
    /// itself last.
    pub(super) fn all(config: &Config, state: &State) -> Vec<Self> {
        let slot = |program, name: &str, device: String| Self {
            program,
            device,
            pin: state.pin_directory.join(link_pin(name)),
        };
        let mut slots = vec![
            slot("pass", "pass", RELAY_DEVICE.to_owned()),
            slot("egress", "egress", topology::gateway_device(config)),
        ];
        slots.extend(state.devices.iter().map(|device| slot("ingress", device, device.clone())));
        slots
    }

    /// The program that runs there now.
    pub(super) fn program_id(&self) -> Result<u32, GatewayError> {
        let info = self.link()?.info().map_err(GatewayError::bpf(self.failed("inspect")))?;
        Ok(info.program_id())
    }

    fn link(&self) -> Result<FdLink, GatewayError> {
        if !self.pin.exists() {
            return Err(GatewayError::unfit(Finding::device_gone(&self.device)));
        }
        let link = PinnedLink::from_pin(&self.pin);
        link.map(FdLink::from).map_err(GatewayError::bpf(self.failed("find")))
    }

    /// Puts another program there; the device runs either the one or the other all the time
    /// (`BPF_LINK_UPDATE`, bpf(2)).
    fn update(&self, program: &mut Xdp) -> Result<(), GatewayError> {
        let link =
            XdpLink::try_from(self.link()?).map_err(GatewayError::bpf(self.failed("use")))?;
        match program.attach_to_link(link) {
            Ok(_) => Ok(()),
            // The kernel keeps the link of a device that is gone, without a device.
            Err(error) if errno(&error) == Some(libc::ENOLINK) => {
                Err(GatewayError::unfit(Finding::device_gone(&self.device)))
            }
            Err(error) => Err(GatewayError::bpf(self.failed("update"))(error)),
        }
    }

    fn failed(&self, verb: &str) -> String {
        format!("{verb} the link of program {} to {}", self.program, self.device)
    }
}

/// The program that an instance's link holds on a client-facing device.
pub(super) fn linked_program(pins: &Path, device: &str) -> Result<u32, LinkError> {
    program_of(&pins.join(link_pin(device)))
}

/// The program that runs there, and whose it is.
pub(super) fn occupant(device: &Device) -> Option<Occupant> {
    device.program().map(|id| Occupant { id, link: link_of(id), instance: instance_of(id) })
}

/// The link that holds a program to a device. Only root may ask.
fn link_of(program: u32) -> Option<u32> {
    let mut links = loaded_links().filter_map(Result::ok);
    let holds = |link: &LinkInfo| {
        link.program_id() == program && link.link_type().is_ok_and(|kind| kind == LinkType::Xdp)
    };
    links.find(holds).map(|link| link.id())
}

/// The instance whose link holds a program on one of its devices.
fn instance_of(program: u32) -> Option<String> {
    let runs = |state: &State| {
        let mut devices = state.devices.iter();
        devices.any(|device| linked_program(&state.pin_directory, device).ok() == Some(program))
    };
    State::all().into_iter().find(runs).map(|state| state.instance)
}

fn program_of(pin: &Path) -> Result<u32, LinkError> {
    Ok(FdLink::from(PinnedLink::from_pin(pin)?).info()?.program_id())
}

/// One slot and the program that it shall have.
pub(super) struct Swap<'a> {
    pub slot: &'a Slot,
    pub program: Xdp,
}

/// Gives every slot its new program, or, if one cannot have it, all of them what they had.
pub(super) fn swap(swaps: Vec<Swap<'_>>, report: Report<'_>) -> Result<(), GatewayError> {
    let mut done: Vec<(&Slot, Xdp)> = Vec::new();
    for Swap { slot, mut program } in swaps {
        report(&format!("replace XDP program {} on {}", slot.program, slot.device));
        let step = present(slot).and_then(|former| slot.update(&mut program).map(|()| former));
        match step {
            Ok(former) => done.push((slot, former)),
            Err(error) => {
                report(&format!("failed: {error}; going back to the former programs"));
                for (slot, mut former) in done.into_iter().rev() {
                    if let Err(second) = slot.update(&mut former) {
                        report(&format!("could not go back: {second}"));
                    }
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Gives every slot its program whose device is there, whatever becomes of the others: what they have is
/// not what they should have. Gives the first error.
pub(super) fn put_back(swaps: Vec<Swap<'_>>, report: Report<'_>) -> Result<(), GatewayError> {
    let mut result = Ok(());
    for Swap { slot, mut program } in swaps {
        report(&format!("replace XDP program {} on {}", slot.program, slot.device));
        let Err(error) = slot.update(&mut program) else { continue };
        let is_gone = matches!(&error, GatewayError::Unfit(findings)
            if findings.iter().any(|finding| finding.code == Finding::DEVICE_GONE));
        if is_gone {
            // Its link still names the former program, for whoever attaches the device when it is back.
            report(&format!("{} is gone; rm {}", slot.device, slot.pin.display()));
            let removed = ignore_missing(std::fs::remove_file(&slot.pin));
            result = result.and(removed.map_err(GatewayError::io(slot.failed("remove"))));
        } else if result.is_ok() {
            result = Err(error);
        }
    }
    result
}

/// A handle on the program that a slot has.
fn present(slot: &Slot) -> Result<Xdp, GatewayError> {
    program(slot.program_id()?, slot.program)
}

/// A handle on a program that the kernel has.
pub(super) fn program(id: u32, name: &'static str) -> Result<Xdp, GatewayError> {
    let failed = || format!("find the program {name}");
    let info = info_of(id)
        .ok_or_else(|| GatewayError::Bpf { what: failed(), reason: format!("no program {id}") })?;
    Xdp::from_program_info(info, name.into(), XdpAttachType::Interface)
        .map_err(GatewayError::bpf(failed()))
}

/// What the kernel knows of a program.
pub(super) fn info_of(id: u32) -> Option<ProgramInfo> {
    aya::programs::loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)
}

/// Opens a pinned program.
pub(super) fn pinned_program(pin: &Path) -> Result<Xdp, GatewayError> {
    Xdp::from_pin(pin, XdpAttachType::Interface)
        .map_err(GatewayError::bpf(format!("open the program {}", pin.display())))
}

/// What the kernel knows of a pinned program.
pub(super) fn pinned_info(pin: &Path) -> Result<ProgramInfo, GatewayError> {
    ProgramInfo::from_pin(pin)
        .map_err(GatewayError::bpf(format!("inspect the program {}", pin.display())))
}

/// Name of a program's pin.
pub(super) fn program_pin(name: &str) -> String {
    format!("prog_{name}")
}

/// Name of a link's pin. A bpffs refuses dots, which device names may have; a colon they may not.
pub(super) fn link_pin(name: &str) -> String {
    format!("link_{}", name.replace('.', ":"))
}

/// Pins a link, which goes on without us then.
pub(super) fn pin_link(link: FdLink, directory: &Path, name: &str) -> Result<(), GatewayError> {
    link.pin(directory.join(link_pin(name)))
        .map(drop)
        .map_err(GatewayError::bpf(format!("pin the link to {name}")))
}

/// Attaches a program to a device. It is pinned already, in `pins`.
pub(super) fn attach(
    program: &mut Xdp,
    name: &'static str,
    (device, ifindex): (&str, u32),
    mode: AttachMode,
    pins: &Path,
) -> Result<FdLink, GatewayError> {
    let xdp_mode = match mode {
        AttachMode::Native => XdpMode::Driver,
        AttachMode::Generic => XdpMode::Skb,
    };
    let link = program.attach_to_if_index(ifindex, xdp_mode).map_err(|error| {
        let said = kernels_words(&pins.join(program_pin(name)), device, mode);
        attach_error(name, device, &error, said.as_deref())
    })?;
    program
        .take_link(link)
        .map_err(|error| causes(&error))
        .and_then(|link| {
            FdLink::try_from(link).map_err(|_| format!("no XDP link{}", kernel::hint()))
        })
        .map_err(|reason| GatewayError::Attach { program: name, device: device.to_owned(), reason })
}

/// Why the kernel refuses a program, in its own words: it gives them over netlink alone, so `ip` tries
/// the same once more. If it succeeds, the reason is gone, and so is what it has attached.
fn kernels_words(pin: &Path, device: &str, mode: AttachMode) -> Option<String> {
    let mode = match mode {
        AttachMode::Native => "xdpdrv",
        AttachMode::Generic => "xdpgeneric",
    };
    let pin = pin.to_str()?;
    match command(&["ip", "link", "set", "dev", device, mode, "pinned", pin]) {
        Ok(_) => {
            let _ = command(&["ip", "link", "set", "dev", device, mode, "off"]);
            None
        }
        Err(GatewayError::Command { output, .. }) => said(&output).map(str::to_owned),
        Err(_) => None,
    }
}

/// The extended message that `ip` shows, if there is one; else it shows what the number means.
fn said(output: &str) -> Option<&str> {
    let words = output.split("; ").find_map(|line| line.strip_prefix("Error: "))?;
    Some(words.trim_end_matches('.'))
}

/// What the kernel says of a device whose driver has nothing for XDP (`dev_xdp_attach`,
/// `net/core/dev.c`).
const NO_NATIVE_XDP: &str = "does not support XDP in native mode";

/// Tells the operator what a driver's bare error number means.
fn attach_error(
    program: &'static str,
    name: &str,
    error: &ProgramError,
    said: Option<&str>,
) -> GatewayError {
    let device = Device::find(name).ok().flatten();
    let driver = || {
        let driver = device.as_ref().and_then(|device| device.driver(name).ok());
        driver.unwrap_or_else(|| "unknown".to_owned())
    };
    let answer = || {
        let number = errno(error).map(std::io::Error::from_raw_os_error);
        let number = number.map_or_else(|| causes(error), |number| number.to_string());
        said.map_or_else(|| number.clone(), |said| format!("{said} ({number})"))
    };
    GatewayError::unfit(match errno(error) {
        Some(libc::EOPNOTSUPP) if said.is_some_and(|said| said.contains(NO_NATIVE_XDP)) => {
            Finding::no_native_xdp(name, &driver())
        }
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSPC) => {
            Finding::driver_refuses(name, &driver(), &answer())
        }
        Some(libc::ERANGE | libc::EMSGSIZE) => {
            let mtu = device.map_or(0, |device| device.mtu);
            let reason = said.unwrap_or("its driver does not run XDP programs with this MTU");
            Finding::mtu(name, mtu, reason)
        }
        Some(libc::EBUSY | libc::EEXIST) => match device.as_ref().and_then(occupant) {
            Some(occupant) => Finding::foreign_program(name, &occupant),
            None => Finding::driver_refuses(name, &driver(), &answer()),
        },
        Some(libc::ENODEV) => Finding::no_device(name),
        _ => {
            let device = name.to_owned();
            return GatewayError::Attach { program, device, reason: answer() };
        }
    })
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    fn refused(errno: i32, said: Option<&str>) -> String {
        let error = ProgramError::SyscallError(SyscallError {
            call: "bpf_link_create",
            io_error: std::io::Error::from_raw_os_error(errno),
        });
        attach_error("ingress", "no-such-device", &error, said).to_string()
    }

    /// Before, EOPNOTSUPP was always taken for a driver without XDP, and EINVAL was told bare.
    #[test]
    fn a_drivers_refusal_is_explained() {
        let none = "Underlying driver does not support XDP in native mode";
        assert!(refused(libc::EOPNOTSUPP, Some(none)).contains("has no native XDP"));
        // What bnxt does with channels that are not combined: it writes to the log alone.
        let silent = refused(libc::EOPNOTSUPP, None);
        assert!(silent.contains("as the device is set up now: Operation not supp"), "{silent}");
        assert!(silent.contains("`dmesg | tail`"), "{silent}");
        // What ena does with an MTU of 9001.
        let large = "Failed to set xdp program, the current MTU is larger than the maximum";
        let told = refused(libc::EINVAL, Some(large));
        assert!(told.contains(large) && told.contains("(Invalid argument"), "{told}");
        assert!(refused(libc::ERANGE, None).contains("does not run XDP programs with this MTU"));
        assert!(refused(libc::ENODEV, None).contains("there is no network device"));
        let other = refused(libc::ENOMEM, None);
        assert!(other.contains("`ingress`") && other.contains("Cannot allocate"), "{other}");
    }

    #[test]
    fn the_kernels_words_are_found() {
        let output = "Error: virtio_net: MTU too large to enable XDP without frags.";
        assert_eq!(said(output), Some("virtio_net: MTU too large to enable XDP without frags"));
        assert_eq!(said("RTNETLINK answers: Operation not supported"), None);
    }

    #[test]
    fn a_link_pin_has_no_dot() {
        assert_eq!(link_pin("eth1.100"), "link_eth1:100");
    }
}
