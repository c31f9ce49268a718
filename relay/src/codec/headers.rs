//! Headers of a record beside its payload, as they travel through the rings: one run of bytes.

use std::ffi::CStr;

/// Most headers that a record may carry beside the relay's own. Further ones are not taken.
pub const MAX_RECORD_HEADERS: usize = 128;

/// Headers one behind the other: length of the name with its NUL (two bytes), length of the value
/// (four), name, NUL, value. Only [`HeaderList`] makes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a>(&'a [u8]);

/// A list that headers are added to; reused, so that it allocates seldom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderList {
    bytes: Vec<u8>,
    count: usize,
}

/// Bytes before a name.
const PREFIX: usize = 6;

impl<'a> Headers<'a> {
    /// No header.
    pub const NONE: Headers<'static> = Headers(&[]);

    /// What [`as_bytes`](Self::as_bytes) of a list gave.
    pub(crate) const fn from_bytes(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// For the rings.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// True if there is none.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// What they are booked as, in bytes.
    pub fn weight(self) -> usize {
        self.iter().map(|(name, value)| weight_of(name, value.len())).sum()
    }

    /// Names and values, in order.
    pub fn iter(self) -> impl Iterator<Item = (&'a CStr, &'a [u8])> + Clone {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (prefix, after) = rest.split_first_chunk::<PREFIX>()?;
            let name = usize::from(u16::from_le_bytes([prefix[0], prefix[1]]));
            let value = u32::from_le_bytes([prefix[2], prefix[3], prefix[4], prefix[5]]);
            let (name, after) = after.split_at(name);
            let (value, after) = after.split_at(value as usize);
            rest = after;
            Some((CStr::from_bytes_with_nul(name).expect("a list holds names with NUL"), value))
        })
    }

    /// The last value under a name.
    pub fn get(self, name: &CStr) -> Option<&'a [u8]> {
        self.iter().filter(|(other, _)| *other == name).last().map(|(_, value)| value)
    }

    /// The last value under a name, if it is UTF-8.
    pub fn text(self, name: &CStr) -> Option<&'a str> {
        std::str::from_utf8(self.get(name)?).ok()
    }
}

/// What a header of a record is booked as. Those of protocols have a point in their name; the relay's
/// own, which do not, are within [`MESSAGE_OVERHEAD_BYTES`](crate::ring::MESSAGE_OVERHEAD_BYTES).
pub(crate) fn weight_of(name: &CStr, value_bytes: usize) -> usize {
    let name = name.to_bytes();
    if name.contains(&b'.') { PREFIX + name.len() + value_bytes } else { 0 }
}

impl HeaderList {
    /// Adds a header; false if it is not taken: a NUL in its name, a name of 64 KiB, or too many.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.push_parts(&[name], value)
    }

    /// Like [`push`](Self::push), the name in several parts.
    pub fn push_parts(&mut self, name: &[&[u8]], value: &[u8]) -> bool {
        let length = name.iter().map(|part| part.len()).sum::<usize>() + 1;
        let (Ok(length), Ok(size)) = (u16::try_from(length), u32::try_from(value.len())) else {
            return false;
        };
        if self.count == MAX_RECORD_HEADERS || name.iter().any(|part| part.contains(&0)) {
            return false;
        }
        self.count += 1;
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&size.to_le_bytes());
        for part in name {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
        self.bytes.extend_from_slice(value);
        true
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// What is in it.
    pub fn headers(&self) -> Headers<'_> {
        Headers(&self.bytes)
    }
}

/// A number in decimal, without an allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decimal {
    digits: [u8; Self::LENGTH],
    first: usize,
}

impl Decimal {
    /// Digits of `u64::MAX`.
    const LENGTH: usize = 20;

    pub(crate) fn new(number: impl Into<u64>) -> Self {
        let mut number = number.into();
        let (mut digits, mut first) = ([b'0'; Self::LENGTH], Self::LENGTH);
        loop {
            first -= 1;
            digits[first] += u8::try_from(number % 10).expect("a digit");
            number /= 10;
            if number == 0 {
                return Self { digits, first };
            }
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.digits[self.first..]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decimals_are_those_of_the_library(number: u64) {
            for number in [number, number >> 40, number >> 60, u64::MAX] {
                let (decimal, expected) = (Decimal::new(number), number.to_string());
                prop_assert_eq!(decimal.as_bytes(), expected.as_bytes());
            }
        }
    }

    #[test]
    fn a_list_gives_back_what_was_put_in() {
        let mut list = HeaderList::default();
        assert!(list.push(b"topic", b"a/b"));
        assert!(list.push_parts(&[b"http.", b"host"], b""));
        assert!(list.push(b"topic", b"c"));
        assert!(!list.push(b"to\0pic", b"c"));
        let headers = list.headers();
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [(c"topic", &b"a/b"[..]), (c"http.host", b""), (c"topic", b"c")]);
        assert_eq!(headers.text(c"topic"), Some("c"));
        assert_eq!(headers.get(c"tropic"), None);
        assert!(Headers::NONE.iter().next().is_none());
        for _ in list.headers().iter().count()..MAX_RECORD_HEADERS {
            assert!(list.push(b"n", b"v"));
        }
        assert!(!list.push(b"n", b"v"));
    }
}
