//! The time that a stop may take, and how its parts share that time.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::config::RelaySection;
use crate::dial::Dial;

/// Upper bound of a share. Whatever follows the messages has shares reserved; a cluster that answers needs
/// no more than this.
const MOST_SHARE: Duration = Duration::from_secs(3);
/// A share is at most the whole time divided by this.
const SHARES: u32 = 5;

/// Parts of a stop. Each has its own deadline, so that a slow part takes no time from those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPart {
    /// What was read goes to Kafka. At the deadline, what Kafka has not acknowledged is given up.
    Messages,
    /// Workers end their connections and hand over what they have. At the deadline they end regardless.
    Connections,
    /// Other threads write what is left: offsets, associations, dead letters.
    Rest,
    /// The registry's last records are written.
    Registry,
}

/// The time of a stop (`relay.stop_timeout_ms`). All parts share it: if the first part has waited in vain
/// for the cluster, the next one does not wait as long again.
#[derive(Clone, Debug)]
pub struct StopTime {
    timeout_ms: Dial,
    until: Arc<OnceLock<Instant>>,
}

impl StopTime {
    /// The time of a stop that has not begun.
    pub fn new(relay: &RelaySection) -> Self {
        Self { timeout_ms: Dial::new(relay.stop_timeout_ms.into()), until: Arc::default() }
    }

    /// Gives a stop that has not begun another time.
    pub fn set(&self, relay: &RelaySection) {
        self.timeout_ms.set(relay.stop_timeout_ms.into());
    }

    /// Begins the stop. Only the first call counts.
    pub fn begin(&self) {
        self.until.get_or_init(|| Instant::now() + self.timeout());
    }

    /// True if the relay is stopping.
    pub fn has_begun(&self) -> bool {
        self.until.get().is_some()
    }

    /// The whole time.
    pub fn timeout(&self) -> Duration {
        self.timeout_ms.milliseconds()
    }

    /// The time that is left; the whole time before the stop begins.
    pub fn left(&self) -> Duration {
        self.until
            .get()
            .map_or_else(|| self.timeout(), |until| until.saturating_duration_since(Instant::now()))
    }

    /// The time that is left until the deadline of a part.
    pub fn left_of(&self, part: StopPart) -> Duration {
        let share = (self.timeout() / SHARES).min(MOST_SHARE);
        let after = match part {
            StopPart::Messages => 2 * share,
            StopPart::Connections => share + share / 2,
            StopPart::Rest => share,
            StopPart::Registry => share / 2,
        };
        self.left().saturating_sub(after)
    }

    /// True if the relay is stopping and the deadline of a part has passed.
    pub fn is_over(&self, part: StopPart) -> bool {
        self.has_begun() && self.left_of(part).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [StopPart; 4] =
        [StopPart::Messages, StopPart::Connections, StopPart::Rest, StopPart::Registry];

    #[test]
    fn the_time_is_shared_and_each_part_has_some() {
        for timeout_ms in [1000, 30_000, 600_000] {
            let relay = RelaySection { stop_timeout_ms: timeout_ms, ..RelaySection::default() };
            let time = StopTime::new(&relay);
            assert_eq!(time.left(), time.timeout());
            assert!(!PARTS.iter().any(|part| time.is_over(*part)), "it has not begun");
            let shared = time.clone();
            shared.begin();
            assert!(time.has_begun());
            let left = PARTS.map(|part| time.left_of(part));
            assert!(left.is_sorted() && left[0] >= time.timeout() / 2, "{left:?}");
            assert!(left[3] < time.left(), "{left:?}");
        }
    }

    #[test]
    fn no_part_goes_beyond_the_whole() {
        let relay = RelaySection { stop_timeout_ms: 0, ..RelaySection::default() };
        let time = StopTime::new(&relay);
        assert!(!time.is_over(StopPart::Messages), "it has not begun");
        time.begin();
        assert!(PARTS.iter().all(|part| time.is_over(*part)));
        assert_eq!(time.left(), Duration::ZERO);
    }
}
