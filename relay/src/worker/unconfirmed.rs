//! Replies that a connection's client has yet to confirm, and how far a delivery of those that waited
//! for it is.

use std::collections::VecDeque;

use crate::model::{ReplyOffset, ReplyOrigin};
use crate::ring::{Delivered, Parts, Receipt};

/// Replies that the codec has, until their client confirms them. Few at a time, and mostly in order.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    replies: VecDeque<(ReplyOrigin, Receipt)>,
    /// Replies that waited for the client. There is one delivery at a time.
    delivery: Option<Box<Progress>>,
}

#[derive(Debug)]
struct Progress {
    delivered: Delivered,
    /// Parts of which the end is not known.
    open: u32,
    /// The last part has come.
    whole: bool,
}

impl Unconfirmed {
    pub(super) fn keep(&mut self, origin: ReplyOrigin, receipt: Receipt) {
        self.replies.push_back((origin, receipt));
        if let Receipt::Held { delivery, last, .. } = receipt {
            let new = || {
                let delivered = Delivered::nothing(delivery);
                Box::new(Progress { delivered, open: 0, whole: false })
            };
            let progress = self.delivery.get_or_insert_with(new);
            debug_assert_eq!(progress.delivered.delivery, delivery, "one at a time");
            progress.open += 1;
            progress.whole |= last;
        }
    }

    pub(super) fn take(&mut self, origin: ReplyOrigin) -> Option<Receipt> {
        let index = self.replies.iter().position(|(kept, _)| *kept == origin)?;
        self.replies.remove(index).map(|(_, receipt)| receipt)
    }

    /// How many replies of the downlink are kept below an offset.
    pub(super) fn below(&self, overdue: ReplyOffset) -> u64 {
        let is_below = |receipt: &Receipt| matches!(receipt, Receipt::Offset(of) if *of < overdue);
        self.replies.iter().filter(|(_, receipt)| is_below(receipt)).count() as u64
    }

    /// Replies of the downlink below an offset that nobody shall wait for any more: their receipts are from
    /// now on those of postponed ones.
    pub(super) fn leave_below(&mut self, overdue: ReplyOffset) -> Vec<ReplyOffset> {
        let mut left = Vec::new();
        for (_, receipt) in &mut self.replies {
            if let Receipt::Offset(offset) = *receipt
                && offset < overdue
            {
                *receipt = Receipt::Postponed { offset, last: false };
                left.push(offset);
            }
        }
        left
    }

    /// The client is done with a part of a delivery: what has become of all of it, if that is known thereby.
    pub(super) fn done(&mut self, part: u32) -> Option<Delivered> {
        self.end(part, |delivered| &mut delivered.sent)
    }

    /// A part of a delivery cannot be sent: what has become of all of it, if that is known thereby.
    pub(super) fn fail(&mut self, part: u32) -> Option<Delivered> {
        self.end(part, |delivered| &mut delivered.unencodable)
    }

    fn end(&mut self, part: u32, parts: fn(&mut Delivered) -> &mut Parts) -> Option<Delivered> {
        let progress = self.delivery.as_mut()?;
        parts(&mut progress.delivered).add(part);
        progress.open -= 1;
        if progress.open > 0 || !progress.whole {
            return None;
        }
        self.delivery.take().map(|progress| progress.delivered)
    }

    /// The connection is over: the receipts of what is kept, and how far the delivery is. One whose
    /// last part has not come is reported with that part.
    pub(super) fn give_up(&mut self) -> (impl Iterator<Item = Receipt>, Option<Delivered>) {
        let delivery = self.delivery.take().filter(|progress| progress.whole);
        let replies = std::mem::take(&mut self.replies).into_iter();
        let delivery = delivery.map(|progress| progress.delivered);
        (replies.map(|(_, receipt)| receipt), delivery)
    }

    /// The first offset of the downlink that is unconfirmed.
    pub(super) fn oldest_offset(&self) -> Option<ReplyOffset> {
        self.replies.iter().find_map(|(_, receipt)| match receipt {
            Receipt::Offset(offset) => Some(*offset),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RelayId;

    fn origin(offset: i64) -> ReplyOrigin {
        ReplyOrigin { relay: RelayId(0), offset }
    }

    /// Three parts, as a worker gives them to a connection one after the other.
    fn unconfirmed(parts: u32) -> Unconfirmed {
        let mut unconfirmed = Unconfirmed::default();
        for part in 0..parts {
            let receipt = Receipt::Held { delivery: 7, part, last: part == 2 };
            unconfirmed.keep(origin(part.into()), receipt);
        }
        unconfirmed
    }

    fn confirm(unconfirmed: &mut Unconfirmed, part: i64) -> Option<Delivered> {
        let Some(Receipt::Held { part, .. }) = unconfirmed.take(origin(part)) else {
            panic!("it is kept")
        };
        unconfirmed.done(part)
    }

    fn parts(parts: &[u32]) -> Parts {
        let mut set = Parts::default();
        for part in parts {
            set.add(*part);
        }
        set
    }

    #[test]
    fn a_delivery_is_reported_once_when_the_end_of_all_is_known() {
        let mut unconfirmed = unconfirmed(3);
        assert_eq!(confirm(&mut unconfirmed, 2), None);
        unconfirmed.take(origin(0));
        assert!(unconfirmed.fail(0).is_none());
        let expected = Delivered { delivery: 7, sent: parts(&[1, 2]), unencodable: parts(&[0]) };
        assert_eq!(confirm(&mut unconfirmed, 1), Some(expected));
        assert!(unconfirmed.give_up().1.is_none());
    }

    #[test]
    fn what_is_not_confirmed_when_the_connection_ends_waits_on() {
        let mut unconfirmed = unconfirmed(3);
        assert_eq!(confirm(&mut unconfirmed, 1), None);
        let (receipts, delivery) = unconfirmed.give_up();
        assert_eq!(receipts.count(), 2);
        let expected = Delivered { sent: parts(&[1]), ..Delivered::nothing(7) };
        assert_eq!(delivery, Some(expected));
    }

    #[test]
    fn the_last_part_reports_a_delivery_that_it_comes_too_late_for() {
        let mut unconfirmed = unconfirmed(2);
        assert_eq!(confirm(&mut unconfirmed, 0), None);
        assert_eq!(confirm(&mut unconfirmed, 1), None, "the last one is to come");
        assert!(unconfirmed.give_up().1.is_none());
    }
}
