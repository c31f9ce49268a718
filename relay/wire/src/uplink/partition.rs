//! What waits for a partition, and what is on its way to it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::LinkId;
use super::spare::Spare;
use super::{LEAST_BACKOFF, MOST_BACKOFF, MOST_OF_PARTITION, Refusal};
use crate::batch::{Batch, Sequence, sequence_after};
use crate::message::ProducerIdentity;

/// For how long after an answer a broker surely remembers the producer: brokers forget after
/// `producer.id.expiration.ms`, a day.
const REMEMBERED: Duration = Duration::from_mins(1);

/// Where a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Here.
    Waiting,
    /// On its way, with the request of this number.
    Flying(LinkId, i32),
    /// Its fate is known, and will be told after that of those before it.
    Settled(Result<i64, Refusal>),
}

/// A batch that takes no more records.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) batch: Arc<Batch>,
    pub(super) state: State,
    /// Its first sequence number, if it has one.
    sequence: Option<i32>,
    /// It was sent with that number, and nobody knows what became of it.
    is_in_doubt: bool,
    /// It was sent to another leader, or to another topic, than there is now.
    is_outdated: bool,
}

impl Queued {
    fn new(batch: Arc<Batch>) -> Self {
        let (sequence, is_in_doubt, is_outdated) = (None, false, false);
        Self { batch, state: State::Waiting, sequence, is_in_doubt, is_outdated }
    }
}

/// What has to be done when no batch is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewal {
    /// The batch of this number was refused. Those before it go on as they are; when they are settled, the
    /// numbers of those after it go on behind the last one that was written.
    Numbers(u64),
    /// They begin anew, in the next epoch.
    Epoch,
    /// They begin anew, with another id.
    Identity,
}

/// Of one partition.
#[derive(Debug, Default)]
pub(super) struct Partition {
    /// Takes records.
    pub(super) open: Batch,
    /// When one was seen in it first.
    opened: Option<Instant>,
    /// The others, in order.
    queue: VecDeque<Queued>,
    /// The number of the first in the queue, counted from the partition's first batch.
    first: u64,
    flying: usize,
    pub(super) leader: Option<i32>,
    pub(super) leader_epoch: i32,
    identity: Option<ProducerIdentity>,
    /// The sequence number of the next batch that gets one.
    next_sequence: i32,
    /// That which follows the last record that was written.
    written_to: i32,
    /// The number of the last batch that was refused although it may have been written before: until a
    /// later one is written, nobody knows what follows the last record that was.
    refused_in_doubt: Option<u64>,
    renewal: Option<Renewal>,
    /// When the leader acknowledged something with this identity.
    known: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
    /// It stands in the list of those with something to send.
    pub(super) is_pending: bool,
}

/// Why nothing of a partition can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Idle {
    /// There is nothing.
    Empty,
    /// Until an answer comes.
    Answer,
    /// Until its leader's connection takes it.
    Link,
    /// Until that time.
    Time(Instant),
    /// Until there is a producer's id; the one that it had is of no use any more.
    Identity(Option<ProducerIdentity>),
}

impl Partition {
    /// True if every record is settled.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.queue.is_empty()
    }

    /// True if a batch waits, or is filling.
    pub(super) fn has_unsent(&self) -> bool {
        !self.open.is_empty() || self.queue.iter().any(|queued| queued.state == State::Waiting)
    }

    /// The open batch takes no more: what comes next is for another one.
    pub(super) fn close(&mut self, spare: &mut Spare) {
        if !self.open.is_empty() {
            self.opened = None;
            self.queue.push_back(Queued::new(spare.close(&mut self.open)));
        }
    }

    /// The batch to be sent next, by its place in the queue.
    pub(super) fn next(
        &mut self,
        now: Instant,
        linger: Duration,
        identity: Option<ProducerIdentity>,
        spare: &mut Spare,
    ) -> Result<usize, Idle> {
        if let Some(then) = self.not_before.filter(|then| *then > now) {
            return Err(Idle::Time(then));
        }
        match self.renewal {
            Some(Renewal::Numbers(refused)) if self.first < refused => {
                let before = usize::try_from(refused - self.first).unwrap_or(usize::MAX);
                if self.waiting().is_none_or(|place| place > before) {
                    return Err(Idle::Answer);
                }
            }
            Some(_) if self.flying > 0 => return Err(Idle::Answer),
            Some(renewal) => {
                if !matches!(renewal, Renewal::Numbers(_))
                    && let Some(place) = self.doubtful()
                {
                    return Ok(place);
                }
                self.renew(renewal)?;
            }
            None => {}
        }
        if self.identity.is_none() {
            self.identity = Some(identity.ok_or(Idle::Identity(None))?);
        }
        let is_known =
            self.known.is_some_and(|then| now.saturating_duration_since(then) < REMEMBERED);
        if self.flying >= if is_known { MOST_OF_PARTITION } else { 1 } {
            return Err(if self.has_unsent() { Idle::Answer } else { Idle::Empty });
        }
        if let Some(place) = self.waiting() {
            // As many batches after one that is not settled, and its broker does not remember that one.
            return if place < MOST_OF_PARTITION { Ok(place) } else { Err(Idle::Answer) };
        }
        if self.open.is_empty() {
            return Err(Idle::Empty);
        }
        if self.flying > 0 {
            return Err(Idle::Answer);
        }
        let ripe = *self.opened.get_or_insert(now) + linger;
        if ripe > now {
            return Err(Idle::Time(ripe));
        }
        self.close(spare);
        Ok(self.queue.len() - 1)
    }

    /// The place of the oldest batch that waits.
    fn waiting(&self) -> Option<usize> {
        self.queue.iter().position(|queued| queued.state == State::Waiting)
    }

    /// The place of the oldest batch that waits, and of which nobody knows what became of it.
    fn doubtful(&self) -> Option<usize> {
        let is_it = |queued: &Queued| queued.state == State::Waiting && queued.is_in_doubt;
        self.queue.iter().take(MOST_OF_PARTITION).position(is_it)
    }

    fn renew(&mut self, renewal: Renewal) -> Result<(), Idle> {
        self.renewal = None;
        let is_in_doubt = self.is_in_doubt();
        match (renewal, &mut self.identity) {
            (Renewal::Numbers(_), _) if !is_in_doubt => self.next_sequence = self.written_to,
            // With the old numbers something may yet be written, if others take the place before them.
            (Renewal::Numbers(_) | Renewal::Epoch, Some(identity)) if identity.epoch < i16::MAX => {
                identity.epoch += 1;
                self.begin_anew();
            }
            (_, identity) => {
                let useless = identity.take();
                self.begin_anew();
                self.forget_numbers();
                return Err(Idle::Identity(useless));
            }
        }
        self.forget_numbers();
        Ok(())
    }

    fn begin_anew(&mut self) {
        (self.next_sequence, self.written_to, self.known) = (0, 0, None);
        self.refused_in_doubt = None;
    }

    fn forget_numbers(&mut self) {
        for queued in &mut self.queue {
            (queued.sequence, queued.is_in_doubt) = (None, false);
        }
    }

    /// True if nobody knows what the brokers have, or may yet carry out, of what was sent.
    fn is_in_doubt(&self) -> bool {
        self.refused_in_doubt.is_some() || self.queue.iter().any(|queued| queued.is_in_doubt)
    }

    /// The size of the batch at this place.
    pub(super) fn size(&self, place: usize) -> usize {
        self.queue[place].batch.size()
    }

    /// The batch at this place goes on its way with a request; its number and the batch, or nothing if it
    /// cannot.
    pub(super) fn send(
        &mut self,
        place: usize,
        link: LinkId,
        correlation: i32,
    ) -> Option<(u64, Arc<Batch>)> {
        let queued = &mut self.queue[place];
        let identity = self.identity?;
        if queued.sequence.is_none() {
            // Copied if somebody else has it still: a broker may answer before it was sent everything.
            let batch = Arc::make_mut(&mut queued.batch);
            let first = self.next_sequence;
            batch.seal(Sequence { producer_id: identity.id, epoch: identity.epoch, first });
            self.next_sequence = sequence_after(first, batch.count());
            queued.sequence = Some(first);
        }
        (queued.state, queued.is_outdated) = (State::Flying(link, correlation), false);
        self.flying += 1;
        Some((self.first + place as u64, queued.batch.clone()))
    }

    /// The place of a batch that is on its way with that request; none if it was given up.
    fn place(&self, number: u64, flight: (LinkId, i32)) -> Option<usize> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let queued = self.queue.get(place)?;
        (queued.state == State::Flying(flight.0, flight.1)).then_some(place)
    }

    /// The batch is on its way no more; its place.
    fn land(&mut self, number: u64, flight: (LinkId, i32), state: State) -> Option<usize> {
        let place = self.place(number, flight)?;
        self.queue[place].state = state;
        self.flying -= 1;
        Some(place)
    }

    /// Nobody knows what became of a batch.
    pub(super) fn lost(&mut self, number: u64, flight: (LinkId, i32)) {
        if let Some(place) = self.land(number, flight, State::Waiting) {
            self.queue[place].is_in_doubt = true;
        }
    }

    /// A batch was written.
    pub(super) fn written(
        &mut self,
        number: u64,
        flight: (LinkId, i32),
        base_offset: i64,
        now: Instant,
    ) {
        let Some(place) = self.land(number, flight, State::Settled(Ok(base_offset))) else {
            return;
        };
        let queued = &self.queue[place];
        let is_written =
            |of: &Queued| matches!(of.state, State::Settled(Ok(_))) && of.sequence.is_some();
        let is_last = !self.queue.iter().take(MOST_OF_PARTITION).skip(place + 1).any(is_written);
        if let Some(first) = queued.sequence.filter(|_| is_last) {
            self.written_to = sequence_after(first, queued.batch.count());
        }
        self.refused_in_doubt = self.refused_in_doubt.filter(|refused| *refused > number);
        if !queued.is_outdated {
            self.known = Some(now);
        }
        (self.not_before, self.failures) = (None, 0);
    }

    /// A batch was refused for good.
    pub(super) fn refused(&mut self, number: u64, flight: (LinkId, i32), refusal: Refusal) {
        if let Some(place) = self.land(number, flight, State::Settled(Err(refusal))) {
            self.leaves_gap(place);
        }
    }

    /// The batch at this place is refused.
    fn leaves_gap(&mut self, place: usize) {
        let number = self.first + place as u64;
        let queued = &mut self.queue[place];
        let was_in_doubt = std::mem::take(&mut queued.is_in_doubt);
        if queued.sequence.is_none() {
            return;
        }
        if was_in_doubt {
            // If it was written those after it follow as they are, and if not, they are out of order.
            self.refused_in_doubt = self.refused_in_doubt.max(Some(number));
            return;
        }
        self.renewal = match self.renewal {
            None => Some(Renewal::Numbers(number)),
            Some(Renewal::Numbers(other)) => Some(Renewal::Numbers(other.min(number))),
            other => other,
        };
    }

    /// A batch is to be sent again, after a while.
    pub(super) fn again(&mut self, number: u64, flight: (LinkId, i32), now: Instant) {
        if let Some(place) = self.land(number, flight, State::Waiting) {
            // Even who leads the partition no more may have written it as its leader.
            self.queue[place].is_in_doubt = true;
            self.back_off(now);
        }
    }

    fn back_off(&mut self, now: Instant) {
        self.not_before = Some(now + backoff(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// The numbers of a batch do not follow. True if that is news: if those before it are settled, all of
    /// them as far as anybody knows, and it will not be numbered anew anyway.
    pub(super) fn out_of_order(
        &mut self,
        number: u64,
        flight: (LinkId, i32),
        now: Instant,
    ) -> bool {
        let Some(place) = self.land(number, flight, State::Waiting) else { return false };
        let is_oldest =
            self.queue.iter().take(place).all(|queued| matches!(queued.state, State::Settled(_)));
        let is_expected = match self.renewal {
            None => false,
            Some(Renewal::Numbers(refused)) => number > refused,
            Some(Renewal::Epoch | Renewal::Identity) => {
                self.queue[place].is_in_doubt = false;
                true
            }
        };
        if !is_oldest || is_expected {
            return false;
        }
        self.begins_anew(place, Renewal::Epoch, now);
        self.refused_in_doubt.is_none()
    }

    /// The broker does not take the identity.
    pub(super) fn fenced(&mut self, number: u64, flight: (LinkId, i32), now: Instant) {
        if let Some(place) = self.land(number, flight, State::Waiting) {
            self.begins_anew(place, Renewal::Identity, now);
        }
    }

    /// The batch at this place will never be written with its numbers. Others may have been: when none is
    /// on its way, the broker is asked again for those of which nobody knows.
    fn begins_anew(&mut self, place: usize, renewal: Renewal, now: Instant) {
        self.queue[place].is_in_doubt = false;
        self.renewal = Some(renewal);
        self.back_off(now);
    }

    /// The leader, as a broker knows it. True if it is another one than before.
    pub(super) fn led_by(&mut self, leader: Option<i32>, leader_epoch: i32) -> bool {
        // A broker that has not heard yet; one without epochs says -1.
        if leader_epoch >= 0 && leader_epoch < self.leader_epoch {
            return false;
        }
        let is_same = leader == self.leader;
        if !is_same || leader_epoch != self.leader_epoch {
            // Also who is elected again may have lost something.
            self.forget_known();
        }
        (self.leader, self.leader_epoch) = (leader, leader_epoch);
        !is_same
    }

    /// The topic is another one of the same name.
    pub(super) fn is_made_anew(&mut self) {
        self.leader_epoch = -1;
        self.forget_known();
    }

    /// What the leader knows has to be seen anew, from what is sent from now on.
    fn forget_known(&mut self) {
        self.known = None;
        self.queue.iter_mut().for_each(|queued| queued.is_outdated = true);
    }

    /// Refuses all that waits.
    pub(super) fn refuse_waiting(&mut self, refusal: Refusal, spare: &mut Spare) {
        self.close(spare);
        for place in 0..self.queue.len() {
            if self.queue[place].state == State::Waiting {
                self.queue[place].state = State::Settled(Err(refusal));
                self.leaves_gap(place);
            }
        }
    }

    /// The oldest batch, if its fate is known.
    pub(super) fn pop_settled(&mut self) -> Option<(Arc<Batch>, Result<i64, Refusal>)> {
        let State::Settled(result) = self.queue.front()?.state else { return None };
        self.first += 1;
        self.queue.pop_front().map(|queued| (queued.batch, result))
    }

    /// On which connections it has something on its way. What is sent is among the first.
    pub(super) fn flights(&self) -> impl Iterator<Item = LinkId> {
        self.queue.iter().take(MOST_OF_PARTITION).filter_map(|queued| match queued.state {
            State::Flying(link, _) => Some(link),
            _ => None,
        })
    }

    /// All batches, in order.
    pub(super) fn into_batches(self) -> impl Iterator<Item = Arc<Batch>> {
        let open = (!self.open.is_empty()).then(|| Arc::new(self.open));
        self.queue.into_iter().map(|queued| queued.batch).chain(open)
    }
}

/// How long to wait after so many failures and one more.
pub(super) fn backoff(failures: u32) -> Duration {
    LEAST_BACKOFF.saturating_mul(1 << failures.min(10)).min(MOST_BACKOFF)
}

#[cfg(test)]
mod tests;
