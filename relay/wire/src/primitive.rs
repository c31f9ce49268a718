//! The primitive types of Kafka's protocol (<https://kafka.apache.org/protocol#protocol_types>), as far as
//! flexible versions (KIP-482) use them.

/// Why an answer cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends within a field.
    #[error("it ends within a field")]
    Short,
    /// A number takes more bytes than its type has.
    #[error("a number of variable length does not end")]
    Number,
    /// A length is negative, or null where that is not allowed.
    #[error("a length is out of range")]
    Length,
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
}

/// Reads fields one after another. Whatever the bytes are, it neither panics nor allocates.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// From the first byte on.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(*bytes)
    }

    /// `INT8`.
    pub fn i8(&mut self) -> Result<i8, Malformed> {
        self.array().map(i8::from_be_bytes)
    }

    /// `BOOLEAN`.
    pub fn bool(&mut self) -> Result<bool, Malformed> {
        self.i8().map(|byte| byte != 0)
    }

    /// `INT16`.
    pub fn i16(&mut self) -> Result<i16, Malformed> {
        self.array().map(i16::from_be_bytes)
    }

    /// `INT32`.
    pub fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    /// `UINT32`.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// `INT64`.
    pub fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    /// `UUID`.
    pub fn uuid(&mut self) -> Result<[u8; 16], Malformed> {
        self.array()
    }

    fn base128(&mut self, most_bytes: u32) -> Result<u64, Malformed> {
        let mut value = 0;
        for place in 0..most_bytes {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::Number)
    }

    /// `UNSIGNED_VARINT`.
    pub fn unsigned(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.base128(5)?).map_err(|_| Malformed::Number)
    }

    /// `VARINT`.
    pub fn varint(&mut self) -> Result<i32, Malformed> {
        let zigzag = self.unsigned()?;
        Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }

    /// `VARLONG`.
    pub fn varlong(&mut self) -> Result<i64, Malformed> {
        let zigzag = self.base128(10)?;
        Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }

    /// The bytes after a `VARINT` with their number; none for -1.
    pub fn varint_bytes(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.varint()? {
            -1 => Ok(None),
            count => self.bytes(usize::try_from(count).map_err(|_| Malformed::Length)?).map(Some),
        }
    }

    /// The number of elements of a `COMPACT_ARRAY`; none for null.
    pub fn compact_length(&mut self) -> Result<Option<u32>, Malformed> {
        self.unsigned().map(|length| length.checked_sub(1))
    }

    /// The number of elements of an array that may not be null.
    pub fn array_length(&mut self) -> Result<u32, Malformed> {
        self.compact_length()?.ok_or(Malformed::Length)
    }

    /// `COMPACT_NULLABLE_BYTES`.
    pub fn compact_bytes(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.compact_length()? {
            None => Ok(None),
            Some(count) => self.bytes(count as usize).map(Some),
        }
    }

    /// `COMPACT_NULLABLE_STRING`.
    pub fn compact_str(&mut self) -> Result<Option<&'a str>, Malformed> {
        let bytes = self.compact_bytes()?;
        bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| Malformed::Text)).transpose()
    }

    /// `STRING`, of the old kind.
    pub fn short_str(&mut self) -> Result<&'a str, Malformed> {
        let length = usize::try_from(self.i16()?).map_err(|_| Malformed::Length)?;
        std::str::from_utf8(self.bytes(length)?).map_err(|_| Malformed::Text)
    }

    /// Skips the tagged fields at the end of a structure (KIP-482).
    pub fn skip_tags(&mut self) -> Result<(), Malformed> {
        for _ in 0..self.unsigned()? {
            self.unsigned()?;
            let length = self.unsigned()?;
            self.bytes(length as usize)?;
        }
        Ok(())
    }
}

/// Most bytes of a number of variable length: 64 bits, seven a byte.
pub const MOST_VARINT_BYTES: usize = 10;

/// The unsigned number that stands for a signed one, so that small ones of either sign are short.
pub(crate) const fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

/// Appends an `UNSIGNED_VARINT`.
pub fn put_unsigned(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Appends a `COMPACT_STRING`.
pub fn put_str(out: &mut Vec<u8>, text: &str) {
    put_unsigned(out, text.len() as u64 + 1);
    out.extend_from_slice(text.as_bytes());
}

/// Appends a `NULLABLE_STRING` of the old kind, with a length of two bytes, as in the header of every
/// request. What is too long for that is cut, between two letters.
pub fn put_short_str(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(MOST_SHORT_STR)];
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Longest text with a length of two bytes, which has a sign.
const MOST_SHORT_STR: usize = i16::MAX as usize;

/// The empty list of tagged fields (KIP-482).
pub const NO_TAGS: u8 = 0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(value in any::<i64>(), short in any::<i32>(), unsigned in any::<u32>()) {
            let mut out = Vec::new();
            put_unsigned(&mut out, zigzag(value));
            put_unsigned(&mut out, zigzag(short.into()));
            put_unsigned(&mut out, unsigned.into());
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varlong(), Ok(value));
            prop_assert_eq!(reader.varint(), Ok(short));
            prop_assert_eq!(reader.unsigned(), Ok(unsigned));
            prop_assert!(reader.rest().is_empty());
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let reader = Reader::new(&bytes);
            for read in [
                |mut reader: Reader<'_>| reader.varlong().is_ok(),
                |mut reader: Reader<'_>| reader.varint_bytes().is_ok(),
                |mut reader: Reader<'_>| reader.compact_str().is_ok(),
                |mut reader: Reader<'_>| reader.skip_tags().is_ok(),
            ] {
                read(reader);
            }
        }
    }

    #[test]
    fn numbers_that_do_not_end_are_refused() {
        assert_eq!(Reader::new(&[0xff; 5]).unsigned(), Err(Malformed::Number));
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x1f]).unsigned(), Err(Malformed::Number));
        assert_eq!(Reader::new(&[0xff; 3]).unsigned(), Err(Malformed::Short));
        assert_eq!(Reader::new(&[3]).varint_bytes(), Err(Malformed::Length), "-2");
    }
}
