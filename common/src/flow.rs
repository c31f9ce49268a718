//! Flows: the two ends of one connection, as the maps key them.

/// An IPv6 address, or an IPv4 address mapped into IPv6 (RFC 4291 section 2.5.5.2), in network
/// byte order: one key and one code path for both families.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// `::ffff:a.b.c.d`.
    #[inline(always)]
    pub const fn from_ipv4(v4: [u8; 4]) -> Self {
        let [a, b, c, d] = v4;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The IPv4 address, if this is a mapped one.
    #[inline(always)]
    pub const fn to_ipv4(self) -> Option<[u8; 4]> {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::from_ipv4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        match address.to_ipv4() {
            Some(v4) => core::net::IpAddr::from(v4),
            None => core::net::IpAddr::from(address.0),
        }
    }
}

/// Key of both flow maps. Ports in network byte order, as they stand in the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Who opened the connection.
    pub client: Address,
    /// Whom the client addressed.
    pub server: Address,
    /// Network byte order.
    pub client_port: [u8; 2],
    /// Network byte order.
    pub server_port: [u8; 2],
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<FlowKey>() == 40);

impl FlowKey {
    /// The key of a packet that travels from `client` to `server`.
    #[inline(always)]
    pub const fn new(
        protocol: u8,
        (client, client_port): (Address, u16),
        (server, server_port): (Address, u16),
    ) -> Self {
        Self {
            client,
            server,
            client_port: client_port.to_be_bytes(),
            server_port: server_port.to_be_bytes(),
            protocol,
            reserved: [0; 3],
        }
    }

    /// The same flow seen from the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            client: self.server,
            server: self.client,
            client_port: self.server_port,
            server_port: self.client_port,
            ..self
        }
    }
}

/// Value of both flow maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowState {
    /// [`crate::abi::Heartbeat::generation`] of the relay that owns the flow.
    pub generation: u64,
}
