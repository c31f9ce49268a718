//! The relay's word to the gateway: whether new connections are to come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::gateway::{Gateway, Heartbeat};
use crate::ring::Wake;
use crate::worker::WorkerStats;

use super::RunError;
use super::rounds::{Look, Rounds};
use super::standing::Standing;
use super::threads::Threads;

/// Looks in a heartbeat timeout: one may be late, or two, and nothing happens.
const LOOKS_PER_TIMEOUT: u32 = 10;
/// And so often at least: the timeout may become shorter at any time.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// So long after an accept that failed for want of files or memory no connection is wanted.
const STARVED_FOR: Duration = Duration::from_secs(1);
/// Of a relay without a gateway, which is watched all the same.
const TIMEOUT_WITHOUT_GATEWAY: Duration = Duration::from_secs(2);

/// Looks at the workers, and tells the gateway.
pub(super) struct Service {
    heartbeat: Option<Heartbeat>,
    timeout: Duration,
    next: Instant,
    workers: Vec<(Arc<WorkerStats>, Wake)>,
    rounds: Rounds,
    full: bool,
    hangs: bool,
    /// Accepts that failed for want of something, and when the last one was seen.
    starved: (u64, Option<Instant>),
    standing: Standing,
}

impl Service {
    /// That of a relay whose workers run.
    pub(super) fn of(gateway: Option<&Gateway>, threads: &Threads) -> Result<Self, RunError> {
        let heartbeat = gateway.map(Gateway::heartbeat).transpose()?;
        let workers: Vec<_> = threads.watched().collect();
        let now = Instant::now();
        Ok(Self {
            timeout: heartbeat.as_ref().map_or(Ok(TIMEOUT_WITHOUT_GATEWAY), Heartbeat::timeout)?,
            heartbeat,
            next: now,
            rounds: Rounds::new(workers.len(), now),
            workers,
            full: false,
            hangs: false,
            starved: (0, None),
            standing: threads.standing(),
        })
    }

    /// Waits until it is time to look, or a worker says that it can take no more connections, or can
    /// again.
    pub(super) async fn next_look(&self, intake: &Notify) {
        tokio::select! {
            () = tokio::time::sleep_until(self.next.into()) => {}
            () = intake.notified() => {}
        }
    }

    /// Looks at the workers, wakes those that seem idle, and tells the gateway whether all go round. Returns
    /// that.
    pub(super) fn look(&mut self) -> Result<bool, RunError> {
        let now = Instant::now();
        if let Some(heartbeat) = &self.heartbeat {
            let timeout = heartbeat.timeout()?;
            if timeout != self.timeout {
                tracing::info!(from = ?self.timeout, to = ?timeout, "the heartbeat's timeout was changed");
                self.timeout = timeout;
            }
        }
        self.next = now + (self.timeout / LOOKS_PER_TIMEOUT).min(LONGEST_PAUSE);
        let loops = self.workers.iter().map(|(stats, _)| stats.loops.get());
        let Look { served, ask, hanging } = self.rounds.look(now, self.timeout, loops);
        for index in ask {
            self.workers[index].1.wake();
        }
        self.tell(&hanging);
        self.hangs = !hanging.is_empty();
        let full = self.is_full(now);
        if let Some(heartbeat) = &mut self.heartbeat {
            match served {
                Some(ago) => heartbeat.beat_of(ago, self.standing.intake(full))?,
                None => heartbeat.stop()?,
            }
        }
        Ok(!self.hangs)
    }

    /// What the service does, for people.
    pub(super) const fn state(&self) -> &'static str {
        match (self.hangs, self.full) {
            (true, _) => "a worker hangs: see `relay status`",
            (false, true) => "serving; takes no new connections: see `relay status`",
            (false, false) => "serving",
        }
    }

    /// How long a worker may not go round before new connections are kept away.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// New connections take the ordinary path from now on.
    pub(super) fn end(&mut self) -> Result<(), RunError> {
        Ok(self.heartbeat.as_mut().map_or(Ok(()), Heartbeat::stop)?)
    }

    /// Whether a worker can take no more connections. One is enough: the kernel spreads connections
    /// over the workers evenly, so the others are as good as full, and it cannot be told to spare one.
    fn is_full(&mut self, now: Instant) -> bool {
        let full = self.workers.iter().filter(|(stats, _)| stats.full.get() > 0).count();
        let failures: u64 = self.workers.iter().map(|(stats, _)| stats.accept_starved.get()).sum();
        if failures > self.starved.0 {
            self.starved = (failures, Some(now));
        }
        let starved = self.starved.1.is_some_and(|last| now - last < STARVED_FOR);
        let is_full = full > 0 || starved;
        if is_full && !self.full && self.heartbeat.is_some() {
            tracing::warn!(
                workers = full,
                "{}: new connections take the ordinary path until there is room",
                if full > 0 { "a worker has relay.max_connections" } else { "accepts fail" }
            );
        }
        if !is_full && self.full && self.heartbeat.is_some() {
            tracing::info!("there is room again: new connections are diverted");
        }
        self.full = is_full;
        is_full
    }

    fn tell(&self, hanging: &BTreeMap<usize, Duration>) {
        let before = self.standing.set_hanging(hanging.clone());
        let consequence = match self.heartbeat {
            Some(_) => "new connections take the ordinary path until it goes on",
            None => "its clients get no answer until it goes on",
        };
        for (index, since) in hanging.iter().filter(|(index, _)| !before.contains_key(index)) {
            tracing::error!(?since, "thread `worker-{index}` hangs: {consequence}");
        }
        for index in before.keys().filter(|index| !hanging.contains_key(index)) {
            tracing::info!("thread `worker-{index}` goes on");
        }
    }
}
