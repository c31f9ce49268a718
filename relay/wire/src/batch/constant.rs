//! What records of one origin have in common, encoded once.

use super::write::put_bytes;

/// Bytes of the numbers before what is encoded.
const LENGTHS: usize = 8;

/// The key of a record, and its first headers, in wire format.
#[derive(Clone, Copy, Debug)]
pub struct Constant<'a> {
    /// With its length.
    pub(super) key: &'a [u8],
    /// Without their number.
    pub(super) headers: &'a [u8],
    pub(super) count: usize,
}

impl<'a> Constant<'a> {
    /// An empty key, and no header.
    pub const NONE: Self = Self { key: &[0], headers: &[], count: 0 };

    /// Encodes a key and headers, each with name and value.
    pub fn encode<'b>(
        key: &[u8],
        headers: impl Iterator<Item = (&'b [u8], &'b [u8])>,
    ) -> Box<[u8]> {
        let mut out = vec![0; LENGTHS];
        put_bytes(&mut out, key);
        let key = u32::try_from(out.len() - LENGTHS).expect("keys are far below 4 GiB");
        let mut count = 0_u32;
        for (name, value) in headers {
            put_bytes(&mut out, name);
            put_bytes(&mut out, value);
            count += 1;
        }
        out[..4].copy_from_slice(&key.to_ne_bytes());
        out[4..LENGTHS].copy_from_slice(&count.to_ne_bytes());
        out.into_boxed_slice()
    }

    /// What [`encode`](Self::encode) has made.
    ///
    /// # Panics
    ///
    /// If it is something else.
    #[inline]
    pub fn from_bytes(encoded: &'a [u8]) -> Self {
        let (numbers, encoded) = encoded.split_at(LENGTHS);
        let number = |at: usize| {
            let bytes = numbers[at..at + 4].try_into().expect("four bytes");
            u32::from_ne_bytes(bytes) as usize
        };
        let (key, headers) = encoded.split_at(number(0));
        Self { key, headers, count: number(4) }
    }
}
