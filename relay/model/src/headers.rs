//! Headers of a record beside its payload, as they travel through the rings: one run of bytes.

use std::ffi::CStr;

/// Most headers that a record of the uplink has beside the relay's own; a protocol refuses what would
/// have more. A reply may have as many as its record has room for.
pub const MAX_RECORD_HEADERS: usize = 128;

/// Headers one behind the other: length of the name with its NUL, length of the value (four bytes
/// each), name, NUL, value. Only [`HeaderList`] makes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a>(&'a [u8]);

/// A list that headers are added to; reused, so that it allocates seldom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderList {
    bytes: Vec<u8>,
}

/// Bytes before a name.
const PREFIX: usize = 8;

impl<'a> Headers<'a> {
    /// No header.
    pub const NONE: Headers<'static> = Headers(&[]);

    /// What [`as_bytes`](Self::as_bytes) of a list gave.
    #[inline]
    pub const fn from_bytes(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// For the rings.
    #[inline]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// True if there is none.
    #[inline]
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
            let [a, b, c, d, value @ ..] = *prefix;
            let (name, after) = after.split_at(u32::from_le_bytes([a, b, c, d]) as usize);
            let (value, after) = after.split_at(u32::from_le_bytes(value) as usize);
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
/// own, which do not, are within what each record is booked as.
pub fn weight_of(name: &CStr, value_bytes: usize) -> usize {
    weight_of_name(name.to_bytes(), value_bytes)
}

/// The same of a name without its NUL.
pub fn weight_of_name(name: &[u8], value_bytes: usize) -> usize {
    if name.contains(&b'.') { PREFIX + name.len() + value_bytes } else { 0 }
}

impl HeaderList {
    /// Adds a header; false if it is not taken: a NUL in its name, or 4 GiB of it.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.push_parts(&[name], value)
    }

    /// Like [`push`](Self::push), the name in several parts.
    pub fn push_parts(&mut self, name: &[&[u8]], value: &[u8]) -> bool {
        let begun = self.begin(name, value.len());
        if begun {
            self.bytes.extend_from_slice(value);
        }
        begun
    }

    /// Like [`push_parts`](Self::push_parts), for the value of a field of HTTP. One that is not UTF-8
    /// is taken for ISO-8859-1, as such values were once (RFC 9110 section 5.5): what stands in a
    /// record is text.
    pub fn push_field(&mut self, name: &[&[u8]], value: &[u8]) -> bool {
        if str::from_utf8(value).is_ok() {
            return self.push_parts(name, value);
        }
        let text = value.iter().map(|byte| char::from(*byte));
        let begun = self.begin(name, text.clone().map(char::len_utf8).sum());
        if begun {
            for character in text {
                self.bytes.extend_from_slice(character.encode_utf8(&mut [0; 2]).as_bytes());
            }
        }
        begun
    }

    /// Adds all of a header but its value.
    fn begin(&mut self, name: &[&[u8]], value_bytes: usize) -> bool {
        let length = name.iter().map(|part| part.len()).sum::<usize>() + 1;
        let (Ok(length), Ok(size)) = (u32::try_from(length), u32::try_from(value_bytes)) else {
            return false;
        };
        if name.iter().any(|part| part.contains(&0)) {
            return false;
        }
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&size.to_le_bytes());
        for part in name {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
        true
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// What is in it.
    pub fn headers(&self) -> Headers<'_> {
        Headers(&self.bytes)
    }
}

/// A number in decimal, without an allocation.
#[derive(Clone, Copy, Debug)]
pub struct Decimal {
    digits: [u8; Self::LENGTH],
    first: usize,
}

impl Decimal {
    /// Digits of `u64::MAX`.
    const LENGTH: usize = 20;

    /// The numbers below 100, with two digits each.
    const PAIRS: [[u8; 2]; 100] = {
        let mut pairs = [[b'0'; 2]; 100];
        let mut number = 0;
        while number < 100 {
            pairs[number as usize] = [b'0' + number / 10, b'0' + number % 10];
            number += 1;
        }
        pairs
    };

    /// Prints a number.
    #[inline]
    pub fn new(number: impl Into<u64>) -> Self {
        let mut number = number.into();
        let (mut digits, mut first) = ([b'0'; Self::LENGTH], Self::LENGTH);
        while number >= 10 {
            first -= 2;
            let pair = Self::PAIRS[usize::try_from(number % 100).expect("below 100")];
            digits[first..first + 2].copy_from_slice(&pair);
            number /= 100;
        }
        if number > 0 || first == Self::LENGTH {
            first -= 1;
            digits[first] += u8::try_from(number).expect("a digit");
        }
        Self { digits, first }
    }

    /// Its digits.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
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
        for number in 0..1000_u32 {
            assert!(list.push(b"http.header.set-cookie", &number.to_le_bytes()));
        }
        let cookies = list.headers();
        assert_eq!(cookies.iter().skip(3).count(), 1000, "a reply has as many as it likes");
        let long = vec![b'n'; 1 << 16];
        assert!(list.push(&long, b"v"), "and names as long");
        assert_eq!(list.headers().iter().last().unwrap().0.to_bytes(), long);
    }

    #[test]
    fn the_value_of_a_field_is_text() {
        let mut list = HeaderList::default();
        for value in [&b"plain"[..], "caf\u{e9}".as_bytes(), b"caf\xe9", b"\xc3\x28\x80\xff", b""] {
            assert!(list.push_field(&[b"http.", b"x"], value));
        }
        assert!(!list.push_field(&[b"a\0b"], b"\xff"));
        let values = list.headers().iter().map(|(_, value)| str::from_utf8(value).unwrap());
        let expected = ["plain", "caf\u{e9}", "caf\u{e9}", "\u{c3}(\u{80}\u{ff}", ""];
        assert_eq!(values.collect::<Vec<_>>(), expected);
    }
}
