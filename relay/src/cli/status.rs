//! `relay status`: gateway and relay, once or repeatedly, with rates between two looks.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use millrace_relay::config::Config;
use millrace_relay::control;
use millrace_relay::gateway::{self, GatewayError};
use serde::Serialize;

use super::{print, show};

/// Seconds between two looks, unless told otherwise.
const INTERVAL: u32 = 1;

/// What `status --json` prints.
#[derive(Serialize)]
struct FullStatus {
    /// Null if the instance is not loaded, while a relay without a gateway runs.
    gateway: Option<gateway::Status>,
    /// Null while no relay runs.
    relay: Option<control::Snapshot>,
    /// Null without an interval.
    rates: Option<Rates>,
    #[serde(skip)]
    taken: Instant,
}

/// What happened between two looks.
#[derive(Serialize)]
struct Rates {
    /// Between the looks.
    interval_ms: u64,
    /// By verdict.
    packets_per_s: BTreeMap<&'static str, f64>,
    /// By counter of the relay; null unless the same relay ran at both looks.
    relay_per_s: Option<BTreeMap<&'static str, f64>>,
}

/// Prints the status, and goes on with it in `watch`.
pub(super) fn run(
    config: &Config,
    json: bool,
    interval: Option<u32>,
    watch: bool,
) -> anyhow::Result<()> {
    let interval = match (interval, watch) {
        (None, false) => return show(&FullStatus::take(config)?, json),
        (interval, _) => Duration::from_secs(interval.unwrap_or(INTERVAL).into()),
    };
    let mut before = FullStatus::take(config)?;
    loop {
        std::thread::sleep(interval);
        let mut now = FullStatus::take(config)?;
        now.rates = Some(Rates::between(&before, &now));
        show(&now, json)?;
        if !watch {
            return Ok(());
        }
        if !json {
            print("")?;
        }
        before = now;
    }
}

impl FullStatus {
    fn take(config: &Config) -> anyhow::Result<Self> {
        let snapshot = || control::read_snapshot(config).context("cannot ask the running relay");
        let (gateway, relay) = match gateway::status(config) {
            // A relay may run without one.
            Err(error @ GatewayError::NotLoaded { .. }) => (None, Some(snapshot()?.ok_or(error)?)),
            status => (Some(status?), snapshot()?),
        };
        Ok(Self { taken: Instant::now(), gateway, relay, rates: None })
    }
}

impl Rates {
    fn between(before: &FullStatus, now: &FullStatus) -> Self {
        let interval = now.taken.duration_since(before.taken);
        // Counters of one load or run only grow; those of a new one begin again.
        let rate = |before: u64, now: u64| {
            #[expect(clippy::cast_precision_loss, reason = "a rate to look at")]
            let change = now.saturating_sub(before) as f64;
            change / interval.as_secs_f64()
        };
        let verdicts = now.gateway.iter().flat_map(|gateway| &gateway.verdicts);
        let packets_per_s = verdicts.map(|(name, packets)| {
            let before = before.gateway.as_ref().and_then(|gateway| gateway.verdicts.get(name));
            (*name, rate(before.copied().unwrap_or(*packets), *packets))
        });
        let relays = before.relay.as_ref().zip(now.relay.as_ref());
        let relay_per_s = relays.filter(|(before, now)| before.incarnation == now.incarnation).map(
            |(before, now)| {
                let counters = counters(before).into_iter().zip(counters(now));
                counters.map(|((name, before), (_, now))| (name, rate(before, now))).collect()
            },
        );
        Self {
            interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
            packets_per_s: packets_per_s.collect(),
            relay_per_s,
        }
    }
}

/// The relay's counters that have a rate.
fn counters(snapshot: &control::Snapshot) -> [(&'static str, u64); 6] {
    [
        ("accepted", snapshot.accepted),
        ("received_bytes", snapshot.received_bytes),
        ("messages_received", snapshot.messages_received),
        ("messages_acknowledged", snapshot.messages_acknowledged),
        ("replies_received", snapshot.replies_received),
        ("replies_sent", snapshot.replies_sent),
    ]
}

impl fmt::Display for FullStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.gateway {
            Some(gateway) => writeln!(f, "{gateway}")?,
            None => writeln!(f, "gateway: not loaded; clients connect to the relay itself")?,
        }
        match &self.relay {
            Some(snapshot) => write!(f, "{snapshot}")?,
            None => write!(f, "relay: not running; start it with `relay run`")?,
        }
        match &self.rates {
            Some(rates) => write!(f, "\n{rates}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "per second, over {} ms:", self.interval_ms)?;
        let relay = self.relay_per_s.iter().flatten();
        let mut seen = false;
        for (name, rate) in self.packets_per_s.iter().chain(relay).filter(|(_, rate)| **rate > 0.0)
        {
            seen = true;
            write!(f, "\n  {name:<22} {rate:.1}")?;
        }
        if seen { Ok(()) } else { write!(f, " nothing") }
    }
}
