//! The gateway's devices, asked of the kernel from within the relay namespace: a relay is not in the
//! namespace of the devices, and may not know where that is (rtnetlink(7)).

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::error::GatewayError;
use super::host::in_namespace;
use super::netdev::attribute;
use super::topology::RELAY_DEVICE;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const RTM_GETLINK: u16 = 18;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK_NETNSID: u16 = 37;
/// Linux 4.16; then called `IFLA_IF_NETNSID`.
const IFLA_TARGET_NETNSID: u16 = 46;

/// Headers of netlink (`struct nlmsghdr`) and of a link (`struct ifinfomsg`).
const MESSAGE_HEADER: usize = 16;
const LINK_HEADER: usize = 16;
/// Where the interface index stands in the latter.
const INDEX_AT: usize = MESSAGE_HEADER + 4;

/// A view of the gateway's network namespace.
pub(super) struct GatewayLinks {
    /// Of the relay namespace.
    socket: OwnedFd,
    /// What the relay namespace calls the gateway's.
    nsid: [u8; 4],
}

/// A device of the gateway.
pub(super) struct Link {
    pub ifindex: u32,
    /// `None` of a device that has none, or another kind than Ethernet's.
    pub address: Option<[u8; 6]>,
}

impl GatewayLinks {
    /// Looks from the relay namespace to where the other end of its veth is.
    pub(super) fn open(relay_namespace: &Path) -> Result<Self, GatewayError> {
        let failed = || GatewayError::io("ask for the gateway's devices");
        let socket = in_namespace(relay_namespace, || {
            let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
            socket_with(family, kind, SocketFlags::CLOEXEC, None)
        })?
        .map_err(|error| failed()(error.into()))?;
        let answer = ask(&socket, RELAY_DEVICE, None).map_err(failed())?;
        let nsid = answer
            .as_deref()
            .and_then(|answer| {
                attribute(answer.get(MESSAGE_HEADER + LINK_HEADER..)?, IFLA_LINK_NETNSID)
            })
            .and_then(|value| value.try_into().ok())
            .ok_or_else(|| failed()(std::io::Error::other("the link to the gateway is gone")))?;
        Ok(Self { socket, nsid })
    }

    /// Looks a device up; `None` if there is none of this name.
    pub(super) fn find(&self, name: &str) -> Result<Option<Link>, GatewayError> {
        let answer = ask(&self.socket, name, Some(self.nsid))
            .map_err(GatewayError::io(format!("ask for the gateway's device {name}")))?;
        Ok(answer.as_deref().and_then(link))
    }
}

fn link(answer: &[u8]) -> Option<Link> {
    let ifindex = u32::from_ne_bytes(*answer.get(INDEX_AT..)?.first_chunk()?);
    let attributes = answer.get(MESSAGE_HEADER + LINK_HEADER..)?;
    let address = attribute(attributes, IFLA_ADDRESS).and_then(|value| value.try_into().ok());
    Some(Link { ifindex, address })
}

/// One question; gives the whole answer, or `None` if there is no such device.
fn ask(socket: &OwnedFd, name: &str, nsid: Option<[u8; 4]>) -> std::io::Result<Option<Vec<u8>>> {
    send(socket, &request(name, nsid), SendFlags::empty())?;
    let mut answer = vec![0; 32 << 10];
    let (_, length) = recv(socket, answer.as_mut_slice(), RecvFlags::empty())?;
    answer.truncate(length);
    let malformed = || std::io::Error::other("malformed netlink answer");
    let body = answer.get(MESSAGE_HEADER..).ok_or_else(malformed)?;
    if u16::from_ne_bytes([answer[4], answer[5]]) == NLMSG_ERROR {
        let code = body.first_chunk().ok_or_else(malformed)?;
        let errno = Errno::from_raw_os_error(-i32::from_ne_bytes(*code));
        return if errno == Errno::NODEV { Ok(None) } else { Err(errno.into()) };
    }
    Ok(Some(answer))
}

fn request(name: &str, nsid: Option<[u8; 4]>) -> Vec<u8> {
    let mut attributes = Vec::new();
    let mut push = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).expect("a short value");
        attributes.extend(length.to_ne_bytes());
        attributes.extend(kind.to_ne_bytes());
        attributes.extend(value);
        attributes.resize(attributes.len().next_multiple_of(4), 0);
    };
    if let Some(nsid) = nsid {
        push(IFLA_TARGET_NETNSID, &nsid);
    }
    push(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    let length = MESSAGE_HEADER + LINK_HEADER + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).expect("a short message").to_ne_bytes());
    message.extend(RTM_GETLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: one question at a time. Then a link of no family, type or index.
    message.extend([0; 8 + LINK_HEADER]);
    message.extend(attributes);
    message
}
