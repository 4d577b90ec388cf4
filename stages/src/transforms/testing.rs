//! What the tests of transforms share: configurations as text, readings as rows, and a run of one
//! batch.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int32Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::util::display::array_value_to_string;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{
    Batch, BuildContext, BuildError, BuiltTransform, Emitter, Port, Transform, TransformConfig,
};
use pipeline_engine::testing::build_context;

/// One reading; `None` is null.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    pub device_id: Option<String>,
    pub timestamp: Option<i64>,
    pub temperature: Option<f64>,
    pub humidity: Option<f64>,
    pub status: Option<String>,
    pub floor: Option<i32>,
    pub armed: Option<bool>,
}

impl Reading {
    /// A reading that is as it should be.
    pub fn of(device_id: &str, timestamp: i64) -> Self {
        Self {
            device_id: Some(device_id.to_owned()),
            timestamp: Some(timestamp),
            temperature: Some(21.5),
            humidity: Some(50.0),
            status: Some("ok".to_owned()),
            floor: Some(3),
            armed: Some(true),
        }
    }
}

pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8, true),
        Field::new("timestamp", timestamp_type(), true),
        Field::new("temperature", DataType::Float64, true),
        Field::new("humidity", DataType::Float64, true),
        Field::new("status", DataType::Utf8, true),
        Field::new("floor", DataType::Int32, true),
        Field::new("armed", DataType::Boolean, true),
    ]))
}

pub fn rows(readings: &[Reading]) -> RecordBatch {
    let times: TimestampMicrosecondArray = readings.iter().map(|reading| reading.timestamp).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(readings.iter().map(|reading| reading.device_id.as_deref()).collect::<StringArray>()),
        Arc::new(times.with_timezone("UTC")),
        Arc::new(readings.iter().map(|reading| reading.temperature).collect::<Float64Array>()),
        Arc::new(readings.iter().map(|reading| reading.humidity).collect::<Float64Array>()),
        Arc::new(readings.iter().map(|reading| reading.status.as_deref()).collect::<StringArray>()),
        Arc::new(readings.iter().map(|reading| reading.floor).collect::<Int32Array>()),
        Arc::new(readings.iter().map(|reading| reading.armed).collect::<BooleanArray>()),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

pub fn context() -> BuildContext {
    build_context("stage", "")
}

pub fn built<C: TransformConfig>(text: &str, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
    toml::from_str::<C>(text).unwrap().build(&schema(), cx)
}

/// The mistake in a configuration: its key, its text with the hint behind it.
pub fn mistake<C: TransformConfig>(text: &str) -> (String, String) {
    let Err(error) = built::<C>(text, &context()) else { panic!("must be refused: {text}") };
    (error.key, format!("{}. {}", error.message, error.hint.unwrap_or_default()))
}

pub fn apply(transform: &mut dyn Transform, batch: Batch) -> Outcome {
    let mut out = Emitter::default();
    transform.apply(batch, &mut out).unwrap();
    Outcome(out.take())
}

/// The configuration in a stage's header, without what the plan takes out: `type` and `inputs`.
pub fn example(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let example = lines.skip_while(|line| *line != "```toml").skip(1).take_while(|line| *line != "```");
    let kept = example.filter(|line| !["[", "type =", "inputs ="].iter().any(|start| line.starts_with(start)));
    kept.collect::<Vec<_>>().join("\n")
}

/// What one batch became.
#[derive(Debug)]
pub struct Outcome(pub Vec<(Port, Batch)>);

impl Outcome {
    /// The rows that left by the port; a port is used at most once a batch.
    pub fn port(&self, port: Port) -> Option<&RecordBatch> {
        let mut of_port = self.0.iter().filter(|(of, _)| *of == port);
        let found = of_port.next().map(|(_, batch)| &batch.rows);
        assert!(of_port.next().is_none(), "port used twice");
        found
    }

    pub fn count(&self, port: Port) -> usize {
        self.port(port).map_or(0, RecordBatch::num_rows)
    }

    /// Whether the rows have the schema that the build promised for their port.
    pub fn keeps(&self, outputs: &[(Port, SchemaRef)]) -> bool {
        self.0.iter().all(|(port, batch)| outputs.contains(&(*port, batch.rows.schema())))
    }

    /// A column of a port as text; nulls are empty.
    pub fn texts(&self, port: Port, column: &str) -> Vec<String> {
        let Some(rows) = self.port(port) else { return Vec::new() };
        let array = match rows.column_by_name(column).unwrap() {
            // Arrow prints offsets, but no zones by name.
            times if *times.data_type() == timestamp_type() => {
                Arc::new(times.as_primitive::<TimestampMicrosecondType>().clone().with_timezone("+00:00")) as ArrayRef
            }
            other => other.clone(),
        };
        (0..rows.num_rows()).map(|row| array_value_to_string(&array, row).unwrap()).collect()
    }

    /// The payloads of dead letters.
    pub fn payloads(&self) -> Vec<serde_json::Value> {
        let Some(rows) = self.port(Port::REJECTED) else { return Vec::new() };
        let payloads = rows.column_by_name("payload").unwrap().as_binary::<i32>();
        payloads.iter().map(|bytes| serde_json::from_slice(bytes.unwrap()).unwrap()).collect()
    }
}
