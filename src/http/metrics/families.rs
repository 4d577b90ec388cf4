//! How a family of metrics is written: a line for each stage or edge that has a value.

use std::fmt;

use pipeline_engine::{Balance, EdgeStats, LATENCY_BOUNDS_SECONDS, LatencyCounts, StageStats};
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::RunCollector;

/// Writes one family of metrics after the other.
pub(super) struct Families<'a, 'e> {
    pub(super) run: &'a RunCollector,
    pub(super) encoder: DescriptorEncoder<'e>,
}

/// What a name is followed by when it is shown.
type Value<T> = fn(&StageStats, &Balance) -> Option<T>;

impl Families<'_, '_> {
    pub(super) fn stage_counter(
        &mut self,
        name: &str,
        help: &str,
        of: fn(&StageStats) -> bool,
        value: Value<u64>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for stage in self.run.stats.stages.iter().filter(|stage| of(stage)) {
            let balance = self.run.stats.balance(stage).unwrap_or_default();
            if let Some(value) = value(stage, &balance) {
                counter(&mut family, &labels(&self.run.pipeline, stage), value)?;
            }
        }
        Ok(())
    }

    pub(super) fn stage_gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        of: fn(&StageStats) -> bool,
        value: Value<f64>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for stage in self.run.stats.stages.iter().filter(|stage| of(stage)) {
            let balance = self.run.stats.balance(stage).unwrap_or_default();
            if let Some(value) = value(stage, &balance) {
                gauge(&mut family, &labels(&self.run.pipeline, stage), value)?;
            }
        }
        Ok(())
    }

    pub(super) fn edge_gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: fn(&EdgeStats) -> Option<f64>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for edge in &self.run.stats.edges {
            if let Some(value) = value(edge) {
                gauge(&mut family, &edge_labels(&self.run.pipeline, edge), value)?;
            }
        }
        Ok(())
    }
}

pub(super) fn labels<'a>(pipeline: &'a str, stage: &'a StageStats) -> [(&'static str, &'a str); 3] {
    [("pipeline", pipeline), ("component", &stage.name), ("component_type", stage.type_name)]
}

pub(super) fn edge_labels<'a>(pipeline: &'a str, edge: &'a EdgeStats) -> [(&'static str, &'a str); 4] {
    [("pipeline", pipeline), ("from", &edge.from), ("port", edge.port.name()), ("to", &edge.to)]
}

pub(super) fn counter<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    value: impl EncodeCounterValue,
) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<[(&str, &str); 0], _, u64>(&value, None)
}

pub(super) fn gauge<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    family.encode_family(labels)?.encode_gauge(&value)
}

/// Prometheus wants a bucket for all that is beyond the last bound.
pub(super) fn histogram<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    counts: &LatencyCounts,
) -> fmt::Result {
    let bounds = LATENCY_BOUNDS_SECONDS.iter().copied().chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts.buckets).collect();
    let count = counts.count();
    family.encode_family(labels)?.encode_histogram::<[(&str, &str); 0]>(counts.sum_seconds, count, &buckets, None)
}
