//! What the coordinator writes: decided from the registry, a clock and a few facts, without I/O.
//!
//! Decisions are level-triggered, not edge-triggered: a server's lease is compared with what it should be,
//! and written if it differs. So a new coordinator needs nothing of what the last one knew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kafka::Unread;
use crate::model::{Partition, RelayId};
use crate::registry::decision::{Facts, LOST, Write};
use crate::route::ServerState;

use super::plan::Plan;
use super::policy::{Declared, Policy, Unfit};
use super::pool::{Free, GoesOn, Pool, Search};
use super::rebalance::Rebalancings;
use super::record::{Key, Lease, OrderKind, Registration, RelayState, Term, VERSION, Wish};
use super::state::{Outcome, Registry};

/// How often per lease the coordinator looks at the clock.
const SCANS_PER_LEASE: u32 = 10;
/// After a gap this long, the coordinator cannot tell a silent server from one that it did not hear.
const LEAST_GAP: Duration = Duration::from_secs(1);

/// Watches the ages of the registry's records, and decides what to write while it has a term.
#[derive(Debug)]
pub struct Coordinator {
    policy: Arc<Policy>,
    term: Option<(Term, Instant)>,
    /// When the last registration of the right process was read.
    renewed: BTreeMap<String, Instant>,
    /// When the end of a server's lease was read.
    over: BTreeMap<String, Instant>,
    /// When a relay's last record was read.
    relays: BTreeMap<RelayId, Instant>,
    /// Servers to look at.
    dirty: BTreeSet<String>,
    /// Keys whose record compaction may have replaced by one that was refused.
    spoilt: BTreeSet<Key>,
    /// Since when nothing waits for a draining server.
    empty: BTreeMap<String, Instant>,
    /// When it was last known how much waits for a server that is gone.
    graves: BTreeMap<Partition, Instant>,
    pool: Pool,
    rebalancings: Rebalancings,
    next_scan: Instant,
    looked: Instant,
}

/// Whether a server has its answer.
#[derive(PartialEq, Eq)]
enum Judged {
    Done,
    /// A fact is not known yet.
    Later,
}

impl Coordinator {
    /// A coordinator without a term.
    pub fn new(policy: Policy, now: Instant) -> Self {
        Self {
            policy: Arc::new(policy),
            term: None,
            renewed: BTreeMap::new(),
            over: BTreeMap::new(),
            relays: BTreeMap::new(),
            dirty: BTreeSet::new(),
            spoilt: BTreeSet::new(),
            empty: BTreeMap::new(),
            graves: BTreeMap::new(),
            pool: Pool::new(now),
            rebalancings: Rebalancings::default(),
            next_scan: now,
            looked: now,
        }
    }

    /// The rules that it applies.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Its term, if it has one.
    pub fn term(&self) -> Option<Term> {
        self.term.map(|(term, _)| term)
    }

    /// True if compaction may have lost the record of its term, so that it should take office again.
    pub fn is_office_spoilt(&self) -> bool {
        self.spoilt.contains(&Key::Coordinator)
    }

    /// Takes office. All timeouts start again, because the clock of the last coordinator is not known.
    pub fn begin(&mut self, term: Term, registry: &Registry, now: Instant) {
        self.term = Some((term, now));
        self.dirty = registry.registrations().keys().cloned().collect();
        self.dirty.extend(registry.orders().keys().cloned());
        self.dirty.extend(registry.leases().keys().cloned());
        self.empty.clear();
        self.rebalancings.clear();
        self.next_scan = now;
        self.looked = now;
    }

    /// Records that everything written so far has been read, so that silence means silence. Called before
    /// each decision. After a gap of half a timeout (the relay was paused, or Kafka did not answer) all
    /// timeouts start again.
    pub fn look(&mut self, now: Instant) {
        let gap = self.policy.lease.min(self.policy.relay_timeout) / 2;
        let looked = std::mem::replace(&mut self.looked, now);
        let missed = now.saturating_duration_since(looked);
        if let Some((_, begun)) = &mut self.term
            && missed > gap.max(LEAST_GAP)
        {
            tracing::warn!(
                missed_ms = missed.as_millis(),
                "the coordinator was paused; all leases start again"
            );
            *begun = now;
            self.empty.clear();
        }
    }

    /// Leaves office.
    pub fn end(&mut self) {
        self.term = None;
    }

    /// How long ago a server's registration was read.
    pub fn age(&self, id: &str, now: Instant) -> Option<Duration> {
        self.renewed.get(id).map(|at| now.saturating_duration_since(*at))
    }

    /// Takes note of a record from before this relay's time. Its writer may no longer exist.
    pub fn observe_past(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Changed(key) => {
                self.spoilt.remove(key);
            }
            Outcome::Refused(_, Some(key)) => {
                self.spoilt.insert(key.clone());
            }
            Outcome::Refused(_, None) => {}
        }
    }

    /// Takes note of a record that was applied to the registry.
    pub fn observe(&mut self, registry: &Registry, outcome: &Outcome, now: Instant) {
        self.observe_past(outcome);
        match outcome {
            Outcome::Changed(Key::Server(id)) => self.observe_server(registry, id, now),
            Outcome::Changed(Key::Lease(id)) => self.observe_lease(registry, id, now),
            Outcome::Changed(Key::Order(id)) => {
                self.dirty.insert(id.clone());
            }
            Outcome::Changed(Key::Relay(relay)) => {
                self.relays.insert(*relay, now);
            }
            Outcome::Changed(Key::Rebalance(service)) => self.rebalancings.forget(service),
            Outcome::Changed(Key::Refusal(_) | Key::Coordinator) | Outcome::Refused(..) => {}
        }
        // Only the coordinator looks at them. A new one looks at all servers.
        if self.term.is_none() {
            self.dirty.clear();
        }
    }

    fn observe_lease(&mut self, registry: &Registry, id: &str, now: Instant) {
        match registry.leases().get(id).filter(|lease| !lease.is_declared()) {
            Some(lease) => {
                self.pool.observe(lease.partition, lease.is_in_force(), now);
                if lease.is_in_force() {
                    self.over.remove(id);
                } else {
                    self.over.entry(id.to_owned()).or_insert(now);
                }
            }
            None => {
                self.over.remove(id);
            }
        }
        self.dirty.insert(id.to_owned());
    }

    fn observe_server(&mut self, registry: &Registry, id: &str, now: Instant) {
        let lease = registry.leases().get(id).filter(|lease| lease.is_in_force());
        match registry.registrations().get(id) {
            None if lease.is_none() => {
                self.renewed.remove(id);
                self.pool.answered(id);
            }
            Some(Ok(registration))
                if lease.is_none_or(|lease| lease.instance == registration.instance) =>
            {
                self.renewed.insert(id.to_owned(), now);
            }
            Some(Err(_)) if lease.is_none() => {
                self.renewed.insert(id.to_owned(), now);
            }
            // Another process, which counts once it gets the lease.
            _ => {}
        }
        self.dirty.insert(id.to_owned());
    }

    /// What to write now. Must not be called again before that is applied.
    pub fn decide(
        &mut self,
        registry: &Registry,
        facts: &mut impl Facts,
        now: Instant,
    ) -> Vec<Write> {
        let Some((term, _)) = self.term else { return Vec::new() };
        let lease_ms = u64::try_from(self.policy.lease.as_millis()).unwrap_or(u64::MAX);
        let policy = Arc::clone(&self.policy);
        let mut plan = Plan::new(term, lease_ms, registry, &policy);
        for key in std::mem::take(&mut self.spoilt) {
            plan.write_again(key);
        }
        for id in std::mem::take(&mut self.dirty) {
            if !plan.touched.contains(&id) && self.judge(&mut plan, facts, &id, now) == Judged::Done
            {
                continue;
            }
            self.dirty.insert(id);
        }
        if now >= self.next_scan {
            self.next_scan = now + self.policy.lease / SCANS_PER_LEASE;
            self.scan_servers(&mut plan, facts, now);
            self.scan_relays(&mut plan, now);
            let rules = (&*policy, term);
            plan.writes.extend(self.rebalancings.scan(registry, rules, facts, now));
        }
        plan.writes
    }

    fn judge(
        &mut self,
        plan: &mut Plan<'_>,
        facts: &mut impl Facts,
        id: &str,
        now: Instant,
    ) -> Judged {
        let registry = plan.registry;
        let order = registry.orders().get(id).map(|order| order.order);
        if order == Some(OrderKind::Forget) {
            plan.forget(id);
            return Judged::Done;
        }
        if let Some(declared) = self.policy.declared.get(id) {
            judge_declared(plan, id, declared, order);
            if registry.registrations().contains_key(id) {
                plan.refuse(id, &Unfit::Declared);
            }
            return Judged::Done;
        }
        let lease = registry.leases().get(id);
        match (registry.registrations().get(id), lease) {
            (_, Some(lease)) if lease.is_declared() => {
                // The configuration no longer declares it.
                plan.remove(Key::Lease(id.to_owned()), id);
                Judged::Done
            }
            (_, Some(lease))
                if lease.is_in_force()
                    && (!registry.holds(id, lease.partition)
                        || self.policy.is_declared(lease.partition)) =>
            {
                plan.set_state(id, lease, ServerState::Gone, Some(LOST));
                Judged::Done
            }
            (None, None) => Judged::Done,
            (None, Some(lease)) => {
                if order.is_some() && matches!(lease.state, ServerState::Live | ServerState::Away) {
                    plan.set_state(id, lease, ServerState::Draining, None);
                }
                Judged::Done
            }
            (Some(Err(malformed)), _) => {
                plan.refuse(id, &Unfit::Malformed(malformed.problem.clone()));
                Judged::Done
            }
            (Some(Ok(_)), Some(lease)) if !lease.is_in_force() && !registry.has_spoken(id) => {
                Judged::Done
            }
            (Some(Ok(registration)), Some(lease)) if lease.is_in_force() => {
                self.judge_holder(plan, id, registration, (lease, order), now);
                Judged::Done
            }
            (Some(Ok(registration)), lease) => {
                self.judge_newcomer(plan, facts, id, (registration, lease, order), now)
            }
        }
    }

    /// A registration whose server has a lease: the process that holds it, or another one.
    fn judge_holder(
        &mut self,
        plan: &mut Plan<'_>,
        id: &str,
        registration: &Registration,
        (lease, order): (&Lease, Option<OrderKind>),
        now: Instant,
    ) {
        let same = lease.instance == registration.instance;
        if lease.superseded.contains(&registration.instance) {
            // It learns that from the other process's lease under its id.
            return;
        }
        let state = match registration.state {
            Wish::Gone if same => {
                return plan.set_state(id, lease, ServerState::Gone, Some("it left"));
            }
            Wish::Gone => return,
            Wish::Draining => ServerState::Draining,
            Wish::Live if order.is_some() => ServerState::Draining,
            Wish::Live => ServerState::Live,
        };
        if let Err(unfit) = self.policy.check(id, registration) {
            return plan.refuse(id, &unfit);
        }
        if let Some(of) = plan.address_taken(id, registration) {
            return plan.refuse(id, &Unfit::AddressTaken { address: registration.address, of });
        }
        if same && lease.state == ServerState::Away && !plan.registry.has_spoken(id) {
            return;
        }
        let mut wanted = plan.lease(registration, lease.partition, lease.epoch, state);
        wanted.from = lease.from;
        if same {
            wanted.superseded.clone_from(&lease.superseded);
        } else {
            wanted.epoch = lease.epoch.saturating_add(1);
            wanted.succeed(lease);
            self.renewed.insert(id.to_owned(), now);
        }
        plan.set_lease(id, Some(lease), &wanted);
    }

    /// A registration whose server has no lease.
    fn judge_newcomer(
        &mut self,
        plan: &mut Plan<'_>,
        facts: &mut impl Facts,
        id: &str,
        (registration, former, order): (&Registration, Option<&Lease>, Option<OrderKind>),
        now: Instant,
    ) -> Judged {
        // The registration is older than this relay; its process may no longer exist.
        let age = self.age(id, now);
        let judged = if age.is_none_or(|age| age >= self.policy.lease) {
            Judged::Done
        } else {
            self.judge_wish(plan, facts, id, (registration, former, order), now)
        };
        if judged == Judged::Done {
            self.pool.answered(id);
        }
        judged
    }

    fn judge_wish(
        &mut self,
        plan: &mut Plan<'_>,
        facts: &mut impl Facts,
        id: &str,
        (registration, former, order): (&Registration, Option<&Lease>, Option<OrderKind>),
        now: Instant,
    ) -> Judged {
        let is_over = former.is_some_and(|lease| lease.is_former(&registration.instance));
        let unfit = match registration.state {
            Wish::Gone => return Judged::Done,
            // Its lease already says that it is gone.
            Wish::Draining if is_over => return Judged::Done,
            // A late renewal by a process that will end once it reads its lease.
            Wish::Live if is_over => Some(Unfit::Over),
            Wish::Draining => Some(Unfit::NothingToDrain),
            Wish::Live if order.is_some() => Some(Unfit::Drained),
            Wish::Live => self.policy.check(id, registration).err(),
        };
        let unfit = unfit.or_else(|| {
            let of = plan.address_taken(id, registration)?;
            Some(Unfit::AddressTaken { address: registration.address, of })
        });
        if let Some(unfit) = unfit {
            plan.refuse(id, &unfit);
            return Judged::Done;
        }
        match self.allot(plan, facts, (id, former), now) {
            Search::Found(free) => {
                self.renewed.insert(id.to_owned(), now);
                plan.grant(id, registration, free);
                Judged::Done
            }
            Search::None(unfit, GoesOn::No) => {
                plan.refuse(id, &unfit);
                Judged::Done
            }
            Search::None(unfit, GoesOn::Aloud) => {
                plan.refuse(id, &unfit);
                Judged::Later
            }
            Search::None(_, GoesOn::Silently) | Search::Later => Judged::Later,
        }
    }

    /// The server's former partition if it still owns that, or else the first that is free and empty.
    fn allot(
        &mut self,
        plan: &mut Plan<'_>,
        facts: &mut impl Facts,
        (id, former): (&str, Option<&Lease>),
        now: Instant,
    ) -> Search {
        let registry = plan.registry;
        let taken = plan.taken();
        // The records that wait there are for this server.
        if let Some(Lease { partition, from, .. }) = former
            && partition.0 < self.policy.partitions
            && !self.policy.is_declared(*partition)
            && !taken.partitions.contains(partition)
            && registry.holds(id, *partition)
        {
            let free = Free { partition: *partition, end: *from };
            return if facts.claim(*partition) { Search::Found(free) } else { Search::Later };
        }
        let is_taken = |partition| taken.partitions.contains(&partition);
        self.pool.search(id, is_taken, (registry, &self.policy), facts, now)
    }

    /// How long a server has been silent, by our clock and within our term.
    fn silent(&self, id: &str, now: Instant) -> Option<Duration> {
        let (_, begun) = self.term?;
        let heard = self.renewed.get(id).map_or(begun, |at| begun.max(*at));
        Some(now.saturating_duration_since(heard))
    }

    fn scan_servers(&mut self, plan: &mut Plan<'_>, facts: &mut impl Facts, now: Instant) {
        let (patience, forget) = (self.policy.lease, self.policy.lease + self.policy.forget);
        for (id, lease) in plan.registry.leases() {
            if plan.touched.contains(id) {
                continue;
            }
            let silent = self.silent(id, now).unwrap_or_default();
            let over = self.over.get(id).map_or(silent, |at| now.saturating_duration_since(*at));
            match lease.state {
                ServerState::Draining if self.is_drained(id, lease, facts, now) => {
                    self.empty.remove(id);
                    plan.set_state(id, lease, ServerState::Gone, Some("drained"));
                }
                ServerState::Live if silent >= patience && !lease.is_declared() => {
                    plan.set_state(id, lease, ServerState::Away, Some("it does not renew"));
                }
                ServerState::Away | ServerState::Draining
                    if silent >= forget && !lease.is_declared() =>
                {
                    plan.set_state(id, lease, ServerState::Gone, Some("it did not come back"));
                }
                ServerState::Gone if plan.registry.holds(id, lease.partition) => {
                    self.look_after(lease.partition, facts, now);
                }
                // The lease records no epoch, and its holder is presumed dead.
                ServerState::Gone if !lease.is_declared() && silent.min(over) >= forget => {
                    plan.remove(Key::Lease(id.clone()), id);
                }
                _ => {}
            }
        }
        // What is left of servers that are gone.
        for id in plan.registry.registrations().keys().chain(plan.registry.refusals().keys()) {
            let in_force = plan.registry.leases().get(id).is_some_and(Lease::is_in_force);
            let silent = self.silent(id, now).unwrap_or_default();
            if !in_force && silent >= forget && plan.touched.insert(id.clone()) {
                plan.remove_answers(id);
            }
        }
    }

    /// Nobody reads what arrives for a server that is gone. Checked once per lease.
    fn look_after(&mut self, partition: Partition, facts: &mut impl Facts, now: Instant) {
        let looked = self.graves.get(&partition);
        if looked.is_some_and(|at| now.saturating_duration_since(*at) < self.policy.lease) {
            return;
        }
        let Some((_, begun)) = self.term else { return };
        match facts.unread(partition, begun) {
            Some(Unread { records: 0, .. }) => {
                self.pool.emptied(partition);
                self.graves.insert(partition, now);
            }
            Some(_) if facts.bury(partition) => {
                self.graves.insert(partition, now);
            }
            _ => {}
        }
    }

    /// True if the server has had no clients, and nothing has waited for it, for the length of a lease.
    fn is_drained(
        &mut self,
        id: &str,
        lease: &Lease,
        facts: &mut impl Facts,
        now: Instant,
    ) -> bool {
        let Some((_, begun)) = self.term else { return false };
        match facts.unread_by_living(lease.partition, begun) {
            Some(Unread { records: 0, .. }) if facts.clients(id) == 0 => {
                let since = *self.empty.entry(id.to_owned()).or_insert(now);
                now.saturating_duration_since(since) >= self.policy.lease
            }
            Some(_) => {
                self.empty.remove(id);
                false
            }
            None => false,
        }
    }

    fn scan_relays(&mut self, plan: &mut Plan<'_>, now: Instant) {
        let Some((_, begun)) = self.term else { return };
        for (relay, record) in plan.registry.relays() {
            let heard = self.relays.get(relay).map_or(begun, |at| begun.max(*at));
            let silent = now.saturating_duration_since(heard);
            if record.state == RelayState::Live && silent >= self.policy.relay_timeout {
                let mut record = record.clone();
                record.state = RelayState::Gone;
                plan.writes.push(Write::new(Key::Relay(*relay), &record));
            }
        }
    }
}

/// A declared server has a lease only while an operator drains it.
fn judge_declared(plan: &mut Plan<'_>, id: &str, declared: &Declared, order: Option<OrderKind>) {
    let lease = plan.registry.leases().get(id);
    if order.is_none() {
        match lease {
            Some(lease) if lease.is_declared() => plan.remove(Key::Lease(id.to_owned()), id),
            Some(lease) if lease.is_in_force() => {
                plan.set_state(id, lease, ServerState::Gone, Some("it is declared now"));
            }
            _ => {}
        }
    } else {
        let server = &declared.server;
        let registration = Registration {
            version: VERSION,
            service: declared.service.clone(),
            address: server.address,
            capacity: server.capacity,
            labels: server.labels.clone(),
            instance: String::new(),
            state: Wish::Draining,
        };
        let mut wanted = plan.lease(&registration, server.partition, 0, ServerState::Draining);
        if let Some(lease) = lease.filter(|lease| lease.is_declared() && !lease.is_in_force()) {
            (wanted.state, wanted.reason) = (lease.state, lease.reason.clone());
        }
        plan.set_lease(id, lease, &wanted);
    }
}
