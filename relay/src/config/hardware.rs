//! Hardware addresses.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use millrace_common::abi::MAX_SHARED_ADDRESSES;
use millrace_common::link;
use serde::{Deserialize, Serialize};

/// The Ethernet address of one station (IEEE 802), as in `00:00:5e:00:01:33`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HardwareAddress(pub [u8; 6]);

/// In the first byte: the address is a group's.
const GROUP: u8 = 1;

impl HardwareAddress {
    /// As the programs' maps have it.
    pub const fn key(self) -> link::HardwareAddress {
        link::HardwareAddress::new(self.0)
    }
}

impl FromStr for HardwareAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{text}` is not a hardware address such as 00:00:5e:00:01:33");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(malformed)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        if bytes == [0; 6] || bytes[0] & GROUP != 0 {
            return Err(format!("`{text}` is not the address of one station"));
        }
        Ok(Self(bytes))
    }
}

/// Refuses more shared addresses than the programs' map holds, and one that is named twice.
pub(super) fn check_shared(addresses: &[HardwareAddress]) -> Result<(), String> {
    if addresses.len() > MAX_SHARED_ADDRESSES as usize {
        return Err(format!("must be at most {MAX_SHARED_ADDRESSES} addresses"));
    }
    let mut seen = HashSet::new();
    match addresses.iter().find(|address| !seen.insert(**address)) {
        Some(twice) => Err(format!("`{twice}` is named twice")),
        None => Ok(()),
    }
}

impl TryFrom<String> for HardwareAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HardwareAddress> for String {
    fn from(address: HardwareAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for HardwareAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_back() {
        let address: HardwareAddress = "00:00:5e:00:01:Ff".parse().unwrap();
        assert_eq!(address.0, [0, 0, 0x5e, 0, 1, 0xff]);
        assert_eq!(address.to_string(), "00:00:5e:00:01:ff");
    }

    #[test]
    fn too_many_and_one_twice_are_refused() {
        let one = |last: u8| HardwareAddress([2, 0, 0, 0, 0, last]);
        let all: Vec<_> = (1..=64).map(one).collect();
        assert_eq!(check_shared(&all), Ok(()));
        let more = [&all[..], &[one(65)]].concat();
        assert_eq!(check_shared(&more).unwrap_err(), "must be at most 64 addresses");
        assert!(check_shared(&[one(1), one(2), one(1)]).unwrap_err().contains("named twice"));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "1:2:3:4:5:6",
            "00:00:5e:00:01",
            "00:00:5e:00:01:33:44",
            "00-00-5e-00-01-33",
            "00:00:5e:00:01:+3",
            "00:00:5e:00:01:3g",
        ] {
            let refusal = text.parse::<HardwareAddress>().unwrap_err();
            assert!(refusal.contains("is not a hardware address"), "{refusal}");
        }
        for text in ["00:00:00:00:00:00", "01:00:5e:00:00:12", "ff:ff:ff:ff:ff:ff"] {
            let refusal = text.parse::<HardwareAddress>().unwrap_err();
            assert!(refusal.contains("one station"), "{refusal}");
        }
    }
}
