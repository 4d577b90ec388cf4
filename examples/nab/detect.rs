//! Runs the stage, as a pipeline would, over one series.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, TimestampMicrosecondType};
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{Batch, Emitter, Port, TransformConfig};
use pipeline_engine::testing;
use pipeline_stages::transforms::anomaly::{ANOMALIES, AnomalyConfig};

use super::corpus::Series;

/// What the stage says of a series.
#[derive(Debug, Default)]
pub struct Detections {
    /// How far off each row is, in either direction; zero where nothing can be said.
    pub scores: Vec<f64>,
    /// The rows of the alerts, in order.
    pub alerts: Vec<usize>,
}

/// The method as it ships: nothing is set but its name, for `auto` not even that, and `settings`, as lines
/// of a pipeline file.
pub fn run(series: &Series, method: &str, settings: &str) -> Result<Detections> {
    let name = if method == "auto" { String::new() } else { format!("method = \"{method}\"\n") };
    let config: AnomalyConfig = toml::from_str(&format!("{name}metrics = [\"value\"]\n{settings}"))?;
    let schema = Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("timestamp", timestamp_type(), false),
        Field::new("value", DataType::Float64, false),
    ]));
    let built = config.build(&schema, &testing::build_context("nab", ""));
    let mut transform = built.map_err(|error| anyhow!("{}: {}", error.key, error.message))?.transform;
    let times = TimestampMicrosecondArray::from(series.times_us.clone()).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(series.values.iter().map(|_| &series.name))),
        Arc::new(times),
        Arc::new(Float64Array::from(series.values.clone())),
    ];
    let rows = RecordBatch::try_new(schema, columns)?;
    let mut found = Detections::default();
    let mut out = Emitter::default();
    for from in (0..rows.num_rows()).step_by(1_000) {
        let part = rows.slice(from, (rows.num_rows() - from).min(1_000));
        transform.apply(Batch::detached(part), &mut out)?;
        for (port, batch) in out.take() {
            if port == Port::MAIN {
                let scores = batch.rows.column_by_name("value_score").ok_or_else(|| anyhow!("there are no scores"))?;
                let scores = scores.as_primitive::<Float64Type>();
                found.scores.extend(scores.iter().map(|score| score.unwrap_or(0.0).abs()));
            } else if port == ANOMALIES {
                let times = batch.rows.column_by_name("event_time").ok_or_else(|| anyhow!("there are no times"))?;
                let mut rows = from..series.times_us.len();
                // An alert has the time of its row, and alerts come in the order of rows.
                for time in times.as_primitive::<TimestampMicrosecondType>().values() {
                    found.alerts.extend(rows.find(|row| series.times_us[*row] == *time));
                }
            }
            testing::deliver(batch);
        }
    }
    Ok(found)
}
