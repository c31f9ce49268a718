//! What the demo shows while it runs and afterwards.

use std::fmt::Write as _;
use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_harness::net::ordinary::BANNER;
use millrace_harness::relay::cluster::{Cluster, ORDINARY_PORT};
use millrace_harness::relay::judged_run::Snapshot;
use millrace_relay::gateway::in_namespace;
use serde_json::Value;

use crate::Report;

const EVERY: Duration = Duration::from_secs(1);
/// Shown of the relay's log when something is wrong.
const LOG_LINES: usize = 20;

/// Where progress goes.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Standard output is for the JSON object then.
    pub(crate) to_stderr: bool,
}

impl Progress {
    pub(crate) fn line(&self, text: &str) {
        if self.to_stderr {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }
}

/// A line a second.
#[derive(Debug)]
pub(crate) struct Ticker<'a> {
    progress: &'a Progress,
    shown: Instant,
}

impl<'a> Ticker<'a> {
    pub(crate) fn new(progress: &'a Progress) -> Self {
        Self { progress, shown: Instant::now() }
    }

    pub(crate) fn observe(&mut self, cluster: &Cluster, snapshot: &Snapshot) -> Result<()> {
        if self.shown.elapsed() < EVERY {
            return Ok(());
        }
        self.shown = Instant::now();
        let Snapshot { elapsed, connected, sent, delivered, replied } = snapshot;
        let verdicts = verdicts(&cluster.instance.verdicts()?);
        self.progress.line(&format!(
            "{:5.1} s  connections {connected}  sent {sent}  delivered {delivered}  \
             replied {replied}  {verdicts}",
            elapsed.as_secs_f64()
        ));
        Ok(())
    }
}

/// The verdicts that have occurred, `name=count`.
fn verdicts(counters: &Value) -> String {
    let mut text = String::new();
    for (name, count) in counters.as_object().into_iter().flatten() {
        if count.as_u64() != Some(0) {
            let _ = write!(text, "{}{name}={count}", if text.is_empty() { "" } else { " " });
        }
    }
    text
}

/// Shows that a port without a rule reaches the server's own listener.
pub(crate) fn ordinary_port(cluster: &Cluster, progress: &Progress) -> Result<()> {
    let target = cluster.targets(ORDINARY_PORT)[0];
    let greeting = in_namespace(&cluster.clients(), || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut greeting = vec![0; BANNER.len()];
        stream.read_exact(&mut greeting)?;
        Ok(greeting)
    })?
    .with_context(|| format!("the server's own listener at {target} does not answer"))?;
    ensure!(greeting == BANNER, "somebody else than the server's own listener answers at {target}");
    progress.line(&format!("{target} has no rule: the server's own listener answers"));
    Ok(())
}

/// What the relay said last: a step that fails is often its to explain.
pub(crate) fn relay_log(cluster: &Cluster) {
    let log = cluster.instance.relay_stderr();
    let lines: Vec<_> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
    eprintln!("the relay's last {} log lines:", last.len());
    for line in last {
        eprintln!("  {line}");
    }
}

/// The end, for people.
pub(crate) fn summary(report: &Report, (clients, window): (u32, u32), progress: &Progress) {
    let outcome = &report.outcome;
    let latency = &outcome.latency_us;
    for error in &outcome.errors {
        progress.line(&format!("wrong: {error}"));
    }
    progress.line(&format!(
        "sent {} of {}, delivered {}, replied {}; lost {}, duplicated {}, out of order {}, \
         misrouted {}, corrupted {}, disconnected {}",
        outcome.sent,
        outcome.requested,
        outcome.delivered,
        outcome.replied,
        outcome.lost,
        outcome.duplicated,
        outcome.out_of_order,
        outcome.misrouted,
        outcome.corrupted,
        outcome.disconnected,
    ));
    progress.line(&format!(
        "{:.2} s, {:.0} messages/s; relay {:.2} µs of processor time a message",
        outcome.seconds, outcome.messages_per_second, outcome.relay_cpu_us_per_message,
    ));
    progress.line(&format!(
        "{}: p50 {} µs, p99 {} µs, longest {} µs",
        what_round_trips_are(clients, window),
        latency.p50,
        latency.p99,
        latency.max,
    ));
    progress.line(&format!(
        "the servers' own ports saw {} connections and {} packets of {} diverted connections",
        outcome.ordinary_connections, outcome.ordinary_packets, outcome.connections,
    ));
    progress.line(&format!("associations {:?}", outcome.associations));
    progress.line(&format!("verdicts {}", verdicts(&report.verdicts)));
}

/// A round trip is mostly the wait behind what was sent before: that is said beside the numbers.
fn what_round_trips_are(clients: u32, window: u32) -> String {
    let under_way = u64::from(clients) * u64::from(window);
    let advice =
        if window > 1 { "; --window 1 measures them without a queue of their own" } else { "" };
    format!(
        "round trips while each of {clients} clients keeps up to {window} messages unanswered (up to \
         {under_way} under way at a time, and each waits behind them{advice})"
    )
}

#[cfg(test)]
mod tests {
    use super::what_round_trips_are;

    #[test]
    fn what_is_under_way_is_said_beside_the_round_trips() {
        let said = what_round_trips_are(200, 64);
        assert!(said.contains("up to 64 messages") && said.contains("12800 under way"), "{said}");
        assert!(said.contains("--window 1"), "{said}");
        assert!(!what_round_trips_are(200, 1).contains("--window"));
    }
}
