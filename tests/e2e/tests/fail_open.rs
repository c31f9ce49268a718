//! What the gateway must not break: connections it does not divert, and servers when the relay dies.

use std::time::Duration;

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, FRAMES_PORT, LINES_PORT};
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::privilege;
use millrace_harness::system::process::wait_until;

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
    let Some(_right) = privilege::exclusive() else { return };
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
    let Some(_right) = privilege::exclusive() else { return };
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

#[test]
fn a_connection_from_before_load_goes_on_undisturbed() {
    let Some(_right) = privilege::exclusive() else { return };
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
