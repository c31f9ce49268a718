//! A process whose lease is over gets none again, whatever it still writes.

use super::*;

/// An operator's order.
fn forget(bench: &mut Bench, id: &str) {
    let order = serde_json::json!({"version": 1, "order": "forget"});
    bench.write(&Key::Order(id.to_owned()), &order);
}

#[test]
fn a_renewal_on_its_way_does_not_bring_a_forgotten_server_back() {
    let renewal = registration("one", 7);
    for before in [false, true] {
        let mut bench = Bench::new();
        bench.register("a", &renewal);
        forget(&mut bench, "a");
        let writes = bench.coordinator.decide(&bench.registry, &mut bench.world, bench.now);
        // The server has not read of it yet. The order of the log is what Kafka makes of it.
        if before {
            bench.write(&Key::Server("a".to_owned()), &renewal);
        }
        for Write { key, value } in writes {
            bench.append(key.to_string().as_bytes(), value);
        }
        if !before {
            bench.write(&Key::Server("a".to_owned()), &renewal);
        }
        bench.settle();
        let gone = bench.lease("a").clone();
        assert_eq!((gone.state, gone.epoch), (ServerState::Gone, 1), "before: {before}");
        assert_eq!(gone.reason.as_deref(), Some("an operator's order"));
        assert_eq!(bench.registry.refusals().contains_key("a"), !before);

        bench.register("a", &registration("two", 7));
        let lease = bench.lease("a").clone();
        assert_eq!((&*lease.instance, lease.state, lease.epoch), ("two", ServerState::Live, 2));
        assert!(bench.registry.refusals().is_empty(), "it was the former process's");
        bench.register("a", &renewal);
        assert_eq!(bench.lease("a"), &lease, "nor does it take the lease from the next process");
    }
}

#[test]
fn a_process_gets_no_lease_again_however_its_own_has_ended() {
    let ended = |end: &dyn Fn(&mut Bench)| {
        let mut bench = Bench::new();
        bench.register("a", &registration("one", 7));
        end(&mut bench);
        let gone = bench.lease("a").clone();
        assert_eq!(gone.state, ServerState::Gone);
        bench.register("a", &registration("one", 7));
        assert_eq!(bench.lease("a"), &gone);
        assert!(bench.refusal("a").contains("a new `instance`"), "{}", bench.refusal("a"));
        gone.reason.unwrap()
    };
    let left = ended(&|bench| {
        let mut leaving = registration("one", 7);
        leaving["state"] = "gone".into();
        bench.register("a", &leaving);
    });
    let silent = ended(&|bench| {
        bench.pass(LEASE);
        bench.pass(FORGET);
    });
    let drained = ended(&|bench| {
        let drain = serde_json::json!({"version": 1, "order": "drain"});
        bench.write(&Key::Order("a".to_owned()), &drain);
        bench.settle();
        bench.pass(LEASE / 10);
        bench.pass(LEASE);
        bench.append(b"order/a", None);
        bench.settle();
    });
    assert_eq!([&*left, &*silent, &*drained], ["it left", "it did not come back", "drained"]);
}

#[test]
fn a_superseded_process_gets_no_lease_when_its_successor_is_gone() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    bench.register("a", &registration("two", 7));
    forget(&mut bench, "a");
    bench.settle();
    bench.register("a", &registration("one", 7));
    assert_eq!((bench.lease("a").state, bench.lease("a").epoch), (ServerState::Gone, 2));
    bench.register("a", &registration("three", 7));
    assert_eq!(bench.lease("a").superseded, ["one", "two"]);
}

#[test]
fn a_forgotten_process_stays_known_when_another_server_has_its_partition() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    forget(&mut bench, "a");
    bench.settle();
    bench.pass(LEASE);
    bench.register("b", &registration("one", 8));
    let next = bench.lease("b");
    assert_eq!((next.partition, next.epoch), (Partition(1), 2), "that of `a`");
    // It was paused; another partition is free.
    bench.register("a", &registration("one", 7));
    assert_eq!((bench.lease("a").state, bench.lease("a").epoch), (ServerState::Gone, 1));
    // A new process is not kept waiting for that.
    bench.register("a", &registration("two", 7));
    let lease = bench.lease("a").clone();
    assert_eq!((lease.partition, lease.state), (Partition(2), ServerState::Live));
    bench.register("a", &registration("one", 7));
    assert_eq!(bench.lease("a"), &lease);
}

#[test]
fn nothing_is_left_of_a_server_that_nobody_can_mean_any_more() {
    let mut bench = Bench::new();
    bench.register("a", &registration("one", 7));
    forget(&mut bench, "a");
    bench.settle();
    bench.pass(FORGET);
    bench.register("b", &registration("one", 8));
    assert_eq!(bench.lease("b").epoch, 2, "the partition of `a`");
    let renew = |bench: &mut Bench| {
        bench.pass(LEASE / 2);
        bench.register("b", &registration("one", 8));
        bench.registry.leases().contains_key("a")
    };
    assert!(renew(&mut bench), "it was gone for less than it would have been away");
    assert!(!renew(&mut bench));
    // The next coordinator does not know since when.
    bench.register("c", &registration("one", 9));
    forget(&mut bench, "c");
    bench.settle();
    bench.pass(LEASE);
    bench.register("d", &registration("one", 10));
    assert_eq!(bench.lease("d").epoch, 2, "the partition of `c`");
    bench.take_office();
    bench.pass(FORGET);
    assert!(bench.registry.leases().contains_key("c"));
    bench.pass(LEASE);
    assert!(!bench.registry.leases().contains_key("c"));
}
