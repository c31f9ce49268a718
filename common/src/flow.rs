//! Flows: the two ends of one connection, as the maps key them.

use crate::zone::Zone;

/// An IPv6 address, or an IPv4 address mapped into IPv6 (RFC 4291 section 2.5.5.2), in network
/// byte order: one key and one code path for both families.
///
/// Kept as words, which makes it and the map keys that hold it aligned: the BPF target writes
/// unaligned bytes one by one, and that was nearly half of what a packet without a rule cost.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address([u32; 4]);

/// Third word of a mapped IPv4 address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Address {
    /// `::ffff:a.b.c.d`.
    #[inline(always)]
    pub const fn from_ipv4(v4: [u8; 4]) -> Self {
        Self::mapped(u32::from_ne_bytes(v4))
    }

    /// The same of a word that has its bytes as they stand in the packet.
    #[inline(always)]
    pub const fn mapped(v4: u32) -> Self {
        Self([0, 0, MAPPED, v4])
    }

    /// Four words, each with its bytes as they stand in the packet.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_mapped(self) -> bool {
        let [a, b, c, _] = self.0;
        (a | b) == 0 && c == MAPPED
    }

    /// The IPv4 address, if this is a mapped one.
    #[inline(always)]
    pub const fn to_ipv4(self) -> Option<[u8; 4]> {
        if self.is_mapped() { Some(self.0[3].to_ne_bytes()) } else { None }
    }

    /// Sixteen bytes in network byte order.
    pub fn from_ipv6(v6: [u8; 16]) -> Self {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(v6.as_chunks().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        Self(words)
    }

    /// The words, each in network byte order.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// Sixteen bytes in network byte order.
    pub fn octets(self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (bytes, word) in octets.as_chunks_mut().0.iter_mut().zip(self.0) {
            *bytes = word.to_ne_bytes();
        }
        octets
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::from_ipv4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self::from_ipv6(v6.octets()),
        }
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        match address.to_ipv4() {
            Some(v4) => core::net::IpAddr::from(v4),
            None => core::net::IpAddr::from(address.octets()),
        }
    }
}

/// The two ports of a packet, as they stand in it.
///
/// One word, written and read whole: the kernel reads keys by words, and a word that was written in
/// two halves makes it wait for both.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports(u32);

impl Ports {
    /// From a TCP or UDP header's first bytes.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }

    /// From the same four bytes, as one word.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// From the port of the source and that of the destination.
    pub const fn new(source: u16, destination: u16) -> Self {
        let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
        Self::from_bytes([a, b, c, d])
    }

    /// Network byte order.
    #[inline(always)]
    pub const fn source(self) -> [u8; 2] {
        let [a, b, ..] = self.0.to_ne_bytes();
        [a, b]
    }

    /// Network byte order.
    #[inline(always)]
    pub const fn destination(self) -> [u8; 2] {
        let [.., c, d] = self.0.to_ne_bytes();
        [c, d]
    }

    /// The same from port 0, which no connection has.
    #[inline(always)]
    #[must_use]
    pub const fn without_source(self) -> Self {
        let [_, _, c, d] = self.0.to_ne_bytes();
        Self::from_bytes([0, 0, c, d])
    }

    /// Those of an answer.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self(self.0.rotate_left(16))
    }
}

/// Key of the flow maps: the ends of a TCP connection.
///
/// Nothing but what tells flows apart is in it: the kernel hashes it for every packet of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Who opened the connection.
    pub client: Address,
    /// Whom the client addressed.
    pub server: Address,
    /// The client's and the server's.
    pub ports: Ports,
}

const _: () = assert!(size_of::<FlowKey>() == 36 && align_of::<FlowKey>() == 4);

impl FlowKey {
    /// The key of a packet that travels from `client` to `server`.
    #[inline(always)]
    pub const fn new(
        (client, client_port): (Address, u16),
        (server, server_port): (Address, u16),
    ) -> Self {
        Self { client, server, ports: Ports::new(client_port, server_port) }
    }

    /// The short form, of a flow of IPv4.
    #[inline(always)]
    pub const fn short(&self) -> Option<ShortKey> {
        if !self.client.is_mapped() || !self.server.is_mapped() {
            return None;
        }
        Some(ShortKey::new(self.client.words()[3], self.server.words()[3], self.ports))
    }

    /// The same flow seen from the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { client: self.server, server: self.client, ports: self.ports.reversed() }
    }
}

/// Key of an IPv4 flow that the relay has accepted: the kernel hashes and compares it for every
/// packet of the flow. Three words are hashed in one step and not in three (`jhash2` of
/// `linux/jhash.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShortKey {
    client: u32,
    server: u32,
    ports: Ports,
}

const _: () = assert!(size_of::<ShortKey>() == 12 && align_of::<ShortKey>() == 4);

impl ShortKey {
    /// Addresses as words that have their bytes as they stand in the packet.
    #[inline(always)]
    pub const fn new(client: u32, server: u32, ports: Ports) -> Self {
        Self { client, server, ports }
    }
}

impl From<ShortKey> for FlowKey {
    fn from(short: ShortKey) -> Self {
        let (client, server) = (Address::mapped(short.client), Address::mapped(short.server));
        Self { client, server, ports: short.ports }
    }
}

/// Value of the maps of accepted flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowState {
    /// [`crate::abi::Heartbeat::generation`] of the relay that owns the flow.
    pub generation: u64,
    /// Where its client's packets come from.
    pub zone: Zone,
}

/// Value of the map of flows that are not accepted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingState {
    /// As in [`FlowState`]; 0: the connection is the server's, whose SYN was passed after one had been
    /// diverted. The relay's stack may still know the latter, and must not be asked.
    pub generation: u64,
    /// `CLOCK_MONOTONIC` of its first SYN that was diverted, in nanoseconds; 0 once its client has
    /// answered.
    pub offered_ns: u64,
    /// As in [`FlowState`].
    pub zone: Zone,
}

const _: () = assert!(size_of::<FlowState>() == 16 && size_of::<PendingState>() == 24);

impl PendingState {
    /// Of a connection that the server has.
    pub const SERVERS: Self = Self { generation: 0, offered_ns: 0, zone: Zone::ANY };
}
