//! The registry's thread: reads the registry, reports changes to the listener, and writes while the relay
//! coordinates.

mod office;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::kafka::{Known, Retention, Retry};
use crate::model::{Incarnation, RelayId, ServiceId};
use crate::registry::Listener;
use crate::route::{Associations, ServerLink, ServerState};
use crate::stop::{StopPart, StopTime};
use crate::undelivered::Undertaker;
use crate::uplink::Leases;

use office::Office;

use super::author::Author;
use super::candidate::{Candidate, place};
use super::facts::Backlogs;
use super::follow::Follower;
use super::orders::MAX_PER_SECOND;
use super::record::{Key, RelayRecord, RelayState, VERSION};
use super::status::RegistryStatus;
use super::{Coordinator, Outcome, Policy, Registry, RegistryError, Write};

/// Poll timeout of the reader. The thread does everything else between two polls.
const POLL: Duration = Duration::from_millis(50);
/// How often per `registry.relay_timeout_ms` a relay renews its record.
const BEATS_PER_TIMEOUT: u32 = 3;
/// A fact is valid for the length of a lease divided by this, which is longer than the time between two
/// looks at the clock.
const FACTS_PER_LEASE: u32 = 4;
/// Time for the last records when the relay stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The thread's state that others can read.
struct Core {
    registry: Registry,
    coordinator: Coordinator,
}

/// Read access to the registry.
#[derive(Clone)]
pub struct RegistryObserver {
    core: Arc<Mutex<Core>>,
    associations: Arc<Associations>,
}

impl std::fmt::Debug for RegistryObserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryObserver").finish_non_exhaustive()
    }
}

fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RegistryObserver {
    /// Its present status.
    pub fn status(&self) -> RegistryStatus {
        let mut status = {
            let core = lock(&self.core);
            let clock = (&core.coordinator, Instant::now());
            RegistryStatus::new(&core.registry, core.coordinator.policy(), Some(clock))
        };
        for server in &mut status.servers {
            server.clients = Some(self.associations.clients_of(&server.id));
        }
        for (service, of) in status.rebalances.iter_mut().filter(|(_, of)| of.ended.is_none()) {
            of.moved_from = self.associations.balance(service).unwrap_or_default().moved;
        }
        status
    }

    /// True if this relay is the coordinator.
    pub fn coordinates(&self) -> bool {
        lock(&self.core).coordinator.term().is_some()
    }
}

/// What a [`RegistryLink`] is made from.
pub struct RegistryParts {
    /// This run of the relay.
    pub incarnation: Incarnation,
    /// Which servers there are, and which clients they have.
    pub associations: Arc<Associations>,
    /// Which partitions are leased to whom.
    pub leases: Arc<Leases>,
    /// How long the brokers keep committed offsets.
    pub retention: Retention,
    /// Longest batch in bytes that the topic of dead letters takes, if that is known.
    pub letter_batch_bytes: Option<u32>,
    /// How long a stop may take.
    pub stop_time: StopTime,
}

/// The registry of a running relay.
pub struct RegistryLink {
    observer: RegistryObserver,
    stop: Arc<AtomicBool>,
    stop_time: StopTime,
    thread: Option<JoinHandle<()>>,
}

impl RegistryLink {
    /// Reads the registry to its end, enters the servers in the associations, and claims the relay's id.
    /// Then a thread follows the registry; `watch` runs on it, and learns of its end. Blocks.
    pub fn start(
        config: &Config,
        parts: RegistryParts,
        watch: impl FnOnce(&mut dyn FnMut() -> Result<(), String>) + Send + 'static,
    ) -> Result<Self, RegistryError> {
        let RegistryParts {
            incarnation,
            associations,
            leases,
            retention,
            letter_batch_bytes,
            stop_time,
        } = parts;
        let listener = Box::new(Arc::clone(&associations));
        let undertaker = Undertaker::new(config, incarnation, letter_batch_bytes);
        let mut link =
            Participant::open(config, incarnation, listener, leases, undertaker, retention)?;
        link.claim()?;
        let observer = RegistryObserver { core: Arc::clone(&link.core), associations };
        let stop = Arc::<AtomicBool>::default();
        let (stopped, time) = (Arc::clone(&stop), stop_time.clone());
        let thread = std::thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || {
                watch(&mut || link.run(&stopped, &time));
                if link.unanswered {
                    // Leaving the group would wait for the cluster. The process ends now.
                    std::mem::forget(link);
                }
            })
            .map_err(RegistryError::Thread)?;
        Ok(Self { observer, stop, stop_time, thread: Some(thread) })
    }

    /// Read access to it.
    pub fn observer(&self) -> RegistryObserver {
        self.observer.clone()
    }
}

/// Records that this relay is gone, and leaves office. Blocks.
impl Drop for RegistryLink {
    fn drop(&mut self) {
        self.stop_time.begin();
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Participant {
    me: (RelayId, Incarnation),
    place: String,
    services: HashMap<String, ServiceId>,
    follower: Follower,
    author: Author,
    candidate: Candidate,
    core: Arc<Mutex<Core>>,
    listener: Box<dyn Listener>,
    leases: Arc<Leases>,
    /// Servers as reported to the listener, except those that the configuration declares.
    told: HashMap<String, ServerLink>,
    backlogs: Backlogs,
    office: Office,
    /// Taking office needs a new term, although the last one is this relay's.
    needs_term: bool,
    /// Pauses before office is taken again after a record was not written.
    retry: Retry,
    /// A record was refused since the last decision.
    refused: bool,
    /// Nothing is decided before then.
    held_back: Instant,
    /// When this relay's record was last written.
    spoken: Instant,
    next_beat: Instant,
    beat_interval: Duration,
    start_timeout: Duration,
    /// Pause after this relay has lost office to another relay's record. By then it knows whether the group
    /// still chooses it.
    reflection: Duration,
    /// The cluster has not acknowledged this relay's last record.
    unanswered: bool,
}

impl Participant {
    fn open(
        config: &Config,
        incarnation: Incarnation,
        listener: Box<dyn Listener>,
        leases: Arc<Leases>,
        undertaker: Undertaker,
        retention: Retention,
    ) -> Result<Self, RegistryError> {
        let now = Instant::now();
        let start_timeout = Duration::from_millis(config.registry.start_timeout_ms.into());
        let coordinator = Coordinator::new(Policy::new(config), now);
        let lease = coordinator.policy().lease;
        let relay_timeout = coordinator.policy().relay_timeout;
        let mut core = Core { registry: Registry::default(), coordinator };
        // First, so that the producer gets its id while the registry is read.
        let author = Author::new(config)?;
        let mut follower = Follower::open(config, Known::Made)?;
        follower.catch_up(start_timeout, |offset, key, value| {
            let outcome = core.registry.apply(offset, key, value);
            core.coordinator.observe_past(&outcome);
        })?;
        let core = Arc::new(Mutex::new(core));
        let services = config.services.iter().map(|service| service.name.clone());
        let valid = lease / FACTS_PER_LEASE;
        let backlogs = Backlogs::new(config, undertaker, leases.clone(), valid, retention)
            .map_err(RegistryError::Thread)?;
        let mut link = Self {
            me: (RelayId(config.relay.id), incarnation),
            place: place(config),
            services: services.zip((0..).map(ServiceId)).collect(),
            follower,
            author,
            candidate: Candidate::new(config)?,
            core,
            listener,
            leases,
            told: HashMap::new(),
            backlogs,
            office: Office::From(now),
            needs_term: false,
            retry: Retry::default(),
            refused: false,
            held_back: now,
            spoken: now,
            next_beat: now,
            beat_interval: relay_timeout / BEATS_PER_TIMEOUT,
            start_timeout,
            reflection: Duration::from_millis(config.registry.session_timeout_ms.into()) / 2,
            unanswered: false,
        };
        let shared = Arc::clone(&link.core);
        let core = lock(&shared);
        for id in core.registry.leases().keys() {
            link.tell_server(&core, id);
        }
        for relay in core.registry.relays().keys() {
            link.tell(&core, &Key::Relay(*relay));
        }
        for service in core.registry.rebalances().keys() {
            link.tell(&core, &Key::Rebalance(service.clone()));
        }
        drop(core);
        Ok(link)
    }

    /// Makes sure that no other relay has this one's id, and writes this relay's record.
    fn claim(&mut self) -> Result<(), RegistryError> {
        let (relay, incarnation) = self.me;
        // A killed relay has left its record behind, and writes no further one. If it was in the same
        // place, our lock proves that it does not run.
        let deadline = Instant::now() + self.beat_interval * 2;
        let former = lock(&self.core).registry.relays().get(&relay).cloned();
        if former.is_some_and(|of| of.state == RelayState::Live && of.place != self.place) {
            while Instant::now() < deadline {
                self.refuse_other()?;
            }
        }
        self.beat();
        let deadline = Instant::now() + self.start_timeout;
        loop {
            self.refuse_other()?;
            self.author.poll();
            let known = lock(&self.core).registry.relays().get(&relay).cloned();
            if known.is_some_and(|known| known.incarnation == incarnation) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (topic, timeout) = (self.follower.topic().to_owned(), self.start_timeout);
                return Err(RegistryError::Unwritable { topic, timeout });
            }
        }
    }

    /// Reads new records. Fails if one of them is from another relay with the same id.
    fn refuse_other(&mut self) -> Result<(), RegistryError> {
        let (relay, incarnation) = self.me;
        let mut other = None;
        self.read(|link, key| {
            let core = lock(&link.core);
            let known = core.registry.relays().get(&relay);
            if *key == Key::Relay(relay)
                && let Some(record) = known
                && record.state == RelayState::Live
                && record.incarnation != incarnation
            {
                other = Some(record.place.clone());
            }
        });
        other.map_or(Ok(()), |place| Err(RegistryError::SameRelay { relay: relay.0, place }))
    }

    /// Runs until `stop`. An error is the producer's fatal one.
    fn run(&mut self, stop: &AtomicBool, stop_time: &StopTime) -> Result<(), String> {
        while !stop.load(Ordering::SeqCst) {
            self.read(Self::watch_own);
            let standing = self.candidate.poll();
            if self.author.poll() {
                self.put_off_office();
            }
            if let Some(error) = self.author.fatal() {
                return Err(error);
            }
            if self.is_read_back() {
                self.leases.known(self.spoken);
                if Instant::now() >= self.next_beat {
                    self.beat();
                }
            }
            self.coordinate(standing);
        }
        self.backlogs.stop(stop_time.left_of(StopPart::Registry) / 2);
        self.say(RelayState::Gone);
        let patience = stop_time.left_of(StopPart::Registry).min(STOP_TIMEOUT);
        self.unanswered = !self.author.finish(patience);
        Ok(())
    }

    fn is_read_back(&self) -> bool {
        self.author.is_read_back(self.follower.next())
    }

    /// Applies the records that have arrived. A record is applied and reported in one step, so that no reader
    /// of the registry sees what the listener does not know yet: clients connect to a server as soon as it is
    /// shown.
    fn read(&mut self, mut each: impl FnMut(&mut Self, &Key)) {
        let (shared, mut records) = (Arc::clone(&self.core), Vec::new());
        self.follower.read(POLL, |offset, key, value| {
            records.push((offset, key.to_vec(), value.map(<[u8]>::to_vec)));
        });
        for (offset, key, value) in records {
            let mut core = lock(&shared);
            let outcome = core.registry.apply(offset, &key, value.as_deref());
            let Core { registry, coordinator } = &mut *core;
            coordinator.observe(registry, &outcome, Instant::now());
            match outcome {
                Outcome::Changed(key) => {
                    self.tell(&core, &key);
                    drop(core);
                    each(self, &key);
                }
                Outcome::Refused(reason, key) => {
                    let (reason, key) = (reason.name(), key.map(|key| key.to_string()));
                    tracing::debug!(reason, key, "a record of the registry was refused");
                    self.refused = true;
                }
            }
        }
    }

    fn tell(&mut self, core: &Core, changed: &Key) {
        match changed {
            Key::Lease(id) => self.tell_server(core, id),
            Key::Relay(relay) => {
                if let Some(known) = core.registry.relays().get(relay) {
                    self.listener.relay(*relay, known.incarnation, known.state);
                }
            }
            Key::Rebalance(service) => {
                let order = core.registry.rebalances().get(service);
                let order = order.filter(|order| order.ended.is_none());
                let per_second = order.map(|order| order.per_second.get().min(MAX_PER_SECOND));
                self.listener.rebalance(service, per_second);
            }
            Key::Server(_) | Key::Refusal(_) | Key::Order(_) | Key::Coordinator => {}
        }
    }

    /// Reacts to a record that another writer wrote about this relay.
    fn watch_own(&mut self, changed: &Key) {
        let (relay, incarnation) = self.me;
        if *changed != Key::Relay(relay) {
            return;
        }
        let known = lock(&self.core).registry.relays().get(&relay).cloned();
        if known.as_ref().is_some_and(|known| known.incarnation != incarnation) {
            tracing::error!(
                relay = relay.0,
                place = known.map(|known| known.place),
                "another relay with the same relay.id is running: stop one of the two"
            );
            self.next_beat = Instant::now();
        } else if known.is_none_or(|known| known.state == RelayState::Gone) {
            tracing::warn!(
                relay = relay.0,
                "the coordinator took this relay for gone, but it runs"
            );
            self.next_beat = Instant::now();
        }
    }

    fn tell_server(&mut self, core: &Core, id: &str) {
        let link = self.server_link(core, id).or_else(|| {
            // Its lease may have ended and been removed between two polls.
            let last = self.told.get(id)?.clone();
            Some(ServerLink { state: ServerState::Gone, ..last })
        });
        let Some(link) = link else { return };
        // The allotment begins with those that are declared.
        let is_declared = core.coordinator.policy().declared.contains_key(id);
        if link.state == ServerState::Gone && !is_declared && !self.told.contains_key(id) {
            return;
        }
        if !is_declared {
            let in_force = link.state != ServerState::Gone;
            let from = core.registry.leases().get(id).map_or(0, |lease| lease.from);
            self.leases.set(link.partition, id, link.epoch, from, in_force);
            if in_force {
                self.told.insert(id.to_owned(), link.clone());
            } else {
                // The listener has been told that it is gone.
                self.told.remove(id);
            }
        }
        self.listener.server(link);
    }

    /// A server as this relay may use it under its configuration.
    fn server_link(&self, core: &Core, id: &str) -> Option<ServerLink> {
        let (lease, policy) = (core.registry.leases().get(id), core.coordinator.policy());
        if let Some(declared) = policy.declared.get(id) {
            let service = *self.services.get(&declared.service)?;
            let lease = lease.filter(|lease| lease.is_declared());
            let mut link = ServerLink::declared(service, &declared.server);
            link.state = lease.map_or(ServerState::Live, |lease| lease.state);
            return Some(link);
        }
        let lease = lease.filter(|lease| !lease.is_declared())?;
        let Some(service) = self.services.get(&lease.service) else {
            tracing::debug!(
                server = id,
                service = lease.service,
                "the server's service is not in this relay's configuration"
            );
            return None;
        };
        if lease.partition.0 >= policy.partitions || policy.is_declared(lease.partition) {
            let partition = lease.partition.0;
            tracing::warn!(
                server = id,
                partition,
                "this relay's configuration does not lease this partition (kafka.uplink_partitions, \
                 service.server), and all relays must have the same; the server gets no clients here"
            );
            return None;
        }
        Some(ServerLink {
            name: id.to_owned(),
            service: *service,
            address: lease.address,
            partition: lease.partition,
            epoch: lease.epoch,
            capacity: lease.capacity.get(),
            labels: lease.labels.clone(),
            state: lease.state,
        })
    }

    fn write(&mut self, write: &Write) {
        if let Err(error) = self.author.write(write) {
            tracing::warn!(%error, key = %write.key, "librdkafka did not accept a record of the registry");
            self.put_off_office();
        }
    }

    fn beat(&mut self) {
        self.leases.begin_word();
        self.spoken = Instant::now();
        self.next_beat = self.spoken + self.beat_interval;
        self.say(RelayState::Live);
    }

    fn say(&mut self, state: RelayState) {
        let (relay, incarnation) = self.me;
        let record =
            RelayRecord { version: VERSION, incarnation, state, place: self.place.clone() };
        self.write(&Write::new(Key::Relay(relay), &record));
    }
}
