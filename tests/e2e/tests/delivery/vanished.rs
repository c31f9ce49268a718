//! Clients that are gone without a word: how long their connections outlive them is the service's to say.

use std::time::Duration;

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, LINES_PORT};
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::privilege;
use millrace_harness::system::process::wait_until;
use millrace_relay::config::TcpSection;

const PATIENCE: Duration = Duration::from_secs(20);

/// So soon is nobody given up by the kernel's own times: 12 minutes for a silent client, 15 for one that
/// acknowledges nothing.
const TCP: TcpSection = TcpSection {
    keepalive_idle_s: 1,
    keepalive_interval_s: 1,
    keepalive_probes: 2,
    user_timeout_ms: 0,
};

/// A connection through the gateway, known to its server.
fn connected(name: &str, tcp: TcpSection) -> (Cluster, HandServer, Client, Record) {
    let mut cluster = Cluster::build_with(ClusterPlan::small(name, 1), |config| {
        for service in &mut config.services {
            service.tcp = tcp;
        }
    })
    .unwrap();
    cluster.start().unwrap();
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    let target = cluster.targets(LINES_PORT)[0];
    let mut client = Client::connect(&cluster.clients(), target, lines()).unwrap();
    client.send(b"here").unwrap();
    let record = server.next("message", |record| record.value == b"here").unwrap();
    (cluster, server, client, record)
}

/// The client's cable is pulled.
fn vanish(cluster: &Cluster) {
    cluster.hosts.clients[0].ip("link set dev eth0 down").unwrap();
}

fn ended(server: &HandServer, record: &Record) {
    let close = server
        .next("close", |next| next.kind() == "close" && next.key == record.key)
        .expect("the connection is still open");
    assert_eq!(close.header("reason"), "connection_failed");
}

#[test]
fn a_silent_client_that_is_gone_is_found_out_by_probes() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let (mut cluster, server, mut client, record) = connected("silent", TCP);
    // One that is there answers more probes than may go unanswered, however silent it is.
    let host = &cluster.hosts.clients[0];
    let before = host.tcp_segments_received().unwrap();
    let probes = 2 * u64::from(TCP.keepalive_probes);
    wait_until(PATIENCE, "probes", || Ok(host.tcp_segments_received()? >= before + probes))
        .unwrap();
    client.send(b"still here").unwrap();
    server.next("message", |record| record.value == b"still here").unwrap();
    vanish(&cluster);
    ended(&server, &record);
    cluster.instance.stop().unwrap();
}

/// While something is not acknowledged, there are no probes.
#[test]
fn a_client_that_is_gone_with_a_reply_on_its_way_is_found_out_by_the_user_timeout() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let tcp = TcpSection { keepalive_idle_s: 0, user_timeout_ms: 3000, ..TCP };
    let (mut cluster, server, _client, record) = connected("owed", tcp);
    vanish(&cluster);
    server.reply(&record, b"anybody?").unwrap();
    ended(&server, &record);
    cluster.instance.stop().unwrap();
}
