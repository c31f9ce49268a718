//! The opening handshake (RFC 6455 section 4.2): the head of an HTTP request, and its answer.

use std::io::Write as _;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use httparse::{EMPTY_HEADER, Header, Request, Status};
use sha1_smol::Sha1;

use millrace_model::{CloseReason, HeaderList};

use super::deflate::Deflate;
use super::section::WebSocketSection;

/// What the key of every handshake is hashed with (section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Most headers of a request; all of them go into the `open` record, with a few more.
const MAX_HEADERS: usize = 100;
/// What ends a head.
pub(super) const HEAD_END: &[u8] = b"\r\n\r\n";

/// Headers that are about the connection, not for the server.
const OWN_HEADERS: [&str; 7] = [
    "connection",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
    "origin",
];

/// A request that is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    status: &'static str,
    /// Further headers of the answer, each with its end.
    headers: &'static str,
    why: &'static str,
    pub(super) reason: CloseReason,
}

impl Rejection {
    pub(super) const HEAD_TOO_LARGE: Self = Self::new(
        "431 Request Header Fields Too Large",
        "the head of the request is longer than this service allows",
        CloseReason::OversizedMessage,
    );
    const ORIGIN: Self = Self::new(
        "403 Forbidden",
        "pages of this origin may not connect here",
        CloseReason::NotAuthorized,
    );
    const NO_UPGRADE: Self = Self {
        headers: "Upgrade: websocket\r\n",
        ..Self::new(
            "426 Upgrade Required",
            "this is a WebSocket service: ask for an upgrade (RFC 6455 section 4.1)",
            CloseReason::Unsupported,
        )
    };
    const VERSION: Self = Self {
        headers: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        ..Self::new(
            "426 Upgrade Required",
            "version 13 of the protocol is spoken here, and no other",
            CloseReason::Unsupported,
        )
    };

    const fn new(status: &'static str, why: &'static str, reason: CloseReason) -> Self {
        Self { status, headers: "", why, reason }
    }

    const fn bad(why: &'static str) -> Self {
        Self::new("400 Bad Request", why, CloseReason::Malformed)
    }

    /// What is said to a client whose connection is closed before its upgrade, if anything.
    pub(super) const fn of_close(reason: CloseReason) -> Option<Self> {
        let (status, why) = match reason {
            CloseReason::HandshakeTimeout | CloseReason::IdleTimeout => {
                ("408 Request Timeout", "the request did not come in time")
            }
            CloseReason::NoServer
            | CloseReason::ServerAway
            | CloseReason::KafkaBehind
            | CloseReason::FlowTableFull
            | CloseReason::RelayStop => {
                ("503 Service Unavailable", "no server can take this connection now: try again")
            }
            _ => return None,
        };
        Some(Self::new(status, why, reason))
    }

    /// Writes it as the answer to a request that begins so.
    pub(super) fn write(&self, head: &[u8], output: &mut Vec<u8>) {
        let Self { status, headers, why, .. } = self;
        // Writing to memory does not fail.
        let _ = write!(
            output,
            "HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            why.len() + 1
        );
        // RFC 9110 section 9.3.2.
        if !head.starts_with(b"HEAD ") {
            let _ = writeln!(output, "{why}");
        }
    }
}

/// A request that is granted.
#[derive(Debug)]
pub(super) struct Handshake {
    accept: String,
    subprotocol: Option<String>,
    /// Messages may be compressed.
    pub(super) deflate: Option<Deflate>,
}

impl Handshake {
    /// Reads a head, its end included. What the server should know of it goes into `record`.
    pub(super) fn read(
        head: &[u8],
        settings: &WebSocketSection,
        record: &mut HeaderList,
    ) -> Result<Self, Rejection> {
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut request = Request::new(&mut headers);
        match request.parse(head) {
            // A head that is at its end before the one that was looked for has bare line feeds.
            Ok(Status::Complete(length)) if length == head.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(Rejection::HEAD_TOO_LARGE),
            _ => return Err(Rejection::bad("this is not the head of an HTTP/1.1 request")),
        }
        let fields = Fields(request.headers);
        let key = fields.check(request.method, request.version)?;
        let origin = fields.once("origin")?;
        if let Some(origin) = origin
            && !settings.origins.is_empty()
            && !settings.origins.iter().any(|one| one.as_bytes().eq_ignore_ascii_case(origin))
        {
            return Err(Rejection::ORIGIN);
        }
        let subprotocol = fields
            .list("sec-websocket-protocol")
            .find(|offered| settings.subprotocols.iter().any(|own| own.as_bytes() == *offered))
            .map(|chosen| String::from_utf8_lossy(chosen).into_owned());

        record.clear();
        let target = request.path.unwrap_or_default().as_bytes();
        let subprotocol_bytes = subprotocol.as_deref().map(str::as_bytes);
        lay(record, &[b"websocket.target"], Some(target))?;
        lay(record, &[b"websocket.subprotocol"], subprotocol_bytes)?;
        lay(record, &[b"websocket.origin"], origin)?;
        fields.record(record)?;
        Ok(Self {
            accept: accept(key),
            subprotocol,
            deflate: fields.deflate().filter(|_| settings.compression),
        })
    }

    pub(super) fn write(&self, output: &mut Vec<u8>) {
        let _ = write!(
            output,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n",
            self.accept
        );
        if let Some(subprotocol) = &self.subprotocol {
            let _ = write!(output, "Sec-WebSocket-Protocol: {subprotocol}\r\n");
        }
        if let Some(Deflate { window_bits }) = self.deflate {
            output.extend_from_slice(
                b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
                  client_no_context_takeover",
            );
            if let Some(bits) = window_bits {
                let _ = write!(output, "; server_max_window_bits={bits}");
            }
            output.extend_from_slice(b"\r\n");
        }
        output.extend_from_slice(b"\r\n");
    }
}

fn accept(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(GUID.as_bytes());
    BASE64_STANDARD.encode(hash.digest().bytes())
}

/// The header fields of a request.
struct Fields<'a>(&'a [Header<'a>]);

impl<'a> Fields<'a> {
    /// Refuses what is not a proper request for an upgrade; gives its key.
    fn check(&self, method: Option<&str>, version: Option<u8>) -> Result<&'a [u8], Rejection> {
        if !self.list("upgrade").any(|token| token.eq_ignore_ascii_case(b"websocket")) {
            return Err(Rejection::NO_UPGRADE);
        }
        if method != Some("GET") || version != Some(1) {
            return Err(Rejection::bad("an upgrade is asked for by GET and HTTP/1.1"));
        }
        if !self.list("connection").any(|token| token.eq_ignore_ascii_case(b"upgrade")) {
            return Err(Rejection::bad("the header Connection does not say Upgrade"));
        }
        if self.once("host")?.is_none() {
            return Err(Rejection::bad("there is no header Host"));
        }
        if self.all("transfer-encoding").next().is_some()
            || self.all("content-length").any(|value| value != b"0")
        {
            return Err(Rejection::bad("a request for an upgrade has no body"));
        }
        if self.once("sec-websocket-version")? != Some(b"13") {
            return Err(Rejection::VERSION);
        }
        let key = self.once("sec-websocket-key")?.unwrap_or_default();
        match BASE64_STANDARD.decode(key) {
            Ok(bytes) if bytes.len() == 16 => Ok(key),
            _ => Err(Rejection::bad("Sec-WebSocket-Key is not 16 bytes in base64")),
        }
    }

    /// The values under a name.
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let values = self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        values.map(|field| field.value.trim_ascii())
    }

    /// The value under a name that must not stand there twice.
    fn once(&self, name: &str) -> Result<Option<&'a [u8]>, Rejection> {
        let mut all = self.all(name);
        let first = all.next();
        if all.next().is_some() {
            return Err(Rejection::bad("a header stands twice that may stand once"));
        }
        Ok(first)
    }

    /// The members of a list, in whatever number of fields.
    fn list(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|member| !member.is_empty())
    }

    /// The first of the client's offers that can be accepted as it stands (RFC 7692 section 7.1). An
    /// answer says that nobody takes his context over, so the sizes of windows hardly matter: see
    /// [`Deflate::allows`].
    fn deflate(&self) -> Option<Deflate> {
        self.list("sec-websocket-extensions").find_map(|offer| {
            let mut parts = offer.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            if parts.next() != Some(b"permessage-deflate") {
                return None;
            }
            let (mut seen, mut window_bits) = (Vec::new(), None);
            for parameter in parts {
                let mut halves = parameter.splitn(2, |byte| *byte == b'=');
                let name = halves.next().unwrap_or_default().trim_ascii();
                let value = halves.next().map(<[u8]>::trim_ascii);
                if seen.contains(&name) {
                    return None;
                }
                seen.push(name);
                match (name, value) {
                    (
                        b"server_no_context_takeover"
                        | b"client_no_context_takeover"
                        | b"client_max_window_bits",
                        None,
                    ) => {}
                    (b"client_max_window_bits", Some(value)) => {
                        window(value)?;
                    }
                    (b"server_max_window_bits", Some(value)) => window_bits = Some(window(value)?),
                    _ => return None,
                }
            }
            Some(Deflate { window_bits })
        })
    }

    /// What the server should know, as headers of its record.
    fn record(&self, record: &mut HeaderList) -> Result<(), Rejection> {
        for field in self.0 {
            if !OWN_HEADERS.iter().any(|own| field.name.eq_ignore_ascii_case(own)) {
                let name = field.name.to_ascii_lowercase();
                lay(record, &[b"http.header.", name.as_bytes()], Some(field.value))?;
            }
        }
        Ok(())
    }
}

/// What cannot stand in a record is refused, never left out.
fn lay(record: &mut HeaderList, name: &[&[u8]], value: Option<&[u8]>) -> Result<(), Rejection> {
    match value {
        Some(value) if !record.push_field(name, value) => Err(Rejection::HEAD_TOO_LARGE),
        _ => Ok(()),
    }
}

/// 8 to 15, perhaps in quotes.
fn window(value: &[u8]) -> Option<u8> {
    let value =
        value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    match value {
        [digit @ b'8'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}
