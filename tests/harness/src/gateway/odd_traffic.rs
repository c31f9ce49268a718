//! Frames of the traffic that a real link carries besides the usual, each with what it is. They are
//! committed as `tests/e2e/corpus/odd_traffic.pcap`; what becomes of each stands in `docs/verdicts.md`.

use std::net::SocketAddr;

use crate::gateway::test_run::Family;
use crate::net::frames::flag::{ACK, FIN, RST, SYN};
use crate::net::frames::{Frame, SERVICE_TAG, TAG};

/// What precedes the packets of a pcap file: microseconds, version 2.4, Ethernet, little-endian
/// (draft-ietf-opsawg-pcap).
const PCAP_HEADER: [u8; 24] =
    [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0];
/// What precedes each packet: time, two lengths.
const RECORD_HEADER: usize = 16;

/// Where IPv4 has its protocol, in an untagged frame.
const IPV4_PROTOCOL: usize = 23;
/// Where IPv6 has its next header.
const IPV6_NEXT: usize = 20;

/// A frame and its name.
pub type Odd = (String, Vec<u8>);

/// The same frame with other bytes from an offset on.
fn with(frame: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

/// Hardware addresses, a type, and the rest.
fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv6 packet with an extension header before its segment.
fn extended(next_header: u8, header: &[u8]) -> Vec<u8> {
    let plain = Family::Ipv6.from_client(SYN).bytes();
    let mut frame = with(&plain[..54], IPV6_NEXT, &[next_header]);
    frame.extend(header);
    frame.extend(&plain[54..]);
    let length = u16::try_from(frame.len() - 54).expect("short");
    with(&frame, 18, &length.to_be_bytes())
}

/// Every frame, in the order of the file.
pub fn frames() -> Vec<Odd> {
    let mut frames = Vec::new();
    let mut add = |name: &str, frame: Vec<u8>| frames.push((name.to_owned(), frame));
    links(&mut add);
    ipv4(&mut add);
    ipv6(&mut add);
    transports(&mut add);
    frames
}

fn links(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let syn = Family::Ipv4.from_client(SYN);
    let bytes = syn.bytes();
    add("SYN, IPv4", bytes.clone());
    add("SYN, IPv6", Family::Ipv6.from_client(SYN).bytes());
    add("SYN, VLAN", syn.from_port(40_001).tagged(&[TAG]).bytes());
    add("SYN, QinQ", syn.from_port(40_002).tagged(&[SERVICE_TAG, TAG]).bytes());
    add("SYN, two VLAN tags", syn.from_port(40_003).tagged(&[TAG, TAG]).bytes());
    add("SYN, IPv6, QinQ", {
        Family::Ipv6.from_client(SYN).from_port(40_004).tagged(&[SERVICE_TAG, TAG]).bytes()
    });
    add("three tags", syn.tagged(&[SERVICE_TAG, TAG, TAG]).bytes());
    add("VLAN, ARP", ethernet(TAG, &[&[0, 100, 8, 6][..], &[0; 28]].concat()));
    add(
        "ARP request",
        ethernet(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 77, 1, 11]),
    );
    add("LLDP", ethernet(0x88cc, &[2, 7, 4, 2, 0, 0, 0, 0, 2]));
    add("MPLS", ethernet(0x8847, &[&[0, 0, 0x11, 64][..], &bytes[14..]].concat()));
    add(
        "PPPoE session",
        ethernet(0x8864, &[&[0x11, 0, 0, 1, 0, 60, 0, 0x21][..], &bytes[14..]].concat()),
    );
    add("IEEE 802.3 length, spanning tree", ethernet(38, &[0x42, 0x42, 3, 0, 0, 0, 0, 0]));
    add("Ethernet header alone", bytes[..14].to_vec());
    for cut in [15, 33, 34, 53] {
        add(&format!("IPv4 cut to {cut} bytes"), bytes[..cut].to_vec());
    }
    let tagged = syn.tagged(&[TAG]).bytes();
    add("VLAN cut to 17 bytes", tagged[..17].to_vec());
    add("VLAN cut to 57 bytes", tagged[..57].to_vec());
    let ipv6 = Family::Ipv6.from_client(SYN).bytes();
    for cut in [53, 54, 73] {
        add(&format!("IPv6 cut to {cut} bytes"), ipv6[..cut].to_vec());
    }
    let mut jumbo = Family::Ipv4.from_client(ACK).from_port(50_000);
    jumbo.payload = vec![7; 8900];
    // Longer than the linear part of a test run's packet: the rest is in fragments of memory.
    add("jumbo frame of no flow", jumbo.bytes());
}

fn ipv4(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let bytes = Family::Ipv4.from_client(SYN).bytes();
    let ipv6 = Family::Ipv6.from_client(SYN).bytes();
    add("IPv4 that says version 6", with(&bytes, 14, &[0x65]));
    add("IPv4 with a header of 16 bytes", with(&bytes, 14, &[0x44]));
    add("IPv4 of total length 19", with(&bytes, 16, &[0, 19]));
    let mut options = with(&bytes, 14, &[0x46]);
    options.splice(34..34, [0x94, 4, 0, 0]);
    add("IPv4 with the router alert option", options);
    add("IPv4 with options that are cut", with(&bytes, 14, &[0x4f])[..40].to_vec());
    add("first fragment", with(&bytes, 20, &[0x20, 0]));
    add("middle fragment", with(&bytes, 20, &[0x20, 0xb9]));
    add("last fragment", with(&bytes, 20, &[0, 0xb9]));
    add("evil bit (RFC 3514) with don't fragment", with(&bytes, 20, &[0xc0, 0]));
    add("ICMP echo request", with(&bytes, IPV4_PROTOCOL, &[1]));
    add("IGMP", with(&bytes, IPV4_PROTOCOL, &[2]));
    add("IPv6 in IPv4", {
        let mut frame = with(&bytes[..34], IPV4_PROTOCOL, &[41]);
        frame.extend(&ipv6[14..]);
        with(&frame, 16, &[0, 84])
    });
    add("GRE", with(&bytes, IPV4_PROTOCOL, &[47]));
    add("ESP, IPv4", with(&bytes, IPV4_PROTOCOL, &[50]));
    add("SCTP", with(&bytes, IPV4_PROTOCOL, &[132]));
    add("UDP-Lite", with(&bytes, IPV4_PROTOCOL, &[136]));
    add("protocol 255", with(&bytes, IPV4_PROTOCOL, &[255]));
}

fn ipv6(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let bytes = Family::Ipv6.from_client(SYN).bytes();
    add("IPv6 that says version 4", with(&bytes, 14, &[0x45]));
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    add("IPv6 from ::ffff:0:0/96", with(&bytes, 22, &mapped));
    add("IPv6 to ::ffff:0:0/96", with(&bytes, 38, &mapped));
    for (name, number) in [
        ("hop-by-hop options", 0),
        ("routing header", 43),
        ("ESP", 50),
        ("authentication header", 51),
        ("destination options", 60),
        ("mobility header", 135),
        ("host identity protocol", 139),
        ("shim6", 140),
        ("experimental extension 253", 253),
        ("experimental extension 254", 254),
    ] {
        add(&format!("IPv6, {name}"), extended(number, &[6, 0, 1, 4, 0, 0, 0, 0]));
    }
    add("IPv6, first fragment", extended(44, &[6, 0, 0, 1, 0, 0, 0, 1]));
    add("IPv6, atomic fragment", extended(44, &[6, 0, 0, 0, 0, 0, 0, 1]));
    add("IPv6, no next header", with(&bytes, IPV6_NEXT, &[59]));
    add("ICMPv6", with(&bytes, IPV6_NEXT, &[58]));
    add("IPv4 in IPv6", with(&bytes, IPV6_NEXT, &[4]));
    add("IPv6, payload length 0", with(&bytes, 18, &[0, 0]));
    add("IPv6, traffic class and flow label", {
        let frame = Family::Ipv6.from_client(SYN).from_port(40_005).bytes();
        with(&frame, 14, &[0x6b, 0x8f, 0xff, 0xff])
    });
}

fn transports(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let family = Family::Ipv4;
    let bytes = family.from_client(SYN).bytes();
    let flags = |flags: u8| family.from_client(flags).from_port(50_001).bytes();
    add("TCP header of 16 bytes", with(&bytes, 46, &[0x40]));
    add("TCP header longer than its packet", with(&bytes, 46, &[0xf0]));
    add("IPv4 that ends within the TCP header", with(&bytes, 16, &[0, 39]));
    add("no flags at all", flags(0));
    add("all flags (Christmas tree)", flags(0xff));
    add("SYN and FIN", flags(SYN | FIN));
    add("SYN and RST", flags(SYN | RST));
    add("SYN and ACK", flags(SYN | ACK));
    add("RST", flags(RST));
    add("FIN and ACK", flags(FIN | ACK));
    add("ACK of no flow", flags(ACK));
    add("SYN with ECN setup (RFC 3168)", family.from_client(SYN | 0xc0).from_port(40_006).bytes());
    add("SYN with data (TCP Fast Open)", {
        let mut frame = family.from_client(SYN).from_port(40_007);
        frame.payload = b"GET / HTTP/1.1".to_vec();
        frame.bytes()
    });
    add("SYN from port 0", family.from_client(SYN).from_port(0).bytes());
    add("SYN to port 0", family.from_client(SYN).to_port(0).bytes());
    add("SYN to port 65535", family.from_client(SYN).to_port(65_535).bytes());
    add("SYN to a port without a listener", family.from_client(SYN).to_port(7001).bytes());
    add("SYN from an excluded source", family.from_client(SYN).from(family.host(1, 66)).bytes());
    let land = SocketAddr::from((family.host(2, 11), 7000));
    add("land attack: from the server to itself", Frame::tcp(land, land, SYN, 1).bytes());
    for family in Family::BOTH {
        let datagram = Frame::udp(family.client(), family.server());
        let bytes = datagram.bytes();
        let (at, name) = if family == Family::Ipv4 { (34, "IPv4") } else { (54, "IPv6") };
        add(&format!("UDP, {name}"), bytes.clone());
        add(&format!("UDP, {name}, VLAN"), datagram.tagged(&[TAG]).bytes());
        add(&format!("UDP, {name}, port without a rule"), datagram.to_port(53).bytes());
        add(&format!("UDP, {name}, nobody receives"), datagram.to_port(7001).bytes());
        add(&format!("UDP, {name}, length 7"), with(&bytes, at + 4, &[0, 7]));
        add(&format!("UDP, {name}, longer than its packet"), with(&bytes, at + 4, &[0, 99]));
        add(&format!("UDP, {name}, cut within its header"), bytes[..at + 7].to_vec());
    }
}

/// The frames as a pcap file.
pub fn to_pcap(frames: &[Odd]) -> Vec<u8> {
    let mut file = PCAP_HEADER.to_vec();
    for (_, frame) in frames {
        let length = u32::try_from(frame.len()).expect("short").to_le_bytes();
        file.extend([0; RECORD_HEADER - 8]);
        file.extend(length);
        file.extend(length);
        file.extend(frame);
    }
    file
}

/// The packets of a pcap file of this kind; `None` if it is not one.
pub fn from_pcap(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut rest = file.strip_prefix(&PCAP_HEADER)?;
    let mut packets = Vec::new();
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk::<RECORD_HEADER>()?;
        let length = u32::from_le_bytes(*header[8..].first_chunk()?);
        let (packet, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        packets.push(packet.to_vec());
        rest = after;
    }
    Some(packets)
}
