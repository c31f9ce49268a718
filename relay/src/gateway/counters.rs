//! Devices with their counters, asked over rtnetlink(7): those of the relay namespace, and from there
//! those of the gateway's, which the kernel knows as the place of the veth's other end. So it does not
//! matter where the asking process runs.

use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use serde::Serialize;

use super::error::GatewayError;
use super::host::in_namespace;
use super::netdev::attribute;

const RTM_GETLINK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// `linux/if_link.h`.
const IFLA_IFNAME: u16 = 3;
const IFLA_STATS64: u16 = 23;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;
/// `linux/if.h`.
const IFF_UP: u32 = 1;

/// Headers of netlink (`struct nlmsghdr`), of a link (`ifinfomsg`), and of an attribute.
const MESSAGE_HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

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
    /// Identifier of the namespace in which its other end is.
    #[serde(skip)]
    namespace: Option<i32>,
}

/// A socket of the relay namespace.
#[derive(Debug)]
pub(super) struct Links(OwnedFd);

impl Links {
    pub(super) fn open(namespace: &Path) -> Result<Self, GatewayError> {
        let socket = || {
            // Protocol 0 is `NETLINK_ROUTE`.
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
        };
        let socket = in_namespace(namespace, socket)?
            .map_err(|error| GatewayError::io("open a netlink socket")(error.into()))?;
        Ok(Self(socket))
    }

    /// A device of the relay namespace by its name.
    pub(super) fn relays(&self, name: &str) -> Result<Option<Link>, GatewayError> {
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        self.ask(0, IFLA_IFNAME, &value).map_err(GatewayError::io(format!("look at {name}")))
    }

    /// A device of the gateway's namespace by its index there; `relays` is the relay's end of the veth.
    pub(super) fn gateways(
        &self,
        ifindex: u32,
        relays: &Link,
    ) -> Result<Option<Link>, GatewayError> {
        let Some(namespace) = relays.namespace else { return Ok(None) };
        self.ask(ifindex, IFLA_TARGET_NETNSID, &namespace.to_ne_bytes())
            .map_err(GatewayError::io(format!("look at device {ifindex} of the gateway")))
    }

    fn ask(&self, ifindex: u32, kind: u16, value: &[u8]) -> std::io::Result<Option<Link>> {
        send(&self.0, &request(ifindex, kind, value), SendFlags::empty())?;
        let mut answer = vec![0; 32_768];
        let (_, length) = recv(&self.0, answer.as_mut_slice(), RecvFlags::empty())?;
        answer.truncate(length);
        parse(&answer)
    }
}

fn request(ifindex: u32, kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute_length = ATTRIBUTE_HEADER + value.len();
    let length = MESSAGE_HEADER + LINK_HEADER + attribute_length.next_multiple_of(4);
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).expect("a short message").to_ne_bytes());
    message.extend(RTM_GETLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: one question at a time.
    message.extend([0; 8]);
    // Family and type: any.
    message.extend([0; 4]);
    message.extend(ifindex.to_ne_bytes());
    // Flags, and which of them are to change.
    message.extend([0; 8]);
    message.extend(u16::try_from(attribute_length).expect("a short value").to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(length, 0);
    message
}

/// `None` if there is no such device, or no such namespace any more.
fn parse(answer: &[u8]) -> std::io::Result<Option<Link>> {
    let malformed = || std::io::Error::other("malformed netlink answer");
    let body = answer.get(MESSAGE_HEADER..).ok_or_else(malformed)?;
    if u16::from_ne_bytes([answer[4], answer[5]]) == NLMSG_ERROR {
        let code = body.first_chunk().ok_or_else(malformed)?;
        let errno = Errno::from_raw_os_error(-i32::from_ne_bytes(*code));
        return match errno {
            Errno::NODEV | Errno::INVAL => Ok(None),
            _ => Err(errno.into()),
        };
    }
    let attributes = body.get(LINK_HEADER..).ok_or_else(malformed)?;
    let flags = body[8..].first_chunk().copied().map_or(0, u32::from_ne_bytes);
    let counters = attribute(attributes, IFLA_STATS64).ok_or_else(malformed)?;
    let (counters, _) = counters.as_chunks::<8>();
    let counter = |at: usize| counters.get(at).map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let name = attribute(attributes, IFLA_IFNAME).ok_or_else(malformed)?;
    let namespace = attribute(attributes, IFLA_LINK_NETNSID);
    Ok(Some(Link {
        name: String::from_utf8_lossy(name).trim_end_matches('\0').to_owned(),
        up: flags & IFF_UP != 0,
        received: counter(0),
        sent: counter(1),
        receive_dropped: counter(6),
        send_dropped: counter(7),
        namespace: namespace.and_then(|id| Some(i32::from_ne_bytes(id.try_into().ok()?))),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_loopback_and_of_nothing_else() {
        let links = Links::open(Path::new("/proc/self/ns/net")).unwrap();
        let loopback = links.relays("lo").unwrap().expect("loopback");
        assert_eq!((loopback.name.as_str(), loopback.namespace), ("lo", None));
        assert_eq!(loopback.received, loopback.sent, "it hears what it says");
        assert!(links.relays("no-such-device").unwrap().is_none());
        assert!(links.gateways(1, &loopback).unwrap().is_none(), "it has no other end");
    }

    #[test]
    fn an_answer_that_is_cut_is_an_error() {
        let mut answer = request(1, IFLA_IFNAME, b"lo\0");
        answer[4..6].copy_from_slice(&16_u16.to_ne_bytes());
        for length in [6, 16, 20, answer.len()] {
            assert!(parse(&answer[..length]).is_err(), "{length}");
        }
    }
}
