//! A client's connection, as its worker sees it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::codec::Decoder;
use crate::kafka::Identity;
use crate::ring::{Origin, Receipt, ReplyOffset};
use crate::route::ServiceId;

use super::stats::CloseReason;

/// What an idle connection keeps of its output buffers.
const OUTPUT_KEPT_BYTES: usize = 16 << 10;
/// And of its list of receipts.
const RECEIPTS_KEPT: usize = 64;

/// The life of a connection.
///
/// ```text
///  accepted ─► Open ── client ends its side ─► HalfClosed ── time over ──────┐
///               │                                 │                          │
///               ├── told to close: server, stop ──┴─► Flushing ── all sent ──┤
///               │                                        └─── time over ─────┤
///               └── bad input, failure, bound ───────────────────────────────┴─► Closing ─► gone
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Both directions.
    Open,
    /// The client has ended its side; replies are still sent for a while.
    HalfClosed,
    /// Nothing is read; what is there for the client is sent, then it closes.
    Flushing(CloseReason),
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

/// Replies on their way to the client.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Encoded, waiting for the send before it.
    pub(super) waiting: Vec<u8>,
    /// Bytes of the send that is going on; 0: none is.
    pub(super) sending_bytes: usize,
    sending_replies: usize,
    /// One for each reply, those of the send first.
    pub(super) receipts: VecDeque<Receipt>,
    /// The other buffer, when no send has it.
    spare: Vec<u8>,
}

impl Output {
    /// All bytes that wait for the client.
    pub(super) fn bytes(&self) -> usize {
        self.waiting.len() + self.sending_bytes
    }

    /// The first offset of the downlink that waits here.
    pub(super) fn oldest_offset(&self) -> Option<ReplyOffset> {
        self.receipts.iter().find_map(|receipt| match receipt {
            Receipt::Offset(offset) => Some(*offset),
            _ => None,
        })
    }

    /// The buffer of the next send, if one should begin.
    pub(super) fn begin_send(&mut self) -> Option<Vec<u8>> {
        if self.sending_bytes > 0 || self.waiting.is_empty() {
            return None;
        }
        let buffer = std::mem::replace(&mut self.waiting, std::mem::take(&mut self.spare));
        self.sending_bytes = buffer.len();
        self.sending_replies = self.receipts.len();
        Some(buffer)
    }

    /// The send has ended; the receipts of the replies it carried.
    pub(super) fn end_send(&mut self, mut buffer: Vec<u8>) -> impl Iterator<Item = Receipt> {
        self.sending_bytes = 0;
        buffer.clear();
        buffer.shrink_to(OUTPUT_KEPT_BYTES);
        self.spare = buffer;
        if self.receipts.len() == self.sending_replies {
            // What is taken below counts until then.
            self.receipts.shrink_to(self.sending_replies.max(RECEIPTS_KEPT));
        }
        self.receipts.drain(..std::mem::take(&mut self.sending_replies))
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) identity: Arc<Identity>,
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    pub(super) service: ServiceId,
    pub(super) state: State,
    pub(super) receive: Receive,
    pub(super) decoder: Decoder,
    /// Messages so far: the number of the last one.
    pub(super) sequence: u64,
    /// Place in the batch being filled.
    pub(super) origin: Origin,
    /// Not read from, because of a bound further on; the worker's list has it.
    pub(super) held: bool,
    /// Not read from, because it is about to go on at another server.
    pub(super) quiesced: bool,
    /// What was received before the hold took effect.
    pub(super) stash: Vec<u8>,
    pub(super) output: Output,
}

impl Connection {
    pub(super) fn new(
        identity: Arc<Identity>,
        (client, server): (SocketAddr, SocketAddr),
        service: ServiceId,
        decoder: Decoder,
    ) -> Self {
        Self {
            identity,
            client,
            server,
            service,
            state: State::Open,
            receive: Receive::Stopped,
            decoder,
            sequence: 0,
            origin: Origin::default(),
            held: false,
            quiesced: false,
            stash: Vec::new(),
            output: Output::default(),
        }
    }

    pub(super) fn generation(&self) -> u32 {
        self.identity.key.generation
    }

    /// True while what the client sends counts.
    pub(super) fn reads(&self) -> bool {
        self.state == State::Open
    }

    /// True while replies are taken for the client.
    pub(super) fn writes(&self) -> bool {
        matches!(self.state, State::Open | State::HalfClosed)
    }
}
