//! What is diverted is answered, or nothing is diverted: a relay that is full, links that lose what
//! they are given, and floods that would have it look so.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::net::frames::Frame;
use millrace_harness::net::frames::flag::SYN;
use millrace_harness::net::netns::Topology;
use millrace_harness::net::ordinary::OrdinaryServer;
use millrace_harness::net::raw_socket::Raw;
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, LINES_PORT};
use millrace_harness::system::ended::Ended;
use millrace_harness::system::privilege;
use millrace_harness::system::process::{run_ok, wait_until};
use millrace_relay::gateway::gateway_device;

const PATIENCE: Duration = Duration::from_secs(30);
/// The third SYN of a client, which comes after three seconds, is passed; a busy machine adds to it.
const FAIL_OPEN: Duration = Duration::from_secs(5);
/// The second one, after one second: as long as a trial may cost.
const TRIAL: Duration = Duration::from_millis(2500);

fn target(cluster: &Cluster) -> SocketAddr {
    cluster.targets(LINES_PORT)[0]
}

fn connect(cluster: &Cluster) -> Client {
    Client::connect(&cluster.clients(), target(cluster), lines()).unwrap()
}

/// From one of the client host's addresses.
fn connect_from(cluster: &Cluster, source: Ipv4Addr) -> Client {
    let connect = || Client::connect_from(IpAddr::from(source), target(cluster), lines());
    cluster.hosts.clients[0].run(connect).unwrap().unwrap()
}

/// Whether a new connection ends in the relay.
fn is_diverted(cluster: &Cluster) -> bool {
    !connect(cluster).is_greeted(Duration::from_millis(500))
}

fn wait_diverted(cluster: &Cluster) {
    wait_until(PATIENCE, "new connections to be diverted", || Ok(is_diverted(cluster))).unwrap();
}

/// What `relay status` says of the relay, or of what is diverted.
fn of_gateway(cluster: &Cluster, part: &str) -> serde_json::Value {
    cluster.instance.status().unwrap()["gateway"][part].clone()
}

fn status_text(cluster: &Cluster) -> String {
    run_ok("relay status", &mut cluster.instance.command("status", true), PATIENCE).unwrap().stdout
}

/// Connections beyond the limit were accepted and closed.
#[test]
fn a_relay_that_is_full_leaves_new_connections_to_their_servers() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build_with(ClusterPlan::small("full", 1), |config| {
        config.relay.workers = 1;
        config.relay.max_connections = 4;
    })
    .unwrap();
    cluster.start().unwrap();
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    let mut clients: Vec<Client> = Vec::new();
    for number in 0..4 {
        let mut client = connect(&cluster);
        client.send(&[b'a' + number]).unwrap();
        server.next("the message", |record| record.value == [b'a' + number]).unwrap();
        clients.push(client);
    }
    let full = |cluster: &Cluster| of_gateway(cluster, "relay")["full"] == true;
    wait_until(PATIENCE, "the relay to be full", || Ok(full(&cluster))).unwrap();
    assert!(status_text(&cluster).contains("  FULL "));
    for _ in 0..4 {
        connect(&cluster).expect_ordinary().unwrap();
    }
    assert_eq!(cluster.instance.stats().unwrap().total("connections_refused").unwrap(), 0);
    assert!(cluster.instance.verdicts().unwrap()["pass/relay_full"].as_u64().unwrap() >= 4);

    clients[0].end().unwrap();
    wait_until(PATIENCE, "room for one", || Ok(!full(&cluster))).unwrap();
    let mut client = connect(&cluster);
    client.send(b"again").unwrap();
    server.next("the message", |record| record.value == b"again").unwrap();
    clients[1].send(b"still").unwrap();
    server.next("who was there before", |record| record.value == b"still").unwrap();
}

/// The link was down, and every new connection was diverted into nothing.
#[test]
fn what_does_not_arrive_at_the_relay_is_passed_with_its_cause() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("cut", 1)).unwrap();
    cluster.start().unwrap();
    wait_diverted(&cluster);
    let device = gateway_device(&cluster.instance.config);
    cluster.hosts.gateway.ip(&format!("link set dev {device} down")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let start = Instant::now();
                connect(&cluster).expect_ordinary().unwrap();
                assert!(start.elapsed() < FAIL_OPEN, "{:?}", start.elapsed());
            });
        }
    });
    let cut = |cluster: &Cluster| of_gateway(cluster, "relay")["cut"] == true;
    wait_until(PATIENCE, "the loss to be seen", || Ok(cut(&cluster))).unwrap();
    let remedy = format!("`ip link set dev {device} up`");
    assert!(
        cluster.instance.relay_stderr().contains(&remedy),
        "{}",
        cluster.instance.relay_stderr()
    );
    wait_until(PATIENCE, "a status between two trials", || {
        let status = status_text(&cluster);
        Ok(status.contains("  CUT ") && status.contains(&remedy))
    })
    .unwrap();
    for _ in 0..8 {
        let start = Instant::now();
        connect(&cluster).expect_ordinary().unwrap();
        assert!(start.elapsed() < TRIAL, "{:?}", start.elapsed());
    }
    cluster.hosts.gateway.ip(&format!("link set dev {device} up")).unwrap();
    wait_diverted(&cluster);
    assert!(!cut(&cluster));
}

/// The relay's answers were redirected to a device that had ceased to send them.
#[test]
fn answers_that_no_client_gets_end_diversion_on_that_path_until_one_does() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("silent", 1)).unwrap();
    let sources = [11, 12].map(|host| Ipv4Addr::new(10, 77, 1, host));
    let client = &cluster.hosts.clients[0];
    client.ip(&format!("address add {}/24 dev eth0", sources[1])).unwrap();
    client.ethtool("-K eth0 gro on").unwrap();
    cluster.start().unwrap();
    // The gateway knows both as neighbours from then on, or answers would go by its stack.
    for source in sources {
        wait_until(PATIENCE, "a connection to be diverted", || {
            Ok(!connect_from(&cluster, source).is_greeted(Duration::from_millis(500)))
        })
        .unwrap();
    }

    let client = &cluster.hosts.clients[0];
    client.ethtool("-K eth0 gro off").unwrap();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (cluster, sources) = (&cluster, &sources);
            scope.spawn(move || {
                let start = Instant::now();
                connect_from(cluster, sources[number % 2]).expect_ordinary().unwrap();
                assert!(start.elapsed() < FAIL_OPEN, "{:?}", start.elapsed());
            });
        }
    });
    wait_until(PATIENCE, "the silence to be told with its cause", || {
        Ok(cluster.instance.relay_stderr().contains("gro on"))
    })
    .unwrap();
    wait_until(PATIENCE, "a status between two trials", || {
        Ok(status_text(&cluster).contains("  SILENT "))
    })
    .unwrap();
    for _ in 0..8 {
        let start = Instant::now();
        connect(&cluster).expect_ordinary().unwrap();
        assert!(start.elapsed() < TRIAL, "{:?}", start.elapsed());
    }
    cluster.hosts.clients[0].ethtool("-K eth0 gro on").unwrap();
    wait_diverted(&cluster);
    wait_until(PATIENCE, "the path to be open", || Ok(!status_text(&cluster).contains("SILENT")))
        .unwrap();
}

/// One source alone may itself be what is wrong: its path stays open, and its third SYN passes.
#[test]
fn one_client_alone_reaches_its_server_though_its_answers_are_lost() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("alone", 1)).unwrap();
    cluster.start().unwrap();
    wait_diverted(&cluster);
    cluster.hosts.clients[0].ethtool("-K eth0 gro off").unwrap();
    let start = Instant::now();
    let mut client = connect(&cluster);
    client.expect_ordinary().unwrap();
    assert!(start.elapsed() < FAIL_OPEN, "{:?}", start.elapsed());
    assert!(cluster.instance.verdicts().unwrap()["pass/unanswered"].as_u64().unwrap() > 0);
    assert!(!status_text(&cluster).contains("SILENT"));
    // The relay's stack still has its half of a connection, and must not get what is the server's,
    // even when its answers arrive again.
    cluster.hosts.clients[0].ethtool("-K eth0 gro on").unwrap();
    let held = |cluster: &Cluster| {
        cluster.instance.verdicts().unwrap()["return/answer_held"].as_u64().unwrap()
    };
    wait_until(PATIENCE, "the relay to answer late", || Ok(held(&cluster) > 0)).unwrap();
    client.expect_echo(b"on and on").unwrap();
    wait_diverted(&cluster);
}

/// Where the server's address is the host's own too, the host's stack drops the relay's answers as those
/// of a stranger with its own address.
#[test]
fn a_server_address_that_is_the_hosts_own_keeps_nobody_waiting() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("own", 1)).unwrap();
    cluster.start().unwrap();
    let server = cluster.server(&cluster.lines_partitions()).unwrap();
    let gateway = &cluster.hosts.gateway;
    let address = Topology::server_address(0);
    gateway.ip(&format!("address add {address}/32 dev lo")).unwrap();
    let _own = OrdinaryServer::start(&gateway.namespace(), address, &[LINES_PORT]).unwrap();
    // The client must not ask for the gateway, which would tell the latter where the client is.
    let hardware = gateway.hardware_address("eth1").unwrap();
    cluster.hosts.clients[0]
        .ip(&format!("neigh replace 10.77.1.1 lladdr {hardware} dev eth0 nud permanent"))
        .unwrap();
    gateway.ip("neigh flush dev eth1").unwrap();
    let start = Instant::now();
    let mut client = connect(&cluster);
    assert!(start.elapsed() < FAIL_OPEN, "{:?}", start.elapsed());
    client.send(b"to whoever it is").unwrap();
    if client.expect_ordinary().is_err() {
        server.next("the message", |record| record.value == b"to whoever it is").unwrap();
    }
}

/// Sources of a flood, each of which sends its SYN again as a client does that gets no answer.
#[test]
fn a_flood_that_looks_like_clients_without_answers_ends_nothing() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = Cluster::build(ClusterPlan::small("spoofed", 1)).unwrap();
    // Answers to it take the way back too, and end there.
    cluster.hosts.gateway.ip("route add 100.64.0.0/10 via 10.77.1.11").unwrap();
    cluster.hosts.clients[0].ip("route add blackhole 100.64.0.0/10").unwrap();
    cluster.start().unwrap();
    wait_diverted(&cluster);
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::Relaxed);
    let target = target(&cluster);
    let (diverted, diversion) = std::thread::scope(|scope| {
        // Whatever fails: the scope waits for both threads.
        let ended = Ended([&over]);
        let flooder = scope.spawn(|| {
            cluster.hosts.clients[0].run(|| {
                let raw = Raw::new().unwrap();
                while !is_over() {
                    for number in 0..500_u16 {
                        let [a, b] = number.to_be_bytes();
                        let source = (IpAddr::from([100, 64, a, b]), 1024 + number).into();
                        raw.send(&Frame::tcp(source, target, SYN, u32::from(number))).unwrap();
                    }
                    std::thread::sleep(Duration::from_millis(700));
                }
            })
        });
        // Clients, as a gateway has them: without one that is answered, the flood would be right.
        let honest = scope.spawn(|| {
            while !is_over() {
                drop(connect(&cluster));
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let begun = Instant::now();
        let mut diverted = true;
        while diverted && begun.elapsed() < Duration::from_secs(8) {
            diverted = is_diverted(&cluster);
        }
        // While both go on.
        let diversion = of_gateway(&cluster, "diversion");
        drop(ended);
        flooder.join().unwrap().unwrap();
        honest.join().unwrap();
        (diverted, diversion)
    });
    assert!(diverted, "{diversion} {}", cluster.instance.relay_stderr());
    let paths = diversion["paths"].as_array().unwrap();
    let repeated: u64 = paths.iter().map(|path| path["repeated"].as_u64().unwrap()).sum();
    assert!(repeated > 500, "it was no such flood: {diversion}");
    assert!(paths.iter().all(|path| path["closed"] == false), "{diversion}");
}
