//! The registry's state: a fold over its records, the same for everybody who reads them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Partition, RelayId};

use super::record::{
    self, Coordination, Key, Lease, Malformed, Rebalance, Refusal, Registration, RelayRecord,
    ServerOrder, Term,
};

/// Most ids of each kind of record. Records of further ids are refused.
pub const MAX_ENTRIES: usize = 200_000;
/// Highest epoch: more than a partition ever has holders, and a JSON number that every reader represents
/// exactly (RFC 8259, section 6).
pub const MAX_EPOCH: u64 = (1 << 53) - 1;

/// Why a record has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedReason {
    /// The registry has no such key.
    MalformedKey,
    /// The value does not fit the key. Such registrations are counted too, but kept, so that their server
    /// gets an answer.
    MalformedValue,
    /// A former coordinator wrote it.
    StaleTerm,
    /// A lease of a partition that another server has got since then.
    StaleEpoch,
    /// It would remove a lease that is still needed.
    LeaseNeeded,
    /// There are too many of its kind.
    Full,
}

impl RefusedReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 6] = [
        Self::MalformedKey,
        Self::MalformedValue,
        Self::StaleTerm,
        Self::StaleEpoch,
        Self::LeaseNeeded,
        Self::Full,
    ];

    /// Its name in counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MalformedKey => "malformed_key",
            Self::MalformedValue => "malformed_value",
            Self::StaleTerm => "stale_term",
            Self::StaleEpoch => "stale_epoch",
            Self::LeaseNeeded => "lease_needed",
            Self::Full => "full",
        }
    }
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What stands under this key has changed. For a server's registration that includes one that
    /// cannot be read.
    Changed(Key),
    /// It was refused. Compaction may still keep it in place of the valid record of the same key, so the
    /// key is reported, and the coordinator writes the valid record again.
    Refused(RefusedReason, Option<Key>),
}

/// Epochs of a partition and their holders; the last is the highest.
type Holders = BTreeSet<(u64, String)>;

/// The state that all records together make.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    registrations: BTreeMap<String, Result<Registration, Malformed>>,
    leases: BTreeMap<String, Lease>,
    refusals: BTreeMap<String, Refusal>,
    orders: BTreeMap<String, ServerOrder>,
    rebalances: BTreeMap<String, Rebalance>,
    coordination: Option<(Term, Coordination)>,
    relays: BTreeMap<RelayId, RelayRecord>,
    holders: BTreeMap<Partition, Holders>,
    /// Servers that have registered since their lease was written, or have no lease.
    spoken: BTreeSet<String>,
    refused: [u64; RefusedReason::ALL.len()],
}

/// Compares the state, but not the counts of refused records.
impl PartialEq for Registry {
    fn eq(&self, other: &Self) -> bool {
        self.registrations == other.registrations
            && self.leases == other.leases
            && self.refusals == other.refusals
            && self.orders == other.orders
            && self.rebalances == other.rebalances
            && self.coordination == other.coordination
            && self.relays == other.relays
            && self.holders == other.holders
            && self.spoken == other.spoken
    }
}

impl Registry {
    /// Applies the next record. Without a value it is a tombstone.
    pub fn apply(&mut self, offset: i64, key: &[u8], value: Option<&[u8]>) -> Outcome {
        let Some(key) = Key::parse(key) else {
            return self.refuse(RefusedReason::MalformedKey, None);
        };
        let result = match &key {
            Key::Server(id) => self.apply_registration(id, value),
            Key::Lease(id) => self.apply_lease(offset, id, value),
            Key::Refusal(id) => self.apply_refusal(offset, id, value),
            Key::Order(id) => put(&mut self.orders, id, value),
            Key::Rebalance(service) => self.apply_rebalance(offset, service, value),
            Key::Coordinator => self.apply_coordination(offset, value),
            Key::Relay(relay) => put(&mut self.relays, relay, value),
        };
        match result {
            Ok(()) => Outcome::Changed(key),
            Err(RefusedReason::Full) => self.refuse(RefusedReason::Full, None),
            Err(reason) => self.refuse(reason, Some(key)),
        }
    }

    fn refuse(&mut self, reason: RefusedReason, key: Option<Key>) -> Outcome {
        self.count(reason);
        Outcome::Refused(reason, key)
    }

    fn count(&mut self, reason: RefusedReason) {
        self.refused[reason as usize] += 1;
    }

    fn apply_registration(&mut self, id: &str, value: Option<&[u8]>) -> Result<(), RefusedReason> {
        let Some(value) = value else {
            self.registrations.remove(id);
            self.spoken.remove(id);
            return Ok(());
        };
        let registration = Registration::parse(value);
        if registration.is_err() {
            self.count(RefusedReason::MalformedValue);
        }
        insert(&mut self.registrations, &id.to_owned(), registration)?;
        self.spoken.insert(id.to_owned());
        Ok(())
    }

    /// An unknown term belongs to a coordinator whose record was compacted away.
    fn is_current(&self, term: Term, offset: i64) -> Result<(), RefusedReason> {
        if term.0 >= offset {
            return Err(RefusedReason::MalformedValue);
        }
        if self.coordination.as_ref().is_some_and(|(current, _)| term < *current) {
            return Err(RefusedReason::StaleTerm);
        }
        Ok(())
    }

    fn apply_lease(
        &mut self,
        offset: i64,
        id: &str,
        value: Option<&[u8]>,
    ) -> Result<(), RefusedReason> {
        let Some(value) = value else {
            if self.leases.get(id).is_some_and(|lease| self.is_needed(lease)) {
                return Err(RefusedReason::LeaseNeeded);
            }
            let former = self.leases.remove(id);
            self.unhold(id, former);
            if self.registrations.contains_key(id) {
                self.spoken.insert(id.to_owned());
            }
            return Ok(());
        };
        let lease: Lease =
            record::parse(value).map_err(|_problem| RefusedReason::MalformedValue)?;
        self.is_current(lease.term, offset)?;
        if lease.epoch > MAX_EPOCH {
            return Err(RefusedReason::MalformedValue);
        }
        let highest = self.epoch(lease.partition);
        let overtaken = lease.epoch < highest && lease.is_in_force()
            || lease.epoch == highest && !self.holds(id, lease.partition);
        if overtaken && !lease.is_declared() {
            return Err(RefusedReason::StaleEpoch);
        }
        let held = (lease.partition, lease.epoch, lease.is_declared());
        let former = insert(&mut self.leases, &id.to_owned(), lease)?;
        self.unhold(id, former);
        if let (partition, epoch, false) = held {
            self.holders.entry(partition).or_default().insert((epoch, id.to_owned()));
        }
        self.spoken.remove(id);
        Ok(())
    }

    /// A lease in force is needed, and so is one that is gone, unless another record keeps the epoch of its
    /// partition.
    fn is_needed(&self, lease: &Lease) -> bool {
        if lease.is_declared() {
            return false;
        }
        lease.is_in_force() || lease.epoch >= self.epoch(lease.partition)
    }

    fn unhold(&mut self, id: &str, former: Option<Lease>) {
        if let Some(former) = former
            && let Entry::Occupied(mut holders) = self.holders.entry(former.partition)
        {
            holders.get_mut().remove(&(former.epoch, id.to_owned()));
            if holders.get().is_empty() {
                holders.remove();
            }
        }
    }

    fn highest(&self, partition: Partition) -> Option<&(u64, String)> {
        self.holders.get(&partition)?.last()
    }

    fn apply_refusal(
        &mut self,
        offset: i64,
        id: &str,
        value: Option<&[u8]>,
    ) -> Result<(), RefusedReason> {
        if let Some(value) = value {
            let refusal: Refusal =
                record::parse(value).map_err(|_problem| RefusedReason::MalformedValue)?;
            self.is_current(refusal.term, offset)?;
            insert(&mut self.refusals, &id.to_owned(), refusal)?;
        } else {
            self.refusals.remove(id);
        }
        Ok(())
    }

    fn apply_rebalance(
        &mut self,
        offset: i64,
        service: &str,
        value: Option<&[u8]>,
    ) -> Result<(), RefusedReason> {
        if let Some(value) = value {
            let rebalance: Rebalance =
                record::parse(value).map_err(|_problem| RefusedReason::MalformedValue)?;
            if let Some(ended) = &rebalance.ended {
                self.is_current(ended.term, offset)?;
            }
            insert(&mut self.rebalances, &service.to_owned(), rebalance)?;
        } else {
            self.rebalances.remove(service);
        }
        Ok(())
    }

    fn apply_coordination(
        &mut self,
        offset: i64,
        value: Option<&[u8]>,
    ) -> Result<(), RefusedReason> {
        // Without it, every former coordinator would be valid again.
        let value = value.ok_or(RefusedReason::MalformedValue)?;
        let coordination =
            record::parse(value).map_err(|_problem| RefusedReason::MalformedValue)?;
        self.coordination = Some((Term(offset), coordination));
        Ok(())
    }

    /// Registrations, by server id.
    pub fn registrations(&self) -> &BTreeMap<String, Result<Registration, Malformed>> {
        &self.registrations
    }

    /// Leases, by server id.
    pub fn leases(&self) -> &BTreeMap<String, Lease> {
        &self.leases
    }

    /// Refusals, by server id.
    pub fn refusals(&self) -> &BTreeMap<String, Refusal> {
        &self.refusals
    }

    /// Orders, by server id.
    pub fn orders(&self) -> &BTreeMap<String, ServerOrder> {
        &self.orders
    }

    /// Rebalancings, including those that have ended, by service.
    pub fn rebalances(&self) -> &BTreeMap<String, Rebalance> {
        &self.rebalances
    }

    /// The coordinator, and since which term.
    pub fn coordination(&self) -> Option<&(Term, Coordination)> {
        self.coordination.as_ref()
    }

    /// All relays that have ever written a record.
    pub fn relays(&self) -> &BTreeMap<RelayId, RelayRecord> {
        &self.relays
    }

    /// The highest epoch of a partition; 0 if no lease records one.
    pub fn epoch(&self, partition: Partition) -> u64 {
        self.highest(partition).map_or(0, |(epoch, _)| *epoch)
    }

    /// True if this server is the partition's last holder.
    pub fn holds(&self, id: &str, partition: Partition) -> bool {
        self.highest(partition).is_some_and(|(_, of)| of == id)
    }

    /// True if a server has registered after its lease was written. Compaction keeps the order.
    pub fn has_spoken(&self, id: &str) -> bool {
        self.spoken.contains(id)
    }

    /// Records that were refused, by reason. Reasons without records are left out.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RefusedReason::ALL
            .iter()
            .map(|reason| (reason.name(), self.refused[*reason as usize]))
            .filter(|(_, count)| *count > 0)
    }
}

fn put<K: Ord + Clone, T: serde::de::DeserializeOwned>(
    map: &mut BTreeMap<K, T>,
    key: &K,
    value: Option<&[u8]>,
) -> Result<(), RefusedReason> {
    let Some(value) = value else {
        map.remove(key);
        return Ok(());
    };
    let value = record::parse(value).map_err(|_problem| RefusedReason::MalformedValue)?;
    insert(map, key, value).map(drop)
}

/// Returns what was there before. Fails if there is no room.
fn insert<K: Ord + Clone, T>(
    map: &mut BTreeMap<K, T>,
    key: &K,
    value: T,
) -> Result<Option<T>, RefusedReason> {
    if map.len() >= MAX_ENTRIES && !map.contains_key(key) {
        return Err(RefusedReason::Full);
    }
    Ok(map.insert(key.clone(), value))
}
