//! WebSocket (RFC 6455), with compressed messages (RFC 7692).
//!
//! A message is a record with the header `websocket.opcode`; the request's target and headers stand
//! in the `open` record. Pings are answered here, and asked when a client is silent.

mod deflate;
mod frame;
mod handshake;
mod section;
mod stream;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::{Actions, Codec, Sending, Settings, Unencodable};
use millrace_model::{Begin, CloseReason, DeliveryFailure, HeaderList, Headers, Reply};

use frame::{CloseCode, Opcode, write_control, write_header};
use handshake::{HEAD_END, Handshake, Rejection};
use stream::{DataKind, End, Stream};

pub use section::{ReplyOpcode, WebSocketSection};

/// The header that says what a message is.
const OPCODE: &std::ffi::CStr = c"websocket.opcode";

/// What a client did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Violation {
    code: CloseCode,
    /// For the client.
    what: &'static str,
    reason: CloseReason,
}

impl Violation {
    const NOT_UTF8: Self = Self {
        code: CloseCode::NOT_UTF8,
        what: "text that is not UTF-8",
        reason: CloseReason::Malformed,
    };
    const TOO_BIG: Self = Self {
        code: CloseCode::TOO_BIG,
        what: "a message longer than this service allows",
        reason: CloseReason::OversizedMessage,
    };

    const fn protocol(what: &'static str) -> Self {
        Self { code: CloseCode::PROTOCOL_ERROR, what, reason: CloseReason::Malformed }
    }
}

/// What all connections of a service have in common.
#[derive(Clone, Debug)]
pub struct WebSocketSettings {
    section: WebSocketSection,
    max_message_bytes: usize,
}

impl From<&Settings> for WebSocketSettings {
    fn from(service: &Settings) -> Self {
        Self {
            section: service.websocket.clone(),
            max_message_bytes: service.max_message_bytes as usize,
        }
    }
}

impl WebSocketSettings {
    /// See [`Protocol::check_reply`](crate::Protocol::check_reply). What an opcode is that
    /// is not said depends on the client.
    pub fn check_reply(&self, headers: Headers<'_>, payload: &[u8]) -> Result<(), Unencodable> {
        let says = match headers.get(OPCODE) {
            Some(value) => Some(DataKind::of_name(value).ok_or(Unencodable)?),
            None => match self.section.reply_opcode {
                ReplyOpcode::Same => None,
                ReplyOpcode::Text => Some(DataKind::Text),
                ReplyOpcode::Binary => Some(DataKind::Binary),
            },
        };
        self.check_payload(says.unwrap_or(DataKind::Binary), payload)
    }

    fn check_payload(&self, kind: DataKind, payload: &[u8]) -> Result<(), Unencodable> {
        let fits = payload.len() <= self.max_message_bytes
            && (kind == DataKind::Binary || str::from_utf8(payload).is_ok());
        fits.then_some(()).ok_or(Unencodable)
    }

    fn ping_interval(&self) -> Option<Duration> {
        let interval = self.section.ping_interval_ms;
        (interval > 0).then(|| Duration::from_millis(u64::from(interval)))
    }
}

/// The life of a WebSocket.
///
/// ```text
///  Handshake ── request granted ─► Open ── close frame of either side, violation ─► Closed
///      └── request refused, time over ──────────────────────────────────────────────┘
/// ```
#[derive(Debug)]
enum State {
    /// The head of the request, as far as it has come.
    Handshake(Vec<u8>),
    /// Frames.
    Open(Box<Stream>),
    /// The last bytes are in the output.
    Closed,
}

/// Whether the client is asked for a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ping {
    /// It has given one.
    None,
    /// Behind replies that the client has yet to read, so that it cannot have seen it.
    Waiting,
    /// It is on its way, and nothing has come since.
    Sent,
}

/// One connection.
#[derive(Debug)]
pub struct WebSocket {
    settings: Arc<WebSocketSettings>,
    state: State,
    /// Of a sign of life.
    deadline: Option<Instant>,
    ping: Ping,
    /// How the server wants it closed.
    farewell: Option<(CloseCode, Box<str>)>,
    /// Why Kafka would not have a message.
    refused: Option<DeliveryFailure>,
}

impl WebSocket {
    /// At the beginning of a connection.
    pub const fn new(settings: Arc<WebSocketSettings>) -> Self {
        let state = State::Handshake(Vec::new());
        Self { settings, state, deadline: None, ping: Ping::None, farewell: None, refused: None }
    }

    /// Takes bytes of the head; what is left of them comes after it.
    fn take_head<'a>(
        &mut self,
        input: &'a [u8],
        now: Instant,
        actions: &mut dyn Actions,
    ) -> &'a [u8] {
        let State::Handshake(head) = &mut self.state else { return input };
        let limit = self.settings.section.max_head_bytes as usize;
        let known = head.len();
        head.extend_from_slice(&input[..input.len().min(limit - known)]);
        let from = known.saturating_sub(HEAD_END.len() - 1);
        let Some(end) = memchr::memmem::find(&head[from..], HEAD_END) else {
            if head.len() == limit {
                let head = std::mem::take(head);
                self.reject(Rejection::HEAD_TOO_LARGE, &head, actions);
            }
            return &[];
        };
        let length = from + end + HEAD_END.len();
        let head = std::mem::take(head);
        self.open(&head[..length], now, actions);
        &input[length - known..]
    }

    fn open(&mut self, head: &[u8], now: Instant, actions: &mut dyn Actions) {
        let mut record = HeaderList::default();
        let handshake = match Handshake::read(head, &self.settings.section, &mut record) {
            Ok(handshake) => handshake,
            Err(rejection) => return self.reject(rejection, head, actions),
        };
        let begin = Begin {
            protocol: "websocket",
            holds: true,
            headers: record.headers(),
            ..Begin::default()
        };
        if let Err(refusal) = actions.begin(begin) {
            let reason = refusal.into();
            if let Some(rejection) = Rejection::of_close(reason) {
                rejection.write(head, actions.output());
            }
            return self.close(reason, actions);
        }
        handshake.write(actions.output());
        self.state = State::Open(Box::new(Stream::new(handshake.deflate)));
        self.heard(now);
    }

    fn reject(&mut self, rejection: Rejection, head: &[u8], actions: &mut dyn Actions) {
        rejection.write(head, actions.output());
        self.close(rejection.reason, actions);
    }

    fn close(&mut self, reason: CloseReason, actions: &mut dyn Actions) {
        self.state = State::Closed;
        self.deadline = None;
        actions.close(reason);
    }

    /// The client is there.
    fn heard(&mut self, now: Instant) {
        self.ping = Ping::None;
        self.deadline = self.settings.ping_interval().map(|interval| now + interval);
    }

    fn end(&mut self, end: End, actions: &mut dyn Actions) {
        match end {
            End::Violation(Violation { code, what, reason }) => {
                code.write(what, actions.output());
                self.close(reason, actions);
            }
            End::ClientClosed(payload) => {
                write_control(Opcode::Close, &payload, actions.output());
                self.close(CloseReason::ClientClosed, actions);
            }
        }
    }

    /// What a client is told whose connection is closed for a reason that is not its own.
    fn last_words(&mut self, reason: CloseReason) -> Option<(CloseCode, Box<str>)> {
        let (code, what) = match reason {
            CloseReason::ClosedByServer => {
                return Some(self.farewell.take().unwrap_or((CloseCode::NORMAL, "".into())));
            }
            CloseReason::RelayStop => (CloseCode::GOING_AWAY, "the gateway stops: connect again"),
            CloseReason::Disconnected => (CloseCode::POLICY, "closed by the gateway's operator"),
            CloseReason::SlowReader => (CloseCode::POLICY, "messages were not read in time"),
            CloseReason::IdleTimeout => (CloseCode::POLICY, "nothing came for too long"),
            CloseReason::MemoryLimit => (CloseCode::POLICY, "too much is kept for the connection"),
            CloseReason::OversizedMessage => (CloseCode::TOO_BIG, Violation::TOO_BIG.what),
            CloseReason::NoServer | CloseReason::ServerAway | CloseReason::FlowTableFull => {
                (CloseCode::TRY_AGAIN_LATER, "there is no server now: try again later")
            }
            CloseReason::RefusedByKafka => match self.refused {
                Some(DeliveryFailure::TooLarge) => {
                    (CloseCode::INTERNAL_ERROR, "a message is larger than can be stored")
                }
                _ => (CloseCode::INTERNAL_ERROR, "a message was refused"),
            },
            CloseReason::EndOfStream | CloseReason::ConnectionFailed | CloseReason::HandedOn => {
                return None;
            }
            _ => (CloseCode::POLICY, reason.name()),
        };
        Some((code, what.into()))
    }
}

impl Codec for WebSocket {
    fn name(&self) -> &'static str {
        "websocket"
    }

    fn receive(&mut self, input: &[u8], now: Instant, actions: &mut dyn Actions) {
        let input = self.take_head(input, now, actions);
        let State::Open(stream) = &mut self.state else { return };
        let taken = stream.take(input, self.settings.max_message_bytes, actions);
        match taken {
            Ok(()) => self.heard(now),
            Err(end) => self.end(end, actions),
        }
    }

    fn end_of_stream(&mut self, _now: Instant, _actions: &mut dyn Actions) -> bool {
        self.deadline = None;
        self.is_between_messages()
    }

    fn is_between_messages(&self) -> bool {
        match &self.state {
            State::Handshake(head) => head.is_empty(),
            State::Open(stream) => stream.is_between_messages(),
            State::Closed => true,
        }
    }

    fn reply(
        &mut self,
        reply: Reply<'_>,
        _now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<Sending, Unencodable> {
        let State::Open(stream) = &self.state else { return Err(Unencodable) };
        let section = &self.settings.section;
        let kind = match (reply.headers.get(OPCODE), section.reply_opcode) {
            (Some(name), _) => DataKind::of_name(name).ok_or(Unencodable)?,
            (None, ReplyOpcode::Same) => stream.last_kind(),
            (None, ReplyOpcode::Text) => DataKind::Text,
            (None, ReplyOpcode::Binary) => DataKind::Binary,
        };
        self.settings.check_payload(kind, reply.payload)?;
        let (payload, output) = (reply.payload, actions.output());
        let worth =
            stream.deflates(payload.len()) && payload.len() >= section.compress_min_bytes as usize;
        let write = |compressed: bool, payload: &[u8], output: &mut Vec<u8>| {
            write_header(kind.opcode(), compressed, payload.len(), output);
            output.extend_from_slice(payload);
        };
        if !worth || deflate::deflate(payload, |short| write(true, short, output)).is_none() {
            write(false, payload, output);
        }
        Ok(Sending::WithOutput)
    }

    fn close_asked(&mut self, headers: Headers<'_>) {
        let (code, reason) = CloseCode::of_header(headers.get(c"close").unwrap_or_default());
        self.farewell = Some((code, reason.into()));
    }

    fn refused(
        &mut self,
        failure: DeliveryFailure,
        _message: u64,
        _now: Instant,
        _actions: &mut dyn Actions,
    ) -> bool {
        self.refused.get_or_insert(failure);
        false
    }

    fn lingers(&self) -> bool {
        true
    }

    fn farewell(&mut self, reason: CloseReason, _now: Instant, actions: &mut dyn Actions) {
        match &self.state {
            State::Handshake(head) => {
                if let Some(rejection) = Rejection::of_close(reason) {
                    rejection.write(head, actions.output());
                }
            }
            State::Open(_) => {
                if let Some((code, what)) = self.last_words(reason) {
                    code.write(&what, actions.output());
                }
            }
            State::Closed => {}
        }
        self.state = State::Closed;
        self.deadline = None;
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn elapsed(&mut self, now: Instant, actions: &mut dyn Actions) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        match (&self.state, self.settings.ping_interval()) {
            (State::Open(_), Some(_)) if self.ping == Ping::None => {
                write_control(Opcode::Ping, &[], actions.output());
                self.ping = Ping::Waiting;
                self.deadline = None;
            }
            (State::Open(_), _) => {
                self.farewell(CloseReason::IdleTimeout, now, actions);
                actions.close(CloseReason::IdleTimeout);
            }
            (State::Handshake(_) | State::Closed, _) => self.deadline = None,
        }
    }

    fn sent(&mut self, now: Instant) -> bool {
        if self.ping != Ping::Waiting || !matches!(self.state, State::Open(_)) {
            return false;
        }
        self.ping = Ping::Sent;
        self.deadline = self.settings.ping_interval().map(|interval| now + interval);
        true
    }

    fn kept_bytes(&self) -> usize {
        match &self.state {
            State::Handshake(head) => head.capacity(),
            State::Open(stream) => stream.kept_bytes(),
            State::Closed => 0,
        }
    }
}

/// The headers of a message's record.
fn opcode_headers(kind: DataKind) -> Headers<'static> {
    static TEXT: LazyLock<HeaderList> = LazyLock::new(|| list(DataKind::Text));
    static BINARY: LazyLock<HeaderList> = LazyLock::new(|| list(DataKind::Binary));
    fn list(kind: DataKind) -> HeaderList {
        let mut list = HeaderList::default();
        list.push(OPCODE.to_bytes(), kind.name().as_bytes());
        list
    }
    match kind {
        DataKind::Text => TEXT.headers(),
        DataKind::Binary => BINARY.headers(),
    }
}

#[cfg(test)]
mod tests;
