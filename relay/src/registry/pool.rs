//! Which partition a server gets that has none.
//!
//! A partition that had a holder *rests* for `registry.relay_timeout_ms` after it: a relay writes
//! nothing for a server of which it has not known so long whether it still has its lease
//! ([`Leases`](crate::uplink::Leases)), so at the end of the rest no relay that runs writes for the
//! former holder any more, and what it had written before is seen by the look that follows. What a
//! relay's clients of Kafka still have in hand (it was cut off) comes later, however long the rest is;
//! the relay sees to that itself, and needs to know where the lease begins ([`Free::end`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kafka::Unread;
use crate::model::Partition;
use crate::registry::decision::Facts;

use super::policy::{Policy, Unfit};
use super::state::Registry;

/// A server that registers has its answer within a lease; the search for a partition ends at three
/// quarters of it, so that the answer is written and read in time as well.
const SEARCH_QUARTERS: u32 = 3;

/// A partition that a server may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Free {
    pub(super) partition: Partition,
    /// Everything before it has been read, or is among the dead letters.
    pub(super) end: i64,
}

/// What became of a search.
pub(super) enum Search {
    Found(Free),
    /// Something is not known yet, or rests, and there is time.
    Later,
    /// None; and whether the search goes on all the same.
    None(Unfit, GoesOn),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum GoesOn {
    /// The answer is final, until the server writes again.
    No,
    /// It was given for want of time, and is given once.
    Silently,
    /// The same, and it is due now.
    Aloud,
}

/// A server that waits for its answer.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    answered: bool,
}

/// What is known of partitions without a holder.
#[derive(Debug)]
pub(super) struct Pool {
    begun: Instant,
    /// When it was read that the last holder is gone; not there: before `begun`.
    freed: BTreeMap<Partition, Instant>,
    /// When it was seen that records wait there. Not asked again for a lease, so that a search comes
    /// to all partitions, however many there are and however long each takes.
    full: BTreeMap<Partition, Instant>,
    waiting: BTreeMap<String, Waiting>,
}

impl Pool {
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, freed: BTreeMap::new(), full: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    /// Takes note of a lease that was read.
    pub(super) fn observe(&mut self, partition: Partition, in_force: bool, now: Instant) {
        if in_force {
            self.freed.remove(&partition);
        } else {
            self.freed.entry(partition).or_insert(now);
        }
    }

    /// Nothing waits there any more.
    pub(super) fn emptied(&mut self, partition: Partition) {
        self.full.remove(&partition);
    }

    /// A server has its answer, or wants none.
    pub(super) fn answered(&mut self, id: &str) {
        self.waiting.remove(id);
    }

    /// When the partition's rest is over; none if it had no holder.
    fn rested(
        &self,
        partition: Partition,
        registry: &Registry,
        policy: &Policy,
    ) -> Option<Instant> {
        let freed = self.freed.get(&partition).copied().unwrap_or(self.begun);
        (registry.epoch(partition) > 0).then(|| freed + policy.relay_timeout)
    }

    /// Looks for a partition for `id` among those that are not `taken`.
    pub(super) fn search(
        &mut self,
        id: &str,
        is_taken: impl Fn(Partition) -> bool,
        (registry, policy): (&Registry, &Policy),
        facts: &mut impl Facts,
        now: Instant,
    ) -> Search {
        let (mut leased, mut unread, mut unsure) = (0, 0, 0);
        for partition in policy.pool() {
            if is_taken(partition) {
                leased += 1;
                continue;
            }
            let rested = self.rested(partition, registry, policy).unwrap_or(self.begun);
            if rested > now {
                unsure += 1;
                continue;
            }
            let full = self.full.get(&partition);
            if full.is_some_and(|at| now.saturating_duration_since(*at) < policy.lease) {
                unread += 1;
                continue;
            }
            match facts.unread(partition, rested) {
                Some(Unread { records: 0, end, .. }) => {
                    if !facts.claim(partition) {
                        unsure += 1;
                        continue;
                    }
                    self.full.remove(&partition);
                    return Search::Found(Free { partition, end });
                }
                Some(_) => {
                    self.full.insert(partition, now);
                    unread += 1;
                }
                None => unsure += 1,
            }
        }
        let waiting = Waiting { since: now, answered: false };
        let waiting = self.waiting.entry(id.to_owned()).or_insert(waiting);
        if unsure == 0 {
            return Search::None(Unfit::NoPartition { leased, unread, unsure }, GoesOn::No);
        }
        let patience: Duration = policy.lease / 4 * SEARCH_QUARTERS;
        if now.saturating_duration_since(waiting.since) < patience {
            return Search::Later;
        }
        let goes_on = if waiting.answered { GoesOn::Silently } else { GoesOn::Aloud };
        waiting.answered = true;
        Search::None(Unfit::NoPartition { leased, unread, unsure }, goes_on)
    }
}
