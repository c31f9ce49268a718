//! The whole path: from real clients through gateway, relay and Kafka to servers, and back.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millrace_harness::clients::load::{Load, LoadPlan};
use millrace_harness::clients::payload::Payload;
use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::{frames, lines};
use millrace_harness::net::netns::Topology;
use millrace_harness::relay::cluster::{
    Cluster, ClusterPlan, FRAMES_PORT, FRAMES_SERVICE, LINES_PORT, ORDINARY_PORT,
};
use millrace_harness::relay::judged_run::{RunPlan, run};
use millrace_harness::servers::by_hand::Record;
use millrace_harness::system::process::{Process, wait_until};
use millrace_harness::system::{paths, privilege};

#[test]
fn every_message_and_every_reply_comes_once_and_in_order() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("path", 3)).unwrap();
    cluster.start().unwrap();
    for (wire, size) in [(frames(), 100), (lines(), 1000), (frames(), 20_000)] {
        let plan = RunPlan { clients: 20, messages: 5000, size, window: 16, wire };
        let outcome = run(&mut cluster, &plan, &mut |_, _| Ok(())).unwrap();
        assert!(outcome.is_flawless(), "{wire:?}, {size} bytes: {outcome:#?}");
        assert_eq!((outcome.sent, outcome.delivered, outcome.replied), (5000, 5000, 5000));
        let least = outcome.associations.values().min().unwrap();
        let most = outcome.associations.values().max().unwrap();
        assert!(most - least <= 1, "{outcome:#?}");
        assert_eq!(outcome.associations.len(), 3);
        assert_eq!((outcome.ordinary_connections, outcome.ordinary_packets), (0, 0));
        assert_eq!(outcome.errors, Vec::<String>::new());
    }
}

/// The kernel gives two connections of one host the same port if they go to different places.
#[test]
fn one_port_of_a_client_has_a_connection_to_each_of_two_servers() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("ports", 2)).unwrap();
    cluster.start().unwrap();
    let server = cluster.server(&cluster.frames_partitions()).unwrap();
    let source = SocketAddr::from((Topology::client_address(0), 40_000));
    let (clients, targets) = (cluster.clients(), cluster.targets(FRAMES_PORT));
    let mut pair = targets.iter().map(|target| {
        let mut client = Client::connect_sharing(&clients, source, *target, frames()).unwrap();
        client.send(target.to_string().as_bytes()).unwrap();
        let to_it = |record: &Record| record.value == target.to_string().as_bytes();
        let record = server.next("its message", to_it).unwrap();
        assert_eq!(record.header("client"), source.to_string());
        assert_eq!(record.header("destination"), target.to_string());
        (client, record)
    });
    let (first, mut second) = (pair.next().unwrap(), pair.next().unwrap());
    assert_ne!(first.1.key, second.1.key);
    assert_ne!(first.1.partition, second.1.partition, "each has an association of its own");
    let associations = |cluster: &Cluster| {
        let associations = cluster.instance.stats().unwrap().associations(FRAMES_SERVICE).unwrap();
        associations.into_values().collect::<Vec<_>>()
    };
    assert_eq!(associations(&cluster), [1, 1]);

    // The end of the one is nothing to the other.
    drop(first.0);
    let close = server.next("close", |record| record.kind() == "close").unwrap();
    assert_eq!((&close.key, close.header("destination")), (&first.1.key, &*targets[0].to_string()));
    assert_eq!(associations(&cluster).iter().sum::<u64>(), 1);
    server.reply(&second.1, b"still there").unwrap();
    assert_eq!(second.0.receive().unwrap(), b"still there");
    second.0.send(b"and back").unwrap();
    let back = server.next("a message", |record| record.kind() == "message").unwrap();
    assert_eq!((back.value, back.partition), (b"and back".to_vec(), second.1.partition));
    drop(cluster.instance.stop().unwrap());
}

#[test]
fn records_carry_the_true_addresses_and_a_reply_reaches_its_client_alone() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("records", 2)).unwrap();
    cluster.start().unwrap();
    let target = cluster.targets(FRAMES_PORT)[1];
    let server = cluster.server(&cluster.frames_partitions()).unwrap();
    let mut client = Client::connect(&cluster.clients(), target, frames()).unwrap();
    let address = client.address().unwrap().to_string();
    let open = server.next("open", |record| record.header("client") == address).unwrap();
    assert_eq!((open.kind(), open.value.len()), ("open", 0));
    assert_eq!(open.header("destination"), target.to_string());
    assert_eq!((open.header("protocol"), open.header("reply")), ("length", "0"));
    assert_eq!(open.key.len(), 36, "{}", open.key);

    client.send(b"to the server").unwrap();
    let message = server.next("message", |record| record.key == open.key).unwrap();
    assert_eq!(message.kind(), "message");
    assert_eq!(message.value, b"to the server");
    assert_eq!((message.header("sequence"), open.header("sequence")), ("1", ""));
    assert_eq!((message.header("client"), message.partition), (&*address, open.partition));

    let mut other = Client::connect(&cluster.clients(), target, frames()).unwrap();
    let other_open = server.next("open", |record| record.kind() == "open").unwrap();
    assert_ne!(other_open.key, open.key);
    assert_ne!(other_open.partition, open.partition, "the server with the fewest associations");
    server.reply(&message, b"to the client").unwrap();
    server.reply(&other_open, b"to the other").unwrap();
    assert_eq!(client.receive().unwrap(), b"to the client");
    assert_eq!(other.receive().unwrap(), b"to the other");

    drop(client);
    let close = server.next("close", |record| record.kind() == "close").unwrap();
    assert_eq!((&close.key, close.value.len()), (&open.key, 0));
    assert_ne!(close.header("reason"), "");
    server.reply(&message, b"too late").unwrap();
    wait_until(Duration::from_secs(20), "the stale reply to be counted", || {
        Ok(cluster.instance.stats()?.count_by("replies_undelivered", "stale")? == 1)
    })
    .unwrap();
    server.reply(&other_open, b"still there").unwrap();
    assert_eq!(other.receive().unwrap(), b"still there");
}

#[test]
fn ipv6_clients_are_served_by_their_own_addresses() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("ipv6", 1)).unwrap();
    cluster.start().unwrap();
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    let target = (Topology::server_address_ipv6(0), LINES_PORT).into();
    let mut client = Client::connect(&cluster.clients(), target, lines()).unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    let address = client.address().unwrap();
    assert!(address.is_ipv6());
    assert_eq!(open.header("client"), address.to_string());
    assert_eq!(open.header("destination"), format!("[fd77:2::b]:{LINES_PORT}"));
    client.send(b"by IPv6").unwrap();
    let message = server.next("message", |record| record.kind() == "message").unwrap();
    assert_eq!((&message.key, &message.value[..]), (&open.key, &b"by IPv6"[..]));
    server.reply(&message, b"and back").unwrap();
    assert_eq!(client.receive().unwrap(), b"and back");
}

#[test]
fn a_server_can_close_a_connection() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("close", 1)).unwrap();
    cluster.start().unwrap();
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    let target = cluster.targets(LINES_PORT)[0];
    let mut client = Client::connect(&cluster.clients(), target, lines()).unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    server.reply_and_close(&open, b"good bye").unwrap();
    assert_eq!(client.receive().unwrap(), b"good bye");
    client.wait_end().unwrap();
    let close = server.next("close", |record| record.kind() == "close").unwrap();
    assert_eq!(close.key, open.key);
}

#[test]
fn a_port_without_a_rule_reaches_the_servers_own_listener() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("ordinary", 1)).unwrap();
    cluster.start().unwrap();
    let target = cluster.targets(ORDINARY_PORT)[0];
    let mut client = Client::connect(&cluster.clients(), target, lines()).unwrap();
    client.expect_ordinary().unwrap();
    let verdicts = cluster.instance.verdicts().unwrap();
    assert_ne!(verdicts["pass/no_rule"], 0, "{verdicts}");
    assert_eq!(verdicts["divert/new"], 0, "{verdicts}");
}

#[test]
fn the_example_servers_answer() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("examples", 2)).unwrap();
    cluster.start().unwrap();
    let start = |name: &str, command: &mut Command, partition: &str| {
        let prefix = cluster.topics.prefix();
        Process::spawn(name, command.args([&cluster.plan.brokers, partition, prefix])).unwrap()
    };
    let mut servers = [
        start("server.py", &mut Command::new(paths::python_server()), "0"),
        start("server.rs", &mut Command::new(paths::example_server().unwrap()), "1"),
    ];
    let load = Load::start(
        LoadPlan {
            namespace: Some(cluster.clients()),
            targets: cluster.targets(FRAMES_PORT),
            clients: 10,
            messages: 1000,
            payload: Payload::new(200).unwrap(),
            window: 8,
            wire: frames(),
        },
        Arc::new((0..10).map(|_| OnceLock::new()).collect()),
    )
    .unwrap();
    load.begin();
    let answered =
        wait_until(Duration::from_mins(1), "both servers to answer", || Ok(load.is_finished()));
    for server in &mut servers {
        assert!(server.is_running().unwrap(), "{}", server.stderr());
    }
    answered.unwrap();
    let progress = Arc::clone(&load.progress);
    let report = load.close().unwrap();
    assert_eq!(report.errors, Vec::<String>::new());
    assert_eq!(progress.replied.load(Relaxed), 1000);
    let wrong = [&progress.duplicated, &progress.out_of_order, &progress.misrouted];
    assert_eq!(wrong.map(|counter| counter.load(Relaxed)), [0, 0, 0]);
    assert_eq!(progress.corrupted.load(Relaxed), 0);
}
