//! The head of a request, strictly: what two readers might read differently is refused, because a
//! request that is read differently further on smuggles another one (RFC 9112 section 11.2).

use millrace_model::{Decimal, HeaderList, MAX_RECORD_HEADERS};

use super::refused::Refused;

/// Headers of a record that are not fields of the request, at most.
const OWN_HEADERS: usize = 8;
/// Most fields of a request.
pub const MAX_REQUEST_FIELDS: usize = MAX_RECORD_HEADERS - OWN_HEADERS;

/// Fields between two neighbours only, which end here in both directions (RFC 9110 section 7.6.1), the
/// announcement of trailers among them, which the relay does not pass on.
const BETWEEN_NEIGHBOURS: [&[u8]; 8] = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"http2-settings",
];

/// True of a field that goes no further than the relay, whoever sent it.
pub(super) fn ends_here(name: &[u8]) -> bool {
    BETWEEN_NEIGHBOURS.iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// How long a request's body is (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// So many bytes.
    Known(u64),
    /// It says so at its end.
    Chunked,
}

/// What the relay itself needs of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Head {
    pub(super) length: Length,
    /// The version is 1.0.
    pub(super) old: bool,
    /// The reply has no body.
    pub(super) bodiless: bool,
    /// Another request may follow.
    pub(super) keep_alive: bool,
    /// The client waits for leave to send the body.
    pub(super) expects: bool,
}

/// Fields that matter, as they are met.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Seen<'a> {
    host: Option<&'a [u8]>,
    content_length: Option<u64>,
    chunked: bool,
    expects: bool,
    close: bool,
    keep_alive: bool,
}

/// Reads a whole head, and lays what the server should know of it into `record`.
pub(super) fn parse(
    bytes: &[u8],
    max_fields: usize,
    number: u64,
    record: &mut HeaderList,
) -> Result<Head, Refused> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_REQUEST_FIELDS];
    let mut request = httparse::Request::new(&mut fields[..max_fields]);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(Refused::bad("the request has no end")),
        Err(error) => return Err(explain(error, bytes)),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(Refused::bad("the request line is not whole"));
    };
    let mut seen = Seen::default();
    for field in request.headers.iter() {
        seen.look(field)?;
    }
    let old = minor == 0;
    check_target(method, target, &seen)?;
    if !old && seen.host.is_none() {
        return Err(Refused::bad("there is no Host"));
    }
    let head = seen.head(method, old)?;
    record.clear();
    lay(record, &[b"http.request"], Decimal::new(number).as_bytes())?;
    lay(record, &[b"http.method"], method.as_bytes())?;
    lay(record, &[b"http.target"], target.as_bytes())?;
    lay(record, &[b"http.version"], if old { b"1.0" } else { b"1.1" })?;
    lay_fields(record, request.headers)?;
    Ok(head)
}

fn explain(error: httparse::Error, bytes: &[u8]) -> Refused {
    match error {
        httparse::Error::TooManyHeaders => Refused::TOO_MANY,
        httparse::Error::HeaderName => Refused::bad("a field's name is not one"),
        httparse::Error::HeaderValue => Refused::bad("a field's value is not one"),
        httparse::Error::Version if names_another_version(bytes) => Refused::VERSION,
        _ => Refused::bad("the request line is not one"),
    }
}

/// True if the first line ends with another version than the two that are spoken.
fn names_another_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit()
            && minor.is_ascii_digit()
            && (*major, *minor) != (b'1', b'0')
            && (*major, *minor) != (b'1', b'1'))
}

impl<'a> Seen<'a> {
    fn look(&mut self, field: &httparse::Header<'a>) -> Result<(), Refused> {
        let (name, value) = (field.name.as_bytes(), field.value);
        if name.eq_ignore_ascii_case(b"host") {
            if !is_authority(value) {
                return Err(Refused::bad("Host names no host"));
            }
            if self.host.replace(value).is_some() {
                return Err(Refused::bad("there is more than one Host"));
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let length = parse_length(value).ok_or(Refused::bad("Content-Length is no length"))?;
            // Even two that agree: a list is what another reader may stumble over.
            if self.content_length.replace(length).is_some() {
                return Err(Refused::bad("there is more than one Content-Length"));
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            check_coding(value)?;
            if std::mem::replace(&mut self.chunked, true) {
                return Err(Refused::bad("there is more than one Transfer-Encoding"));
            }
        } else if name.eq_ignore_ascii_case(b"expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Refused::EXPECTATION);
            }
            self.expects = true;
        } else if name.eq_ignore_ascii_case(b"connection") {
            for option in options(value) {
                self.close |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                // What is no token others may take for one, and what is named is not passed on: the
                // server would read another request.
                if !is_token(option)
                    || option.eq_ignore_ascii_case(b"host")
                    || option.eq_ignore_ascii_case(b"content-length")
                {
                    return Err(Refused::bad("Connection names what is no option of it"));
                }
            }
        }
        Ok(())
    }

    fn head(&self, method: &str, old: bool) -> Result<Head, Refused> {
        let length = match (self.content_length, self.chunked) {
            (Some(_), true) => {
                return Err(Refused::bad("there are Content-Length and Transfer-Encoding"));
            }
            (_, true) if old => {
                return Err(Refused::bad("HTTP/1.0 has no Transfer-Encoding"));
            }
            (_, true) => Length::Chunked,
            (length, false) => Length::Known(length.unwrap_or_default()),
        };
        Ok(Head {
            length,
            old,
            bodiless: method == "HEAD",
            keep_alive: !self.close && (!old || self.keep_alive),
            // RFC 9110 section 10.1.1: not from a client of HTTP/1.0.
            expects: self.expects && !old && length != Length::Known(0),
        })
    }
}

/// Digits and nothing else.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn check_coding(value: &[u8]) -> Result<(), Refused> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    // Empty members may be passed over (RFC 9110 section 5.6.1), and are not by everybody.
    let mut codings = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let last = codings.next_back().unwrap_or_default();
    if last.eq_ignore_ascii_case(b"chunked")
        && codings.all(|coding| is_token(coding) && !coding.eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Refused::CODING);
    }
    Err(Refused::bad("Transfer-Encoding does not end with chunked, once"))
}

/// The four forms of RFC 9112 section 3.2, less the one of CONNECT.
fn check_target(method: &str, target: &str, seen: &Seen<'_>) -> Result<(), Refused> {
    if method == "CONNECT" {
        return Err(Refused::CONNECT);
    }
    let bytes = target.as_bytes();
    if !bytes.iter().all(|byte| matches!(byte, b'!'..=b'~') && *byte != b'#') {
        return Err(Refused::bad("the target has characters that none may have"));
    }
    match bytes {
        [b'/', ..] => return Ok(()),
        b"*" if method == "OPTIONS" => return Ok(()),
        _ => {}
    }
    let authority = match bytes.split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"http://") => {
            rest.split(|byte| matches!(byte, b'/' | b'?')).next().unwrap_or_default()
        }
        _ => return Err(Refused::bad("the target is neither a path nor an http URI")),
    };
    match seen.host {
        Some(host) if !host.eq_ignore_ascii_case(authority) => {
            Err(Refused::bad("target and Host name different hosts"))
        }
        _ if is_authority(authority) => Ok(()),
        _ => Err(Refused::bad("the target names no host")),
    }
}

/// `uri-host [ ":" port ]` (RFC 9110 section 7.2), by its characters (RFC 3986 section 3.2.2).
fn is_authority(value: &[u8]) -> bool {
    let (host, port) = match value.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !value[colon..].contains(&b']') => (&value[..colon], &value[colon + 1..]),
        _ => (value, &[][..]),
    };
    let named = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(byte);
    let host_fits = match host {
        [b'[', literal @ .., b']'] => {
            !literal.is_empty() && literal.iter().all(|byte| named(byte) || *byte == b':')
        }
        _ => !host.is_empty() && host.iter().all(named),
    };
    host_fits && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

fn is_token(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|byte| is_token_byte(*byte))
}

/// `tchar` of RFC 9110 section 5.6.2.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The elements of a list (RFC 9110 section 5.6.1).
fn options(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
}

fn lay_fields(record: &mut HeaderList, fields: &[httparse::Header<'_>]) -> Result<(), Refused> {
    let connection = |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case("connection");
    let mut name = Vec::new();
    for field in fields {
        name.clear();
        name.extend(field.name.bytes().map(|byte| byte.to_ascii_lowercase()));
        let mut named = fields.iter().filter(connection).flat_map(|field| options(field.value));
        // The expectation is one that the relay meets.
        if !ends_here(&name)
            && name != b"expect"
            && !named.any(|option| option.eq_ignore_ascii_case(&name))
        {
            lay(record, &[b"http.header.", &name], field.value)?;
        }
    }
    Ok(())
}

/// What cannot stand in a record is refused, never left out.
fn lay(record: &mut HeaderList, name: &[&[u8]], value: &[u8]) -> Result<(), Refused> {
    if record.push_field(name, value) { Ok(()) } else { Err(Refused::TOO_LONG) }
}

/// Refuses a trailer section that is not one; what it says is not passed on (RFC 9110 section 6.5.1).
pub(super) fn check_trailers(bytes: &[u8], max_fields: usize) -> Result<(), Refused> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_REQUEST_FIELDS];
    match httparse::parse_headers(bytes, &mut fields[..max_fields]) {
        Ok(httparse::Status::Complete((length, _))) if length == bytes.len() => Ok(()),
        Ok(_) => Err(Refused::bad("the trailer section has no end")),
        Err(error) => Err(explain(error, bytes)),
    }
}
