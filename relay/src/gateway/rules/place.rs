//! Where the packets of a rule come from: as it is written, and by the numbers that the programs know.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use millrace_common::rule::Place;
use millrace_common::zone::Zones;

/// What a line says of where packets come from: nothing, a client-facing device, a VLAN, or both. Of two
/// lines that are alike otherwise the later one decides in this order: neither, a device, a VLAN, both.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Where {
    /// By this device.
    pub device: Option<Arc<str>>,
    /// From this VLAN.
    pub vlan: Option<Vlan>,
}

impl Where {
    /// What it names.
    pub const fn named(&self) -> Zones {
        Zones { by_device: self.device.is_some(), by_vlan: self.vlan.is_some() }
    }

    /// As the programs know it; `None` of a device that they do not know.
    pub(super) fn told(&self, devices: &DeviceNumbers) -> Option<Place> {
        let device = match &self.device {
            Some(name) => devices.numbers.get(&**name).copied()?,
            None => 0,
        };
        Some(Place::new(self.named(), device, self.vlan.map_or(0, |vlan| vlan.0)))
    }
}

impl fmt::Display for Where {
    /// With a space before each part.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(device) = &self.device {
            write!(f, " device {device}")?;
        }
        self.vlan.map_or(Ok(()), |vlan| write!(f, " vlan {vlan}"))
    }
}

/// A VLAN: the identifiers of one tag or of two, as [`millrace_common::packet::vlans`] has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlan(u32);

impl Vlan {
    /// Of frames without a tag, or with identifier 0 in it (IEEE 802.1Q: a priority alone).
    pub const NONE: Self = Self(0);
}

impl FromStr for Vlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::NONE);
        }
        let tag = |text: &str| {
            text.parse().ok().filter(|identifier| (1..=4094).contains(identifier)).ok_or_else(|| {
                format!(
                    "`{text}` is not a VLAN: use 1 to 4094, OUTER.INNER for two tags, or `none` for \
                     frames without a tag"
                )
            })
        };
        match text.split_once('.') {
            None => Ok(Self(tag(text)?)),
            Some((outer, inner)) => Ok(Self(tag(outer)? << 12 | tag(inner)?)),
        }
    }
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 >> 12, self.0 & 0xfff) {
            (0, 0) => f.write_str("none"),
            (0, identifier) => write!(f, "{identifier}"),
            (outer, inner) => write!(f, "{outer}.{inner}"),
        }
    }
}

/// The client-facing devices that rules may name, by the numbers that the programs know them by.
#[derive(Clone, Debug, Default)]
pub struct DeviceNumbers {
    numbers: BTreeMap<String, u16>,
    are_loaded: bool,
}

impl DeviceNumbers {
    /// Those of a configuration, as `load` will number them.
    pub fn configured(names: &[String]) -> Self {
        Self { numbers: names.iter().cloned().zip(1..).collect(), are_loaded: false }
    }

    /// Those of a loaded instance.
    pub(in crate::gateway) fn loaded(numbered: impl Iterator<Item = (u16, String)>) -> Self {
        let numbers = numbered.map(|(number, name)| (name, number)).collect();
        Self { numbers, are_loaded: true }
    }

    /// What is wrong with a place that they do not know.
    pub(super) fn mistake(&self, of: &Where) -> Option<String> {
        let name = of.device.as_deref().filter(|name| !self.numbers.contains_key(*name))?;
        let known: Vec<&str> = self.numbers.keys().map(String::as_str).collect();
        let known = known.join(", ");
        Some(if self.are_loaded {
            format!(
                "the instance was loaded without `device {name}`, with {known} alone: run `relay load \
                 --replace`, which takes it up, and apply the rules then"
            )
        } else {
            format!(
                "`device {name}` is not one of gateway.devices, which are {known}: name one of them, \
                 or add it there"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_is_written_as_it_is_read() {
        for (text, number) in [("none", 0), ("1", 1), ("4094", 0xffe), ("100.5", 0x64_005)] {
            let vlan: Vlan = text.parse().unwrap();
            assert_eq!((vlan, vlan.to_string().as_str()), (Vlan(number), text));
        }
        for text in ["0", "4095", "", "untagged", "1.", ".1", "1.2.3", "0.5", "-1"] {
            let error = text.parse::<Vlan>().unwrap_err();
            assert!(
                error.contains("use 1 to 4094, OUTER.INNER for two tags, or `none`"),
                "{error}"
            );
        }
    }
}
