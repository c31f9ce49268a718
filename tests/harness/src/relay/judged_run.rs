//! One run of clients against servers through a cluster, watched and judged.

#![allow(clippy::cast_precision_loss, reason = "counts become rates here")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use crate::clients::load::{Load, LoadPlan, LoadReport};
use crate::clients::payload::Payload;
use crate::clients::wire::Wire;
use crate::relay::cluster::{Cluster, FRAMES_PORT, FRAMES_SERVICE, LINES_PORT, LINES_SERVICE};
use crate::servers::checking::{ServerPlan, Servers, Tally};
use crate::system::interrupt;
use crate::system::process::wait_until;

/// A run in which nothing moves for so long has failed.
const STANDSTILL: Duration = Duration::from_mins(1);
const TICK: Duration = Duration::from_millis(50);
/// Of what the relay has said, so many lines are shown.
const SHOWN_LINES: usize = 20;
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// Clients.
    pub clients: u32,
    /// Messages of all clients together.
    pub messages: u64,
    /// Bytes of a message.
    pub size: usize,
    /// Most unanswered messages of one client.
    pub window: u32,
    /// Which of the two services.
    pub wire: Wire,
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Since the run began.
    pub elapsed: Duration,
    /// Clients connected.
    pub connected: u64,
    /// Messages sent.
    pub sent: u64,
    /// Messages at the servers.
    pub delivered: u64,
    /// Messages answered.
    pub replied: u64,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Longest.
    pub max: u64,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Messages that clients were to send.
    pub requested: u64,
    /// Messages that clients sent.
    pub sent: u64,
    /// Messages that servers got, each counted once.
    pub delivered: u64,
    /// Messages whose reply came, each counted once.
    pub replied: u64,
    /// Messages that were sent and not answered.
    pub lost: u64,
    /// Messages or replies that came again.
    pub duplicated: u64,
    /// Messages or replies that came after a later one.
    pub out_of_order: u64,
    /// Records at the wrong server or with wrong labels; replies at the wrong client.
    pub misrouted: u64,
    /// Messages or replies that are not as they were sent.
    pub corrupted: u64,
    /// Connections that ended before their client was through.
    pub disconnected: u64,
    /// Most connections at once, as the relay counts them.
    pub connections: u64,
    /// From the first message to the last reply.
    pub seconds: f64,
    /// Messages answered per second.
    pub messages_per_second: f64,
    /// Round trips.
    pub latency_us: Latency,
    /// Processor time of the relay per message, user and system.
    pub relay_cpu_us_per_message: f64,
    /// Associations by server while all clients were connected.
    pub associations: BTreeMap<String, u64>,
    /// Connections that the servers' own listeners saw at the diverted port during the run.
    pub ordinary_connections: u64,
    /// Packets that came to the server hosts at the diverted port during the run.
    pub ordinary_packets: u64,
    /// The first few things that were wrong.
    pub errors: Vec<String>,
}

impl Outcome {
    /// Whether every message was sent, and every message and every reply came as it should.
    pub fn is_flawless(&self) -> bool {
        self.sent == self.requested
            && self.disconnected == 0
            && [self.lost, self.duplicated, self.out_of_order, self.misrouted, self.corrupted]
                == [0; 5]
    }
}

/// Lets clients talk to checking servers through a running relay. `observe` is called many times a
/// second and may disturb the cluster.
pub fn run(
    cluster: &mut Cluster,
    plan: &RunPlan,
    observe: &mut dyn FnMut(&mut Cluster, &Snapshot) -> Result<()>,
) -> Result<Outcome> {
    let payload = Payload::new(plan.size)?;
    ensure!(
        u64::from(cluster.plan.max_message_bytes) >= plan.size as u64,
        "messages of {} bytes exceed the service's {}",
        plan.size,
        cluster.plan.max_message_bytes
    );
    let with_frames = plan.wire == crate::clients::wire::frames();
    let (port, service, partitions) = if with_frames {
        (FRAMES_PORT, FRAMES_SERVICE, cluster.frames_partitions())
    } else {
        (LINES_PORT, LINES_SERVICE, cluster.lines_partitions())
    };
    let directory = Arc::new((0..plan.clients).map(|_| std::sync::OnceLock::new()).collect());
    let servers = Servers::start(
        &ServerPlan {
            brokers: cluster.plan.brokers.clone(),
            prefix: cluster.topics.prefix().to_owned(),
            partitions: partitions.clone(),
            relay: cluster.instance.config.relay.id,
            payload: payload.clone(),
            wire: plan.wire,
        },
        &directory,
    )?;
    let ordinary_before = cluster.ordinary_traffic()?;
    let load = Load::start(
        LoadPlan {
            namespace: Some(cluster.clients()),
            targets: cluster.targets(port),
            clients: plan.clients,
            messages: plan.messages,
            payload,
            window: plan.window,
            wire: plan.wire,
        },
        directory,
    )?;
    let mut run = Run { cluster, servers, load, observe, started: Instant::now() };
    run.connect()?;
    let (connections, associations) = run.associations(service)?;
    let cpu_before = run.cluster.instance.stats()?.cpu_us()?;
    run.exchange()?;
    let cpu_after = run.cluster.instance.stats()?.cpu_us()?;
    let ordinary_after = run.cluster.ordinary_traffic()?;
    let mut errors = Vec::new();
    check_associations(&run.servers.tally, &partitions, &associations, &mut errors);
    let (report, tally, progress) = run.finish()?;
    errors.extend(report.errors.iter().cloned());
    errors.extend(tally.complaints());
    if progress.disconnected.load(Relaxed) > 0 {
        errors.push(seen_of_relay(cluster));
    }

    let get = |counter: &AtomicU64| counter.load(Relaxed);
    let (sent, replied) = (get(&progress.sent), get(&progress.replied));
    let seconds = report.duration.as_secs_f64();
    let quantile = |q| report.latency_us.value_at_quantile(q);
    let cpu = (cpu_after.0 + cpu_after.1).saturating_sub(cpu_before.0 + cpu_before.1);
    Ok(Outcome {
        requested: plan.messages,
        sent,
        delivered: get(&tally.delivered),
        replied,
        lost: sent.saturating_sub(replied.min(get(&tally.delivered))),
        duplicated: get(&tally.duplicated) + get(&progress.duplicated),
        out_of_order: get(&tally.out_of_order) + get(&progress.out_of_order),
        misrouted: get(&tally.misrouted) + get(&progress.misrouted),
        corrupted: get(&tally.corrupted) + get(&progress.corrupted),
        disconnected: get(&progress.disconnected),
        connections,
        seconds,
        messages_per_second: per(replied as f64, seconds),
        latency_us: Latency {
            p50: quantile(0.5),
            p99: quantile(0.99),
            max: report.latency_us.max(),
        },
        relay_cpu_us_per_message: per(cpu as f64, replied as f64),
        associations,
        ordinary_connections: ordinary_after.0 - ordinary_before.0,
        ordinary_packets: ordinary_after.1 - ordinary_before.1,
        errors,
    })
}

fn per(amount: f64, of: f64) -> f64 {
    if of > 0.0 { (amount / of * 1000.0).round() / 1000.0 } else { 0.0 }
}

/// The relay's table and the servers' experience must agree.
fn check_associations(
    tally: &Tally,
    partitions: &[u16],
    associations: &BTreeMap<String, u64>,
    errors: &mut Vec<String>,
) {
    let opened =
        partitions.iter().map(|partition| tally.opened_at[usize::from(*partition)].load(Relaxed));
    let (mut opened, mut associated) =
        (opened.collect::<Vec<_>>(), associations.values().copied().collect::<Vec<_>>());
    opened.sort_unstable();
    associated.sort_unstable();
    if opened != associated {
        tally.misrouted.fetch_add(1, Relaxed);
        errors.push(format!(
            "the relay has {associated:?} associations, but the servers saw {opened:?} connections"
        ));
    }
}

/// What the relay counts, and what it has said at last.
fn seen_of_relay(cluster: &Cluster) -> String {
    let stats = cluster.instance.stats().map(|stats| stats.0.to_string());
    let stats = stats.unwrap_or_else(|error| format!("{error:#}"));
    let said = cluster.instance.relay_stderr();
    let lines: Vec<_> = said.lines().rev().take(SHOWN_LINES).collect();
    let said = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
    format!("the relay counts {stats} and has said at last:\n{said}")
}

/// Where messages are, for who waits for them in vain.
fn seen(cluster: &Cluster, servers: &Servers) -> String {
    format!("{}; {}", servers.progress(), seen_of_relay(cluster))
}

struct Run<'a> {
    cluster: &'a mut Cluster,
    servers: Servers,
    load: Load,
    observe: &'a mut dyn FnMut(&mut Cluster, &Snapshot) -> Result<()>,
    started: Instant,
}

impl Run<'_> {
    fn snapshot(&self) -> Snapshot {
        let progress = &self.load.progress;
        Snapshot {
            elapsed: self.started.elapsed(),
            connected: progress.connected.load(Relaxed),
            sent: progress.sent.load(Relaxed),
            delivered: self.servers.tally.delivered.load(Relaxed),
            replied: progress.replied.load(Relaxed),
        }
    }

    /// Looks on until it is done. False: nothing moves any more.
    fn watch(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<bool> {
        let mut moved = (Instant::now(), (0, 0, 0, 0));
        loop {
            interrupt::check()?;
            self.servers.check()?;
            self.cluster.instance.check_running()?;
            let snapshot = self.snapshot();
            (self.observe)(self.cluster, &snapshot)?;
            if done(self) {
                return Ok(true);
            }
            let Snapshot { connected, sent, delivered, replied, .. } = snapshot;
            let place = (connected, sent, delivered, replied);
            if moved.1 != place {
                moved = (Instant::now(), place);
            } else if moved.0.elapsed() > STANDSTILL {
                eprintln!(
                    "waiting for {what}, nothing has moved for {STANDSTILL:?}: {snapshot:?}; {}",
                    seen(self.cluster, &self.servers)
                );
                return Ok(false);
            }
            std::thread::sleep(TICK);
        }
    }

    fn connect(&mut self) -> Result<()> {
        let settled = |run: &Self| {
            let progress = &run.load.progress;
            progress.connected.load(Relaxed) + progress.disconnected.load(Relaxed)
        };
        let clients = self.load.directory.len() as u64;
        let all = self.watch("every client to connect", |run| {
            settled(run) == clients || run.load.has_failed()
        })?;
        ensure!(all, "{} of {clients} clients have connected or been refused", settled(self));
        Ok(())
    }

    fn associations(&self, service: &str) -> Result<(u64, BTreeMap<String, u64>)> {
        let connected = self.load.progress.connected.load(Relaxed);
        let (mut last, mut seen) = ((0, BTreeMap::new()), String::new());
        wait_until(SETTLE_PATIENCE, "the relay to associate every client", || {
            let stats = self.cluster.instance.stats()?;
            last = (stats.count("connections")?, stats.associations(service)?);
            seen = ["accepted", "connections_refused", "connections_closed"]
                .map(|name| format!("{name} {}", stats.0[name]))
                .join(", ");
            Ok(last.1.values().sum::<u64>() >= connected)
        })
        .with_context(|| {
            let (connections, associations) = &last;
            format!(
                "{connected} clients have connected; the relay has {connections} connections and \
                 associations {associations:?}; {seen}"
            )
        })?;
        Ok(last)
    }

    fn exchange(&mut self) -> Result<()> {
        self.load.begin();
        // What is missing shows in the outcome.
        self.watch("every reply", |run| run.load.is_finished())?;
        Ok(())
    }

    /// Closes the connections; once the servers know of the last close, nothing more is on its way.
    fn finish(self) -> Result<(LoadReport, Arc<Tally>, Arc<crate::clients::load::Progress>)> {
        let Self { cluster, servers, load, .. } = self;
        let progress = Arc::clone(&load.progress);
        let report = load.close()?;
        let tally = &servers.tally;
        let all_closed = wait_until(SETTLE_PATIENCE, "the servers to see every close", || {
            Ok(tally.closed.load(Relaxed) >= progress.connected.load(Relaxed))
        });
        if let Err(error) = all_closed {
            bail!(
                "{error}: {} opened, {} closed; {:?}; {}",
                tally.opened.load(Relaxed),
                tally.closed.load(Relaxed),
                tally.complaints(),
                seen(cluster, &servers)
            );
        }
        Ok((report, servers.stop()?, progress))
    }
}
