//! A host that changes under a loaded gateway: offloads, firewall, routes, neighbours, links, sysctls,
//! MTU and addresses, in an order that a seed chooses. Whatever it is, who connects is served: by the
//! relay, or by the server on the ordinary path.
//!
//! `MILLRACE_SEED` chooses another order, `MILLRACE_CHANGES` the length of the run.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::dice::Dice;
use millrace_harness::net::ordinary::BANNER;
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, LINES_PORT};
use millrace_harness::system::process::Process;
use millrace_harness::system::{paths, privilege};
use millrace_relay::gateway::gateway_device;

/// Of a run that nobody has given another.
const SEED: u64 = 1;
/// Changes of a run.
const CHANGES: usize = 200;
/// The longest that a client may wait for its first answer. A SYN that comes again 2.5 s after the first
/// passes; clients send it again after 1, 2 and 3 s, older ones after 1 and 3 s, the slowest after 1, 3
/// and 7 s (RFC 6298).
const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// Where a change is made.
#[derive(Clone, Copy, Debug)]
enum Place {
    Gateway,
    Relay,
}

/// Something that an operator, a daemon or a driver may do to a running host, and its reversal. `GW` is
/// the instance's device on the gateway.
struct Change {
    place: Place,
    make: &'static str,
    undo: &'static str,
}

const fn at_gateway(make: &'static str, undo: &'static str) -> Change {
    Change { place: Place::Gateway, make, undo }
}

const fn at_relay(make: &'static str, undo: &'static str) -> Change {
    Change { place: Place::Relay, make, undo }
}

/// Most changes that are in force at once: with too many of them nothing is ever diverted, and nothing is
/// tried.
const MOST_IN_FORCE: usize = 5;
/// Between two changes. Who is told nothing about a change learns of it within some of these.
const PACE: Duration = Duration::from_millis(100);

/// None of them breaks the ordinary path for good. Each is made when the dice show it the first time, and
/// undone when they show it again, or when it is the oldest of too many. The relay namespace is the instance's own: nobody
/// takes its device down, gives it another address, or has it leave checksums to a card.
const CHANGES_THERE_ARE: &[Change] = &[
    at_gateway("ip neigh flush dev eth1", "ip neigh flush dev eth1"),
    at_gateway("ip neigh flush dev GW", "ip neigh flush dev GW"),
    // Offloads.
    at_gateway("ethtool -K eth1 gro off", "ethtool -K eth1 gro on"),
    at_gateway("ethtool -K eth1 gso off", "ethtool -K eth1 gso on"),
    at_gateway("ethtool -K eth1 rxvlan off txvlan off", "ethtool -K eth1 rxvlan on txvlan on"),
    at_gateway("ethtool -K GW gro off", "ethtool -K GW gro on"),
    at_gateway("ethtool -K GW gso off", "ethtool -K GW gso on"),
    at_relay("ethtool -K relay0 gro off", "ethtool -K relay0 gro on"),
    // Sysctls.
    at_gateway(
        "sysctl -qw net.ipv4.conf.all.rp_filter=1",
        "sysctl -qw net.ipv4.conf.all.rp_filter=0",
    ),
    at_gateway(
        "sysctl -qw net.ipv4.conf.GW.rp_filter=1",
        "sysctl -qw net.ipv4.conf.GW.rp_filter=0",
    ),
    at_gateway(
        "sysctl -qw net.ipv4.conf.GW.forwarding=0",
        "sysctl -qw net.ipv4.conf.GW.forwarding=1",
    ),
    at_gateway(
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl -qw net.ipv6.conf.all.forwarding=1",
    ),
    at_gateway(
        "sysctl -qw net.ipv4.conf.all.log_martians=1",
        "sysctl -qw net.ipv4.conf.all.log_martians=0",
    ),
    // The firewall of a careful operator: forwards what it knows to be forwarded, and nothing else.
    at_gateway(
        "nft add table ip strict { chain forward { type filter hook forward priority 0 ; policy drop ; \
         ct state invalid drop ; ct state established,related accept ; iifname eth1 oifname eth2 \
         accept ; } ; }",
        "nft delete table ip strict",
    ),
    at_gateway(
        "nft add table ip guard { chain prerouting { type filter hook prerouting priority -300 ; \
         policy accept ; fib saddr . iif oif 0 drop ; } ; }",
        "nft delete table ip guard",
    ),
    // Links.
    at_gateway("ip link set dev GW down", "ip link set dev GW up"),
    at_gateway("ip link set dev GW mtu 1400", "ip link set dev GW mtu 1500"),
    at_gateway("ip link set dev eth1 mtu 1400", "ip link set dev eth1 mtu 1500"),
    at_gateway(
        "ip link set dev GW address 02:00:00:00:77:01",
        "ip link set dev GW address 02:00:00:00:77:02",
    ),
    at_gateway("ip link set dev eth1 txqueuelen 10", "ip link set dev eth1 txqueuelen 1000"),
    at_gateway("ip link set dev eth1 promisc on", "ip link set dev eth1 promisc off"),
    // Addresses and routes.
    at_gateway("ip address add 10.77.1.2/24 dev eth1", "ip address del 10.77.1.2/24 dev eth1"),
    at_gateway("ip route add 10.77.1.11/32 dev eth1", "ip route del 10.77.1.11/32 dev eth1"),
    at_gateway(
        "ip route add 10.77.2.11/32 via 10.77.2.11 dev eth2 onlink",
        "ip route del 10.77.2.11/32",
    ),
    at_gateway("ip rule add from 10.77.2.0/24 lookup 177 pref 177", "ip rule del pref 177"),
    at_relay("ip route flush cache", "ip route flush cache"),
];

/// The command, inside the gateway's namespace or the relay's, and what it said if it was refused.
fn run(cluster: &Cluster, place: Place, words: &str) -> Result<(String, bool)> {
    let config = &cluster.instance.config;
    let namespace = match place {
        Place::Gateway => cluster.hosts.gateway.namespace(),
        Place::Relay => config.namespace(),
    };
    let words = words.replace("GW", &gateway_device(config));
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).args(words.split_whitespace());
    let output = command.output().with_context(|| format!("run {words}"))?;
    let refusal = String::from_utf8_lossy(&output.stderr);
    Ok((format!("{words} {}", refusal.trim()), output.status.success()))
}

/// Who answers a client that connects now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    Relay,
    Server,
}

/// The clients' addresses, on one host.
const CLIENTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 1, 11), Ipv4Addr::new(10, 77, 1, 12)];

/// A client connects, says something, and gets its answer. Who connects next has the other address.
fn connect(cluster: &Cluster, number: usize, message: &str) -> Result<Answered> {
    let target = cluster.targets(LINES_PORT)[0];
    let source = (CLIENTS[number % CLIENTS.len()], 0).into();
    let mut client = Client::connect_sharing(&cluster.clients(), source, target, lines())?;
    client.set_patience(LONGEST_WAIT)?;
    client.send(message.as_bytes())?;
    let mut first = client.receive()?;
    let banner = BANNER.strip_suffix(b"\n").expect("a line");
    let answered = if first == banner { Answered::Server } else { Answered::Relay };
    if answered == Answered::Server {
        first = client.receive()?;
    }
    ensure!(first == message.as_bytes(), "the answer is {}", first.escape_ascii());
    Ok(answered)
}

#[test]
fn who_connects_is_served_whatever_is_done_to_the_host() -> Result<()> {
    let Some(_right) = privilege::shared_if_privileged() else { return Ok(()) };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("MILLRACE_SEED").unwrap_or(SEED);
    let changes =
        number("MILLRACE_CHANGES").map_or(CHANGES, |text| text.try_into().unwrap_or(CHANGES));
    println!("{changes} changes; repeat them with MILLRACE_SEED={seed} MILLRACE_CHANGES={changes}");

    let mut cluster = Cluster::build(ClusterPlan::small("hostile", 1))?;
    cluster.hosts.clients[0].ip(&format!("address add {}/24 dev eth0", CLIENTS[1]))?;
    cluster.start()?;
    let partition = cluster.lines_partitions()[0].to_string();
    let mut server = Command::new(paths::example_server()?);
    server.args([cluster.plan.brokers.as_str(), &partition, cluster.topics.prefix()]);
    let _server = Process::spawn("server", &mut server)?;
    ensure!(connect(&cluster, 0, "at first")? == Answered::Relay, "nothing is diverted");

    let mut dice = Dice::new(seed);
    let mut in_force = Vec::new();
    let (mut relayed, mut refused, mut longest) = (0, 0, Duration::ZERO);
    for number in 0..changes {
        let choice = if in_force.len() > MOST_IN_FORCE {
            in_force[0]
        } else {
            dice.below(CHANGES_THERE_ARE.len())
        };
        let Change { place, make, undo } = &CHANGES_THERE_ARE[choice];
        let words = if in_force.contains(&choice) {
            in_force.retain(|other| *other != choice);
            undo
        } else {
            in_force.push(choice);
            make
        };
        let (last, made) = run(&cluster, *place, words)?;
        refused += usize::from(!made);
        let begun = Instant::now();
        let answered = connect(&cluster, number, &format!("message {number}"));
        let waited = begun.elapsed();
        let told = || {
            let in_force = in_force.iter().map(|choice: &usize| CHANGES_THERE_ARE[*choice].make);
            let in_force: Vec<_> = in_force.collect();
            format!(
                "seed {seed}, change {number}: {last}\nin force: {in_force:#?}\nstatus: {:#?}",
                cluster.instance.verdicts()
            )
        };
        relayed += usize::from(answered.with_context(told)? == Answered::Relay);
        ensure!(waited <= LONGEST_WAIT, "a client has waited for {waited:?}: {}", told());
        longest = longest.max(waited);
        std::thread::sleep(PACE);
    }
    // A device may refuse a change, and the kernel may have undone one when a link went down.
    ensure!(refused <= changes / 10, "{refused} of {changes} changes were refused");
    println!("{relayed} of {changes} were answered by the relay; the longest wait was {longest:?}");

    // All undone, everything is diverted again.
    for choice in in_force {
        run(&cluster, CHANGES_THERE_ARE[choice].place, CHANGES_THERE_ARE[choice].undo)?;
    }
    let deadline = Instant::now() + Duration::from_mins(1);
    for number in 0.. {
        if connect(&cluster, number, "at last")? == Answered::Relay {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "nothing is diverted any more\n{}\nstatus: {:#?}",
            cluster.instance.relay_stderr(),
            cluster.instance.verdicts()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
