//! The broker's time. A relay's own clock may be wrong by hours, and nothing that matters goes by it.
//!
//! Topics that a relay makes have the time of the broker (`message.timestamp.type=LogAppendTime`), which
//! its acknowledgement tells: so the relay learns how far its own clock is from it, each time that it
//! writes to the registry. Records for topics with `CreateTime` get the time of the broker too, if that
//! is known; and none at all where the broker refuses it, which no broker does
//! ([`NO_TIME`], `message.timestamp.after.max.ms`).

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Kafka's word for a record without a time; retention goes by its segment's file then.
pub(crate) const NO_TIME: i64 = -1;
/// Clocks that differ by less are taken for one.
const TOLERANCE_MS: i64 = 1000;
/// From here on it is told.
const TOLD_MS: u64 = 5000;
/// And told again.
const AGAIN: Duration = Duration::from_hours(1);

/// What is known of the broker's clock.
#[derive(Debug)]
pub struct BrokersClock {
    since: Instant,
    /// The broker's less ours, in milliseconds.
    difference: AtomicI64,
    /// When `since` was by the broker; `i64::MIN` if nobody has told.
    begun: AtomicI64,
    told: Mutex<Option<(i64, Instant)>>,
}

static CLOCK: LazyLock<BrokersClock> = LazyLock::new(BrokersClock::new);

/// That of the relay's brokers. Its beginning is the first call.
pub fn brokers_clock() -> &'static BrokersClock {
    &CLOCK
}

/// Unix milliseconds by the host's clock.
pub(crate) fn own_unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or_default()
}

impl BrokersClock {
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            difference: AtomicI64::new(0),
            begun: AtomicI64::new(i64::MIN),
            told: Mutex::default(),
        }
    }

    /// A record that was handed to librdkafka at `sent` by the host's clock, and reported at `reported`,
    /// was written at `appended` by the broker's.
    pub(crate) fn learn(&self, sent: i64, appended: i64, reported: i64, now: Instant) {
        // In between is where it should be.
        let difference =
            if appended < sent { appended - sent } else { (appended - reported).max(0) };
        let difference = if difference.abs() < TOLERANCE_MS { 0 } else { difference };
        self.difference.store(difference, Ordering::Relaxed);
        let run = now.saturating_duration_since(self.since).as_millis();
        let begun = appended - i64::try_from(run).unwrap_or_default();
        let _ = self.begun.compare_exchange(i64::MIN, begun, Ordering::Relaxed, Ordering::Relaxed);
        if self.is_news(difference, now) {
            let seconds = difference.unsigned_abs() / 1000;
            match difference.signum() {
                -1 => tracing::warn!(seconds, "this host's clock is ahead of the broker's: set it"),
                1 => tracing::warn!(seconds, "this host's clock is behind the broker's: set it"),
                _ => tracing::info!("this host's clock agrees with the broker's again"),
            }
        }
    }

    fn is_news(&self, difference: i64, now: Instant) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, at) = told.unwrap_or((0, now));
        let soon = now.saturating_duration_since(at) < AGAIN || difference == 0;
        if before.abs_diff(difference) < TOLD_MS && soon {
            return false;
        }
        *told = Some((difference, now));
        true
    }

    /// How far the host's clock is behind the broker's, in milliseconds; negative if it is ahead.
    pub fn difference_ms(&self) -> i64 {
        self.difference.load(Ordering::Relaxed)
    }

    /// When this process began by the broker's clock, in Unix milliseconds; none if that is not known.
    pub fn begun_unix_ms(&self) -> Option<i64> {
        Some(self.begun.load(Ordering::Relaxed)).filter(|begun| *begun != i64::MIN)
    }

    /// A time of the host's clock by the broker's.
    pub(crate) fn correct(&self, unix_ms: i64) -> i64 {
        unix_ms.saturating_add(self.difference_ms())
    }

    /// Now by the broker's clock, or by the host's if it is not known.
    pub(crate) fn unix_ms(&self) -> i64 {
        self.correct(own_unix_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn the_difference_is_learnt_and_not_taken_from_how_long_an_answer_takes() {
        let (clock, now) = (BrokersClock::new(), Instant::now());
        assert_eq!((clock.correct(50), clock.begun_unix_ms()), (50, None));
        clock.learn(1000, 5000, 20_000, now);
        assert_eq!(clock.difference_ms(), 0, "it took 19 s");
        clock.learn(2 * HOUR, 5000, 2 * HOUR + 10, now);
        assert_eq!(clock.difference_ms(), 5000 - 2 * HOUR, "ahead");
        assert_eq!(clock.correct(2 * HOUR), 5000);
        clock.learn(5000, 2 * HOUR, 5010, now);
        assert_eq!(clock.difference_ms(), 2 * HOUR - 5010, "behind");
        clock.learn(5000, 5900, 5010, now);
        assert_eq!(clock.difference_ms(), 0, "close enough");
    }

    #[test]
    fn the_beginning_stays_where_it_was_when_the_host_sets_its_clock() {
        let (clock, now) = (BrokersClock::new(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        clock.learn(100_000, 100_000, 100_000, at(10));
        let begun = clock.begun_unix_ms().expect("known");
        assert!((90_000..90_100).contains(&begun), "{begun}");
        clock.learn(-HOUR, 110_000, -HOUR, at(20));
        assert_eq!(clock.begun_unix_ms(), Some(begun));
        assert_eq!(clock.correct(-HOUR), 110_000);
    }

    #[test]
    fn it_is_told_when_it_changes_and_once_in_a_while() {
        let (clock, now) = (BrokersClock::new(), Instant::now());
        assert!(!clock.is_news(0, now));
        assert!(clock.is_news(HOUR, now));
        assert!(!clock.is_news(HOUR + 100, now + AGAIN / 2));
        assert!(clock.is_news(HOUR + 100, now + AGAIN));
        assert!(clock.is_news(0, now + AGAIN));
        assert!(!clock.is_news(0, now + AGAIN * 3));
    }
}
