//! Ranges of ports.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Ports from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last, not below the first.
    pub last: u16,
}

impl Ports {
    /// Every port.
    pub const ANY: Self = Self { first: 0, last: u16::MAX };

    /// How many, less one.
    pub(crate) const fn width(self) -> u16 {
        self.last - self.first
    }

    /// Whether a port is among them.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Each of them.
    pub fn each(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

impl From<u16> for Ports {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl FromStr for Ports {
    type Err = String;

    /// One port, or `FIRST-LAST`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let wrong = |_| format!("`{text}` is not a port: use 0 to 65535, or FIRST-LAST");
        let (first, last) = (first.parse().map_err(wrong)?, last.parse().map_err(wrong)?);
        if first > last {
            return Err(format!("`{text}`: the first port is greater than the last"));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ANY => f.write_str("any"),
            Self { first, last } if first == last => write!(f, "{first}"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

/// One port as a number, several as text.
impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = Ports;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port such as 1883, or a range such as \"8000-8099\"")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Ports, E> {
                let port = u16::try_from(number);
                port.map(Ports::from).map_err(|_| E::custom(format!("{number} is not a port")))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Ports, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ports, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_and_a_range_is_text() {
        for (json, ports) in
            [("1883", Ports::from(1883)), ("\"8000-8099\"", Ports { first: 8000, last: 8099 })]
        {
            assert_eq!(serde_json::from_str::<Ports>(json).expect(json), ports);
            assert_eq!(serde_json::to_string(&ports).expect(json), json);
        }
        for (wrong, why) in [
            ("70000", "70000 is not a port"),
            ("-1", "-1 is not a port"),
            ("\"http\"", "`http` is not a port"),
            ("\"2-1\"", "the first port is greater than the last"),
            ("[1]", "a range such as"),
        ] {
            let told = serde_json::from_str::<Ports>(wrong).expect_err(wrong).to_string();
            assert!(told.contains(why), "{wrong}: {told}");
        }
    }
}
