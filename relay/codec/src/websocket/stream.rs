//! Frames to messages: fragments put together, control frames between them.

use crate::Actions;

use super::deflate::{Deflate, InflateError, inflate, longest_compressed};
use super::frame::{
    FrameHeader, MAX_CONTROL_BYTES, MAX_HEADER_BYTES, Opcode, check_close, unmask, write_control,
};
use super::{Violation, opcode_headers};

/// What a connection may keep allocated between messages; more is given back.
const KEPT_BYTES: usize = 4096;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataKind {
    Text,
    Binary,
}

impl DataKind {
    /// As records name it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Binary => "binary",
        }
    }

    pub(super) fn of_name(name: &[u8]) -> Option<Self> {
        [Self::Text, Self::Binary].into_iter().find(|kind| kind.name().as_bytes() == name)
    }

    pub(super) const fn opcode(self) -> Opcode {
        match self {
            Self::Text => Opcode::Text,
            Self::Binary => Opcode::Binary,
        }
    }
}

/// Why nothing more is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    Violation(Violation),
    /// With the payload of its close frame, which is proper.
    ClientClosed(Vec<u8>),
}

impl From<Violation> for End {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// A message of which not every frame has come.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    kind: DataKind,
    compressed: bool,
    /// Bytes of it that are known to be UTF-8.
    valid: usize,
}

/// A frame of which not every byte has come.
#[derive(Clone, Copy, Debug)]
struct Frame {
    header: FrameHeader,
    taken: u64,
}

/// The frames of one connection.
#[derive(Debug)]
pub(super) struct Stream {
    /// Messages may be compressed.
    deflate: Option<Deflate>,
    last_kind: DataKind,
    header: [u8; MAX_HEADER_BYTES],
    /// Bytes of the next header that have come.
    header_bytes: usize,
    frame: Option<Frame>,
    unfinished: Option<Unfinished>,
    /// Its payload.
    message: Vec<u8>,
    /// The payload of a control frame.
    control: Vec<u8>,
}

impl Stream {
    pub(super) const fn new(deflate: Option<Deflate>) -> Self {
        Self {
            deflate,
            last_kind: DataKind::Text,
            header: [0; MAX_HEADER_BYTES],
            header_bytes: 0,
            frame: None,
            unfinished: None,
            message: Vec::new(),
            control: Vec::new(),
        }
    }

    /// True if a reply of so many bytes may be compressed.
    pub(super) fn deflates(&self, bytes: usize) -> bool {
        self.deflate.is_some_and(|deflate| deflate.allows(bytes))
    }

    /// Of the client's last message.
    pub(super) const fn last_kind(&self) -> DataKind {
        self.last_kind
    }

    pub(super) const fn is_between_messages(&self) -> bool {
        self.header_bytes == 0 && self.frame.is_none() && self.unfinished.is_none()
    }

    pub(super) fn kept_bytes(&self) -> usize {
        size_of::<Self>() + self.message.capacity() + self.control.capacity()
    }

    /// Takes the next bytes: messages become records, pings are answered.
    pub(super) fn take(
        &mut self,
        mut input: &[u8],
        limit: usize,
        actions: &mut dyn Actions,
    ) -> Result<(), End> {
        loop {
            let Some(mut frame) = self.frame.take() else {
                let Some(header) = self.take_header(&mut input)? else { return Ok(()) };
                self.begin_frame(header, limit)?;
                self.frame = Some(Frame { header, taken: 0 });
                continue;
            };
            let FrameHeader { length, mask, opcode, .. } = frame.header;
            let missing = usize::try_from(length - frame.taken).unwrap_or(usize::MAX);
            let (part, rest) = input.split_at(missing.min(input.len()));
            input = rest;
            let target = if opcode.is_control() { &mut self.control } else { &mut self.message };
            let start = target.len();
            target.extend_from_slice(part);
            unmask(&mut target[start..], mask, frame.taken);
            frame.taken += part.len() as u64;
            if !opcode.is_control() {
                self.check_text(false)?;
            }
            if frame.taken < length {
                self.frame = Some(frame);
                return Ok(());
            }
            self.end_frame(frame.header, limit, actions)?;
        }
    }

    /// Takes bytes of a header, until there is one.
    fn take_header(&mut self, input: &mut &[u8]) -> Result<Option<FrameHeader>, End> {
        let known = self.header_bytes;
        let taken = (MAX_HEADER_BYTES - known).min(input.len());
        self.header[known..known + taken].copy_from_slice(&input[..taken]);
        let bytes = &self.header[..known + taken];
        let Some((header, used)) = FrameHeader::parse(bytes)? else {
            self.header_bytes = bytes.len();
            *input = &[];
            return Ok(None);
        };
        self.header_bytes = 0;
        *input = &input[used - known..];
        Ok(Some(header))
    }

    /// Whether a frame may stand here, and its message be as long as it makes it.
    fn begin_frame(&mut self, header: FrameHeader, limit: usize) -> Result<(), Violation> {
        let unfinished = match (header.opcode, self.unfinished) {
            (opcode, _) if opcode.is_control() => {
                if header.compressed {
                    return Err(Violation::protocol("a reserved bit is set"));
                }
                return Ok(());
            }
            (Opcode::Continuation, None) => {
                return Err(Violation::protocol("a continuation of nothing"));
            }
            (Opcode::Continuation, Some(_)) if header.compressed => {
                return Err(Violation::protocol("a reserved bit is set"));
            }
            (Opcode::Continuation, Some(unfinished)) => unfinished,
            (_, Some(_)) => return Err(Violation::protocol("a message within a message")),
            (_, None) if header.compressed && self.deflate.is_none() => {
                return Err(Violation::protocol("a reserved bit is set"));
            }
            (opcode, None) => Unfinished {
                kind: if opcode == Opcode::Text { DataKind::Text } else { DataKind::Binary },
                compressed: header.compressed,
                valid: 0,
            },
        };
        let limit = if unfinished.compressed { longest_compressed(limit) } else { limit };
        self.unfinished = Some(unfinished);
        match usize::try_from(header.length) {
            Ok(length) if length <= limit - self.message.len() => Ok(()),
            _ => Err(Violation::TOO_BIG),
        }
    }

    /// Checks as much of a text as has come; at its end, that no character is cut.
    fn check_text(&mut self, ended: bool) -> Result<(), Violation> {
        let Some(unfinished) = &mut self.unfinished else { return Ok(()) };
        if unfinished.kind != DataKind::Text || unfinished.compressed {
            return Ok(());
        }
        let unchecked = &self.message[unfinished.valid..];
        match str::from_utf8(unchecked) {
            Ok(_) => unfinished.valid = self.message.len(),
            Err(error) if error.error_len().is_none() && !ended => {
                unfinished.valid += error.valid_up_to();
            }
            Err(_) => return Err(Violation::NOT_UTF8),
        }
        Ok(())
    }

    fn end_frame(
        &mut self,
        header: FrameHeader,
        limit: usize,
        actions: &mut dyn Actions,
    ) -> Result<(), End> {
        match header.opcode {
            Opcode::Ping => write_control(Opcode::Pong, &self.control, actions.output()),
            Opcode::Pong => {}
            Opcode::Close => {
                check_close(&self.control)?;
                return Err(End::ClientClosed(std::mem::take(&mut self.control)));
            }
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {
                if header.last {
                    self.end_message(limit, actions)?;
                }
                return Ok(());
            }
        }
        debug_assert!(self.control.len() <= MAX_CONTROL_BYTES, "checked with the header");
        self.control.clear();
        Ok(())
    }

    fn end_message(&mut self, limit: usize, actions: &mut dyn Actions) -> Result<(), Violation> {
        self.check_text(true)?;
        let Some(Unfinished { kind, compressed, .. }) = self.unfinished.take() else {
            return Ok(());
        };
        self.last_kind = kind;
        if compressed {
            inflate(&self.message, limit, |message| {
                if kind == DataKind::Text && str::from_utf8(message).is_err() {
                    return Err(Violation::NOT_UTF8);
                }
                actions.message(opcode_headers(kind), message);
                Ok(())
            })
            .map_err(|error| match error {
                InflateError::TooLong => Violation::TOO_BIG,
                InflateError::Corrupt => Violation {
                    code: super::CloseCode::NOT_UTF8,
                    ..Violation::protocol("a compressed message that is none")
                },
            })??;
        } else {
            actions.message(opcode_headers(kind), &self.message);
        }
        self.message.clear();
        self.message.shrink_to(KEPT_BYTES);
        Ok(())
    }
}
