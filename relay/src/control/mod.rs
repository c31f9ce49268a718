//! The control plane: starts the relay's threads, sends its heartbeat, answers queries, stops it.
//!
//! ```text
//!  main (tokio)   heartbeat · control socket · signals
//!  worker-N       one each: worker::Worker over uring::UringEngine
//!  producer       uplink::Pump
//!  consumer       downlink::Consumer
//!  registry       registry::RegistryLink
//!  associations   route::AssociationLog
//!  mover          moves connections from draining servers to others
//!  keeper         undelivered::Keeper
//!  proof          checks that diverted packets are answered
//!  fuser-0        tune::Mounted: the tree of settings, if it can be mounted
//!  waiting        measures how long messages have waited for their servers
//!  gateway        gateway::Watch: follows the gateway's devices
//!  log            logging
//! ```

mod answers;
mod asking;
mod error;
mod faults;
mod files;
mod ledger;
mod listeners;
mod measured;
mod metrics;
mod mover;
mod orders;
mod proof;
mod rounds;
mod service;
mod signals;
mod snapshot;
mod socket;
mod standing;
mod start;
mod supervisor;
mod threads;
mod tuning;
mod waiting;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::gateway::Gateway;
use crate::kafka::brokers_clock;
use crate::model::Incarnation;
use crate::registry::RegistryLink;
use crate::stop::StopTime;
use crate::tune::{self, Mounted, Saved};
use crate::worker::Shared;

pub use error::RunError;
use faults::Faults;
pub use ledger::{Ledger, LedgerError, ledger};
pub use listeners::Place;
pub use measured::{ConfigSource, HowLong, Measured, ServiceCounts, WorkerCounts};
pub use orders::{InForce, disconnect, reload_running, set, settings};
use service::Service;
use signals::{Signals, Told};
pub use snapshot::{CpuTime, Snapshot};
use socket::ControlSocket;
pub use socket::read_snapshot;
use start::{Started, Starter};
use supervisor::Supervisor;
use threads::{Awaited, Threads};
use tuning::Tuner;
pub use waiting::Waiting;

/// How to run the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Behind a loaded gateway, in its relay namespace.
    Gateway,
    /// For clients that connect directly, or that a TPROXY rule sends.
    Direct(Place),
}

/// Runs the relay until SIGTERM or SIGINT, or until it cannot continue; then stops it, which never
/// takes longer than `relay.stop_timeout_ms`. Calls `on_ready` when clients are served. Returns the final
/// snapshot, in which everything that was read is acknowledged or counted. An error says why the relay could
/// not continue. Before it serves anybody, it applies what is `saved` of settings.
///
/// An error may leave threads behind: the process should end.
pub fn run(
    config: &Config,
    mode: Mode,
    saved: &Saved,
    on_ready: impl FnOnce(&Threads),
) -> Result<Snapshot, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::io("start the control plane"))?;
    let ended = runtime.block_on(run_async(config, mode, saved, on_ready));
    if ended.is_err() {
        // Its drop would wait for what the stop has given up on.
        std::mem::forget(runtime);
    }
    ended
}

async fn run_async(
    config: &Config,
    mode: Mode,
    saved: &Saved,
    on_ready: impl FnOnce(&Threads),
) -> Result<Snapshot, RunError> {
    // Before anything else, so that a signal during the start does not kill the process.
    let mut signals = Signals::watch()?;
    let faults = Faults::default();
    faults.watch_panics();
    let mut supervisor = Supervisor::find();

    let (gateway, place) = match mode {
        Mode::Gateway => {
            let gateway = Gateway::open(config)?;
            // Every address is local there.
            let namespace = Some(gateway.namespace().to_owned());
            (Some(gateway), Place { namespace, address: None, transparent: false })
        }
        Mode::Direct(place) => (None, place),
    };
    let mut config = config.clone();
    let workers = worker_count(&config);
    files::fit(&mut config, workers, files::raise_limit());
    let config = &config;
    let mut socket = ControlSocket::claim(config)?;
    let metrics = config.metrics.listen.map(metrics::Claimed::listen).transpose()?;
    // Its time starts with the run.
    brokers_clock();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let incarnation = Incarnation::new(u64::try_from(now.as_millis()).unwrap_or_default());
    let shared = Shared::new(config, incarnation);
    let (stop_time, intake) = (shared.stop_time.clone(), shared.intake.clone());
    let starter =
        Starter { config: config.clone(), gateway, place, shared, faults: faults.clone() };
    let Started { gateway, threads, registry } = starter.start(&mut signals).await?;
    let tuner = threads.tuner();
    saved.apply(&tuner).iter().for_each(|wrong| tracing::warn!("{wrong}"));
    socket.serve(threads.observer(), threads.orders(), tuner.clone());
    if let Some(metrics) = metrics {
        let counts = gateway.as_ref().map(|gateway| gateway.counts(config)).transpose()?;
        metrics.serve(threads.observer(), counts)?;
    }
    let _tree = mount(config, &tuner);
    // Last: from here on the gateway diverts connections to us.
    let watch = gateway.as_ref().map(|gateway| gateway.watch(config)).transpose()?;
    if let Some(watch) = &watch {
        threads.standing().follow(watch.news());
    }
    let mut service = Service::of(gateway.as_ref(), &threads)?;
    let mut noted = None;
    let mut note_timeout = |service: &Service| {
        // What was seen at the look before may have been changed since by a setting.
        let seen = service.timeout();
        if noted.replace(seen) != Some(seen) {
            tuner.note_heartbeat_timeout(seen);
        }
    };
    if !stop_time.has_begun() {
        supervisor.looked(Instant::now(), service.look()?);
        note_timeout(&service);
        supervisor.say(service.state());
        supervisor.ready();
        on_ready(&threads);
    }

    while !stop_time.has_begun() {
        tokio::select! {
            () = service.next_look(&intake) => {
                match service.look() {
                    Ok(all_go_round) => supervisor.looked(Instant::now(), all_go_round),
                    Err(error) => faults.report(error),
                }
                note_timeout(&service);
                supervisor.say(service.state());
            }
            () = faults.seen() => stop_time.begin(),
            told = signals.recv() => match told {
                Told::Stop(signal) => {
                    tracing::info!(signal, "told to stop");
                    stop_time.begin();
                }
                Told::Reload => drop(tokio::spawn(orders::reload(false, tuner.clone()))),
            }
        }
    }
    supervisor.say("stopping: delivers what was read");
    supervisor.stopping(stop_time.timeout());
    // From here on, new connections take the ordinary path.
    if let Err(error) = service.end() {
        faults.report(error);
    }
    stop(&stop_time, &faults, threads, registry).await
}

/// The tree of settings. A relay without one says why, and serves all the same.
fn mount(config: &Config, tuner: &Tuner) -> Option<Mounted> {
    let at = tune::place(config);
    match Mounted::new(&at, Arc::new(tuner.clone())) {
        Ok(mounted) => {
            tracing::info!(at = %at.display(), "settings can be read and changed as files");
            Some(mounted)
        }
        Err(error) => {
            tracing::info!(
                "no tree of settings at {}: {error}; `relay tune` does the same",
                at.display()
            );
            None
        }
    }
}

/// Stops everything, and gives up on what does not end in time.
async fn stop(
    stop_time: &StopTime,
    faults: &Faults,
    threads: Threads,
    registry: RegistryLink,
) -> Result<Snapshot, RunError> {
    let (observer, awaited) = (threads.observer(), Awaited::default());
    let for_whom = awaited.clone();
    let ended = tokio::task::spawn_blocking(move || {
        threads.stop(&for_whom);
        for_whom.is_for("thread `registry`");
        drop(registry);
    });
    let ended = tokio::time::timeout(stop_time.left(), ended).await;
    let snapshot = observer.snapshot();
    if ended.is_err() {
        faults.report(RunError::StopTimeOver {
            timeout: stop_time.timeout(),
            waiting: awaited.whom(),
            unacknowledged: snapshot.messages_in_flight,
        });
    }
    let Some(fault) = faults.take() else { return Ok(snapshot) };
    tracing::error!(
        received = snapshot.messages_received,
        acknowledged = snapshot.messages_acknowledged,
        refused = snapshot.messages_refused.values().sum::<u64>(),
        in_flight = snapshot.messages_in_flight,
        "messages when the relay stopped"
    );
    Err(fault)
}

/// The number of worker threads for a configuration on this machine.
pub fn worker_count(config: &Config) -> usize {
    match config.relay.workers {
        0 => std::thread::available_parallelism()
            .map_or(1, std::num::NonZero::get)
            .min(crate::config::MAX_WORKERS),
        workers => workers,
    }
}
