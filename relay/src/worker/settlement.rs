//! Which replies are dealt with, so that the downlink's offset is committed past those alone.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::measure::{Groups, Histogram};
use crate::model::ReplyOffset;
use crate::ring::{DownlinkBatch, DownlinkReceiver, Receipt, Return};

use super::unconfirmed::Unconfirmed;

/// What a worker has to say and nobody has taken; above it, the worker takes no more replies, and the
/// downlink's reader waits. Connections that end still add what they have on their hands.
const MOST_UNSAID: usize = 64 << 10;

/// A batch of which not every reply is settled. Kept for a batch, not for a reply: what a crash makes
/// be read again is more than one reply anyway.
#[derive(Debug)]
struct Unsettled {
    first: ReplyOffset,
    outstanding: usize,
    since: Instant,
    /// When its replies were read from Kafka.
    read: Instant,
}

/// The window of batches between the first that is not settled and the last that was taken. A client
/// that reads nothing is closed after a time, which bounds it.
#[derive(Debug)]
pub(super) struct Settlement {
    window: VecDeque<Unsettled>,
    /// Behind the last offset taken.
    end: ReplyOffset,
    published: ReplyOffset,
    /// What the ring had no room for, and what of the window is settled thereby.
    backlog: VecDeque<(Return, Option<ReplyOffset>)>,
    /// Replies sent in this turn, by the time at which they were read.
    sent: Groups,
}

impl Settlement {
    pub(super) fn new() -> Self {
        let nothing = ReplyOffset(i64::MIN);
        Self {
            window: VecDeque::new(),
            end: nothing,
            published: nothing,
            backlog: VecDeque::new(),
            sent: Groups::default(),
        }
    }

    /// A batch is taken; each of its offsets will be settled or returned.
    pub(super) fn begin(&mut self, batch: &DownlinkBatch) {
        if let Some((first, last)) = batch.offsets() {
            let (outstanding, since) = (batch.receipts(), Instant::now());
            if first < self.end {
                // Another log, whose offsets begin anew: what was said of the former one was taken back.
                self.published = ReplyOffset(i64::MIN);
            }
            let read = batch.read().unwrap_or(since);
            self.window.push_back(Unsettled { first, outstanding, since, read });
            self.end = ReplyOffset(last.0 + 1);
        }
    }

    /// A reply was sent, or needs nothing. Gives when it was read.
    pub(super) fn settle(&mut self, offset: ReplyOffset) -> Instant {
        let behind = self.window.partition_point(|batch| batch.first <= offset);
        let batch = &mut self.window[behind - 1];
        batch.outstanding -= 1;
        batch.read
    }

    /// Like [`done`](Self::done), of a reply that was sent.
    pub(super) fn sent(
        &mut self,
        receipt: Receipt,
        unconfirmed: &mut Unconfirmed,
        ring: &DownlinkReceiver,
    ) -> bool {
        if let Receipt::Offset(offset) = receipt {
            let read = self.settle(offset);
            self.sent.add(read, 1);
            return true;
        }
        self.done(receipt, unconfirmed, ring)
    }

    /// Tells how long the replies have taken that were sent in this turn.
    pub(super) fn tell_times(&mut self, now: Instant, times: &Histogram) {
        self.sent.end(now, times);
    }

    /// The client of a connection is done with a reply: says so to whom its receipt names. True if it is one
    /// of the downlink.
    pub(super) fn done(
        &mut self,
        receipt: Receipt,
        unconfirmed: &mut Unconfirmed,
        ring: &DownlinkReceiver,
    ) -> bool {
        if let Receipt::Held { part, .. } = receipt
            && let Some(delivered) = unconfirmed.done(part)
        {
            ring.report(delivered);
        }
        self.done_with(receipt, ring)
    }

    /// Like [`done`](Self::done), of what is no part of a delivery.
    pub(super) fn done_with(&mut self, receipt: Receipt, ring: &DownlinkReceiver) -> bool {
        match receipt {
            Receipt::Offset(offset) => {
                self.settle(offset);
            }
            Receipt::Postponed { offset, .. } => self.give_back(Return::Sent(offset), None, ring),
            Receipt::Held { .. } | Receipt::None => return false,
        }
        true
    }

    /// Says something to the Kafka threads; `settles` is settled when they have it.
    pub(super) fn give_back(
        &mut self,
        returned: Return,
        settles: Option<ReplyOffset>,
        ring: &DownlinkReceiver,
    ) {
        if !self.backlog.is_empty() || !ring.give_back(returned) {
            self.backlog.push_back((returned, settles));
        } else if let Some(offset) = settles {
            self.settle(offset);
        }
    }

    #[cfg(test)]
    pub(super) fn unsaid(&self) -> usize {
        self.backlog.len()
    }

    /// True if the Kafka threads have heard all.
    pub(super) fn is_said(&self) -> bool {
        self.backlog.is_empty()
    }

    /// True if so much is unsaid that no more replies should be taken. What is said wakes the worker.
    pub(super) fn is_behind(&self) -> bool {
        self.backlog.len() >= MOST_UNSAID
    }

    /// Says how far everything is settled, if that has changed.
    pub(super) fn publish(&mut self, ring: &DownlinkReceiver) {
        while let Some((returned, settles)) = self.backlog.front().copied()
            && ring.give_back(returned)
        {
            self.backlog.pop_front();
            if let Some(offset) = settles {
                self.settle(offset);
            }
        }
        while self.window.front().is_some_and(|batch| batch.outstanding == 0) {
            self.window.pop_front();
        }
        let below = self.window.front().map_or(self.end, |batch| batch.first);
        if below != self.published {
            self.published = below;
            ring.settle(below);
        }
    }

    /// When the batch of an offset was taken that is not settled.
    pub(super) fn since(&self, offset: ReplyOffset) -> Option<Instant> {
        let behind = self.window.partition_point(|batch| batch.first <= offset);
        self.window.get(behind.checked_sub(1)?).map(|batch| batch.since)
    }

    /// Behind the last offset that was taken so long ago, if something before it is not settled.
    pub(super) fn overdue(&self, limit: Duration, now: Instant) -> Option<ReplyOffset> {
        let oldest = self.window.front()?;
        if now.duration_since(oldest.since) < limit {
            return None;
        }
        let young = self.window.partition_point(|batch| now.duration_since(batch.since) >= limit);
        Some(self.window.get(young).map_or(self.end, |batch| batch.first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Reply;
    use crate::model::UndeliveredReason;
    use crate::model::{ConnectionKey, Incarnation, RelayId};
    use crate::ring::{Command, DownlinkSender, Wake, downlink};

    fn key() -> ConnectionKey {
        let (relay, incarnation) = (RelayId(0), Incarnation::new(1));
        ConnectionKey { relay, incarnation, worker: 0, slot: 0, generation: 1 }
    }

    fn begin(
        settlement: &mut Settlement,
        sender: &DownlinkSender,
        offsets: impl IntoIterator<Item = i64>,
    ) {
        let (key, relay) = (key(), RelayId(0));
        let mut batch = sender.take_empty().unwrap();
        for offset in offsets {
            let receipt = Receipt::Offset(ReplyOffset(offset));
            batch.push(key, Command::Reply, receipt, Reply::plain(relay, offset, b"x"));
        }
        settlement.begin(&batch);
    }

    #[test]
    fn what_is_settled_later_holds_back_what_comes_after_it() {
        let wake = || Wake::new().unwrap();
        let (sender, receiver) = downlink(wake(), wake());
        let mut settlement = Settlement::new();
        begin(&mut settlement, &sender, [10, 12]);
        begin(&mut settlement, &sender, [13, 17]);
        let settled = |settlement: &mut Settlement, offset| {
            settlement.settle(ReplyOffset(offset));
            settlement.publish(&receiver);
            sender.settled().0
        };
        assert_eq!(settled(&mut settlement, 13), 10);
        assert_eq!(settled(&mut settlement, 10), 10);
        assert_eq!(settled(&mut settlement, 12), 13, "the first batch is done with");
        assert!(settlement.overdue(Duration::from_hours(1), Instant::now()).is_none());
        assert_eq!(settlement.overdue(Duration::ZERO, Instant::now()), Some(ReplyOffset(18)));
        assert_eq!(settled(&mut settlement, 17), 18);
        assert!(settlement.overdue(Duration::ZERO, Instant::now()).is_none());
    }

    #[test]
    fn offsets_of_another_log_may_be_smaller_or_end_at_the_same_place() {
        let wake = || Wake::new().unwrap();
        let (sender, receiver) = downlink(wake(), wake());
        let mut settlement = Settlement::new();
        begin(&mut settlement, &sender, [998, 999]);
        for offset in [998, 999] {
            settlement.settle(ReplyOffset(offset));
        }
        settlement.publish(&receiver);
        assert_eq!(sender.settled().0, 1000);
        sender.begin_anew();
        assert!(sender.settled().0 < 0, "nothing of the other log is settled");
        begin(&mut settlement, &sender, [997, 999]);
        for offset in [997, 999] {
            settlement.settle(ReplyOffset(offset));
        }
        settlement.publish(&receiver);
        assert_eq!(sender.settled().0, 1000, "said again");
    }

    #[test]
    fn what_was_returned_is_settled_once_the_ring_has_it() {
        let wake = || Wake::new().unwrap();
        let (sender, receiver) = downlink(wake(), wake());
        let mut settlement = Settlement::new();
        begin(&mut settlement, &sender, 0..10_000);
        for offset in (0..10_000).map(ReplyOffset) {
            let reason = UndeliveredReason::Stale;
            let returned = Return::Undelivered { key: key(), offset, reason };
            settlement.give_back(returned, Some(offset), &receiver);
        }
        let mut returned = Vec::new();
        for looks in 1..=3 {
            settlement.publish(&receiver);
            let all = sender.settled().0 == 10_000;
            assert_eq!(all, looks == 3, "the ring has room for less than half of them");
            sender.take_returned(|one| match one {
                Return::Undelivered { offset, .. } => returned.push(offset.0),
                other => panic!("{other:?}"),
            });
        }
        assert!(returned.into_iter().eq(0..10_000));
    }
}
