//! The one packet parser: run by the XDP programs, by userspace tests and by the fuzzer.
//!
//! It reads headers through [`PacketBytes`], which the XDP side implements with the bounds checks
//! that the verifier wants, and userspace for byte slices. What it does not understand it refuses
//! with an [`Unsupported`], and the packet takes the ordinary path.

use crate::flow::{Address, FlowKey};

/// Bounds-checked access to a packet, from its Ethernet header on.
pub trait PacketBytes {
    /// The `N` bytes at `offset`, or `None` if the packet ends before.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

impl PacketBytes for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

/// Length of an Ethernet header without tags (IEEE 802.3).
pub const ETHERNET_LENGTH: usize = 14;
/// Length of an IPv4 header without options (RFC 791 section 3.1).
pub const IPV4_LENGTH: usize = 20;
/// Length of a TCP header without options (RFC 9293 section 3.1).
pub const TCP_LENGTH: usize = 20;
/// IANA protocol number of TCP.
pub const TCP: u8 = 6;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;

/// Why a packet is not ours to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Shorter than its headers.
    Truncated,
    /// Another network protocol: ARP, IPv6, VLAN tags, …
    EtherType,
    /// A version or length that RFC 791 does not allow.
    MalformedIpv4,
    /// IPv4 options (RFC 791 section 3.1).
    Ipv4Options,
    /// A fragment, the first one too: its later parts carry no ports.
    Fragment,
    /// Another transport protocol.
    Protocol,
    /// A data offset that RFC 9293 does not allow.
    MalformedTcp,
}

/// Control bits of a TCP header (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// Opens a connection: SYN, and nothing that makes it an answer or a contradiction.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    /// Aborts a connection.
    #[inline(always)]
    pub const fn resets(self) -> bool {
        self.0 & Self::RST != 0
    }
}

/// A TCP segment in an IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The flow, with the packet's source as `client`.
    pub flow: FlowKey,
    /// The TCP control bits.
    pub flags: TcpFlags,
    /// The sequence number.
    pub sequence: u32,
    /// Type of service, for the route look-up.
    pub tos: u8,
    /// Length of the IP packet in bytes, for the route look-up's MTU check.
    pub ip_length: u16,
}

impl Segment {
    /// Refuses a SYN: a reset with sequence number 0, which is what a stack without a listener
    /// answers (RFC 9293 section 3.10.7.1); a reset of a living connection carries its own number.
    #[inline(always)]
    pub const fn refuses_connection(&self) -> bool {
        self.flags.resets() && self.sequence == 0
    }
}

/// Who sent a packet to whom: what can be said of one that [`parse`] refuses too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// From the IP header.
    pub source: Address,
    /// From the IP header.
    pub destination: Address,
    /// IANA protocol number, or that of an extension header.
    pub protocol: u8,
}

/// The ends of a packet that starts with its Ethernet header, if it is IP.
#[inline(always)]
pub fn ends<P: PacketBytes + ?Sized>(packet: &P) -> Option<Ends> {
    let ethertype: [u8; 2] = packet.load(12)?;
    if ethertype != ETHERTYPE_IPV4 {
        return None;
    }
    let ip: [u8; IPV4_LENGTH] = packet.load(ETHERNET_LENGTH)?;
    Some(Ends {
        source: Address::from_ipv4([ip[12], ip[13], ip[14], ip[15]]),
        destination: Address::from_ipv4([ip[16], ip[17], ip[18], ip[19]]),
        protocol: ip[9],
    })
}

/// Parses a packet that starts with its Ethernet header.
#[inline(always)]
pub fn parse<P: PacketBytes + ?Sized>(packet: &P) -> Result<Segment, Unsupported> {
    let ethertype: [u8; 2] = packet.load(12).ok_or(Unsupported::Truncated)?;
    if ethertype != ETHERTYPE_IPV4 {
        return Err(Unsupported::EtherType);
    }

    let ip: [u8; IPV4_LENGTH] = packet.load(ETHERNET_LENGTH).ok_or(Unsupported::Truncated)?;
    let ip_length = u16::from_be_bytes([ip[2], ip[3]]);
    if ip[0] >> 4 != 4 || ip[0] & 0x0f < 5 || (ip_length as usize) < IPV4_LENGTH {
        return Err(Unsupported::MalformedIpv4);
    }
    if ip[0] & 0x0f != 5 {
        return Err(Unsupported::Ipv4Options);
    }
    if u16::from_be_bytes([ip[6], ip[7]]) & MORE_FRAGMENTS_OR_OFFSET != 0 {
        return Err(Unsupported::Fragment);
    }
    if ip[9] != TCP {
        return Err(Unsupported::Protocol);
    }

    if (ip_length as usize) < IPV4_LENGTH + TCP_LENGTH {
        return Err(Unsupported::MalformedTcp);
    }
    let tcp: [u8; TCP_LENGTH] =
        packet.load(ETHERNET_LENGTH + IPV4_LENGTH).ok_or(Unsupported::Truncated)?;
    let header_length = ((tcp[12] >> 4) as usize) * 4;
    if header_length < TCP_LENGTH || IPV4_LENGTH + header_length > ip_length as usize {
        return Err(Unsupported::MalformedTcp);
    }
    Ok(Segment {
        flow: FlowKey {
            client: Address::from_ipv4([ip[12], ip[13], ip[14], ip[15]]),
            server: Address::from_ipv4([ip[16], ip[17], ip[18], ip[19]]),
            client_port: [tcp[0], tcp[1]],
            server_port: [tcp[2], tcp[3]],
            protocol: TCP,
            reserved: [0; 3],
        },
        flags: TcpFlags(tcp[13]),
        sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        tos: ip[1],
        ip_length,
    })
}
