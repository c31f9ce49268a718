//! Devices with their counters, asked over rtnetlink(7): those of the relay namespace, and from there
//! those of the gateway's, which the kernel knows as the place of the veth's other end. So it does not
//! matter where the asking process runs.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use serde::Serialize;

use super::error::GatewayError;
use super::host::in_namespace;
use super::netlink::{Request, ask, attribute, malformed, socket};

const RTM_GETLINK: u16 = 18;
const RTM_GETNSID: u16 = 90;
/// `linux/if_link.h`.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_STATS64: u16 = 23;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
/// In [`IFLA_XDP`].
const IFLA_XDP_PROG_ID: u16 = 4;
/// Linux 4.16; then called `IFLA_IF_NETNSID`.
const IFLA_TARGET_NETNSID: u16 = 46;
/// `linux/if.h`.
const IFF_UP: u32 = 1;
/// Header of a link (`struct ifinfomsg`): family, type, index, flags and which of them are to change.
const LINK_HEADER: usize = 16;
/// `linux/net_namespace.h`.
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// Header of a namespace's identifier (`struct rtgenmsg`), with what it is filled up with.
const NAMESPACE_HEADER: usize = 4;

/// A device as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Whether it was brought up.
    pub up: bool,
    /// Packets received, `rx_packets` of `struct rtnl_link_stats64`; the others likewise.
    pub received: u64,
    /// Packets sent. Of most drivers: those among them that XDP has redirected there.
    pub sent: u64,
    /// Packets dropped on reception.
    pub receive_dropped: u64,
    /// Packets dropped instead of being sent.
    pub send_dropped: u64,
    /// Its index.
    #[serde(skip)]
    pub(super) ifindex: u32,
    /// Its hardware address; `None` of a device that has none, or another kind than Ethernet's.
    #[serde(skip)]
    pub(super) address: Option<[u8; 6]>,
    /// Its MTU in bytes.
    #[serde(skip)]
    mtu: u32,
    /// Index of the device that it is a part of; 0: of none.
    #[serde(skip)]
    master: u32,
    /// The kernel's id of the XDP program that it runs; 0: it runs none.
    #[serde(skip)]
    program: u32,
    /// Identifier of the namespace in which its other end is.
    #[serde(skip)]
    namespace: Option<i32>,
}

/// What can be seen of a device at a glance, and decides whether it can run a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    ifindex: u32,
    up: bool,
    address: Option<[u8; 6]>,
    mtu: u32,
    master: u32,
    program: u32,
}

impl Link {
    pub(super) const fn shape(&self) -> Shape {
        let Self { ifindex, up, address, mtu, master, program, .. } = *self;
        Shape { ifindex, up, address, mtu, master, program }
    }
}

/// A socket of the relay namespace.
#[derive(Debug)]
pub(super) struct Links(OwnedFd);

impl Links {
    pub(super) fn open(namespace: &Path) -> Result<Self, GatewayError> {
        let socket = in_namespace(namespace, || socket(None))?
            .map_err(GatewayError::io("open a netlink socket"))?;
        Ok(Self(socket))
    }

    /// A device of the relay namespace by its name.
    pub(super) fn relays(&self, name: &str) -> Result<Option<Link>, GatewayError> {
        self.ask(request(0).with(IFLA_IFNAME, &terminated(name)))
            .map_err(GatewayError::io(format!("look at {name}")))
    }

    /// A device of the gateway's namespace by its index there; `relays` is the relay's end of the veth.
    pub(super) fn gateways(
        &self,
        ifindex: u32,
        relays: &Link,
    ) -> Result<Option<Link>, GatewayError> {
        let Some(namespace) = relays.namespace else { return Ok(None) };
        self.ask(request(ifindex).with(IFLA_TARGET_NETNSID, &namespace.to_ne_bytes()))
            .map_err(GatewayError::io(format!("look at device {ifindex} of the gateway")))
    }

    /// The same by its name.
    pub(super) fn gateways_named(
        &self,
        name: &str,
        relays: &Link,
    ) -> Result<Option<Link>, GatewayError> {
        let Some(namespace) = relays.namespace else { return Ok(None) };
        let request = request(0)
            .with(IFLA_TARGET_NETNSID, &namespace.to_ne_bytes())
            .with(IFLA_IFNAME, &terminated(name));
        self.ask(request).map_err(GatewayError::io(format!("look at {name} of the gateway")))
    }

    /// Whether this is the file of the gateway's namespace.
    pub(super) fn is_gateways(&self, file: &File, relays: &Link) -> Result<bool, GatewayError> {
        let Some(namespace) = relays.namespace else { return Ok(false) };
        let request = Request::new(RTM_GETNSID, &[0; NAMESPACE_HEADER])
            .with(NETNSA_FD, &file.as_raw_fd().to_ne_bytes());
        // That of a file which is no namespace.
        let answer = ask(&self.0, request, &[Errno::INVAL])
            .map_err(GatewayError::io("look for the gateway's network namespace"))?;
        let id = answer.as_deref().and_then(|answer| answer.get(NAMESPACE_HEADER..));
        let id = id.and_then(|attributes| attribute(attributes, NETNSA_NSID));
        Ok(id == Some(&namespace.to_ne_bytes()))
    }

    /// `None` if there is no such device, or no such namespace any more.
    fn ask(&self, request: Request) -> std::io::Result<Option<Link>> {
        let answer = ask(&self.0, request, &[Errno::NODEV, Errno::INVAL])?;
        answer.map(|answer| link(&answer)).transpose()
    }
}

fn request(ifindex: u32) -> Request {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    Request::new(RTM_GETLINK, &header)
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn link(answer: &[u8]) -> std::io::Result<Link> {
    let (header, attributes) = answer.split_at_checked(LINK_HEADER).ok_or_else(malformed)?;
    let number = |at: usize| header[at..].first_chunk().copied().map_or(0, u32::from_ne_bytes);
    let counters = attribute(attributes, IFLA_STATS64).ok_or_else(malformed)?;
    let (counters, _) = counters.as_chunks::<8>();
    let counter = |at: usize| counters.get(at).map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let name = attribute(attributes, IFLA_IFNAME).ok_or_else(malformed)?;
    let namespace = attribute(attributes, IFLA_LINK_NETNSID).and_then(|id| id.try_into().ok());
    let value = |attributes, kind| {
        let value = attribute(attributes, kind).and_then(|value| value.try_into().ok());
        value.map_or(0, u32::from_ne_bytes)
    };
    Ok(Link {
        name: String::from_utf8_lossy(name).trim_end_matches('\0').to_owned(),
        up: number(8) & IFF_UP != 0,
        received: counter(0),
        sent: counter(1),
        receive_dropped: counter(6),
        send_dropped: counter(7),
        ifindex: number(4),
        address: attribute(attributes, IFLA_ADDRESS).and_then(|value| value.try_into().ok()),
        mtu: value(attributes, IFLA_MTU),
        master: value(attributes, IFLA_MASTER),
        program: attribute(attributes, IFLA_XDP).map_or(0, |xdp| value(xdp, IFLA_XDP_PROG_ID)),
        // Of one that is about to go, there is none: -1, as of all that are strangers.
        namespace: namespace.map(i32::from_ne_bytes).filter(|id| *id >= 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_loopback_and_of_nothing_else() {
        let links = Links::open(Path::new("/proc/self/ns/net")).unwrap();
        let loopback = links.relays("lo").unwrap().expect("loopback");
        assert_eq!((loopback.name.as_str(), loopback.namespace), ("lo", None));
        assert_eq!((loopback.ifindex, loopback.address), (1, Some([0; 6])));
        assert_eq!(loopback.received, loopback.sent, "it hears what it says");
        assert!(links.relays("no-such-device").unwrap().is_none());
        assert!(links.gateways(1, &loopback).unwrap().is_none(), "it has no other end");
        assert!(links.gateways_named("lo", &loopback).unwrap().is_none());
        let own = File::open("/proc/self/ns/net").unwrap();
        assert!(!links.is_gateways(&own, &loopback).unwrap(), "it has no other end");
        assert_eq!((loopback.mtu, loopback.master, loopback.program), (65536, 0, 0));
    }

    #[test]
    fn an_answer_that_is_cut_is_an_error() {
        let name = [7, 0, 3, 0, b'l', b'o', 0, 0];
        let answer = [&[0; LINK_HEADER][..], &name].concat();
        for length in [0, 4, LINK_HEADER, answer.len()] {
            assert!(link(&answer[..length]).is_err(), "{length}");
        }
    }
}
