//! Where a request's body ends (RFC 9112 sections 6 and 7).

use super::head::{Length, check_trailers, is_token_byte};
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
///  Size ─► (Extension …) ─► SizeEnd ─► Data ─► DataReturn ─► DataFeed ─► Size
///                            └─ size 0 ─► Trailers ───────────────────► end
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Known,
    Size { digits: u8 },
    Extension(Extension),
    SizeEnd,
    Data,
    DataReturn,
    DataFeed,
    Trailers,
}

/// Where in the extensions of a chunk the next byte is (RFC 9112 section 7.1.1).
///
/// ```text
///  ; ─► Before ─► Name ─► (AfterName) ─► = ─► BeforeValue ─► Token ──► (AfterValue) ─► ; or end
///                                                   └─► Quoted ⇄ Escaped ─► ValueEnd ─┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    Before,
    Name,
    AfterName,
    BeforeValue,
    Token,
    Quoted,
    Escaped,
    ValueEnd,
    AfterValue,
}

impl Extension {
    /// After a byte that does not end the line; none if it may not stand there.
    fn after(self, byte: u8) -> Option<Self> {
        let blank = matches!(byte, b' ' | b'\t');
        let text = matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
        Some(match (self, byte) {
            (Self::Quoted, b'"') => Self::ValueEnd,
            (Self::Quoted, b'\\') => Self::Escaped,
            (Self::Quoted | Self::Escaped, _) if text => Self::Quoted,
            (Self::Before | Self::BeforeValue, _) if blank => self,
            (Self::Before | Self::Name, _) if is_token_byte(byte) => Self::Name,
            (Self::Name | Self::AfterName, _) if blank => Self::AfterName,
            (Self::Name | Self::AfterName, b'=') => Self::BeforeValue,
            (Self::BeforeValue, b'"') => Self::Quoted,
            (Self::BeforeValue | Self::Token, _) if is_token_byte(byte) => Self::Token,
            (Self::Token | Self::ValueEnd | Self::AfterValue, _) if blank => Self::AfterValue,
            (
                Self::Name | Self::AfterName | Self::Token | Self::ValueEnd | Self::AfterValue,
                b';',
            ) => Self::Before,
            _ => return None,
        })
    }

    /// True if the line may end here.
    const fn may_end(self) -> bool {
        matches!(self, Self::Name | Self::Token | Self::ValueEnd)
    }
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
            (State::Size { digits: 1.. }, b'\r') => Ok(State::SizeEnd),
            (State::Size { digits: 1.. }, b';') => Ok(State::Extension(Extension::Before)),
            (State::Extension(extension), b'\r') if extension.may_end() => Ok(State::SizeEnd),
            (State::Extension(_), _) if self.extension_bytes == MAX_EXTENSION_BYTES => {
                Err(Refused::bad("the extensions of the chunks are too long"))
            }
            (State::Extension(extension), _) => {
                self.extension_bytes += 1;
                let after = extension.after(byte).map(State::Extension);
                after.ok_or(Refused::bad("an extension of a chunk is malformed"))
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
