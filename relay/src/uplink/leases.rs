//! Who has which partition, as far as the relay knows, and whether it may write by what it knows.
//!
//! A relay that was paused wakes with messages for servers that have lost their partitions meanwhile.
//! The others took it for gone after `registry.relay_timeout_ms`; so a relay that has not read its own
//! word for so long writes nothing for servers that registered until it has, and then it knows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::model::Partition;

/// So many changes of a partition's holder are remembered; of older ones only that they were.
const MOST_CHANGES: usize = 8;

/// A partition's present holder.
#[derive(Debug, Default)]
struct Holder {
    name: String,
    epoch: u64,
    /// The partition is still its own.
    in_force: bool,
    /// Leases by which another server got it: the epoch, and the offset at which they begin.
    changes: Vec<(u64, i64)>,
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
    /// This relay's words in the registry: how many it has begun to write, and how many it has read back.
    words_begun: AtomicU64,
    words_known: AtomicU64,
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
            words_begun: AtomicU64::new(0),
            words_known: AtomicU64::new(0),
            patience: Duration::from_millis(config.registry.relay_timeout_ms.into()),
        }
    }

    fn holders(&self) -> MutexGuard<'_, Vec<Holder>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up a lease, whose holder's time in the partition begins at the offset `from`.
    pub fn set(&self, partition: Partition, name: &str, epoch: u64, from: i64, in_force: bool) {
        let mut holders = self.holders();
        let holder = &mut holders[partition.index()];
        if epoch < holder.epoch || epoch == holder.epoch && name != holder.name {
            return;
        }
        let is_next = epoch == holder.epoch + 1;
        if !holder.name.is_empty() && holder.name != name {
            // If this relay has missed a lease in between, it does not know where that one began.
            holder.changes.push((epoch, if is_next { from } else { 0 }));
            if holder.changes.len() > MOST_CHANGES {
                holder.changes.remove(0);
                holder.changes[0].1 = 0;
            }
            self.since[partition.index()].store(epoch, Ordering::Release);
        }
        name.clone_into(&mut holder.name);
        (holder.epoch, holder.in_force) = (epoch, in_force);
    }

    /// Whether a server has the partition; a declared one always does.
    pub(crate) fn is_in_force(&self, partition: Partition) -> bool {
        let holder = &self.holders()[partition.index()];
        holder.name.is_empty() || holder.in_force
    }

    /// Where the first lease begins by which another server got the partition after `epoch`.
    pub(crate) fn change_after(&self, partition: Partition, epoch: u64) -> Option<i64> {
        if self.last_change(partition) <= epoch {
            return None;
        }
        let holders = self.holders();
        let mut changes = holders[partition.index()].changes.iter();
        changes.find(|(at, _)| *at > epoch).map(|(_, from)| *from)
    }

    /// The epoch by which the partition's present holder got it; 0 if it had no other one before.
    pub(crate) fn last_change(&self, partition: Partition) -> u64 {
        self.since[partition.index()].load(Ordering::Acquire)
    }

    /// Said before this relay writes a word to the registry.
    pub fn begin_word(&self) {
        self.words_begun.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn words_begun(&self) -> u64 {
        self.words_begun.load(Ordering::SeqCst)
    }

    pub(crate) fn words_known(&self) -> u64 {
        self.words_known.load(Ordering::SeqCst)
    }

    /// Says that all is known that was in the registry then, and every word that this relay has begun is
    /// read back.
    pub fn known(&self, then: Instant) {
        self.words_known.store(self.words_begun(), Ordering::SeqCst);
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
        epoch > 0 && epoch < self.last_change(partition)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{
        GatewaySection, HoldSection, KafkaSection, MetricsSection, RegistrySection, RelaySection,
        Source,
    };

    pub(crate) fn leases() -> Leases {
        Leases::new(&Config {
            gateway: GatewaySection::new("test".to_owned(), &["none"]),
            relay: RelaySection::default(),
            kafka: KafkaSection { uplink_partitions: 2, ..KafkaSection::default() },
            registry: RegistrySection::default(),
            hold: HoldSection::default(),
            metrics: MetricsSection::default(),
            services: Vec::new(),
            source: Source::default(),
        })
    }

    #[test]
    fn a_lease_is_over_when_another_server_has_the_partition() {
        let (leases, partition) = (leases(), Partition(1));
        leases.set(partition, "a", 3, 0, true);
        assert!(!leases.is_over(partition, 3));
        leases.set(partition, "a", 4, 0, true);
        assert!(!leases.is_over(partition, 3), "it has restarted, and gets what waited");
        leases.set(partition, "b", 5, 0, true);
        assert!(leases.is_over(partition, 3) && leases.is_over(partition, 4));
        leases.set(partition, "a", 4, 0, true);
        assert!(!leases.is_over(partition, 5), "that was before");
        assert!(!leases.is_over(partition, 0), "declared servers have no lease");
        assert!(!leases.is_over(Partition(0), 1), "the other partition is not concerned");
    }

    #[test]
    fn where_the_next_lease_begins_is_known_as_far_as_it_was_read() {
        let (leases, partition) = (leases(), Partition(0));
        leases.set(partition, "a", 1, 5, true);
        assert_eq!(leases.change_after(partition, 0), None, "the first that this relay knows");
        leases.set(partition, "a", 2, 5, false);
        assert!(!leases.is_in_force(partition));
        leases.set(partition, "b", 3, 70, true);
        assert_eq!(leases.change_after(partition, 1), Some(70));
        assert_eq!((leases.change_after(partition, 3), leases.last_change(partition)), (None, 3));
        leases.set(partition, "c", 5, 90, true);
        assert_eq!(leases.change_after(partition, 2), Some(70));
        assert_eq!(leases.change_after(partition, 3), Some(0), "whose was 4?");
        for epoch in 6..30 {
            leases.set(partition, &epoch.to_string(), epoch, 100, true);
        }
        assert_eq!(leases.change_after(partition, 1), Some(0), "as long ago as can be");
        assert_eq!(leases.change_after(partition, 28), Some(100));
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
