//! What a network device can do with XDP, asked over the kernel's `netdev` netlink family
//! (`Documentation/netlink/specs/netdev.yaml`, Linux 6.3).

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use serde::{Deserialize, Serialize};

/// What a device can do with XDP: the bits of `enum netdev_xdp_act` (`linux/netdev.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// Runs programs in its driver: `NETDEV_XDP_ACT_BASIC`.
    pub(super) const BASIC: Self = Self(1 << 0);
    /// Its programs may redirect: `NETDEV_XDP_ACT_REDIRECT`.
    pub(super) const REDIRECT: Self = Self(1 << 1);
    /// Sends frames that XDP hands it: `NETDEV_XDP_ACT_NDO_XMIT`.
    pub(super) const SEND: Self = Self(1 << 2);
    /// Gives programs packets in several buffers: `NETDEV_XDP_ACT_RX_SG`.
    pub(super) const FRAGS: Self = Self(1 << 5);

    const NAMES: [(Self, &'static str); 4] = [
        (Self::BASIC, "native"),
        (Self::REDIRECT, "redirect"),
        (Self::SEND, "send-redirected"),
        (Self::FRAGS, "frags"),
    ];

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// In words, for people.
    pub(super) fn names(self) -> Vec<&'static str> {
        Self::NAMES.iter().filter(|(bit, _)| self.has(*bit)).map(|(_, name)| *name).collect()
    }
}

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// Headers of netlink (`struct nlmsghdr`), generic netlink (`genlmsghdr`) and an attribute.
const MESSAGE_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

/// What a device of the calling thread's network namespace can do; `None` if the kernel is too old
/// to say.
pub(super) fn features(ifindex: u32) -> std::io::Result<Option<XdpFeatures>> {
    let Some(family) = ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0")?
        .as_deref()
        .and_then(|answer| attribute(answer, CTRL_ATTR_FAMILY_ID))
        .and_then(|value| Some(u16::from_ne_bytes(value.try_into().ok()?)))
    else {
        return Ok(None);
    };
    let index = ifindex.to_ne_bytes();
    Ok(ask(family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index)?
        .as_deref()
        .and_then(|answer| attribute(answer, NETDEV_A_DEV_XDP_FEATURES))
        .and_then(|value| Some(u64::from_ne_bytes(value.try_into().ok()?)))
        .map(XdpFeatures))
}

/// Sends one request with one attribute; gives the attributes of the answer, or `None` if there is
/// nothing of that name.
fn ask(family: u16, command: u8, kind: u16, value: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::GENERIC),
    )?;
    send(&socket, &request(family, command, kind, value), SendFlags::empty())?;
    let mut answer = vec![0; 8192];
    let (_, length) = recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
    answer.truncate(length);
    let malformed = || std::io::Error::other("malformed netlink answer");
    let body = answer.get(MESSAGE_HEADER..).ok_or_else(malformed)?;
    if u16::from_ne_bytes([answer[4], answer[5]]) == NLMSG_ERROR {
        let code = body.first_chunk().ok_or_else(malformed)?;
        let errno = Errno::from_raw_os_error(-i32::from_ne_bytes(*code));
        return if errno == Errno::NOENT { Ok(None) } else { Err(errno.into()) };
    }
    body.get(GENERIC_HEADER..).map(|attributes| Some(attributes.to_vec())).ok_or_else(malformed)
}

fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute_length = ATTRIBUTE_HEADER + value.len();
    let length = MESSAGE_HEADER + GENERIC_HEADER + attribute_length.next_multiple_of(4);
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).expect("a short message").to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: one question per socket.
    message.extend([0; 8]);
    // Version 1 of the family, two reserved bytes.
    message.extend([command, 1, 0, 0]);
    message.extend(u16::try_from(attribute_length).expect("a short value").to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(length, 0);
    message
}

/// The value of the first attribute of this kind.
pub(super) fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(ATTRIBUTE_HEADER..length)?;
        if u16::from_ne_bytes([c, d]) == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_behind_others() {
        let mut attributes = Vec::new();
        attributes.extend([5, 0, 9, 0, 1, 0, 0, 0]);
        attributes.extend([6, 0, 1, 0, 7, 8, 0, 0]);
        assert_eq!(attribute(&attributes, 1), Some(&[7, 8][..]));
        assert_eq!(attribute(&attributes, 9), Some(&[1][..]));
        assert_eq!(attribute(&attributes, 2), None);
    }

    #[test]
    fn a_malformed_attribute_ends_the_search() {
        for bytes in [&[0u8, 0, 1, 0][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 5], &[4, 0]] {
            assert_eq!(attribute(bytes, 1), None);
        }
    }

    #[test]
    fn the_kernel_answers_or_does_not_know() {
        // Loopback is there in every namespace, and redirects are never sent out of it.
        let features = features(1).unwrap();
        assert!(features.is_none_or(|features| !features.has(XdpFeatures::SEND)), "{features:?}");
    }
}
