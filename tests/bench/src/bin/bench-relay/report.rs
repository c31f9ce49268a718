//! The report: medians, and ratios to what the relay is measured against.

use std::fmt;

use millrace_bench::flood::Flood;
use serde::Serialize;
use serde_json::Value;

use crate::Arguments;
use crate::measure::{self, Measured};
use crate::subject::{Comparison, Subject};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    configuration: Value,
    rounds: u32,
    workloads: Vec<Workload>,
}

/// One flood, with its subjects.
#[derive(Debug, Serialize)]
struct Workload {
    #[serde(skip)]
    comparison: Comparison,
    /// Each message was answered before its connection's next one.
    answered: bool,
    message_bytes: usize,
    messages_per_write: u32,
    messages: u64,
    connections: u32,
    subjects: Vec<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    relay_cpu_ratio_to: Option<Ratios>,
    /// The relay's `cpu_us` and `user_us` as multiples of those of the other commit's.
    #[serde(skip_serializing_if = "Option::is_none")]
    relay_ratio_to_against: Option<AgainstRatios>,
}

/// Medians of a subject. Times in microseconds per message.
#[derive(Debug, Serialize)]
struct Figures {
    name: &'static str,
    messages_per_second: f64,
    user_us: f64,
    system_us: f64,
    cpu_us: f64,
    machine_cpu_us: f64,
    /// Of the relay's workers; the last round's.
    #[serde(skip_serializing_if = "Option::is_none")]
    system_calls_per_message: Option<f64>,
    /// Its `cpu_us` as a multiple of plain framing's, where protocols are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ratio_to_lines: Option<f64>,
    #[serde(skip)]
    rounds: Vec<[f64; 5]>,
}

/// The relay's processor time per message as a multiple of others'.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ratios {
    rsyslog: f64,
    rsyslog_tuned: f64,
    rdkafka: f64,
    floors: f64,
}

/// The relay's times per message as multiples of those of another commit's relay.
#[derive(Clone, Copy, Debug, Serialize)]
struct AgainstRatios {
    cpu: f64,
    user: f64,
}

#[allow(clippy::cast_precision_loss, reason = "counts become rates")]
fn figures(measured: &Measured) -> [f64; 5] {
    let messages = measured.messages as f64;
    let per = |us: u64| us as f64 / messages;
    [
        messages / measured.seconds,
        per(measured.process.user_us),
        per(measured.process.system_us),
        per(measured.process.total_us()),
        per(measured.machine.total_us()),
    ]
}

/// A measurement in a line.
pub(crate) fn line(subject: Subject, measured: &Measured) -> String {
    let [rate, user, system, cpu, machine] = figures(measured);
    let loops = loops_per_message(measured)
        .map(|loops| format!(", {loops} enters/message"))
        .unwrap_or_default();
    format!(
        "{:<15} {rate:>9.0} messages/s  {cpu:>6.2} µs/message ({user:.2} user, {system:.2} system), \
         machine {machine:.2}{loops}",
        subject.name()
    )
}

#[allow(clippy::cast_precision_loss, reason = "counts become rates")]
fn loops_per_message(measured: &Measured) -> Option<f64> {
    let loops = measured.worker_loops? as f64 / measured.messages as f64;
    Some((loops * 10_000.0).round() / 10_000.0)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let value = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    (value * 1000.0).round() / 1000.0
}

impl Report {
    pub(crate) fn new(brokers: &str, arguments: &Arguments) -> Self {
        let rounds = arguments.rounds;
        let configuration = measure::configuration(brokers, arguments)
            .unwrap_or_else(|error| Value::String(format!("not known: {error:#}")));
        Self { configuration, rounds, workloads: Vec::new() }
    }

    /// Begins a workload.
    pub(crate) fn workload(&mut self, comparison: Comparison, flood: &Flood) {
        let subjects = comparison.subjects().iter();
        self.workloads.push(Workload {
            comparison,
            answered: comparison == Comparison::RoundTrips,
            message_bytes: flood.size,
            messages_per_write: flood.per_write,
            messages: flood.messages,
            connections: flood.connections,
            subjects: subjects
                .map(|subject| Figures {
                    name: subject.name(),
                    messages_per_second: 0.0,
                    user_us: 0.0,
                    system_us: 0.0,
                    cpu_us: 0.0,
                    machine_cpu_us: 0.0,
                    system_calls_per_message: None,
                    cpu_ratio_to_lines: None,
                    rounds: Vec::new(),
                })
                .collect(),
            relay_cpu_ratio_to: None,
            relay_ratio_to_against: None,
        });
        eprintln!("{}", self.workloads.last().expect("just pushed").title());
    }

    /// Adds a measurement of one of the subjects of the workload begun last.
    pub(crate) fn add(&mut self, column: usize, measured: &Measured) {
        let workload = self.workloads.last_mut().expect("a workload was begun");
        let figures_of = &mut workload.subjects[column];
        figures_of.rounds.push(figures(measured));
        let of = |column: usize| median(figures_of.rounds.iter().map(|round| round[column]));
        let [rate, user, system, cpu, machine] = [of(0), of(1), of(2), of(3), of(4)];
        figures_of.messages_per_second = rate;
        figures_of.user_us = user;
        figures_of.system_us = system;
        figures_of.cpu_us = cpu;
        figures_of.machine_cpu_us = machine;
        figures_of.system_calls_per_message = loops_per_message(measured);
        workload.compare();
    }
}

impl Workload {
    fn title(&self) -> String {
        let how = if self.answered {
            "each answered before the next".to_owned()
        } else {
            format!("{} a write", self.messages_per_write)
        };
        format!(
            "{} bytes, {how}: {} messages over {} connections",
            self.message_bytes, self.messages, self.connections
        )
    }

    /// Ratios within each round, of which the median counts: what disturbs the machine disturbs the
    /// whole round.
    fn compare(&mut self) {
        let complete = self.subjects.last().map_or(0, |last| last.rounds.len());
        if complete == 0 {
            return;
        }
        let of = |column: usize| -> Vec<Vec<f64>> {
            let rounds = self.subjects.iter().map(|row| &row.rounds[..complete]);
            rounds.map(|rounds| rounds.iter().map(|round| round[column]).collect()).collect()
        };
        let (user, cpu) = (of(1), of(3));
        if self.comparison == Comparison::Commits {
            let ratio =
                |of: &[Vec<f64>]| median(of[0].iter().zip(&of[1]).map(|(own, it)| own / it));
            self.relay_ratio_to_against =
                Some(AgainstRatios { cpu: ratio(&cpu), user: ratio(&user) });
            return;
        }
        if self.comparison != Comparison::Peers {
            for (row, of) in self.subjects.iter_mut().zip(&cpu) {
                let ratios = of.iter().zip(&cpu[0]).map(|(own, lines)| own / lines);
                row.cpu_ratio_to_lines = Some(median(ratios));
            }
            return;
        }
        let [relay, rsyslog, tuned, produce, sink] = &cpu[..] else {
            unreachable!("the peers are five");
        };
        let ratio = |to: &dyn Fn(usize) -> f64| {
            median(relay.iter().enumerate().map(|(round, cpu)| cpu / to(round)))
        };
        self.relay_cpu_ratio_to = Some(Ratios {
            rsyslog: ratio(&|round| rsyslog[round]),
            rsyslog_tuned: ratio(&|round| tuned[round]),
            rdkafka: ratio(&|round| produce[round]),
            floors: ratio(&|round| produce[round] + sink[round]),
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for workload in &self.workloads {
            writeln!(f, "\n{}, medians of {} rounds", workload.title(), self.rounds)?;
            writeln!(
                f,
                "  {:<15} {:>11} {:>9} {:>9} {:>9} {:>9}{}",
                "",
                "messages/s",
                "user µs",
                "system µs",
                "cpu µs",
                "machine",
                match workload.comparison {
                    Comparison::Peers | Comparison::Commits => "",
                    Comparison::Protocols | Comparison::RoundTrips => "  cpu/lines",
                }
            )?;
            for row in &workload.subjects {
                write!(
                    f,
                    "  {:<15} {:>11.0} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
                    row.name,
                    row.messages_per_second,
                    row.user_us,
                    row.system_us,
                    row.cpu_us,
                    row.machine_cpu_us
                )?;
                row.cpu_ratio_to_lines.map_or(Ok(()), |ratio| write!(f, "  {ratio:>9.2}"))?;
                writeln!(f)?;
            }
            if let Some(ratios) = workload.relay_ratio_to_against {
                writeln!(
                    f,
                    "  the relay's cpu is {:.3} of that of {}, its user time {:.3}",
                    ratios.cpu,
                    self.configuration["against"].as_str().unwrap_or("the other commit"),
                    ratios.user
                )?;
            }
            if let Some(ratios) = workload.relay_cpu_ratio_to {
                writeln!(
                    f,
                    "  the relay's cpu is {:.2} of rsyslog's ({:.2} tuned), {:.2} of bare rdkafka's, \
                     {:.2} of the two floors' sum",
                    ratios.rsyslog, ratios.rsyslog_tuned, ratios.rdkafka, ratios.floors
                )?;
            }
        }
        let configuration = serde_json::to_string_pretty(&self.configuration).unwrap_or_default();
        write!(f, "\nconfiguration {configuration}")
    }
}
