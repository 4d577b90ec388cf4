//! A schema for messages that are there already: what columns they would fill, and of what type.
//!
//! Samples show what is, not what may be, so the proposal is careful where it costs nothing: whole numbers have 64 bits, a
//! field that was ever anything else than one type is kept as JSON, and only what names a reading (its time, and fields
//! called an id or a device) is required.

mod samples;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt::Write as _;

use pipeline_engine::schema::{Column, ColumnType, DeclaredSchema, Origin, TimestampFormat};
use serde_json::{Map, Value};

pub use self::samples::{SampleFormat, Samples};
use super::timestamp;

/// An object with more keys than this in all samples together is a map, such as one by device, and no set of columns.
const KEYS_MAX: usize = 64;
/// Objects deeper than this are kept as JSON.
const DEPTH_MAX: usize = 6;
/// Numbers outside these times, in seconds since 1970, are no times: 2001 to 2100.
const TIMES_S: std::ops::Range<f64> = 978_307_200.0..4_102_444_800.0;

/// What was seen of all messages so far.
#[derive(Debug, Default)]
pub struct Observations {
    messages: u64,
    root: Object,
}

#[derive(Debug, Default)]
struct Object {
    /// In the order of the messages that had them first, and within a message by name.
    fields: Vec<Field>,
    by_key: HashMap<String, usize>,
}

#[derive(Debug, Default)]
struct Field {
    key: String,
    nulls: u64,
    bools: u64,
    /// Whole numbers of 64 bits.
    wholes: u64,
    /// All other numbers.
    floats: u64,
    texts: u64,
    /// Of the texts, those that are points in time.
    times: u64,
    arrays: u64,
    objects: u64,
    least: f64,
    most: f64,
    inside: Option<Box<Object>>,
}

/// One proposed column.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposed {
    /// As a pipeline file would declare it.
    pub column: Column,
    /// What was seen of it, for a person.
    pub note: String,
}

/// What the samples come to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Proposal {
    /// How many messages were seen.
    pub messages: u64,
    /// The columns, in the order of the messages that had their fields first.
    pub columns: Vec<Proposed>,
    /// Fields that no column can have, each with the reason.
    pub left_out: Vec<String>,
}

impl Observations {
    /// Takes in a message: an object, or an array of objects. Anything else is answered with false.
    pub fn observe(&mut self, message: &Value) -> bool {
        match message {
            Value::Object(fields) => {
                self.messages += 1;
                self.root.observe(fields, 0);
                true
            }
            Value::Array(rows) if !rows.is_empty() && rows.iter().all(Value::is_object) => {
                rows.iter().all(|row| self.observe(row))
            }
            _ => false,
        }
    }

    /// How many messages there were; the rows of an array each are one.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// The schema that would take all of them.
    pub fn propose(&self) -> Proposal {
        let mut proposal = Proposal { messages: self.messages, ..Proposal::default() };
        self.root.propose(&mut Vec::new(), self.messages, &mut proposal);
        let mut taken = HashMap::<String, u32>::new();
        for proposed in &mut proposal.columns {
            let name = proposed.column.name.clone();
            let times = taken.entry(name.clone()).or_default();
            *times += 1;
            if *times > 1 {
                proposed.column.name = format!("{name}_{times}");
            }
        }
        proposal
    }
}

impl Object {
    fn observe(&mut self, fields: &Map<String, Value>, depth: usize) {
        for (key, value) in fields {
            let place = *self.by_key.entry(key.clone()).or_insert_with(|| {
                self.fields.push(Field { key: key.clone(), least: f64::MAX, most: f64::MIN, ..Field::default() });
                self.fields.len() - 1
            });
            self.fields[place].observe(value, depth);
        }
    }

    fn propose(&self, path: &mut Vec<String>, messages: u64, proposal: &mut Proposal) {
        for field in &self.fields {
            path.push(field.key.clone());
            field.propose(path, messages, proposal);
            path.pop();
        }
    }
}

impl Field {
    fn observe(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Null => self.nulls += 1,
            Value::Bool(_) => self.bools += 1,
            Value::Number(number) => {
                *(if number.is_i64() { &mut self.wholes } else { &mut self.floats }) += 1;
                let number = number.as_f64().unwrap_or(f64::NAN);
                self.least = self.least.min(number);
                self.most = self.most.max(number);
            }
            Value::String(text) => {
                self.texts += 1;
                self.times += u64::from(timestamp::parse(text.as_bytes()).is_ok());
            }
            Value::Array(_) => self.arrays += 1,
            Value::Object(fields) => {
                self.objects += 1;
                if depth < DEPTH_MAX {
                    self.inside.get_or_insert_default().observe(fields, depth + 1);
                }
            }
        }
    }

    fn values(&self) -> u64 {
        self.bools + self.wholes + self.floats + self.texts + self.arrays + self.objects
    }

    fn propose(&self, path: &mut Vec<String>, messages: u64, proposal: &mut Proposal) {
        let values = self.values();
        let shown = path.join(".");
        if values == 0 {
            proposal.left_out.push(format!("{shown:?} was always null"));
            return;
        }
        // A path is written with dots, so a key can't have one.
        if self.key.is_empty() || self.key.contains('.') {
            proposal.left_out.push(format!("{shown:?}: no path leads to a key that is empty or has a dot in it"));
            return;
        }
        if let Some(inside) = &self.inside
            && self.objects == values
            && (1..=KEYS_MAX).contains(&inside.fields.len())
        {
            inside.propose(path, messages, proposal);
            return;
        }
        let (kind, format) = self.kind();
        let name = name_of(path);
        let origin = if *path == [name.as_str()] { vec![name.clone()] } else { path.clone() };
        let names_a_reading = kind == ColumnType::Timestamp || is_called_an_id(&self.key) && kind != ColumnType::Json;
        let required = values == messages && names_a_reading;
        let column = Column { name, kind, required, format, origin: Origin::Field(origin) };
        proposal.columns.push(Proposed { column, note: self.note(messages, kind) });
    }

    fn kind(&self) -> (ColumnType, TimestampFormat) {
        let numbers = self.wholes + self.floats;
        let auto = TimestampFormat::Auto;
        match self.values() {
            all if all == self.bools => (ColumnType::Bool, auto),
            all if all == self.times => (ColumnType::Timestamp, auto),
            all if all == self.texts => (ColumnType::Text, auto),
            all if all == numbers => match self.time_unit() {
                Some(format) => (ColumnType::Timestamp, format),
                None if self.floats == 0 => (ColumnType::Int64, auto),
                None => (ColumnType::Float64, auto),
            },
            _ => (ColumnType::Json, auto),
        }
    }

    /// Numbers that are called a time, and lie where times do in one unit.
    fn time_unit(&self) -> Option<TimestampFormat> {
        let key = self.key.to_ascii_lowercase();
        let is_called_a_time = ["ts", "t", "at", "timestamp", "time", "date"].contains(&key.as_str())
            || ["_ts", "_at", "_time", "timestamp", "time_ms", "time_us", "_date"].iter().any(|end| key.ends_with(end));
        let units = [
            (1.0, TimestampFormat::UnixS),
            (1e3, TimestampFormat::UnixMs),
            (1e6, TimestampFormat::UnixUs),
            (1e9, TimestampFormat::UnixNs),
        ];
        let fits = |per_second: f64| {
            TIMES_S.contains(&(self.least / per_second)) && TIMES_S.contains(&(self.most / per_second))
        };
        units.into_iter().find(|(per_second, _)| is_called_a_time && fits(*per_second)).map(|(_, format)| format)
    }

    fn note(&self, messages: u64, kind: ColumnType) -> String {
        let values = self.values();
        let mut note = if values == messages { "in all".to_owned() } else { format!("in {values} of {messages}") };
        if matches!(kind, ColumnType::Int64 | ColumnType::Float64) {
            write!(note, ", {} to {}", self.least, self.most).expect("a String takes all");
        }
        let seen = [
            (self.bools, "a truth value"),
            (self.wholes + self.floats, "a number"),
            (self.texts, "text"),
            (self.arrays, "an array"),
            (self.objects, "an object"),
        ];
        let seen: Vec<&str> = seen.into_iter().filter(|(count, _)| *count > 0).map(|(_, word)| word).collect();
        if kind == ColumnType::Json {
            write!(note, ", {}", seen.join(" or ")).expect("a String takes all");
        }
        note
    }
}

fn is_called_an_id(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["id", "device", "deviceid", "sensor", "serial", "imei", "mac"].contains(&key.as_str())
        || ["_id", "-id", "deviceid", "sensorid"].iter().any(|end| key.ends_with(end))
}

/// A column's name that databases and TOML take without quotes.
fn name_of(path: &[String]) -> String {
    let mut name = String::new();
    for letter in path.join("_").chars() {
        match letter {
            'a'..='z' | '0'..='9' | '_' => name.push(letter),
            'A'..='Z' => {
                // deviceId is device_id, and ID is id.
                if name.ends_with(|last: char| last.is_ascii_lowercase() || last.is_ascii_digit()) {
                    name.push('_');
                }
                name.push(letter.to_ascii_lowercase());
            }
            _ if !name.ends_with('_') => name.push('_'),
            _ => {}
        }
    }
    name.truncate(63);
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) { format!("c{name}") } else { name }
}

impl Proposal {
    /// The columns as a decoder takes them.
    pub fn schema(&self) -> DeclaredSchema {
        DeclaredSchema { columns: self.columns.iter().map(|proposed| proposed.column.clone()).collect() }
    }

    /// The table `[schema.NAME]` of a pipeline file, with what was seen as comments.
    pub fn toml(&self, name: &str) -> String {
        let declared: Vec<(&str, String)> = self
            .columns
            .iter()
            .map(|proposed| (proposed.column.name.as_str(), declaration(&proposed.column)))
            .collect();
        let name_width = declared.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let width = declared.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(0).min(60);
        let mut toml = format!("[schema.{name}]\n");
        for ((name, text), proposed) in declared.iter().zip(&self.columns) {
            writeln!(toml, "{name:name_width$} = {text:width$} # {}", proposed.note).expect("a String takes all");
        }
        for left_out in &self.left_out {
            writeln!(toml, "# left out: {left_out}").expect("a String takes all");
        }
        toml
    }
}

fn declaration(column: &Column) -> String {
    let Origin::Field(path) = &column.origin else { return format!("\"{}\"", column.kind) };
    let mut keys = vec![format!("type = \"{}\"", column.kind)];
    if column.required {
        keys.push("required = true".to_owned());
    }
    let format = match column.format {
        TimestampFormat::Auto => None,
        TimestampFormat::Rfc3339 => Some("rfc3339"),
        TimestampFormat::UnixS => Some("unix_s"),
        TimestampFormat::UnixMs => Some("unix_ms"),
        TimestampFormat::UnixUs => Some("unix_us"),
        TimestampFormat::UnixNs => Some("unix_ns"),
    };
    keys.extend(format.map(|format| format!("format = \"{format}\"")));
    if *path != [column.name.as_str()] {
        keys.push(format!("path = {}", quoted(&path.join("."))));
    }
    if keys.len() == 1 { format!("\"{}\"", column.kind) } else { format!("{{ {} }}", keys.join(", ")) }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            control if control.is_control() => {
                write!(quoted, "\\u{:04x}", u32::from(control)).expect("a String takes all");
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
