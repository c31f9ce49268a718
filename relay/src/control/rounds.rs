//! Whether every worker goes round its loop: what a heartbeat means.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A worker that has not gone round for this part of the timeout is woken: who waits for events goes
/// round at once then, and who hangs does not.
const ASKED_AFTER: u32 = 4;

/// What is known of the workers' rounds.
#[derive(Debug)]
pub(super) struct Rounds {
    workers: Vec<Seen>,
    looked: Option<Instant>,
    /// Since when all go round again, after one had hung.
    recovering: Option<Recovery>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    loops: u64,
    moved: Instant,
}

/// How far the workers are back, after one of them had hung.
#[derive(Clone, Copy, Debug)]
enum Recovery {
    Hangs,
    Since(Instant),
}

/// What a look has shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// All workers have gone round after this long ago; absent while new connections should take the
    /// ordinary path.
    pub(super) served: Option<Duration>,
    /// Workers to be woken.
    pub(super) ask: Vec<usize>,
    /// Workers that hang, and for how long.
    pub(super) hanging: BTreeMap<usize, Duration>,
}

impl Rounds {
    pub(super) fn new(workers: usize, now: Instant) -> Self {
        Self {
            workers: vec![Seen { loops: 0, moved: now }; workers],
            looked: None,
            recovering: None,
        }
    }

    /// Looks at how often each worker has gone round. One that has not for the timeout hangs. When all
    /// go round again, the relay serves only after another timeout in which none has stood still for
    /// half of it: a machine that is too busy does not make connections go to and fro.
    pub(super) fn look(
        &mut self,
        now: Instant,
        timeout: Duration,
        loops: impl IntoIterator<Item = u64>,
    ) -> Look {
        // While nobody looked (the process was stopped, or got no processor) nobody could be seen to
        // move either.
        let away = self.looked.map_or(Duration::ZERO, |looked| now.duration_since(looked));
        let away = if away > timeout / 2 { away } else { Duration::ZERO };
        self.looked = Some(now);
        for (seen, loops) in self.workers.iter_mut().zip(loops) {
            if loops == seen.loops {
                seen.moved += away;
            } else {
                *seen = Seen { loops, moved: now };
            }
        }
        let still = |seen: &Seen| now.saturating_duration_since(seen.moved);
        let longest = self.workers.iter().map(still).max().unwrap_or_default();
        self.recovering = match self.recovering {
            _ if longest >= timeout => Some(Recovery::Hangs),
            None => None,
            Some(_) if longest >= timeout / 2 => Some(Recovery::Hangs),
            Some(Recovery::Hangs) => Some(Recovery::Since(now)),
            Some(Recovery::Since(since)) if now.duration_since(since) >= timeout => None,
            recovering => recovering,
        };
        let which = |wanted: &dyn Fn(Duration) -> bool| -> Vec<usize> {
            let all = self.workers.iter().enumerate();
            all.filter(|(_, seen)| wanted(still(seen))).map(|(index, _)| index).collect()
        };
        Look {
            served: self.recovering.is_none().then_some(longest),
            ask: which(&|still| still >= timeout / ASKED_AFTER),
            hanging: which(&|still| still >= timeout)
                .into_iter()
                .map(|index| (index, still(&self.workers[index])))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);
    const STEP: Duration = Duration::from_millis(200);

    struct Stage {
        rounds: Rounds,
        now: Instant,
        loops: [u64; 2],
    }

    impl Stage {
        fn new() -> Self {
            let now = Instant::now();
            Self { rounds: Rounds::new(2, now), now, loops: [1, 1] }
        }

        /// Steps so often, in which these workers go round.
        fn go(&mut self, steps: u32, moving: &[usize]) -> Look {
            let mut look = None;
            for _ in 0..steps {
                self.now += STEP;
                for worker in moving {
                    self.loops[*worker] += 1;
                }
                look = Some(self.rounds.look(self.now, TIMEOUT, self.loops));
            }
            look.expect("a step at least")
        }
    }

    #[test]
    fn one_that_hangs_ends_the_service_and_is_named() {
        let mut stage = Stage::new();
        assert_eq!(
            stage.go(10, &[0, 1]),
            Look { served: Some(Duration::ZERO), ask: vec![], hanging: BTreeMap::new() }
        );
        let look = stage.go(3, &[0]);
        assert_eq!((look.served, look.ask), (Some(3 * STEP), vec![1]), "it may only be idle");
        assert_eq!(stage.go(6, &[0]).served, Some(9 * STEP), "its age is the heartbeat's");
        let look = stage.go(1, &[0]);
        assert_eq!((look.served, look.hanging), (None, BTreeMap::from([(1, TIMEOUT)])));
    }

    #[test]
    fn service_begins_again_when_all_have_gone_round_for_a_while() {
        let mut stage = Stage::new();
        stage.go(1, &[0, 1]);
        assert!(stage.go(10, &[0]).served.is_none());
        let look = stage.go(1, &[0, 1]);
        assert!(look.served.is_none() && look.hanging.is_empty(), "{look:?}");
        assert!(stage.go(9, &[0, 1]).served.is_none(), "not before the timeout is over again");
        assert!(stage.go(1, &[0, 1]).served.is_some());
        // One that limps does not bring it back.
        assert!(stage.go(10, &[0]).served.is_none());
        for _ in 0..10 {
            assert!(stage.go(1, &[0, 1]).served.is_none());
            assert!(stage.go(5, &[0]).served.is_none());
        }
    }

    #[test]
    fn time_in_which_nobody_looked_is_nobodys_fault() {
        let mut stage = Stage::new();
        stage.go(5, &[0, 1]);
        stage.now += Duration::from_mins(1);
        let look = stage.go(1, &[]);
        assert!(look.served.is_some() && look.hanging.is_empty(), "{look:?}");
        assert!(stage.go(10, &[0]).served.is_none(), "one that hangs is found all the same");
    }
}
