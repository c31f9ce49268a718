//! The packet parser against an independent one: the two must agree on every input.
//!
//! Headers are read by `etherparse`; what is refused and in which order is said here a second time.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2HeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice,
    SingleVlanHeaderSlice, TcpHeaderSlice, UdpHeaderSlice,
};
use millrace_common::packet::{Headers, Unsupported, parse};

use crate::dice::Dice;
use crate::gateway::odd_traffic;

/// Longest IPv4 or TCP header (RFC 791, RFC 9293: 15 words).
const LONGEST_HEADER: usize = 60;

/// What a parser says of a packet.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    tags: usize,
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
    flags: u8,
    sequence: u32,
    traffic_class: u8,
    ip_length: u32,
    transport_at: usize,
}

/// What both parsers say of a frame; it panics if they disagree. One for each reason to refuse, and
/// one for each protocol.
pub fn packet(frame: &[u8]) -> Result<u8, Unsupported> {
    let (ours, theirs) = (ours(frame), theirs(frame));
    assert!(ours == theirs, "ours: {ours:?}\ntheirs: {theirs:?}\n{frame:02x?}");
    ours.map(|said| said.protocol)
}

fn ours(frame: &[u8]) -> Result<Said, Unsupported> {
    let headers: Headers = parse(frame)?;
    let flow = headers.flow(frame).expect("parsed, and so it has addresses");
    assert!(flow.reversed().reversed() == flow);
    let end = |address, port| (IpAddr::from(address), u16::from_be_bytes(port)).into();
    Ok(Said {
        tags: headers.tags,
        source: end(flow.client, flow.ports.source()),
        destination: end(flow.server, flow.ports.destination()),
        protocol: headers.protocol,
        flags: headers.flags.0,
        sequence: headers.sequence,
        traffic_class: headers.traffic_class,
        ip_length: headers.ip_length,
        transport_at: headers.transport_at(),
    })
}

/// The start of a slice, with zeros after its end: a length field is judged before it is known
/// whether the packet has so much.
fn padded(slice: &[u8]) -> [u8; LONGEST_HEADER] {
    let mut header = [0; LONGEST_HEADER];
    let length = slice.len().min(LONGEST_HEADER);
    header[..length].copy_from_slice(&slice[..length]);
    header
}

/// What the network header says.
struct Network {
    source: IpAddr,
    destination: IpAddr,
    protocol: IpNumber,
    traffic_class: u8,
    header_length: usize,
    payload_length: usize,
}

fn theirs(frame: &[u8]) -> Result<Said, Unsupported> {
    let ethernet = Ethernet2HeaderSlice::from_slice(frame).map_err(|_| Unsupported::Truncated)?;
    let (mut ethertype, mut at, mut tags) = (ethernet.ether_type(), ethernet.slice().len(), 0);
    while [EtherType::VLAN_TAGGED_FRAME, EtherType::PROVIDER_BRIDGING].contains(&ethertype) {
        if tags == 2 {
            return Err(Unsupported::TooManyTags);
        }
        let tag =
            SingleVlanHeaderSlice::from_slice(&frame[at..]).map_err(|_| Unsupported::Truncated)?;
        ethertype = tag.ether_type();
        at += tag.slice().len();
        tags += 1;
    }
    let network = match ethertype {
        EtherType::IPV4 => ipv4(&frame[at..])?,
        EtherType::IPV6 => ipv6(&frame[at..])?,
        _ => return Err(Unsupported::EtherType),
    };
    let transport_at = at + network.header_length;
    let transport = &frame[transport_at..];
    let (ports, flags, sequence) = match network.protocol {
        IpNumber::TCP => tcp(transport, network.payload_length)?,
        IpNumber::UDP => udp(transport, network.payload_length)?,
        _ => return Err(Unsupported::Protocol),
    };
    Ok(Said {
        tags,
        source: (network.source, ports.0).into(),
        destination: (network.destination, ports.1).into(),
        protocol: network.protocol.0,
        flags,
        sequence,
        traffic_class: network.traffic_class,
        ip_length: u32::try_from(network.header_length + network.payload_length).expect("16 bits"),
        transport_at,
    })
}

fn ipv4(packet: &[u8]) -> Result<Network, Unsupported> {
    if packet.len() < 20 {
        return Err(Unsupported::Truncated);
    }
    let header = padded(packet);
    let ip = Ipv4HeaderSlice::from_slice(&header).map_err(|_| Unsupported::MalformedIpv4)?;
    let total = usize::from(ip.total_len());
    if total < 20 {
        return Err(Unsupported::MalformedIpv4);
    }
    if !ip.options().is_empty() {
        return Err(Unsupported::Ipv4Options);
    }
    if ip.is_fragmenting_payload() {
        return Err(Unsupported::Fragment);
    }
    Ok(Network {
        source: ip.source_addr().into(),
        destination: ip.destination_addr().into(),
        protocol: ip.protocol(),
        traffic_class: ip.dcp().value() << 2 | ip.ecn().value(),
        header_length: 20,
        payload_length: total - 20,
    })
}

fn ipv6(packet: &[u8]) -> Result<Network, Unsupported> {
    if packet.len() < 40 {
        return Err(Unsupported::Truncated);
    }
    let ip = Ipv6HeaderSlice::from_slice(packet).map_err(|_| Unsupported::MalformedIpv6)?;
    let (source, destination) = (ip.source_addr(), ip.destination_addr());
    if source.to_ipv4_mapped().is_some() || destination.to_ipv4_mapped().is_some() {
        return Err(Unsupported::MalformedIpv6);
    }
    match ip.next_header() {
        IpNumber::IPV6_FRAGMENTATION_HEADER => return Err(Unsupported::Fragment),
        next if next.is_ipv6_ext_header_value() => return Err(Unsupported::Ipv6Extension),
        _ => {}
    }
    Ok(Network {
        source: source.into(),
        destination: destination.into(),
        protocol: ip.next_header(),
        traffic_class: ip.traffic_class(),
        header_length: 40,
        payload_length: ip.payload_length().into(),
    })
}

type Transport = ((u16, u16), u8, u32);

fn tcp(segment: &[u8], length: usize) -> Result<Transport, Unsupported> {
    if length < 20 {
        return Err(Unsupported::MalformedTcp);
    }
    if segment.len() < 20 {
        return Err(Unsupported::Truncated);
    }
    let header = padded(segment);
    let tcp = TcpHeaderSlice::from_slice(&header).map_err(|_| Unsupported::MalformedTcp)?;
    if tcp.slice().len() > length {
        return Err(Unsupported::MalformedTcp);
    }
    let bits =
        [tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack(), tcp.urg(), tcp.ece(), tcp.cwr()];
    let flags = bits.into_iter().rev().fold(0, |flags, bit| flags << 1 | u8::from(bit));
    Ok(((tcp.source_port(), tcp.destination_port()), flags, tcp.sequence_number()))
}

fn udp(datagram: &[u8], length: usize) -> Result<Transport, Unsupported> {
    if length < 8 {
        return Err(Unsupported::MalformedUdp);
    }
    let udp = UdpHeaderSlice::from_slice(datagram).map_err(|_| Unsupported::Truncated)?;
    if !(8..=length).contains(&usize::from(udp.length())) {
        return Err(Unsupported::MalformedUdp);
    }
    Ok(((udp.source_port(), udp.destination_port()), 0, 0))
}

/// Makes frames: odd ones, more tags before them, some bytes others, cut anywhere.
#[derive(Debug)]
pub struct Generator {
    templates: Vec<Vec<u8>>,
    frame: Vec<u8>,
}

impl Default for Generator {
    fn default() -> Self {
        let mut templates: Vec<_> =
            odd_traffic::frames().into_iter().map(|(_, frame)| frame).collect();
        // What is past the headers does not matter, and takes time to copy.
        for frame in &mut templates {
            frame.truncate(120);
        }
        Self { templates, frame: Vec::new() }
    }
}

/// Offsets of fields that decide, from the network header on: version and lengths, fragments,
/// protocols, addresses, data offset and flags.
const FIELDS: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 9, 20, 24, 25, 32, 33, 52, 53];
/// Values on which something turns.
const VALUES: [u8; 16] = [0, 1, 4, 6, 8, 17, 19, 20, 40, 43, 44, 0x45, 0x46, 0x50, 0x60, 0xff];
/// Types of a tag, and of what comes after it.
const TYPES: [[u8; 2]; 6] = [[0x81, 0], [0x88, 0xa8], [0x91, 0], [8, 0], [0x86, 0xdd], [8, 6]];

impl Generator {
    /// The next frame.
    pub fn next(&mut self, dice: &mut Dice) -> &[u8] {
        let Self { templates, frame } = self;
        let byte = |dice: &mut Dice| u8::try_from(dice.below(256)).expect("a byte");
        frame.clear();
        frame.extend_from_slice(&templates[dice.below(templates.len())]);
        if dice.one_in(4) && frame.len() >= 14 {
            let [a, b] = TYPES[dice.below(TYPES.len())];
            frame.splice(12..12, [a, b, byte(dice), byte(dice)]);
        }
        for _ in 0..dice.below(4) {
            let length = frame.len();
            match dice.below(8) {
                0 => frame.truncate(dice.below(length + 1)),
                1 if length > 14 => frame[12..14].copy_from_slice(&TYPES[dice.below(TYPES.len())]),
                2 if length > 0 => frame[dice.below(length)] = byte(dice),
                3 if length > 0 => frame[dice.below(length)] ^= 1 << dice.below(8),
                4 => frame.extend((0..dice.below(24)).map(|_| byte(dice))),
                _ => {
                    let at = 14 + 4 * dice.below(3) + FIELDS[dice.below(FIELDS.len())];
                    if at < length {
                        frame[at] = VALUES[dice.below(VALUES.len())];
                    }
                }
            }
        }
        frame
    }
}
