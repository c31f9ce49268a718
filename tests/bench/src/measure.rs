//! What the benchmarks have in common: on what they ran, one measured exchange of messages, and how
//! several rounds become one figure.

#![allow(clippy::cast_precision_loss, reason = "counts become rates here")]

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_harness::clients::load::{Load, LoadPlan};
use millrace_harness::system::interrupt;
use millrace_harness::system::process::wait_until;
use serde::Serialize;

const PATIENCE: Duration = Duration::from_mins(1);

/// What the figures depend on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Logical processors.
    pub processors: usize,
    /// As `/proc/cpuinfo` has it.
    pub model: String,
    /// Linux's release.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Result<Self> {
        let information = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = information
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, model)| model);
        Ok(Self {
            processors: std::thread::available_parallelism()?.get(),
            model: model.to_owned(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} processors, {}, Linux {}", self.processors, self.model, self.kernel)
    }
}

/// An exchange in which every message was answered.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Exchange {
    /// Messages.
    pub messages: u64,
    /// From the first message to the last reply.
    pub seconds: f64,
    /// Median of the round trips, in microseconds.
    pub p50_us: u64,
    /// 99th percentile of the round trips, in microseconds.
    pub p99_us: u64,
}

/// Lets clients send all their messages and wait for the replies. `probe` is asked when all are
/// connected and when the last reply has come. A message that is not answered is an error: a
/// benchmark of lost messages measures nothing.
pub fn exchange<T>(
    plan: LoadPlan,
    probe: &mut dyn FnMut() -> Result<T>,
) -> Result<(Exchange, T, T)> {
    let (clients, messages) = (u64::from(plan.clients), plan.messages);
    let directory = Arc::new((0..clients).map(|_| OnceLock::new()).collect());
    let load = Load::start(plan, directory)?;
    let progress = Arc::clone(&load.progress);
    let settled = wait_until(PATIENCE, "the clients to connect", || {
        interrupt::check()?;
        Ok(progress.connected.load(Relaxed) == clients || load.has_failed())
    });
    let measured = settled.and_then(|()| {
        let before = probe()?;
        load.begin();
        wait_until(PATIENCE, "the last reply", || {
            interrupt::check()?;
            Ok(load.is_finished())
        })?;
        Ok((before, probe()?))
    });
    let report = load.close()?;
    let (before, after) = measured.with_context(|| format!("clients say: {:?}", report.errors))?;
    let wrong = [
        &progress.disconnected,
        &progress.corrupted,
        &progress.misrouted,
        &progress.duplicated,
        &progress.out_of_order,
    ];
    ensure!(
        progress.replied.load(Relaxed) == messages
            && wrong.iter().all(|counter| counter.load(Relaxed) == 0),
        "not every message was answered well: {progress:?}, {:?}",
        report.errors
    );
    let outcome = Exchange {
        messages,
        seconds: report.duration.as_secs_f64(),
        p50_us: report.latency_us.value_at_quantile(0.5),
        p99_us: report.latency_us.value_at_quantile(0.99),
    };
    Ok((outcome, before, after))
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => values[middle],
        (_, middle) => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_ignores_what_is_far_out() {
        assert!((median([3.0, 1.0, 1e9]) - 3.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 1e9]) - 3.0).abs() < 1e-9);
        assert!(median([]).is_nan());
    }
}
