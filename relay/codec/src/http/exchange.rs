//! Requests and what the server replies to them, in the order of the requests.

use std::collections::VecDeque;
use std::time::Instant;

use crate::{Actions, Sending, Unencodable};
use millrace_model::{CloseReason, Reply, ReplyOrigin};

use super::head::Head;
use super::refused::Refused;
use super::response::{Date, Framing, Parsed, Persistence, write_continue, write_refusal};

/// What the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Nothing has come.
    Awaited,
    /// Some parts have.
    Begun { framing: Framing, next_part: u64 },
    /// Everything has. With a reason the connection ends after it.
    Whole(Option<CloseReason>),
}

/// A request and its answer.
#[derive(Debug)]
struct Exchange {
    old: bool,
    head_only: bool,
    keep_alive: bool,
    /// When the answer must have begun; none until the request is whole.
    until: Option<Instant>,
    /// The number of its last message so far.
    last_message: u64,
    answer: Answer,
    /// The answer so far, while another one's turn is.
    kept: Vec<u8>,
    /// The replies that are in it.
    origins: Vec<ReplyOrigin>,
}

/// A reply's part, as its headers have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    number: u64,
    last: bool,
}

/// What became of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Written,
    Unwanted,
}

/// Requests that have no whole answer yet, the oldest first.
#[derive(Debug)]
pub(super) struct Exchanges {
    queue: VecDeque<Exchange>,
    /// Requests before those in the queue.
    finished: u64,
    /// The last message of those.
    finished_messages: u64,
}

impl Exchange {
    fn new(head: Option<&Head>) -> Self {
        Self {
            old: head.is_some_and(|head| head.old),
            head_only: head.is_some_and(|head| head.bodiless),
            keep_alive: head.is_some_and(|head| head.keep_alive),
            until: None,
            last_message: 0,
            answer: Answer::Awaited,
            kept: Vec::new(),
            origins: Vec::new(),
        }
    }

    fn take(
        &mut self,
        reply: Reply<'_>,
        date: &Date,
        out: &mut Vec<u8>,
    ) -> Result<Taken, Unencodable> {
        let part = part(reply)?;
        let closing = reply.headers.get(c"close").is_some();
        match (self.answer, part) {
            (Answer::Whole(_), _) | (Answer::Begun { .. }, None) => Err(Unencodable),
            (Answer::Begun { next_part, .. }, Some(part)) if part.number < next_part => {
                // The server has answered again, after a restart.
                Ok(Taken::Unwanted)
            }
            (Answer::Begun { framing, next_part }, Some(part)) => {
                let follows = part.number == next_part;
                let written = follows.then(|| write_body(out, framing, reply.payload)).flatten();
                let Some(framing) = written else {
                    // Nothing can mend what the client has already.
                    self.answer = Answer::Whole(Some(CloseReason::ServerFailed));
                    return Err(Unencodable);
                };
                self.go_on(framing, part, closing, out);
                Ok(Taken::Written)
            }
            (Answer::Awaited, Some(part)) if part.number > 0 => Err(Unencodable),
            (Answer::Awaited, part) => self.begin(reply, part, closing, date, out),
        }
    }

    /// Writes the head, and what has come of the body.
    fn begin(
        &mut self,
        reply: Reply<'_>,
        part: Option<Part>,
        closing: bool,
        date: &Date,
        out: &mut Vec<u8>,
    ) -> Result<Taken, Unencodable> {
        let fits = Parsed::new(reply.headers).and_then(|parsed| {
            let size = reply.payload.len() as u64;
            let wrong_length = !self.head_only
                && !parsed.is_bodiless()
                && parsed.content_length.is_some_and(|length| {
                    if part.is_some() { length < size } else { length != size }
                });
            let interim_parts = parsed.status < 200 && part.is_some();
            if wrong_length || interim_parts || (parsed.is_bodiless() && size > 0) {
                return Err(Unencodable);
            }
            Ok(parsed)
        });
        let Ok(parsed) = fits else {
            self.refuse(Refused::BAD_REPLY, date, out);
            return Err(Unencodable);
        };
        if parsed.status < 200 {
            // RFC 9110 section 15.2: not to a client of HTTP/1.0.
            if self.old {
                return Ok(Taken::Unwanted);
            }
            parsed.write(out, None, Framing::Nothing, Persistence::Usual, date);
            return Ok(Taken::Written);
        }
        let (length, framing) = self.framing(&parsed, part, reply.payload);
        // Of a request that is answered before it is whole, the rest is not read.
        self.keep_alive &= self.until.is_some() && !closing && framing != Framing::UntilClose;
        let persistence = match (self.keep_alive, self.old) {
            (true, false) => Persistence::Usual,
            (true, true) => Persistence::KeepAlive,
            (false, _) => Persistence::Close,
        };
        parsed.write(out, length, framing, persistence, date);
        let framing = write_body(out, framing, reply.payload).expect("the length was checked");
        self.go_on(framing, part.unwrap_or(Part { number: 0, last: true }), closing, out);
        Ok(Taken::Written)
    }

    /// What Content-Length says, and how the end of the body is known.
    fn framing(
        &self,
        parsed: &Parsed<'_>,
        part: Option<Part>,
        payload: &[u8],
    ) -> (Option<u64>, Framing) {
        let size = payload.len() as u64;
        match (parsed.status, part) {
            (204, _) => (None, Framing::Nothing),
            (205, _) => (Some(0), Framing::Nothing),
            (304, _) => (parsed.content_length, Framing::Nothing),
            // An empty one to HEAD says nothing about the length of what GET would get.
            (_, None) if self.head_only => {
                (parsed.content_length.or(Some(size).filter(|size| *size > 0)), Framing::Nothing)
            }
            (_, Some(_)) if self.head_only => (parsed.content_length, Framing::Nothing),
            (_, None) => (Some(size), Framing::Known(size)),
            (_, Some(_)) => match parsed.content_length {
                Some(length) => (Some(length), Framing::Known(length)),
                None if self.old => (None, Framing::UntilClose),
                None => (None, Framing::Chunked),
            },
        }
    }

    /// After a part of the body is written.
    fn go_on(&mut self, framing: Framing, part: Part, closing: bool, out: &mut Vec<u8>) {
        let ended = if closing { Some(CloseReason::ClosedByServer) } else { None };
        self.answer = match (part.last, framing) {
            (false, _) if closing => Answer::Whole(ended),
            (false, framing) => Answer::Begun { framing, next_part: part.number + 1 },
            // Less than was announced: the client learns it by the connection's end.
            (true, Framing::Known(1..)) => Answer::Whole(Some(CloseReason::ServerFailed)),
            (true, framing) => {
                if framing == Framing::Chunked {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                let client = (!self.keep_alive).then_some(CloseReason::ClientClosed);
                Answer::Whole(ended.or(client))
            }
        };
    }

    /// Answers in the server's place, and for the last time.
    fn refuse(&mut self, refused: Refused, date: &Date, out: &mut Vec<u8>) {
        match self.answer {
            Answer::Awaited => {
                write_refusal(out, refused, self.head_only, date);
                self.answer = Answer::Whole(Some(refused.reason));
            }
            Answer::Begun { .. } => self.answer = Answer::Whole(Some(refused.reason)),
            Answer::Whole(ref mut close) => {
                close.get_or_insert(refused.reason);
            }
        }
    }
}

/// The part that a reply is; none if it is all.
fn part(reply: Reply<'_>) -> Result<Option<Part>, Unencodable> {
    let Some(number) = reply.headers.get(c"http.part") else { return Ok(None) };
    let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
    let last = reply.headers.get(c"http.last").is_some();
    number.map(|number| Some(Part { number, last })).ok_or(Unencodable)
}

/// Writes some of a body. None if it is more than was announced.
fn write_body(out: &mut Vec<u8>, framing: Framing, payload: &[u8]) -> Option<Framing> {
    match framing {
        Framing::Nothing => {}
        Framing::Known(remaining) => {
            let remaining = remaining.checked_sub(payload.len() as u64)?;
            out.extend_from_slice(payload);
            return Some(Framing::Known(remaining));
        }
        // A chunk of no bytes is the last one.
        Framing::Chunked if payload.is_empty() => {}
        Framing::Chunked => {
            out.extend_from_slice(format!("{:x}\r\n", payload.len()).as_bytes());
            out.extend_from_slice(payload);
            out.extend_from_slice(b"\r\n");
        }
        Framing::UntilClose => out.extend_from_slice(payload),
    }
    Some(framing)
}

impl Exchanges {
    pub(super) const fn new() -> Self {
        Self { queue: VecDeque::new(), finished: 0, finished_messages: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The number of the request that comes next.
    pub(super) fn next_number(&self) -> u64 {
        self.finished + self.queue.len() as u64 + 1
    }

    /// Bytes of replies that wait for their turn.
    pub(super) fn kept_bytes(&self) -> usize {
        self.queue.iter().map(|exchange| exchange.kept.len()).sum()
    }

    /// A request's head has come.
    pub(super) fn begin(&mut self, head: &Head) {
        self.queue.push_back(Exchange::new(Some(head)));
    }

    /// A message of the last request was written.
    pub(super) fn wrote(&mut self, message: u64) {
        if let Some(last) = self.queue.back_mut() {
            last.last_message = message;
        }
    }

    /// The last request is whole, and is to be answered in time. True if another one may follow.
    pub(super) fn complete(&mut self, until: Instant) -> bool {
        self.queue.back_mut().is_some_and(|exchange| {
            exchange.until = Some(until);
            exchange.keep_alive
        })
    }

    /// Leave for the last request to go on, as soon as its turn to be answered is.
    pub(super) fn write_continue(&mut self, actions: &mut dyn Actions) {
        match self.queue.len() {
            0 => {}
            1 => write_continue(actions.output()),
            last => write_continue(&mut self.queue[last - 1].kept),
        }
    }

    /// When the oldest request must have begun to be answered.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let front = self.queue.front().filter(|front| front.answer == Answer::Awaited)?;
        front.until
    }

    /// True if the oldest request is being answered.
    pub(super) fn has_begun(&self) -> bool {
        let front = self.queue.front();
        front.is_some_and(|front| matches!(front.answer, Answer::Begun { .. }))
    }

    /// Takes a reply.
    pub(super) fn reply(
        &mut self,
        reply: Reply<'_>,
        date: &Date,
        actions: &mut dyn Actions,
    ) -> Result<Sending, Unencodable> {
        let number: u64 = reply
            .headers
            .text(c"http.request")
            .and_then(|number| number.parse().ok())
            .ok_or(Unencodable)?;
        let index = number.checked_sub(self.finished + 1).ok_or(Unencodable)?;
        let index = usize::try_from(index).map_err(|_| Unencodable)?;
        let exchange = self.queue.get_mut(index).ok_or(Unencodable)?;
        if index == 0 {
            return exchange.take(reply, date, actions.output()).map(|taken| match taken {
                Taken::Written => Sending::WithOutput,
                Taken::Unwanted => Sending::Unwanted,
            });
        }
        let mut kept = std::mem::take(&mut exchange.kept);
        let taken = exchange.take(reply, date, &mut kept);
        exchange.kept = kept;
        Ok(match taken? {
            Taken::Written => {
                exchange.origins.push(reply.origin);
                Sending::Kept
            }
            Taken::Unwanted => Sending::Unwanted,
        })
    }

    /// Answers a request in the server's place: the one that is being received if `open`, else what
    /// would have been the next one, whose line may have come.
    pub(super) fn refuse(
        &mut self,
        refused: Refused,
        open: bool,
        lines: &[u8],
        date: &Date,
        actions: &mut dyn Actions,
    ) {
        if !open {
            let mut unread = Exchange::new(None);
            unread.head_only = lines.starts_with(b"HEAD ");
            self.queue.push_back(unread);
        }
        if let Some(last) = self.queue.len().checked_sub(1) {
            self.refuse_at(last, refused, date, actions);
        }
    }

    /// Answers the request that a message is of in the server's place, when its turn is. False if that
    /// was answered whole before.
    pub(super) fn refuse_message(
        &mut self,
        message: u64,
        refused: Refused,
        date: &Date,
        actions: &mut dyn Actions,
    ) -> bool {
        let first = self.finished_messages;
        let its = |exchange: &Exchange| exchange.last_message >= message;
        let place = self.queue.iter().position(its).filter(|_| message > first);
        if let Some(place) = place {
            self.refuse_at(place, refused, date, actions);
        }
        place.is_some()
    }

    fn refuse_at(
        &mut self,
        place: usize,
        refused: Refused,
        date: &Date,
        actions: &mut dyn Actions,
    ) {
        let Some(exchange) = self.queue.get_mut(place) else { return };
        if place == 0 {
            exchange.refuse(refused, date, actions.output());
        } else {
            let mut kept = std::mem::take(&mut exchange.kept);
            exchange.refuse(refused, date, &mut kept);
            exchange.kept = kept;
        }
    }

    /// Answers the oldest request in the server's place.
    pub(super) fn refuse_first(
        &mut self,
        refused: Refused,
        date: &Date,
        actions: &mut dyn Actions,
    ) {
        if let Some(front) = self.queue.front_mut() {
            front.refuse(refused, date, actions.output());
        }
    }

    /// The request that is being received will not be whole.
    pub(super) fn abandon(&mut self, reason: CloseReason) {
        if let Some(last) = self.queue.back_mut()
            && last.answer == Answer::Awaited
        {
            last.answer = Answer::Whole(Some(reason));
        }
    }

    /// Takes what is answered out, and writes what was kept for the one whose turn it is then: its
    /// answer has as much time from now as that of the only one. The reason for which the connection
    /// ends, if it does.
    pub(super) fn advance(
        &mut self,
        until: Instant,
        actions: &mut dyn Actions,
    ) -> Option<CloseReason> {
        while let Some(front) = self.queue.front() {
            let Answer::Whole(close) = front.answer else { return None };
            if close.is_some() {
                return close;
            }
            self.finished_messages = self.finished_messages.max(front.last_message);
            self.queue.pop_front();
            self.finished += 1;
            if let Some(front) = self.queue.front_mut() {
                front.until = front.until.map(|_| until);
                actions.output().extend_from_slice(&std::mem::take(&mut front.kept));
                for origin in std::mem::take(&mut front.origins) {
                    actions.release(origin);
                }
            }
        }
        None
    }
}
