//! When a topic counts as read to its end.
//!
//! Some brokers tell an end that is short of what they have acknowledged, for a moment. So an end that was
//! reached is asked for again, until an answer some time after the one before has nothing that was not
//! read. What was told once is not taken back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Least time between two answers that confirm each other.
const APART: Duration = Duration::from_millis(50);
/// Who writes all the time is not run after for longer: an answer that late has all that was
/// acknowledged before the first.
const MOST_LOOKS: u32 = 5;

/// A partition that is to be read to its end.
#[derive(Debug)]
struct Goal {
    /// The largest end that was told.
    end: i64,
    /// It was read as far as that.
    reached: bool,
}

/// How far each partition is to be read.
#[derive(Debug)]
pub(super) struct CatchUp {
    goals: BTreeMap<i32, Goal>,
    looks: u32,
    looked: Instant,
    confirmed: bool,
}

impl CatchUp {
    /// From the first answer: of each partition its oldest offset and its end.
    pub(super) fn new(told: impl IntoIterator<Item = (i32, (i64, i64))>, now: Instant) -> Self {
        let goal = |(start, end)| Goal { end, reached: start >= end };
        let goals: BTreeMap<_, _> =
            told.into_iter().map(|(partition, told)| (partition, goal(told))).collect();
        let confirmed = goals.is_empty();
        Self { goals, looks: 1, looked: now, confirmed }
    }

    /// Partitions that may have more. None if the topic is read to its end.
    pub(super) fn behind(&self) -> usize {
        match self.goals.values().filter(|goal| !goal.reached).count() {
            // Nobody has confirmed it.
            0 if !self.confirmed => self.goals.len(),
            behind => behind,
        }
    }

    /// What comes next in a partition.
    pub(super) fn read_to(&mut self, partition: i32, next: i64) {
        if let Some(goal) = self.goals.get_mut(&partition) {
            goal.reached |= next >= goal.end;
        }
    }

    /// A fetch has found nothing more: what is before the end was compacted away, or is a mark of a
    /// transaction.
    pub(super) fn ended(&mut self, partition: i32) {
        if let Some(goal) = self.goals.get_mut(&partition) {
            goal.reached = true;
        }
    }

    /// In which time the ends are to be asked for again, if they are.
    pub(super) fn looks_in(&self, now: Instant) -> Option<Duration> {
        let is_due = !self.confirmed && self.goals.values().all(|goal| goal.reached);
        is_due.then(|| APART.saturating_sub(now.saturating_duration_since(self.looked)))
    }

    /// The ends are told once more; `next` is what comes next in a partition.
    pub(super) fn look(
        &mut self,
        told: impl IntoIterator<Item = (i32, i64)>,
        next: &BTreeMap<i32, i64>,
        now: Instant,
    ) {
        for (partition, end) in told {
            let Some(goal) = self.goals.get_mut(&partition) else { continue };
            if end > goal.end {
                goal.reached = next.get(&partition).is_some_and(|next| *next >= end);
                goal.end = end;
            }
        }
        self.looks += 1;
        self.looked = now;
        let agrees = self.goals.values().all(|goal| goal.reached);
        self.confirmed = agrees || self.looks >= MOST_LOOKS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A broker that tells its end late: by look, what it tells of partition 0.
    fn read_all(ends: &[i64]) -> (i64, u32) {
        let now = Instant::now();
        let mut told = ends.iter().copied();
        let mut catch_up = CatchUp::new([(0, (0, told.next().unwrap()))], now);
        let mut next = BTreeMap::from([(0, 0)]);
        let mut looks = 1;
        while catch_up.behind() > 0 {
            if let Some(left) = catch_up.looks_in(now + APART) {
                assert_eq!(left, Duration::ZERO);
                looks += 1;
                catch_up.look([(0, told.next().unwrap())], &next, now);
            } else {
                *next.get_mut(&0).unwrap() += 1;
                catch_up.read_to(0, next[&0]);
            }
        }
        (next[&0], looks)
    }

    #[test]
    fn an_end_that_is_told_short_is_not_the_end() {
        assert_eq!(read_all(&[7, 7]), (7, 2));
        assert_eq!(read_all(&[7, 9, 9]), (9, 3));
        assert_eq!(read_all(&[0, 1, 1]), (1, 3), "none at all was told");
        assert_eq!(read_all(&[7, 6]), (7, 2), "what was told once counts");
    }

    #[test]
    fn who_writes_on_and_on_is_not_run_after() {
        assert_eq!(read_all(&[1, 2, 3, 4, 5]), (5, 5));
    }

    #[test]
    fn an_answer_at_once_confirms_nothing() {
        let now = Instant::now();
        let catch_up = CatchUp::new([(0, (3, 3)), (1, (0, 0))], now);
        assert_eq!(catch_up.behind(), 2);
        assert_eq!(catch_up.looks_in(now), Some(APART));
        assert_eq!(catch_up.looks_in(now + 2 * APART), Some(Duration::ZERO));
        assert_eq!(CatchUp::new([], now).behind(), 0, "a topic that nobody has made");
    }

    #[test]
    fn what_was_compacted_away_is_not_waited_for() {
        let now = Instant::now();
        let (mut catch_up, next) = (CatchUp::new([(0, (0, 9))], now), BTreeMap::from([(0, 4)]));
        catch_up.read_to(0, 4);
        assert_eq!(catch_up.behind(), 1);
        catch_up.ended(0);
        catch_up.look([(0, 9)], &next, now);
        assert_eq!(catch_up.behind(), 0);
    }
}
