//! Fragments of TCP segments: the first has the ports, the others are known by what they have in
//! common with it (RFC 791 section 3.2, RFC 8200 section 4.5).

use crate::flow::{Address, Ports};
use crate::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Family, IPV4_LENGTH, IPV6_FRAGMENT,
    IPV6_LENGTH, PacketBytes, TAG_LENGTH, TCP, TCP_LENGTH, TcpFlags, addresses, link,
};
use crate::zone::Zone;

/// What the fragments of a segment have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// From the IP header.
    pub source: Address,
    /// From the IP header.
    pub destination: Address,
    /// The identification, as it stands in the packet; IPv4's has two bytes.
    pub id: u32,
}

const _: () = assert!(size_of::<FragmentKey>() == 36 && align_of::<FragmentKey>() == 4);

/// Value of the map of fragments.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentState {
    /// [`crate::abi::Heartbeat::generation`] of the relay that has the flow.
    pub generation: u64,
    /// `CLOCK_MONOTONIC` of the first fragment, nanoseconds.
    pub stamp_ns: u64,
    /// Where it came from.
    pub zone: Zone,
}

/// A fragment of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// VLAN tags before the network header.
    pub tags: usize,
    /// What its siblings have too.
    pub key: FragmentKey,
    /// Of the first one: the segment's ports and control bits.
    pub first: Option<(Ports, TcpFlags)>,
}

/// Length of an IPv6 fragment header.
const FRAGMENT_LENGTH: usize = 8;

/// Reads a fragment of a TCP segment from a frame that starts with its Ethernet header; `None` of
/// everything else, and of a first fragment without a whole TCP header (RFC 1858 section 3).
#[inline(always)]
pub fn fragment<P: PacketBytes + ?Sized>(packet: &P) -> Option<Fragment> {
    let (ethertype, tags) = link(packet).ok()?;
    let at = ETHERNET_LENGTH + tags * TAG_LENGTH;
    let (family, id, is_first, segment_at) = match ethertype {
        ETHERTYPE_IPV4 => {
            let ip: [u8; 10] = packet.load(at)?;
            if ip[0] != 0x45 || ip[9] != TCP {
                return None;
            }
            let id = u32::from_ne_bytes([ip[4], ip[5], 0, 0]);
            let offset = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff;
            (Family::Ipv4, id, offset == 0, at + IPV4_LENGTH)
        }
        ETHERTYPE_IPV6 => {
            let ip: [u8; 7] = packet.load(at)?;
            let header: [u8; FRAGMENT_LENGTH] = packet.load(at + IPV6_LENGTH)?;
            if ip[0] >> 4 != 6 || ip[6] != IPV6_FRAGMENT || header[0] != TCP {
                return None;
            }
            let id = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
            let offset = u16::from_be_bytes([header[2], header[3]]) & 0xfff8;
            (Family::Ipv6, id, offset == 0, at + IPV6_LENGTH + FRAGMENT_LENGTH)
        }
        _ => return None,
    };
    let (source, destination) = addresses(packet, family, at)?;
    if matches!(family, Family::Ipv6) && (source.is_mapped() || destination.is_mapped()) {
        return None;
    }
    let first = if is_first {
        let tcp: [u8; TCP_LENGTH] = packet.load(segment_at)?;
        Some((Ports::from_bytes([tcp[0], tcp[1], tcp[2], tcp[3]]), TcpFlags(tcp[13])))
    } else {
        None
    };
    Some(Fragment { tags, key: FragmentKey { source, destination, id }, first })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn frame(ethertype: [u8; 2], parts: &[&[u8]]) -> Vec<u8> {
        let mut frame = Vec::from([0; 12]);
        frame.extend(ethertype);
        for part in parts {
            frame.extend(*part);
        }
        frame
    }

    const PORTS: [u8; 4] = [0x9c, 0x40, 0x1b, 0x58];
    /// Of the TCP header.
    const REST: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12, 0, 0, 0, 0, 0, 0];

    fn ipv4(flags: [u8; 2]) -> Vec<u8> {
        let mut ip = [0; 20];
        (ip[0], ip[4], ip[5], ip[9]) = (0x45, 0x12, 0x34, TCP);
        ip[6..8].copy_from_slice(&flags);
        ip[12..].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame([8, 0], &[&ip, &PORTS, &REST])
    }

    fn ipv6(offset: [u8; 2]) -> Vec<u8> {
        let mut ip = [0; 40];
        (ip[0], ip[6], ip[8], ip[23], ip[24], ip[39]) = (0x60, 44, 0xfd, 1, 0xfd, 2);
        let header = [TCP, 0, offset[0], offset[1], 1, 2, 3, 4];
        frame([0x86, 0xdd], &[&ip, &header, &PORTS, &REST])
    }

    #[test]
    fn the_first_has_ports_and_all_have_one_key() {
        for [first, later, last] in [
            [ipv4([0x20, 0]), ipv4([0x20, 9]), ipv4([0, 18])],
            [ipv6([0, 1]), ipv6([0, 9]), ipv6([0, 16])],
        ] {
            let read = [first, later, last].map(|frame| fragment(&*frame).unwrap());
            assert_eq!(read[0].first, Some((Ports::from_bytes(PORTS), TcpFlags(0x12))));
            assert_eq!((read[1].first, read[2].first), (None, None));
            assert!(read.iter().all(|one| one.key == read[0].key));
        }
    }

    #[test]
    fn others_are_none() {
        for (frame, wrong) in [
            (ipv4([0x20, 0]), &[(14, 0x46), (23, 17), (13, 6)][..]),
            (ipv6([0, 1]), &[(14, 0x40), (20, TCP), (54, 17)]),
        ] {
            for (at, byte) in wrong {
                let mut frame = frame.clone();
                frame[*at] = *byte;
                assert_eq!(fragment(&*frame), None, "byte {at}");
            }
            for length in 0..frame.len() {
                assert_eq!(fragment(&frame[..length]), None, "{length} bytes");
            }
        }
    }
}
