//! Replies that are postponed until their clients have read on: where they are in the downlink, which
//! keeps them.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::ring::ReplyOffset;

use super::record::ConnectionKey;

/// Most replies that are read again in a round, so that others get their turn.
const ROUND_REPLIES: usize = 4096;
/// And about so many bytes.
const ROUND_BYTES: usize = 8 << 20;

/// A reply that is to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Next {
    pub(super) offset: ReplyOffset,
    bytes: usize,
    /// None follows before the connection asks.
    pub(super) last: bool,
}

/// By connection.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    queues: HashMap<ConnectionKey, VecDeque<(ReplyOffset, usize)>>,
    /// Connections that have asked.
    ready: VecDeque<ConnectionKey>,
    /// All that is postponed, or on its way once more.
    offsets: BTreeSet<ReplyOffset>,
}

impl Backlog {
    pub(super) fn postpone(&mut self, key: ConnectionKey, offset: ReplyOffset, bytes: usize) {
        self.offsets.insert(offset);
        self.queues.entry(key).or_default().push_back((offset, bytes));
    }

    /// A reply is with its client, which takes its time to confirm it: nobody need read it again, unless
    /// its connection ends.
    pub(super) fn keep(&mut self, offset: ReplyOffset) {
        self.offsets.insert(offset);
    }

    pub(super) fn resume(&mut self, key: ConnectionKey) {
        self.ready.push_back(key);
    }

    /// A reply is dealt with; false if it was not postponed.
    pub(super) fn end(&mut self, offset: ReplyOffset) -> bool {
        self.offsets.remove(&offset)
    }

    /// The connection is over: what it has not been given.
    pub(super) fn leave(&mut self, key: ConnectionKey) -> Vec<ReplyOffset> {
        let left = self.queues.remove(&key).unwrap_or_default();
        left.into_iter().map(|(offset, _)| offset).filter(|offset| self.end(*offset)).collect()
    }

    /// All that is not dealt with, of every connection: all are over.
    pub(super) fn leave_all(&mut self) -> BTreeSet<ReplyOffset> {
        std::mem::take(self).offsets
    }

    /// What is not dealt with, in order.
    pub(super) fn before(&self, end: ReplyOffset) -> impl Iterator<Item = &ReplyOffset> {
        self.offsets.range(..end)
    }

    /// Whether somebody may ask for more.
    pub(super) fn has_queue(&self) -> bool {
        !self.queues.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// What connections that have asked get next, about `most_bytes` each and one reply at least, in
    /// the log's order.
    pub(super) fn take(&mut self, most_bytes: usize) -> Vec<(Next, ConnectionKey)> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < ROUND_REPLIES
            && bytes < ROUND_BYTES
            && let Some(key) = self.ready.pop_front()
        {
            let Some(queue) = self.queues.get_mut(&key) else { continue };
            let until = bytes + most_bytes;
            let first = taken.len();
            while let Some((offset, of_reply)) = queue.front().copied()
                && (taken.len() == first
                    || bytes + of_reply <= until && taken.len() < first + ROUND_REPLIES)
            {
                queue.pop_front();
                bytes += of_reply;
                taken.push((Next { offset, bytes: of_reply, last: false }, key));
            }
            if queue.is_empty() {
                self.queues.remove(&key);
            }
            if let Some((next, _)) = taken[first..].last_mut() {
                next.last = true;
            }
        }
        taken.sort_unstable_by_key(|(next, _)| *next);
        taken
    }

    /// What could not be read stays first.
    pub(super) fn put_back(&mut self, unread: &[(Next, ConnectionKey)]) {
        for (next, key) in unread.iter().rev() {
            // Whose connection is over meanwhile is told so by its worker.
            self.queues.entry(*key).or_default().push_front((next.offset, next.bytes));
            if next.last {
                self.ready.push_back(*key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::{Incarnation, RelayId};

    fn key(slot: u32) -> ConnectionKey {
        let (relay, incarnation) = (RelayId(0), Incarnation::new(1));
        ConnectionKey { relay, incarnation, worker: 0, slot, generation: 1 }
    }

    fn taken(backlog: &mut Backlog, most_bytes: usize) -> Vec<(i64, u32, bool)> {
        let taken = backlog.take(most_bytes).into_iter();
        taken.map(|(next, key)| (next.offset.0, key.slot, next.last)).collect()
    }

    fn backlog() -> Backlog {
        let mut backlog = Backlog::default();
        for offset in 0..6 {
            backlog.postpone(key(offset % 2), ReplyOffset(offset.into()), 100);
        }
        backlog
    }

    #[test]
    fn who_asks_gets_its_part_in_the_order_of_the_log() {
        let mut backlog = backlog();
        assert_eq!(taken(&mut backlog, 200), []);
        backlog.resume(key(1));
        backlog.resume(key(0));
        let first = [(0, 0, false), (1, 1, false), (2, 0, true), (3, 1, true)];
        assert_eq!(taken(&mut backlog, 200), first);
        assert_eq!(taken(&mut backlog, 200), [], "nobody has asked again");
        backlog.resume(key(0));
        assert_eq!(taken(&mut backlog, 1), [(4, 0, true)], "one at least");
        assert_eq!(backlog.len(), 6, "none is dealt with");
        assert!(backlog.end(ReplyOffset(0)) && !backlog.end(ReplyOffset(0)));
        assert!(backlog.before(ReplyOffset(3)).eq(&[ReplyOffset(1), ReplyOffset(2)]));
    }

    #[test]
    fn what_was_not_read_comes_first_and_needs_no_new_question() {
        let mut backlog = backlog();
        backlog.resume(key(0));
        let all = backlog.take(200);
        backlog.put_back(&all[1..]);
        assert_eq!(taken(&mut backlog, 200), [(2, 0, false), (4, 0, true)]);
    }

    #[test]
    fn what_its_client_has_yet_to_confirm_is_only_noted() {
        let mut backlog = backlog();
        backlog.keep(ReplyOffset(7));
        backlog.resume(key(1));
        assert_eq!(taken(&mut backlog, 1 << 20).len(), 3);
        assert!(backlog.before(ReplyOffset(9)).any(|offset| *offset == ReplyOffset(7)));
        assert!(backlog.end(ReplyOffset(7)) && !backlog.end(ReplyOffset(7)));
        backlog.resume(key(0));
        assert!(backlog.has_queue());
        assert_eq!(taken(&mut backlog, 1 << 20).len(), 3);
        assert!(!backlog.has_queue() && backlog.len() == 6, "all are on their way");
    }

    #[test]
    fn who_leaves_leaves_what_it_was_not_given() {
        let mut backlog = backlog();
        backlog.resume(key(0));
        assert_eq!(taken(&mut backlog, 100), [(0, 0, true)]);
        assert_eq!(backlog.leave(key(0)), [ReplyOffset(2), ReplyOffset(4)]);
        assert_eq!(backlog.leave(key(0)), []);
        assert!(backlog.end(ReplyOffset(0)), "its end is told by itself");
        backlog.resume(key(0));
        assert_eq!(taken(&mut backlog, 100), []);
    }

    #[test]
    fn when_all_are_over_what_was_on_its_way_is_left_as_well() {
        let mut backlog = backlog();
        backlog.resume(key(0));
        let on_its_way = backlog.take(100);
        assert!(backlog.leave_all().into_iter().eq((0..6).map(ReplyOffset)));
        backlog.put_back(&on_its_way);
        assert_eq!(backlog.len(), 0);
        assert!(!backlog.end(ReplyOffset(0)));
    }
}
