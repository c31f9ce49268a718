//! A flood of SYNs from a million sources: who has a connection keeps it, and who is honest gets
//! one.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use millrace_common::abi::{MAX_PENDING, map};
use millrace_common::verdict::Verdict;
use millrace_harness::gateway::fake_relay::{FakeRelay, PORT, accept, connect, transfer};
use millrace_harness::gateway::test_run::{LRU_HASH, with_pending};
use millrace_harness::net::frames::Frame;
use millrace_harness::net::frames::flag::SYN;
use millrace_harness::net::netns::{Host, Loaded, Topology, bpf_object};
use millrace_harness::net::raw_socket::Raw;
use millrace_harness::system::privilege::{alone, privileged};
use millrace_relay::codec::Framing;
use millrace_relay::gateway::{self, object::ObjectFile};

/// Connections that are there before.
const ESTABLISHED: usize = 50;
/// Honest connections that come in meanwhile: the flood lasts for so many at least.
const FEWEST_NEW: usize = 20;
/// The longest that the flood may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// After so many SYNs it is seen how many have arrived: a veth drops what is too much for it.
const ROUND: u32 = 20_000;

/// A source of the flood: 100.64.0.0/10 (RFC 6598), which is routed to the client's host. After four
/// million they come again.
fn source(number: u32) -> SocketAddr {
    let within = number & (u32::MAX >> 10);
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() | within);
    (IpAddr::from(address), 1024 + u16::try_from(number % 60_000).expect("small")).into()
}

/// SYNs that the gateway has diverted.
fn diverted(loaded: &Loaded) -> anyhow::Result<u64> {
    let data = MapData::from_pin(loaded.config.pin_directory().join(map::COUNTERS))?;
    let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(Map::PerCpuArray(data))?;
    Ok(counters.get(&(Verdict::DivertNew as u32), 0)?.iter().sum())
}

/// Sends SYNs from inside the client's host, each from another source, until so many have been
/// diverted and honest connections enough have come in. Gives how long it took, and how many were
/// sent.
fn flood(
    client: &Host,
    loaded: &Loaded,
    wanted: u64,
    honest: &AtomicUsize,
) -> anyhow::Result<(Duration, u32)> {
    let target = SocketAddr::from((Topology::server_address(0), PORT));
    client.run(|| -> anyhow::Result<_> {
        let raw = Raw::new()?;
        let (start, mut sent) = (Instant::now(), 0);
        while diverted(loaded)? < wanted || honest.load(Ordering::Relaxed) < FEWEST_NEW {
            for number in sent..sent + ROUND {
                raw.send(&Frame::tcp(source(number), target, SYN, number))?;
            }
            sent += ROUND;
            ensure!(
                start.elapsed() < PATIENCE,
                "{sent} SYNs sent: {} of {wanted} have arrived, and {honest:?} honest connections",
                diverted(loaded)?
            );
        }
        Ok((start.elapsed(), sent))
    })?
}

/// Floods a gateway that runs this object. Gives the packets by verdict.
fn withstand(bytes: Vec<u8>, syns: u64) -> anyhow::Result<BTreeMap<&'static str, u64>> {
    let topology = Topology::new(1, 1)?;
    let config = topology.config(PORT, Framing::Lines);
    let object = ObjectFile { path: bpf_object()?, bytes };
    let loaded = topology.load_object(&config, &object)?;
    let (client, server) = (&topology.clients[0], Topology::server_address(0));
    // SYN-ACKs take the way back too, as they would into the Internet, and end there.
    topology.gateway.ip("route add 100.64.0.0/10 via 10.77.1.11")?;
    client.ip("route add blackhole 100.64.0.0/10")?;
    let mut relay = FakeRelay::start(&config, PORT)?;

    let mut old = Vec::new();
    for _ in 0..ESTABLISHED {
        let stream = connect(client, server, PORT)?;
        let (accepted, peer) = accept(&relay.listener)?;
        relay.flows.accepted(peer, accepted.local_addr()?)?;
        old.push((stream, accepted));
    }

    let new = AtomicUsize::new(0);
    let (duration, sent) = std::thread::scope(|scope| -> anyhow::Result<_> {
        let flooder = scope.spawn(|| flood(client, &loaded, syns, &new));
        while !flooder.is_finished() {
            greet(&mut relay, client).context("an honest client")?;
            let turn = new.fetch_add(1, Ordering::Relaxed);
            let (stream, accepted) = &mut old[turn % ESTABLISHED];
            transfer(stream, accepted, 1000)?;
            transfer(accepted, stream, 1000)?;
        }
        flooder.join().expect("the flooder")
    })?;
    for (stream, accepted) in &mut old {
        transfer(stream, accepted, 10_000)?;
        transfer(accepted, stream, 10_000)?;
    }

    let status = gateway::status(&config)?;
    let count = |name: &str| status.verdicts[name];
    let (socket, cookie) = (count("divert/socket"), count("divert/cookie"));
    println!(
        "{} of {sent} SYNs in {duration:?}, {new:?} honest connections meanwhile; of lost flows \
         {socket} were found by their socket and {cookie} by their cookie; {} flows are pending",
        count("divert/new"),
        status.pending
    );
    ensure!(status.pending <= u64::from(MAX_PENDING), "{} are pending", status.pending);
    ensure!(status.established == u64::try_from(ESTABLISHED)?, "{}", status.established);
    loaded.unload()?;
    // No segment was passed to a server that does not know its connection: not the last ones either.
    let (strays, refused) = (count("pass/no_flow"), count("pass/table_full"));
    ensure!(strays == 0 && refused == 0, "{:?}", status.verdicts);
    Ok(status.verdicts)
}

/// A client that connects and talks.
fn greet(relay: &mut FakeRelay, client: &Host) -> anyhow::Result<()> {
    let mut stream = connect(client, Topology::server_address(0), PORT)?;
    // As clients do: a cookie's answer that is lost is made good only by what follows it.
    stream.write_all(b"first")?;
    let mut accepted = relay.accept()?;
    ensure!(accepted.client == stream.local_addr()?, "a stranger: {}", accepted.client);
    let mut first = [0; 5];
    accepted.stream().read_exact(&mut first)?;
    ensure!(&first == b"first");
    transfer(&mut stream, accepted.stream(), 1000)?;
    transfer(accepted.stream(), &mut stream, 1000)
}

#[test]
fn a_million_spoofed_syns_keep_nobody_out() -> anyhow::Result<()> {
    if !privileged("a_million_spoofed_syns_keep_nobody_out") {
        return Ok(());
    }
    let _alone = alone();
    withstand(std::fs::read(bpf_object()?)?, 1_000_000)?;
    Ok(())
}

/// With a table of pending flows that is far too small, as the real one is for clients that are far
/// away.
#[test]
fn flows_that_a_flood_has_evicted_are_found() -> anyhow::Result<()> {
    if !privileged("flows_that_a_flood_has_evicted_are_found") {
        return Ok(());
    }
    let _alone = alone();
    let object = with_pending(&std::fs::read(bpf_object()?)?, LRU_HASH, 64)?;
    let verdicts = withstand(object, 200_000)?;
    ensure!(verdicts["divert/cookie"] + verdicts["divert/socket"] > 0, "{verdicts:?}");
    Ok(())
}
