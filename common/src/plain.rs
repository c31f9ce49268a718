//! A TCP segment as nearly all of them are, read with as few questions as there are.
//!
//! [`parse`](crate::packet::parse()) asks step by step, for it has to say of every packet what is wrong
//! with it; that was most of what a packet without a rule cost. Here it is read in one piece, by words,
//! and whatever is not as usual is left to the other.

use crate::flow::{Address, FlowKey, Ports, ShortKey};
use crate::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Family, IPV4_BYTES, IPV4_LENGTH, IPV6_BYTES,
    IPV6_LENGTH, PacketBytes, TCP, TCP_BYTES, TCP_LENGTH, TcpFlags,
};

/// Such a segment: it has no VLAN tags, IPv4 options or IPv6 extension headers, and is no fragment.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a, P: ?Sized> {
    /// Itself.
    packet: &'a P,
    /// Length of the IP packet in bytes.
    pub ip_length: u32,
    /// The network protocol.
    pub family: Family,
    /// Source's and destination's.
    pub ports: Ports,
    /// The TCP control bits.
    pub flags: TcpFlags,
}

/// Four bytes as they stand in the packet.
const fn bytes(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

const fn upper(value: u16) -> u8 {
    value.to_be_bytes()[0]
}

const fn lower(value: u16) -> u8 {
    value.to_be_bytes()[1]
}

/// The last two bytes of the Ethernet header, behind two of an address: from there on all is aligned to
/// words.
const TYPE_AT: usize = ETHERNET_LENGTH - 4;
const IPV4_WORDS: usize = (4 + IPV4_LENGTH + TCP_LENGTH) / 4;
const IPV6_WORDS: usize = (4 + IPV6_LENGTH + TCP_LENGTH) / 4;

const TYPE: u32 = bytes([0, 0, 0xff, 0xff]);
const TYPE_IPV4: u32 = bytes([0, 0, upper(ETHERTYPE_IPV4), lower(ETHERTYPE_IPV4)]);
const TYPE_IPV6: u32 = bytes([0, 0, upper(ETHERTYPE_IPV6), lower(ETHERTYPE_IPV6)]);

impl<'a, P: PacketBytes + ?Sized> Plain<'a, P> {
    /// Reads it. `None` of everything that [`parse`](crate::packet::parse()) refuses, and of what is
    /// not plain in what it accepts.
    #[inline(always)]
    pub fn of(packet: &'a P) -> Option<Self> {
        let [ethernet] = packet.words(TYPE_AT)?;
        match ethernet & TYPE {
            TYPE_IPV4 => Self::of_ipv4(packet, packet.words(TYPE_AT)?),
            TYPE_IPV6 => Self::of_ipv6(packet, packet.words(TYPE_AT)?),
            _ => None,
        }
    }

    #[inline(always)]
    fn of_ipv4(packet: &'a P, words: [u32; IPV4_WORDS]) -> Option<Self> {
        let [_, first, second, third, .., ports, _, _, control, _] = words;
        let length = half(first, 1);
        if first & bytes([0xff, 0, 0, 0]) != bytes([0x45, 0, 0, 0])
            || second & bytes([0, 0, 0x3f, 0xff]) != 0
            || third & bytes([0, 0xff, 0, 0]) != bytes([0, TCP, 0, 0])
        {
            return None;
        }
        Self::tcp(packet, Family::Ipv4, (ports, control), length, IPV4_BYTES)
    }

    #[inline(always)]
    fn of_ipv6(packet: &'a P, words: [u32; IPV6_WORDS]) -> Option<Self> {
        let [_, first, second, a, b, _, _, c, d, _, _, ports, _, _, control, _] = words;
        // An address whose first eight bytes are zero may be a mapped one.
        if first & bytes([0xf0, 0, 0, 0]) != bytes([0x60, 0, 0, 0])
            || second & bytes([0, 0, 0xff, 0]) != bytes([0, 0, TCP, 0])
            || a | b == 0
            || c | d == 0
        {
            return None;
        }
        let length = half(second, 0) + IPV6_BYTES;
        Self::tcp(packet, Family::Ipv6, (ports, control), length, IPV6_BYTES)
    }

    /// `ip_length` bytes, of which `before` are in front of the TCP header.
    #[inline(always)]
    fn tcp(
        packet: &'a P,
        family: Family,
        (ports, control): (u32, u32),
        ip_length: u32,
        before: u32,
    ) -> Option<Self> {
        let [offset, flags, ..] = control.to_ne_bytes();
        let header_length = u32::from(offset >> 4) * 4;
        if header_length < TCP_BYTES || header_length + before > ip_length {
            return None;
        }
        let (ports, flags) = (Ports::from_word(ports), TcpFlags(flags));
        Some(Self { packet, ip_length, family, ports, flags })
    }

    /// The flow, with the packet's source as `client`.
    #[inline(always)]
    pub fn flow(&self) -> Option<FlowKey> {
        let [client @ .., e, f, g, h]: [u32; 8] = self.packet.words(ETHERNET_LENGTH + 8)?;
        let (client, server) = (Address::from_words(client), Address::from_words([e, f, g, h]));
        Some(FlowKey { client, server, ports: self.ports })
    }

    /// The same in short, of IPv4.
    #[inline(always)]
    pub fn short_flow(&self) -> Option<ShortKey> {
        let [client, server] = self.packet.words(ETHERNET_LENGTH + 12)?;
        Some(ShortKey::new(client, server, self.ports))
    }
}

/// A half of a word, in network byte order.
#[inline(always)]
const fn half(word: u32, index: usize) -> u32 {
    let bytes = word.to_ne_bytes();
    u16::from_be_bytes([bytes[2 * index], bytes[2 * index + 1]]) as u32
}
