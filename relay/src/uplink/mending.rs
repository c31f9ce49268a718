//! Records that Kafka refuses for what they were sent with, and not for what they are: sent again, one
//! at a time, in their order.
//!
//! A batch that is larger than its topic allows is refused whole, and so is one with a single record
//! whose time the broker does not believe. Alone, and without a time of its own, each of its records is
//! taken, but for the one that is too large by itself. While that goes on nothing else is sent. Of a
//! connection whose later record was taken meanwhile the earlier one is refused: its order is promised.

use std::collections::{HashSet, VecDeque};

use rdkafka::error::RDKafkaErrorCode;

use crate::kafka::ffi::{NativeRecord, NativeReport};
use crate::model::header;
use crate::uplink::token::Token;

/// How a record is, or was, sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manner {
    /// In a batch of its own.
    pub(crate) alone: bool,
    /// Without a time: the broker asks no record for one.
    pub(crate) timeless: bool,
}

impl Manner {
    /// Whether a record that was refused so is worth another try.
    const fn can_be_mended(self, code: RDKafkaErrorCode) -> bool {
        match code {
            // Of several records that a broker refuses in one batch librdkafka tells the second, whatever
            // it was, and of those beside them the third.
            RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidDifferentRecord => !self.alone,
            RDKafkaErrorCode::InvalidTimestamp => !self.timeless,
            _ => false,
        }
    }
}

/// A record that was refused.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) report: NativeReport,
    pub(crate) code: RDKafkaErrorCode,
    pub(crate) record: NativeRecord,
}

impl NativeRecord {
    /// A message's number in its connection; of others 0.
    pub(crate) fn message_number(&self) -> u64 {
        // Ours is the last header.
        let (Some((name, value)), ours) = (self.headers.last(), header::SEQUENCE.to_bytes()) else {
            return 0;
        };
        let number = std::str::from_utf8(value).ok().filter(|_| name.as_bytes() == ours);
        number.and_then(|number| number.parse().ok()).unwrap_or_default()
    }
}

/// Whose record it is.
type Connection = (u8, u32, u32);

fn connection(token: u64) -> Connection {
    let Token { worker, slot, generation, .. } = Token::unpack(token);
    (worker, slot, generation)
}

/// What is to be done next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Nothing: the other reports are waited for, or there is no record.
    Wait,
    /// It is sent, alone; [`Mending::sent`] is told.
    Send(Again),
    /// It stays refused.
    Refuse(Again),
}

/// The records to be sent again.
#[derive(Debug, Default)]
pub(crate) struct Mending {
    waiting: VecDeque<Again>,
    failed: HashSet<Connection>,
    overtaken: HashSet<Connection>,
    /// Records without a report.
    under_way: u64,
    /// The only one under way is one of these.
    trying: bool,
    /// The broker has refused a time.
    timeless: bool,
}

impl Mending {
    /// Whether nothing else may be sent.
    pub(crate) fn is_active(&self) -> bool {
        self.trying || !self.waiting.is_empty()
    }

    /// Whether records go without a time.
    pub(crate) const fn is_timeless(&self) -> bool {
        self.timeless
    }

    /// A record was taken by librdkafka.
    pub(crate) fn taken(&mut self) {
        self.under_way += 1;
    }

    /// The record of [`Next::Send`] was.
    pub(crate) fn sent(&mut self) {
        self.under_way += 1;
        self.trying = true;
    }

    /// That record was not, because there is no room now.
    pub(crate) fn not_sent(&mut self, again: Again) {
        self.waiting.push_front(again);
    }

    /// Takes a report; it comes back if it is final.
    pub(crate) fn report(&mut self, mut report: NativeReport) -> Option<NativeReport> {
        self.under_way = self.under_way.saturating_sub(report.records.into());
        let tried = std::mem::take(&mut self.trying);
        let Some((code, record)) = report.error.take() else {
            if !tried && !self.failed.is_empty() {
                let connection = connection(report.token);
                if self.failed.contains(&connection) {
                    self.overtaken.insert(connection);
                }
            }
            return Some(report);
        };
        let manner = Manner { alone: tried, timeless: tried && self.timeless };
        if !manner.can_be_mended(code) {
            report.error = Some((code, record));
            return Some(report);
        }
        self.timeless |= code == RDKafkaErrorCode::InvalidTimestamp;
        self.failed.insert(connection(report.token));
        let again = Again { report, code, record };
        if tried {
            self.waiting.push_front(again);
        } else {
            self.waiting.push_back(again);
        }
        None
    }

    /// What is to be done with the first of those that wait.
    pub(crate) fn next(&mut self) -> Next {
        if self.under_way > 0 {
            return Next::Wait;
        }
        let Some(again) = self.waiting.pop_front() else {
            self.failed.clear();
            self.overtaken.clear();
            return Next::Wait;
        };
        if self.overtaken.contains(&connection(again.report.token)) {
            return Next::Refuse(again);
        }
        Next::Send(again)
    }

    /// Gives up those that wait.
    pub(crate) fn give_up(&mut self) -> VecDeque<Again> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Partition;

    const LARGE: RDKafkaErrorCode = RDKafkaErrorCode::MessageSizeTooLarge;
    const TIME: RDKafkaErrorCode = RDKafkaErrorCode::InvalidTimestamp;

    fn report(slot: u64, number: u8, error: Option<RDKafkaErrorCode>) -> NativeReport {
        let record = NativeRecord { key: vec![], value: vec![number], headers: vec![] };
        NativeReport {
            partition: Partition(0),
            records: 1,
            booked_bytes: 1,
            offset: -1,
            token: slot << 32,
            error: error.map(|code| (code, record)),
        }
    }

    fn mending(under_way: u64) -> Mending {
        let mut mending = Mending::default();
        (0..under_way).for_each(|_| mending.taken());
        mending
    }

    /// Sends what there is to be sent until there is no more; the numbers of those that were sent and
    /// of those that stay refused.
    fn finish(
        mending: &mut Mending,
        answer: impl Fn(u8, bool) -> Option<RDKafkaErrorCode>,
    ) -> (Vec<u8>, Vec<u8>) {
        let (mut sent, mut refused) = (Vec::new(), Vec::new());
        loop {
            match mending.next() {
                Next::Wait => return (sent, refused),
                Next::Refuse(again) => refused.push(again.record.value[0]),
                Next::Send(again) => {
                    let number = again.record.value[0];
                    sent.push(number);
                    mending.sent();
                    let slot = again.report.token >> 32;
                    let answered = report(slot, number, answer(number, mending.is_timeless()));
                    if mending.report(answered).is_some_and(|report| report.error.is_some()) {
                        refused.push(number);
                    }
                }
            }
        }
    }

    #[test]
    fn of_a_batch_that_is_too_large_only_the_large_record_is_refused() {
        let mut mending = mending(4);
        for number in 1..=4 {
            assert!(mending.report(report(u64::from(number), number, Some(LARGE))).is_none());
            assert!(mending.is_active());
        }
        let (sent, refused) = finish(&mut mending, |number, _| (number == 3).then_some(LARGE));
        assert_eq!((sent, refused), (vec![1, 2, 3, 4], vec![3]));
        assert!(!mending.is_active());
    }

    #[test]
    fn nothing_is_sent_while_other_reports_are_to_come() {
        let mut mending = mending(2);
        assert!(mending.report(report(1, 1, Some(LARGE))).is_none());
        assert!(matches!(mending.next(), Next::Wait));
        assert!(mending.is_active(), "and nothing new is taken");
        assert!(mending.report(report(2, 2, None)).is_some());
        assert!(matches!(mending.next(), Next::Send(_)));
    }

    #[test]
    fn a_record_that_a_later_one_of_its_connection_has_overtaken_is_refused() {
        let mut mending = mending(4);
        assert!(mending.report(report(7, 1, Some(LARGE))).is_none());
        assert!(mending.report(report(8, 2, Some(LARGE))).is_none());
        assert!(mending.report(report(7, 3, None)).is_some());
        assert!(mending.report(report(9, 4, None)).is_some());
        assert_eq!(finish(&mut mending, |_, _| None), (vec![2], vec![1]));
        assert!(mending.failed.is_empty() && mending.overtaken.is_empty(), "all is forgotten");
    }

    #[test]
    fn who_is_refused_for_its_time_goes_without_one() {
        let mut mending = mending(2);
        for number in [1, 2] {
            assert!(mending.report(report(1, number, Some(TIME))).is_none());
        }
        assert!(mending.is_timeless());
        let answer = |_, timeless: bool| (!timeless).then_some(TIME);
        assert_eq!(finish(&mut mending, answer), (vec![1, 2], vec![]));
        assert!(mending.is_timeless(), "from then on");
    }

    #[test]
    fn both_refusals_may_meet_one_record_and_each_but_once() {
        let mut mending = mending(1);
        assert!(mending.report(report(1, 1, Some(LARGE))).is_none());
        let answer = |_, timeless: bool| Some(if timeless { LARGE } else { TIME });
        assert_eq!(finish(&mut mending, answer), (vec![1, 1], vec![1]));
    }

    #[test]
    fn what_was_refused_with_others_is_asked_for_alone() {
        let mut mending = mending(3);
        let codes = [RDKafkaErrorCode::InvalidRecord, RDKafkaErrorCode::InvalidDifferentRecord];
        for (number, code) in [(1, codes[0]), (2, codes[0]), (3, codes[1])] {
            assert!(mending.report(report(1, number, Some(code))).is_none());
        }
        let answer = |_, timeless: bool| (!timeless).then_some(TIME);
        assert_eq!(finish(&mut mending, answer), (vec![1, 1, 2, 3], vec![]));
    }

    #[test]
    fn other_refusals_are_final() {
        let mut mending = mending(1);
        let code = RDKafkaErrorCode::TopicAuthorizationFailed;
        let told = mending.report(report(1, 1, Some(code))).expect("final");
        assert_eq!(told.error.map(|(code, _)| code), Some(code));
        assert!(!mending.is_active());
    }
}
