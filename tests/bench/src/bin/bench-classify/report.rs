//! What was measured, as a table, as JSON and as a plot.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use millrace_bench::measure::{Machine, median};
use millrace_bench::packet_cost::Cost;
use millrace_bench::plot::{self, Bars, Scale};
use millrace_bench::program::Plot;
use millrace_harness::gateway::test_run::Family;
use serde::Serialize;

use crate::rows::{self, Row};

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: u32,
    packets: u32,
    flows: u32,
    rules: u32,
    #[serde(flatten)]
    headline: Headline,
    rows: Vec<Line>,
}

/// The ratios that there are goals for: medians, of IPv4 unless they say otherwise; none where `--only`
/// leaves them out.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[expect(clippy::struct_field_names, reason = "they are fields of the JSON report")]
struct Headline {
    ratio_no_rule: Option<f64>,
    ratio_no_rule_best: Option<f64>,
    ratio_no_rule_ipv6: Option<f64>,
    ratio_diverted: Option<f64>,
    ratio_diverted_best: Option<f64>,
    ratio_diverted_ipv6: Option<f64>,
    ratio_diverted_cold: Option<f64>,
    ratio_diverted_cold_ipv6: Option<f64>,
}

/// The most that [`Headline::ratio_no_rule`] should be.
const GOAL_NO_RULE: f64 = 1.5;
/// The most that [`Headline::ratio_diverted`] should be.
const GOAL_DIVERTED: f64 = 3.0;

#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    family: &'static str,
    program: &'static str,
    verdict: &'static str,
    /// Every packet is of another flow.
    is_cold: bool,
    ns: f64,
    ns_best: f64,
    trivial_ns: f64,
    ratio: f64,
    ratio_best: f64,
    #[serde(skip)]
    costs: Vec<Cost>,
}

const fn name_of(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    }
}

impl Line {
    fn new(family: Family, row: &Row) -> Self {
        Self {
            name: row.name,
            family: name_of(family),
            program: row.program,
            verdict: row.verdict.name(),
            is_cold: row.variation.is_some(),
            ns: f64::NAN,
            ns_best: f64::NAN,
            trivial_ns: f64::NAN,
            ratio: f64::NAN,
            ratio_best: f64::NAN,
            costs: Vec::new(),
        }
    }

    /// The median of the ratios, each to the floor right before it. The best is of the best figures:
    /// what else runs on the machine only ever adds.
    fn add(&mut self, cost: Cost) {
        self.costs.push(cost);
        let of = |figure: fn(&Cost) -> f64| median(self.costs.iter().map(figure));
        let (ns, trivial_ns, ratio) = (of(Cost::own), of(|cost| cost.trivial), of(Cost::ratio));
        let best = Cost::best(&self.costs);
        let (ns_best, ratio_best) = (best.own(), best.ratio());
        (self.ns, self.trivial_ns, self.ratio) = (ns, trivial_ns, ratio);
        (self.ns_best, self.ratio_best) = (ns_best, ratio_best);
    }
}

impl Report {
    pub(crate) fn new(rounds: u32, packets: u32, flows: u32, rules: u32) -> Result<Self> {
        let machine = Machine::this()?;
        let headline = Headline::default();
        Ok(Self { machine, rounds, packets, flows, rules, headline, rows: Vec::new() })
    }

    /// Takes a measurement in.
    pub(crate) fn add(&mut self, family: Family, row: &Row, cost: Cost) {
        let is_it = |line: &Line| line.family == name_of(family) && line.name == row.name;
        let index = self.rows.iter().position(is_it).unwrap_or_else(|| {
            self.rows.push(Line::new(family, row));
            self.rows.len() - 1
        });
        let line = &mut self.rows[index];
        line.add(cost);
        let headline = &mut self.headline;
        let (median, best) = match (line.name, family) {
            (rows::NO_RULE, Family::Ipv4) => {
                (&mut headline.ratio_no_rule, Some(&mut headline.ratio_no_rule_best))
            }
            (rows::NO_RULE, Family::Ipv6) => (&mut headline.ratio_no_rule_ipv6, None),
            (rows::ESTABLISHED, Family::Ipv4) => {
                (&mut headline.ratio_diverted, Some(&mut headline.ratio_diverted_best))
            }
            (rows::ESTABLISHED, Family::Ipv6) => (&mut headline.ratio_diverted_ipv6, None),
            (rows::ESTABLISHED_COLD, Family::Ipv4) => (&mut headline.ratio_diverted_cold, None),
            (rows::ESTABLISHED_COLD, Family::Ipv6) => {
                (&mut headline.ratio_diverted_cold_ipv6, None)
            }
            _ => return,
        };
        *median = Some(line.ratio);
        if let Some(best) = best {
            *best = Some(line.ratio_best);
        }
    }
}

/// Draws the ratios.
impl Plot for Report {
    fn plot(&self, path: &Path) -> Result<()> {
        let mut bars = Bars::default();
        for line in &self.rows {
            bars.add(line.name, line.family, line.ratio);
        }
        let title = format!("{} rules, {} established flows", self.rules, self.flows);
        let axis = "times a program that only passes; less is better";
        let chart = bars.chart(&title, axis, Scale::Linear);
        plot::write(path, "Millrace: processor time of a packet in the XDP programs", &[chart])
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, rounds, packets, flows, rules, .. } = self;
        writeln!(f, "{machine}; {rounds} rounds of {packets} packets")?;
        writeln!(f, "{rules} rules, {flows} established flows")?;
        for family in Family::BOTH.map(name_of) {
            writeln!(f)?;
            writeln!(
                f,
                "{family:<38} {:<20} {:>8} {:>8} {:>7} {:>7}",
                "verdict", "ns", "best", "ratio", "best"
            )?;
            let lines = || self.rows.iter().filter(|line| line.family == family);
            let trivial = median(lines().map(|line| line.trivial_ns));
            writeln!(f, "{:<38} {:<20} {trivial:>8.1}", "a program that only passes", "")?;
            for line in lines() {
                let Line { name, verdict, ns, ns_best, ratio, ratio_best, .. } = line;
                writeln!(
                    f,
                    "{name:<38} {verdict:<20} {ns:>8.1} {ns_best:>8.1} {ratio:>7.2} \
                     {ratio_best:>7.2}"
                )?;
            }
        }
        let Headline { ratio_no_rule, ratio_diverted, ratio_diverted_cold, .. } = self.headline;
        for (what, ratio, goal) in [
            ("without a rule", ratio_no_rule, Some(GOAL_NO_RULE)),
            ("diverted", ratio_diverted, Some(GOAL_DIVERTED)),
            ("diverted, each packet of another flow", ratio_diverted_cold, None),
        ] {
            let Some(ratio) = ratio else { continue };
            write!(f, "\n{what}: {ratio:.2}")?;
            if let Some(goal) = goal {
                write!(f, " (goal: at most {goal})")?;
            }
        }
        writeln!(f)
    }
}
