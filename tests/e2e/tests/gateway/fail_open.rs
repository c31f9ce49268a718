//! What the gateway must not break: connections it does not divert, and servers when the relay dies.

use std::io::ErrorKind;
use std::time::Duration;

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::gateway::fake_relay::{Traces, traces};
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, FRAMES_PORT, LINES_PORT};
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::freeze::Frozen;
use millrace_harness::system::privilege;
use millrace_harness::system::process::{run_ok, wait_until};
use millrace_relay::tune;

const PATIENCE: Duration = Duration::from_mins(2);

/// A new connection is diverted: its message comes out of Kafka.
fn expect_diverted(cluster: &Cluster, server: &HandServer, message: &[u8]) -> Client {
    let target = cluster.targets(LINES_PORT)[0];
    let mut client = Client::connect(&cluster.clients(), target, lines()).unwrap();
    client.send(message).unwrap();
    let record = server.next("the message", |record| record.value == message).unwrap();
    assert_eq!(record.header("client"), client.address().unwrap().to_string());
    server.reply(&record, message).unwrap();
    assert_eq!(client.receive().unwrap(), message);
    client
}

fn connect(cluster: &Cluster) -> Client {
    let target = cluster.targets(LINES_PORT)[0];
    Client::connect(&cluster.clients(), target, lines()).unwrap()
}

#[test]
fn a_killed_relay_costs_new_connections_nothing_and_its_restart_diverts_again() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("kill", 1)).unwrap();
    cluster.start().unwrap();
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    let mut diverted = expect_diverted(&cluster, &server, b"before");

    cluster.instance.kill().unwrap();
    let mut ordinary = connect(&cluster);
    ordinary.expect_ordinary().unwrap();
    diverted.wait_end().unwrap();

    cluster.instance.start().unwrap();
    expect_diverted(&cluster, &server, b"after");
    // Opened while there was no relay, it stays with the server.
    ordinary.expect_echo(b"still the server").unwrap();

    cluster.instance.stop().unwrap();
    connect(&cluster).expect_ordinary().unwrap();

    // Not one of several deaths may cost the next connection anything, though the kernel holds a
    // killed relay's listeners for some milliseconds.
    for _ in 0..8 {
        cluster.instance.start().unwrap();
        cluster.instance.kill().unwrap();
        connect(&cluster).expect_ordinary().unwrap();
    }
}

#[test]
fn a_relay_that_hangs_costs_new_connections_nothing() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("hang", 1)).unwrap();
    cluster.start().unwrap();
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    expect_diverted(&cluster, &server, b"before");
    cluster.instance.signal(rustix::process::Signal::STOP).unwrap();
    // Its sockets still listen; only the heartbeat tells.
    wait_until(Duration::from_secs(20), "a connection to reach the server's own listener", || {
        Ok(Client::connect(&cluster.clients(), cluster.targets(LINES_PORT)[0], lines())?
            .is_greeted(Duration::from_millis(500)))
    })
    .unwrap();
    cluster.instance.signal(rustix::process::Signal::CONT).unwrap();
    wait_until(Duration::from_secs(20), "the relay to beat again", || {
        Ok(!Client::connect(&cluster.clients(), cluster.targets(LINES_PORT)[0], lines())?
            .is_greeted(Duration::from_millis(500)))
    })
    .unwrap();
    expect_diverted(&cluster, &server, b"after");
}

/// The control plane went on beating while a worker hung: new connections were diverted to it and got no
/// answer.
#[test]
fn a_worker_that_hangs_costs_new_connections_nothing_and_those_that_are_there_stay() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let plan = ClusterPlan::small("frozen", 1);
    let mut cluster = Cluster::build_with(plan, |config| config.relay.workers = 2).unwrap();
    cluster.start().unwrap();
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    // Of both workers, as good as surely.
    let mut old: Vec<Client> =
        (0..12_u8).map(|number| expect_diverted(&cluster, &server, &[b'a' + number])).collect();
    let hanging = || {
        let stats = cluster.instance.stats().unwrap();
        stats.value()["workers_hanging_ms"].as_object().unwrap().clone()
    };
    assert!(hanging().is_empty());

    let frozen = Frozen::thread(cluster.instance.process_id().unwrap(), "worker-0").unwrap();
    wait_until(Duration::from_secs(20), "the hanging worker to be seen", || {
        Ok(hanging().contains_key("worker-0"))
    })
    .unwrap();
    assert_eq!(hanging().len(), 1, "the other one only has nothing to do");
    for _ in 0..8 {
        connect(&cluster).expect_ordinary().unwrap();
    }
    let mut command = cluster.instance.command("status", true);
    let status = run_ok("relay status", &mut command, Duration::from_secs(30)).unwrap().stdout;
    assert!(status.contains("HANGS      worker-0 "), "{status}");
    // Some of them are served by the other worker; the rest must not go to the server either.
    for (client, number) in old.iter_mut().zip(0..) {
        client.send(&[b'A' + number]).unwrap();
    }
    let answer_one = || {
        let record = server.next("a message", |record| record.kind() == "message").unwrap();
        server.reply(&record, &record.value).unwrap();
    };
    answer_one();
    drop(frozen);
    for _ in 1..12 {
        answer_one();
    }
    for (client, number) in old.iter_mut().zip(0..) {
        assert_eq!(client.receive().unwrap(), [b'A' + number]);
    }
    wait_until(Duration::from_secs(20), "the relay to serve again", || {
        Ok(!Client::connect(&cluster.clients(), cluster.targets(LINES_PORT)[0], lines())?
            .is_greeted(Duration::from_millis(500)))
    })
    .unwrap();
    assert!(hanging().is_empty());
    expect_diverted(&cluster, &server, b"after");
}

/// The relay beat by the file and the programs judged by the map: with the longer one in the file, most
/// connections went to and fro between relay and server.
#[test]
fn the_heartbeats_timeout_is_the_loaded_one_and_can_be_changed() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("timeout", 1)).unwrap();
    cluster.instance.load().unwrap();
    cluster.instance.config.gateway.heartbeat_timeout_ms = 60_000;
    cluster.instance.write_config().unwrap();
    cluster.instance.start().unwrap();
    wait_until(Duration::from_secs(20), "the difference to be told", || {
        Ok(cluster.instance.relay_stderr().contains("heartbeat_timeout_ms is 60000 in"))
    })
    .unwrap();
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    let of_relay =
        |cluster: &Cluster| cluster.instance.status().unwrap()["gateway"]["relay"].clone();
    let mut ages = Vec::new();
    for number in 0..20_u8 {
        expect_diverted(&cluster, &server, &[b'a' + number]);
        ages.push(of_relay(&cluster)["heartbeat_age_ms"].as_u64().unwrap());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(ages.iter().all(|age| *age < 2000), "{ages:?}");
    let relay = of_relay(&cluster);
    assert_eq!(relay["heartbeat_timeout_ms"], 2000);
    assert_eq!(relay["configured_heartbeat_timeout_ms"], 60_000);

    let mut command = cluster.instance.command("rules apply", true);
    let applied = run_ok("rules apply", &mut command, Duration::from_secs(30)).unwrap().stdout;
    assert!(applied.contains("heartbeat timeout: 2000 ms → 60000 ms"), "{applied}");
    let relay = of_relay(&cluster);
    assert_eq!(relay["heartbeat_timeout_ms"], 60_000);
    assert!(relay["configured_heartbeat_timeout_ms"].is_null(), "{relay}");
    expect_diverted(&cluster, &server, b"after");
    wait_until(Duration::from_secs(20), "the relay to notice", || {
        Ok(cluster.instance.relay_stderr().contains("timeout was changed"))
    })
    .unwrap();

    // The tree of settings shows what is in force, whoever has changed it, and changes it too.
    let tree = tune::place(&cluster.instance.config);
    let file = tree.join("gateway/heartbeat_timeout_ms");
    let shown = || Ok(std::fs::read_to_string(&file)? == "60000\n");
    wait_until(Duration::from_secs(20), "the file to show it", shown).unwrap();
    // EBUSY: another instance is just being loaded.
    let write = || match std::fs::write(&file, "3000\n") {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(false),
        written => Ok(written.map(|()| true)?),
    };
    wait_until(Duration::from_secs(20), "the file to take it", write).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "3000\n");
    assert_eq!(of_relay(&cluster)["heartbeat_timeout_ms"], 3000);
    expect_diverted(&cluster, &server, b"again");

    // What a killed relay leaves of the tree goes with the instance.
    cluster.instance.kill().unwrap();
    assert!(std::fs::read_dir(&tree).is_err(), "nobody answers");
    cluster.instance.unload().unwrap();
    assert!(!cluster.instance.config.run_directory().exists());
}

/// At whatever moment a relay is killed that attaches a device which is back: the next one goes on from
/// there, and `unload` removes it all.
#[test]
fn relays_that_are_killed_while_a_device_comes_back_leave_nothing_wrong() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("back", 1)).unwrap();
    let config = cluster.instance.config.clone();
    let before = traces(&cluster.hosts.gateway, &config).unwrap();
    cluster.start().unwrap();
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    expect_diverted(&cluster, &server, b"before");
    let of_device = |cluster: &Cluster, counter: &str| {
        cluster.instance.stats().unwrap().value()[counter]["eth1"].clone()
    };
    let remove = |cluster: &Cluster| {
        cluster.hosts.remove_client_device().unwrap();
        wait_until(PATIENCE, "the loss to be seen", || {
            Ok(of_device(cluster, "devices_detached") == "there is no such device")
        })
        .unwrap();
    };
    for pause_ms in [0, 30, 60, 90, 120, 180] {
        remove(&cluster);
        cluster.hosts.restore_client_device().unwrap();
        std::thread::sleep(Duration::from_millis(pause_ms));
        cluster.instance.kill().unwrap();
        connect(&cluster).expect_ordinary().unwrap();
        cluster.instance.start().unwrap();
        wait_until(PATIENCE, "the device to be attached again", || {
            let status = cluster.instance.status()?;
            let device = &status["gateway"]["devices"][0];
            Ok(device["known_address"].is_string() && device["mode"] == "native")
        })
        .unwrap();
        expect_diverted(&cluster, &server, format!("after {pause_ms} ms").as_bytes());
    }

    // This relay has attached it if the one before was killed too early.
    let before_that = of_device(&cluster, "devices_reattached").as_u64().unwrap_or(0);
    remove(&cluster);
    let mut command = cluster.instance.command("status", true);
    let status = run_ok("relay status", &mut command, PATIENCE).unwrap().stdout;
    let told = "DETACHED   nothing is diverted from eth1: there is no such device";
    assert!(status.contains(told), "{status}");
    cluster.hosts.restore_client_device().unwrap();
    wait_until(PATIENCE, "the device to be attached again", || {
        Ok(of_device(&cluster, "devices_reattached") == before_that + 1)
    })
    .unwrap();
    expect_diverted(&cluster, &server, b"by the same relay");
    let log = cluster.instance.relay_stderr();
    let told = |words: &str| log.matches(words).count() as u64;
    assert_eq!(told("eth1 is gone: nothing"), 1, "{log}");
    let back = "eth1 is back: it runs the program again, in native mode";
    assert_eq!(told(back), before_that + 1, "{log}");

    remove(&cluster);
    cluster.hosts.restore_client_device().unwrap();
    cluster.instance.kill().unwrap();
    cluster.instance.unload().unwrap();
    let after = traces(&cluster.hosts.gateway, &config).unwrap();
    assert_eq!(Traces { bpffs: before.bpffs, ..after }, before);
}

#[test]
fn a_connection_from_before_load_goes_on_undisturbed() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("before", 1)).unwrap();
    let mut old = connect(&cluster);
    old.expect_ordinary().unwrap();

    cluster.instance.load().unwrap();
    old.expect_echo(b"loaded").unwrap();
    // Without a relay, a new connection is ordinary as well.
    connect(&cluster).expect_ordinary().unwrap();

    cluster.instance.start().unwrap();
    for number in 0..100 {
        old.expect_echo(format!("started {number}").as_bytes()).unwrap();
    }
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    expect_diverted(&cluster, &server, b"new");

    cluster.instance.stop().unwrap();
    cluster.instance.unload().unwrap();
    old.expect_echo(b"unloaded").unwrap();
    connect(&cluster).expect_ordinary().unwrap();
    assert_eq!(cluster.ordinary_traffic().unwrap(), (0, 0), "nothing went to port {FRAMES_PORT}");
}
