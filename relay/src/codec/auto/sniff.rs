//! What first bytes say. What is said of the beginning of a stream is never taken back for what
//! follows, so it does not depend on how the stream is cut.

use crate::codec::{ByteOrder, Framing};

/// Methods of HTTP (RFC 9110 section 9, RFC 5789), each with what ends it.
const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
];
/// Names of MQTT as its packet has them (MQTT 3.1.1 section 3.1.2.1; 3.1 had the other one).
const MQTT_NAMES: [&[u8]; 2] = [b"\0\x04MQTT", b"\0\x06MQIsdp"];
const MQTT_CONNECT: u8 = 0x10;
/// Most bytes of an MQTT packet's length (section 2.2.3).
const MQTT_LENGTH_BYTES: usize = 4;

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It may become several things.
    Undecided,
    /// An MQTT CONNECT.
    Mqtt,
    /// An HTTP request for an upgrade to WebSocket.
    Upgrade,
    /// Any other HTTP request.
    Request,
    /// An HTTP request whose head is too long to be looked at whole.
    LongRequest,
    /// What the service's framing would have.
    Framing,
    /// None of these.
    Nothing,
}

/// Whether bytes begin as one pattern does: yes, no, or so far.
fn begins(bytes: &[u8], pattern: &[u8]) -> Option<bool> {
    let known = bytes.len().min(pattern.len());
    if bytes[..known] != pattern[..known] {
        return Some(false);
    }
    (known == pattern.len()).then_some(true)
}

/// Says what a stream is that begins with `bytes`, of which no more than `limit` are looked at.
/// `framing`: the service's, and its longest message, if it is to be recognised.
pub(super) fn sniff(bytes: &[u8], framing: Option<(Framing, u32)>, limit: usize) -> Seen {
    if bytes.is_empty() {
        return Seen::Undecided;
    }
    match is_mqtt(bytes) {
        Some(true) => return Seen::Mqtt,
        None => return Seen::Undecided,
        Some(false) => {}
    }
    match METHODS.map(|method| begins(bytes, method)) {
        answers if answers.contains(&Some(true)) => return request(bytes, limit),
        answers if answers.contains(&None) => return Seen::Undecided,
        _ => {}
    }
    match framing.map_or(Some(false), |(framing, longest)| is_framed(bytes, framing, longest)) {
        Some(true) => Seen::Framing,
        Some(false) => Seen::Nothing,
        None => Seen::Undecided,
    }
}

fn is_mqtt(bytes: &[u8]) -> Option<bool> {
    let (first, rest) = bytes.split_first()?;
    if *first != MQTT_CONNECT {
        return Some(false);
    }
    let length = &rest[..rest.len().min(MQTT_LENGTH_BYTES)];
    let Some(last) = length.iter().position(|byte| byte & 0x80 == 0) else {
        return (length.len() == MQTT_LENGTH_BYTES).then_some(false);
    };
    match MQTT_NAMES.map(|name| begins(&rest[last + 1..], name)) {
        answers if answers.contains(&Some(true)) => Some(true),
        answers if answers.contains(&None) => None,
        _ => Some(false),
    }
}

/// The head of a request is looked at when it is whole.
fn request(bytes: &[u8], limit: usize) -> Seen {
    let bytes = &bytes[..bytes.len().min(limit)];
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        return if bytes.len() == limit { Seen::LongRequest } else { Seen::Undecided };
    };
    let upgrades = bytes[..end].split(|byte| *byte == b'\n').any(|line| {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
        name.eq_ignore_ascii_case(b"upgrade")
            && value
                .split(|byte| *byte == b',')
                .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"websocket"))
    });
    if upgrades { Seen::Upgrade } else { Seen::Request }
}

/// Whether the first message could be one: a length that is allowed, a line of text.
fn is_framed(bytes: &[u8], framing: Framing, longest: u32) -> Option<bool> {
    match framing {
        Framing::Length { bytes: width, order } => {
            let length = bytes.get(..usize::from(width))?;
            let add = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
            let length = match order {
                ByteOrder::Big => length.iter().fold(0, add),
                ByteOrder::Little => length.iter().rev().fold(0, add),
            };
            Some(length <= u64::from(longest))
        }
        Framing::Lines => {
            // With a carriage return before its end.
            let most = longest as usize + 2;
            let ends = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\r');
            match bytes.iter().take(most).position(ends) {
                Some(end) => Some(bytes[end] == b'\n' && str::from_utf8(&bytes[..end]).is_ok()),
                None => (bytes.len() >= most).then_some(false),
            }
        }
    }
}
