//! Ethernet frames made by hand: both families, TCP and UDP, VLAN tags, right checksums.

use std::net::{IpAddr, SocketAddr};

use millrace_common::packet::{TCP, UDP};

/// TCP control bits (RFC 9293 section 3.1).
pub mod flag {
    /// The sender has ended its side.
    pub const FIN: u8 = 1;
    /// Opens.
    pub const SYN: u8 = 2;
    /// Aborts.
    pub const RST: u8 = 4;
    /// Acknowledges.
    pub const ACK: u8 = 16;
}

/// A customer's VLAN tag (IEEE 802.1Q).
pub const TAG: u16 = 0x8100;
/// A service's VLAN tag (IEEE 802.1ad).
pub const SERVICE_TAG: u16 = 0x88a8;
/// Length of the two hardware addresses.
const ADDRESSES: usize = 12;

/// One frame, with what tests vary.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Destination's and source's hardware addresses.
    pub link: ([u8; 6], [u8; 6]),
    /// Types of the VLAN tags, from the outside in.
    pub tags: Vec<u16>,
    /// Of the packet, and of the same family as
    pub source: SocketAddr,
    /// its destination.
    pub destination: SocketAddr,
    /// What it carries.
    pub transport: Transport,
    /// After the transport's header.
    pub payload: Vec<u8>,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug)]
pub enum Transport {
    /// A segment without options.
    Tcp {
        /// See [`flag`].
        flags: u8,
        /// Its number.
        sequence: u32,
        /// What it acknowledges.
        acknowledgment: u32,
    },
    /// A datagram.
    Udp,
}

impl Frame {
    /// A segment.
    pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8, sequence: u32) -> Self {
        let transport = Transport::Tcp { flags, sequence, acknowledgment: 0 };
        Self { transport, ..Self::udp(source, destination) }
    }

    /// A datagram.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        let link = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let payload = b"data".to_vec();
        Self { link, tags: Vec::new(), source, destination, transport: Transport::Udp, payload }
    }

    /// The same with VLAN tags.
    #[must_use]
    pub fn tagged(&self, tags: &[u16]) -> Self {
        Self { tags: tags.to_vec(), ..self.clone() }
    }

    /// The same to another port.
    #[must_use]
    pub fn to_port(&self, port: u16) -> Self {
        let mut other = self.clone();
        other.destination.set_port(port);
        other
    }

    /// The same from another port.
    #[must_use]
    pub fn from_port(&self, port: u16) -> Self {
        let mut other = self.clone();
        other.source.set_port(port);
        other
    }

    /// The same from another address.
    #[must_use]
    pub fn from(&self, address: IpAddr) -> Self {
        let mut other = self.clone();
        other.source.set_ip(address);
        other
    }

    /// Where the network header begins.
    pub fn network_at(&self) -> usize {
        ADDRESSES + 4 * self.tags.len() + 2
    }

    /// As it is on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(64);
        frame.extend(self.link.0);
        frame.extend(self.link.1);
        for tag in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0x20, 0x64]);
        }
        let segment = self.segment();
        let (protocol, length) = (self.protocol(), u16::try_from(segment.len()).expect("short"));
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let mut header = vec![0x45, 0];
                header.extend((20 + length).to_be_bytes());
                header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = checksum(&header, 0);
                header[10..12].copy_from_slice(&sum);
                frame.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([protocol, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            (source, destination) => panic!("{source} and {destination} are of two families"),
        }
        frame.extend(segment);
        frame
    }

    const fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => TCP,
            Transport::Udp => UDP,
        }
    }

    /// The transport's header and the payload.
    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(self.source.port().to_be_bytes());
        segment.extend(self.destination.port().to_be_bytes());
        let sum_at = match self.transport {
            Transport::Tcp { flags, sequence, acknowledgment } => {
                segment.extend(sequence.to_be_bytes());
                segment.extend(acknowledgment.to_be_bytes());
                segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                16
            }
            Transport::Udp => {
                let length = u16::try_from(8 + self.payload.len()).expect("a short payload");
                segment.extend(length.to_be_bytes());
                segment.extend([0, 0]);
                6
            }
        };
        segment.extend(&self.payload);
        let length = u32::try_from(segment.len()).expect("short");
        let pseudo_header = words(&octets(self.source.ip()))
            + words(&octets(self.destination.ip()))
            + u32::from(self.protocol())
            + length;
        let sum = checksum(&segment, pseudo_header);
        segment[sum_at..sum_at + 2].copy_from_slice(&sum);
        segment
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The sum of 16-bit words in network byte order.
fn words(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from))
        .sum()
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8], start: u32) -> [u8; 2] {
    let mut sum = start + words(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).expect("folded");
    sum.to_be_bytes()
}
