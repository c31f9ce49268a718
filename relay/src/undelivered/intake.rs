//! The intake: between those who cannot deliver something and the keeper, who sees to it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::model::{ConnectionKey, ReplyOffset};
use crate::ring::{DownlinkSender, Return, Wake};
use crate::undelivered::arrivals::Arrivals;
use crate::undelivered::backlog::{Backlog, Next};
use crate::undelivered::deadletter::{Reason, Refused};
use crate::undelivered::note::Note;

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
pub struct Intake {
    heap: Mutex<Heap>,
    changed: Condvar,
    /// How many replies are postponed, for those who postpone.
    postponed: Arc<AtomicU64>,
    /// Replies that were postponed when their connections ended.
    abandoned: AtomicU64,
    /// When what was read.
    pub(crate) arrivals: Arc<Arrivals>,
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

    /// A connection will not get a reply. It is handed in after the older ones of that connection that
    /// are on their way: in this order they are held.
    fn hand_in_of(&mut self, key: ConnectionKey, offset: ReplyOffset, reason: Reason) {
        if self.undone.insert(offset) && self.backlog.may_leave(key, offset, reason) {
            self.new.push((offset, reason));
        }
    }

    /// Hands in what a connection has left behind, if nothing older is on its way.
    fn release(&mut self, key: ConnectionKey) {
        self.new.extend(self.backlog.release(key));
    }
}

impl Intake {
    /// An empty intake that keeps account of what is postponed, and of when the consumer reads what.
    pub fn new(postponed: Arc<AtomicU64>, arrivals: Arc<Arrivals>) -> Self {
        Self { postponed, arrivals, ..Self::default() }
    }

    /// Every step leaves the heap whole.
    fn heap(&self) -> MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands in a reply. The downlink's offset stays before it until it is done.
    pub(crate) fn hand_in(&self, offset: ReplyOffset, reason: Reason) {
        self.heap().hand_in(offset, reason);
    }

    /// Takes what the workers say of replies that they have not sent. Under the lock, so that whoever
    /// looks then at what is undone sees all that they had said.
    pub(crate) fn collect(&self, downlinks: &[DownlinkSender]) {
        let heap = &mut *self.heap();
        for downlink in downlinks {
            downlink.take_returned(|returned| match returned {
                Return::Undelivered { key, offset, reason } => {
                    heap.hand_in_of(key, offset, reason.into());
                    self.end(heap, offset);
                    heap.release(key);
                }
                Return::Postponed { key, offset, bytes } => {
                    heap.backlog.postpone(key, offset, bytes);
                }
                Return::Unconfirmed { key, offset } => heap.backlog.keep(key, offset),
                Return::Resume(key) => heap.backlog.resume(key),
                Return::Sent(offset) => {
                    self.end(heap, offset);
                    self.changed.notify_all();
                }
                Return::Left(key) => self.leave(heap, key),
            });
        }
    }

    /// A reply that was postponed is dealt with.
    fn end(&self, heap: &mut Heap, offset: ReplyOffset) {
        if let Some(key) = heap.backlog.end(offset) {
            self.postponed.fetch_sub(1, Ordering::Relaxed);
            heap.release(key);
        }
    }

    /// A connection is over: what it was not given is handed in.
    fn leave(&self, heap: &mut Heap, key: ConnectionKey) {
        let left = heap.backlog.leave(key);
        self.count_left(left.len());
        heap.undone.extend(left);
        heap.release(key);
    }

    /// Replies that are to be read again for those who have asked for more, in the log's order.
    pub(crate) fn take_postponed(&self, most_bytes: usize) -> Vec<(Next, ConnectionKey)> {
        self.heap().backlog.take(most_bytes)
    }

    /// Those that could not be read, to be taken again.
    pub(crate) fn put_back(&self, unread: &[(Next, ConnectionKey)]) {
        let mut heap = self.heap();
        for over in heap.backlog.put_back(unread) {
            self.leave(&mut heap, over);
        }
    }

    /// Nobody takes those any more.
    pub(crate) fn abandon(&self, unread: &[(Next, ConnectionKey)]) {
        let mut heap = self.heap();
        for (next, key) in unread {
            heap.hand_in_of(*key, next.offset, Reason::ConnectionLost);
            if heap.backlog.end(next.offset).is_some() {
                self.count_left(1);
            }
            heap.release(*key);
        }
    }

    /// The workers have ended: whatever they have not told of, nobody takes any more.
    pub(crate) fn abandon_rest(&self) {
        let mut heap = self.heap();
        let (rest, mut left) = heap.backlog.leave_all();
        self.count_left(rest.len());
        left.extend(rest.iter().map(|offset| (*offset, Reason::ConnectionLost)));
        heap.undone.extend(rest);
        heap.new.extend(left);
    }

    /// Replies that were postponed, and are not any more, because their connections have ended.
    fn count_left(&self, replies: usize) {
        self.postponed.fetch_sub(replies as u64, Ordering::Relaxed);
        self.abandoned.fetch_add(replies as u64, Ordering::Relaxed);
    }

    /// A reply that was postponed is not in the log any more.
    pub(crate) fn vanished(&self, offset: ReplyOffset) {
        self.end(&mut self.heap(), offset);
        self.changed.notify_all();
    }

    /// Whether a client that is behind may ask for more at any time.
    pub(crate) fn has_queue(&self) -> bool {
        self.heap().backlog.has_queue()
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
    pub(crate) fn tell_of_room(&self, producer: Wake) {
        let _ = self.producer.set(producer);
    }

    /// Whether another message that Kafka has refused should be handed in. Once it should not, it should
    /// again when half of them are done.
    pub(crate) fn has_room_for_refused(&self) -> bool {
        !self.refused_full.load(Ordering::Relaxed)
    }

    /// Hands in a message that Kafka has refused. It is stored nowhere else, so it is taken in any case.
    pub(crate) fn hand_in_refused(&self, refused: Refused) {
        let mut heap = self.heap();
        heap.refused_undone += 1;
        heap.refused_bytes += refused.bytes();
        heap.refused.push(refused);
        let full = heap.refused_undone >= MOST_REFUSED || heap.refused_bytes >= MOST_REFUSED_BYTES;
        if full && !self.refused_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                waiting = heap.refused_undone,
                "Kafka refuses messages faster than they become dead letters; the relay accepts \
                 no more until the dead letters are written"
            );
        }
    }

    /// True if no further replies should be read.
    pub(crate) fn is_full(&self) -> bool {
        self.heap().undone.len() >= MOST_REPLIES
    }

    /// Refused messages that are not done.
    pub fn refused_undone(&self) -> usize {
        self.heap().refused_undone
    }

    /// The offset that may be committed if everything before `settled` is here or done with, and the
    /// note beside it, for the log with this id. What the former run had postponed is before `start`.
    pub(crate) fn to_commit(
        &self,
        log: Option<&str>,
        start: ReplyOffset,
        settled: ReplyOffset,
        most_note_bytes: usize,
    ) -> (ReplyOffset, String) {
        let heap = self.heap();
        let undone = heap.undone.range(start..).next().copied();
        let end = undone.map_or(settled, |first| first.min(settled));
        let mut note = Note::new(log, most_note_bytes);
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
    pub(crate) fn take(&self) -> (Vec<(ReplyOffset, Reason)>, Vec<Refused>) {
        let mut heap = self.heap();
        (std::mem::take(&mut heap.new), std::mem::take(&mut heap.refused))
    }

    /// Whether no reply is on its way from here.
    pub(crate) fn is_clear(&self) -> bool {
        let heap = self.heap();
        heap.undone.is_empty() && heap.backlog.len() == 0
    }

    /// A reply is where it belongs.
    pub(crate) fn done(&self, offset: ReplyOffset) {
        self.heap().undone.remove(&offset);
        self.changed.notify_all();
    }

    /// A refused message is where it belongs.
    pub(crate) fn refused_done(&self, refused: &Refused) {
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
    pub(crate) fn wait_done(&self, patience: Duration) -> bool {
        let heap = self.heap();
        let busy = |heap: &mut Heap| {
            !heap.undone.is_empty() || heap.backlog.len() > 0 || heap.refused_undone > 0
        };
        let waited = self.changed.wait_timeout_while(heap, patience, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UndeliveredReason;
    use crate::model::{Incarnation, RelayId};
    use crate::ring::{Wake, downlink};

    fn key() -> ConnectionKey {
        let (relay, incarnation) = (RelayId(0), Incarnation::new(1));
        ConnectionKey { relay, incarnation, worker: 0, slot: 0, generation: 1 }
    }

    fn undelivered(offset: i64, reason: UndeliveredReason) -> Return {
        Return::Undelivered { key: key(), offset: ReplyOffset(offset), reason }
    }

    /// A intake whose connection has four replies postponed, 1 to 4, and was given the first two of them.
    fn intake(say: impl Fn(Return)) -> Intake {
        let intake = Intake::new(Arc::new(AtomicU64::new(4)), Arc::default());
        for offset in (1..=4).map(ReplyOffset) {
            say(Return::Postponed { key: key(), offset, bytes: 10 });
        }
        say(Return::Resume(key()));
        intake
    }

    #[test]
    fn what_a_connection_leaves_behind_is_handed_in_in_the_order_of_the_log() {
        let wake = || Wake::new().unwrap();
        let (sender, worker) = downlink(wake(), wake());
        let downlinks = [sender];
        let say = |returned| assert!(worker.give_back(returned));
        let intake = intake(say);
        intake.collect(&downlinks);
        assert_eq!(intake.take_postponed(20).len(), 2);
        let handed_in = || {
            intake.collect(&downlinks);
            intake.take().0.into_iter().map(|(offset, _)| offset.0).collect::<Vec<_>>()
        };
        // The connection ends before its worker has seen those two, and a newer one is in their way.
        say(Return::Left(key()));
        say(undelivered(9, UndeliveredReason::Stale));
        say(undelivered(8, UndeliveredReason::Unencodable));
        assert_eq!(handed_in(), [8], "of a dead letter nobody wants the order");
        let (start, settled) = (ReplyOffset(0), ReplyOffset(10));
        assert_eq!(
            intake.to_commit(None, start, settled, 100).0,
            ReplyOffset(3),
            "they are not forgotten"
        );
        say(undelivered(1, UndeliveredReason::Closing));
        assert!(handed_in().is_empty());
        say(undelivered(2, UndeliveredReason::Closing));
        assert_eq!(handed_in(), [1, 2, 3, 4, 9]);
        assert_eq!((intake.postponed(), intake.postponed.load(Ordering::Relaxed)), (0, 0));
        say(undelivered(11, UndeliveredReason::Stale));
        assert_eq!(handed_in(), [11], "nothing is before it any more");
    }

    #[test]
    fn what_waits_behind_older_replies_is_handed_in_when_the_relay_stops() {
        let wake = || Wake::new().unwrap();
        let (sender, worker) = downlink(wake(), wake());
        let intake = intake(|returned| assert!(worker.give_back(returned)));
        intake.collect(std::slice::from_ref(&sender));
        intake.take_postponed(20);
        assert!(worker.give_back(undelivered(9, UndeliveredReason::Stale)));
        intake.collect(&[sender]);
        intake.abandon_rest();
        let handed_in = intake.take().0.into_iter().map(|(offset, _)| offset.0);
        assert!(handed_in.eq([1, 2, 3, 4, 9]));
        assert_eq!(intake.postponed.load(Ordering::Relaxed), 0);
    }
}
