//! The records that one decision of the coordinator writes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::Partition;
use crate::registry::decision::{LOST, Write, json};
use crate::route::ServerState;

use super::policy::{Policy, Unfit};
use super::pool::Free;
use super::record::{
    Ended, Key, Lease, Malformed, Rebalance, Refusal, Registration, Term, VERSION,
};
use super::state::Registry;

/// Longest reason of a refusal in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// The records that a decision will write, and the state that it depends on.
pub(super) struct Plan<'a> {
    term: Term,
    lease_ms: u64,
    pub(super) registry: &'a Registry,
    policy: &'a Policy,
    taken: Option<Taken>,
    pub(super) writes: Vec<Write>,
    pub(super) touched: BTreeSet<String>,
}

/// Partitions and addresses in use; computed once, for a plan that allots.
pub(super) struct Taken {
    pub(super) partitions: BTreeSet<Partition>,
    addresses: BTreeMap<(String, IpAddr), String>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        term: Term,
        lease_ms: u64,
        registry: &'a Registry,
        policy: &'a Policy,
    ) -> Self {
        let (writes, touched) = (Vec::new(), BTreeSet::new());
        Self { term, lease_ms, registry, policy, taken: None, writes, touched }
    }

    pub(super) fn lease(
        &self,
        of: &Registration,
        partition: Partition,
        epoch: u64,
        state: ServerState,
    ) -> Lease {
        Lease {
            version: VERSION,
            term: self.term,
            instance: of.instance.clone(),
            state,
            partition,
            epoch,
            lease_ms: self.lease_ms,
            service: of.service.clone(),
            address: of.address,
            capacity: of.capacity,
            labels: of.labels.clone(),
            from: 0,
            superseded: Vec::new(),
            reason: None,
        }
    }

    fn push(&mut self, id: &str, write: Write) {
        self.touched.insert(id.to_owned());
        self.writes.push(write);
    }

    pub(super) fn remove(&mut self, key: Key, id: &str) {
        self.push(id, Write::remove(key));
    }

    /// Writes a lease if it differs from the present one in more than its term.
    pub(super) fn set_lease(&mut self, id: &str, present: Option<&Lease>, wanted: &Lease) {
        let same = present.is_some_and(|present| {
            let mut present = present.clone();
            present.term = wanted.term;
            present == *wanted
        });
        if !same {
            self.push(id, Write::new(Key::Lease(id.to_owned()), wanted));
        }
        // A server with a lease is not refused. When another process gets the lease, nobody reads the
        // refusal of a former one.
        let is_new = present.is_none_or(|present| present.instance != wanted.instance);
        if self
            .registry
            .refusals()
            .get(id)
            .is_some_and(|refusal| is_new || refusal.instance == wanted.instance)
        {
            self.remove(Key::Refusal(id.to_owned()), id);
        }
    }

    pub(super) fn set_state(
        &mut self,
        id: &str,
        lease: &Lease,
        state: ServerState,
        reason: Option<&str>,
    ) {
        let reason = reason.map(ToOwned::to_owned);
        let wanted = Lease { term: self.term, state, reason, ..lease.clone() };
        self.set_lease(id, Some(lease), &wanted);
    }

    /// Writes the valid record again, so that it is the last one of its key.
    pub(super) fn write_again(&mut self, key: Key) {
        let (registry, term) = (self.registry, self.term);
        let again = match &key {
            Key::Lease(id) => match registry.leases().get(id) {
                Some(lease)
                    if lease.is_in_force()
                        && !lease.is_declared()
                        && !registry.holds(id, lease.partition) =>
                {
                    return self.set_state(id, lease, ServerState::Gone, Some(LOST));
                }
                lease => lease.map(|lease| json(&Lease { term, ..lease.clone() })),
            },
            Key::Refusal(id) => registry
                .refusals()
                .get(id)
                .map(|refusal| json(&Refusal { term, ..refusal.clone() })),
            Key::Order(id) => registry.orders().get(id).map(json),
            Key::Rebalance(service) => registry.rebalances().get(service).map(|of| {
                let ended = of.ended.clone().map(|ended| Ended { term, ..ended });
                json(&Rebalance { ended, ..of.clone() })
            }),
            Key::Relay(relay) => registry.relays().get(relay).map(json),
            // The coordinator takes office again. A registration is never refused.
            Key::Coordinator | Key::Server(_) => return,
        };
        if let Key::Lease(id) | Key::Refusal(id) | Key::Order(id) = &key {
            self.touched.insert(id.clone());
        }
        self.writes.push(Write { key, value: again });
    }

    pub(super) fn refuse(&mut self, id: &str, unfit: &Unfit) {
        let instance = match self.registry.registrations().get(id) {
            Some(Ok(registration)) => registration.instance.clone(),
            Some(Err(Malformed { instance, .. })) => instance.clone().unwrap_or_default(),
            None => String::new(),
        };
        let mut reason = unfit.to_string();
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        let refusal = Refusal { version: VERSION, term: self.term, instance, reason };
        let present = self.registry.refusals().get(id);
        if present.is_none_or(|present| {
            (&present.instance, &present.reason) != (&refusal.instance, &refusal.reason)
        }) {
            self.push(id, Write::new(Key::Refusal(id.to_owned()), &refusal));
        }
    }

    /// Gives a free partition to a server.
    pub(super) fn grant(&mut self, id: &str, registration: &Registration, free: Free) {
        let (registry, partition) = (self.registry, free.partition);
        let epoch = registry.epoch(partition).saturating_add(1);
        let taken = self.taken();
        taken.partitions.insert(partition);
        let address = (registration.service.clone(), registration.address);
        taken.addresses.insert(address, id.to_owned());
        let mut wanted = self.lease(registration, partition, epoch, ServerState::Live);
        wanted.from = free.end;
        let former = registry.leases().get(id);
        if let Some(former) = former.filter(|former| !former.is_declared()) {
            wanted.succeed(former);
        }
        self.set_lease(id, former, &wanted);
    }

    /// An operator's order: the server is gone, and of its records only the one that keeps an epoch stays.
    pub(super) fn forget(&mut self, id: &str) {
        if let Some(lease) = self.registry.leases().get(id)
            && lease.is_in_force()
        {
            self.set_state(id, lease, ServerState::Gone, Some("an operator's order"));
        }
        self.remove_answers(id);
        self.remove(Key::Order(id.to_owned()), id);
    }

    pub(super) fn remove_answers(&mut self, id: &str) {
        if self.registry.registrations().contains_key(id) {
            self.remove(Key::Server(id.to_owned()), id);
        }
        if self.registry.refusals().contains_key(id) {
            self.remove(Key::Refusal(id.to_owned()), id);
        }
    }

    pub(super) fn taken(&mut self) -> &mut Taken {
        let (registry, policy) = (self.registry, self.policy);
        self.taken.get_or_insert_with(|| {
            let in_force = || registry.leases().iter().filter(|(_, lease)| lease.is_in_force());
            let declared = policy.declared.iter().map(|(id, declared)| {
                ((declared.service.clone(), declared.server.address), id.clone())
            });
            let leased =
                in_force().map(|(id, lease)| ((lease.service.clone(), lease.address), id.clone()));
            Taken {
                partitions: in_force().map(|(_, lease)| lease.partition).collect(),
                addresses: declared.chain(leased).collect(),
            }
        })
    }

    /// The other server of the service that has this address.
    pub(super) fn address_taken(
        &mut self,
        id: &str,
        registration: &Registration,
    ) -> Option<String> {
        // Nothing has changed, so nothing is to be looked for.
        let same = |lease: &Lease| {
            (lease.address, &lease.service) == (registration.address, &registration.service)
        };
        if self.registry.leases().get(id).is_some_and(|lease| lease.is_in_force() && same(lease)) {
            return None;
        }
        let address = (registration.service.clone(), registration.address);
        self.taken().addresses.get(&address).filter(|of| *of != id).cloned()
    }
}
