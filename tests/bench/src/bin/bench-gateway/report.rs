//! Rounds become rows, a table and a picture.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use millrace_bench::measure::{Machine, median};
use millrace_bench::plot::{self, Bars, Chart, Scale};
use millrace_bench::program::Plot;
use millrace_harness::system::interrupt;
use serde::Serialize;

use crate::variants::Variant;
use crate::work::{Amounts, Done, Work};

/// Variants that do the same work; the first is what the others are measured by.
#[derive(Debug)]
pub(crate) struct Comparison {
    name: &'static str,
    title: &'static str,
    variants: Vec<usize>,
    works: &'static [Work],
    /// By work, by variant, by round.
    done: Vec<Vec<Vec<Done>>>,
}

impl Comparison {
    pub(crate) fn new(
        name: &'static str,
        title: &'static str,
        variants: Vec<usize>,
        works: &'static [Work],
    ) -> Self {
        let done = vec![vec![Vec::new(); variants.len()]; works.len()];
        Self { name, title, variants, works, done }
    }

    /// Measures everything once, each round in another order.
    pub(crate) fn round(
        &mut self,
        round: usize,
        variants: &[Variant],
        amounts: &Amounts,
    ) -> Result<()> {
        for (work, done) in self.works.iter().zip(&mut self.done) {
            for step in 0..self.variants.len() {
                interrupt::check()?;
                let place = (step + round) % self.variants.len();
                let variant = &variants[self.variants[place]];
                let outcome = work
                    .run(variant, amounts)
                    .with_context(|| format!("{}, {}", variant.name, work.name()))?;
                done[place].push(outcome);
            }
        }
        Ok(())
    }

    fn rows(&self, variants: &[Variant]) -> Vec<Row> {
        let mut rows = Vec::new();
        for (work, done) in self.works.iter().zip(&self.done) {
            for (place, index) in self.variants.iter().enumerate() {
                rows.push(self.row(*work, &variants[*index].name, &done[place], &done[0]));
            }
        }
        rows
    }

    fn row(&self, work: Work, variant: &str, rounds: &[Done], baseline: &[Done]) -> Row {
        let middle = |of: &dyn Fn(&Done) -> f64| median(rounds.iter().map(of));
        // Within a round: what disturbs one variant is likely to disturb its neighbours.
        let ratio = |of: &dyn Fn(&Done) -> f64| {
            median(rounds.iter().zip(baseline).map(|(done, base)| of(done) / of(base)))
        };
        let rate = |done: &Done| done.units / done.seconds;
        let processes = |done: &Done| done.usage.total_us();
        let latency = |of: &dyn Fn((u64, u64)) -> u64| {
            let values: Option<Vec<_>> =
                rounds.iter().map(|done| done.latency_us.map(of)).collect();
            #[allow(clippy::cast_precision_loss, reason = "microseconds")]
            values.map(|values| median(values.into_iter().map(|value| value as f64)))
        };
        let names = rounds.iter().flat_map(|done| done.usage.processes_us.keys());
        let processes_us = names
            .map(|name| {
                let used = |done: &Done| done.usage.processes_us[name];
                (name.clone(), median(rounds.iter().map(used)))
            })
            .collect();
        Row {
            comparison: self.name,
            work: work.name(),
            unit: work.unit(),
            rate: work.rate(),
            variant: variant.to_owned(),
            per_second: middle(&rate),
            rate_ratio: ratio(&rate),
            p50_us: latency(&|(p50, _)| p50),
            p99_us: latency(&|(_, p99)| p99),
            cpu_us_per_unit: middle(&processes),
            cpu_ratio: ratio(&processes),
            processes_us,
            machine_us_per_unit: middle(&|done| done.usage.machine_us),
        }
    }
}

/// Medians of all rounds.
#[derive(Debug, Serialize)]
struct Row {
    comparison: &'static str,
    work: &'static str,
    /// Of the processor time.
    unit: &'static str,
    /// Of [`Self::per_second`].
    rate: &'static str,
    variant: String,
    per_second: f64,
    /// To the first variant of the comparison.
    rate_ratio: f64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    /// Of all processes that take part.
    cpu_us_per_unit: f64,
    /// To the first variant of the comparison.
    cpu_ratio: f64,
    /// Per unit.
    processes_us: BTreeMap<String, f64>,
    /// Whatever else the machine did included.
    machine_us_per_unit: f64,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    benchmark: &'static str,
    machine: Machine,
    rounds: u32,
    connections: u32,
    messages: u64,
    megabytes: u64,
    rows: Vec<Row>,
    #[serde(skip)]
    titles: Vec<(&'static str, &'static str)>,
}

impl Report {
    pub(crate) fn new(
        rounds: u32,
        amounts: &Amounts,
        variants: &[Variant],
        comparisons: &[Comparison],
    ) -> Result<Self> {
        let Amounts { connections, messages, megabytes } = *amounts;
        Ok(Self {
            benchmark: "gateway",
            machine: Machine::this()?,
            rounds,
            connections,
            messages,
            megabytes,
            rows: comparisons.iter().flat_map(|comparison| comparison.rows(variants)).collect(),
            titles: comparisons.iter().map(|each| (each.name, each.title)).collect(),
        })
    }

    fn of(&self, comparison: &str) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.comparison == comparison)
    }

    fn chart(
        &self,
        comparison: &str,
        title: &str,
        axis: &str,
        value: impl Fn(&Row) -> f64,
    ) -> Chart {
        let mut bars = Bars::default();
        for row in self.of(comparison) {
            bars.add(row.work, &row.variant, value(row));
        }
        bars.chart(title, axis, Scale::Linear)
    }
}

/// Draws rates and processor time, as ratios.
impl Plot for Report {
    fn plot(&self, path: &Path) -> Result<()> {
        let mut charts = Vec::new();
        for (comparison, title) in &self.titles {
            let baseline = self.of(comparison).next().map_or("", |row| &row.variant);
            let rate = format!("rate, as a ratio to `{baseline}`; more is better");
            let cpu =
                format!("processor time per unit, as a ratio to `{baseline}`; less is better");
            charts.push(self.chart(comparison, title, &rate, |row| row.rate_ratio));
            charts.push(self.chart(comparison, title, &cpu, |row| row.cpu_ratio));
        }
        plot::write(path, "Cost of diversion", &charts)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; medians of {} rounds", self.machine, self.rounds)?;
        for (comparison, title) in &self.titles {
            writeln!(f, "\n{title}")?;
            let mut work = "";
            for row in self.of(comparison) {
                if row.work != work {
                    work = row.work;
                    writeln!(
                        f,
                        "\n  {work:<27} {:>12} {:>6} {:>9} {:>9} {:>10} {:>6}",
                        row.rate, "ratio", "p50 µs", "p99 µs", "CPU µs", "ratio"
                    )?;
                }
                let latency =
                    |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.0}"));
                writeln!(
                    f,
                    "  {:<27} {:>12.0} {:>6.2} {:>9} {:>9} {:>10.1} {:>6.2}",
                    row.variant,
                    row.per_second,
                    row.rate_ratio,
                    latency(row.p50_us),
                    latency(row.p99_us),
                    row.cpu_us_per_unit,
                    row.cpu_ratio
                )?;
            }
        }
        Ok(())
    }
}
