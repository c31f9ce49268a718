//! What librdkafka says over and over is passed on once: each of its clients says that all brokers are
//! down, and goes on saying it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After so long it is news again.
const AGAIN: Duration = Duration::from_mins(1);

/// So many complaints are remembered; one more is news, and takes the place of the oldest.
const MOST: usize = 64;

/// The last complaints, whichever clients they came from, and when each was passed on.
#[derive(Debug)]
pub(crate) struct Said(Mutex<BTreeMap<String, Instant>>);

impl Said {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Whether this was not said, or a while ago.
    pub(crate) fn is_news(&self, text: &str, now: Instant) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(text).is_some_and(|at| now.saturating_duration_since(*at) < AGAIN) {
            return false;
        }
        if said.len() >= MOST
            && let Some(oldest) =
                said.iter().min_by_key(|(_, at)| **at).map(|(text, _)| text.clone())
        {
            said.remove(&oldest);
        }
        said.insert(text.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_complaint_is_said_once_until_time_has_passed() {
        let (said, now) = (Said::new(), Instant::now());
        let heard =
            ["down", "down", "refused", "down", "refused"].map(|text| said.is_news(text, now));
        assert_eq!(heard, [true, false, true, false, false]);
        assert!(!said.is_news("down", now + AGAIN / 2));
        assert!(said.is_news("down", now + AGAIN));
    }

    #[test]
    fn no_more_is_remembered_than_may_be() {
        let (said, now) = (Said::new(), Instant::now());
        for number in 0..MOST as u64 {
            assert!(said.is_news(&number.to_string(), now + Duration::from_millis(number)));
        }
        let now = now + Duration::from_secs(1);
        assert!(said.is_news("one more", now));
        assert_eq!(said.0.lock().expect("no panic").len(), MOST);
        assert!(said.is_news("0", now), "the oldest was forgotten");
        assert!(!said.is_news("one more", now));
    }
}
