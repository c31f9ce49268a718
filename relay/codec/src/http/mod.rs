//! HTTP/1.1 (RFC 9112) and HTTP/1.0: a request is a message, a reply is a response.
//!
//! httparse reads request lines and fields; where a message ends is decided here, strictly.
//!
//! ```text
//!  lines ─► head ─► body ─► message(s)            reply(ies) ─► response ─► output
//!                    └────────────── exchange: who is answered, in which order ──┘
//! ```

mod body;
mod exchange;
mod head;
mod lines;
mod refused;
mod response;
mod section;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::{Actions, Codec, Sending, Settings, Unencodable};
use millrace_model::{Begin, CloseReason, Decimal, DeliveryFailure, HeaderList, Reply};

use body::{Body, Bounds, Piece};
use exchange::Exchanges;
use lines::Lines;
use refused::Refused;
use response::{Clock, Date};

pub use head::MAX_REQUEST_FIELDS;
pub use section::HttpSection;

/// What an idle connection keeps of its body's buffer.
const BODY_KEPT_BYTES: usize = 4096;
/// What is received ahead of requests that have to wait for the replies before them. Only who is
/// received from is seen to leave.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// What all connections of a service have in common.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    part_bytes: usize,
    bounds: Bounds,
    head_bytes: usize,
    max_pipelined: usize,
    max_kept_bytes: usize,
    handshake: Duration,
    request: Duration,
    body: Duration,
    keep_alive: Duration,
    clock: Clock,
}

impl HttpSettings {
    /// As the configuration has it. The two clocks are read at the same moment.
    pub fn new(service: &Settings, now: Instant, time: SystemTime) -> Self {
        let milliseconds = |time: u32| Duration::from_millis(u64::from(time));
        let http = &service.http;
        Self {
            part_bytes: service.max_message_bytes as usize,
            bounds: Bounds {
                body_bytes: http.max_body_bytes,
                trailer_bytes: http.max_head_bytes as usize,
                fields: usize::from(http.max_fields),
            },
            head_bytes: http.max_head_bytes as usize,
            max_pipelined: usize::from(http.max_pipelined),
            max_kept_bytes: http.max_kept_bytes as usize,
            handshake: milliseconds(service.handshake_timeout_ms),
            request: milliseconds(http.request_timeout_ms),
            body: milliseconds(http.body_timeout_ms),
            keep_alive: milliseconds(http.keep_alive_ms),
            clock: Clock::new(now, time),
        }
    }
}

/// What the client's next byte belongs to.
///
/// ```text
///  Head ─► Body ─► Head …           (a request without a body goes from Head to Head)
///    └───────┴──► Nothing           refused, asked to close, ended: what comes is thrown away
/// ```
#[derive(Debug)]
enum Reading {
    Head,
    Body(Body),
    Nothing,
}

/// A connection that speaks HTTP.
#[derive(Debug)]
pub struct Http {
    settings: Arc<HttpSettings>,
    reading: Reading,
    lines: Lines,
    /// Headers of the next record.
    record: HeaderList,
    body: Vec<u8>,
    /// Records of the present request so far.
    parts: u64,
    exchanges: Exchanges,
    /// Received while as many requests wait as may.
    backlog: Vec<u8>,
    /// When what is being read must have come.
    until: Instant,
    begun: bool,
    /// The client has ended its side: when a response that has begun must have gone on.
    ended: Option<Instant>,
    closed: bool,
}

impl Http {
    /// At the beginning of a stream.
    pub fn new(settings: Arc<HttpSettings>, now: Instant) -> Self {
        Self {
            until: now + settings.handshake,
            settings,
            reading: Reading::Head,
            lines: Lines::new(),
            record: HeaderList::default(),
            body: Vec::new(),
            parts: 0,
            exchanges: Exchanges::new(),
            backlog: Vec::new(),
            begun: false,
            ended: None,
            closed: false,
        }
    }

    fn date(&self, now: Instant) -> Date {
        self.settings.clock.date(now)
    }

    fn read(&mut self, mut input: &[u8], now: Instant, actions: &mut dyn Actions) {
        while !input.is_empty() && !self.closed {
            let taken = match &mut self.reading {
                Reading::Nothing => return,
                Reading::Head if self.exchanges.len() >= self.settings.max_pipelined => {
                    return self.backlog.extend_from_slice(input);
                }
                Reading::Head => self.read_head(input, now, actions),
                Reading::Body(_) => self.read_body(input, now, actions),
            };
            match taken {
                Ok(length) => input = &input[length..],
                Err(refused) => return self.refuse(refused, now, actions),
            }
        }
    }

    fn read_head(
        &mut self,
        input: &[u8],
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<usize, Refused> {
        if self.lines.is_empty() {
            self.until = now + self.settings.handshake;
        }
        let (length, whole) = self.lines.head(input, self.settings.head_bytes)?;
        if whole {
            self.begin(now, actions)?;
        }
        Ok(length)
    }

    /// A head is there.
    fn begin(&mut self, now: Instant, actions: &mut dyn Actions) -> Result<(), Refused> {
        let (fields, number) = (self.settings.bounds.fields, self.exchanges.next_number());
        let head = head::parse(self.lines.bytes(), fields, number, &mut self.record)?;
        let body = Body::begin(head.length, self.settings.bounds)?;
        if !self.begun {
            actions.begin(Begin { protocol: "http", ..Begin::default() })?;
            self.begun = true;
        }
        self.lines.clear();
        self.parts = 0;
        self.exchanges.begin(&head);
        if head.expects {
            self.exchanges.write_continue(actions);
        }
        match body {
            Some(body) => {
                self.until = now + self.settings.body;
                self.reading = Reading::Body(body);
            }
            None => self.complete(now, actions),
        }
        Ok(())
    }

    fn read_body(
        &mut self,
        input: &[u8],
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<usize, Refused> {
        let Reading::Body(body) = &mut self.reading else { return Ok(0) };
        let (piece, ended) = body.piece(input, self.settings.bounds, &mut self.lines)?;
        self.until = now + self.settings.body;
        let length = match piece {
            Piece::Data(length) => {
                self.take_data(&input[..length], actions);
                length
            }
            Piece::Framing(length) => length,
        };
        if ended {
            self.complete(now, actions);
        }
        Ok(length)
    }

    /// Some of the body. A part goes when it is full and something comes after it.
    fn take_data(&mut self, mut data: &[u8], actions: &mut dyn Actions) {
        while !data.is_empty() {
            if self.body.len() == self.settings.part_bytes {
                self.write_record(false, actions);
            }
            let room = self.settings.part_bytes - self.body.len();
            let (now, later) = data.split_at(room.min(data.len()));
            self.body.extend_from_slice(now);
            data = later;
        }
    }

    fn write_record(&mut self, last: bool, actions: &mut dyn Actions) {
        let mut fits = true;
        if !last || self.parts > 0 {
            fits &= self.record.push(b"http.part", Decimal::new(self.parts).as_bytes());
        }
        if last && self.parts > 0 {
            fits &= self.record.push(b"http.last", b"1");
        }
        self.exchanges.wrote(actions.message(self.record.headers(), &self.body));
        self.body.clear();
        self.body.shrink_to(BODY_KEPT_BYTES);
        self.parts += 1;
        self.record.clear();
        let number = self.exchanges.next_number() - 1;
        fits &= self.record.push(b"http.request", Decimal::new(number).as_bytes());
        debug_assert!(fits, "a record has room for the relay's own headers");
    }

    /// A request is whole.
    fn complete(&mut self, now: Instant, actions: &mut dyn Actions) {
        self.write_record(true, actions);
        let another = self.exchanges.complete(now + self.settings.request);
        self.reading = if another { Reading::Head } else { Reading::Nothing };
    }

    /// The request that is being read is not taken, nor anything after it.
    fn refuse(&mut self, refused: Refused, now: Instant, actions: &mut dyn Actions) {
        let open = matches!(self.reading, Reading::Body(_));
        let date = self.date(now);
        self.exchanges.refuse(refused, open, self.lines.bytes(), &date, actions);
        self.stop_reading();
        self.advance(now, actions);
    }

    fn stop_reading(&mut self) {
        self.reading = Reading::Nothing;
        self.lines.clear();
        self.body = Vec::new();
        self.backlog = Vec::new();
    }

    /// After something was answered.
    fn advance(&mut self, now: Instant, actions: &mut dyn Actions) {
        let before = self.exchanges.len();
        if let Some(reason) = self.exchanges.advance(now + self.settings.request, actions) {
            return self.close(reason, actions);
        }
        if self.exchanges.kept_bytes() > self.settings.max_kept_bytes {
            return self.close(CloseReason::SlowReader, actions);
        }
        if self.exchanges.len() == before {
            return;
        }
        if self.exchanges.is_empty() && self.lines.is_empty() {
            self.until = now + self.settings.keep_alive;
        }
        if !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            self.read(&backlog, now, actions);
        }
        if self.ended.is_some() && self.backlog.is_empty() && !self.closed {
            self.finish(now, actions);
        }
    }

    /// The stream has ended, and all of it was read. True if that was between two requests.
    fn finish(&mut self, now: Instant, actions: &mut dyn Actions) -> bool {
        let within = matches!(self.reading, Reading::Body(_));
        let whole = self.is_between_messages();
        self.stop_reading();
        if within {
            self.exchanges.abandon(CloseReason::EndOfStream);
            self.advance(now, actions);
        }
        if self.exchanges.is_empty() && !self.closed {
            let reason = if whole { CloseReason::ClientClosed } else { CloseReason::EndOfStream };
            self.close(reason, actions);
        }
        whole
    }

    fn close(&mut self, reason: CloseReason, actions: &mut dyn Actions) {
        self.closed = true;
        self.stop_reading();
        actions.close(reason);
    }

    /// When what is being read must have come; none while the client need not send anything.
    fn read_deadline(&self) -> Option<Instant> {
        let waits = match self.reading {
            Reading::Head => !self.lines.is_empty() || self.exchanges.is_empty(),
            Reading::Body(_) => true,
            Reading::Nothing => false,
        };
        waits.then_some(self.until)
    }

    /// When a response that has begun must go on for a client that has ended its side: most of those
    /// have left, and the kernel says no more of it than of those that wait (RFC 9293 section 3.6).
    fn go_on_deadline(&self) -> Option<Instant> {
        self.ended.filter(|_| self.exchanges.has_begun())
    }
}

impl Codec for Http {
    fn name(&self) -> &'static str {
        "http"
    }

    fn receive(&mut self, input: &[u8], now: Instant, actions: &mut dyn Actions) {
        if self.backlog.is_empty() {
            self.read(input, now, actions);
        } else {
            self.backlog.extend_from_slice(input);
        }
    }

    fn end_of_stream(&mut self, now: Instant, actions: &mut dyn Actions) -> bool {
        self.ended = Some(now + self.settings.request);
        // What is in the backlog is read when its turn comes.
        self.closed || !self.backlog.is_empty() || self.finish(now, actions)
    }

    fn is_between_messages(&self) -> bool {
        !matches!(self.reading, Reading::Body(_)) && self.lines.is_empty()
    }

    fn owes(&self) -> bool {
        !self.closed && !self.exchanges.is_empty()
    }

    fn reply(
        &mut self,
        reply: Reply<'_>,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<Sending, Unencodable> {
        if self.closed {
            return Err(Unencodable);
        }
        let names_none = reply.headers.get(c"http.request").is_none();
        if names_none && reply.payload.is_empty() && reply.headers.get(c"close").is_some() {
            self.close(CloseReason::ClosedByServer, actions);
            return Ok(Sending::WithOutput);
        }
        let date = self.date(now);
        let sending = self.exchanges.reply(reply, &date, actions);
        if sending == Ok(Sending::WithOutput) {
            self.ended = self.ended.map(|_| now + self.settings.request);
        }
        self.advance(now, actions);
        sending
    }

    fn obeys_close(&self) -> bool {
        true
    }

    fn lingers(&self) -> bool {
        true
    }

    fn farewell(&mut self, reason: CloseReason, now: Instant, actions: &mut dyn Actions) {
        let told = matches!(
            reason,
            CloseReason::RelayStop | CloseReason::ServerAway | CloseReason::NoServer
        );
        let date = self.date(now);
        if reason == CloseReason::HandshakeTimeout && !self.lines.is_empty() {
            let lines = self.lines.bytes();
            self.exchanges.refuse(Refused::HEAD_TIMEOUT, false, lines, &date, actions);
        } else if told && !self.closed {
            self.exchanges.refuse_first(Refused::unavailable(reason), &date, actions);
        }
    }

    /// Those before it are answered first: Kafka has them.
    fn refused(
        &mut self,
        failure: DeliveryFailure,
        message: u64,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> bool {
        if self.closed {
            return true;
        }
        let refused = match failure {
            DeliveryFailure::TooLarge => Refused::TOO_LARGE_FOR_KAFKA,
            _ => Refused::BY_KAFKA,
        };
        let date = self.date(now);
        self.stop_reading();
        if self.exchanges.refuse_message(message, refused, &date, actions) {
            self.advance(now, actions);
        } else {
            self.close(CloseReason::RefusedByKafka, actions);
        }
        true
    }

    fn deadline(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        let answered = [self.exchanges.deadline(), self.go_on_deadline()];
        answered.into_iter().chain([self.read_deadline()]).flatten().min()
    }

    fn elapsed(&mut self, now: Instant, actions: &mut dyn Actions) {
        if self.closed {
            return;
        }
        if self.exchanges.deadline().is_some_and(|deadline| deadline <= now) {
            let date = self.date(now);
            self.exchanges.refuse_first(Refused::NO_REPLY, &date, actions);
            return self.advance(now, actions);
        }
        if self.go_on_deadline().is_some_and(|deadline| deadline <= now) {
            return self.close(CloseReason::EndOfStream, actions);
        }
        if self.read_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        match self.reading {
            Reading::Body(_) => self.refuse(Refused::BODY_TIMEOUT, now, actions),
            Reading::Head if !self.lines.is_empty() => {
                self.refuse(Refused::HEAD_TIMEOUT, now, actions);
            }
            // Quietly: the client has asked for nothing.
            Reading::Head if self.begun => self.close(CloseReason::IdleTimeout, actions),
            Reading::Head => self.close(CloseReason::HandshakeTimeout, actions),
            Reading::Nothing => {}
        }
    }

    fn not_read(&mut self, now: Instant) {
        self.ended = self.ended.map(|until| until.max(now + self.settings.request));
        let time = match self.reading {
            Reading::Body(_) => self.settings.body,
            Reading::Head if self.begun && self.lines.is_empty() => self.settings.keep_alive,
            Reading::Head => self.settings.handshake,
            Reading::Nothing => return,
        };
        self.until = self.until.max(now + time);
    }

    fn reads(&self) -> bool {
        !self.closed && self.backlog.len() < READ_AHEAD_BYTES
    }

    fn kept_bytes(&self) -> usize {
        self.lines.kept_bytes() + self.body.len() + self.backlog.len() + self.exchanges.kept_bytes()
    }
}
