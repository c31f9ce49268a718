//! What a snapshot has beside the totals: by service, by worker, and how long things took.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::downlink::ConsumerStats;
use crate::measure::{Counter, Times};
use crate::model::CloseReason;
use crate::undelivered::KeeperStats;
use crate::uplink::PumpStats;
use crate::worker::{BOUNDS, ServiceStats, WorkerStats};

/// What is known of a run from its beginning.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// Names of the services, in the configuration's order.
    services: Arc<[String]>,
    max_connections: u64,
    receive_buffer_bytes: u64,
    hold_max_bytes: u64,
    /// A reload brings another one.
    source: Arc<Mutex<ConfigSource>>,
}

/// Which configuration a relay runs with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSource {
    /// Of its file, as `sha1sum FILE` prints it.
    pub sha1: String,
    /// When it was put into force, in Unix milliseconds.
    pub loaded_unix_ms: u64,
}

impl Settings {
    /// Those of a relay that starts now, with so many workers.
    pub(super) fn of(config: &Config, workers: usize) -> Self {
        let (relay, workers) = (&config.relay, workers as u64);
        let buffers = u64::from(relay.receive_buffers) * u64::from(relay.receive_buffer_bytes);
        Self {
            services: config.services.iter().map(|service| service.name.clone()).collect(),
            max_connections: workers * u64::from(relay.max_connections),
            receive_buffer_bytes: workers * buffers,
            hold_max_bytes: config.hold.max_bytes,
            source: Arc::new(Mutex::new(ConfigSource::now(config))),
        }
    }

    /// Where it is noted that another configuration has been put into force.
    pub(super) fn source(&self) -> Arc<Mutex<ConfigSource>> {
        self.source.clone()
    }
}

impl ConfigSource {
    /// That of a configuration which is put into force now.
    pub(super) fn now(config: &Config) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            sha1: config.source.sha1.clone(),
            loaded_unix_ms: u64::try_from(now.as_millis()).unwrap_or_default(),
        }
    }
}

/// What one service has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounts {
    /// Connections open now.
    pub connections: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Messages read from clients.
    pub messages_received: u64,
    /// Bytes received from clients.
    pub received_bytes: u64,
    /// Replies handed to the kernel for their client.
    pub replies_sent: u64,
    /// Bytes that the kernel has taken for clients.
    pub sent_bytes: u64,
}

/// What one worker has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCounts {
    /// Connections open now.
    pub connections: u64,
    /// System calls of its loop: one `io_uring_enter` each.
    pub loops: u64,
}

/// How long things took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HowLong {
    /// From the receipt of a message to Kafka's acknowledgement.
    pub acknowledge: Times,
    /// From the reading of a reply to its sending. Those that were postponed or held are not among them.
    pub reply: Times,
    /// The choice of a server for a client that connects.
    pub allot: Times,
    /// Pauses in which a connection was not read from because of a bound.
    pub connection_held: Times,
    /// Waits of replies for clients that were away, by the broker's clock.
    pub held_reply: Times,
}

/// What a snapshot has beside the totals.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// By service.
    pub services: BTreeMap<String, ServiceCounts>,
    /// By thread.
    pub each_worker: BTreeMap<String, WorkerCounts>,
    /// Connections that all workers together may have.
    pub max_connections: u64,
    /// Connections closed before their client had said who it is, by reason; they count as closed too.
    pub handshakes_failed: BTreeMap<String, u64>,
    /// Connections that are not read from now because of a bound.
    pub connections_held: u64,
    /// Times that a connection was held back, by the bound.
    pub holds_by_bound: BTreeMap<String, u64>,
    /// Times that the reader of the downlink waited for a worker.
    pub downlink_ring_full: u64,
    /// Bytes of the replies that wait for clients that are away, as they count against `hold.max_bytes`.
    pub held_bytes: u64,
    /// That bound.
    pub held_max_bytes: u64,
    /// Bytes of the workers' receive buffers.
    pub receive_buffer_bytes: u64,
    /// How long things took.
    pub times: HowLong,
    /// Which configuration is in force.
    pub config: ConfigSource,
    /// Version of the relay.
    pub version: String,
}

/// Only counters above 0, so that what is wrong stands out.
pub(super) fn nonzero<'a>(
    counts: impl IntoIterator<Item = (&'a str, u64)>,
) -> BTreeMap<String, u64> {
    counts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect()
}

/// Whose counters it is made from.
pub(super) struct Counting<'a> {
    pub(super) workers: &'a [Arc<WorkerStats>],
    pub(super) pump: &'a PumpStats,
    pub(super) consumer: &'a ConsumerStats,
    pub(super) keeper: &'a KeeperStats,
    pub(super) settings: &'a Settings,
}

impl Counting<'_> {
    fn sum(&self, counter: impl Fn(&WorkerStats) -> &Counter) -> u64 {
        self.workers.iter().map(|worker| counter(worker).get()).sum()
    }

    fn service(&self, place: usize) -> ServiceCounts {
        let of_workers = || self.workers.iter().map(|worker| &*worker.services[place]);
        let sum = |count: &dyn Fn(&ServiceStats) -> u64| of_workers().map(count).sum();
        ServiceCounts {
            connections: sum(&ServiceStats::connections),
            accepted: sum(&|service| service.accepted.get()),
            messages_received: sum(&|service| service.messages.get()),
            received_bytes: sum(&|service| service.received_bytes.get()),
            replies_sent: sum(&|service| service.replies_sent.get()),
            sent_bytes: sum(&|service| service.sent_bytes.get()),
        }
    }

    pub(super) fn measured(&self) -> Measured {
        let Settings { services, source, .. } = self.settings;
        let source = source.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let strangers = CloseReason::ALL
            .iter()
            .map(|reason| (reason.name(), self.sum(|worker| &worker.strangers[*reason as usize])));
        let bounds = BOUNDS.iter().enumerate();
        let holds = bounds.map(|(at, bound)| (*bound, self.sum(|worker| &worker.holds[at])));
        Measured {
            services: (0..)
                .zip(services.iter())
                .map(|(place, name)| (name.clone(), self.service(place)))
                .collect(),
            each_worker: (0..)
                .zip(self.workers)
                .map(|(index, worker): (usize, _)| {
                    let (connections, loops) = (worker.connections(), worker.loops.get());
                    (format!("worker-{index}"), WorkerCounts { connections, loops })
                })
                .collect(),
            max_connections: self.settings.max_connections,
            handshakes_failed: nonzero(strangers),
            connections_held: self.workers.iter().map(|worker| worker.held.get()).sum(),
            holds_by_bound: nonzero(holds),
            downlink_ring_full: self.consumer.ring_full.load(Ordering::Relaxed),
            held_bytes: self.keeper.held.bytes.load(Ordering::Relaxed),
            held_max_bytes: self.settings.hold_max_bytes,
            receive_buffer_bytes: self.settings.receive_buffer_bytes,
            times: self.times(),
            config: source.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn times(&self) -> HowLong {
        let workers = || self.workers.iter();
        HowLong {
            acknowledge: self.pump.acknowledge_times.times(),
            reply: Times::sum(workers().map(|worker| worker.reply_times.times())),
            allot: Times::sum(workers().map(|worker| worker.allot_times.times())),
            connection_held: Times::sum(workers().map(|worker| worker.held_times.times())),
            held_reply: self.keeper.held.times.times(),
        }
    }
}
