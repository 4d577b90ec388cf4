//! Checks the configuration of `anomaly` against the input, and makes the schemas of its ports.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::BuildError;
use pipeline_engine::suggest::suggest;

use super::AnomalyConfig;
use super::baseline::{Floor, Rules};

/// The largest window. The window is summed anew as often as it turns over; its bound on rounding
/// (see `baseline`) holds up to here.
const WINDOW_MAX: u32 = 10_000;

impl AnomalyConfig {
    /// The metrics' columns, in the order of the configuration.
    pub(super) fn metrics(&self, input: &Schema) -> Result<Vec<usize>, BuildError> {
        if self.metrics.is_empty() {
            return Err(BuildError::invalid("metrics", "there is nothing to score").hint("Name at least one column."));
        }
        let mut found = Vec::new();
        for name in &self.metrics {
            let column = columns::find_typed(input, "metrics", name, "a number", |kind| {
                matches!(
                    kind,
                    DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Float32 | DataType::Float64
                )
            })?;
            if found.contains(&column) {
                return Err(BuildError::invalid("metrics", format!("\"{name}\" is named twice")));
            }
            found.push(column);
        }
        Ok(found)
    }

    pub(super) fn rules(&self) -> Result<Rules, BuildError> {
        if !(2..=WINDOW_MAX).contains(&self.window) {
            let text = format!("a window of {} is not between 2 and {WINDOW_MAX}", self.window);
            return Err(BuildError::invalid("window", text));
        }
        if !(2..=self.window).contains(&self.warmup) {
            let text = format!("a warm-up of {} is not between 2 and the window, {}", self.warmup, self.window);
            return Err(BuildError::invalid("warmup", text));
        }
        if !(self.threshold.is_finite() && self.threshold > 0.0) {
            return Err(BuildError::invalid("threshold", "a threshold is a number above zero"));
        }
        let is_ordered = self.critical >= self.threshold; // false for NaN as well
        if !is_ordered {
            let text = format!("{} is not at or above the threshold, {}", self.critical, self.threshold);
            return Err(BuildError::invalid("critical", text));
        }
        if self.relearn_after == 0 {
            return Err(BuildError::invalid("relearn_after", "no reading could be flagged"));
        }
        Ok(Rules {
            warmup: self.warmup,
            threshold: self.threshold,
            critical: self.critical,
            relearn_after: (!self.learn_from_anomalies).then_some(self.relearn_after),
        })
    }

    /// The least spread of each metric.
    pub(super) fn floors(&self) -> Result<Vec<Floor>, BuildError> {
        for (name, floor) in &self.min_stddev {
            let key = format!("min_stddev.{name}");
            if !self.metrics.contains(name) {
                let known = self.metrics.iter().map(String::as_str);
                return Err(BuildError::invalid(key, format!("\"{name}\" is not one of the metrics"))
                    .hint(suggest(name, known, "Metrics", "")));
            }
            if !(floor.is_finite() && *floor > 0.0) {
                return Err(BuildError::invalid(key, "a least standard deviation is a number above zero"));
            }
        }
        if !(0.0..=1.0).contains(&self.min_stddev_relative) {
            return Err(BuildError::invalid("min_stddev_relative", "a part of the mean is between 0 and 1"));
        }
        let floor = |name| match self.min_stddev.get(name) {
            Some(absolute) => Floor { absolute: *absolute, relative: 0.0 },
            None => Floor { absolute: 0.0, relative: self.min_stddev_relative },
        };
        Ok(self.metrics.iter().map(floor).collect())
    }

    /// The input's columns, then a score for each metric, then the flag.
    pub(super) fn main_schema(&self, input: &Schema) -> Result<SchemaRef, BuildError> {
        let mut fields = input.fields().to_vec();
        let scores =
            self.metrics.iter().map(|name| ("metrics", Field::new(score_column(name), DataType::Float64, true)));
        let flag = ("column", Field::new(&self.column, DataType::Boolean, false));
        for (key, field) in scores.chain([flag]) {
            if fields.iter().any(|other| other.name() == field.name()) {
                return Err(BuildError::invalid(key, format!("there is a column \"{}\" already", field.name()))
                    .hint("The stage adds a column NAME_score for each metric, and one named by `column`."));
            }
            fields.push(Arc::new(field));
        }
        Ok(Arc::new(Schema::new(fields)))
    }

    pub(super) fn anomalies_schema(&self, time: &Field) -> Result<SchemaRef, BuildError> {
        let fields = vec![
            Field::new("detected_at", timestamp_type(), false),
            Field::new(&self.key, DataType::Utf8, false),
            Field::new("event_time", timestamp_type(), time.is_nullable()),
            Field::new("metric", DataType::Utf8, false),
            Field::new("value", DataType::Float64, false),
            Field::new("mean", DataType::Float64, false),
            Field::new("stddev", DataType::Float64, false),
            Field::new("zscore", DataType::Float64, false),
            Field::new("severity", DataType::Utf8, false),
            Field::new("window_size", DataType::Int32, false),
            Field::new("pipeline", DataType::Utf8, false),
        ];
        if fields.iter().filter(|field| *field.name() == self.key).count() > 1 {
            return Err(BuildError::invalid("key", format!("anomalies have a column \"{}\" of their own", self.key)));
        }
        Ok(Arc::new(Schema::new(fields)))
    }
}

fn score_column(metric: &str) -> String {
    format!("{metric}_score")
}
