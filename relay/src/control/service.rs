//! The relay's word to the gateway: whether new connections are to come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
/// Of a relay without a gateway, which is watched all the same.
const TIMEOUT_WITHOUT_GATEWAY: Duration = Duration::from_secs(2);

/// Looks at the workers, and tells the gateway.
pub(super) struct Service {
    heartbeat: Option<Heartbeat>,
    timeout: Duration,
    next: Instant,
    workers: Vec<(Arc<WorkerStats>, Wake)>,
    rounds: Rounds,
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
            standing: threads.standing(),
        })
    }

    /// Waits until it is time to look.
    pub(super) async fn next_look(&self) {
        tokio::time::sleep_until(self.next.into()).await;
    }

    /// Looks at the workers, wakes those that seem idle, and tells the gateway whether all go round.
    pub(super) fn look(&mut self) -> Result<(), RunError> {
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
        if let Some(heartbeat) = &mut self.heartbeat {
            match served {
                Some(ago) => heartbeat.beat_of(ago)?,
                None => heartbeat.stop()?,
            }
        }
        Ok(())
    }

    /// New connections take the ordinary path from now on.
    pub(super) fn end(&mut self) -> Result<(), RunError> {
        Ok(self.heartbeat.as_mut().map_or(Ok(()), Heartbeat::stop)?)
    }

    fn tell(&self, hanging: &BTreeMap<usize, Duration>) {
        let before = self.standing.replace(hanging.clone());
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
