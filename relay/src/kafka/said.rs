//! What librdkafka says over and over is passed on once: each of its clients says that all brokers are
//! down, and goes on saying it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After so long it is news again.
const AGAIN: Duration = Duration::from_mins(1);

/// The last complaint, whichever client it came from.
#[derive(Debug)]
pub(super) struct Said(Mutex<Option<(String, Instant)>>);

impl Said {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether something else was said last, or this a while ago.
    pub(super) fn is_news(&self, text: &str, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let repeated = last
            .as_ref()
            .is_some_and(|(said, at)| said == text && now.saturating_duration_since(*at) < AGAIN);
        if !repeated {
            *last = Some((text.to_owned(), now));
        }
        !repeated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_said_once_until_something_else_is_or_time_has_passed() {
        let (said, now) = (Said::new(), Instant::now());
        let heard = ["down", "down", "refused", "down", "down"].map(|text| said.is_news(text, now));
        assert_eq!(heard, [true, false, true, true, false]);
        assert!(!said.is_news("down", now + AGAIN / 2));
        assert!(said.is_news("down", now + AGAIN));
    }
}
