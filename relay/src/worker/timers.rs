//! Times at which something is to be looked at.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// So many times are kept without a look at what they are for.
const LEAST: usize = 1024;

/// Times, each with what it is for; the first one comes first. What has ended since, or has got another
/// time, stays among them until its time comes, but never more of that than of the rest: a relay whose
/// connections are short and whose times are long would fill its memory.
#[derive(Debug)]
pub(super) struct Timers<T> {
    heap: BinaryHeap<Reverse<(Instant, T)>>,
    /// With so many it is looked at what they are for.
    most: usize,
}

impl<T: Ord> Default for Timers<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), most: LEAST }
    }
}

impl<T: Copy + Ord> Timers<T> {
    /// Adds one. `counts` says whether one is still for something.
    pub(super) fn push(&mut self, at: Instant, what: T, counts: impl Fn(Instant, T) -> bool) {
        if self.heap.len() >= self.most {
            self.heap.retain(|Reverse((at, what))| counts(*at, *what));
            // So a look costs as much as the additions since the last one.
            self.most = (2 * self.heap.len()).max(LEAST);
            self.heap.shrink_to(self.most);
        }
        self.heap.push(Reverse((at, what)));
    }

    /// The first time.
    pub(super) fn first(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the first one out, if its time has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Instant, T)> {
        self.first().filter(|at| *at <= now)?;
        self.heap.pop().map(|Reverse(timer)| timer)
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_has_ended_does_not_pile_up_and_what_has_not_is_not_lost() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        let mut alive = HashSet::new();
        for number in 0..100_000_u32 {
            alive.insert(number);
            let at = start + Duration::from_micros(3_600_000_000 - u64::from(number));
            timers.push(at, number, |_, other| alive.contains(&other));
            // One in a hundred stays.
            if number % 100 != 0 {
                alive.remove(&number);
            }
            assert!(timers.len() <= 2 * alive.len() + LEAST, "{} of {}", timers.len(), alive.len());
        }
        assert!(timers.pop(start).is_none());
        let due = std::iter::from_fn(|| timers.pop(start + Duration::from_hours(1)));
        let due: Vec<u32> =
            due.map(|(_, number)| number).filter(|one| alive.contains(one)).collect();
        assert_eq!(due.len(), 1000);
        assert!(due.is_sorted_by(|one, next| one > next), "the first time comes first");
    }
}
