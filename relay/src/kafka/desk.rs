//! The desk between those who cannot deliver something and the keeper, who sees to it.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ring::ReplyOffset;

use super::deadletter::{Reason, Refused};

/// Replies that are not seen to; above it, the consumer reads no more.
const MOST_REPLIES: usize = 10_000;
/// Messages that Kafka has refused and that are not seen to; further ones are given up, and counted.
const MOST_REFUSED: usize = 1000;

#[derive(Debug, Default)]
struct Heap {
    new: Vec<(ReplyOffset, Reason)>,
    refused: Vec<Refused>,
    /// All replies that were ever new and are not done.
    undone: BTreeSet<ReplyOffset>,
    /// Refused messages that are not done, those in `refused` among them.
    refused_undone: usize,
}

/// What could not be delivered and is neither held nor a dead letter yet.
#[derive(Debug, Default)]
pub struct Desk {
    heap: Mutex<Heap>,
    changed: Condvar,
}

impl Desk {
    /// Every step leaves the heap whole.
    fn heap(&self) -> MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands in a reply. The downlink's offset stays before it until it is done.
    pub(super) fn hand_in(&self, offset: ReplyOffset, reason: Reason) {
        let mut heap = self.heap();
        if heap.undone.insert(offset) {
            heap.new.push((offset, reason));
        }
    }

    /// Hands in a message that Kafka has refused; false if there are too many.
    pub(super) fn hand_in_refused(&self, refused: Refused) -> bool {
        let mut heap = self.heap();
        let room = heap.refused_undone < MOST_REFUSED;
        if room {
            heap.refused_undone += 1;
            heap.refused.push(refused);
        }
        room
    }

    /// True if no further replies should be read.
    pub(super) fn is_full(&self) -> bool {
        self.heap().undone.len() >= MOST_REPLIES
    }

    /// Refused messages that are not done.
    pub fn refused_undone(&self) -> usize {
        self.heap().refused_undone
    }

    /// The first reply that is not done.
    pub(super) fn first_undone(&self) -> Option<ReplyOffset> {
        self.heap().undone.first().copied()
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
    pub(super) fn refused_done(&self) {
        self.heap().refused_undone -= 1;
        self.changed.notify_all();
    }

    /// Waits until nothing is undone, for at most `patience`; true if so.
    pub(super) fn wait_done(&self, patience: Duration) -> bool {
        let heap = self.heap();
        let busy = |heap: &mut Heap| !heap.undone.is_empty() || heap.refused_undone > 0;
        let waited = self.changed.wait_timeout_while(heap, patience, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}
