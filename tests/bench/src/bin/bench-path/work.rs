//! What is measured on each road.

#![allow(clippy::cast_precision_loss, reason = "counts become rates here")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_bench::measure::{Exchange, exchange};
use millrace_harness::clients::load::LoadPlan;
use millrace_harness::clients::payload::Payload;
use millrace_harness::clients::wire::frames;
use millrace_harness::system::interrupt;
use millrace_harness::system::meter::Usage;
use millrace_harness::system::process::wait_until;

use crate::Amounts;
use crate::chain::{Probe, Road};
use crate::crowd::{Crowd, SignOfLife};

/// Between two signs of life of a connection.
pub(crate) const EVERY: Duration = Duration::from_secs(1);
/// What a crowd needs until all of it sends its signs of life.
const SETTLING: Duration = Duration::from_secs(2);

/// How clients send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    pub(crate) name: &'static str,
    clients: u32,
    window: u32,
    size: usize,
    /// Messages, as a ratio to those asked for.
    share: (u64, u64),
}

/// From one message at a time to batches.
pub(crate) const PATTERNS: [Pattern; 5] = [
    Pattern::new("100 B, one client", 1, 1, 100, (1, 20)),
    Pattern::new("100 B, one a segment", 32, 1, 100, (1, 1)),
    Pattern::new("100 B, batches", 32, 64, 100, (4, 1)),
    Pattern::new("1000 B, one a segment", 32, 1, 1000, (1, 1)),
    Pattern::new("1000 B, batches", 32, 64, 1000, (4, 1)),
];

impl Pattern {
    const fn new(
        name: &'static str,
        clients: u32,
        window: u32,
        size: usize,
        share: (u64, u64),
    ) -> Self {
        Self { name, clients, window, size, share }
    }
}

/// Costs between two probes, per unit.
#[derive(Clone, Debug)]
pub(crate) struct Cost {
    /// Packets received by the devices of each host.
    pub(crate) packets: BTreeMap<&'static str, f64>,
    /// Segments between Kafka's broker and its clients.
    pub(crate) kafka_segments: f64,
    /// Processor time.
    pub(crate) usage: Usage,
}

impl Cost {
    fn between(before: &Probe, after: &Probe, units: f64) -> Self {
        let per = |before: u64, after: u64| after.saturating_sub(before) as f64 / units;
        Self {
            packets: after
                .packets
                .iter()
                .map(|(host, count)| (*host, per(before.packets[host], *count)))
                .collect(),
            kafka_segments: per(before.kafka_segments, after.kafka_segments),
            usage: after.reading.since(&before.reading).per(units),
        }
    }
}

/// One exchange of messages, with the cost of each.
#[derive(Clone, Debug)]
pub(crate) struct Talk {
    pub(crate) pattern: &'static str,
    pub(crate) road: &'static str,
    pub(crate) exchange: Exchange,
    pub(crate) cost: Cost,
}

/// Idle connections, with the cost of the whole second.
#[derive(Clone, Debug)]
pub(crate) struct Idle {
    pub(crate) sign: &'static str,
    pub(crate) road: &'static str,
    pub(crate) connections: u32,
    /// Signs of life that were answered, per second.
    pub(crate) signs: f64,
    /// Held by the server.
    pub(crate) server_sockets: u64,
    /// Held by the relay.
    pub(crate) relay_sockets: u64,
    /// Per second.
    pub(crate) cost: Cost,
}

/// Exchanges messages.
pub(crate) fn talk(road: &Road, pattern: Pattern, amounts: &Amounts) -> Result<Talk> {
    let (times, parts) = pattern.share;
    let messages = amounts.messages * times / parts;
    let plan = LoadPlan {
        namespace: Some(road.hosts.client.namespace()),
        targets: vec![Road::target()],
        clients: pattern.clients,
        messages,
        payload: Payload::new(pattern.size)?,
        window: pattern.window,
        wire: frames(),
    };
    let (exchange, before, after) = exchange(plan, &mut || road.probe())?;
    let cost = Cost::between(&before, &after, messages as f64);
    Ok(Talk { pattern: pattern.name, road: road.name, exchange, cost })
}

/// The road with nobody on it, for a quarter of the time.
pub(crate) fn nothing(road: &Road, amounts: &Amounts) -> Result<Idle> {
    watch(road, "nothing connected", 0, amounts.idle / 4)
}

/// Idle connections.
pub(crate) fn idle(road: &Road, sign: SignOfLife, amounts: &Amounts) -> Result<Idle> {
    let connections = amounts.connections;
    let crowd = Crowd::connect(&road.hosts.client, Road::target(), connections, sign, EVERY)?;
    pause(SETTLING)?;
    let answered = crowd.answers();
    let mut outcome = watch(road, sign.name(), connections, amounts.idle)?;
    let answered = crowd.answers() - answered;
    crowd.close()?;
    outcome.signs = match sign {
        SignOfLife::Message => answered as f64 / amounts.idle.as_secs_f64(),
        // The client host receives nothing else.
        SignOfLife::Tcp => outcome.cost.packets["client"],
    };
    // One for each connection and second, but TCP's timers are coarse and late on a busy machine:
    // the costs are to be read with this count.
    let expected = f64::from(connections) / EVERY.as_secs_f64();
    ensure!(
        outcome.signs > 0.2 * expected,
        "{}, {}: {} of {expected} signs of life a second were answered",
        road.name,
        sign.name(),
        outcome.signs
    );
    Ok(outcome)
}

fn watch(road: &Road, sign: &'static str, connections: u32, time: Duration) -> Result<Idle> {
    let before = road.probe()?;
    pause(time)?;
    let after = road.probe()?;
    let cost = Cost::between(&before, &after, time.as_secs_f64());
    let (server_sockets, relay_sockets) = (road.server_sockets()?, road.relay_sockets()?);
    let (sign, road, signs) = (sign, road.name, 0.0);
    Ok(Idle { sign, road, connections, signs, server_sockets, relay_sockets, cost })
}

/// Lets time pass, but not after Ctrl-C.
fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    wait_until(2 * time, "time to pass", || {
        interrupt::check()?;
        Ok(Instant::now() >= end)
    })
}
