//! What a network device can do with XDP, asked over the kernel's `netdev` netlink family
//! (`Documentation/netlink/specs/netdev.yaml`, Linux 6.3).

use rustix::io::Errno;
use rustix::net::netlink::GENERIC;
use serde::{Deserialize, Serialize};

use super::netlink::{Request, ask, attribute, malformed, socket};

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
    /// Sends frames in several buffers that XDP hands it: `NETDEV_XDP_ACT_NDO_XMIT_SG`.
    pub(super) const SEND_FRAGS: Self = Self(1 << 6);

    const NAMES: [(Self, &'static str); 5] = [
        (Self::BASIC, "native"),
        (Self::REDIRECT, "redirect"),
        (Self::SEND, "send-redirected"),
        (Self::FRAGS, "frags"),
        (Self::SEND_FRAGS, "send-frags"),
    ];

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// In words, for people.
    pub(super) fn names(self) -> Vec<&'static str> {
        Self::NAMES.iter().filter(|(bit, _)| self.has(*bit)).map(|(_, name)| *name).collect()
    }
}

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// Header of generic netlink (`struct genlmsghdr`).
const GENERIC_HEADER: usize = 4;

/// What a device of the calling thread's network namespace can do; `None` if the kernel is too old
/// to say.
pub(super) fn features(ifindex: u32) -> std::io::Result<Option<XdpFeatures>> {
    let Some(family) =
        ask_family(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0")?
            .as_deref()
            .and_then(|answer| attribute(answer, CTRL_ATTR_FAMILY_ID))
            .and_then(|value| Some(u16::from_ne_bytes(value.try_into().ok()?)))
    else {
        return Ok(None);
    };
    let index = ifindex.to_ne_bytes();
    Ok(ask_family(family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index)?
        .as_deref()
        .and_then(|answer| attribute(answer, NETDEV_A_DEV_XDP_FEATURES))
        .and_then(|value| Some(u64::from_ne_bytes(value.try_into().ok()?)))
        .map(XdpFeatures))
}

/// One question with one attribute to a generic family; gives the attributes of the answer, or `None` if
/// there is nothing of that name.
fn ask_family(
    family: u16,
    command: u8,
    kind: u16,
    value: &[u8],
) -> std::io::Result<Option<Vec<u8>>> {
    // Version 1 of the family, two reserved bytes.
    let request = Request::new(family, &[command, 1, 0, 0]).with(kind, value);
    let answer = ask(&socket(Some(GENERIC))?, request, &[Errno::NOENT])?;
    let attributes = |answer: Vec<u8>| answer.get(GENERIC_HEADER..).map(<[u8]>::to_vec);
    answer.map(|answer| attributes(answer).ok_or_else(malformed)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_or_does_not_know() {
        // Loopback is there in every namespace, and redirects are never sent out of it.
        let features = features(1).unwrap();
        assert!(features.is_none_or(|features| !features.has(XdpFeatures::SEND)), "{features:?}");
    }
}
