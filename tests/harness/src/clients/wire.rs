//! The client's side of the framings, written apart from the relay's codecs so that it can check them.

use millrace_relay::codec::{ByteOrder, Framing};

/// How a client tells messages apart. A framing as the relay's configuration names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire(pub Framing);

impl Wire {
    /// Value of the header `protocol`.
    pub const fn protocol(self) -> &'static str {
        match self.0 {
            Framing::Length { .. } => "length",
            Framing::Lines => "lines",
        }
    }

    /// Bytes on the wire for a message of `size` bytes.
    pub const fn framed_bytes(self, size: usize) -> usize {
        match self.0 {
            Framing::Length { bytes, .. } => bytes as usize + size,
            Framing::Lines => size + 1,
        }
    }

    /// Appends a frame of `size` bytes that `write` fills.
    pub fn frame(self, size: usize, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        match self.0 {
            Framing::Length { bytes, order } => {
                let bytes = usize::from(bytes);
                match order {
                    ByteOrder::Big => out.extend_from_slice(&size.to_be_bytes()[8 - bytes..]),
                    ByteOrder::Little => out.extend_from_slice(&size.to_le_bytes()[..bytes]),
                }
                write(out);
            }
            Framing::Lines => {
                write(out);
                out.push(b'\n');
            }
        }
    }

    /// A frame of a message.
    pub fn framed(self, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.framed_bytes(message.len()));
        self.frame(message.len(), &mut out, |out| out.extend_from_slice(message));
        out
    }

    /// The first message in `bytes` and what follows it; nothing while it is incomplete.
    pub fn split(self, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        match self.0 {
            Framing::Length { bytes: digits, order } => {
                let (length, rest) = bytes.split_at_checked(usize::from(digits))?;
                let add = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
                let length = match order {
                    ByteOrder::Big => length.iter().fold(0, add),
                    ByteOrder::Little => length.iter().rev().fold(0, add),
                };
                rest.split_at_checked(length)
            }
            Framing::Lines => {
                let end = bytes.iter().position(|byte| *byte == b'\n')?;
                Some((&bytes[..end], &bytes[end + 1..]))
            }
        }
    }
}

/// Frames with four bytes of length in network byte order.
pub const fn frames() -> Wire {
    Wire(Framing::Length { bytes: 4, order: ByteOrder::Big })
}

/// Lines.
pub const fn lines() -> Wire {
    Wire(Framing::Lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_apart_again_at_every_split() {
        let length = |bytes, order| Framing::Length { bytes, order };
        for framing in [
            length(1, ByteOrder::Big),
            length(2, ByteOrder::Little),
            length(4, ByteOrder::Big),
            Framing::Lines,
        ] {
            let wire = Wire(framing);
            let bytes = [wire.framed(b"one"), wire.framed(b"")].concat();
            assert_eq!(bytes.len(), wire.framed_bytes(3) + wire.framed_bytes(0));
            for end in 0..wire.framed_bytes(3) {
                assert_eq!(wire.split(&bytes[..end]), None);
            }
            let (one, rest) = wire.split(&bytes).unwrap();
            assert_eq!((one, wire.split(rest)), (&b"one"[..], Some((&b""[..], &b""[..]))));
        }
    }
}
