//! How long a relay that stops goes on waiting for Kafka.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::config::RelaySection;

/// For what is still to be written when the time is over: a cluster that answers needs no more.
const LEAST: Duration = Duration::from_secs(3);

/// The time of a stop (`relay.stop_timeout_ms`), which all who wait for Kafka share: a cluster that did
/// not answer the first of them is not waited for again by the next.
#[derive(Clone, Debug)]
pub struct StopTime {
    timeout: Duration,
    until: Arc<OnceLock<Instant>>,
}

impl StopTime {
    /// The time of a stop that has not begun.
    pub fn new(relay: &RelaySection) -> Self {
        let timeout = Duration::from_millis(u64::from(relay.stop_timeout_ms));
        Self { timeout, until: Arc::default() }
    }

    /// Begins, once.
    pub fn begin(&self) {
        self.until.get_or_init(|| Instant::now() + self.timeout);
    }

    /// What is left; the whole of it before it begins, and never less than some seconds.
    pub fn left(&self) -> Duration {
        let until = self.until.get().map(|until| until.saturating_duration_since(Instant::now()));
        until.unwrap_or(self.timeout).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_shared_and_a_little_is_always_left() {
        let short = RelaySection { stop_timeout_ms: 1, ..RelaySection::default() };
        let (short, long) = (StopTime::new(&short), StopTime::new(&RelaySection::default()));
        assert_eq!(short.left(), LEAST);
        assert_eq!(long.left(), Duration::from_secs(30));
        let shared = long.clone();
        shared.begin();
        let left = long.left();
        assert!(left < Duration::from_secs(30) && left > LEAST, "{left:?}");
    }
}
