use super::*;
use crate::batch::{Constant, Tag};

const LINK: LinkId = LinkId(1);
const IDENTITY: ProducerIdentity = ProducerIdentity { id: 7, epoch: 0 };
const REFUSED: Refusal = Refusal::Broker(10);

/// A batch as it was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u64,
    correlation: i32,
    epoch: i16,
    first: i32,
}

impl Sent {
    const fn flight(self) -> (LinkId, i32) {
        (LINK, self.correlation)
    }
}

struct Bench {
    partition: Partition,
    now: Instant,
    correlation: i32,
    spare: Spare,
}

impl Bench {
    /// A partition whose leader knows the producer, and has the records 0 and 1 of it.
    fn new() -> Self {
        let (partition, now) = (Partition::default(), Instant::now());
        let mut bench = Self { partition, now, correlation: 0, spare: Spare::default() };
        bench.push(2);
        let sent = bench.send();
        assert_eq!((sent.epoch, sent.first), (0, 0));
        bench.written(sent);
        bench
    }

    fn push(&mut self, records: usize) {
        for token in 0..records as u64 {
            let (tag, room) =
                (Tag { token, booked_bytes: 0 }, (&mut self.spare.chunks, usize::MAX));
            let record = (0, Constant::NONE, &b""[..]);
            assert!(self.partition.open.push(room, record, &std::iter::empty(), tag));
        }
        self.partition.close(&mut self.spare);
    }

    fn next(&mut self) -> Result<usize, Idle> {
        while self.partition.pop_settled().is_some() {}
        self.partition.next(self.now, Duration::ZERO, Some(IDENTITY), &mut self.spare)
    }

    /// Sends the next one, after any pause.
    fn send(&mut self) -> Sent {
        self.now += MOST_BACKOFF;
        let place = self.next().expect("there is one to be sent");
        self.correlation += 1;
        let correlation = self.correlation;
        let (number, batch) = self.partition.send(place, LINK, correlation).expect("it is sent");
        let bytes = batch.to_vec();
        let bytes = |place: usize| &bytes[place..];
        let epoch = i16::from_be_bytes(*bytes(51).first_chunk().expect("an epoch"));
        let first = i32::from_be_bytes(*bytes(53).first_chunk().expect("a number"));
        Sent { number, correlation, epoch, first }
    }

    fn written(&mut self, sent: Sent) {
        self.partition.written(sent.number, sent.flight(), 0, self.now);
    }

    fn again(&mut self, sent: Sent) {
        self.partition.again(sent.number, sent.flight(), self.now);
    }

    fn refused(&mut self, sent: Sent) {
        self.partition.refused(sent.number, sent.flight(), REFUSED);
    }

    fn out_of_order(&mut self, sent: Sent) -> bool {
        self.partition.out_of_order(sent.number, sent.flight(), self.now)
    }
}

#[test]
fn a_batch_that_is_sent_again_is_one_of_the_last_five() {
    let mut bench = Bench::new();
    (0..7).for_each(|_| bench.push(1));
    let [oldest, rest @ ..] = [(); MOST_OF_PARTITION].map(|()| bench.send());
    bench.again(oldest);
    for sent in rest {
        bench.written(sent);
    }
    let again = bench.send();
    assert_eq!((again.number, again.first), (oldest.number, oldest.first));
    assert_eq!(bench.next(), Err(Idle::Answer), "the sixth, before the first is settled");
    bench.written(again);
    assert_eq!(bench.send().first, 7);
}

#[test]
fn what_is_before_a_refused_batch_keeps_its_numbers() {
    let mut bench = Bench::new();
    (1..=4).for_each(|records| bench.push(records));
    let [first, second, third] = [(); 3].map(|()| bench.send());
    bench.again(first);
    bench.written(second);
    bench.refused(third);
    let again = bench.send();
    assert_eq!((again.number, again.first), (first.number, first.first));
    assert_eq!(bench.next(), Err(Idle::Answer), "numbers are open");
    bench.written(again);
    let fourth = bench.send();
    assert_eq!((fourth.epoch, fourth.first), (0, third.first), "behind the second");
}

#[test]
fn what_is_before_a_refused_batch_may_be_lost() {
    let mut bench = Bench::new();
    (0..3).for_each(|_| bench.push(1));
    let [first, second] = [(); 2].map(|()| bench.send());
    bench.again(first);
    bench.refused(second);
    let again = bench.send();
    assert!(bench.out_of_order(again), "the broker has lost something");
    let again = bench.send();
    assert_eq!((again.number, again.epoch, again.first), (first.number, 1, 0));
    bench.written(again);
    let third = bench.send();
    assert_eq!((third.epoch, third.first), (1, 1));
}

#[test]
fn what_is_behind_a_batch_that_was_refused_the_second_time_keeps_its_numbers() {
    for was_written in [true, false] {
        let mut bench = Bench::new();
        (0..3).for_each(|_| bench.push(1));
        let first = bench.send();
        bench.partition.lost(first.number, first.flight());
        let again = bench.send();
        bench.refused(again);
        let second = bench.send();
        assert_eq!((second.epoch, second.first), (0, first.first + 1));
        if was_written {
            bench.written(second);
            let third = bench.send();
            assert_eq!((third.epoch, third.first), (0, second.first + 1));
        } else {
            assert!(!bench.out_of_order(second), "it is not said that the broker has lost it");
            let second = bench.send();
            assert_eq!((second.epoch, second.first), (1, 0));
        }
    }
}

#[test]
fn nobody_knows_the_numbers_after_two_refusals_one_of_which_may_be_wrong() {
    let mut bench = Bench::new();
    (0..3).for_each(|_| bench.push(1));
    let first = bench.send();
    bench.again(first);
    let again = bench.send();
    bench.refused(again);
    let second = bench.send();
    bench.refused(second);
    let third = bench.send();
    assert_eq!((third.epoch, third.first), (1, 0));
}

#[test]
fn what_is_written_before_a_refusal_does_not_tell_whether_it_is_right() {
    let mut bench = Bench::new();
    (0..4).for_each(|_| bench.push(1));
    let [first, second] = [(); 2].map(|()| bench.send());
    bench.again(first);
    bench.again(second);
    let [first, second] = [(); 2].map(|()| bench.send());
    bench.refused(second);
    bench.written(first);
    let third = bench.send();
    bench.refused(third);
    let fourth = bench.send();
    assert_eq!((fourth.epoch, fourth.first), (1, 0));
}

#[test]
fn a_request_that_is_lost_behind_a_refused_batch_is_fenced_off() {
    let mut bench = Bench::new();
    (0..2).for_each(|_| bench.push(1));
    let [first, second] = [(); 2].map(|()| bench.send());
    bench.refused(first);
    bench.partition.lost(second.number, second.flight());
    let again = bench.send();
    assert_eq!((again.number, again.epoch, again.first), (second.number, 1, 0));
}

#[test]
fn an_answer_that_comes_late_takes_nothing_back() {
    let mut bench = Bench::new();
    (0..4).for_each(|_| bench.push(1));
    let [first, second, third] = [(); 3].map(|()| bench.send());
    bench.again(first);
    bench.written(second);
    bench.refused(third);
    let again = bench.send();
    bench.written(again);
    assert_eq!(bench.send().first, third.first);
}

#[test]
fn what_was_sent_to_another_leader_does_not_make_the_new_one_known() {
    let mut bench = Bench::new();
    (0..4).for_each(|_| bench.push(1));
    let sent = bench.send();
    assert!(bench.partition.led_by(Some(2), 1));
    bench.written(sent);
    let sent = bench.send();
    assert_eq!(bench.next(), Err(Idle::Answer), "one at a time");
    bench.written(sent);
    bench.send();
    bench.send();
}

#[test]
fn what_is_in_doubt_is_asked_for_before_a_new_epoch_or_id() {
    for is_fenced in [true, false] {
        let mut bench = Bench::new();
        (0..3).for_each(|_| bench.push(1));
        let [first, second, third] = [(); 3].map(|()| bench.send());
        if is_fenced {
            bench.partition.fenced(first.number, first.flight(), bench.now);
        } else {
            assert!(bench.out_of_order(first));
        }
        bench.again(second);
        bench.partition.lost(third.number, third.flight());
        let again = bench.send();
        assert_eq!((again.number, again.epoch, again.first), (second.number, 0, second.first));
        bench.written(again);
        let again = bench.send();
        assert_eq!((again.number, again.epoch, again.first), (third.number, 0, third.first));
        assert!(!bench.out_of_order(again));
        if is_fenced {
            bench.now += MOST_BACKOFF;
            assert_eq!(bench.next(), Err(Idle::Identity(Some(IDENTITY))));
        }
        let first = bench.send();
        assert_eq!((first.epoch, first.first), (i16::from(!is_fenced), 0));
        bench.written(first);
        let last = bench.send();
        assert_eq!((last.number, last.first), (third.number, 1));
    }
}

#[test]
fn a_leader_of_an_earlier_epoch_is_old_news() {
    let mut partition = Partition::default();
    assert!(partition.led_by(Some(1), 5));
    assert!(!partition.led_by(Some(2), 4));
    assert_eq!(partition.leader, Some(1));
    partition.is_made_anew();
    assert!(partition.led_by(Some(2), 0), "another topic begins anew");
}

#[test]
fn a_leader_that_is_elected_again_may_know_nothing() {
    let mut bench = Bench::new();
    (0..2).for_each(|_| bench.push(1));
    assert!(bench.partition.led_by(Some(1), 1));
    bench.partition.known = Some(bench.now);
    assert!(!bench.partition.led_by(Some(1), 2), "the same one");
    bench.send();
    assert_eq!(bench.next(), Err(Idle::Answer), "one at a time");
}

#[test]
fn what_never_had_a_number_leaves_no_gap() {
    let mut bench = Bench::new();
    (0..3).for_each(|_| bench.push(1));
    let first = bench.send();
    bench.partition.refuse_waiting(REFUSED, &mut bench.spare);
    assert_eq!(bench.next(), Err(Idle::Empty));
    bench.push(1);
    let last = bench.send();
    assert_eq!((last.epoch, last.first), (0, first.first + 1));
}

#[test]
fn after_the_greatest_number_comes_0() {
    let mut bench = Bench::new();
    let greatest = i32::MAX;
    (bench.partition.next_sequence, bench.partition.written_to) = (greatest - 1, greatest - 1);
    (1..=4).for_each(|records| bench.push(records));
    let [first, second, third] = [(); 3].map(|()| bench.send());
    assert_eq!([first.first, second.first, third.first], [greatest - 1, greatest, 1]);
    bench.written(first);
    bench.refused(second);
    assert!(!bench.out_of_order(third));
    let third = bench.send();
    assert_eq!((third.epoch, third.first), (0, greatest));
    assert_eq!(bench.send().first, 2);
}
