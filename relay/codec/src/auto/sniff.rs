//! What first bytes say. What is said of the beginning of a stream is never taken back for what
//! follows, so it does not depend on how the stream is cut.

use crate::{ByteOrder, Framing};

/// Methods of HTTP (RFC 9110 section 9, RFC 5789), each with what ends it. A request with one of them
/// is known for one before its line has ended; with any other, by its whole line.
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
/// Longest method that is looked for; the longest of IANA's registry has 17 bytes.
const MAX_METHOD_BYTES: usize = 32;
/// The line that HTTP/2 begins with, so that servers of HTTP/1 refuse it (RFC 9113 section 3.4).
const HTTP_2: &[u8] = b"PRI * HTTP/2.0";
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
    /// An HTTP request whose head has not come whole.
    Begun,
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
/// `framing`: the service's, and its longest message, if it is to be recognised. `over`: nothing more
/// is waited for.
pub(super) fn sniff(
    bytes: &[u8],
    framing: Option<(Framing, u32)>,
    limit: usize,
    over: bool,
) -> Seen {
    if bytes.is_empty() {
        return Seen::Undecided;
    }
    match is_mqtt(bytes) {
        Some(true) => return Seen::Mqtt,
        None => return Seen::Undecided,
        Some(false) => {}
    }
    let methods = METHODS.map(|method| begins(bytes, method));
    if !methods.contains(&Some(true)) {
        if methods.contains(&None) {
            return Seen::Undecided;
        }
        // A length may look like the beginning of another method, or like an empty line.
        if let Some((framing @ Framing::Length { .. }, longest)) = framing {
            match is_framed(bytes, framing, longest) {
                Some(true) => return Seen::Framing,
                None => return Seen::Undecided,
                Some(false) => {}
            }
        }
    }
    match request(bytes, limit) {
        Asked::Whole(seen) => return seen,
        Asked::LineWhole => return Seen::Begun,
        Asked::Method if over => return Seen::Begun,
        Asked::Method => return Seen::Undecided,
        Asked::Perhaps if !over => return Seen::Undecided,
        Asked::Perhaps | Asked::Nothing => {}
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

/// How much of a request of HTTP there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// All that is looked at.
    Whole(Seen),
    /// Its line.
    LineWhole,
    /// A method that is known, and of the line nothing that says otherwise.
    Method,
    /// What may become the line of one.
    Perhaps,
    /// It is none.
    Nothing,
}

/// Looks for a request (RFC 9112 section 3), with an empty line before it or without (section 2.2).
fn request(bytes: &[u8], limit: usize) -> Asked {
    let full = bytes.len() >= limit;
    let bytes = &bytes[..bytes.len().min(limit)];
    let bytes = match begins(bytes, b"\r\n") {
        Some(true) => &bytes[2..],
        Some(false) => bytes,
        None => return Asked::Perhaps,
    };
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return match unfinished_line(bytes) {
            Asked::Method if full => Asked::Whole(Seen::LongRequest),
            Asked::Perhaps if full => Asked::Nothing,
            asked => asked,
        };
    };
    if !bytes[..end].strip_suffix(b"\r").is_some_and(is_request_line) {
        return Asked::Nothing;
    }
    match memchr::memmem::find(bytes, b"\r\n\r\n") {
        Some(end) if upgrades(&bytes[..end]) => Asked::Whole(Seen::Upgrade),
        Some(_) => Asked::Whole(Seen::Request),
        None if full => Asked::Whole(Seen::LongRequest),
        None => Asked::LineWhole,
    }
}

/// A method, a target, a version.
fn is_request_line(line: &[u8]) -> bool {
    let mut parts = line.split(|byte| *byte == b' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    let digits = |version: &[u8]| {
        matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit())
    };
    parts.next().is_none()
        && method.is_some_and(is_method)
        && target.is_some_and(|target| !target.is_empty() && is_target(target))
        && version.is_some_and(digits)
        && line != HTTP_2
}

/// Of a line that has not ended.
fn unfinished_line(line: &[u8]) -> Asked {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let method = parts.next().unwrap_or_default();
    let Some(target) = parts.next() else {
        let fits = method.is_empty() || is_method(method);
        return if fits { Asked::Perhaps } else { Asked::Nothing };
    };
    let version_fits = match parts.next() {
        None => true,
        // Two digits and what ends the line.
        Some(version) => {
            let known = version.len().min(5);
            !target.is_empty() && version.len() <= 9 && version[..known] == b"HTTP/"[..known]
        }
    };
    if !is_method(method) || !is_target(target) || !version_fits {
        return Asked::Nothing;
    }
    let known = METHODS.iter().any(|one| one.strip_suffix(b" ") == Some(method));
    if known { Asked::Method } else { Asked::Perhaps }
}

/// `tchar` of RFC 9110 section 5.6.2; methods are not judged further.
fn is_method(bytes: &[u8]) -> bool {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    (1..=MAX_METHOD_BYTES).contains(&bytes.len()) && bytes.iter().all(token)
}

fn is_target(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'!'..=b'~' | 0x80..))
}

fn upgrades(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n').any(|line| {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
        name.eq_ignore_ascii_case(b"upgrade")
            && value
                .split(|byte| *byte == b',')
                .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"websocket"))
    })
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
