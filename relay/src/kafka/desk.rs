//! The desk between those who cannot deliver something and the keeper, who sees to it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::ring::{DownlinkSender, ReplyOffset, Return, Wake};

use super::backlog::{Backlog, Next};
use super::deadletter::{Reason, Refused};
use super::note::Note;
use super::record::ConnectionKey;

/// Replies that are not seen to; above it, the consumer reads no more.
const MOST_REPLIES: usize = 10_000;
/// Messages that Kafka has refused and that are not seen to. While there are so many the producer takes
/// no further reports and no record that would be refused: TCP slows the clients. Those of one look at
/// the reports may exceed it.
const MOST_REFUSED: usize = 1000;
/// And so many bytes of them.
const MOST_REFUSED_BYTES: usize = 32 << 20;

#[derive(Debug, Default)]
struct Heap {
    new: Vec<(ReplyOffset, Reason)>,
    refused: Vec<Refused>,
    /// All replies that were ever new and are not done.
    undone: BTreeSet<ReplyOffset>,
    backlog: Backlog,
    /// Refused messages that are not done, those in `refused` among them.
    refused_undone: usize,
    refused_bytes: usize,
}

/// What could not be delivered and is neither held nor a dead letter yet.
#[derive(Debug, Default)]
pub struct Desk {
    heap: Mutex<Heap>,
    changed: Condvar,
    /// How many replies are postponed, for those who postpone.
    postponed: Arc<AtomicU64>,
    /// Replies that were postponed when their connections ended.
    abandoned: AtomicU64,
    /// There are too many refused messages, and not yet few again.
    refused_full: AtomicBool,
    /// The producer's, which may wait for room.
    producer: OnceLock<Wake>,
}

impl Heap {
    fn hand_in(&mut self, offset: ReplyOffset, reason: Reason) {
        if self.undone.insert(offset) {
            self.new.push((offset, reason));
        }
    }
}

impl Desk {
    /// An empty desk that keeps account of what is postponed.
    pub fn new(postponed: Arc<AtomicU64>) -> Self {
        Self { postponed, ..Self::default() }
    }

    /// Every step leaves the heap whole.
    fn heap(&self) -> MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands in a reply. The downlink's offset stays before it until it is done.
    pub(super) fn hand_in(&self, offset: ReplyOffset, reason: Reason) {
        self.heap().hand_in(offset, reason);
    }

    /// Takes what the workers say of replies that they have not sent. Under the lock, so that whoever
    /// looks then at what is undone sees all that they had said.
    pub(super) fn collect(&self, downlinks: &[DownlinkSender]) {
        let heap = &mut *self.heap();
        let ended = |heap: &mut Heap, offset| {
            let was_postponed = heap.backlog.end(offset);
            self.postponed.fetch_sub(was_postponed.into(), Ordering::Relaxed);
        };
        for downlink in downlinks {
            downlink.take_returned(|returned| match returned {
                Return::Undelivered { offset, reason } => {
                    heap.hand_in(offset, reason.into());
                    ended(heap, offset);
                }
                Return::Postponed { key, offset, bytes } => {
                    heap.backlog.postpone(key, offset, bytes);
                }
                Return::Resume(key) => heap.backlog.resume(key),
                Return::Sent(offset) => {
                    ended(heap, offset);
                    self.changed.notify_all();
                }
                Return::Left(key) => {
                    let left = heap.backlog.leave(key);
                    self.hand_in_left(heap, left);
                }
            });
        }
    }

    /// Replies that are to be read again for those who have asked for more, in the log's order.
    pub(super) fn take_postponed(&self, most_bytes: usize) -> Vec<(Next, ConnectionKey)> {
        self.heap().backlog.take(most_bytes)
    }

    /// Those that could not be read, to be taken again.
    pub(super) fn put_back(&self, unread: &[(Next, ConnectionKey)]) {
        self.heap().backlog.put_back(unread);
    }

    /// Nobody takes those any more.
    pub(super) fn abandon(&self, unread: &[(Next, ConnectionKey)]) {
        let mut heap = self.heap();
        let offsets = unread.iter().map(|(next, _)| next.offset);
        let left: Vec<_> = offsets.filter(|offset| heap.backlog.end(*offset)).collect();
        self.hand_in_left(&mut heap, left);
    }

    /// The workers have ended: whatever they have not told of, nobody takes any more.
    pub(super) fn abandon_rest(&self) {
        let mut heap = self.heap();
        let left = heap.backlog.leave_all();
        self.hand_in_left(&mut heap, left);
    }

    /// Replies that were postponed, and are not any more, because their connections have ended.
    fn hand_in_left(&self, heap: &mut Heap, left: impl IntoIterator<Item = ReplyOffset>) {
        for offset in left {
            heap.hand_in(offset, Reason::ConnectionLost);
            self.postponed.fetch_sub(1, Ordering::Relaxed);
            self.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A reply that was postponed is not in the log any more.
    pub(super) fn vanished(&self, offset: ReplyOffset) {
        let ended = self.heap().backlog.end(offset);
        self.postponed.fetch_sub(ended.into(), Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// How many replies are postponed.
    pub fn postponed(&self) -> usize {
        self.heap().backlog.len()
    }

    /// Replies that were postponed when their connections ended.
    pub fn abandoned(&self) -> u64 {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Whom to wake when refused messages may be handed in again.
    pub(super) fn tell_of_room(&self, producer: Wake) {
        let _ = self.producer.set(producer);
    }

    /// Whether another message that Kafka has refused should be handed in. Once it should not, it should
    /// again when half of them are done.
    pub(super) fn has_room_for_refused(&self) -> bool {
        !self.refused_full.load(Ordering::Relaxed)
    }

    /// Hands in a message that Kafka has refused. It is stored nowhere else, so it is taken in any case.
    pub(super) fn hand_in_refused(&self, refused: Refused) {
        let mut heap = self.heap();
        heap.refused_undone += 1;
        heap.refused_bytes += refused.bytes();
        heap.refused.push(refused);
        let full = heap.refused_undone >= MOST_REFUSED || heap.refused_bytes >= MOST_REFUSED_BYTES;
        if full && !self.refused_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                waiting = heap.refused_undone,
                "Kafka refuses messages faster than they become dead letters; the relay takes no more \
                 until these are written"
            );
        }
    }

    /// True if no further replies should be read.
    pub(super) fn is_full(&self) -> bool {
        self.heap().undone.len() >= MOST_REPLIES
    }

    /// Refused messages that are not done.
    pub fn refused_undone(&self) -> usize {
        self.heap().refused_undone
    }

    /// The offset that may be committed if everything before `settled` is here or done with, and the
    /// note beside it. What the former run had postponed is before `start`.
    pub(super) fn to_commit(
        &self,
        start: ReplyOffset,
        settled: ReplyOffset,
        most_note_bytes: usize,
    ) -> (ReplyOffset, String) {
        let heap = self.heap();
        let undone = heap.undone.range(start..).next().copied();
        let end = undone.map_or(settled, |first| first.min(settled));
        let mut note = Note::new(most_note_bytes);
        let former = heap.undone.range(..start);
        for offset in former.chain(heap.backlog.before(end)) {
            if !note.add(*offset) {
                break;
            }
        }
        let (text, left) = note.finish();
        (left.map_or(end, |first| first.min(end)), text)
    }

    /// Takes what was handed in.
    pub(super) fn take(&self) -> (Vec<(ReplyOffset, Reason)>, Vec<Refused>) {
        let mut heap = self.heap();
        (std::mem::take(&mut heap.new), std::mem::take(&mut heap.refused))
    }

    /// A reply is where it belongs.
    pub(super) fn done(&self, offset: ReplyOffset) {
        self.heap().undone.remove(&offset);
        self.changed.notify_all();
    }

    /// A refused message is where it belongs.
    pub(super) fn refused_done(&self, refused: &Refused) {
        let mut heap = self.heap();
        heap.refused_undone -= 1;
        heap.refused_bytes -= refused.bytes();
        let few =
            heap.refused_undone <= MOST_REFUSED / 2 && heap.refused_bytes <= MOST_REFUSED_BYTES / 2;
        if few && self.refused_full.swap(false, Ordering::Relaxed) {
            self.producer.get().into_iter().for_each(Wake::wake);
        }
        self.changed.notify_all();
    }

    /// Waits until nothing is undone, for at most `patience`; true if so.
    pub(super) fn wait_done(&self, patience: Duration) -> bool {
        let heap = self.heap();
        let busy = |heap: &mut Heap| {
            !heap.undone.is_empty() || heap.backlog.len() > 0 || heap.refused_undone > 0
        };
        let waited = self.changed.wait_timeout_while(heap, patience, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}
