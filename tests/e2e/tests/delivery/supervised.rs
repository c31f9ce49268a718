//! A relay as a service: what its threads may do, and what the service manager is told of it.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::frames;
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, FRAMES_PORT};
use millrace_harness::relay::direct::Direct;
use millrace_harness::system::freeze::Frozen;
use millrace_harness::system::privilege::{privileged, shared_if_privileged};
use millrace_relay::privilege::{CONTROL, CapabilitySet, KAFKA};

const PATIENCE: Duration = Duration::from_secs(30);
/// Threads that meet what clients send.
const WORKERS: &str = "worker-";
/// Threads that meet what Kafka sends: the relay's, and librdkafka's.
const OF_KAFKA: [&str; 8] =
    ["producer", "consumer", "registry", "associations", "mover", "keeper", "waiting", "rdk:"];

/// A set in `/proc/pid/status`.
fn set(status: &str, name: &str) -> CapabilitySet {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    CapabilitySet::from_bits_retain(u64::from_str_radix(line.trim(), 16).unwrap())
}

/// The status of each thread, by its name. A thread may end meanwhile.
fn threads(process: u32) -> Vec<(String, String)> {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let paths = tasks.map(|entry| entry.unwrap().path());
    paths
        .filter_map(|path| {
            let name = read(path.join("comm"))?.trim_end().to_owned();
            Some((name, read(path.join("status"))?))
        })
        .collect()
}

#[test]
fn threads_that_meet_clients_or_kafka_have_no_capabilities_that_harm() {
    let Some(_right) = shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("threads", 1)).unwrap();
    cluster.start().unwrap();
    let target = cluster.targets(FRAMES_PORT)[0];
    let _client = Client::connect(&cluster.clients(), target, frames()).unwrap();
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for (name, status) in threads(cluster.instance.process_id().unwrap()) {
        let permitted = set(&status, "CapPrm:");
        assert_eq!(set(&status, "CapEff:"), permitted, "{name}");
        assert!(set(&status, "CapInh:").is_empty(), "{name}");
        assert!(CONTROL.contains(permitted), "{name}: {permitted:?}");
        assert!(CONTROL.contains(set(&status, "CapBnd:")), "{name} could get others");
        assert!(status.contains("NoNewPrivs:\t1"), "{name}");
        if name.starts_with(WORKERS) {
            assert_eq!(permitted, CapabilitySet::empty(), "{name}");
            *seen.entry(WORKERS).or_default() += 1;
        }
        if let Some(kind) = OF_KAFKA.iter().find(|kind| name.starts_with(**kind)) {
            assert!(KAFKA.contains(permitted), "{name}: {permitted:?}");
            *seen.entry(kind).or_default() += 1;
        }
    }
    assert_eq!(seen.len(), 1 + OF_KAFKA.len(), "{seen:?}");
    cluster.instance.stop().unwrap();
}

/// Messages to the service manager until one has this line.
fn until(socket: &UnixDatagram, line: &str) -> Vec<String> {
    let begun = Instant::now();
    let mut heard = Vec::new();
    while begun.elapsed() < PATIENCE {
        let mut bytes = [0; 4096];
        let Ok(count) = socket.recv(&mut bytes) else { continue };
        heard.push(String::from_utf8_lossy(&bytes[..count]).trim_end().to_owned());
        if heard.last().is_some_and(|last| last.lines().any(|one| one == line)) {
            return heard;
        }
    }
    panic!("never told {line}, but {heard:?}");
}

#[test]
fn the_service_manager_is_told_and_hears_nothing_while_a_worker_hangs() {
    if !privileged("stopping a thread by ptrace") {
        return;
    }
    let mut relay = Direct::build("supervised", |_| {}).unwrap();
    let path = relay.instance.config_file().with_file_name("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let watchdog = Duration::from_millis(800);
    relay.instance.set_environment(vec![
        ("NOTIFY_SOCKET".to_owned(), path),
        ("WATCHDOG_USEC".to_owned(), watchdog.as_micros().to_string().into()),
    ]);
    relay.instance.start().unwrap();
    let heard = until(&manager, "READY=1");
    assert!(heard[0].starts_with("STATUS=starting"), "{heard:?}");
    assert!(heard.contains(&"STATUS=serving".to_owned()), "{heard:?}");
    until(&manager, "WATCHDOG=1");

    let frozen = Frozen::thread(relay.instance.process_id().unwrap(), "worker-0").unwrap();
    until(&manager, "STATUS=a worker hangs: see `relay status`");
    // Whatever was sent before has been read: what comes now is new.
    let begun = Instant::now();
    while begun.elapsed() < 3 * watchdog {
        let mut bytes = [0; 4096];
        if let Ok(count) = manager.recv(&mut bytes) {
            let told = String::from_utf8_lossy(&bytes[..count]).into_owned();
            assert!(!told.contains("WATCHDOG=1"), "it was told that all is well: {told}");
        }
    }
    drop(frozen);
    until(&manager, "WATCHDOG=1");
    relay.instance.stop().unwrap();
    let heard = until(&manager, "STOPPING=1");
    assert!(heard.iter().any(|one| one.starts_with("STATUS=stopping")), "{heard:?}");
}
