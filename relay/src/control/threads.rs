//! The threads of a running relay.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use crate::config::Config;
use crate::dial::Dial;
use crate::downlink::{Consumer, ConsumerStats};
use crate::engine::SocketOptions;
use crate::gateway::{FlowTable, Gateway, enter_namespace};
use crate::kafka::{Retention, Topics};
use crate::model::RelayId;
use crate::privilege::{self, CONTROL, CapabilitySet, HANDS_ON, KAFKA};
use crate::registry::RegistryObserver;
use crate::ring::{DownlinkSender, UplinkReceiver, Wake, downlink, uplink};
use crate::route::{AssociationLog, Associations};
use crate::stop::StopTime;
use crate::undelivered::{HoldLimits, Intake, Keeper, KeeperParts, KeeperStats};
use crate::uplink::late::RescueWatch;
use crate::uplink::{KafkaProducer, Pump, PumpParts, PumpStats};
use crate::uring::{self, EngineLimits, UringEngine};
use crate::worker::{Flows, NoGateway, Orders, Shared, Worker, WorkerParts, WorkerStats};

use super::RunError;
use super::faults::Faults;
use super::listeners::{self, Listeners};
use super::measured::Settings;
use super::mover::Mover;
use super::proof::Proof;
use super::snapshot::Observer;
use super::standing::Standing;
use super::tuning::{Effects, Tuner};
use super::waiting::WaitingWatch;

impl Flows for FlowTable {
    fn accepted(&mut self, client: SocketAddr, server: SocketAddr) -> io::Result<()> {
        Self::accepted(self, client, server).map_err(io::Error::other)
    }

    fn closed(&mut self, client: SocketAddr, server: SocketAddr) {
        if let Err(error) = Self::closed(self, client, server) {
            tracing::warn!(%error, %client, "cannot remove the flow of a closed connection");
        }
    }

    fn onward(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
        options: &SocketOptions,
    ) -> io::Result<OwnedFd> {
        let socket = listeners::onward(client, options)?;
        // The server's answers are diverted like a client's packets, although the relay opened the flow.
        Self::opened(self, server, client).map_err(io::Error::other)?;
        Ok(socket)
    }

    fn onward_closed(&mut self, client: SocketAddr, server: SocketAddr) {
        Flows::closed(self, server, client);
    }
}

/// The threads of a relay.
pub struct Threads {
    workers: Vec<JoinHandle<()>>,
    wakes: Vec<Wake>,
    pump: JoinHandle<()>,
    others: Vec<JoinHandle<()>>,
    /// Set when the workers have ended and what they read is settled.
    stop_others: Arc<AtomicBool>,
    keeper: JoinHandle<()>,
    /// Set after that, when the consumer has handed on what nobody takes.
    stop_keeper: Arc<AtomicBool>,
    shared: Shared,
    orders: Orders,
    tuner: Tuner,
    observer: Observer,
}

/// What a worker's thread is made from. The engine is made on the thread itself.
struct WorkerThread {
    parts: WorkerParts,
    listeners: Listeners,
    /// Whether connections that it cannot take can go elsewhere.
    is_behind_gateway: bool,
    /// The namespace for the sockets of connections that are handed on, if any are.
    namespace: Option<PathBuf>,
}

impl WorkerThread {
    fn run(self, ready: mpsc::Sender<io::Result<()>>, faults: &Faults) {
        if let Some(namespace) = &self.namespace
            && let Err(error) = enter_namespace(namespace)
        {
            let _ = ready.send(Err(io::Error::other(error)));
            return;
        }
        let mut limits = EngineLimits::from(&self.parts.shared.limits);
        if self.is_behind_gateway {
            limits = limits.with_overshoot();
        }
        let engine = match UringEngine::new(limits, self.parts.wake.clone()) {
            Ok(engine) => engine,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        // What follows meets clients' bytes.
        let kept = if self.namespace.is_some() { HANDS_ON } else { CapabilitySet::empty() };
        if let Err(error) = privilege::keep(kept) {
            let _ = ready.send(Err(error));
            return;
        }
        let stop_time = self.parts.shared.stop_time.clone();
        let mut worker = Worker::new(engine, self.parts);
        for (service, listener) in self.listeners {
            worker.listen(service, listener);
        }
        let _ = ready.send(Ok(()));
        drop(ready);
        faults
            .watch(&stop_time, || worker.run().map_err(RunError::io("continue with an io_uring")));
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, RunError> {
    std::thread::Builder::new().name(name).spawn(body).map_err(RunError::io("start a thread"))
}

/// Starts a thread, and returns when it has these capabilities at most: a relay that serves has no thread that
/// is about to give some up. If it ends before it is told to, the relay ends too.
fn spawn_confined(
    (name, kept): (&str, CapabilitySet),
    (faults, stop_time): (&Faults, &StopTime),
    body: impl FnOnce() -> Result<(), RunError> + Send + 'static,
) -> Result<JoinHandle<()>, RunError> {
    let (faults, stop_time) = (faults.clone(), stop_time.clone());
    let (confined, waits) = mpsc::channel::<()>();
    let thread = spawn(name.to_owned(), move || {
        faults.watch(&stop_time, || {
            let kept = privilege::keep(kept).map_err(RunError::io("give up capabilities"));
            drop(confined);
            kept?;
            body()
        });
    })?;
    // Nothing is sent: that the other end is gone says it.
    let _ = waits.recv();
    Ok(thread)
}

/// Starts a thread that runs until it is told to stop.
fn spawn_other(
    (name, kept): (&str, CapabilitySet),
    watch: (&Faults, &StopTime),
    stop: &Arc<AtomicBool>,
    body: impl FnOnce(&AtomicBool) -> Result<(), String> + Send + 'static,
) -> Result<JoinHandle<()>, RunError> {
    let stop = stop.clone();
    spawn_confined((name, kept), watch, move || body(&stop).map_err(RunError::Producer))
}

/// The workers' threads to be, and the ends of what leads to them.
struct Connected {
    uplinks: Vec<UplinkReceiver>,
    downlinks: Vec<DownlinkSender>,
    orders: Orders,
    threads: Vec<WorkerThread>,
}

fn connect_workers(
    shared: &Shared,
    gateway: Option<&Gateway>,
    hands_on: bool,
    listeners: Vec<Listeners>,
    (producer_wake, consumer_wake): (&Wake, &Wake),
) -> Result<Connected, RunError> {
    let (mut uplinks, mut downlinks, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    let mut orders = Orders::default();
    for (index, listeners) in (0..).zip(listeners) {
        let worker_wake = Wake::new().map_err(RunError::io("make an eventfd"))?;
        let (uplink_sender, uplink_receiver) = uplink(worker_wake.clone(), producer_wake.clone());
        let (downlink_sender, downlink_receiver) =
            downlink(worker_wake.clone(), consumer_wake.clone());
        uplinks.push(uplink_receiver);
        downlinks.push(downlink_sender);
        let flows: Box<dyn Flows> = match gateway {
            Some(gateway) => Box::new(gateway.flow_table()?),
            None => Box::new(NoGateway),
        };
        let parts = WorkerParts {
            index,
            shared: shared.clone(),
            orders: orders.add_worker(worker_wake.clone()),
            wake: worker_wake,
            flows,
            uplink: uplink_sender,
            downlink: downlink_receiver,
            stats: Arc::new(WorkerStats::new(shared.services.len())),
            peers: Vec::new(),
        };
        let namespace = gateway.filter(|_| hands_on).map(|gateway| gateway.namespace().to_owned());
        let is_behind_gateway = gateway.is_some();
        threads.push(WorkerThread { parts, listeners, is_behind_gateway, namespace });
    }
    for thread in &mut threads {
        thread.parts.peers.clone_from(&downlinks);
    }
    Ok(Connected { uplinks, downlinks, orders, threads })
}

/// Makes a client of Kafka, whose threads have no more than it needs.
pub(super) fn client_of_kafka<T: Send, E: Send>(
    opened: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, RunError>
where
    RunError: From<E>,
{
    Ok(privilege::with(KAFKA, opened).map_err(RunError::io("give up capabilities"))??)
}

/// What holds against each other what was diverted and what was received.
fn proof(gateway: &Gateway, standing: Standing) -> Result<Proof, RunError> {
    Ok(Proof::new(gateway.diversion()?, standing))
}

/// The counters of the Kafka threads.
type Counts = (Arc<PumpStats>, Arc<ConsumerStats>, Arc<KeeperStats>);

impl Threads {
    /// Starts everything. Workers accept when this returns.
    pub(super) fn start(
        config: &Config,
        shared: Shared,
        gateway: Option<&Gateway>,
        listeners: Vec<Listeners>,
        (registry, retention, topics): (RegistryObserver, Retention, Topics),
        faults: &Faults,
    ) -> Result<Self, RunError> {
        let (incarnation, producer_wake, consumer_wake) = (shared.incarnation, wake()?, wake()?);
        let intake = Arc::new(Intake::new(shared.postponed.clone(), shared.arrivals.clone()));
        // Kafka's clients first: they can fail, and nothing is running yet.
        let producer = client_of_kafka(|| {
            KafkaProducer::new(
                config,
                topics.batch_limits,
                producer_wake.clone(),
                intake.clone(),
                shared.leases.clone(),
                watch_rescue(faults, &shared.stop_time),
            )
        })?;
        // The associations must be known before the first client is accepted.
        let (stop_time, known) = (shared.stop_time.clone(), shared.associations.clone());
        let log = client_of_kafka(|| {
            AssociationLog::open(config, incarnation, known, stop_time.clone())
        })?;
        let (pump_stats, consumer_stats, keeper_stats): Counts = Default::default();
        let wakes = (&producer_wake, &consumer_wake);
        let Connected { uplinks, downlinks, orders, threads } =
            connect_workers(&shared, gateway, config.hands_on(), listeners, wakes)?;
        let consumer = client_of_kafka(|| {
            Consumer::new(
                config,
                incarnation,
                downlinks.clone(),
                consumer_stats.clone(),
                intake.clone(),
                consumer_wake,
                stop_time.clone(),
            )
        })?
        .renewing(retention);
        let parts = KeeperParts {
            clientele: shared.clientele(),
            letter_batch_bytes: topics.batch_limits.kept,
            intake: intake.clone(),
            downlinks: downlinks.clone(),
            stats: keeper_stats.clone(),
        };
        let keeper = client_of_kafka(|| Keeper::new(config, parts))?;
        let written = producer.written();
        let longest = topics.batch_limits.longest_message(config);
        let of_kafka = (producer.linger_us(), keeper.limits(), longest);
        let pump = Pump::new(PumpParts {
            producer,
            relay: RelayId(config.relay.id),
            incarnation,
            uplinks,
            downlinks: downlinks.clone(),
            credit: shared.credit.clone(),
            stats: pump_stats.clone(),
            wake: producer_wake,
            stop_time: stop_time.clone(),
        });
        let observer = Observer {
            relay: config.relay.id,
            incarnation: incarnation.value(),
            workers: threads.iter().map(|thread| thread.parts.stats.clone()).collect(),
            services: shared.services.clone(),
            pump: pump_stats,
            consumer: consumer_stats,
            keeper: keeper_stats,
            written: written.clone(),
            waiting: client_of_kafka(|| WaitingWatch::start(config, registry.clone()))?,
            credit: shared.credit.clone(),
            intake,
            associations: shared.associations.clone(),
            registry,
            topics: topics.differences.into(),
            standing: Standing::default(),
            settings: Settings::of(config, threads.len()),
        };
        let tuner = tuner(config, &shared, gateway, &observer, orders.clone(), of_kafka)?;
        let wakes = threads.iter().map(|thread| thread.parts.wake.clone()).collect();
        let workers = start_workers(threads, faults)?;
        let pump = spawn_pump(pump, (faults, &stop_time))?;
        let (stop_others, stop_keeper) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let mover = Mover::new(
            (config.kafka.clone(), retention, written.clone()),
            shared.associations.clone(),
            shared.credit.clone(),
            orders.clone(),
        );
        let watch = (faults, &stop_time);
        let proof = gateway.map(|one| proof(one, observer.standing.clone())).transpose()?;
        let others = start_others(watch, &stop_others, (consumer, log, mover, proof))?;
        let keeper = spawn_other(("keeper", KAFKA), watch, &stop_keeper, |stop| keeper.run(stop))?;
        Ok(Self {
            workers,
            wakes,
            pump,
            others,
            stop_others,
            keeper,
            stop_keeper,
            shared,
            orders,
            tuner,
            observer,
        })
    }

    /// Which client belongs to which server.
    pub fn associations(&self) -> &Arc<Associations> {
        &self.shared.associations
    }

    /// Worker threads.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Gives orders to the workers.
    pub(super) fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Changes settings.
    pub(super) fn tuner(&self) -> Tuner {
        self.tuner.clone()
    }

    pub(super) fn observer(&self) -> Observer {
        self.observer.clone()
    }

    /// What each worker counts, and how to wake it.
    pub(super) fn watched(&self) -> impl Iterator<Item = (Arc<WorkerStats>, Wake)> + '_ {
        self.observer.workers.iter().cloned().zip(self.wakes.iter().cloned())
    }

    /// What stands against new connections.
    pub(super) fn standing(&self) -> Standing {
        self.observer.standing.clone()
    }

    /// Ends the workers, then the producer once everything is delivered, then the consumer. Each has its own
    /// deadline. Faults are reported elsewhere. `awaited` has the thread that the stop waits for.
    pub(super) fn stop(self, awaited: &Awaited) {
        self.shared.stop_time.begin();
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wakes.iter().for_each(Wake::wake);
        for worker in self.workers {
            awaited.join(worker);
        }
        awaited.join(self.pump);
        self.stop_others.store(true, Ordering::SeqCst);
        for thread in self.others {
            awaited.join(thread);
        }
        self.stop_keeper.store(true, Ordering::SeqCst);
        awaited.join(self.keeper);
    }
}

/// What a stop is waiting for.
#[derive(Clone, Debug, Default)]
pub(super) struct Awaited(Arc<Mutex<String>>);

impl Awaited {
    /// Sets what it is waiting for.
    pub(super) fn is_for(&self, what: &str) {
        what.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns what it is waiting for.
    pub(super) fn whom(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A panic was reported when it happened.
    fn join(&self, thread: JoinHandle<()>) {
        self.is_for(&format!("thread `{}`", thread.thread().name().unwrap_or("without a name")));
        let _ = thread.join();
    }
}

/// In the order in which they are waited for.
fn start_others(
    watch: (&Faults, &StopTime),
    stop: &Arc<AtomicBool>,
    (consumer, log, mover, proof): (Consumer, AssociationLog, Mover, Option<Proof>),
) -> Result<Vec<JoinHandle<()>>, RunError> {
    let consumer = spawn_other(("consumer", KAFKA), watch, stop, |stop| {
        consumer.run(stop);
        Ok(())
    })?;
    let log = spawn_other(("associations", KAFKA), watch, stop, |stop| log.run(stop))?;
    let mover = spawn_other(("mover", KAFKA), watch, stop, |stop| {
        mover.run(stop);
        Ok(())
    })?;
    let mut others = vec![consumer, log, mover];
    if let Some(proof) = proof {
        others.push(spawn_other(("proof", CONTROL), watch, stop, |stop| {
            proof.run(stop);
            Ok(())
        })?);
    }
    Ok(others)
}

fn tuner(
    config: &Config,
    shared: &Shared,
    gateway: Option<&Gateway>,
    observer: &Observer,
    orders: Orders,
    (linger_us, hold, longest_message): (Option<Dial>, HoldLimits, u32),
) -> Result<Tuner, RunError> {
    let effects = Effects {
        orders,
        services: shared.services.clone(),
        stop_time: shared.stop_time.clone(),
        credit: shared.credit.clone(),
        hold,
        linger_us,
        longest_message,
        pins: gateway.map(|_| config.pin_directory()),
        source: observer.settings.source(),
    };
    Tuner::new(config, effects).map_err(RunError::Settings)
}

fn wake() -> Result<Wake, RunError> {
    Wake::new().map_err(RunError::io("make an eventfd"))
}

fn watch_rescue(faults: &Faults, stop_time: &StopTime) -> RescueWatch {
    let (faults, stop_time) = (faults.clone(), stop_time.clone());
    Arc::new(move |body| {
        faults.watch(&stop_time, || {
            body();
            Ok(())
        });
    })
}

/// The producer's thread reports its failure at once, because it still has work to do after that.
fn spawn_pump(
    pump: Pump<KafkaProducer>,
    (faults, stop_time): (&Faults, &StopTime),
) -> Result<JoinHandle<()>, RunError> {
    let told = faults.clone();
    spawn_confined(("producer", KAFKA), (faults, stop_time), move || {
        pump.run(|error| told.report(RunError::Producer(error)));
        Ok(())
    })
}

fn start_workers(
    threads: Vec<WorkerThread>,
    faults: &Faults,
) -> Result<Vec<JoinHandle<()>>, RunError> {
    let (sender, ready) = mpsc::channel();
    let mut workers = Vec::new();
    for thread in threads {
        let (sender, faults) = (sender.clone(), faults.clone());
        let name = format!("worker-{}", thread.parts.index);
        workers.push(spawn(name, move || thread.run(sender, &faults))?);
    }
    drop(sender);
    for _ in &workers {
        // A worker that does not even report this has panicked, which was reported.
        if let Ok(result) = ready.recv() {
            result.map_err(|source| RunError::Ring { cause: uring::cause(&source), source })?;
        }
    }
    Ok(workers)
}
