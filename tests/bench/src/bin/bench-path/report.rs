//! Measurements become rows, tables and a picture.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Result;
use millrace_bench::measure::{Machine, median};
use millrace_bench::plot::{self, Bars, Chart, Scale};
use millrace_bench::program::Plot;
use serde::Serialize;

use crate::Amounts;
use crate::chain::HOSTS;
use crate::work::{Cost, Idle, Talk};

/// The processor time that is Kafka's own.
const BROKER: &str = "Kafka broker";

/// Costs of one message, or of one connection in one minute.
#[derive(Clone, Debug, Serialize)]
struct Costs {
    /// By host, received by its devices.
    packets: BTreeMap<&'static str, f64>,
    /// By all hosts.
    packets_of_all_hosts: f64,
    /// Between Kafka's broker and its clients, on the loopback.
    kafka_segments: f64,
    /// By process, in microseconds.
    processes_us: BTreeMap<String, f64>,
    /// By all processes that take part, in microseconds.
    cpu_us: f64,
    /// The same without Kafka's broker.
    cpu_without_broker_us: f64,
    /// By the whole machine, in microseconds.
    machine_us: f64,
}

/// What is added to a road's name, and one of its values.
type Named = (&'static str, fn(&MessageRow) -> f64);

/// Medians of all rounds.
#[derive(Debug, Serialize)]
struct MessageRow {
    pattern: &'static str,
    road: &'static str,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    #[serde(flatten)]
    costs: Costs,
}

#[derive(Debug, Serialize)]
struct IdleRow {
    keepalive: &'static str,
    road: &'static str,
    connections: u32,
    /// Signs of life of one connection that were answered in one minute.
    signs_of_life: f64,
    server_sockets: u64,
    relay_sockets: u64,
    /// Of one connection in one minute, without what it costs if nothing is connected.
    #[serde(flatten)]
    costs: Costs,
    /// Part of one processor, in percent, with all connections, and with what else runs.
    machine_percent: f64,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    benchmark: &'static str,
    machine: Machine,
    rounds: u32,
    messages: Vec<MessageRow>,
    idle: Vec<IdleRow>,
}

impl Costs {
    /// Medians, without a background, times a factor.
    fn of(costs: &[&Cost], background: Option<&Cost>, factor: f64) -> Self {
        let middle = |of: &dyn Fn(&Cost) -> f64| {
            let without = background.map_or(0.0, of);
            factor * (median(costs.iter().map(|cost| of(cost))) - without).max(0.0)
        };
        let packets: BTreeMap<_, _> = HOSTS
            .into_iter()
            .map(|host| (host, middle(&|cost| cost.packets.get(host).copied().unwrap_or_default())))
            .collect();
        let names = costs.iter().flat_map(|cost| cost.usage.processes_us.keys());
        let of_process = |cost: &Cost, name: &str| {
            cost.usage.processes_us.get(name).copied().unwrap_or_default()
        };
        let processes_us: BTreeMap<_, _> =
            names.map(|name| (name.clone(), middle(&|cost| of_process(cost, name)))).collect();
        Self {
            packets_of_all_hosts: packets.values().sum(),
            packets,
            kafka_segments: middle(&|cost| cost.kafka_segments),
            cpu_us: middle(&|cost| cost.usage.total_us()),
            cpu_without_broker_us: middle(&|cost| cost.usage.total_us() - of_process(cost, BROKER)),
            processes_us,
            machine_us: middle(&|cost| cost.usage.machine_us),
        }
    }
}

impl Report {
    pub(crate) fn new(amounts: &Amounts, talks: &[Talk], idles: &[Idle]) -> Result<Self> {
        let mut messages: Vec<MessageRow> = Vec::new();
        for talk in talks {
            let is_known = |row: &MessageRow| (row.pattern, row.road) == (talk.pattern, talk.road);
            if !messages.iter().any(is_known) {
                messages.push(message_row(talk, talks));
            }
        }
        let idle = idles.iter().map(|idle| idle_row(idle, idles)).collect();
        let machine = Machine::this()?;
        Ok(Self { benchmark: "path", machine, rounds: amounts.rounds, messages, idle })
    }

    fn of_messages(&self, title: &str, axis: &str, scale: Scale, values: &[Named]) -> Chart {
        let mut bars = Bars::default();
        for row in &self.messages {
            for (what, value) in values {
                // The conventional chain has no Kafka: the two would be the same bar.
                if what.is_empty() || row.costs.kafka_segments > 0.0 {
                    bars.add(row.pattern, &format!("{}{what}", row.road), value(row));
                }
            }
        }
        bars.chart(title, axis, scale)
    }

    fn of_idle(&self, title: &str, axis: &str, value: impl Fn(&IdleRow) -> f64) -> Chart {
        let mut bars = Bars::default();
        for row in self.idle.iter().filter(|row| row.connections > 0) {
            bars.add(row.keepalive, row.road, value(row));
        }
        bars.chart(title, axis, Scale::Linear)
    }
}

fn message_row(like: &Talk, talks: &[Talk]) -> MessageRow {
    let rounds: Vec<&Talk> = talks
        .iter()
        .filter(|talk| (talk.pattern, talk.road) == (like.pattern, like.road))
        .collect();
    #[allow(clippy::cast_precision_loss, reason = "counts and microseconds become rates")]
    let middle = |of: fn(&Talk) -> (u64, f64)| {
        median(rounds.iter().map(|talk| {
            let (count, seconds) = of(talk);
            count as f64 / seconds
        }))
    };
    let costs: Vec<&Cost> = rounds.iter().map(|talk| &talk.cost).collect();
    MessageRow {
        pattern: like.pattern,
        road: like.road,
        per_second: middle(|talk| (talk.exchange.messages, talk.exchange.seconds)),
        p50_us: middle(|talk| (talk.exchange.p50_us, 1.0)),
        p99_us: middle(|talk| (talk.exchange.p99_us, 1.0)),
        costs: Costs::of(&costs, None, 1.0),
    }
}

fn idle_row(idle: &Idle, idles: &[Idle]) -> IdleRow {
    let background = idles
        .iter()
        .find(|other| other.road == idle.road && other.connections == 0)
        .filter(|_| idle.connections > 0)
        .map(|other| &other.cost);
    IdleRow {
        keepalive: idle.sign,
        road: idle.road,
        connections: idle.connections,
        signs_of_life: idle.signs * 60.0 / f64::from(idle.connections.max(1)),
        server_sockets: idle.server_sockets,
        relay_sockets: idle.relay_sockets,
        costs: Costs::of(&[&idle.cost], background, 60.0 / f64::from(idle.connections.max(1))),
        machine_percent: idle.cost.usage.machine_us / 1e4,
    }
}

/// Draws packets, processor time and latency.
impl Plot for Report {
    fn plot(&self, path: &Path) -> Result<()> {
        let mut charts = vec![
            self.of_messages(
                "Packets of one message and its reply",
                "packets received by the devices of all hosts; less is better",
                Scale::Linear,
                &[
                    ("", |row| row.costs.packets_of_all_hosts),
                    (", with Kafka's segments on the loopback", |row| {
                        row.costs.packets_of_all_hosts + row.costs.kafka_segments
                    }),
                ],
            ),
            self.of_messages(
                "Processor time of one message and its reply",
                "µs of clients, hosts, relay and server, logarithmic; less is better",
                Scale::Logarithmic,
                &[
                    ("", |row| row.costs.cpu_without_broker_us),
                    (", with Kafka's broker", |row| row.costs.cpu_us),
                ],
            ),
            self.of_messages(
                "Round trip",
                "median in µs, logarithmic; less is better",
                Scale::Logarithmic,
                &[("", |row| row.p50_us)],
            ),
            self.of_idle(
                "A sign of life of an idle connection, with its answer",
                "packets received by the devices of all hosts; less is better",
                |row| row.costs.packets_of_all_hosts / row.signs_of_life,
            ),
            self.of_idle(
                "Idle connections",
                "sockets that the server holds; less is better",
                #[allow(clippy::cast_precision_loss, reason = "some thousand sockets")]
                |row| row.server_sockets as f64,
            ),
        ];
        // On a busy machine it is lost among what else that does.
        if self.idle.iter().all(|row| row.costs.machine_us > 0.0) {
            charts.push(self.of_idle(
                "Processor time of an idle connection with a sign of life every second",
                "µs of the whole machine in a minute, without what it costs if nothing is connected; \
                 less is better",
                |row| row.costs.machine_us,
            ));
        }
        plot::write(path, "The whole path: the conventional chain and Millrace", &charts)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; medians of {} rounds", self.machine, self.rounds)?;
        writeln!(f, "\nOne message and its reply")?;
        let mut pattern = "";
        for row in &self.messages {
            if row.pattern != pattern {
                pattern = row.pattern;
                writeln!(
                    f,
                    "\n  {pattern:<22} {:>10} {:>8} {:>8} {:>8} {:>9} {:>9} {:>12} {:>9}",
                    "per second",
                    "p50 µs",
                    "p99 µs",
                    "packets",
                    "+ Kafka's",
                    "CPU µs",
                    "with broker",
                    "machine"
                )?;
            }
            let costs = &row.costs;
            writeln!(
                f,
                "  {:<22} {:>10.0} {:>8.0} {:>8.0} {:>8.2} {:>9.2} {:>9.2} {:>12.2} {:>9.2}",
                row.road,
                row.per_second,
                row.p50_us,
                row.p99_us,
                costs.packets_of_all_hosts,
                costs.kafka_segments,
                costs.cpu_without_broker_us,
                costs.cpu_us,
                costs.machine_us
            )?;
        }
        writeln!(f, "\nOne idle connection in one minute, with a sign of life every second")?;
        writeln!(
            f,
            "\n  {:<26} {:<13} {:>8} {:>8} {:>9} {:>10} {:>11} {:>15} {:>14}",
            "",
            "",
            "signs",
            "packets",
            "+ Kafka's",
            "CPU µs",
            "machine µs",
            "server sockets",
            "relay sockets"
        )?;
        for row in &self.idle {
            let costs = &row.costs;
            writeln!(
                f,
                "  {:<26} {:<13} {:>8.1} {:>8.1} {:>9.1} {:>10.1} {:>11.1} {:>15} {:>14}",
                if row.connections == 0 { "all, nothing connected" } else { row.keepalive },
                row.road,
                row.signs_of_life,
                costs.packets_of_all_hosts,
                costs.kafka_segments,
                costs.cpu_us,
                costs.machine_us,
                row.server_sockets,
                row.relay_sockets
            )?;
        }
        writeln!(f, "\nPackets by host, of one message or of one idle connection in one minute\n")?;
        write!(f, "  {:<40}", "")?;
        for host in HOSTS {
            write!(f, " {host:>18}")?;
        }
        writeln!(f)?;
        let talks = self.messages.iter().map(|row| (row.pattern, row.road, &row.costs));
        let idles = self.idle.iter().map(|row| (row.keepalive, row.road, &row.costs));
        for (what, road, costs) in talks.chain(idles) {
            write!(f, "  {:<40}", format!("{what}, {road}"))?;
            for host in HOSTS {
                write!(f, " {:>18.2}", costs.packets[host])?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
