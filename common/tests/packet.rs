//! The parser in userspace: what it accepts, what it refuses and why, and that nothing confuses it.

use millrace_common::flow::{Address, FlowKey};
use millrace_common::fragment::fragment;
use millrace_common::icmp::report;
use millrace_common::packet::{
    ETHERNET_LENGTH, Family, Headers, IPV4_LENGTH, TCP, TCP_LENGTH, UDP, Unsupported, ends, parse,
};
use proptest::prelude::*;

const HEADERS: usize = ETHERNET_LENGTH + IPV4_LENGTH + TCP_LENGTH;

/// A TCP segment in an IPv4 packet in an Ethernet frame, field by field.
#[derive(Clone, Debug)]
struct Fields {
    source: ([u8; 4], u16),
    destination: ([u8; 4], u16),
    tos: u8,
    dont_fragment: bool,
    sequence: u32,
    flags: u8,
    tcp_options: Vec<u8>,
    payload: Vec<u8>,
    padding: usize,
}

impl Fields {
    fn ip_length(&self) -> u16 {
        let length = IPV4_LENGTH + TCP_LENGTH + self.tcp_options.len() + self.payload.len();
        u16::try_from(length).unwrap()
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, self.tos]);
        frame.extend(self.ip_length().to_be_bytes());
        frame.extend([0x12, 0x34, if self.dont_fragment { 0x40 } else { 0 }, 0, 64, TCP, 0, 0]);
        frame.extend(self.source.0);
        frame.extend(self.destination.0);
        frame.extend(self.source.1.to_be_bytes());
        frame.extend(self.destination.1.to_be_bytes());
        frame.extend(self.sequence.to_be_bytes());
        let words = u8::try_from((TCP_LENGTH + self.tcp_options.len()) / 4).unwrap();
        frame.extend([0, 0, 0, 0, words << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(&self.tcp_options);
        frame.extend(&self.payload);
        frame.resize(frame.len() + self.padding, 0);
        frame
    }
}

fn fields() -> impl Strategy<Value = Fields> {
    (
        any::<(([u8; 4], u16), ([u8; 4], u16), u8, bool, u32, u8)>(),
        (0..=10usize).prop_flat_map(|words| prop::collection::vec(any::<u8>(), words * 4)),
        prop::collection::vec(any::<u8>(), 0..200),
        0..20usize,
    )
        .prop_map(|(fixed, tcp_options, payload, padding)| {
            let (source, destination, tos, dont_fragment, sequence, flags) = fixed;
            Fields {
                source,
                destination,
                tos,
                dont_fragment,
                sequence,
                flags,
                tcp_options,
                payload,
                padding,
            }
        })
}

fn plain() -> Fields {
    Fields {
        source: ([10, 0, 0, 1], 40_000),
        destination: ([203, 0, 113, 11], 7000),
        tos: 0,
        dont_fragment: true,
        sequence: 1,
        flags: 0x02,
        tcp_options: Vec::new(),
        payload: Vec::new(),
        padding: 0,
    }
}

fn parsed(frame: &[u8]) -> Result<Headers, Unsupported> {
    parse(frame)
}

/// The plain frame with some bytes replaced.
fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = plain().frame();
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

/// A frame with tags of these types put before its type.
fn tagged(frame: &[u8], types: &[u16]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for tag in types {
        tagged.extend(tag.to_be_bytes());
        tagged.extend([0x20, 0x64]);
    }
    tagged.extend(&frame[12..]);
    tagged
}

const IPV6_SOURCE: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const IPV6_DESTINATION: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/// An IPv6 packet of traffic class 0xb8 in an Ethernet frame.
fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x6b, 0x80, 0, 0]);
    frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend([next_header, 64]);
    frame.extend(IPV6_SOURCE);
    frame.extend(IPV6_DESTINATION);
    frame.extend(payload);
    frame
}

/// A segment one of whose addresses is an IPv4 address mapped into IPv6.
fn mapped(offset: usize) -> Vec<u8> {
    let mut frame = ipv6(TCP, &plain().frame()[34..]);
    assert!(parsed(&frame).is_ok());
    frame[offset..offset + 12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    frame
}

#[test]
fn every_extension_header_is_refused() {
    // IANA's registry "IPv6 Extension Header Types", but for the fragment's.
    for next_header in [0, 43, 50, 51, 60, 135, 139, 140, 253, 254] {
        let frame = ipv6(next_header, &[0; 40]);
        assert_eq!(parsed(&frame), Err(Unsupported::Ipv6Extension), "{next_header}");
    }
}

/// Both families, both transports, up to two tags of both types.
/// A trace tells who a packet is from, also of one that the parser refuses.
#[test]
fn a_refused_packet_has_ends_too() {
    let fragment = with(20, &[0x20, 0]);
    assert_eq!(parsed(&fragment), Err(Unsupported::Fragment));
    let told = ends(fragment.as_slice()).unwrap();
    assert_eq!(Some(told), ends(plain().frame().as_slice()));
    assert_eq!((told.source.to_ipv4(), told.protocol), (Some(plain().source.0), TCP));

    let extended = tagged(&ipv6(60, &[0; 8]), &[0x88a8, 0x8100]);
    assert_eq!(parsed(&extended), Err(Unsupported::Ipv6Extension));
    let told = ends(extended.as_slice()).unwrap();
    assert_eq!(told.source, Address::from_ipv6(IPV6_SOURCE));
    assert_eq!((told.destination, told.protocol), (Address::from_ipv6(IPV6_DESTINATION), 60));

    let arp = with(12, &[0x08, 0x06]);
    assert_eq!(ends(arp.as_slice()), None);
    assert_eq!(ends(&extended[..60]), None);
}

#[test]
fn tags_and_families_do_not_matter() {
    let udp = [0x9c, 0x40, 0x1b, 0x58, 0, 8, 0, 0];
    let mut ipv4_udp = with(23, &[UDP]);
    ipv4_udp[34..42].copy_from_slice(&udp);
    for (frame, family, protocol) in [
        (plain().frame(), Family::Ipv4, TCP),
        (ipv4_udp, Family::Ipv4, UDP),
        (ipv6(TCP, &plain().frame()[34..]), Family::Ipv6, TCP),
        (ipv6(UDP, &udp), Family::Ipv6, UDP),
    ] {
        for types in
            [&[][..], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100], &[0x8100, 0x88a8]]
        {
            let frame = tagged(&frame, types);
            let headers = parsed(&frame).unwrap();
            assert_eq!((headers.family, headers.protocol), (family, protocol));
            assert_eq!(headers.tags, types.len());
            let flow = headers.flow(&frame[..]).unwrap();
            assert_eq!(flow.ports.source(), 40_000_u16.to_be_bytes());
            assert_eq!(flow.ports.destination(), 7000_u16.to_be_bytes());
            let (client, server): (std::net::IpAddr, std::net::IpAddr) = match family {
                Family::Ipv4 => ([10, 0, 0, 1].into(), [203, 0, 113, 11].into()),
                Family::Ipv6 => (IPV6_SOURCE.into(), IPV6_DESTINATION.into()),
            };
            assert_eq!((flow.client, flow.server), (client.into(), server.into()));
            let class = if family == Family::Ipv6 { 0xb8 } else { 0 };
            assert_eq!(headers.traffic_class, class);
        }
    }
}

#[test]
fn what_is_not_understood_is_refused_with_its_reason() {
    use Unsupported::{
        EtherType, Fragment, Ipv4Options, MalformedIpv4, MalformedIpv6, MalformedTcp, MalformedUdp,
        Protocol, TooManyTags, Truncated,
    };
    assert!(parsed(&plain().frame()).is_ok());
    for (frame, reason) in [
        (Vec::new(), Truncated),
        (with(12, &[0x08, 0x06]), EtherType),
        (with(12, &[0x88, 0x47]), EtherType),
        // An IPv6 packet must say so itself.
        (with(12, &[0x86, 0xdd]), MalformedIpv6),
        (tagged(&plain().frame(), &[0x8100, 0x8100, 0x8100]), TooManyTags),
        (tagged(&with(12, &[0x08, 0x06]), &[0x88a8, 0x8100]), EtherType),
        (plain().frame()[..13].to_vec(), Truncated),
        (tagged(&plain().frame(), &[0x8100])[..17].to_vec(), Truncated),
        (with(14, &[0x65]), MalformedIpv4),
        (with(14, &[0x44]), MalformedIpv4),
        (with(16, &[0, 19]), MalformedIpv4),
        (with(14, &[0x46]), Ipv4Options),
        (with(14, &[0x4f]), Ipv4Options),
        // More fragments follow; a later fragment; the last one.
        (with(20, &[0x20, 0x00]), Fragment),
        (with(20, &[0x20, 0x01]), Fragment),
        (with(20, &[0x1f, 0xff]), Fragment),
        (with(23, &[1]), Protocol),
        (with(23, &[47]), Protocol),
        // The sequence number stands where UDP has its length: 0 and 1.
        (with(23, &[17]), MalformedUdp),
        // The packet ends within the TCP header, whatever the frame holds.
        (with(16, &[0, 39]), MalformedTcp),
        (with(46, &[0x40]), MalformedTcp),
        // A TCP header that is longer than its packet.
        (with(46, &[0x60]), MalformedTcp),
        (ipv6(TCP, &[0; 19]), MalformedTcp),
        (ipv6(UDP, &[0; 7]), MalformedUdp),
        (ipv6(UDP, &[0, 1, 0, 2, 0, 9, 0, 0]), MalformedUdp),
        (ipv6(44, &[0; 40]), Fragment),
        (ipv6(58, &[0; 40]), Protocol),
        (ipv6(59, &[]), Protocol),
        (ipv6(TCP, &[0; 40])[..53].to_vec(), Truncated),
        (mapped(22), MalformedIpv6),
        (mapped(38), MalformedIpv6),
    ] {
        assert_eq!(parsed(&frame), Err(reason), "{frame:02x?}");
    }
}

#[test]
fn only_a_bare_syn_opens() {
    for flags in 0..=u8::MAX {
        let segment = parsed(&Fields { flags, ..plain() }.frame()).unwrap();
        // FIN, RST and ACK contradict it; PSH, URG and the congestion bits do not.
        assert_eq!(segment.flags.opens(), flags & 0b1_0111 == 0b0_0010, "{flags:#010b}");
        assert_eq!(segment.flags.resets(), flags & 0b100 != 0, "{flags:#010b}");
        assert_eq!(segment.flags.acknowledges(), flags & 0b1_0110 == 0b1_0000, "{flags:#010b}");
    }
}

#[test]
fn a_refusal_is_a_reset_with_sequence_number_zero() {
    let refuses = |flags, sequence| {
        parsed(&Fields { sequence, flags, ..plain() }.frame()).unwrap().refuses_connection()
    };
    assert!(refuses(0b1_0100, 0));
    assert!(refuses(0b0_0100, 0));
    assert!(!refuses(0b1_0100, 1));
    assert!(!refuses(0b1_0000, 0));
}

proptest! {
    /// Every field comes out as it went in, TCP options, payload and Ethernet padding or not.
    #[test]
    fn fields_survive(fields in fields()) {
        let flow = FlowKey::new(
            (Address::from_ipv4(fields.source.0), fields.source.1),
            (Address::from_ipv4(fields.destination.0), fields.destination.1),
        );
        let segment = parsed(&fields.frame()).unwrap();
        prop_assert_eq!(segment.flow(&fields.frame()[..]), Some(flow));
        prop_assert_eq!(segment.protocol, TCP);
        prop_assert_eq!(segment.flags.0, fields.flags);
        prop_assert_eq!(segment.sequence, fields.sequence);
        prop_assert_eq!(segment.traffic_class, fields.tos);
        prop_assert_eq!(segment.ip_length, u32::from(fields.ip_length()));
    }

    /// A frame cut anywhere within its headers is refused as truncated; beyond them it is parsed.
    #[test]
    fn a_cut_frame_is_truncated(fields in fields(), cut in 0..HEADERS + 10) {
        let frame = fields.frame();
        let cut = cut.min(frame.len());
        let result = parsed(&frame[..cut]);
        if cut < HEADERS {
            prop_assert_eq!(result, Err(Unsupported::Truncated));
        } else {
            prop_assert_eq!(result, parsed(&frame));
        }
    }

    /// Arbitrary bytes never panic, and what is accepted says what stands in the packet.
    #[test]
    fn arbitrary_bytes_are_safe(
        mut frame in prop::collection::vec(any::<u8>(), 0..128),
        plausible in any::<bool>(),
    ) {
        // Chance alone hardly ever gets past the EtherType.
        if plausible && frame.len() > 23 {
            frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
            frame[20] &= 0x40;
            frame[21] = 0;
            frame[23] = TCP;
        }
        prop_assert!(report(&frame[..]).is_none() || !plausible, "TCP is no ICMP");
        if let Some(read) = fragment(&frame[..]) {
            prop_assert!(!plausible || read.first.is_some());
        }
        if let Ok(segment) = parsed(&frame) {
            prop_assert!(frame.len() >= segment.transport_at() + 8);
            let flow = segment.flow(&frame[..]).unwrap();
            if plausible {
                prop_assert_eq!(&frame[12..15], &[0x08, 0x00, 0x45]);
                prop_assert_eq!(&flow.client.to_ipv4().unwrap()[..], &frame[26..30]);
                prop_assert_eq!(&flow.server.to_ipv4().unwrap()[..], &frame[30..34]);
                prop_assert_eq!(segment.protocol, TCP);
                prop_assert!(segment.ip_length as usize >= IPV4_LENGTH + TCP_LENGTH);
            }
        }
    }

    /// One flow, two directions.
    #[test]
    fn reversing_twice_is_nothing(fields in fields()) {
        let flow_of = |fields: &Fields| {
            let frame = fields.frame();
            parsed(&frame).unwrap().flow(&frame[..]).unwrap()
        };
        let flow = flow_of(&fields);
        let back = Fields {
            source: fields.destination,
            destination: fields.source,
            ..fields
        };
        prop_assert_eq!(flow_of(&back), flow.reversed());
        prop_assert_eq!(flow.reversed().reversed(), flow);
    }

    /// Addresses of both families survive the common form.
    #[test]
    fn addresses_survive(v4 in any::<[u8; 4]>(), v6 in any::<[u8; 16]>()) {
        use std::net::IpAddr;
        let address = Address::from_ipv4(v4);
        prop_assert_eq!(address.to_ipv4(), Some(v4));
        prop_assert_eq!(IpAddr::from(address), IpAddr::from(v4));
        prop_assert_eq!(Address::from(IpAddr::from(v4)), address);
        prop_assert_eq!(&address.octets()[..12], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        let address = Address::from(IpAddr::from(v6));
        prop_assert_eq!(address.octets(), v6);
        if address.to_ipv4().is_none() {
            prop_assert_eq!(IpAddr::from(address), IpAddr::from(v6));
        }
    }
}

#[test]
fn verdicts_are_numbered_and_named_apart() {
    use millrace_common::verdict::Verdict;
    use std::collections::HashSet;
    let names: HashSet<_> = Verdict::ALL.iter().map(|verdict| verdict.name()).collect();
    assert_eq!(names.len(), Verdict::ALL.len());
    for (index, verdict) in Verdict::ALL.iter().enumerate() {
        assert_eq!(*verdict as usize, index);
        let action = verdict.name().split_once('/').unwrap().0;
        assert!(["pass", "drop", "divert", "return"].contains(&action));
    }
}
