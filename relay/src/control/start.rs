//! The start of a relay, on a separate thread: it waits for the cluster, and a stop may be ordered meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};

use crate::config::Config;
use crate::gateway::Gateway;
use crate::kafka::{Retention, TopicsThere, check_properties, check_rights, ensure_topics};
use crate::registry::{RegistryLink, RegistryParts};
use crate::stop::StopTime;
use crate::worker::Shared;

use super::faults::Faults;
use super::listeners::{self, Place};
use super::signals::Signals;
use super::threads::{Threads, client_of_kafka};
use super::{RunError, worker_count};

/// What a relay is started from.
pub(super) struct Starter {
    pub(super) config: Config,
    pub(super) gateway: Option<Gateway>,
    pub(super) place: Place,
    pub(super) shared: Shared,
    pub(super) faults: Faults,
}

/// A relay that serves.
pub(super) struct Started {
    pub(super) gateway: Option<Gateway>,
    pub(super) threads: Threads,
    pub(super) registry: RegistryLink,
}

/// Decides which comes first: a stop during the start, or the first client.
#[derive(Clone, Debug, Default)]
struct Gate(Arc<AtomicBool>);

impl Gate {
    /// True for the first caller only.
    fn pass(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }
}

impl Starter {
    /// Starts everything. A stop before the first client can be accepted takes effect at once. After that,
    /// the relay first finishes its start within the time of the stop, and then stops as usual.
    pub(super) async fn start(self, signals: &mut Signals) -> Result<Started, RunError> {
        let stop_time = self.shared.stop_time.clone();
        let gate = Gate::default();
        let asked = gate.clone();
        let mut task = tokio::task::spawn_blocking(move || self.run(&gate));
        tokio::select! {
            started = &mut task => return joined(started),
            signal = signals.stop() => {
                tracing::info!(signal, "told to stop while starting");
                stop_time.begin();
            }
        }
        if asked.pass() {
            return Err(RunError::StoppedAtStart);
        }
        within(&stop_time, "the start", task).await
    }

    fn run(self, gate: &Gate) -> Result<Started, RunError> {
        let Self { config, mut gateway, place, shared, faults } = self;
        let runtime = tokio::runtime::Handle::current();
        // Before any query: a property that librdkafka rejects would look like a missing right.
        check_properties(&config)?;
        let there = check_rights(&config)?;
        let topics = runtime.block_on(ensure_topics(&config))?;
        topics.differences.iter().for_each(|difference| tracing::warn!("{difference}"));
        if there == TopicsThere::Unknown {
            check_rights(&config)?;
        }
        let retention = runtime.block_on(Retention::ask(&config.kafka));
        // Before clients are accepted: only the registry has all servers.
        let (of_registry, stop_time) = (faults.clone(), shared.stop_time.clone());
        let parts = RegistryParts {
            incarnation: shared.incarnation,
            associations: shared.associations.clone(),
            leases: shared.leases.clone(),
            retention,
            letter_batch_bytes: topics.batch_limits.kept,
            stop_time: shared.stop_time.clone(),
        };
        let registry = client_of_kafka(|| {
            RegistryLink::start(&config, parts, move |run| {
                let failed = |reason| RunError::Producer(format!("registry: {reason}"));
                of_registry.watch(&stop_time, || run().map_err(failed));
            })
        })?;
        if let Some(gateway) = &mut gateway {
            gateway.start_generation()?;
        }
        let workers = worker_count(&config);
        if !gate.pass() {
            return Err(RunError::StoppedAtStart);
        }
        let listeners = listeners::open(&config, &place, workers)?;
        let known = (registry.observer(), retention, topics);
        let threads = Threads::start(&config, shared, gateway.as_ref(), listeners, known, &faults)?;
        Ok(Started { gateway, threads, registry })
    }
}

/// Waits for the end of a task within the time of the stop.
async fn within<T>(
    stop_time: &StopTime,
    waiting: &str,
    task: JoinHandle<Result<T, RunError>>,
) -> Result<T, RunError> {
    let left: Duration = stop_time.left();
    match tokio::time::timeout(left, task).await {
        Ok(ended) => joined(ended),
        Err(_) => Err(RunError::StopTimeOver {
            timeout: stop_time.timeout(),
            waiting: waiting.to_owned(),
            unacknowledged: 0,
        }),
    }
}

fn joined<T>(ended: Result<Result<T, RunError>, JoinError>) -> Result<T, RunError> {
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
