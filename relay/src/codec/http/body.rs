//! Where a request's body ends (RFC 9112 sections 6 and 7).

use super::head::{Length, check_trailers};
use super::lines::Lines;
use super::refused::Refused;

/// Digits of a chunk's size, at most: leading zeros are allowed, but not without end.
const MAX_SIZE_DIGITS: u8 = 16;
/// Bytes of all chunk extensions of a body, at most. Nobody needs them; they are read over.
const MAX_EXTENSION_BYTES: u16 = 4096;

/// Where in a body the next byte is.
///
/// ```text
///  Known ─────────────────────────────────────────────► end
///  Size ─► (Extension) ─► SizeEnd ─► Data ─► DataReturn ─► DataFeed ─► Size
///                            └─ size 0 ─► Trailers ───────────────────► end
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Known,
    Size { digits: u8 },
    Extension,
    SizeEnd,
    Data,
    DataReturn,
    DataFeed,
    Trailers,
}

/// A body that has begun.
#[derive(Debug)]
pub(super) struct Body {
    state: State,
    /// Of the whole body, or of the chunk.
    remaining: u64,
    /// Bytes that the body may still have, this chunk's not counted.
    allowed: u64,
    /// Of extensions, so far.
    extension_bytes: u16,
}

/// What the next bytes of a stream are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// So many of the body itself.
    Data(usize),
    /// So many that only divide it.
    Framing(usize),
}

/// Bounds of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) body_bytes: u64,
    pub(super) trailer_bytes: usize,
    pub(super) fields: usize,
}

impl Body {
    /// None if there is no body at all.
    pub(super) fn begin(length: Length, bounds: Bounds) -> Result<Option<Self>, Refused> {
        match length {
            Length::Known(0) => Ok(None),
            Length::Known(length) if length > bounds.body_bytes => Err(Refused::TOO_LARGE),
            Length::Known(remaining) => Ok(Some(Self::new(State::Known, remaining, 0))),
            Length::Chunked => Ok(Some(Self::new(State::Size { digits: 0 }, 0, bounds.body_bytes))),
        }
    }

    fn new(state: State, remaining: u64, allowed: u64) -> Self {
        Self { state, remaining, allowed, extension_bytes: 0 }
    }

    /// Looks at the next bytes, of which there is one at least. The second is true if the body ends
    /// with the piece. `lines` is for its trailers.
    pub(super) fn piece(
        &mut self,
        input: &[u8],
        bounds: Bounds,
        lines: &mut Lines,
    ) -> Result<(Piece, bool), Refused> {
        match self.state {
            State::Known | State::Data => {
                let length = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(input.len());
                self.remaining -= length as u64;
                let ended = self.remaining == 0;
                if ended && self.state == State::Data {
                    self.state = State::DataReturn;
                }
                Ok((Piece::Data(length), ended && self.state == State::Known))
            }
            State::Trailers => {
                let (length, ended) = lines.fields(input, bounds.trailer_bytes)?;
                if ended {
                    check_trailers(lines.bytes(), bounds.fields)?;
                    lines.clear();
                }
                Ok((Piece::Framing(length), ended))
            }
            _ => {
                self.state = self.after(input[0])?;
                Ok((Piece::Framing(1), false))
            }
        }
    }

    /// The state after a byte between chunks.
    fn after(&mut self, byte: u8) -> Result<State, Refused> {
        match (self.state, byte) {
            (State::Size { digits: MAX_SIZE_DIGITS }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                Err(Refused::bad("a chunk's size has too many digits"))
            }
            (State::Size { digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                // Sixteen digits fit.
                self.remaining = self.remaining << 4 | u64::from(digit);
                Ok(State::Size { digits: digits + 1 })
            }
            (State::Size { digits: 1.. } | State::Extension, b'\r') => Ok(State::SizeEnd),
            (State::Size { digits: 1.. }, b';') => Ok(State::Extension),
            (State::Extension, _) if self.extension_bytes == MAX_EXTENSION_BYTES => {
                Err(Refused::bad("the extensions of the chunks are too long"))
            }
            (State::Extension, b'\t' | b' '..=b'~') => {
                self.extension_bytes += 1;
                Ok(State::Extension)
            }
            (State::SizeEnd, b'\n') => self.begin_chunk(),
            (State::DataReturn, b'\r') => Ok(State::DataFeed),
            (State::DataFeed, b'\n') => Ok(State::Size { digits: 0 }),
            _ => Err(Refused::bad("the chunked body is malformed")),
        }
    }

    fn begin_chunk(&mut self) -> Result<State, Refused> {
        if self.remaining == 0 {
            return Ok(State::Trailers);
        }
        self.allowed = self.allowed.checked_sub(self.remaining).ok_or(Refused::TOO_LARGE)?;
        Ok(State::Data)
    }
}
