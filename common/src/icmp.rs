//! ICMP errors about segments of diverted connections: read, where a router sends one, and made, where
//! the gateway itself has something to say to the relay (RFC 792, RFC 4443).

use crate::flow::{Address, FlowKey, Ports};
use crate::packet::{
    ETHERNET_LENGTH, Family, IPV4_LENGTH, IPV6_LENGTH, PacketBytes, TAG_LENGTH, TCP, addresses,
    network,
};

/// IANA protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IANA protocol number of ICMP for IPv6.
pub const ICMPV6: u8 = 58;

/// Length of an ICMP header, the message's own word included.
const ICMP_LENGTH: usize = 8;
/// Where it has its own word.
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// VLAN tags before the network header.
    pub tags: usize,
    /// The flow whose segment was not delivered; the segment went to the client.
    pub flow: FlowKey,
}

/// Reads an ICMP error that a segment to a client has caused, from a frame that starts with its
/// Ethernet header. `None` of everything else, and of an error that was not sent to the segment's
/// sender.
#[inline(always)]
pub fn report<P: PacketBytes + ?Sized>(packet: &P) -> Option<Report> {
    let (outer, tags) = network(packet).ok()?;
    let at = ETHERNET_LENGTH + tags * TAG_LENGTH;
    let header_at = at
        + match outer.family {
            Family::Ipv4 => IPV4_LENGTH,
            Family::Ipv6 => IPV6_LENGTH,
        };
    let [kind] = packet.load(header_at)?;
    let is_error = match (outer.family, outer.protocol) {
        // Destination unreachable (with "fragmentation needed"), time exceeded, parameter problem.
        (Family::Ipv4, ICMP) => matches!(kind, 3 | 11 | 12),
        // The same, and packet too big: all errors there are (RFC 4443 section 2.1).
        (Family::Ipv6, ICMPV6) => matches!(kind, 1..=4),
        _ => false,
    };
    if !is_error {
        return None;
    }
    let segment_at = header_at + ICMP_LENGTH;
    let ports_at = match outer.family {
        Family::Ipv4 => {
            let ip: [u8; 10] = packet.load(segment_at)?;
            // The relay's stack sends no options; only a first fragment has ports.
            let offset = u16::from_be_bytes([ip[6], ip[7]]) & FRAGMENT_OFFSET;
            if ip[0] != 0x45 || ip[9] != TCP || offset != 0 {
                return None;
            }
            segment_at + IPV4_LENGTH
        }
        Family::Ipv6 => {
            let ip: [u8; 7] = packet.load(segment_at)?;
            if ip[0] >> 4 != 6 || ip[6] != TCP {
                return None;
            }
            segment_at + IPV6_LENGTH
        }
    };
    let (_, told) = addresses(packet, outer.family, at)?;
    let (server, client) = addresses(packet, outer.family, segment_at)?;
    let is_ipv6 = matches!(outer.family, Family::Ipv6);
    if told != server || (is_ipv6 && client.is_mapped()) {
        return None;
    }
    let ports = Ports::from_bytes(packet.load(ports_at)?).reversed();
    Some(Report { tags, flow: FlowKey { client, server, ports } })
}

/// Words of a segment that an error message repeats: the IPv4 header and eight bytes (RFC 792).
pub const REPEATED_IPV4: usize = 7;
/// The IPv6 header and TCP's without options: as much as anybody reads.
pub const REPEATED_IPV6: usize = 15;
/// Words of [`fragmentation_needed`].
pub const ANSWER_IPV4: usize = 5 + 2 + REPEATED_IPV4;
/// Words of [`packet_too_big`].
pub const ANSWER_IPV6: usize = 10 + 2 + REPEATED_IPV6;

/// The same in bytes, as the headers have it.
const LENGTH_IPV4: u8 = 56;
/// The latter without the IPv6 header.
const PAYLOAD_IPV6: u8 = 68;
const _: () = assert!(LENGTH_IPV4 as usize == 4 * ANSWER_IPV4);
const _: () = assert!(PAYLOAD_IPV6 as usize == 4 * ANSWER_IPV6 - IPV6_LENGTH);

/// Of the answers made here: as from a neighbour, for they come over a link.
const HOPS: u8 = 64;

/// Whether an IPv4 packet must not be fragmented, by the first words of its header.
#[inline(always)]
pub const fn dont_fragment(packet: &[u32; REPEATED_IPV4]) -> bool {
    packet[1].to_ne_bytes()[2] & 0x40 != 0
}

/// "Fragmentation needed" (RFC 792, RFC 1191 section 4) about a packet that begins with these words,
/// from the IPv4 header on; the words have their bytes as they stand in the packet. `from` is who
/// says it.
#[inline(always)]
pub fn fragmentation_needed(
    packet: &[u32; REPEATED_IPV4],
    from: Address,
    mtu: u16,
) -> [u32; ANSWER_IPV4] {
    let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
    let [_, _, _, from] = from.words();
    let mut answer = [0; ANSWER_IPV4];
    answer[0] = word([0x45, 0, 0, LENGTH_IPV4]);
    answer[2] = word([HOPS, ICMP, 0, 0]);
    answer[3] = from;
    answer[4] = packet[3];
    let [high, low] = checksum(sum(&answer[..5])).to_ne_bytes();
    answer[2] = word([HOPS, ICMP, high, low]);
    let [mtu_high, mtu_low] = mtu.to_be_bytes();
    answer[6] = word([0, 0, mtu_high, mtu_low]);
    answer[7..].copy_from_slice(packet);
    answer[5] = word([3, 4, 0, 0]);
    let [high, low] = checksum(sum(&answer[5..])).to_ne_bytes();
    answer[5] = word([3, 4, high, low]);
    answer
}

/// "Packet too big" (RFC 4443 section 3.2); as [`fragmentation_needed`].
#[inline(always)]
pub fn packet_too_big(
    packet: &[u32; REPEATED_IPV6],
    from: Address,
    mtu: u16,
) -> [u32; ANSWER_IPV6] {
    let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
    let mut answer = [0; ANSWER_IPV6];
    answer[2..6].copy_from_slice(&from.words());
    answer[6..10].copy_from_slice(&packet[2..6]);
    let [mtu_high, mtu_low] = mtu.to_be_bytes();
    answer[10] = word([2, 0, 0, 0]);
    answer[11] = word([0, 0, mtu_high, mtu_low]);
    answer[12..].copy_from_slice(packet);
    // With the pseudo-header in place of what is not summed (RFC 8200 section 8.1).
    answer[0] = word([0, 0, 0, PAYLOAD_IPV6]);
    answer[1] = word([0, 0, 0, ICMPV6]);
    let [high, low] = checksum(sum(&answer)).to_ne_bytes();
    answer[10] = word([2, 0, high, low]);
    answer[0] = word([0x60, 0, 0, 0]);
    answer[1] = word([0, PAYLOAD_IPV6, ICMPV6, HOPS]);
    answer
}

/// The sum of words for the Internet checksum, which does not depend on the order of the bytes
/// (RFC 1071 section 2).
#[inline(always)]
fn sum(words: &[u32]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum
}

/// The checksum, with its bytes as they stand in the packet.
#[inline(always)]
const fn checksum(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    !((sum & 0xffff) as u16)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    const CLIENT: [u8; 4] = [10, 0, 0, 1];
    const SERVER: [u8; 4] = [10, 0, 0, 2];

    fn ipv4_segment() -> [u8; 28] {
        let mut ip = [0; 28];
        ip[0] = 0x45;
        ip[6] = 0x40;
        ip[9] = TCP;
        ip[12..16].copy_from_slice(&SERVER);
        ip[16..20].copy_from_slice(&CLIENT);
        ip[20..24].copy_from_slice(&[0x1b, 0x58, 0x9c, 0x40]);
        ip
    }

    fn ipv6_segment() -> [u8; 60] {
        let mut ip = [0; 60];
        ip[0] = 0x60;
        ip[6] = TCP;
        ip[8] = 0xfd;
        ip[23] = 2;
        ip[24] = 0xfd;
        ip[39] = 1;
        ip[40..44].copy_from_slice(&[0x1b, 0x58, 0x9c, 0x40]);
        ip
    }

    fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
        let chunks: &[[u8; 4]; N] = bytes.as_chunks().0.first_chunk().unwrap();
        chunks.map(u32::from_ne_bytes)
    }

    fn frame(ethertype: [u8; 2], words: &[u32]) -> Vec<u8> {
        let mut frame = Vec::from([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        frame.extend(ethertype);
        frame.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        frame
    }

    fn ones_complement(bytes: &[u8]) -> u16 {
        let mut sum: u32 =
            bytes.as_chunks().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn what_is_made_is_what_is_read() {
        let from = Address::from_ipv4([169, 254, 77, 1]);
        let made = fragmentation_needed(&words(&ipv4_segment()), from, 1400);
        let frame4 = frame([8, 0], &made);
        assert_eq!(frame4[14 + 26..14 + 28], [5, 0x78], "the MTU");
        assert_eq!(ones_complement(&frame4[14..34]), 0xffff, "the header's checksum");
        assert_eq!(ones_complement(&frame4[34..]), 0xffff, "the message's checksum");
        let flow =
            FlowKey::new((Address::from_ipv4(CLIENT), 40_000), (Address::from_ipv4(SERVER), 7000));
        assert_eq!(report(&*frame4), Some(Report { tags: 0, flow }));

        let from = Address::from_ipv6([0xfe; 16]);
        let made = packet_too_big(&words(&ipv6_segment()), from, 1400);
        let frame6 = frame([0x86, 0xdd], &made);
        let mut summed = Vec::from(&frame6[22..]);
        summed.extend([0, 0, 0, 68, 0, 0, 0, 58]);
        assert_eq!(ones_complement(&summed), 0xffff, "the checksum");
        let report6 = report(&*frame6).unwrap();
        assert_eq!(
            (report6.flow.ports.source(), report6.flow.ports.destination()),
            ([0x9c, 0x40], [0x1b, 0x58])
        );
        assert_eq!(report6.flow.client.octets()[15], 1);
    }

    /// Every byte that matters, wrong: not one of them may be taken for an error about a segment.
    #[test]
    fn what_is_no_error_about_a_segment_is_none() {
        let made = fragmentation_needed(&words(&ipv4_segment()), Address::from_ipv4([1; 4]), 1400);
        let frame4 = frame([8, 0], &made);
        for (at, byte) in [
            (13, 6),
            (14, 0x46),
            (23, TCP),
            (30, 9),
            (34, 0),
            (34, 8),
            (42, 0x46),
            (48, 0x01),
            (51, 17),
            (54, 9),
        ] {
            let mut wrong = frame4.clone();
            wrong[at] = byte;
            assert_eq!(report(&*wrong), None, "byte {at}");
        }
        for length in 0..14 + 4 * ANSWER_IPV4 - 4 {
            assert_eq!(report(&frame4[..length]), None, "{length} bytes");
        }
        let made = packet_too_big(&words(&ipv6_segment()), Address::from_ipv6([0xfe; 16]), 1400);
        let frame6 = frame([0x86, 0xdd], &made);
        for (at, byte) in [(20, TCP), (54, 128), (54, 0), (62, 0x45), (68, 17), (53, 9)] {
            let mut wrong = frame6.clone();
            wrong[at] = byte;
            assert_eq!(report(&*wrong), None, "byte {at}");
        }
    }

    #[test]
    fn the_flag_is_read() {
        let mut segment = ipv4_segment();
        assert!(dont_fragment(&words(&segment)));
        segment[6] = 0;
        assert!(!dont_fragment(&words(&segment)));
    }
}
