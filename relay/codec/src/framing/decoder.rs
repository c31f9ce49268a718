//! The decoder of both framings.

use super::{ByteOrder, Framing};

/// What a connection may keep allocated between messages; more is given back.
const CARRY_KEPT_BYTES: usize = 4096;

/// What a peer did wrong. Each closes its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A message longer than the service allows.
    #[error("a message is longer than the limit of {limit} bytes")]
    Oversized {
        /// The service's limit.
        limit: u32,
    },
    /// The stream ended inside a message.
    #[error("the stream ended inside a message, after {held} bytes of it")]
    Truncated {
        /// Bytes of the unfinished message, its header included.
        held: usize,
    },
}

/// Turns the bytes of one connection into messages.
#[derive(Debug)]
pub struct Decoder {
    framing: Framing,
    limit: u32,
    /// The beginning of a message whose end has not come yet.
    carry: Vec<u8>,
}

impl Decoder {
    /// A decoder at the beginning of a stream. `framing` has passed [`Framing::check`].
    pub fn new(framing: Framing, max_message_bytes: u32) -> Self {
        Self { framing, limit: max_message_bytes, carry: Vec::new() }
    }

    /// Bytes held back because their message is not complete.
    #[inline]
    pub fn kept_bytes(&self) -> usize {
        self.carry.len()
    }

    /// Takes the next bytes of the stream and emits every message that they complete, in order.
    ///
    /// After an error the stream cannot be read on: where the next message begins is not known.
    pub fn decode(&mut self, input: &[u8], emit: impl FnMut(&[u8])) -> Result<(), DecodeError> {
        match self.framing {
            Framing::Length { bytes, order } => {
                self.decode_lengths(usize::from(bytes), order, input, emit)
            }
            Framing::Lines => self.decode_lines(input, emit),
        }
    }

    /// Whether the stream might end here.
    pub fn finish(&self) -> Result<(), DecodeError> {
        match self.carry.len() {
            0 => Ok(()),
            held => Err(DecodeError::Truncated { held }),
        }
    }

    /// Ends the stream in an orderly way: of lines the last one is whole then, with its end or without.
    pub fn end(&mut self, emit: impl FnOnce(&[u8])) -> Result<(), DecodeError> {
        if self.framing == Framing::Lines && !self.carry.is_empty() {
            emit(self.checked_line(&self.carry)?);
            self.empty_carry();
        }
        self.finish()
    }

    fn decode_lengths(
        &mut self,
        width: usize,
        order: ByteOrder,
        mut input: &[u8],
        mut emit: impl FnMut(&[u8]),
    ) -> Result<(), DecodeError> {
        if !self.carry.is_empty() {
            self.fill_carry(&mut input, width);
            if self.carry.len() < width {
                return Ok(());
            }
            let total = width + self.checked_length(&self.carry[..width], order)?;
            self.fill_carry(&mut input, total);
            if self.carry.len() < total {
                return Ok(());
            }
            emit(&self.carry[width..]);
            self.empty_carry();
        }
        loop {
            if input.len() < width {
                break;
            }
            let total = width + self.checked_length(&input[..width], order)?;
            let Some((message, rest)) = input.split_at_checked(total) else { break };
            emit(&message[width..]);
            input = rest;
        }
        self.carry.extend_from_slice(input);
        Ok(())
    }

    fn decode_lines(
        &mut self,
        mut input: &[u8],
        mut emit: impl FnMut(&[u8]),
    ) -> Result<(), DecodeError> {
        while let Some(end) = memchr::memchr(b'\n', input) {
            let (line, rest) = (&input[..end], &input[end + 1..]);
            input = rest;
            if self.carry.is_empty() {
                emit(self.checked_line(line)?);
            } else {
                self.carry.extend_from_slice(line);
                emit(self.checked_line(&self.carry)?);
                self.empty_carry();
            }
        }
        // One byte more than the limit may still turn out to be the carriage return.
        if self.carry.len() + input.len() > self.limit as usize + 1 {
            return Err(DecodeError::Oversized { limit: self.limit });
        }
        self.carry.extend_from_slice(input);
        Ok(())
    }

    #[inline]
    fn checked_length(&self, header: &[u8], order: ByteOrder) -> Result<usize, DecodeError> {
        let add = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        let length = match order {
            ByteOrder::Big => header.iter().fold(0, add),
            ByteOrder::Little => header.iter().rev().fold(0, add),
        };
        if length > self.limit {
            return Err(DecodeError::Oversized { limit: self.limit });
        }
        Ok(length as usize)
    }

    #[inline]
    fn checked_line<'a>(&self, line: &'a [u8]) -> Result<&'a [u8], DecodeError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > self.limit as usize {
            return Err(DecodeError::Oversized { limit: self.limit });
        }
        Ok(line)
    }

    /// Moves bytes from `input` until the carry has `target` of them or the input ends.
    #[inline]
    fn fill_carry(&mut self, input: &mut &[u8], target: usize) {
        let missing = target.saturating_sub(self.carry.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.carry.extend_from_slice(taken);
        *input = rest;
    }

    #[inline]
    fn empty_carry(&mut self) {
        self.carry.clear();
        self.carry.shrink_to(CARRY_KEPT_BYTES);
    }
}
