//! What the tests of the rule share: messages and rows to look at, and a run of one batch.

mod corpus;
mod docs;
mod kernels;
mod messages;
mod robust;
mod rows;

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use pipeline_engine::schema::{json_field, timestamp_type};
use pipeline_engine::stage::{Batch, BuildError, BuiltTransform, Port, TransformConfig};

use super::RuleConfig;
use crate::transforms::testing::{Outcome, apply, context};

/// 2026-01-31T12:00:00Z
const RECEIVED_AT_US: i64 = 1_769_860_800_000_000;

fn message_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("topic", DataType::Utf8, true),
        Field::new("payload", DataType::Binary, false),
        Field::new("received_at", timestamp_type(), false),
    ]))
}

fn row_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("temperature", DataType::Float64, true),
        Field::new("humidity", DataType::Float32, true),
        Field::new("count", DataType::Int32, true),
        Field::new("armed", DataType::Boolean, true),
        json_field(Field::new("reading", DataType::Utf8, true)),
        Field::new("raw", DataType::Binary, true),
        Field::new("time", timestamp_type(), true),
        Field::new("topic", DataType::Utf8, true),
    ]))
}

/// The configuration of this rule, with further keys as in a file.
fn config(sql: &str, keys: &str) -> RuleConfig {
    toml::from_str(&format!("sql = {}\n{keys}", toml::Value::String(sql.to_owned()))).unwrap()
}

fn build(sql: &str, keys: &str, input: &SchemaRef) -> Result<BuiltTransform, BuildError> {
    config(sql, keys).build(input, &context())
}

fn messages(of: &[(Option<&str>, &[u8])]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(of.iter().map(|(topic, _)| *topic).collect::<StringArray>()),
        Arc::new(BinaryArray::from_iter_values(of.iter().map(|(_, payload)| *payload))),
        Arc::new(TimestampMicrosecondArray::from(vec![RECEIVED_AT_US; of.len()]).with_timezone("UTC")),
    ];
    RecordBatch::try_new(message_schema(), columns).unwrap()
}

/// Runs a rule over messages.
fn over_messages(sql: &str, of: &[(Option<&str>, &[u8])]) -> Outcome {
    let built = build(sql, "", &message_schema()).unwrap_or_else(|error| panic!("{sql}: {error} {:?}", error.hint));
    let mut transform = built.transform;
    let outcome = apply(transform.as_mut(), Batch::detached(messages(of)));
    assert!(outcome.keeps(&built.outputs), "{sql}: another schema than the plan was told");
    outcome
}

/// The payloads that leave by the main port, as text.
fn payloads(outcome: &Outcome) -> Vec<String> {
    let Some(rows) = outcome.port(Port::MAIN) else { return Vec::new() };
    let payloads = rows.column_by_name("payload").unwrap().as_binary::<i32>();
    payloads.iter().map(|payload| String::from_utf8_lossy(payload.unwrap()).into_owned()).collect()
}

/// Runs a rule over rows of [`row_schema`].
fn over_rows(sql: &str, keys: &str, rows: RecordBatch) -> Outcome {
    let built = build(sql, keys, &row_schema()).unwrap_or_else(|error| panic!("{sql}: {error} {:?}", error.hint));
    let mut transform = built.transform;
    let outcome = apply(transform.as_mut(), Batch::detached(rows));
    assert!(outcome.keeps(&built.outputs), "{sql}: another schema than the plan was told");
    outcome
}
