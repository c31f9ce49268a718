//! Counting and timing on a thread's own time: one writer, any number of readers, no locked instruction,
//! and no allocation for a message.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A counter with one writer: no locked instruction on the data path.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning thread may.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// An amount with one writer.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Takes a part of it as grown or shrunk; only the owning thread may.
    pub fn replace(&self, before: usize, now: usize) {
        let amount = self.get().wrapping_sub(before as u64).wrapping_add(now as u64);
        self.0.store(amount, Ordering::Relaxed);
    }

    /// The present amount.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of the buckets of a [`Histogram`], in microseconds. One more has all that took longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ladder(&'static [u64]);

impl Ladder {
    /// For what takes microseconds: 1 µs to 100 ms.
    pub const SHORT: Self =
        Self(&[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000]);
    /// For what takes milliseconds: 100 µs to 60 s.
    pub const MEDIUM: Self = Self(&[
        100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
        1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
    ]);
    /// For what waits for somebody: 1 s to 7 days.
    pub const LONG: Self = Self(&[
        1_000_000,
        10_000_000,
        60_000_000,
        300_000_000,
        1_800_000_000,
        7_200_000_000,
        21_600_000_000,
        86_400_000_000,
        604_800_000_000,
    ]);

    /// The bounds, in microseconds.
    pub const fn bounds_us(self) -> &'static [u64] {
        self.0
    }
}

/// How long things took: a count for each step of a [`Ladder`], and the sum. Written by one thread only.
#[derive(Debug)]
pub struct Histogram {
    ladder: Ladder,
    counts: Box<[Counter]>,
    sum_ns: Counter,
}

/// For what takes milliseconds.
impl Default for Histogram {
    fn default() -> Self {
        Self::new(Ladder::MEDIUM)
    }
}

impl Histogram {
    /// One that has seen nothing.
    pub fn new(ladder: Ladder) -> Self {
        let counts = (0..=ladder.0.len()).map(|_| Counter::default()).collect();
        Self { ladder, counts, sum_ns: Counter::default() }
    }

    /// So many things took so long each; only the owning thread may.
    pub fn record(&self, took: Duration, count: u64) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let place = self.ladder.0.partition_point(|bound| bound.saturating_mul(1000) < ns);
        self.counts[place].add(count);
        self.sum_ns.add(ns.saturating_mul(count));
    }

    /// What it has seen.
    pub fn times(&self) -> Times {
        Times {
            bounds_us: self.ladder.0.to_vec(),
            counts: self.counts.iter().map(Counter::get).collect(),
            sum_us: self.sum_ns.get() / 1000,
        }
    }
}

/// What a [`Histogram`] has seen, or several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Upper bounds, in microseconds.
    pub bounds_us: Vec<u64>,
    /// How many things took at most as long as that bound, and longer than the one before it. The last one
    /// has those that took longer than any.
    pub counts: Vec<u64>,
    /// How long all of them took together.
    pub sum_us: u64,
}

impl Times {
    /// Those of several histograms with one ladder.
    pub fn sum(all: impl IntoIterator<Item = Self>) -> Self {
        let mut sum = Self::default();
        for one in all {
            if sum.counts.is_empty() {
                sum = one;
                continue;
            }
            for (count, more) in sum.counts.iter_mut().zip(one.counts) {
                *count += more;
            }
            sum.sum_us += one.sum_us;
        }
        sum
    }

    /// How many things were timed.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Things that began together, and end together: their time is taken once for all of them. In a thread's
/// turn there are few such groups, so this allocates at first only.
#[derive(Debug, Default)]
pub struct Groups(Vec<(Instant, u64)>);

impl Groups {
    /// Groups of one turn; a group more counts as the last one.
    const MOST: usize = 64;

    /// So many that began then have ended.
    #[inline]
    pub fn add(&mut self, began: Instant, ended: u64) {
        match self.0.last_mut() {
            Some((other, count)) if *other == began => *count += ended,
            _ => self.begin(began, ended),
        }
    }

    fn begin(&mut self, began: Instant, ended: u64) {
        if self.0.len() < Self::MOST {
            self.0.push((began, ended));
        } else if let Some((_, count)) = self.0.last_mut() {
            *count += ended;
        }
    }

    /// True if nothing has ended.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them have ended now.
    pub fn end(&mut self, now: Instant, histogram: &Histogram) {
        for (began, count) in self.0.drain(..) {
            histogram.record(now.saturating_duration_since(began), count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_as_long_as_a_bound_is_below_it() {
        let histogram = Histogram::new(Ladder::SHORT);
        histogram.record(Duration::ZERO, 1);
        histogram.record(Duration::from_micros(1), 2);
        histogram.record(Duration::from_nanos(1001), 4);
        histogram.record(Duration::from_secs(1), 8);
        let times = histogram.times();
        assert_eq!(times.counts[..3], [3, 4, 0]);
        assert_eq!(times.counts[Ladder::SHORT.bounds_us().len()], 8);
        assert_eq!((times.count(), times.sum_us), (15, 8_000_006));
        assert_eq!(Times::sum([times.clone(), times]).count(), 30);
        histogram.record(Duration::MAX, 1);
        assert_eq!(histogram.times().count(), 16);
    }

    #[test]
    fn ladders_go_up() {
        for ladder in [Ladder::SHORT, Ladder::MEDIUM, Ladder::LONG] {
            assert!(ladder.bounds_us().is_sorted_by(|one, next| one < next));
        }
    }

    #[test]
    fn what_began_together_is_timed_together() {
        let (histogram, began) = (Histogram::new(Ladder::MEDIUM), Instant::now());
        let later = began + Duration::from_millis(3);
        let mut groups = Groups::default();
        for began in [began, began, later] {
            groups.add(began, 1);
        }
        groups.end(began + Duration::from_millis(4), &histogram);
        assert!(groups.is_empty());
        let times = histogram.times();
        assert_eq!((times.count(), times.sum_us), (3, 9000));
        (0..1000).for_each(|more| groups.add(began + Duration::from_nanos(more), 1));
        assert_eq!(groups.0.len(), Groups::MOST);
        groups.end(later, &histogram);
        assert_eq!(histogram.times().count(), 1003, "each is counted");
    }
}
