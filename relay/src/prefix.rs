//! Address prefixes of both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use millrace_common::flow::Address;
use serde::{Deserialize, Serialize};

/// A prefix in CIDR notation (RFC 4632 section 3.1, RFC 4291 section 2.3); a bare address is a
/// prefix of full length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// Network address, host bits zero.
    pub address: IpAddr,
    /// 0 to 32, or to 128.
    pub length: u8,
}

impl Prefix {
    /// All addresses of each family.
    pub const EVERYWHERE: [Self; 2] = [
        Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 },
        Self { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 },
    ];

    /// The prefix of this length in which an address lies.
    pub fn containing(address: IpAddr, length: u8) -> Self {
        Self { address: network(address, length), length }
    }

    /// Bits of an address of the prefix's family.
    pub(crate) const fn width(address: IpAddr) -> u8 {
        match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        }
    }

    /// The address as the programs' maps have it.
    pub fn key(self) -> Address {
        Address::from(self.address)
    }

    /// The length within [`Self::key`], where an IPv4 address is mapped into IPv6.
    pub fn key_bits(self) -> u32 {
        128 - u32::from(Self::width(self.address) - self.length)
    }

    /// Whether an address lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        Self::width(address) == Self::width(self.address)
            && network(address, self.length) == self.address
    }
}

/// An address with its host bits cleared.
fn network(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| {
            format!("`{text}` is not a prefix such as 203.0.113.0/24 or 2001:db8::/32")
        })?;
        if address.to_canonical() != address {
            return Err(format!("`{text}` is an IPv4 address in IPv6; write it as IPv4"));
        }
        let width = Self::width(address);
        let length: u8 = match length {
            None => width,
            Some(length) => length
                .parse()
                .ok()
                .filter(|length| *length <= width)
                .ok_or_else(|| format!("`{text}`: the prefix length goes from 0 to {width}"))?,
        };
        let prefix = Self::containing(address, length);
        if prefix.address != address {
            return Err(format!("`{text}` has host bits set; did you mean {prefix}?"));
        }
        Ok(prefix)
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<Prefix>().unwrap_err()
    }

    #[test]
    fn both_families_are_read_and_written() {
        for text in ["0.0.0.0/0", "203.0.113.0/24", "10.0.0.1/32", "::/0", "2001:db8::/32"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!("10.0.0.1".parse::<Prefix>().unwrap().to_string(), "10.0.0.1/32");
        assert_eq!("::1".parse::<Prefix>().unwrap().to_string(), "::1/128");
    }

    #[test]
    fn mistakes_are_explained() {
        assert!(refused("10.0.0.1/24").contains("did you mean 10.0.0.0/24?"));
        assert!(refused("2001:db8::1/32").contains("did you mean 2001:db8::/32?"));
        assert!(refused("10.0.0.0/33").contains("0 to 32"));
        assert!(refused("::/129").contains("0 to 128"));
        assert!(refused("::ffff:10.0.0.1").contains("write it as IPv4"));
        assert!(refused("ten").contains("is not a prefix"));
    }

    #[test]
    fn what_lies_within() {
        let contains = |prefix: &str, address: &str| {
            prefix.parse::<Prefix>().unwrap().contains(address.parse().unwrap())
        };
        assert!(contains("0.0.0.0/0", "255.1.2.3") && contains("::/0", "2001:db8::1"));
        assert!(contains("10.1.0.0/16", "10.1.2.3") && !contains("10.1.0.0/16", "10.2.0.0"));
        // Neither family's everything is the other's.
        assert!(!contains("0.0.0.0/0", "::1") && !contains("::/0", "10.0.0.1"));
    }
}
