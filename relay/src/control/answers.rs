//! Whether what is diverted is answered, judged by what the gateway has counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millrace_common::abi::{Offers, Path};

/// So many packets in a row must have been lost between the programs and the relay's device.
const LOST: u64 = 3;
/// And for so long nothing may have arrived there.
const LOST_FOR: Duration = Duration::from_secs(1);
/// So many SYNs must have come again although the relay was offered them before.
const REPEATED: u64 = 3;
/// So long must it be since the first of them came, in which no handshake was completed.
const SILENT_FOR: Duration = Duration::from_millis(1500);
/// After so long it is tried again,
const TRIED_EVERY: Duration = Duration::from_secs(5);
/// and for so long: a client whose SYN comes in between sends it again after a second, and reaches its
/// server then.
const TRIED_FOR: Duration = Duration::from_millis(500);

/// What the programs and the kernel have counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    /// Packets that were aimed at the relay.
    pub(super) diverted: u64,
    /// Packets that its device has received; read later.
    pub(super) received: u64,
    /// What became of the SYNs that were diverted.
    pub(super) paths: Vec<(Path, Offers)>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// Nothing that is diverted arrives: nothing new should be.
    pub(super) cut: bool,
    /// Nothing that comes in there is answered. Whether it is tried now.
    pub(super) silent: BTreeMap<Path, bool>,
    /// What has just changed.
    pub(super) changes: Vec<Change>,
}

/// What has just changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// What is diverted does not arrive: so many packets.
    Cut(u64),
    /// It arrives again.
    Joined,
    /// No handshake is completed: so many SYNs came again.
    Silent(Path, u64),
    /// One was.
    Answered(Path),
}

/// Judges.
#[derive(Debug, Default)]
pub(super) struct Answers {
    before: Option<Counted>,
    link: Way,
    paths: BTreeMap<Path, Way>,
}

/// A way on which something may get lost.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    /// Losses since the last success.
    losses: u64,
    /// When the first of them was seen.
    since: Option<Instant>,
    /// Others than those of one source.
    sources: u64,
    /// Closed then.
    closed: Option<Instant>,
}

impl Way {
    fn lose(&mut self, now: Instant, losses: u64) {
        self.losses += losses;
        if losses > 0 {
            self.since.get_or_insert(now);
        }
    }

    /// Something has arrived; whether it was closed.
    fn succeed(&mut self) -> bool {
        std::mem::take(self).closed.is_some()
    }

    /// Closes if losses enough were seen for long enough; whether it has just done so.
    fn close(&mut self, now: Instant, least: u64, least_time: Duration) -> bool {
        let long = self.since.is_some_and(|since| now.duration_since(since) >= least_time);
        let closes = self.closed.is_none() && self.losses >= least && long;
        if closes {
            self.closed = Some(now);
        }
        closes
    }

    /// Whether it is closed, and tried all the same.
    fn trial(&self, now: Instant) -> Option<bool> {
        let closed = now.duration_since(self.closed?).as_millis();
        let round = closed % (TRIED_EVERY + TRIED_FOR).as_millis();
        Some(round >= TRIED_EVERY.as_millis())
    }
}

impl Answers {
    /// Whether nothing was lost since something arrived.
    pub(super) fn are_calm(&self) -> bool {
        self.paths.values().chain([&self.link]).all(|way| way.since.is_none())
    }

    /// Judges what was counted since the last look.
    pub(super) fn look(&mut self, now: Instant, counted: Counted) -> Decision {
        let mut decision = Decision::default();
        let Some(before) = self.before.take() else {
            self.before = Some(counted);
            return decision;
        };
        if counted.received > before.received {
            if self.link.succeed() {
                decision.changes.push(Change::Joined);
            }
        } else {
            self.link.lose(now, counted.diverted.saturating_sub(before.diverted));
            if self.link.close(now, LOST, LOST_FOR) {
                decision.changes.push(Change::Cut(self.link.losses));
            }
        }
        decision.cut = self.link.trial(now) == Some(false);

        // A device that is gone has taken its paths with it.
        self.paths.retain(|path, _| counted.paths.iter().any(|(other, _)| other == path));
        for (path, offers) in &counted.paths {
            let Some((_, before)) = before.paths.iter().find(|(other, _)| other == path) else {
                continue;
            };
            let way = self.paths.entry(*path).or_default();
            if offers.answered > before.answered {
                if way.succeed() {
                    decision.changes.push(Change::Answered(*path));
                }
                continue;
            }
            way.lose(now, offers.repeated.saturating_sub(before.repeated));
            way.sources += offers.sources.saturating_sub(before.sources);
            if way.sources > 0 && way.close(now, REPEATED, SILENT_FOR) {
                decision.changes.push(Change::Silent(*path, way.losses));
            }
            if let Some(tried) = way.trial(now) {
                decision.silent.insert(*path, tried);
            }
        }
        self.before = Some(counted);
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(200);
    const PATH: Path = Path { ifindex: 7, family: 4 };

    struct Stage {
        answers: Answers,
        now: Instant,
        counted: Counted,
    }

    impl Stage {
        fn new() -> Self {
            let counted = Counted { paths: vec![(PATH, Offers::default())], ..Counted::default() };
            let mut stage = Self { answers: Answers::default(), now: Instant::now(), counted };
            stage.go(1, |_| {});
            stage
        }

        /// Steps so often, and counts something in each step.
        fn go(&mut self, steps: u32, mut count: impl FnMut(&mut Counted)) -> Decision {
            let (mut last, mut changes) = (Decision::default(), Vec::new());
            for _ in 0..steps {
                self.now += STEP;
                count(&mut self.counted);
                last = self.answers.look(self.now, self.counted.clone());
                changes.append(&mut last.changes);
            }
            Decision { changes, ..last }
        }
    }

    /// Before, it was never calm again.
    #[test]
    fn a_path_that_is_gone_leaves_nothing() {
        let mut stage = Stage::new();
        stage.go(1, repeated);
        assert!(!stage.answers.are_calm());
        stage.go(1, |counted| counted.paths.clear());
        assert!(stage.answers.are_calm());
    }

    fn repeated(counted: &mut Counted) {
        counted.paths[0].1.repeated += 1;
        counted.paths[0].1.sources += 1;
    }

    fn answered(counted: &mut Counted) {
        counted.paths[0].1.answered += 1;
    }

    #[test]
    fn packets_of_which_none_arrives_cut_the_link_until_one_does() {
        let mut stage = Stage::new();
        let lost = |counted: &mut Counted| counted.diverted += 1;
        stage.go(2, lost);
        let decision = stage.go(8, |_| {});
        assert!(!decision.cut, "two are too few");
        let decision = stage.go(1, lost);
        assert_eq!((decision.cut, decision.changes), (true, vec![Change::Cut(3)]));
        // It is tried from time to time.
        let tries = (0..100).filter(|_| !stage.go(1, |_| {}).cut).count();
        assert!((6..=15).contains(&tries), "{tries} of 100");
        let decision = stage.go(1, |counted| {
            counted.diverted += 1;
            counted.received += 1;
        });
        assert_eq!((decision.cut, decision.changes), (false, vec![Change::Joined]));
    }

    #[test]
    fn losses_among_what_arrives_cut_nothing() {
        let mut stage = Stage::new();
        let decision = stage.go(100, |counted| {
            // As in a flood, of which a veth takes a part only.
            counted.diverted += 100_000;
            counted.received += 1;
        });
        assert_eq!(decision, Decision::default());
    }

    #[test]
    fn a_way_back_on_which_nothing_is_answered_is_closed_and_tried_again() {
        let mut stage = Stage::new();
        let decision = stage.go(8, repeated);
        assert!(decision.silent.is_empty() && decision.changes.is_empty(), "{decision:?}");
        let decision = stage.go(1, repeated);
        assert_eq!(decision.silent, BTreeMap::from([(PATH, false)]));
        assert_eq!(decision.changes, [Change::Silent(PATH, 9)]);
        assert!(!stage.go(24, |_| {}).silent[&PATH]);
        assert!(stage.go(1, |_| {}).silent[&PATH], "it is tried");
        assert!(stage.go(2, repeated).silent[&PATH], "for as long as a SYN is not sent again");
        assert!(!stage.go(1, |_| {}).silent[&PATH]);
        let decision = stage.go(1, answered);
        assert_eq!(decision.changes, [Change::Answered(PATH)]);
        assert!(decision.silent.is_empty());
    }

    #[test]
    fn a_flood_with_one_honest_client_closes_nothing() {
        let mut stage = Stage::new();
        for _ in 0..20 {
            let decision = stage.go(7, |counted| (0..1000).for_each(|_| repeated(counted)));
            assert_eq!(decision, Decision::default());
            assert_eq!(stage.go(1, answered), Decision::default());
        }
    }

    #[test]
    fn one_client_alone_closes_nothing() {
        let mut stage = Stage::new();
        let decision = stage.go(100, |counted| counted.paths[0].1.repeated += 1);
        assert_eq!(decision, Decision::default());
    }
}
