//! The messages of the load generator: numbered, stamped, and checked to the last byte.

use anyhow::{Result, ensure};

/// Client, sequence and stamp in hexadecimal, a space after each.
const HEADER_BYTES: usize = 8 + 1 + 8 + 1 + 16 + 1;
const PERIOD: usize = 26;

/// Makes and checks messages of one size. They are printable and without line feeds, so that any
/// framing carries them and `kcat` shows them.
#[derive(Clone, Debug)]
pub struct Payload {
    size: usize,
    alphabet: Vec<u8>,
}

/// What a message says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the client that sent it.
    pub client: u32,
    /// Its place among that client's messages, from 0.
    pub sequence: u32,
    /// When it was sent, in nanoseconds since the load generator's epoch.
    pub sent_ns: u64,
}

impl Payload {
    /// Smallest size that holds the header.
    pub const MIN_BYTES: usize = HEADER_BYTES;

    /// Messages of `size` bytes.
    pub fn new(size: usize) -> Result<Self> {
        ensure!(
            size >= Self::MIN_BYTES,
            "a message of {size} bytes has no room for its number and time: use at least {}",
            Self::MIN_BYTES
        );
        let alphabet = (b'a'..=b'z').cycle().take(size + PERIOD).collect();
        Ok(Self { size, alphabet })
    }

    /// Bytes of every message.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Appends a message to `out`.
    pub fn encode(&self, stamp: Stamp, out: &mut Vec<u8>) {
        let Stamp { client, sequence, sent_ns } = stamp;
        hexadecimal(u64::from(client), 8, out);
        hexadecimal(u64::from(sequence), 8, out);
        hexadecimal(sent_ns, 16, out);
        out.extend_from_slice(self.padding(stamp));
    }

    /// The stamp, or nothing if any byte is not what [`Self::encode`] wrote.
    pub fn decode(&self, message: &[u8]) -> Option<Stamp> {
        if message.len() != self.size {
            return None;
        }
        let (header, padding) = message.split_at(HEADER_BYTES);
        let mut fields = std::str::from_utf8(header).ok()?.split_terminator(' ');
        let stamp = Stamp {
            client: u32::from_str_radix(fields.next()?, 16).ok()?,
            sequence: u32::from_str_radix(fields.next()?, 16).ok()?,
            sent_ns: u64::from_str_radix(fields.next()?, 16).ok()?,
        };
        (fields.next().is_none() && padding == self.padding(stamp)).then_some(stamp)
    }

    /// Differs between neighbouring messages, so that mixed-up bytes are noticed.
    fn padding(&self, stamp: Stamp) -> &[u8] {
        let start = stamp.client.wrapping_add(stamp.sequence) as usize % PERIOD;
        &self.alphabet[start..start + self.size - HEADER_BYTES]
    }
}

fn hexadecimal(value: u64, digits: u32, out: &mut Vec<u8>) {
    for place in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(value >> (4 * place) & 15) as usize]);
    }
    out.push(b' ');
}

/// Which numbers of a sequence have come, and in which order.
#[derive(Debug, Default)]
pub struct Sequence {
    seen: Vec<u64>,
    next: u32,
}

/// What a number's coming means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The first time, and after all smaller ones that have come.
    InOrder,
    /// The first time, but a greater one came before.
    OutOfOrder,
    /// Not the first time.
    Duplicate,
}

impl Sequence {
    /// Notes that `number` has come.
    pub fn arrive(&mut self, number: u32) -> Arrival {
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            return Arrival::Duplicate;
        }
        self.seen[word] |= bit;
        if number < self.next {
            return Arrival::OutOfOrder;
        }
        self.next = number + 1;
        Arrival::InOrder
    }
}

#[cfg(test)]
mod tests {
    use super::Arrival::{Duplicate, InOrder, OutOfOrder};
    use super::*;

    #[test]
    fn a_message_comes_back_and_any_changed_byte_is_noticed() {
        for size in [Payload::MIN_BYTES, 100] {
            let payload = Payload::new(size).unwrap();
            let stamp = Stamp { client: 7, sequence: 0xffff_fffe, sent_ns: u64::MAX };
            let mut message = Vec::new();
            payload.encode(stamp, &mut message);
            assert_eq!(message.len(), size);
            assert_eq!(payload.decode(&message), Some(stamp));
            for place in 0..size {
                let mut changed = message.clone();
                changed[place] ^= 0x80;
                assert_eq!(payload.decode(&changed), None, "byte {place}");
            }
        }
        assert!(Payload::new(Payload::MIN_BYTES - 1).is_err());
    }

    #[test]
    fn a_sequence_tells_order_and_duplicates() {
        let mut sequence = Sequence::default();
        let arrivals: Vec<_> = [0, 1, 3, 2, 3, 200].map(|n| sequence.arrive(n)).to_vec();
        assert_eq!(arrivals, [InOrder, InOrder, InOrder, OutOfOrder, Duplicate, InOrder]);
    }
}
