//! `demo --hold`: the hosts stay, for people to type into.

use std::time::Duration;

use anyhow::{Context as _, Result};
use millrace_harness::clients::wire::lines;
use millrace_harness::net::netns::Topology;
use millrace_harness::relay::cluster::{Cluster, FRAMES_PORT, LINES_PORT, ORDINARY_PORT};
use millrace_harness::system::interrupt;
use millrace_harness::system::process::wait_until;

const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long a relay that was killed stays away: time to see where the packets go then.
const AWAY: Duration = Duration::from_secs(30);

/// Explains, then waits for Ctrl-C.
pub(crate) fn hold(cluster: &mut Cluster) -> Result<()> {
    let guide = guide(cluster);
    println!("{guide}");
    while !interrupted_within(CHECK_EVERY) {
        let Some(ended) = cluster.instance.take_ended()? else { continue };
        let (status, away) = (ended.status, AWAY.as_secs());
        println!("The relay has ended ({status}). It starts again in {away} s.");
        if interrupted_within(AWAY) {
            break;
        }
        cluster.instance.start().with_context(|| ended.stderr)?;
        let id = cluster.instance.process_id()?;
        println!("The relay runs again and takes new connections; its process id is {id}.");
    }
    println!("taking everything down");
    Ok(())
}

fn interrupted_within(patience: Duration) -> bool {
    // The wait's end is the usual case here.
    let _ = wait_until(patience, "Ctrl-C", || Ok(interrupt::check().is_err()));
    interrupt::check().is_err()
}

fn guide(cluster: &Cluster) -> String {
    let client = cluster.hosts.clients[0].name();
    let config = cluster.instance.config_file();
    let config = config.display();
    let (brokers, prefix) = (&cluster.plan.brokers, cluster.topics.prefix());
    let server = Topology::server_address(0);
    let partitions = cluster.lines_partitions();
    let (first, last) = (partitions[0], partitions[partitions.len() - 1]);
    let relay = cluster.instance.config.relay.id;
    let protocol = lines().protocol();
    format!(
        r"
Everything is up. Nobody serves: the servers are you. Each command in a terminal of its own.

1. Read what the servers get (partitions {first} to {last} are those of port {LINES_PORT}):

   kcat -C -b {brokers} -t {prefix}uplink -o beginning -u -f 'partition %p  %k  %h\n    %s\n'

2. Be a client; every line is a message (`{protocol}`). The address is a server's own:

   ip netns exec {client} nc {server} {LINES_PORT}

3. Answer; KEY is the connection key that kcat shows:

   echo 'KEY|good day' | kcat -P -b {brokers} -t {prefix}downlink -p {relay} -K '|'

Port {ORDINARY_PORT} has no rule and reaches the server host in the ordinary way; port {FRAMES_PORT} takes frames
with four bytes of length:

   ip netns exec {client} nc {server} {ORDINARY_PORT}

Counters:

   {program} status --config {config}

Kill the relay, and port {LINES_PORT} reaches the server host as well, until it runs again {away} s later;
its process id is {pid}.
Ctrl-C here takes everything down.",
        away = AWAY.as_secs(),
        program = cluster.instance.program().display(),
        pid = cluster
            .instance
            .process_id()
            .map_or_else(|_| "unknown".to_owned(), |id| id.to_string()),
    )
}
