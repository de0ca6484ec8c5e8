//! What is written for Prometheus to read: [`Page`].
//!
//! The model and its text come from the `prometheus` crate; its counters and registry are not used, because the
//! engine counts for itself.

use millstream_core::Distribution;
use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// The metrics of one look, family by family.
#[derive(Debug, Default)]
pub(super) struct Page(Vec<MetricFamily>);

/// One series: its labels, and what it is now.
#[derive(Debug)]
pub(super) struct Series<'a, T> {
    labels: Vec<(&'static str, &'a str)>,
    value: T,
}

impl<'a, T> Series<'a, T> {
    pub(super) fn new(labels: impl Into<Vec<(&'static str, &'a str)>>, value: T) -> Self {
        Self {
            labels: labels.into(),
            value,
        }
    }
}

impl Page {
    /// What only grows; its name ends in `_total`.
    pub(super) fn counter<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = Series<'a, u64>>,
    ) {
        self.family(MetricType::COUNTER, name, help, series, |metric, value| {
            let mut counter = Counter::default();
            counter.set_value(value as f64);
            metric.set_counter(counter);
        });
    }

    /// What goes up and down.
    pub(super) fn gauge<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = Series<'a, f64>>,
    ) {
        self.family(MetricType::GAUGE, name, help, series, |metric, value| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        });
    }

    /// How values were distributed.
    pub(super) fn histogram<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = Series<'a, &'a Distribution>>,
    ) {
        self.family(MetricType::HISTOGRAM, name, help, series, |metric, value| {
            metric.set_histogram(histogram(value));
        });
    }

    fn family<'a, T>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = Series<'a, T>>,
        set: impl Fn(&mut Metric, T),
    ) {
        let metrics: Vec<_> = series
            .into_iter()
            .map(|Series { labels, value }| {
                let mut metric = Metric::from_label(labels.into_iter().map(label).collect());
                set(&mut metric, value);
                metric
            })
            .collect();
        // A family of nothing would be an error of the encoder's.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    /// It in Prometheus' text format.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // It fails only on a family without a name or a metric.
        let encoded = TextEncoder::new().encode_utf8(&self.0, &mut text);
        debug_assert!(encoded.is_ok(), "{encoded:?}");
        text
    }
}

fn label((name, value): (&str, &str)) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}

fn histogram(distribution: &Distribution) -> Histogram {
    let mut histogram = Histogram::default();
    let mut so_far = 0;
    let buckets = distribution.buckets.iter().map(|(bound, count)| {
        so_far += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(so_far);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(distribution.count);
    histogram.set_sample_sum(distribution.sum);
    histogram
}
