//! The coordinator's judgement of when a rebalancing is over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::route::Balance;

use super::record::{Ended, Key, Rebalance, Term, VERSION};
use super::state::Registry;
use super::{Facts, Policy, Write};

/// A rebalancing ends when loads have been even for this long. By then the records of the last moves have
/// been read.
const SETTLED: Duration = Duration::from_secs(3);
/// It also ends when nothing has moved for this long: the remaining clients cannot move.
const STUCK: Duration = Duration::from_mins(1);
/// Most servers in the record of the end. With the longest ids, the record stays below
/// [`MAX_VALUE_BYTES`](super::record::MAX_VALUE_BYTES).
const MOST_SERVERS: usize = 100;

/// The progress of a rebalancing.
#[derive(Debug)]
struct Progress {
    even_since: Option<Instant>,
    moved: u64,
    moved_at: Instant,
}

/// Watches the rebalancings that are in force.
#[derive(Debug, Default)]
pub(super) struct Rebalancings(BTreeMap<String, Progress>);

impl Rebalancings {
    /// The order is new.
    pub(super) fn forget(&mut self, service: &str) {
        self.0.remove(service);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What to write about those that are over.
    pub(super) fn scan(
        &mut self,
        registry: &Registry,
        (policy, term): (&Policy, Term),
        facts: &impl Facts,
        now: Instant,
    ) -> Vec<Write> {
        let mut writes = Vec::new();
        for (service, order) in registry.rebalances().iter().filter(|(_, of)| of.ended.is_none()) {
            let key = Key::Rebalance(service.clone());
            if !policy.services.contains(service) {
                writes.push(Write::remove(key));
                continue;
            }
            let Some(balance) = facts.balance(service) else { continue };
            if let Some(even) = self.judge(service, &balance, now) {
                let ended = Some(Ended::new(term, even, balance.moved));
                writes
                    .push(Write::new(key, &Rebalance { version: VERSION, ended, ..order.clone() }));
                self.0.remove(service);
            }
        }
        writes
    }

    /// Once it is over: whether the loads are even.
    fn judge(&mut self, service: &str, balance: &Balance, now: Instant) -> Option<bool> {
        let moved = balance.moved.values().sum();
        let new = Progress { even_since: None, moved, moved_at: now };
        let progress = self.0.entry(service.to_owned()).or_insert(new);
        if moved != progress.moved {
            (progress.moved, progress.moved_at) = (moved, now);
        }
        progress.even_since = progress.even_since.or(Some(now)).filter(|_| balance.even);
        let lasts = |since: Instant, time| now.saturating_duration_since(since) >= time;
        if progress.even_since.is_some_and(|since| lasts(since, SETTLED)) {
            return Some(true);
        }
        lasts(progress.moved_at, STUCK).then_some(false)
    }
}

impl Ended {
    fn new(term: Term, even: bool, moved: BTreeMap<String, u64>) -> Self {
        let all = moved.values().sum();
        let mut most: Vec<_> = moved.into_iter().collect();
        most.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
        most.truncate(MOST_SERVERS);
        Self { term, even, moved: all, moved_from: most.into_iter().collect() }
    }
}
