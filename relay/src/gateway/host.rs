//! The host's network: namespaces, `ip`, and sysctls.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Deserialize;

use crate::config::HardwareAddress;

use super::error::GatewayError;
use super::known::Channels;

/// Told of every change to the host before it is made, in words that an operator could type.
pub type Report<'a> = &'a mut dyn FnMut(&str);

/// Runs `work` on a short-lived thread inside a network namespace. A socket made there stays there,
/// a command started there runs there; the calling thread stays where it is.
pub fn in_namespace<T: Send>(
    namespace: &Path,
    work: impl FnOnce() -> T + Send,
) -> Result<T, GatewayError> {
    inside(&open(namespace)?, work)
}

/// [`in_namespace`], with the namespace's file open.
pub(super) fn inside<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> T + Send,
) -> Result<T, GatewayError> {
    let enter = move || {
        enter(namespace)?;
        Ok(work())
    };
    std::thread::scope(|scope| match scope.spawn(enter).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Moves the calling thread into a network namespace for good: the sockets that it makes are there.
pub fn enter_namespace(namespace: &Path) -> Result<(), GatewayError> {
    enter(&open(namespace)?)
}

fn open(namespace: &Path) -> Result<File, GatewayError> {
    File::open(namespace)
        .map_err(GatewayError::io(format!("open the network namespace {}", namespace.display())))
}

fn enter(namespace: &File) -> Result<(), GatewayError> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| GatewayError::io("enter a network namespace")(error.into()))
}

/// Runs a command, quiet unless it fails, and gives its standard output.
pub(super) fn command(line: &[&str]) -> Result<String, GatewayError> {
    let (tool, arguments) = line.split_first().expect("a command has a name");
    let output = Command::new(tool).args(arguments).output().map_err(|source| {
        let package = if *tool == "ethtool" { "ethtool" } else { "iproute2" };
        GatewayError::NoTool { tool: (*tool).to_owned(), package, source }
    })?;
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        if said.is_empty() {
            said = output.status.to_string();
        }
        return Err(GatewayError::Command { command: line.join(" "), output: said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Processors that the host has, whichever of them this process may use: a frame is redirected by the
/// processor that received it. 1 where they cannot be counted.
pub(super) fn processors() -> usize {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/present").unwrap_or_default();
    highest_processor(&list).map_or(1, |highest| highest + 1)
}

/// The highest number in a list such as `0-3,8` (cpusets of cpuset(7)).
fn highest_processor(list: &str) -> Option<usize> {
    list.trim().split([',', '-']).next_back()?.parse().ok()
}

/// A network device, as `ip -json -details link` shows it.
#[derive(Debug, Deserialize)]
pub(super) struct Device {
    pub ifindex: u32,
    pub mtu: u32,
    #[serde(default)]
    pub flags: Vec<String>,
    /// Of a veth: its other end, if that is in the same network namespace.
    #[serde(default)]
    pub link: Option<String>,
    #[serde(default)]
    pub address: String,
    /// What its packets begin with: `ether`, `loopback`, `none`, …
    #[serde(default)]
    pub link_type: String,
    /// The device that it is a part of.
    #[serde(default)]
    pub master: Option<String>,
    #[serde(default)]
    pub xdp: Option<Xdp>,
    #[serde(default)]
    pub linkinfo: Option<LinkInfo>,
}

/// What is attached to a device.
#[derive(Debug, Deserialize)]
pub(super) struct Xdp {
    /// `XDP_ATTACHED_*` of `linux/if_link.h`.
    pub mode: u32,
    pub prog: Option<Program>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Program {
    pub id: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct LinkInfo {
    #[serde(default)]
    pub info_kind: Option<String>,
    /// The kind of its master.
    #[serde(default)]
    pub info_slave_kind: Option<String>,
}

/// A device and its name.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    #[serde(rename = "ifname")]
    pub name: String,
    #[serde(flatten)]
    pub device: Device,
}

impl Named {
    /// All devices of the calling thread's network namespace.
    pub(super) fn all() -> Result<Vec<Self>, GatewayError> {
        parse("ip link", &command(&["ip", "-json", "-details", "link", "show"])?)
    }
}

impl Device {
    /// Looks a device of the calling thread's network namespace up; `None` if there is none.
    pub(super) fn find(name: &str) -> Result<Option<Self>, GatewayError> {
        let answer = match command(&["ip", "-json", "-details", "link", "show", "dev", name]) {
            Err(GatewayError::Command { output, .. }) if output.contains("does not exist") => {
                return Ok(None);
            }
            answer => answer?,
        };
        Ok(parse::<Vec<Self>>("ip link", &answer)?.into_iter().next())
    }

    /// What `ip` calls its kind, if it has one.
    pub(super) fn kind(&self) -> Option<&str> {
        self.linkinfo.as_ref()?.info_kind.as_deref()
    }

    pub(super) fn is_veth(&self) -> bool {
        self.kind() == Some("veth")
    }

    /// Whether its packets begin with an Ethernet header; the loopback device's do.
    pub(super) fn is_ethernet(&self) -> bool {
        matches!(self.link_type.as_str(), "ether" | "loopback")
    }

    /// The device that it stands on: of a VLAN, a macvlan and their like.
    pub(super) fn lower(&self) -> Option<&str> {
        self.link.as_deref().filter(|_| !self.is_veth())
    }

    /// The VRF that it belongs to.
    pub(super) fn vrf(&self) -> Option<&str> {
        let kind = self.linkinfo.as_ref()?.info_slave_kind.as_deref();
        self.master.as_deref().filter(|_| kind == Some("vrf"))
    }

    /// The name of its driver, as far as it has one that says so.
    pub(super) fn driver(&self, name: &str) -> Result<String, GatewayError> {
        let answer = match command(&["ethtool", "-i", name]) {
            Err(GatewayError::Command { .. }) => String::new(),
            answer => answer?,
        };
        let driver = answer.lines().find_map(|line| line.strip_prefix("driver: "));
        Ok(driver.or(self.kind()).unwrap_or("unknown").to_owned())
    }

    /// The attached program's id.
    pub(super) fn program(&self) -> Option<u32> {
        self.xdp.as_ref()?.prog.as_ref().map(|program| program.id)
    }

    /// How it is attached, in the words of `ip link`.
    pub(super) fn mode(&self) -> &'static str {
        match self.xdp.as_ref().map(|xdp| xdp.mode) {
            None | Some(0) => "none",
            Some(1) => "native",
            Some(2) => "generic",
            Some(3) => "offload",
            Some(_) => "multiple",
        }
    }

    /// The hardware address that frames for this device have.
    pub(super) fn address(&self, name: &str) -> Result<HardwareAddress, GatewayError> {
        let missing = || GatewayError::NoHardwareAddress { device: name.to_owned() };
        self.mac().map(HardwareAddress).ok_or_else(missing)
    }

    /// The hardware address in bytes.
    pub(super) fn mac(&self) -> Option<[u8; 6]> {
        let mut bytes = [0; 6];
        let mut parts = self.address.split(':');
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        parts.next().is_none().then_some(bytes)
    }
}

/// A device's channels; `None` if its driver does not say.
pub(super) fn channels(device: &str) -> Result<Option<Channels>, GatewayError> {
    match command(&["ethtool", "-l", device]) {
        Err(GatewayError::Command { .. }) => Ok(None),
        answer => Ok(Some(parse_channels(&answer?))),
    }
}

/// What `ethtool -l` says: the most there can be, then what there is. What is `n/a`, there is not.
fn parse_channels(answer: &str) -> Channels {
    let (most, current) = answer.split_once("Current").unwrap_or((answer, ""));
    let count = |part: &str, kind: &str| {
        let value = part.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(':'));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    Channels {
        rx: count(current, "RX"),
        tx: count(current, "TX"),
        combined: count(current, "Combined"),
        most_rx: count(most, "RX"),
        most_tx: count(most, "TX"),
        most_combined: count(most, "Combined"),
    }
}

/// What a device does by itself, as `ethtool -k` shows it.
pub(super) struct Offloads(serde_json::Map<String, serde_json::Value>);

impl Offloads {
    pub(super) fn of(device: &str) -> Result<Self, GatewayError> {
        let answer = command(&["ethtool", "--json", "-k", device])?;
        let devices: Vec<_> = parse("ethtool --json -k", &answer)?;
        Ok(Self(devices.into_iter().next().unwrap_or_default()))
    }

    /// Whether a feature is there and on.
    pub(super) fn is_on(&self, feature: &str) -> bool {
        self.0.get(feature).is_some_and(|feature| feature["active"] == true)
    }
}

/// The identifier that this network namespace has for the named one, if it has one.
pub(super) fn namespace_id(name: &str) -> Result<Option<u32>, GatewayError> {
    #[derive(Deserialize)]
    struct Entry {
        name: String,
        id: Option<i64>,
    }
    let answer = command(&["ip", "-json", "netns", "list"])?;
    if answer.trim().is_empty() {
        return Ok(None);
    }
    let entries: Vec<Entry> = parse("ip netns list", &answer)?;
    Ok(entries
        .into_iter()
        .find(|entry| entry.name == name)
        .and_then(|entry| u32::try_from(entry.id?).ok()))
}

/// What a command has said in JSON.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    what: &str,
    answer: &str,
) -> Result<T, GatewayError> {
    serde_json::from_str(answer).map_err(|error| GatewayError::Command {
        command: what.to_owned(),
        output: format!("an answer that cannot be understood ({error}): {}", answer.trim()),
    })
}

/// Reads a sysctl of the calling thread's network namespace; `None` if the kernel has none such.
pub(super) fn sysctl(key: &str) -> Result<Option<String>, GatewayError> {
    match std::fs::read_to_string(sysctl_path(key)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(GatewayError::io(format!("read the sysctl {key}"))(error)),
    }
}

/// Whether the calling thread's network namespace has a sysctl.
pub(super) fn has_sysctl(key: &str) -> bool {
    sysctl_path(key).is_file()
}

/// Writes a sysctl of the calling thread's network namespace.
pub(super) fn set_sysctl(key: &str, value: &str) -> Result<(), GatewayError> {
    write_sysctl(key, value).map_err(GatewayError::io(format!("set the sysctl {key} to {value}")))
}

/// The same with the kernel's bare answer. A line, for an empty value is one too.
pub(super) fn write_sysctl(key: &str, value: &str) -> std::io::Result<()> {
    std::fs::write(sysctl_path(key), format!("{value}\n"))
}

/// `key` has slashes between its parts, as sysctl(8) allows: a device's name may contain dots.
fn sysctl_path(key: &str) -> std::path::PathBuf {
    Path::new("/proc/sys").join(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_up_to_the_highest() {
        let highest = ["0\n", "0-3\n", "0-3,8\n", "0,2-63\n"].map(highest_processor);
        assert_eq!(highest, [Some(0), Some(3), Some(8), Some(63)]);
        assert_eq!(highest_processor(""), None);
        assert!(processors() >= 1);
    }

    #[test]
    fn channels_are_read() {
        let answer = "Channel parameters for eth0:\nPre-set maximums:\nRX:\t\tn/a\nTX:\t\tn/a\n\
                      Other:\t\t1\nCombined:\t63\nCurrent hardware settings:\nRX:\t\tn/a\n\
                      TX:\t\tn/a\nOther:\t\t1\nCombined:\t8\n";
        let combined = Channels { combined: 8, most_combined: 63, ..Channels::default() };
        assert_eq!(parse_channels(answer), combined);
        let answer = "Channel parameters for eth0:\nPre-set maximums:\nRX:\t\t32\nTX:\t\t16\n\
                      Combined:\t0\nCurrent hardware settings:\nRX:\t\t4\nTX:\t\t2\nCombined:\t0\n";
        let apart = Channels { rx: 4, tx: 2, most_rx: 32, most_tx: 16, ..Channels::default() };
        assert_eq!(parse_channels(answer), apart);
    }

    /// What `ip` says of a member of a VRF, of a bridge's port, and of a tun device.
    #[test]
    fn devices_that_need_care_are_recognised() {
        let device = |rest: &str| {
            parse::<Device>("ip link", &format!("{{\"ifindex\":2,\"mtu\":1500,{rest}}}")).unwrap()
        };
        let member = device(
            "\"link_type\":\"ether\",\"master\":\"red\",\"linkinfo\":{\"info_slave_kind\":\"vrf\"}",
        );
        assert_eq!((member.vrf(), member.is_ethernet()), (Some("red"), true));
        let port = device(
            "\"link_type\":\"ether\",\"master\":\"br0\",\"linkinfo\":{\"info_slave_kind\":\"bridge\"}",
        );
        assert_eq!(port.vrf(), None);
        let tun = device("\"link_type\":\"none\",\"linkinfo\":{\"info_kind\":\"tun\"}");
        assert!(!tun.is_ethernet());
    }
}
