//! Servers that wait for a partition.

use std::collections::{BTreeMap, VecDeque};

use super::*;

/// So long it takes to find out how far one partition is read.
const LOOK: Duration = Duration::from_millis(100);
/// So long that is true.
const VALID: Duration = LEASE.checked_div(4).unwrap();

/// A cluster that answers one question after the other.
#[derive(Default)]
pub(super) struct Slow {
    now: Option<Instant>,
    known: BTreeMap<Partition, Instant>,
    asked: VecDeque<Partition>,
}

impl Slow {
    /// True if it is known.
    pub(super) fn ask(&mut self, partition: Partition, since: Instant) -> bool {
        let valid = |at: &Instant| {
            *at >= since && self.now.is_some_and(|now| now.saturating_duration_since(*at) < VALID)
        };
        let known = self.known.get(&partition).is_some_and(valid);
        if !known && !self.asked.contains(&partition) {
            self.asked.push_back(partition);
        }
        known
    }

    fn answer(&mut self, now: Instant) {
        self.now = Some(now);
        if let Some(partition) = self.asked.pop_front() {
            self.known.insert(partition, now);
        }
    }
}

fn slow_bench(partitions: u16) -> Bench {
    let mut bench = Bench::new();
    bench.coordinator = Coordinator::new(Policy { partitions, ..policy() }, bench.now);
    bench.take_office();
    bench.world.slow = Some(Slow::default());
    bench
}

impl Bench {
    /// Lets time pass as the registry's thread does; `id` goes on registering.
    fn wait_registering(&mut self, id: &str, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.register(id, &registration("one", 7));
            let next = self.now + LEASE / 3;
            while self.now < next.min(end) {
                self.pass(LOOK);
                self.world.slow.as_mut().unwrap().answer(self.now);
                self.settle();
            }
        }
    }
}

#[test]
fn a_server_has_its_answer_within_a_lease_however_many_partitions_are_to_be_looked_at() {
    for partitions in [61, 400] {
        let mut bench = slow_bench(partitions);
        bench.world.unread = (1..partitions).map(|partition| (partition, 5)).collect();
        bench.wait_registering("a", LEASE * 9 / 10);
        assert!(bench.refusal("a").contains("no partition is free"), "{partitions}");
    }
}

#[test]
fn the_one_partition_that_is_free_is_found_among_many() {
    let mut bench = slow_bench(61);
    bench.world.unread = (1..60).map(|partition| (partition, 5)).collect();
    bench.wait_registering("a", LEASE * 9 / 10);
    assert_eq!((bench.lease("a").partition, bench.lease("a").from), (Partition(60), END));
    // It takes longer than a lease, and the server goes on registering.
    let mut bench = slow_bench(251);
    bench.world.unread = (1..250).map(|partition| (partition, 5)).collect();
    bench.wait_registering("a", LEASE);
    assert!(bench.refusal("a").contains("gets the next free one"));
    let refusals = |bench: &Bench| {
        bench.log.iter().filter(|(_, key, value)| key == b"refusal/a" && value.is_some()).count()
    };
    assert_eq!(refusals(&bench), 1, "said once");
    bench.wait_registering("a", LEASE * 3);
    assert_eq!(bench.lease("a").partition, Partition(250));
    assert!(!bench.registry.refusals().contains_key("a"));
}

#[test]
fn a_partition_rests_after_its_holder() {
    let rest = policy().relay_timeout;
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    bench.register("b", &registration("one", 8));
    let mut leaving = registration("one", 7);
    leaving["state"] = "gone".into();
    bench.register("a", &leaving);
    bench.register("c", &registration("one", 9));
    assert!(!bench.registry.leases().contains_key("c"), "relays may still write for its holder");
    bench.pass(rest / 2);
    // Whoever had it last gets it back at once: what is written for it is its own.
    bench.register("a", &registration("two", 7));
    assert_eq!((bench.lease("a").partition, bench.lease("a").epoch), (Partition(1), 2));
    leaving["instance"] = "two".into();
    bench.register("a", &leaving);
    bench.register("c", &registration("one", 9));
    bench.pass(rest.checked_sub(LOOK).unwrap());
    bench.register("c", &registration("one", 9));
    assert!(!bench.registry.leases().contains_key("c"), "the rest begins anew");
    bench.pass(LOOK);
    assert_eq!((bench.lease("c").partition, bench.lease("c").epoch), (Partition(1), 3));
    assert_eq!(bench.lease("c").from, END);
    // A process that takes the lease over has what was written for the former one.
    bench.world.unread.insert(1, 5);
    bench.register("c", &registration("two", 9));
    assert_eq!((bench.lease("c").epoch, bench.lease("c").from), (4, END));
}

#[test]
fn a_partition_rests_after_a_start_because_nobody_knows_since_when_it_is_free() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    bench.register("b", &registration("one", 8));
    let mut leaving = registration("one", 7);
    leaving["state"] = "gone".into();
    bench.register("a", &leaving);
    bench.now += policy().relay_timeout * 5;
    bench.registry = fold(&bench.log);
    bench.coordinator = Coordinator::new(policy(), bench.now);
    bench.take_office();
    bench.register("c", &registration("one", 9));
    assert!(!bench.registry.leases().contains_key("c"));
    bench.pass(policy().relay_timeout / 2);
    bench.register("c", &registration("one", 9));
    bench.pass(policy().relay_timeout / 2);
    assert_eq!(bench.lease("c").partition, Partition(1));
}

#[test]
fn nobody_gets_a_partition_while_something_is_committed_there() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    let mut leaving = registration("one", 7);
    leaving["state"] = "gone".into();
    bench.register("a", &leaving);
    // Its former holder comes back, and another one is new: there are two partitions.
    bench.world.busy = [Partition(1), Partition(2)].into();
    bench.register("a", &registration("two", 7));
    bench.register("b", &registration("one", 8));
    assert_eq!(bench.lease("a").state, ServerState::Gone);
    assert!(!bench.registry.leases().contains_key("b"));
    bench.world.busy.clear();
    bench.settle();
    let got = |bench: &Bench, id: &str| (bench.lease(id).partition, bench.lease(id).epoch);
    assert_eq!((got(&bench, "a"), got(&bench, "b")), ((Partition(1), 2), (Partition(2), 1)));
    // Another one that is free does as well.
    let mut bench = Bench::new();
    bench.world.busy = [Partition(1)].into();
    bench.register("a", &registration("one", 7));
    assert_eq!(bench.lease("a").partition, Partition(2));
}

#[test]
fn partitions_without_a_holder_are_those_that_nobody_has_declared_or_leased() {
    let mut bench = Bench::new();
    let unheld = |bench: &Bench| {
        let leases = bench.registry.leases().values();
        bench.coordinator.policy().unheld(leases).iter().map(|of| of.0).collect::<Vec<_>>()
    };
    assert_eq!(unheld(&bench), [1, 2]);
    bench.register("a", &registration("one", 7));
    assert_eq!(unheld(&bench), [2]);
    bench.pass(LEASE);
    assert_eq!((bench.lease("a").state, unheld(&bench)), (ServerState::Away, vec![2]));
    bench.pass(FORGET);
    assert_eq!((bench.lease("a").state, unheld(&bench)), (ServerState::Gone, vec![1, 2]));
}
