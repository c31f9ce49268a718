//! A relay that is asked to stop reads no more, delivers what it has read, and says how much.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millrace_harness::clients::load::{Load, LoadPlan};
use millrace_harness::clients::payload::Payload;
use millrace_harness::clients::wire::frames;
use millrace_harness::kafka;
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, FRAMES_PORT};
use millrace_harness::relay::instance::Stats;
use millrace_harness::system::privilege;
use millrace_harness::system::process::wait_until;

#[test]
fn what_was_read_is_in_kafka_after_a_stop() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("stop", 2)).unwrap();
    cluster.start().unwrap();
    let clients = 8;
    // Nobody answers: the window alone would let each client send for ever.
    let load = Load::start(
        LoadPlan {
            namespace: Some(cluster.clients()),
            targets: cluster.targets(FRAMES_PORT),
            clients,
            messages: 100_000_000,
            payload: Payload::new(200).unwrap(),
            window: u32::MAX,
            wire: frames(),
        },
        Arc::new((0..clients).map(|_| OnceLock::new()).collect()),
    )
    .unwrap();
    load.begin();
    wait_until(Duration::from_secs(30), "the clients to be busy", || {
        Ok(cluster.instance.stats()?.count("messages_received")? > 50_000)
    })
    .unwrap();
    let stopped = Stats(cluster.instance.stop().unwrap());
    let received = stopped.count("messages_received").unwrap();
    assert_eq!(stopped.count("messages_acknowledged").unwrap(), received, "{stopped:?}");
    assert_eq!(stopped.count("messages_in_flight").unwrap(), 0, "{stopped:?}");
    assert_eq!(stopped.count("connections").unwrap(), 0, "{stopped:?}");
    assert_eq!(
        stopped.count_by("connections_closed", "relay_stop").unwrap(),
        u64::from(clients),
        "{stopped:?}"
    );
    // The connections have ended, with messages on the way that nobody read.
    wait_until(Duration::from_secs(30), "the clients to notice", || Ok(load.is_finished()))
        .unwrap();
    let sent = load.progress.sent.load(Relaxed);
    load.close().unwrap();
    assert!(sent >= received, "{sent} were sent, {received} received");

    let uplink = cluster.instance.config.kafka.uplink_topic();
    let partitions = i32::from(2 * cluster.plan.servers);
    let records = kafka::record_count(&cluster.plan.brokers, &uplink, partitions).unwrap();
    assert_eq!(records, received + 2 * u64::from(clients), "with an open and a close for each");
}
