//! What the service manager is told (`sd_notify(3)`): that the relay serves, that it goes on, that it stops.
//! Without one, that is nobody.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// So often in the watchdog's time it is told that the relay goes on.
const SIGNS_PER_TIMEOUT: u32 = 4;

/// The service manager, if there is one.
#[derive(Debug)]
pub(super) struct Supervisor {
    /// After this long without a sign the service manager takes the relay for dead.
    watchdog: Option<Duration>,
    signed: Option<Instant>,
    status: String,
    failed: bool,
}

impl Supervisor {
    /// The one that has started this process.
    pub(super) fn find() -> Self {
        let mut supervisor = Self::with(sd_notify::watchdog_enabled());
        supervisor.say("starting: waits for Kafka");
        supervisor
    }

    const fn with(watchdog: Option<Duration>) -> Self {
        Self { watchdog, signed: None, status: String::new(), failed: false }
    }

    /// Clients are served.
    pub(super) fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// What stands in `systemctl status`. The same text again is not sent.
    pub(super) fn say(&mut self, status: &str) {
        if self.status != status {
            status.clone_into(&mut self.status);
            self.tell(&[NotifyState::Status(status)]);
        }
    }

    /// Called at each look at the workers; there is a sign only while all of them go round their loops.
    pub(super) fn looked(&mut self, now: Instant, all_go_round: bool) {
        if all_go_round && self.sign_is_due(now) {
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    fn sign_is_due(&mut self, now: Instant) -> bool {
        let Some(timeout) = self.watchdog else { return false };
        let due = self.signed.is_none_or(|last| now - last >= timeout / SIGNS_PER_TIMEOUT);
        if due {
            self.signed = Some(now);
        }
        due
    }

    /// The relay stops, which takes at most this long. Nobody looks at the workers meanwhile.
    pub(super) fn stopping(&mut self, within: Duration) {
        self.tell(&[NotifyState::Stopping]);
        if let Some(timeout) = self.watchdog {
            let until = u32::try_from((within + timeout).as_micros()).unwrap_or(u32::MAX);
            self.tell(&[NotifyState::WatchdogUsec(until), NotifyState::Watchdog]);
        }
    }

    fn tell(&mut self, what: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(what) {
            if !self.failed {
                tracing::warn!(%error, "cannot tell the service manager (NOTIFY_SOCKET) how the relay is");
            }
            self.failed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_come_several_times_in_the_watchdogs_time_and_not_at_every_look() {
        let mut supervisor = Supervisor::with(Some(Duration::from_secs(20)));
        let begin = Instant::now();
        let looks = (0..100).map(|look| begin + look * Duration::from_millis(200));
        assert_eq!(looks.filter(|now| supervisor.sign_is_due(*now)).count(), 4);
        assert!(!Supervisor::with(None).sign_is_due(begin), "nobody watches");
    }
}
