//! The data types of MQTT (section 1.5 of both versions) and its fixed header, read and written.

use super::reason::Reason;

/// What reading gives: a fault is told by its reason code.
pub(super) type Parsed<T> = Result<T, Reason>;

/// Longest variable byte integer.
const MAX_VARINT_BYTES: usize = 4;
/// Greatest value of one.
pub(super) const MAX_VARINT: usize = 0x0fff_ffff;

/// Reads from the front of a packet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// All that is left.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn bytes(&mut self, count: usize) -> Parsed<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Reason::MALFORMED)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Reason::MALFORMED)?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(super) fn u8(&mut self) -> Parsed<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Parsed<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A number other than 0, as packet identifiers and most maxima are.
    pub(super) fn nonzero_u16(&mut self, otherwise: Reason) -> Parsed<u16> {
        self.u16().and_then(|value| if value == 0 { Err(otherwise) } else { Ok(value) })
    }

    /// A variable byte integer, in its shortest form.
    pub(super) fn varint(&mut self) -> Parsed<usize> {
        match varint(self.0)? {
            Some((value, length)) => {
                self.0 = &self.0[length..];
                Ok(value)
            }
            None => Err(Reason::MALFORMED),
        }
    }

    pub(super) fn binary(&mut self) -> Parsed<&'a [u8]> {
        let length = self.u16()?;
        self.bytes(usize::from(length))
    }

    /// A string: UTF-8, so without surrogates, and without NUL.
    pub(super) fn string(&mut self) -> Parsed<&'a str> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Reason::MALFORMED)?;
        if text.contains('\0') { Err(Reason::MALFORMED) } else { Ok(text) }
    }
}

/// A variable byte integer at the front, and its length; nothing if more bytes are needed.
pub(super) fn varint(bytes: &[u8]) -> Parsed<Option<(usize, usize)>> {
    let mut value = 0;
    for (place, byte) in bytes.iter().take(MAX_VARINT_BYTES).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            // "The encoded value MUST use the minimum number of bytes" (MQTT-1.5.5-1).
            let padded = place > 0 && *byte == 0;
            return if padded { Err(Reason::MALFORMED) } else { Ok(Some((value, place + 1))) };
        }
    }
    if bytes.len() >= MAX_VARINT_BYTES { Err(Reason::MALFORMED) } else { Ok(None) }
}

/// Bytes of the packet at the front with its fixed header, as soon as they can be told; a packet
/// longer than the limit is refused by its header.
pub(super) fn packet_length(bytes: &[u8], limit: usize) -> Parsed<Option<usize>> {
    let Some((_, length)) = bytes.split_first() else { return Ok(None) };
    let Some((remaining, header)) = varint(length)? else { return Ok(None) };
    let total = 1 + header + remaining;
    if total > limit { Err(Reason::PACKET_TOO_LARGE) } else { Ok(Some(total)) }
}

pub(super) fn put_varint(output: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        if value == 0 {
            return output.push(low);
        }
        output.push(low | 0x80);
    }
}

/// Bytes of a variable byte integer.
pub(super) const fn varint_bytes(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

/// A length and bytes, of which there are at most 65,535.
pub(super) fn put_binary(output: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("checked by the caller");
    output.extend_from_slice(&length.to_be_bytes());
    output.extend_from_slice(bytes);
}
