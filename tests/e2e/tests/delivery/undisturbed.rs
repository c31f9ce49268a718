//! What an operator does to a gateway under load, and that no packet of other traffic is lost.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::gateway::counted_traffic::{Datagrams, EchoRelay, Stream};
use millrace_harness::gateway::fake_relay::{PORT, connect, transfer, within};
use millrace_harness::net::netns::{Host, Topology, bpf_object, link};
use millrace_harness::net::ordinary::{BANNER, OrdinaryServer};
use millrace_harness::net::tcp::{lost_segments, retransmit_losses_only};
use millrace_harness::relay::cluster::{Cluster, ClusterPlan, LINES_PORT, ORDINARY_PORT};
use millrace_harness::system::privilege;
use millrace_relay::codec::Framing;
use millrace_relay::gateway::{self, object::ObjectFile};

const SWAPS: u64 = 100;
const RESTARTS: u32 = 20;
const ECHO_PORT: u16 = 9000;

/// Traffic by the ordinary path, from a client to the first server.
struct Ordinary {
    datagrams: Datagrams,
    stream: Stream,
    hosts: [PathBuf; 2],
}

impl Ordinary {
    fn start(client: &Host, server: &Host) -> anyhow::Result<Self> {
        let address = Topology::server_address(0);
        let hosts = [client.namespace(), server.namespace()];
        for host in &hosts {
            retransmit_losses_only(host)?;
        }
        Ok(Self {
            datagrams: Datagrams::start(client, server, address, ECHO_PORT)?,
            stream: Stream::start(connect(client, address, ORDINARY_PORT)?, BANNER)?,
            hosts,
        })
    }

    /// Ends it, and refuses the loss of a single packet.
    fn finish(self) -> anyhow::Result<()> {
        let (sent, returned) = self.datagrams.finish()?;
        let (written, echoed) = self.stream.finish()?;
        println!("ordinary: {returned} of {sent} datagrams, {echoed} of {written} bytes");
        ensure!(sent == returned, "{} of {sent} datagrams are lost", sent - returned);
        ensure!(written == echoed && written > 0, "{written} bytes went out, {echoed} came back");
        let [client, server] = &self.hosts;
        let lost = lost_segments(&[client, server])?;
        ensure!(lost == 0, "{lost} segments were lost");
        Ok(())
    }
}

#[test]
fn program_swaps_lose_no_packet_of_any_connection() -> anyhow::Result<()> {
    let Some(_right) = privilege::shared_if_privileged() else { return Ok(()) };
    let topology = Topology::new(1, 2)?;
    let (plain, diverted) = (&topology.clients[0], &topology.clients[1]);
    let (server, address) = (&topology.servers[0], Topology::server_address(0));
    let loaded = topology.load(&topology.config(PORT, Framing::Lines))?;
    let config = &loaded.config;
    let _server = OrdinaryServer::start(&server.namespace(), address, &[ORDINARY_PORT])?;
    let relay = EchoRelay::start(config, PORT)?;
    for namespace in [diverted.namespace(), config.namespace()] {
        retransmit_losses_only(&namespace)?;
    }
    let ordinary = Ordinary::start(plain, server)?;
    let long = Stream::start(connect(diverted, address, PORT)?, b"")?;

    let object = ObjectFile::read(&bpf_object()?)?;
    let start = Instant::now();
    let mut programs = std::collections::BTreeSet::new();
    for swap in 0..SWAPS {
        let before = long.echoed();
        let report = topology
            .gateway
            .run(|| gateway::replace_by(config, &object, &mut |_| {}))?
            .with_context(|| format!("swap {swap}"))?;
        programs.insert(report.programs["ingress"].to);
        // A connection that begins now, and the one that goes on.
        let mut short = connect(diverted, address, PORT)?;
        let mut back = short.try_clone()?;
        transfer(&mut short, &mut back, 1000)?;
        within("echo of the long connection", || Ok((long.echoed() > before).then_some(())))?;
    }
    println!("{SWAPS} swaps in {:?}", start.elapsed());
    ensure!(programs.len() as u64 == SWAPS, "{} programs", programs.len());

    ordinary.finish()?;
    let (written, echoed) = long.finish()?;
    println!("diverted: {echoed} of {written} bytes");
    ensure!(written == echoed && written > 0, "{written} bytes went out, {echoed} came back");
    ensure!(relay.accepted() == SWAPS + 1, "{} connections reached the relay", relay.accepted());
    relay.finish()?;
    let lost = lost_segments(&[&diverted.namespace(), &config.namespace()])?;
    ensure!(lost == 0, "{lost} diverted segments were lost");
    loaded.unload()
}

/// Killed and stopped in turns. Its own connections end with it, as any server's do.
#[test]
fn relay_restarts_lose_no_packet_of_ordinary_traffic() -> anyhow::Result<()> {
    let Some(_right) = privilege::shared_if_privileged() else { return Ok(()) };
    let mut cluster = Cluster::build_with(ClusterPlan::small("restarts", 1), |config| {
        config.gateway.devices.push("eth3".to_owned());
    })?;
    // A second device and its client, whose connections the relay loses.
    let victim = Host::new("victim")?;
    link(&cluster.hosts.gateway, "eth3", "10.77.3.1/24", &victim, "eth0", "10.77.3.11/24")?;
    victim.ip("route add default via 10.77.3.1")?;
    cluster.instance.load()?;
    let ordinary = Ordinary::start(&cluster.hosts.clients[0], &cluster.hosts.servers[0])?;

    let start = Instant::now();
    let target = SocketAddr::from((Topology::server_address(0), LINES_PORT));
    for restart in 0..RESTARTS {
        cluster.instance.start()?;
        let mut client = Client::connect(&victim.namespace(), target, lines())?;
        client.send(b"to be lost or not")?;
        if restart % 2 == 0 {
            cluster.instance.kill()?;
        } else {
            cluster.instance.stop()?;
        }
        client.wait_end()?;
        Client::connect(&victim.namespace(), target, lines())?.expect_ordinary()?;
    }
    println!("{RESTARTS} restarts in {:?}", start.elapsed());
    ordinary.finish()?;
    let diverted = cluster.instance.verdicts()?["divert/new"].as_u64();
    ensure!(diverted >= Some(u64::from(RESTARTS)), "diverted were {diverted:?} connections");
    cluster.instance.unload()
}
