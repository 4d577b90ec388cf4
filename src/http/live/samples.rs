//! Rows that a person wants to see: what was refused, what was found, who was heard.
//!
//! They come from taps of the engine, which cost a stage next to nothing, and are looked through here only while
//! somebody looks. Everything is bounded, whatever devices send.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use pipeline_engine::stage::Port;
use pipeline_engine::tap::TapLimits;
use pipeline_engine::{RunStats, StageStats};

use super::devices::Devices;
use super::snapshot::{AnomalyView, DevicesView, RejectView};

/// Shown at once.
const REJECTS_MAX: usize = 20;
const ANOMALIES_MAX: usize = 12;
/// Readings shown around an anomaly: before it was found, and with those after it.
const SERIES_BEFORE: usize = 90;
const SERIES_MAX: usize = 120;
/// Of a payload; more says nothing to a person.
const PAYLOAD_CHARS_MAX: usize = 300;
/// Of a text of a device or a database.
const TEXT_CHARS_MAX: usize = 500;

/// A few rows of each batch: enough to see what is wrong, and never many.
const FEW: TapLimits = TapLimits { rows_per_batch: 4, batches_max: 16, bytes_max: 4 << 20 };
/// Whole batches, whose columns are shared with the pipeline.
const WHOLE: TapLimits = TapLimits { rows_per_batch: usize::MAX, batches_max: 4_096, bytes_max: 16 << 20 };

/// By which an anomaly's port is known, and the columns of its rows; the device's is named in the file.
const ANOMALY: (&str, &str) = ("anomaly", "anomalies");
/// Where no stage names the column of the device, one of this name is taken for it.
const DEVICE_COLUMN: &str = "device_id";

/// What was seen at the taps so far.
pub struct Samples {
    stats: Arc<RunStats>,
    rejects: VecDeque<RejectView>,
    anomalies: VecDeque<AnomalyView>,
    devices: Devices,
    /// How much of each tap has been looked at, by stage and port.
    taken: Vec<(usize, Port, u64)>,
}

impl Samples {
    /// Opens the taps.
    pub fn open(stats: Arc<RunStats>) -> Self {
        let mut taken = Vec::new();
        let finders: Vec<usize> = (0..stats.stages.len()).filter(|index| is_finder(&stats.stages[*index])).collect();
        for (index, stage) in stats.stages.iter().enumerate() {
            for (port, _) in stage.ports() {
                let tells_devices = port == Port::MAIN
                    && if finders.is_empty() { stage.kind == "source" } else { finders.contains(&index) };
                let limits = match port.name() {
                    name if name == ANOMALY.1 && is_finder(stage) => FEW,
                    _ if port == Port::REJECTED => FEW,
                    _ if tells_devices => WHOLE,
                    _ => continue,
                };
                if let Some(tap) = stage.tap(port) {
                    tap.open(limits);
                    taken.push((index, port, 0));
                }
            }
        }
        // Rows before what was found in them, so that a series is there when its anomaly is.
        taken.sort_by_key(|(_, port, _)| *port != Port::MAIN);
        Self { stats, rejects: VecDeque::new(), anomalies: VecDeque::new(), devices: Devices::default(), taken }
    }

    /// Looks at what has come since the last time.
    pub fn look(&mut self, now_us: i64) {
        for place in 0..self.taken.len() {
            let (index, port, taken) = self.taken[place];
            let stage = self.stats.stages[index].clone();
            let Some(tap) = stage.tap(port) else { continue };
            let (batches, now_taken) = tap.newer_than(taken);
            self.taken[place].2 = now_taken;
            match port {
                Port::REJECTED => batches.iter().for_each(|rows| self.take_rejects(rows)),
                Port::MAIN => batches.iter().for_each(|rows| self.take_readings(rows, now_us)),
                _ => self.take_anomalies(&stage, &batches),
            }
        }
    }

    /// The newest first.
    pub fn rejects(&self) -> Vec<RejectView> {
        self.rejects.iter().cloned().collect()
    }

    /// The newest first.
    pub fn anomalies(&self) -> Vec<AnomalyView> {
        self.anomalies.iter().cloned().collect()
    }

    /// `None` if nobody tells devices apart.
    pub fn devices(&self, now_us: i64) -> Option<DevicesView> {
        self.devices.view(now_us)
    }

    fn take_rejects(&mut self, letters: &RecordBatch) {
        for row in 0..letters.num_rows() {
            let text = |name| text(letters, name, row);
            let payload = letters.column_by_name("payload").and_then(|column| column.as_binary_opt::<i32>());
            self.rejects.push_front(RejectView {
                at_us: time(letters, "received_at", row).unwrap_or(0),
                stage: text("stage").unwrap_or_default(),
                reason: text("reason").unwrap_or_default(),
                detail: text("detail"),
                topic: text("topic"),
                payload: payload.map(|payload| beginning(payload.value(row))).unwrap_or_default(),
            });
        }
        self.rejects.truncate(REJECTS_MAX);
    }

    /// Who is heard, and what comes after the anomalies that are shown.
    fn take_readings(&mut self, rows: &RecordBatch, now_us: i64) {
        let keys = self.devices.column().unwrap_or(DEVICE_COLUMN);
        let Some(keys) = rows.column_by_name(keys).and_then(|column| column.as_string_opt::<i32>()) else { return };
        for key in keys.iter().flatten() {
            self.devices.heard(key, now_us);
        }
        for anomaly in self.anomalies.iter_mut().filter(|anomaly| anomaly.series.len() < SERIES_MAX) {
            extend(&mut anomaly.series, rows, keys, &anomaly.device, &anomaly.metric);
            anomaly.series.truncate(SERIES_MAX);
        }
    }

    /// Of many, those that will be shown: each is looked for in all readings that are there.
    fn take_anomalies(&mut self, stage: &StageStats, batches: &[RecordBatch]) {
        let rows = batches.iter().flat_map(|found| (0..found.num_rows()).map(move |row| (found, row)));
        let rows: Vec<_> = rows.collect();
        for (found, row) in &rows[rows.len().saturating_sub(ANOMALIES_MAX)..] {
            // The columns are those of `stages/src/transforms/anomaly`: the device's name comes second.
            let Some(key) = found.schema().fields().get(1).map(|field| field.name().clone()) else { continue };
            let mut anomaly = anomaly_of(stage, found, *row, &key);
            for rows in stage.tap(Port::MAIN).map(|tap| tap.newer_than(0).0).unwrap_or_default() {
                if let Some(keys) = rows.column_by_name(&key).and_then(|column| column.as_string_opt::<i32>()) {
                    extend(&mut anomaly.series, &rows, keys, &anomaly.device, &anomaly.metric);
                }
            }
            let until = anomaly.series.iter().rposition(|(at, _)| *at <= anomaly.at_us).map_or(0, |place| place + 1);
            anomaly.series.drain(..until.saturating_sub(SERIES_BEFORE));
            anomaly.series.truncate(SERIES_MAX);
            self.anomalies.push_front(anomaly);
            self.devices.name_column(key);
        }
        self.anomalies.truncate(ANOMALIES_MAX);
    }
}

/// An anomaly without the readings around it.
fn anomaly_of(stage: &StageStats, found: &RecordBatch, row: usize, key: &str) -> AnomalyView {
    let text = |name| text(found, name, row).unwrap_or_default();
    let number = |name| number(found, name, row);
    AnomalyView {
        stage: stage.name.clone(),
        at_us: time(found, "event_time", row).or_else(|| time(found, "detected_at", row)).unwrap_or(0),
        device: text(key),
        metric: text("metric"),
        value: number("value"),
        expected: number("mean"),
        score: number("zscore"),
        severity: text("severity"),
        method: text("method"),
        series: Vec::new(),
    }
}

fn is_finder(stage: &StageStats) -> bool {
    stage.type_name == ANOMALY.0
}

/// Adds the readings of one device and metric.
fn extend(
    series: &mut Vec<(i64, f64)>,
    rows: &RecordBatch,
    keys: &arrow::array::StringArray,
    device: &str,
    metric: &str,
) {
    // Readings carry one time as a rule; of several the first.
    let times = rows.columns().iter().find_map(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    let values = rows.column_by_name(metric).and_then(|column| cast(column, &DataType::Float64).ok());
    let (Some(times), Some(values)) = (times, values) else { return };
    let values = values.as_primitive::<Float64Type>();
    for row in 0..rows.num_rows() {
        if keys.is_valid(row) && keys.value(row) == device && times.is_valid(row) && values.is_valid(row) {
            series.push((times.value(row), values.value(row)));
        }
    }
}

fn text(rows: &RecordBatch, name: &str, row: usize) -> Option<String> {
    let column = rows.column_by_name(name)?.as_string_opt::<i32>()?;
    column.is_valid(row).then(|| column.value(row).chars().take(TEXT_CHARS_MAX).collect())
}

fn number(rows: &RecordBatch, name: &str, row: usize) -> f64 {
    let column = rows.column_by_name(name).and_then(|column| column.as_primitive_opt::<Float64Type>());
    column.filter(|column| column.is_valid(row)).map_or(0.0, |column| column.value(row))
}

fn time(rows: &RecordBatch, name: &str, row: usize) -> Option<i64> {
    let column = rows.column_by_name(name)?.as_primitive_opt::<TimestampMicrosecondType>()?;
    column.is_valid(row).then(|| column.value(row))
}

/// What can be shown of a payload; bytes that are no text as U+FFFD.
fn beginning(payload: &[u8]) -> String {
    let bytes = &payload[..payload.len().min(4 * PAYLOAD_CHARS_MAX)];
    let mut text: String = String::from_utf8_lossy(bytes).chars().take(PAYLOAD_CHARS_MAX).collect();
    if payload.len() > text.len() {
        text.push('\u{2026}');
    }
    text
}
