//! A client's connection, as its worker sees it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codec::AnyCodec;
use crate::model::{ClientIdentity, CloseReason, ConnectionKey, Identity, ReplyOffset, ServiceId};
use crate::ring::{BatchPlace, Receipt};

use super::lag::Behind;
use super::limits::Pace;
use super::reasons::Reasons;
use super::send_buffer::{SendBuffer, Taken};
use super::shared::Served;
use super::stash::Stash;
use super::unconfirmed::Unconfirmed;

/// What an idle connection keeps of its list of receipts.
const RECEIPTS_KEPT: usize = 64;

/// The life of a connection.
///
/// ```text
///  accepted ─► Open ── client ends its side ─► HalfClosed ── time over ──────┐
///               │                                 │                          │
///               ├── told to close: server, stop ──┴─► Flushing ── all sent ──┤
///               │                                        ├─── time over ─────┤
///               │                                        └─ sent, lingers ──► Draining ─ ended, ─┐
///               │                                                            │    time over     │
///               └── bad input, failure, bound ───────────────────────────────┴──────────────────┴─► Closing ─► gone
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Both directions.
    Open,
    /// The client has ended its side; replies are still sent for a while.
    HalfClosed,
    /// Nothing is read; what is there for the client is sent, then it closes.
    Flushing(CloseReason),
    /// Nothing of the service's: about to be a [pipe](super::onward).
    HandingOn,
    /// Out of the books: all is sent, and the client was told that nothing follows. What still comes
    /// from it is read and thrown away: closed with unread input, the kernel would send a reset, and
    /// the client might lose what it has not read (RFC 9112 section 9.6).
    Draining,
    /// Given back to the engine.
    Closing,
}

/// The receive side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    /// Going on.
    Armed,
    /// Asked to stop.
    Stopping,
    /// Stopped; may be armed again.
    Stopped,
    /// The client has ended its side.
    Ended,
}

/// What is known of the client's end though the receive has not come to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Client {
    /// Nothing.
    There,
    /// It has ended its side, and may take replies.
    HasEnded,
    /// The connection has failed.
    Gone,
}

/// The first offset of the downlink among receipts.
fn oldest_offset(receipts: &VecDeque<Receipt>) -> Option<ReplyOffset> {
    receipts.iter().find_map(|receipt| match receipt {
        Receipt::Offset(offset) => Some(*offset),
        _ => None,
    })
}

/// Replies on their way to the client.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Encoded.
    pub(super) buffer: SendBuffer,
    /// There was a send.
    pub(super) has_sent: bool,
    sending_replies: usize,
    /// When its client had taken a send last, or was given the first bytes after that; none while it has
    /// all.
    pub(super) moved: Option<Instant>,
    /// One for each reply, those of the send first.
    pub(super) receipts: VecDeque<Receipt>,
}

impl Output {
    /// All bytes that wait for the client.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// The buffer of the next send, if one should begin.
    pub(super) fn begin_send(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffer.begin_send()?;
        self.has_sent = true;
        self.sending_replies = self.receipts.len();
        Some(buffer)
    }

    /// Takes the buffer of a send back, with its result.
    pub(super) fn end_send(
        &mut self,
        buffer: Vec<u8>,
        result: &io::Result<usize>,
        now: Instant,
    ) -> Taken {
        let taken = self.buffer.end_send(buffer, result);
        self.moved = (self.bytes() > 0).then_some(now);
        taken
    }

    /// The receipts of the replies that the last send has carried, all of it taken.
    pub(super) fn take_sent(&mut self) -> impl Iterator<Item = Receipt> {
        if self.receipts.len() == self.sending_replies {
            // What is taken below counts until then.
            self.receipts.shrink_to(self.sending_replies.max(RECEIPTS_KEPT));
        }
        self.receipts.drain(..std::mem::take(&mut self.sending_replies))
    }
}

/// What a connection is to everybody but its codec.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) key: ConnectionKey,
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    pub(super) service: ServiceId,
    /// None until its client is known.
    pub(super) identity: Option<Arc<Identity>>,
    /// Whose association it is.
    pub(super) who: Option<ClientIdentity>,
    /// Messages so far: the number of the last one.
    pub(super) sequence: u64,
    /// How many of them Kafka has acknowledged, where somebody wants to know.
    pub(super) acknowledged: u64,
    /// Kafka has refused one: what it acknowledges after that cannot be counted.
    pub(super) refused: bool,
    /// Place in the batch being filled.
    pub(super) origin: BatchPlace,
    pub(super) output: Output,
    /// Sent to a client that had ended its side, and that may have gone: whether it has them is known when
    /// its kernel has acknowledged them. None are here of clients whose replies do not wait for them.
    pub(super) doubtful: VecDeque<Receipt>,
    pub(super) unconfirmed: Unconfirmed,
    /// Its client reads slower than its server writes.
    pub(super) behind: Option<Box<Behind>>,
}

impl Link {
    /// The first offset of the downlink that the client has not read, as far as is known.
    pub(super) fn oldest_unread(&self) -> Option<ReplyOffset> {
        let (sending, doubtful) = (&self.output.receipts, &self.doubtful);
        oldest_offset(sending).into_iter().chain(oldest_offset(doubtful)).min()
    }

    /// The first offset of the downlink that waits for the client.
    pub(super) fn oldest_offset(&self) -> Option<ReplyOffset> {
        self.oldest_unread().into_iter().chain(self.unconfirmed.oldest_offset()).min()
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) link: Link,
    pub(super) codec: AnyCodec,
    pub(super) state: State,
    pub(super) receive: Receive,
    pub(super) client: Client,
    /// When the first reply came that it may still have to read or to confirm; so the worker's list has it.
    pub(super) owes_since: Option<Instant>,
    /// When it was accepted.
    pub(super) since: Instant,
    /// When its client sent something last.
    pub(super) heard: Instant,
    /// One of those that its address may have.
    pub(super) counted: bool,
    /// What of its rate is used, and until when it is not read from for that.
    pub(super) pace: Pace,
    pub(super) throttled_until: Option<Instant>,
    /// When the worker looks at it next, if nothing else happens.
    pub(super) timer: Option<Instant>,
    /// Since when it waits for nothing but its client's acknowledgement of what was sent.
    pub(super) in_doubt_since: Option<Instant>,
    /// How long it may stay half-closed, flushing or draining.
    pub(super) lingers_until: Option<Instant>,
    /// How long it may stay draining at most, while its client goes on sending.
    pub(super) drains_until: Option<Instant>,
    /// Why it is not read from, if it is not.
    pub(super) paused: Reasons,
    /// Since when, if one of them is a bound.
    pub(super) held_since: Instant,
    /// What was received before its pause took effect.
    pub(super) stash: Option<Box<Stash>>,
    /// Bytes of memory that it is booked with.
    pub(super) booked_bytes: usize,
    /// Those of them that its limit is about.
    pub(super) limited_bytes: usize,
}

impl Connection {
    pub(super) fn new(
        key: ConnectionKey,
        (client, server): (SocketAddr, SocketAddr),
        service: ServiceId,
        codec: AnyCodec,
        now: Instant,
    ) -> Self {
        let link = Link {
            key,
            client,
            server,
            service,
            identity: None,
            who: None,
            sequence: 0,
            acknowledged: 0,
            refused: false,
            origin: BatchPlace::default(),
            output: Output::default(),
            doubtful: VecDeque::new(),
            unconfirmed: Unconfirmed::default(),
            behind: None,
        };
        Self {
            link,
            codec,
            state: State::Open,
            receive: Receive::Stopped,
            client: Client::There,
            owes_since: None,
            since: now,
            heard: now,
            counted: false,
            pace: Pace::new(),
            throttled_until: None,
            timer: None,
            in_doubt_since: None,
            lingers_until: None,
            drains_until: None,
            paused: Reasons::NONE,
            held_since: now,
            stash: None,
            booked_bytes: 0,
            limited_bytes: 0,
        }
    }

    pub(super) fn generation(&self) -> u32 {
        self.link.key.generation
    }

    /// When something is to be done about it if nothing happens, and what: its codec, or the reason
    /// to close it.
    ///
    /// `patience` is how long the client may leave unread what it was sent.
    pub(super) fn deadline(
        &self,
        served: &Served,
        patience: Duration,
    ) -> Option<(Instant, Option<CloseReason>)> {
        let stalled = self.link.output.moved.map(|moved| moved + patience);
        let stalled = stalled.map(|at| (at, Some(CloseReason::SlowReader)));
        if self.link.is_waiting() && (self.link.output.bytes() > 0 || self.codec.has_room()) {
            // It cannot have seen what its protocol would have it answer.
            return stalled;
        }
        let handshake = self.link.identity.is_none().then(|| self.since + served.handshake);
        // Who is waited for may be silent.
        let idle = served.idle.filter(|_| !self.codec.owes()).map(|idle| self.heard + idle);
        [
            handshake.map(|at| (at, Some(CloseReason::HandshakeTimeout))),
            idle.map(|at| (at, Some(CloseReason::IdleTimeout))),
            self.codec.deadline().map(|at| (at, None)),
            stalled,
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    /// Bytes kept in memory for it, and what of that is its client's or its server's doing. The rest is what
    /// the relay has read beyond a pause: the client could not know of that, and the receive buffers bound
    /// it. Once the connection is given up nothing is its own any more.
    pub(super) fn kept_bytes(&self) -> (usize, usize) {
        match self.state {
            State::Open | State::HalfClosed | State::Flushing(_) => {
                let limited = self.codec.kept_bytes() + self.link.output.bytes();
                (limited + self.stash.as_ref().map_or(0, |stash| stash.length), limited)
            }
            State::HandingOn | State::Draining | State::Closing => (0, 0),
        }
    }

    /// The relay did not read from it until now: its silence until now means nothing.
    pub(super) fn not_read(&mut self, now: Instant) {
        self.heard = now;
        self.codec.not_read(now);
    }

    /// True if what it is sent now may reach nobody, and had better wait for its client then.
    pub(super) fn is_doubtful(&self) -> bool {
        self.receive == Receive::Ended && self.link.identity.as_ref().is_some_and(|one| one.holds())
    }

    /// True if something that it has sent waits to be decoded.
    pub(super) fn has_stash(&self) -> bool {
        self.stash.is_some()
    }

    /// True while what the client sends counts.
    pub(super) fn reads(&self) -> bool {
        self.state == State::Open
    }

    /// True if what the client sends now is decoded at once.
    pub(super) fn is_read(&self) -> bool {
        self.reads() && self.paused.is_empty()
    }

    /// True while an order has it wait for the next one.
    pub(super) fn moves(&self) -> bool {
        self.paused.has(Reasons::MOVE)
    }

    /// True while replies are taken for the client.
    pub(super) fn writes(&self) -> bool {
        matches!(self.state, State::Open | State::HalfClosed)
    }
}
