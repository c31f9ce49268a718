//! Chooses a partition for a server that has none.
//!
//! After its holder is gone, a partition *rests* for `registry.relay_timeout_ms`. A relay that has not
//! known for this long whether a server still has its lease writes nothing for that server
//! ([`Leases`](crate::uplink::Leases)). So at the end of the rest no running relay writes for the former
//! holder, and the query that follows sees what was written before. Records that a cut-off relay's Kafka
//! client still holds arrive later, however long the rest is. That relay finds them itself; for this it
//! needs to know where the next lease begins ([`Free::end`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kafka::Unread;
use crate::model::Partition;
use crate::registry::decision::Facts;

use super::policy::{Policy, Unfit};
use super::state::Registry;

/// A server gets its answer within the length of a lease. The search for a partition ends after three
/// quarters of that, so that there is time to write and read the answer.
const SEARCH_QUARTERS: u32 = 3;

/// A partition that a server can get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Free {
    pub(super) partition: Partition,
    /// All records before this offset have been read, or are dead letters.
    pub(super) end: i64,
}

/// The result of a search.
pub(super) enum Search {
    Found(Free),
    /// A partition is not examined yet, or rests, and there is time to wait.
    Later,
    /// No partition is free; and whether the search continues.
    None(Unfit, GoesOn),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum GoesOn {
    /// The answer is final, until the server writes again.
    No,
    /// It was given because time ran out, and is given once.
    Silently,
    /// The same, and the answer is due now.
    Aloud,
}

/// A server that waits for an answer.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    answered: bool,
}

/// What is known of partitions without a holder.
#[derive(Debug)]
pub(super) struct Pool {
    begun: Instant,
    /// When the end of the last holder was read. Without an entry: before `begun`.
    freed: BTreeMap<Partition, Instant>,
    /// When records were seen to wait there. Such a partition is not examined again for the length of a
    /// lease, so that a search reaches all partitions, whatever their number and the time that each takes.
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

    /// Nothing waits there any longer.
    pub(super) fn emptied(&mut self, partition: Partition) {
        self.full.remove(&partition);
    }

    /// A server has its answer, or needs none.
    pub(super) fn answered(&mut self, id: &str) {
        self.waiting.remove(id);
    }

    /// When the partition's rest ends. None if it had no holder.
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
