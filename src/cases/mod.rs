//! Cases for a pipeline, in TOML beside it: rows in, rows out.
//!
//! ```toml
//! [[case]]
//! name = "a reading out of range is refused with its rule"
//! given = [
//!     { at = "telemetry", rows = [{ device_id = "d1", timestamp = 2026-01-31T12:00:00Z, temperature = 999.0 }] },
//! ]
//! expect."valid.rejected" = [{ reason = "range.temperature" }]
//! expect.valid = []
//! ```

mod compare;

use std::collections::BTreeMap;
use std::path::Path;

use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::time::parse_us;
use pipeline_engine::trial::{Left, Trial, rows_of_json};
use serde::Deserialize;
use serde_json::{Map, Value};

use self::compare::differences;

/// When rows are received where a case does not say.
const RECEIVED_AT: &str = "2026-01-01T00:00:00Z";

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    /// The cases, each with a pipeline of its own.
    pub case: Vec<Case>,
}

/// What comes in, and what must come out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What the case shows, as a sentence.
    pub name: String,
    /// Batches, in order.
    given: Vec<Given>,
    /// Rows by stage, or stage and port: all that leave there, in order, each with the columns that matter. What is not
    /// named may be anything.
    expect: BTreeMap<String, Vec<toml::Table>>,
}

/// A batch of rows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    /// The stage, or stage and port, that they leave: mostly a source.
    at: String,
    /// When the pipeline received them.
    received_at: Option<toml::Value>,
    /// Their columns; those left out are null.
    rows: Vec<toml::Table>,
}

impl Cases {
    /// # Errors
    /// The file can't be read, or what is wrong with it and where.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            format!(
                "can't read the cases in \"{}\": {error}\nCases stand beside the pipeline, or where --cases says.",
                path.display()
            )
        })?;
        let cases: Self = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        if cases.case.is_empty() {
            return Err(format!("{}: there are no cases", path.display()));
        }
        Ok(cases)
    }
}

impl Case {
    /// What is not as it should be, in lines; none if all is.
    ///
    /// # Errors
    /// The case can't be tried: it names what is not there, or a stage fails.
    pub fn run(&self, mut trial: Trial) -> Result<Vec<String>, String> {
        for place in self.expect.keys() {
            trial.schema(place)?;
        }
        for given in &self.given {
            let received_at = given.received_at.clone().map_or_else(|| RECEIVED_AT.to_owned(), |value| plain(&value));
            let received_at_us = parse_us(&received_at, 0).map_err(|error| format!("received_at: {error}"))?;
            let schema = trial.schema(&given.at)?;
            let lines: String = given.rows.iter().map(|row| format!("{}\n", Value::Object(json(row)))).collect();
            let rows = rows_of_json(&lines, &schema).map_err(|error| format!("rows at \"{}\": {error}", given.at))?;
            trial.feed(&given.at, rows, received_at_us).map_err(|error| error.chain())?;
        }
        let left = trial.finish().map_err(|error| error.chain())?;
        let mut wrong = Vec::new();
        for (place, expected) in &self.expect {
            let expected: Vec<_> = expected.iter().map(json).collect();
            wrong.extend(differences(place, &expected, &rows_at(&left, place)?));
        }
        Ok(wrong)
    }
}

fn rows_at(left: &Left, place: &str) -> Result<Vec<Map<String, Value>>, String> {
    let mut rows = Vec::new();
    for batch in left.get(place).into_iter().flatten() {
        let lines = json_lines(batch).map_err(|error| error.to_string())?;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            rows.push(serde_json::from_slice(line).map_err(|error| error.to_string())?);
        }
    }
    Ok(rows)
}

fn json(table: &toml::Table) -> Map<String, Value> {
    table.iter().map(|(name, value)| (name.clone(), json_value(value))).collect()
}

fn json_value(value: &toml::Value) -> Value {
    match value {
        toml::Value::Integer(whole) => (*whole).into(),
        toml::Value::Float(float) => (*float).into(),
        toml::Value::Boolean(truth) => (*truth).into(),
        toml::Value::Array(values) => values.iter().map(json_value).collect(),
        toml::Value::Table(table) => Value::Object(json(table)),
        other => plain(other).into(),
    }
}

/// Text as it is, a time as it is written.
fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
