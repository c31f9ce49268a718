//! Who has which partition, as far as the relay knows, and whether it may write by what it knows.
//!
//! A relay that was paused wakes with messages for servers that have lost their partitions meanwhile.
//! The others took it for gone after `registry.relay_timeout_ms`; so a relay that has not read its own
//! word for so long writes nothing for servers that registered until it has, and then it knows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::route::Partition;

/// A partition's present holder.
#[derive(Debug, Default)]
struct Holder {
    name: String,
    epoch: u64,
}

/// Leases of partitions; told by the registry's thread, asked by the producer's.
#[derive(Debug)]
pub struct Leases {
    holders: Mutex<Vec<Holder>>,
    /// By partition: the epoch with which its holder's time began. A server that restarts has another
    /// epoch, and what was meant for it before.
    since: Box<[AtomicU64]>,
    begun: Instant,
    /// All that was in the registry then is known; milliseconds since `begun`.
    known_ms: AtomicU64,
    patience: Duration,
}

impl Leases {
    /// Nobody has one yet.
    pub fn new(config: &Config) -> Self {
        let partitions = config.partitions();
        Self {
            holders: Mutex::new((0..partitions).map(|_| Holder::default()).collect()),
            since: (0..partitions).map(|_| AtomicU64::new(0)).collect(),
            begun: Instant::now(),
            known_ms: AtomicU64::new(0),
            patience: Duration::from_millis(config.registry.relay_timeout_ms.into()),
        }
    }

    /// Takes up a lease.
    pub fn set(&self, partition: Partition, name: &str, epoch: u64) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = &mut holders[partition.index()];
        if epoch <= holder.epoch {
            return;
        }
        if !holder.name.is_empty() && holder.name != name {
            self.since[partition.index()].store(epoch, Ordering::Release);
        }
        *holder = Holder { name: name.to_owned(), epoch };
    }

    /// Says that all is known that was in the registry then.
    pub fn known(&self, then: Instant) {
        let ms = then.saturating_duration_since(self.begun).as_millis();
        self.known_ms.fetch_max(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Whether what is known is new enough to write by.
    pub fn is_fresh(&self, now: Instant) -> bool {
        let known = Duration::from_millis(self.known_ms.load(Ordering::Acquire));
        now.saturating_duration_since(self.begun).saturating_sub(known) < self.patience
    }

    /// Whether the partition is another server's by now.
    pub fn is_over(&self, partition: Partition, epoch: u64) -> bool {
        epoch > 0 && epoch < self.since[partition.index()].load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{GatewaySection, HoldSection, KafkaSection, RegistrySection, RelaySection};

    fn leases() -> Leases {
        Leases::new(&Config {
            gateway: GatewaySection::new("test".to_owned(), &["none"]),
            relay: RelaySection::default(),
            kafka: KafkaSection { uplink_partitions: 2, ..KafkaSection::default() },
            registry: RegistrySection::default(),
            hold: HoldSection::default(),
            services: Vec::new(),
        })
    }

    #[test]
    fn a_lease_is_over_when_another_server_has_the_partition() {
        let (leases, partition) = (leases(), Partition(1));
        leases.set(partition, "a", 3);
        assert!(!leases.is_over(partition, 3));
        leases.set(partition, "a", 4);
        assert!(!leases.is_over(partition, 3), "it has restarted, and gets what waited");
        leases.set(partition, "b", 5);
        assert!(leases.is_over(partition, 3) && leases.is_over(partition, 4));
        leases.set(partition, "a", 4);
        assert!(!leases.is_over(partition, 5), "that was before");
        assert!(!leases.is_over(partition, 0), "declared servers have no lease");
        assert!(!leases.is_over(Partition(0), 1), "the other partition is not concerned");
    }

    #[test]
    fn what_is_known_grows_old() {
        let leases = leases();
        let later = leases.begun + leases.patience * 2;
        assert!(leases.is_fresh(leases.begun));
        assert!(!leases.is_fresh(later));
        leases.known(later);
        assert!(leases.is_fresh(later));
    }
}
