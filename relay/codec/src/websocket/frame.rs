//! Frames (RFC 6455 section 5): their headers, masks and close codes.

use super::Violation;

/// Longest header: two bytes, a length of eight, a mask.
pub(super) const MAX_HEADER_BYTES: usize = 14;
/// Longest payload of a control frame (section 5.5).
pub(super) const MAX_CONTROL_BYTES: usize = 125;

const FIN: u8 = 0x80;
const COMPRESSED: u8 = 0x40;
const RESERVED: u8 = 0x30;
const MASKED: u8 = 0x80;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    /// Goes on with a message.
    Continuation = 0,
    /// Begins a text.
    Text = 1,
    /// Begins something else.
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    const fn of(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    pub(super) const fn is_control(self) -> bool {
        self as u8 & 8 != 0
    }
}

/// What stands before a client's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// The last frame of its message.
    pub(super) last: bool,
    /// The first reserved bit: the message is compressed (RFC 7692 section 6).
    pub(super) compressed: bool,
    pub(super) opcode: Opcode,
    /// Of the payload.
    pub(super) length: u64,
    pub(super) mask: [u8; 4],
}

impl FrameHeader {
    /// Reads a header from the beginning of `bytes`, and says how many it has; `None` if there are
    /// too few. What is wrong is said by the first byte that is.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if first & RESERVED != 0 {
            return Err(Violation::protocol("a reserved bit is set"));
        }
        let opcode = Opcode::of(first & 0x0f).ok_or(Violation::protocol("an unknown opcode"))?;
        let last = first & FIN != 0;
        if opcode.is_control() && !last {
            return Err(Violation::protocol("a control frame in fragments"));
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        if second & MASKED == 0 {
            return Err(Violation::protocol("a frame without a mask"));
        }
        let short = second & !MASKED;
        if opcode.is_control() && usize::from(short) > MAX_CONTROL_BYTES {
            return Err(Violation::protocol("a control frame of more than 125 bytes"));
        }
        let Some((length, after)) = long_length(short, &bytes[2..])? else { return Ok(None) };
        let Some(mask) = after.first_chunk() else { return Ok(None) };
        let compressed = first & COMPRESSED != 0;
        let used = bytes.len() - after.len() + mask.len();
        Ok(Some((Self { last, compressed, opcode, length, mask: *mask }, used)))
    }
}

/// The length, in its least form (section 5.2), and what comes after it.
fn long_length(short: u8, bytes: &[u8]) -> Result<Option<(u64, &[u8])>, Violation> {
    let (length, after, least) = match short {
        126 => match bytes.split_first_chunk() {
            Some((length, after)) => (u64::from(u16::from_be_bytes(*length)), after, 126),
            None => return Ok(None),
        },
        127 => match bytes.split_first_chunk() {
            Some((length, after)) => (u64::from_be_bytes(*length), after, 1 << 16),
            None => return Ok(None),
        },
        length => (u64::from(length), bytes, 0),
    };
    if length < least || length > u64::MAX >> 1 {
        return Err(Violation::protocol("a length that is not in its least form"));
    }
    Ok(Some((length, after)))
}

/// Takes the mask off a part of a payload that begins `offset` bytes into it.
pub(super) fn unmask(part: &mut [u8], mask: [u8; 4], offset: u64) {
    let start = usize::try_from(offset % 4).expect("below 4");
    let mask: [u8; 8] = std::array::from_fn(|at| mask[(start + at) % 4]);
    let wide = u64::from_ne_bytes(mask);
    let (words, rest) = part.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Appends the header of a whole message, or of a control frame, to the client.
pub(super) fn write_header(opcode: Opcode, compressed: bool, length: usize, output: &mut Vec<u8>) {
    output.push(FIN | if compressed { COMPRESSED } else { 0 } | opcode as u8);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => output.push(short),
        (_, Ok(middle)) => {
            output.push(126);
            output.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            output.push(127);
            output.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Appends a control frame; of a payload that is too long, its beginning.
pub(super) fn write_control(opcode: Opcode, payload: &[u8], output: &mut Vec<u8>) {
    let payload = &payload[..payload.len().min(MAX_CONTROL_BYTES)];
    write_header(opcode, false, payload.len(), output);
    output.extend_from_slice(payload);
}

/// Why a connection is closed (section 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CloseCode(u16);

impl CloseCode {
    pub(super) const NORMAL: Self = Self(1000);
    pub(super) const GOING_AWAY: Self = Self(1001);
    pub(super) const PROTOCOL_ERROR: Self = Self(1002);
    pub(super) const NOT_UTF8: Self = Self(1007);
    pub(super) const POLICY: Self = Self(1008);
    pub(super) const TOO_BIG: Self = Self(1009);
    pub(super) const INTERNAL_ERROR: Self = Self(1011);
    /// Of IANA's registry, as 1012 and 1014 are.
    pub(super) const TRY_AGAIN_LATER: Self = Self(1013);

    /// A code that may be sent.
    pub(super) const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// What a server's header `close` asks for: `CODE reason`. Anything else is an ordinary close.
    pub(super) fn of_header(value: &[u8]) -> (Self, &str) {
        let asked = || {
            let (code, reason) = match str::from_utf8(value).ok()?.split_once(' ') {
                Some(both) => both,
                None => (str::from_utf8(value).ok()?, ""),
            };
            Some((Self::new(code.parse().ok()?)?, reason))
        };
        asked().unwrap_or((Self::NORMAL, ""))
    }

    /// Appends a close frame; of a reason that is too long, whole characters of its beginning.
    pub(super) fn write(self, reason: &str, output: &mut Vec<u8>) {
        let code = self.0.to_be_bytes();
        let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL_BYTES - code.len())];
        write_header(Opcode::Close, false, code.len() + reason.len(), output);
        output.extend_from_slice(&code);
        output.extend_from_slice(reason.as_bytes());
    }
}

/// Checks the payload of a client's close frame: nothing, or a code and a text.
pub(super) fn check_close(payload: &[u8]) -> Result<(), Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(()),
            _ => Err(Violation::protocol("half a close code")),
        };
    };
    if CloseCode::new(u16::from_be_bytes(*code)).is_none() {
        return Err(Violation::protocol("a close code that may not be sent"));
    }
    str::from_utf8(reason).map_or(Err(Violation::NOT_UTF8), |_| Ok(()))
}
