//! The control plane: starts the relay's threads, keeps its heartbeat, answers who asks, stops it.
//!
//! ```text
//!  main (tokio)   heartbeat · control socket · signals
//!  worker-N       one each: worker::Worker over uring::UringEngine
//!  producer       kafka::Pump
//!  consumer       kafka::Consumer
//!  registry       registry::RegistryLink
//!  associations   route::AssociationLog
//!  mover          connections from servers that drain to others
//!  keeper         kafka::Keeper
//! ```

mod error;
mod ledger;
mod listeners;
mod mover;
mod snapshot;
mod socket;
mod threads;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::gateway::{Gateway, Heartbeat};
use crate::kafka::{Incarnation, brokers_clock, ensure_topics};
use crate::registry::RegistryLink;
use crate::worker::Shared;

pub use error::RunError;
pub use ledger::{Ledger, LedgerError, ledger};
pub use listeners::Place;
pub use snapshot::{CpuTime, Snapshot};
use socket::ControlSocket;
pub use socket::read_snapshot;
use threads::Threads;

/// Beats in a heartbeat timeout: one may be late, or two, and nothing happens.
const BEATS_PER_TIMEOUT: u32 = 10;

/// How to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Behind a loaded gateway, in its relay namespace.
    Gateway,
    /// For clients that connect directly, or that a TPROXY rule sends.
    Direct(Place),
}

/// Runs the relay until SIGTERM or SIGINT, or until it cannot go on. `on_ready` is called when
/// clients are served. The snapshot is that of the end, when everything read is acknowledged or
/// counted.
pub fn run(
    config: &Config,
    mode: Mode,
    on_ready: impl FnOnce(&Threads),
) -> Result<Snapshot, RunError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::io("start the control plane"))?
        .block_on(run_async(config, mode, on_ready))
}

async fn run_async(
    config: &Config,
    mode: Mode,
    on_ready: impl FnOnce(&Threads),
) -> Result<Snapshot, RunError> {
    // Before anything else, so that a signal during start-up is not the default's.
    let mut terminate =
        signal(SignalKind::terminate()).map_err(RunError::io("watch for SIGTERM"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(RunError::io("watch for SIGINT"))?;

    let (mut gateway, place) = match mode {
        Mode::Gateway => {
            let gateway = Gateway::open(config)?;
            // Every address is local there.
            let namespace = Some(gateway.namespace().to_owned());
            (Some(gateway), Place { namespace, address: None, transparent: false })
        }
        Mode::Direct(place) => (None, place),
    };
    let mut socket = ControlSocket::claim(config)?;
    // Its time begins with the run's.
    brokers_clock();
    let topics = ensure_topics(config).await?;
    topics.differences.iter().for_each(|difference| tracing::warn!("{difference}"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let incarnation = Incarnation::new(u64::try_from(now.as_millis()).unwrap_or_default());
    let shared = Shared::new(config, incarnation);
    // Before clients are accepted: without it nobody knows all servers.
    let registry = start_registry(config, incarnation, &shared).await?;
    if let Some(gateway) = &mut gateway {
        gateway.start_generation()?;
    }
    let workers = worker_count(config);
    let listeners = listeners::open(config, &place, workers)?;
    let observers = (registry.observer(), topics);
    let threads = Threads::start(config, shared, gateway.as_ref(), listeners, observers)?;
    socket.serve(threads.observer());
    // Last: from here on the gateway diverts connections to us.
    let mut heartbeat = gateway.as_ref().map(Gateway::heartbeat).transpose()?;
    beat(heartbeat.as_mut())?;
    on_ready(&threads);

    let timeout = Duration::from_millis(u64::from(config.gateway.heartbeat_timeout_ms));
    let mut interval = tokio::time::interval(timeout / BEATS_PER_TIMEOUT);
    let failure = loop {
        tokio::select! {
            _ = interval.tick() => {
                if let Err(error) = beat(heartbeat.as_mut()) {
                    break Some(error);
                }
                if threads.failed.load(Ordering::SeqCst) || registry.has_failed() {
                    break Some(RunError::Thread);
                }
            }
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
        }
    };
    // First: new connections take the ordinary path from here on.
    if let Some(heartbeat) = &mut heartbeat {
        heartbeat.stop()?;
    }
    let observer = threads.observer();
    let ended = tokio::task::spawn_blocking(move || {
        let ended = threads.stop();
        drop(registry);
        ended
    })
    .await;
    let snapshot = observer.snapshot();
    match (failure, ended) {
        (_, Ok(Err(error))) | (Some(error), _) => Err(error),
        (None, Ok(Ok(()))) => Ok(snapshot),
        (None, Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
    }
}

async fn start_registry(
    config: &Config,
    incarnation: Incarnation,
    shared: &Shared,
) -> Result<RegistryLink, RunError> {
    let (config, associations) = (config.clone(), Arc::clone(&shared.associations));
    let leases = Arc::clone(&shared.leases);
    let started = tokio::task::spawn_blocking(move || {
        RegistryLink::start(&config, incarnation, &associations, leases)
    });
    match started.await {
        Ok(started) => Ok(started?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn beat(heartbeat: Option<&mut Heartbeat>) -> Result<(), RunError> {
    heartbeat.map_or(Ok(()), Heartbeat::beat).map_err(RunError::from)
}

/// Worker threads of a configuration on this machine.
pub fn worker_count(config: &Config) -> usize {
    match config.relay.workers {
        0 => std::thread::available_parallelism()
            .map_or(1, std::num::NonZero::get)
            .min(crate::config::MAX_WORKERS),
        workers => workers,
    }
}
