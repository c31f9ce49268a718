//! The values of one scrape, and their encoding in both formats.

use std::borrow::Cow;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use crate::measure::Times;

use super::family::{FAMILIES, Family, Kind, Metric};

/// The values of labels, in the order of their family's names.
type Labels = Vec<Cow<'static, str>>;
type Exemplars<'a> = Option<&'a Exemplar<[(&'static str, &'static str); 0], f64>>;

/// A format that scrapers know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// Prometheus' text format, version 0.0.4.
    Text,
}

impl Format {
    /// Its `Content-Type`.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => prometheus_text::CONTENT_TYPE,
        }
    }
}

#[derive(Clone, Debug)]
enum Value {
    Whole(u64),
    Real(f64),
    Times(Times),
}

/// All values of one scrape, by family.
#[derive(Debug)]
pub(super) struct Sheet(Vec<Vec<(Labels, Value)>>);

impl Sheet {
    pub(super) fn new() -> Self {
        Self(vec![Vec::new(); FAMILIES.len()])
    }

    fn add<const N: usize>(
        &mut self,
        metric: Metric,
        labels: [impl Into<Cow<'static, str>>; N],
        value: Value,
    ) {
        debug_assert_eq!(FAMILIES[metric as usize].labels.len(), N, "{metric:?}");
        self.0[metric as usize].push((labels.into_iter().map(Into::into).collect(), value));
    }

    /// A number without labels.
    pub(super) fn set(&mut self, metric: Metric, value: u64) {
        self.add(metric, [""; 0], Value::Whole(value));
    }

    /// The same with labels.
    pub(super) fn set_of<const N: usize>(
        &mut self,
        metric: Metric,
        labels: [impl Into<Cow<'static, str>>; N],
        value: u64,
    ) {
        self.add(metric, labels, Value::Whole(value));
    }

    /// A number that need not be whole.
    pub(super) fn real<const N: usize>(
        &mut self,
        metric: Metric,
        labels: [impl Into<Cow<'static, str>>; N],
        value: f64,
    ) {
        self.add(metric, labels, Value::Real(value));
    }

    /// How long things took.
    pub(super) fn times(&mut self, metric: Metric, times: &Times) {
        self.add(metric, [""; 0], Value::Times(times.clone()));
    }

    /// In a format.
    pub(super) fn encode(self, format: Format) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::with_capacity(64 << 10);
        match format {
            Format::OpenMetrics => text::encode(&mut text, &registry)?,
            Format::Text => prometheus_text::encode(&mut text, &registry)?,
        }
        Ok(text)
    }
}

impl Collector for Sheet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (family, samples) in FAMILIES.iter().zip(&self.0) {
            // A family without values is not there: not all relays have a gateway.
            if !samples.is_empty() {
                encode_family(family, samples, &mut encoder)?;
            }
        }
        Ok(())
    }
}

fn encode_family(
    family: &Family,
    samples: &[(Labels, Value)],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let unit = family.unit().map(|unit| match unit {
        "seconds" => Unit::Seconds,
        _ => Unit::Bytes,
    });
    let kind = match family.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
        Kind::Info => MetricType::Info,
    };
    let mut encoder = encoder.encode_descriptor(family.stem(), family.help, unit.as_ref(), kind)?;
    for (values, value) in samples {
        let values = values.iter().map(|value| &**value);
        let labels: Vec<(&str, &str)> = family.labels.iter().copied().zip(values).collect();
        if family.kind == Kind::Info {
            encoder.encode_info(&labels)?;
        } else if labels.is_empty() {
            encode_value(family.kind, value, &mut encoder)?;
        } else {
            encode_value(family.kind, value, &mut encoder.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_value(
    kind: Kind,
    value: &Value,
    encoder: &mut MetricEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    const NONE: Exemplars<'_> = None;
    match (kind, value) {
        (Kind::Counter, Value::Whole(value)) => encoder.encode_counter(value, NONE),
        (Kind::Counter, Value::Real(value)) => encoder.encode_counter(value, NONE),
        (_, Value::Whole(value)) => encoder.encode_gauge(value),
        (_, Value::Real(value)) => encoder.encode_gauge(value),
        (_, Value::Times(times)) => {
            let bounds = times.bounds_us.iter().map(|bound| seconds(*bound, 1_000_000));
            let bounds = bounds.chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(times.counts.iter().copied()).collect();
            let sum = seconds(times.sum_us, 1_000_000);
            encoder.encode_histogram::<[(&str, &str); 0]>(sum, times.count(), &buckets, None)
        }
    }
}

/// A time in seconds, of so many parts of one.
#[expect(clippy::cast_precision_loss, reason = "a time to look at")]
pub(super) fn seconds(parts: u64, in_a_second: u64) -> f64 {
    parts as f64 / in_a_second as f64
}
