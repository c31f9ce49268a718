//! A Kafka that takes records and acknowledges none: a broker whose disk is full, or that stands still.
//! librdkafka tries on without a word, and the clients wait.

use std::time::{Duration, Instant};

/// After so long it is said,
pub(super) const FIRST: Duration = Duration::from_secs(10);
/// then each time twice as late, and at last as often.
const MOST: Duration = Duration::from_mins(1);

/// What is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Nothing was acknowledged for so long.
    Nothing(Duration),
    /// After so long of that, something was.
    Again(Duration),
}

/// Since when records wait and nothing is heard of any.
#[derive(Debug, Default)]
pub(super) struct Silence {
    since: Option<Instant>,
    said: Option<Duration>,
}

impl Silence {
    /// How long it lasts.
    pub(super) fn duration(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Whether records wait, and whether Kafka has said something about one since the last look.
    pub(super) fn look(&mut self, waits: bool, heard: bool, now: Instant) -> Option<Word> {
        let lasted = self.duration(now);
        if heard || !waits {
            self.since = waits.then_some(now);
            return self.said.take().filter(|_| heard).map(|_| Word::Again(lasted));
        }
        self.since.get_or_insert(now);
        let next = self.said.map_or(FIRST, |said| said + said.min(MOST));
        if lasted < next {
            return None;
        }
        self.said = Some(lasted);
        Some(Word::Nothing(lasted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said in so many seconds of looks, and when.
    fn listen(silence: &mut Silence, from: Instant, seconds: std::ops::Range<u64>) -> Vec<u64> {
        let look = |second| {
            let word = silence.look(true, false, from + Duration::from_secs(second))?;
            let Word::Nothing(lasted) = word else { panic!("{word:?}") };
            Some(lasted.as_secs())
        };
        seconds.filter_map(look).collect()
    }

    #[test]
    fn it_is_said_again_with_the_time_that_it_lasts_and_so_is_its_end() {
        let (mut silence, now) = (Silence::default(), Instant::now());
        let at = |second| now + Duration::from_secs(second);
        assert_eq!(listen(&mut silence, now, 0..250), [10, 20, 40, 80, 140, 200]);
        assert_eq!(silence.duration(at(250)).as_secs(), 250);
        assert_eq!(silence.look(true, true, at(250)), Some(Word::Again(Duration::from_secs(250))));
        assert_eq!(listen(&mut silence, at(250), 0..15), [10], "it begins anew");
        assert_eq!(silence.look(false, true, at(270)), Some(Word::Again(Duration::from_secs(20))));
        assert_eq!(silence.duration(at(300)), Duration::ZERO);
    }

    #[test]
    fn who_has_nothing_to_acknowledge_or_does_so_is_not_silent() {
        let (mut silence, now) = (Silence::default(), Instant::now());
        for second in 0..100 {
            let now = now + Duration::from_secs(second);
            assert_eq!(
                silence.look(second % 9 != 0, false, now),
                None,
                "it waits for some seconds"
            );
            assert_eq!(silence.look(true, second % 9 == 5, now), None);
        }
        // What is given up at a stop is no answer.
        listen(&mut silence, now, 200..230);
        assert_eq!(silence.look(false, false, now + Duration::from_mins(4)), None);
        assert_eq!(silence.look(true, true, now + Duration::from_secs(250)), None);
    }
}
