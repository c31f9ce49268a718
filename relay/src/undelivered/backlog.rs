//! Replies that are postponed until their clients have read on: where they are in the downlink, which
//! keeps them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::model::{ConnectionKey, ReplyOffset};
use crate::undelivered::deadletter::Reason;

/// Most replies that are read again in a round, so that others get their turn.
const ROUND_REPLIES: usize = 4096;
/// And about so many bytes.
const ROUND_BYTES: usize = 8 << 20;

/// A reply that is to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Next {
    pub(crate) offset: ReplyOffset,
    bytes: usize,
    /// None follows before the connection asks.
    pub(crate) last: bool,
}

/// What is postponed of one connection.
#[derive(Debug, Default)]
struct Queue {
    /// What it has not been given.
    replies: VecDeque<(ReplyOffset, usize)>,
    /// How many it has been given that are not dealt with.
    given: usize,
    /// The connection is over.
    over: bool,
    /// Replies that it will not get. They wait for those that it was given, which are older.
    left: Vec<(ReplyOffset, Reason)>,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.given == 0 && self.left.is_empty()
    }
}

/// By connection.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    queues: HashMap<ConnectionKey, Queue>,
    /// Connections that have asked.
    ready: VecDeque<ConnectionKey>,
    /// All that is postponed, or on its way once more.
    offsets: BTreeMap<ReplyOffset, ConnectionKey>,
}

impl Backlog {
    pub(crate) fn postpone(&mut self, key: ConnectionKey, offset: ReplyOffset, bytes: usize) {
        self.offsets.insert(offset, key);
        self.queues.entry(key).or_default().replies.push_back((offset, bytes));
    }

    /// A reply is with its client, which takes its time to confirm it: nobody need read it again, unless
    /// its connection ends.
    pub(crate) fn keep(&mut self, key: ConnectionKey, offset: ReplyOffset) {
        self.offsets.insert(offset, key);
        self.queues.entry(key).or_default().given += 1;
    }

    pub(crate) fn resume(&mut self, key: ConnectionKey) {
        self.ready.push_back(key);
    }

    /// A reply that was given to its connection is dealt with: which connection; none if it was not
    /// postponed.
    pub(crate) fn end(&mut self, offset: ReplyOffset) -> Option<ConnectionKey> {
        let key = self.offsets.remove(&offset)?;
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.given = queue.given.saturating_sub(1);
            if queue.is_empty() {
                self.queues.remove(&key);
            }
        }
        Some(key)
    }

    /// A connection will not get a reply: false if older ones of it are on their way, which it comes
    /// after; then it is [released](Self::release) with the last of them.
    pub(crate) fn may_leave(
        &mut self,
        key: ConnectionKey,
        offset: ReplyOffset,
        reason: Reason,
    ) -> bool {
        // What becomes a dead letter has no order to keep, and its connection may go on.
        let queue = self.queues.get_mut(&key).filter(|_| reason.may_wait());
        queue.is_none_or(|queue| {
            queue.left.push((offset, reason));
            false
        })
    }

    /// The connection is over: what it has not been given leaves, and waits to be
    /// [released](Self::release).
    pub(crate) fn leave(&mut self, key: ConnectionKey) -> Vec<ReplyOffset> {
        let Some(queue) = self.queues.get_mut(&key) else { return Vec::new() };
        queue.over = true;
        let replies = queue.replies.drain(..).map(|(offset, _)| offset);
        let left: Vec<_> = replies.filter(|of| self.offsets.remove(of).is_some()).collect();
        queue.left.extend(left.iter().map(|offset| (*offset, Reason::ConnectionLost)));
        left
    }

    /// What a connection will not get, in order, once all that is older is dealt with or among it.
    pub(crate) fn release(&mut self, key: ConnectionKey) -> Vec<(ReplyOffset, Reason)> {
        let is_whole = |queue: &Queue| queue.given == 0 && (queue.over || queue.replies.is_empty());
        if !self.queues.get(&key).is_some_and(is_whole) {
            return Vec::new();
        }
        let mut left = self.queues.remove(&key).unwrap_or_default().left;
        left.sort_unstable_by_key(|(offset, _)| *offset);
        left
    }

    /// All that is not dealt with, of every connection: all are over. Beside it what had left before.
    pub(crate) fn leave_all(&mut self) -> (BTreeSet<ReplyOffset>, BTreeMap<ReplyOffset, Reason>) {
        let all = std::mem::take(self);
        let left = all.queues.into_values().flat_map(|queue| queue.left).collect();
        (all.offsets.into_keys().collect(), left)
    }

    /// What is not dealt with, in order.
    pub(crate) fn before(&self, end: ReplyOffset) -> impl Iterator<Item = &ReplyOffset> {
        self.offsets.range(..end).map(|(offset, _)| offset)
    }

    /// Whether somebody may ask for more.
    pub(crate) fn has_queue(&self) -> bool {
        self.queues.values().any(|queue| !queue.replies.is_empty())
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// What connections that have asked get next, about `most_bytes` each and one reply at least, in
    /// the log's order.
    pub(crate) fn take(&mut self, most_bytes: usize) -> Vec<(Next, ConnectionKey)> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < ROUND_REPLIES
            && bytes < ROUND_BYTES
            && let Some(key) = self.ready.pop_front()
        {
            let Some(queue) = self.queues.get_mut(&key) else { continue };
            let until = bytes + most_bytes;
            let first = taken.len();
            while let Some((offset, of_reply)) = queue.replies.front().copied()
                && (taken.len() == first
                    || bytes + of_reply <= until && taken.len() < first + ROUND_REPLIES)
            {
                queue.replies.pop_front();
                queue.given += 1;
                bytes += of_reply;
                taken.push((Next { offset, bytes: of_reply, last: false }, key));
            }
            if let Some((next, _)) = taken[first..].last_mut() {
                next.last = true;
            }
        }
        taken.sort_unstable_by_key(|(next, _)| *next);
        taken
    }

    /// What could not be read stays first. Gives back what cannot: its connection is over.
    pub(crate) fn put_back(&mut self, unread: &[(Next, ConnectionKey)]) -> Vec<ConnectionKey> {
        let mut over = Vec::new();
        for (next, key) in unread.iter().rev() {
            let Some(queue) = self.queues.get_mut(key) else { continue };
            queue.given = queue.given.saturating_sub(1);
            queue.replies.push_front((next.offset, next.bytes));
            if queue.over {
                over.push(*key);
            } else if next.last {
                self.ready.push_back(*key);
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Incarnation, RelayId};

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
        assert_eq!(backlog.end(ReplyOffset(0)), Some(key(0)));
        assert_eq!(backlog.end(ReplyOffset(0)), None);
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
        backlog.keep(key(1), ReplyOffset(7));
        backlog.resume(key(1));
        assert_eq!(taken(&mut backlog, 1 << 20).len(), 3);
        assert!(backlog.before(ReplyOffset(9)).any(|offset| *offset == ReplyOffset(7)));
        assert_eq!(backlog.end(ReplyOffset(7)), Some(key(1)));
        assert_eq!(backlog.end(ReplyOffset(7)), None);
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
        let newer = (ReplyOffset(9), Reason::Stale);
        assert!(!backlog.may_leave(key(0), newer.0, newer.1), "it comes after the others");
        assert!(backlog.may_leave(key(0), ReplyOffset(8), Reason::Unencodable), "nobody gets it");
        assert_eq!(backlog.release(key(0)), [], "an older one is on its way");
        assert!(!backlog.may_leave(key(0), ReplyOffset(0), Reason::Closing));
        assert_eq!(backlog.end(ReplyOffset(0)), Some(key(0)), "its end is told by itself");
        let lost = |offset| (ReplyOffset(offset), Reason::ConnectionLost);
        let first = (ReplyOffset(0), Reason::Closing);
        assert_eq!(backlog.release(key(0)), [first, lost(2), lost(4), newer]);
        assert!(backlog.may_leave(key(0), ReplyOffset(10), Reason::Stale));
        backlog.resume(key(0));
        assert_eq!(taken(&mut backlog, 100), []);
    }

    #[test]
    fn when_all_are_over_what_was_on_its_way_is_left_as_well() {
        let mut backlog = backlog();
        backlog.resume(key(0));
        let on_its_way = backlog.take(100);
        assert!(!backlog.may_leave(key(0), ReplyOffset(9), Reason::Stale));
        let (all, left) = backlog.leave_all();
        assert!(all.into_iter().eq((0..6).map(ReplyOffset)));
        assert!(left.into_keys().eq([ReplyOffset(9)]));
        backlog.put_back(&on_its_way);
        assert_eq!(backlog.len(), 0);
        assert_eq!(backlog.end(ReplyOffset(0)), None);
    }
}
