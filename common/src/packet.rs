//! The one packet parser: run by the XDP programs, by userspace tests and by the fuzzer.
//!
//! It reads headers through [`PacketBytes`], which the XDP side implements with the bounds checks
//! that the verifier wants, and userspace for byte slices. What it does not understand it refuses
//! with an [`Unsupported`], and the packet takes the ordinary path.

use crate::flow::{Address, FlowKey, Ports, ShortKey};

/// Bounds-checked access to a packet, from its Ethernet header on.
pub trait PacketBytes {
    /// The `N` bytes at `offset`, or `None` if the packet ends before.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The `N` words at `offset`, each with its bytes as they stand in the packet, or `None` if the
    /// packet ends before.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
}

impl PacketBytes for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let chunks: &[[u8; 4]; N] = self.get(offset..)?.as_chunks().0.first_chunk()?;
        Some(chunks.map(u32::from_ne_bytes))
    }
}

/// Length of an Ethernet header without tags (IEEE 802.3).
pub const ETHERNET_LENGTH: usize = 14;
/// Length of a VLAN tag (IEEE 802.1Q).
pub const TAG_LENGTH: usize = 4;
/// Most VLAN tags of a packet that is looked at: a service's and a customer's (IEEE 802.1ad).
pub const MAX_TAGS: usize = 2;
/// Length of an IPv4 header without options (RFC 791 section 3.1).
pub const IPV4_LENGTH: usize = 20;
/// Length of an IPv6 header (RFC 8200 section 3).
pub const IPV6_LENGTH: usize = 40;
/// Length of a TCP header without options (RFC 9293 section 3.1).
pub const TCP_LENGTH: usize = 20;
/// Length of a UDP header (RFC 768).
pub const UDP_LENGTH: usize = 8;
/// IANA protocol number of TCP.
pub const TCP: u8 = 6;
/// IANA protocol number of UDP.
pub const UDP: u8 = 17;

/// The same lengths, as header fields count them.
pub(crate) const IPV4_BYTES: u32 = 20;
pub(crate) const IPV6_BYTES: u32 = 40;
pub(crate) const TCP_BYTES: u32 = 20;
const UDP_BYTES: u32 = 8;

/// Where a frame without tags says what it carries.
pub const ETHERTYPE_AT: usize = 12;
/// An IPv4 packet (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// An IPv6 packet (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_TAG: u16 = 0x8100;
const ETHERTYPE_SERVICE_TAG: u16 = 0x88a8;
const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;
pub(crate) const IPV6_FRAGMENT: u8 = 44;

/// Why a packet is not ours to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Shorter than its headers.
    Truncated,
    /// Another network protocol: ARP, MPLS, …
    EtherType,
    /// More than [`MAX_TAGS`] VLAN tags.
    TooManyTags,
    /// A version or length that RFC 791 does not allow.
    MalformedIpv4,
    /// IPv4 options (RFC 791 section 3.1).
    Ipv4Options,
    /// A version that RFC 8200 does not allow, or an IPv4 address mapped into IPv6, which nobody
    /// may send (RFC 4291 section 2.5.5.2) and which would pass for the IPv4 address.
    MalformedIpv6,
    /// An IPv6 extension header other than that of a fragment.
    Ipv6Extension,
    /// A fragment, the first one too: its later parts carry no ports.
    Fragment,
    /// Another transport protocol.
    Protocol,
    /// A length that RFC 9293 does not allow.
    MalformedTcp,
    /// A length that RFC 768 does not allow.
    MalformedUdp,
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

    /// Ends a connection in good order, on its sender's side.
    #[inline(always)]
    pub const fn finishes(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// Aborts a connection.
    #[inline(always)]
    pub const fn resets(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// Accepts a connection: SYN and ACK.
    #[inline(always)]
    pub const fn accepts(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN | Self::ACK
    }

    /// May be what completes a connection that began with a SYN cookie: it acknowledges.
    #[inline(always)]
    pub const fn acknowledges(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::ACK
    }
}

/// The network protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RFC 791.
    Ipv4,
    /// RFC 8200.
    Ipv6,
}

/// What stands in the headers of a TCP segment or UDP datagram, but for the addresses, which are
/// read when they are wanted: most packets are none of ours by their port already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// VLAN tags before the network header.
    pub tags: usize,
    /// The network protocol.
    pub family: Family,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Source's and destination's.
    pub ports: Ports,
    /// The TCP control bits; none in UDP.
    pub flags: TcpFlags,
    /// The TCP sequence number; 0 in UDP.
    pub sequence: u32,
    /// IPv4's type of service or IPv6's traffic class, for the route look-up.
    pub traffic_class: u8,
    /// Length of the IP packet in bytes, for the route look-up's MTU check.
    pub ip_length: u32,
}

impl Headers {
    /// Where the network header begins.
    #[inline(always)]
    pub const fn network_at(&self) -> usize {
        ETHERNET_LENGTH + self.tags * TAG_LENGTH
    }

    /// Where the transport header begins.
    #[inline(always)]
    pub const fn transport_at(&self) -> usize {
        self.network_at()
            + match self.family {
                Family::Ipv4 => IPV4_LENGTH,
                Family::Ipv6 => IPV6_LENGTH,
            }
    }

    /// The flow, with the packet's source as `client`; `None` only of another packet than these
    /// headers'.
    #[inline(always)]
    pub fn flow<P: PacketBytes + ?Sized>(&self, packet: &P) -> Option<FlowKey> {
        let (client, server) = addresses(packet, self.family, self.network_at())?;
        Some(FlowKey { client, server, ports: self.ports })
    }

    /// The short form of the flow, of an IPv4 packet.
    #[inline(always)]
    pub fn short_flow<P: PacketBytes + ?Sized>(&self, packet: &P) -> Option<ShortKey> {
        let [client, server] = match self.family {
            Family::Ipv4 => packet.words(self.network_at() + 12)?,
            Family::Ipv6 => return None,
        };
        Some(ShortKey::new(client, server, self.ports))
    }

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
    let (ethertype, tags) = link(packet).ok()?;
    let at = ETHERNET_LENGTH + tags * TAG_LENGTH;
    let (family, protocol_at) = match ethertype {
        ETHERTYPE_IPV4 => (Family::Ipv4, at + 9),
        ETHERTYPE_IPV6 => (Family::Ipv6, at + 6),
        _ => return None,
    };
    let [protocol] = packet.load(protocol_at)?;
    let (source, destination) = addresses(packet, family, at)?;
    Some(Ends { source, destination, protocol })
}

/// Source and destination, from the network header that begins there.
#[inline(always)]
pub(crate) fn addresses<P: PacketBytes + ?Sized>(
    packet: &P,
    family: Family,
    at: usize,
) -> Option<(Address, Address)> {
    match family {
        Family::Ipv4 => {
            let [source, destination] = packet.words(at + 12)?;
            Some((Address::mapped(source), Address::mapped(destination)))
        }
        Family::Ipv6 => Some((
            Address::from_words(packet.words(at + 8)?),
            Address::from_words(packet.words(at + 24)?),
        )),
    }
}

/// The network header, and the tags before it.
#[inline(always)]
pub(crate) fn network<P: PacketBytes + ?Sized>(
    packet: &P,
) -> Result<(Network, usize), Unsupported> {
    let (ethertype, tags) = link(packet)?;
    let at = ETHERNET_LENGTH + tags * TAG_LENGTH;
    match ethertype {
        ETHERTYPE_IPV4 => Ok((ipv4(packet, at)?, tags)),
        ETHERTYPE_IPV6 => Ok((ipv6(packet, at)?, tags)),
        _ => Err(Unsupported::EtherType),
    }
}

/// Parses a packet that starts with its Ethernet header.
#[inline(always)]
pub fn parse<P: PacketBytes + ?Sized>(packet: &P) -> Result<Headers, Unsupported> {
    let (ethertype, tags) = link(packet)?;
    let at = ETHERNET_LENGTH + tags * TAG_LENGTH;
    match ethertype {
        ETHERTYPE_IPV4 => transport(packet, tags, &ipv4(packet, at)?),
        ETHERTYPE_IPV6 => transport(packet, tags, &ipv6(packet, at)?),
        _ => Err(Unsupported::EtherType),
    }
}

/// The network protocol, and the tags before it.
#[inline(always)]
pub(crate) fn link<P: PacketBytes + ?Sized>(packet: &P) -> Result<(u16, usize), Unsupported> {
    let mut tags = 0;
    loop {
        let bytes = packet.load(ETHERTYPE_AT + tags * TAG_LENGTH).ok_or(Unsupported::Truncated)?;
        let ethertype = u16::from_be_bytes(bytes);
        if !matches!(ethertype, ETHERTYPE_TAG | ETHERTYPE_SERVICE_TAG) {
            return Ok((ethertype, tags));
        }
        if tags == MAX_TAGS {
            return Err(Unsupported::TooManyTags);
        }
        tags += 1;
    }
}

/// The VLAN identifiers of a packet with so many tags: that of the outer one above that of the inner one. A
/// priority tag is as none (IEEE 802.1Q section 9.6: identifier 0).
#[inline(always)]
pub fn vlans<P: PacketBytes + ?Sized>(packet: &P, tags: usize) -> u32 {
    // In one piece: the verifier follows every question whether the packet has another byte.
    let [_, _, a, b, _, _, c, d]: [u8; 8] = packet.load(ETHERTYPE_AT).unwrap_or_default();
    let identifier = |control| u32::from(u16::from_be_bytes(control) & 0x0fff);
    let (outer, inner) = (identifier([a, b]), identifier([c, d]));
    match tags {
        0 => 0,
        1 => outer,
        _ if inner == 0 => outer,
        _ => outer << 12 | inner,
    }
}

/// What the transport needs to know of the network header.
pub(crate) struct Network {
    pub(crate) family: Family,
    pub(crate) protocol: u8,
    traffic_class: u8,
    header_length: u32,
    payload_length: u32,
}

#[inline(always)]
fn ipv4<P: PacketBytes + ?Sized>(packet: &P, at: usize) -> Result<Network, Unsupported> {
    let ip: [u8; IPV4_LENGTH] = packet.load(at).ok_or(Unsupported::Truncated)?;
    let ip_length = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    if ip[0] != 0x45 {
        let impossible = ip[0] >> 4 != 4 || ip[0] & 0x0f < 5 || ip_length < IPV4_BYTES;
        let reason = if impossible { Unsupported::MalformedIpv4 } else { Unsupported::Ipv4Options };
        return Err(reason);
    }
    if ip_length < IPV4_BYTES {
        return Err(Unsupported::MalformedIpv4);
    }
    if u16::from_be_bytes([ip[6], ip[7]]) & MORE_FRAGMENTS_OR_OFFSET != 0 {
        return Err(Unsupported::Fragment);
    }
    Ok(Network {
        family: Family::Ipv4,
        protocol: ip[9],
        traffic_class: ip[1],
        header_length: IPV4_BYTES,
        payload_length: ip_length - IPV4_BYTES,
    })
}

#[inline(always)]
fn ipv6<P: PacketBytes + ?Sized>(packet: &P, at: usize) -> Result<Network, Unsupported> {
    let ip: [u8; 8] = packet.load(at).ok_or(Unsupported::Truncated)?;
    let (source, destination) =
        addresses(packet, Family::Ipv6, at).ok_or(Unsupported::Truncated)?;
    if ip[0] >> 4 != 6 || source.is_mapped() || destination.is_mapped() {
        return Err(Unsupported::MalformedIpv6);
    }
    match ip[6] {
        IPV6_FRAGMENT => return Err(Unsupported::Fragment),
        // IANA's registry "IPv6 Extension Header Types".
        0 | 43 | 50 | 51 | 60 | 135 | 139 | 140 | 253 | 254 => {
            return Err(Unsupported::Ipv6Extension);
        }
        _ => {}
    }
    Ok(Network {
        family: Family::Ipv6,
        protocol: ip[6],
        traffic_class: ip[0] << 4 | ip[1] >> 4,
        header_length: IPV6_BYTES,
        payload_length: u32::from(u16::from_be_bytes([ip[4], ip[5]])),
    })
}

#[inline(always)]
fn transport<P: PacketBytes + ?Sized>(
    packet: &P,
    tags: usize,
    network: &Network,
) -> Result<Headers, Unsupported> {
    let at = ETHERNET_LENGTH + tags * TAG_LENGTH + network.header_length as usize;
    let (ports, flags, sequence) = match network.protocol {
        TCP => tcp(packet, at, network.payload_length)?,
        UDP => udp(packet, at, network.payload_length)?,
        _ => return Err(Unsupported::Protocol),
    };
    Ok(Headers {
        tags,
        family: network.family,
        protocol: network.protocol,
        ports: Ports::from_bytes(ports),
        flags,
        sequence,
        traffic_class: network.traffic_class,
        ip_length: network.header_length + network.payload_length,
    })
}

type Transport = ([u8; 4], TcpFlags, u32);

#[inline(always)]
fn tcp<P: PacketBytes + ?Sized>(
    packet: &P,
    at: usize,
    length: u32,
) -> Result<Transport, Unsupported> {
    if length < TCP_BYTES {
        return Err(Unsupported::MalformedTcp);
    }
    let tcp: [u8; TCP_LENGTH] = packet.load(at).ok_or(Unsupported::Truncated)?;
    let header_length = u32::from(tcp[12] >> 4) * 4;
    if header_length < TCP_BYTES || header_length > length {
        return Err(Unsupported::MalformedTcp);
    }
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    Ok(([tcp[0], tcp[1], tcp[2], tcp[3]], TcpFlags(tcp[13]), sequence))
}

#[inline(always)]
fn udp<P: PacketBytes + ?Sized>(
    packet: &P,
    at: usize,
    length: u32,
) -> Result<Transport, Unsupported> {
    if length < UDP_BYTES {
        return Err(Unsupported::MalformedUdp);
    }
    let udp: [u8; UDP_LENGTH] = packet.load(at).ok_or(Unsupported::Truncated)?;
    let datagram_length = u32::from(u16::from_be_bytes([udp[4], udp[5]]));
    if datagram_length < UDP_BYTES || datagram_length > length {
        return Err(Unsupported::MalformedUdp);
    }
    Ok(([udp[0], udp[1], udp[2], udp[3]], TcpFlags(0), 0))
}
