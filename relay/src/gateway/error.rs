//! What can go wrong with a gateway, told to the operator.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::gateway::finding::Finding;

/// Names the eBPF object, instead of those that are looked for.
pub(super) const OBJECT_VARIABLE: &str = "MILLRACE_BPF_OBJECT";

/// Why the gateway could not be loaded, unloaded, inspected or used.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Not root.
    #[error("{action} uses network devices and BPF objects, which needs root: run it with sudo")]
    NotRoot {
        /// What was asked for.
        action: &'static str,
    },
    /// The kernel is too old, or was built without something.
    #[error("Linux {release} lacks what Millrace needs: {lacking}; {remedy}")]
    Kernel {
        /// As `uname -r` says it.
        release: String,
        /// What is lacking, and since when the kernel has had it.
        lacking: String,
        /// What to do.
        remedy: String,
    },
    /// No eBPF object anywhere.
    #[error(
        "no eBPF object: looked for {}; build it with `cargo xtask build-ebpf` or name it in {}",
        list(searched),
        OBJECT_VARIABLE
    )]
    NoObject {
        /// Where.
        searched: Vec<PathBuf>,
    },
    /// The eBPF object is not one of ours.
    #[error("{path} is not a usable eBPF object of Millrace: {problem}")]
    BadObject {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Loader and programs of different versions.
    #[error(
        "{what} has ABI version {found}, but this executable has {ours}; use the same version of \
         both (`relay unload` with the old executable, `relay load` with the new one)"
    )]
    AbiMismatch {
        /// The object file or the loaded instance.
        what: String,
        /// Its version.
        found: u32,
        /// [`millrace_common::abi::ABI_VERSION`].
        ours: u32,
    },
    /// There is one.
    #[error(
        "instance `{instance}` is already loaded; inspect it with `relay status`, remove it with \
         `relay unload`"
    )]
    AlreadyLoaded {
        /// Its name.
        instance: String,
    },
    /// There is none.
    #[error("instance `{instance}` is not loaded; load it with `relay load`")]
    NotLoaded {
        /// Its name.
        instance: String,
    },
    /// Another process changes what is loaded, or keeps others from it.
    #[error("/run/millrace is locked by {holder}; wait until it ends, or end it, then try again")]
    Locked {
        /// Which process.
        holder: String,
    },
    /// There is none to unload.
    #[error(
        "instance `{instance}` is not loaded, so nothing is to be unloaded; {}",
        loaded_names(.loaded)
    )]
    NothingToUnload {
        /// Its name.
        instance: String,
        /// Those that are loaded.
        loaded: Vec<String>,
    },
    /// It was loaded for services that hand no connection on.
    #[error(
        "instance `{instance}` was loaded when none of its services handed connections on; unload \
         it, then load it again"
    )]
    HandsNothingOn {
        /// Its name.
        instance: String,
    },
    /// Something of somebody else's has a name that this instance needs.
    #[error(
        "{what} exists and was not made by `relay load`; remove it, or choose another \
         gateway.instance"
    )]
    NameTaken {
        /// What.
        what: String,
    },
    /// The host or a device stands in the way.
    #[error("{}", joined(.0))]
    Unfit(Vec<Finding>),
    /// Another tracer is at work.
    #[error(
        "instance `{instance}` is already being traced, and only one trace at a time is possible: \
         end the other `relay trace`"
    )]
    AlreadyTraced {
        /// Its name.
        instance: String,
    },
    /// Somebody has removed a pin.
    #[error(
        "the pin {path} is missing, so the instance is damaged; remove the rest of it with `relay \
         unload`, then use `relay load`"
    )]
    PinMissing {
        /// Which.
        path: PathBuf,
    },
    /// Attaching failed for another reason.
    #[error("cannot attach XDP program `{program}` to device `{device}`: {reason}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The device.
        device: String,
        /// The kernel's answer.
        reason: String,
    },
    /// The kernel refused the object.
    #[error("the kernel refused {what} of {path}: {reason}")]
    Refused {
        /// Program or maps.
        what: String,
        /// The object file.
        path: PathBuf,
        /// The kernel's answer.
        reason: String,
    },
    /// The BPF file system cannot be mounted.
    #[error(
        "cannot mount the BPF file system, which keeps the programs, on {path}: {source}; this \
         needs CAP_SYS_ADMIN: run `mount -t bpf bpf {path}` as the host's root, then load again"
    )]
    NoBpffs {
        /// Where it belongs.
        path: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The host does not forward IPv6.
    #[error(
        "there are rules for IPv6, but this host does not forward IPv6, so it is not a gateway \
         for it; turn forwarding on with `sysctl -w net.ipv6.conf.all.forwarding=1`"
    )]
    NoIpv6Forwarding,
    /// Lines of rules that are wrong.
    #[error("{}\nnothing was changed", places(mistakes))]
    Rules {
        /// Each with its place.
        mistakes: Vec<RuleMistake>,
    },
    /// A device of which rules in force speak is not to be loaded any more.
    #[error(
        "the rules in force name {device}, which gateway.devices does not have any more: take it out of \
         the rules first, and run `relay rules apply`"
    )]
    DeviceHasRules {
        /// Its name.
        device: String,
    },
    /// More rules than may be.
    #[error("{count} {what} are more than the {limit} that the gateway can hold; merge prefixes")]
    TooManyRules {
        /// Of what there are too many.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// [`millrace_common::abi::MAX_RULES`] or the like.
        limit: u32,
    },
    /// The rules have too many combinations of ports and prefixes.
    #[error(
        "the rules have more than {limit} combinations of ports and prefixes, because a rule \
         counts once for each different set of rules that covers its ports; use fewer prefixes \
         for wide ranges of ports, or the same ranges of ports for all prefixes"
    )]
    RulesTooLarge {
        /// [`millrace_common::abi::MAX_SET_ENTRIES`].
        limit: u32,
    },
    /// The kernel has no memory for the rules.
    #[error("the kernel has no room for the rules; the former rules stay in force")]
    RulesFull,
    /// No way to know when the programs have ended that use the former rules.
    #[error(
        "this kernel cannot wait for running programs (membarrier(2) has no \
         MEMBARRIER_CMD_GLOBAL: the kernel was built without it, or runs with nohz_full), so \
         rules cannot be replaced; boot without nohz_full"
    )]
    NoGracePeriod,
    /// More devices than the map holds.
    #[error("{devices} devices are more than the {limit} that the gateway can hold")]
    TooManyDevices {
        /// Devices in the configuration.
        devices: usize,
        /// [`millrace_common::abi::MAX_CLIENT_LINKS`].
        limit: u32,
    },
    /// Two client-facing devices have one place in a map.
    #[error(
        "the interface index of {device} differs from that of another device in `gateway.devices` \
         by a multiple of 65536, and so the programs cannot tell them apart; make {device} anew"
    )]
    DeviceSlot {
        /// The second of them.
        device: String,
    },
    /// The configuration leaves it to the operator.
    #[error("gateway.reattach is false; attach it with `relay load --replace`")]
    NotReattached,
    /// No file leads to the namespace of the gateway's devices.
    #[error(
        "the network namespace of the gateway's devices cannot be found: it is not the relay's own, not \
         that of process 1, and has no name in /run/netns; run `relay run` in it, or name it with `ip \
         netns attach NAME PROCESS-ID`"
    )]
    NamespaceHidden,
    /// Not an Ethernet device.
    #[error("{device} has no hardware address: the programs divert Ethernet frames only")]
    NoHardwareAddress {
        /// The device.
        device: String,
    },
    /// A tool is missing.
    #[error("`{tool}` cannot be run ({source}); install it with `apt-get install {package}`")]
    NoTool {
        /// The command.
        tool: String,
        /// Debian's package.
        package: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A command failed.
    #[error("`{command}` failed: {output}")]
    Command {
        /// With its arguments.
        command: String,
        /// What it said.
        output: String,
    },
    /// The program behind `egress` cannot be attached.
    #[error(
        "`{command}` failed: {output}; this needs a kernel with CONFIG_NET_SCH_INGRESS and \
         CONFIG_NET_CLS_BPF, or their modules: `modprobe -a sch_ingress cls_bpf`"
    )]
    TrafficControl {
        /// With its arguments.
        command: String,
        /// What it said.
        output: String,
    },
    /// A file or system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, and on what.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A map or a pin failed.
    #[error("cannot {what}: {reason}")]
    Bpf {
        /// What was tried, and on what.
        what: String,
        /// The kernel's answer.
        reason: String,
    },
    /// A file of ours is damaged.
    #[error("{path} is damaged: {problem}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl GatewayError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }

    /// A short name for programs, of what can stand in a load's way.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::AlreadyLoaded { .. } => "already_loaded",
            Self::NameTaken { .. } => "name_taken",
            Self::NoObject { .. } => "no_object",
            Self::BadObject { .. } => "bad_object",
            Self::AbiMismatch { .. } => "abi_mismatch",
            Self::Kernel { .. } => "kernel",
            Self::NoIpv6Forwarding => "no_ipv6_forwarding",
            Self::NoGracePeriod => "no_grace_period",
            Self::Rules { .. } => "rules",
            Self::DeviceHasRules { .. } => "device_has_rules",
            Self::TooManyRules { .. } => "too_many_rules",
            Self::TooManyDevices { .. } => "too_many_devices",
            _ => "other",
        }
    }

    pub(super) fn unfit(finding: Finding) -> Self {
        Self::Unfit(vec![finding])
    }

    pub(super) fn bpf<E: Error>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |error| Self::Bpf { what: what.into(), reason: causes(&error) }
    }
}

/// A line of the rules that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleMistake {
    /// `FILE:LINE`, or the service.
    pub place: String,
    /// What is wrong, and what is allowed.
    pub reason: String,
}

impl std::fmt::Display for RuleMistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

fn loaded_names(loaded: &[String]) -> String {
    if loaded.is_empty() {
        return "no instance is loaded on this host".to_owned();
    }
    let names: Vec<_> = loaded.iter().map(|name| format!("`{name}`")).collect();
    format!(
        "loaded here: {}. Name the configuration (--config) whose gateway.instance is the one that you \
         mean",
        names.join(", ")
    )
}

fn places(mistakes: &[RuleMistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Why a flow could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// The table of accepted flows is full.
    #[error("the table of accepted flows is full ({limit} flows); the connection must be refused")]
    Full {
        /// [`millrace_common::abi::MAX_ESTABLISHED`].
        limit: u32,
    },
    /// The kernel refused.
    #[error("cannot update the flow table: {reason}")]
    Map {
        /// The kernel's answer.
        reason: String,
    },
}

/// Most lines of an error; the verifier says thousands about a program.
const MOST_LINES: usize = 20;

/// An error and its causes: the libraries below keep the kernel's answer in the cause.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    shortened(&text)
}

/// The first line, and the last ones: what the verifier refuses stands at its end.
fn shortened(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let Some(out) = lines.len().checked_sub(MOST_LINES).filter(|out| *out > 0) else {
        return text.to_owned();
    };
    tracing::debug!("{text}");
    let (first, last) = (lines[0], lines[1 + out..].join("\n"));
    format!("{first}\n… {out} lines left out; RUST_LOG=debug shows them …\n{last}")
}

/// The kernel's error number somewhere among the causes.
pub(super) fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.raw_os_error();
        }
        cause = error.source();
    }
    None
}

fn joined(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_answer_the_beginning_and_the_end_are_told() {
        let lines = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&lines(MOST_LINES)), lines(MOST_LINES));
        let told = shortened(&lines(2000));
        assert_eq!(told.lines().count(), MOST_LINES + 1);
        assert!(told.starts_with("0\n… 1980 lines") && told.ends_with("\n1999"), "{told}");
    }
}
