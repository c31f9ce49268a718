//! How often something is tried again that was refused.

use std::time::{Duration, Instant};

/// How long nothing is tried after a refusal; twice as long after each further one.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// And at most.
const MOST_PAUSE: Duration = Duration::from_secs(5);

/// When something that was refused is tried again: later each time, until it succeeds.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    pause: Duration,
    at: Option<Instant>,
}

impl Retry {
    /// Whether it may be tried now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.at.is_none_or(|at| at <= now)
    }

    /// It was refused: how long nothing is tried from now on.
    pub(crate) fn refused(&mut self, now: Instant) -> Duration {
        self.pause = (self.pause * 2).clamp(LEAST_PAUSE, MOST_PAUSE);
        self.at = Some(now + self.pause);
        self.pause
    }

    /// It was refused, perhaps not for the first time; that something else succeeds in between says
    /// nothing. The pauses begin anew when none was needed for as long as the longest.
    pub(crate) fn refused_again(&mut self, now: Instant) -> Duration {
        if self.at.is_some_and(|at| now > at + MOST_PAUSE) {
            self.reset();
        }
        self.refused(now)
    }

    /// Something has succeeded.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_success_ends_them() {
        let (mut retry, now) = (Retry::default(), Instant::now());
        assert!(retry.is_due(now));
        let pauses: Vec<_> = (0..8).map(|_| retry.refused(now).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert!(!retry.is_due(now + MOST_PAUSE / 2) && retry.is_due(now + MOST_PAUSE));
        retry.reset();
        assert!(retry.is_due(now));
    }

    #[test]
    fn a_refusal_after_a_quiet_time_is_the_first_again() {
        let (mut retry, now) = (Retry::default(), Instant::now());
        assert_eq!(retry.refused_again(now), LEAST_PAUSE);
        let soon = now + LEAST_PAUSE + MOST_PAUSE;
        assert_eq!(retry.refused_again(soon), 2 * LEAST_PAUSE);
        let later = soon + 3 * LEAST_PAUSE + MOST_PAUSE;
        assert_eq!(retry.refused_again(later), LEAST_PAUSE);
    }
}
