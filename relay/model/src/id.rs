//! Which relay, which run of it, which connection.

use serde::{Deserialize, Serialize};

/// A relay, and its partition of the downlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct RelayId(pub u16);

/// One run of a relay: Unix milliseconds of its start, 48 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, Hash)]
#[serde(transparent)]
pub struct Incarnation(u64);

impl Incarnation {
    const BITS: u32 = 48;

    /// From Unix milliseconds.
    pub const fn new(unix_ms: u64) -> Self {
        Self(unix_ms & ((1 << Self::BITS) - 1))
    }

    /// As it stands in a key.
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// A connection, unmistakably: no two connections of any run of any relay have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// Which relay.
    pub relay: RelayId,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// Which worker of it.
    pub worker: u8,
    /// Which slot of the worker, 24 bits.
    pub slot: u32,
    /// Which user of the slot.
    pub generation: u32,
}

/// Why a record's key is not a connection key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a connection key: five groups of 4, 12, 2, 6 and 8 lower-case hexadecimal digits")]
pub struct KeyError;

impl ConnectionKey {
    /// Bytes of a printed key.
    pub const LENGTH: usize = 36;
    const GROUPS: [usize; 5] = [4, 12, 2, 6, 8];

    /// As it stands in a record: `RRRR-IIIIIIIIIIII-WW-SSSSSS-GGGGGGGG`, hexadecimal.
    pub fn print(&self) -> [u8; Self::LENGTH] {
        let values = [
            u64::from(self.relay.0),
            self.incarnation.0,
            u64::from(self.worker),
            u64::from(self.slot),
            u64::from(self.generation),
        ];
        let mut text = [b'-'; Self::LENGTH];
        let mut rest = &mut text[..];
        for (value, digits) in values.into_iter().zip(Self::GROUPS) {
            let group;
            (group, rest) = rest.split_at_mut(digits);
            let mut value = value;
            for place in group.iter_mut().rev() {
                *place = b"0123456789abcdef"[(value & 0xf) as usize];
                value >>= 4;
            }
            rest = rest.get_mut(1..).unwrap_or_default();
        }
        text
    }

    /// The inverse of [`print`](Self::print), strictly.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let text: &[u8; Self::LENGTH] = text.try_into().map_err(|_| KeyError)?;
        let mut rest = &text[..];
        let mut values = [0_u64; 5];
        for (value, digits) in values.iter_mut().zip(Self::GROUPS) {
            let group;
            (group, rest) = rest.split_at(digits);
            for byte in group {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    b'a'..=b'f' => byte - b'a' + 10,
                    _ => return Err(KeyError),
                };
                *value = *value << 4 | u64::from(digit);
            }
            rest = match rest.split_first() {
                Some((b'-', rest)) => rest,
                None => rest,
                Some(_) => return Err(KeyError),
            };
        }
        let [relay, incarnation, worker, slot, generation] = values;
        let narrow = |_| KeyError;
        Ok(Self {
            relay: RelayId(relay.try_into().map_err(narrow)?),
            incarnation: Incarnation(incarnation),
            worker: worker.try_into().map_err(narrow)?,
            slot: slot.try_into().map_err(narrow)?,
            generation: generation.try_into().map_err(narrow)?,
        })
    }
}

/// The connection and the name of the one whom replies wait for, from a record's key: a key without
/// a slash has no such name.
pub fn split_reply_key(text: &[u8]) -> Result<(ConnectionKey, Option<&str>), KeyError> {
    let (key, rest) = text.split_at_checked(ConnectionKey::LENGTH).ok_or(KeyError)?;
    let holder = match rest {
        [] => None,
        [b'/', holder @ ..] => Some(std::str::from_utf8(holder).map_err(|_| KeyError)?),
        _ => return Err(KeyError),
    };
    Ok((ConnectionKey::parse(key)?, holder))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_printed_key_parses_to_itself(
            relay: u16, incarnation: u64, worker: u8, slot in 0..1_u32 << 24, generation: u32,
        ) {
            let key = ConnectionKey {
                relay: RelayId(relay),
                incarnation: Incarnation::new(incarnation),
                worker,
                slot,
                generation,
            };
            prop_assert_eq!(ConnectionKey::parse(&key.print()), Ok(key));
        }

        #[test]
        fn nonsense_is_refused(text in prop::collection::vec(any::<u8>(), 0..50)) {
            let _ = split_reply_key(&text);
            if let Ok(key) = ConnectionKey::parse(&text) {
                prop_assert_eq!(&key.print()[..], &text[..]);
            }
        }
    }

    #[test]
    fn the_documented_example() {
        let text = b"0000-0193abcdef12-03-00002a-00000007";
        let key = ConnectionKey::parse(text).unwrap();
        assert_eq!((key.relay.0, key.worker, key.slot, key.generation), (0, 3, 42, 7));
        assert_eq!(ConnectionKey::parse(b"0000-0193ABCDEF12-03-00002a-00000007"), Err(KeyError));
        assert_eq!(ConnectionKey::parse(b"0000+0193abcdef12-03-00002a-00000007"), Err(KeyError));
    }
}
