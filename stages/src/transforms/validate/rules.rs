//! The rules of `validate`: built from the configuration, looked for in columns, told to a person.

use std::fmt::Write as _;
use std::time::Duration;

use ahash::RandomState;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Schema, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use arrow::util::display::array_value_to_string;
use chrono::{DateTime, SecondsFormat};
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildError, StageError};
use pipeline_engine::units::DurationText;
use regex::Regex;

use super::ValidateConfig;
use super::scan::{find_nulls, scan, scan_bools, scan_integers, scan_lengths, scan_text, unexpected};
use crate::transforms::values::{Number, Scalar};

type HashSet<T> = std::collections::HashSet<T, RandomState>;

/// Values longer than this are cut in a detail: it is for a person, the payload has it all.
const SHOWN_CHARS_MAX: usize = 80;

/// One rule for one column.
pub(super) struct Rule {
    /// The reason of a row that breaks it: `range.temperature`.
    pub(super) word: String,
    column: usize,
    name: String,
    check: Check,
}

/// What a value must be. Nulls pass all but `Required`.
enum Check {
    Required,
    Finite,
    Floats { min: f64, max: f64 },
    Integers { min: i64, max: i64 },
    Pattern(Regex),
    AllowedText { set: HashSet<String>, list: String },
    AllowedIntegers { sorted: Vec<i64>, list: String },
    AllowedBools { allowed: [bool; 2], list: String },
    TextBytes(usize),
    Future { limit: DurationText, limit_us: i64 },
    Past { limit: DurationText, limit_us: i64 },
}

/// All rules, in the order in which they give the reason.
pub(super) fn of_config(config: &ValidateConfig, input: &Schema) -> Result<Vec<Rule>, BuildError> {
    let mut rules = Vec::new();
    for name in &config.required {
        let column = columns::find(input, "required", name)?;
        rules.push(Rule::on(input, column, "required", Check::Required));
    }
    by_column(&mut rules);
    if config.finite {
        let floats = (0..).zip(input.fields()).filter(|(_, field)| is_float(field.data_type()));
        rules.extend(floats.map(|(column, _)| Rule::on(input, column, "finite", Check::Finite)));
    }
    let mut ranges = Vec::new();
    for (name, bounds) in &config.range {
        ranges.push(range(input, name, *bounds)?);
    }
    rules.append(by_column(&mut ranges));
    let mut patterns = Vec::new();
    for (name, text) in &config.pattern {
        let key = format!("pattern.{name}");
        let column = columns::find_typed(input, &key, name, "text", |kind| *kind == DataType::Utf8)?;
        let regex = Regex::new(text).map_err(|error| invalid_pattern(&key, text, &error))?;
        patterns.push(Rule::on(input, column, "pattern", Check::Pattern(regex)));
    }
    rules.append(by_column(&mut patterns));
    let mut lists = Vec::new();
    for (name, values) in &config.allowed {
        lists.push(allowed(input, name, values)?);
    }
    rules.append(by_column(&mut lists));
    if let Some(max) = config.max_text_bytes {
        let texts = (0..).zip(input.fields()).filter(|(_, field)| *field.data_type() == DataType::Utf8);
        rules.extend(texts.map(|(at, _)| Rule::on(input, at, "max_text_bytes", Check::TextBytes(max.bytes()))));
    }
    rules.append(&mut skews(config, input)?);
    Ok(rules)
}

fn is_whole(kind: &DataType) -> bool {
    matches!(kind, DataType::Int16 | DataType::Int32 | DataType::Int64)
}

fn is_float(kind: &DataType) -> bool {
    matches!(kind, DataType::Float32 | DataType::Float64)
}

/// A column named twice has its rule once.
fn by_column(rules: &mut Vec<Rule>) -> &mut Vec<Rule> {
    rules.sort_by_key(|rule| rule.column);
    rules.dedup_by_key(|rule| rule.column);
    rules
}

fn range(input: &Schema, name: &str, [min, max]: [Number; 2]) -> Result<Rule, BuildError> {
    let key = format!("range.{name}");
    let column = columns::find_typed(input, &key, name, "a number", |kind| is_whole(kind) || is_float(kind))?;
    for bound in [min, max] {
        if bound.as_f64().is_nan() {
            return Err(BuildError::invalid(key, "a bound is not a number")
                .hint("Leave a side open with -inf or inf, such as [0, inf]."));
        }
    }
    if min.as_f64() > max.as_f64() {
        return Err(BuildError::invalid(key, format!("minimum {min} is above maximum {max}"))
            .hint("Write the lower bound first."));
    }
    if is_float(input.field(column).data_type()) {
        let check = Check::Floats { min: min.as_f64(), max: max.as_f64() };
        return Ok(Rule::on(input, column, "range", check));
    }
    let (lowest, highest) = (lowest_integer(min), highest_integer(max));
    if lowest > highest {
        return Err(BuildError::invalid(key, format!("no whole number lies between {min} and {max}")));
    }
    let check = Check::Integers { min: lowest, max: highest };
    Ok(Rule::on(input, column, "range", check))
}

/// The least integer that is not below the bound.
fn lowest_integer(bound: Number) -> i64 {
    match bound {
        Number::Integer(whole) => whole,
        Number::Float(float) => float.ceil() as i64,
    }
}

/// The greatest integer that is not above the bound.
fn highest_integer(bound: Number) -> i64 {
    match bound {
        Number::Integer(whole) => whole,
        Number::Float(float) => float.floor() as i64,
    }
}

fn allowed(input: &Schema, name: &str, values: &[Scalar]) -> Result<Rule, BuildError> {
    let key = format!("allowed.{name}");
    let wanted = "text, a whole number or a truth value";
    let accepts = |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::Boolean) || is_whole(kind);
    let column = columns::find_typed(input, &key, name, wanted, accepts)?;
    if values.is_empty() {
        return Err(BuildError::invalid(key, "no value is allowed").hint("List at least one, or remove the rule."));
    }
    let kind = input.field(column).data_type();
    let list = values.iter().map(Scalar::to_string).collect::<Vec<_>>().join(", ");
    let mismatch =
        |value: &Scalar| BuildError::invalid(&key, format!("{value} can't be in column \"{name}\", which is {kind}"));
    let check = match kind {
        DataType::Utf8 => {
            let mut set = HashSet::default();
            for value in values {
                let Scalar::Text(text) = value else { return Err(mismatch(value)) };
                set.insert(text.clone());
            }
            Check::AllowedText { set, list }
        }
        DataType::Boolean => {
            let mut allowed = [false; 2];
            for value in values {
                let Scalar::Bool(truth) = value else { return Err(mismatch(value)) };
                allowed[usize::from(*truth)] = true;
            }
            Check::AllowedBools { allowed, list }
        }
        _ => {
            let mut sorted = Vec::new();
            for value in values {
                let Scalar::Integer(whole) = value else { return Err(mismatch(value)) };
                sorted.push(*whole);
            }
            sorted.sort_unstable();
            Check::AllowedIntegers { sorted, list }
        }
    };
    Ok(Rule::on(input, column, "allowed", check))
}

fn skews(config: &ValidateConfig, input: &Schema) -> Result<Vec<Rule>, BuildError> {
    let mut rules = Vec::new();
    if config.max_future.is_none() && config.max_past.is_none() {
        return Ok(rules);
    }
    let is_time = |kind: &DataType| *kind == timestamp_type();
    let column = columns::find_typed(input, "time_column", &config.time_column, "a timestamp", is_time)?;
    let name = config.time_column.clone();
    let mut push = |word: &str, check| rules.push(Rule { word: word.to_owned(), column, name: name.clone(), check });
    if let Some(limit) = config.max_future {
        push("future", Check::Future { limit, limit_us: micros(limit.0) });
    }
    if let Some(limit) = config.max_past {
        push("past", Check::Past { limit, limit_us: micros(limit.0) });
    }
    Ok(rules)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The library's own text draws a caret under the pattern, which no one-line message can hold.
fn invalid_pattern(key: &str, pattern: &str, error: &regex::Error) -> BuildError {
    let text = error.to_string();
    let cause = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    let caret = text.lines().find(|line| line.trim_start().starts_with('^') && line.trim().chars().all(|c| c == '^'));
    // The pattern and the caret below it are indented by four blanks.
    let place = match caret.and_then(|line| line.find('^')).and_then(|at| at.checked_sub(3)) {
        Some(character) if pattern.lines().count() == 1 => format!(" at character {character}"),
        _ => String::new(),
    };
    BuildError::invalid(key, format!("\"{pattern}\" is no regular expression{place}: {cause}"))
        .hint("Put it in single quotes, so that TOML leaves backslashes alone.")
}

impl Rule {
    fn on(input: &Schema, column: usize, kind: &str, check: Check) -> Self {
        let name = input.field(column).name().clone();
        Self { word: format!("{kind}.{name}"), column, name, check }
    }

    /// Calls `broken` once for each row that breaks the rule, in order.
    pub(super) fn find_broken(
        &self,
        rows: &RecordBatch,
        received_at_us: Option<i64>,
        broken: impl FnMut(u32),
    ) -> Result<(), StageError> {
        let array = rows.column(self.column);
        match &self.check {
            Check::Required => find_nulls(array.as_ref(), broken),
            Check::Finite => match array.data_type() {
                DataType::Float32 => scan::<Float32Type>(array.as_primitive(), f32::is_finite, broken),
                DataType::Float64 => scan::<Float64Type>(array.as_primitive(), f64::is_finite, broken),
                other => return Err(unexpected(other)),
            },
            // `&` and not `&&`: no branch, so that a block is judged by vector instructions. False for NaN.
            Check::Floats { min, max } => match array.data_type() {
                DataType::Float32 => scan::<Float32Type>(
                    array.as_primitive(),
                    |value| (f64::from(value) >= *min) & (f64::from(value) <= *max),
                    broken,
                ),
                DataType::Float64 => {
                    scan::<Float64Type>(array.as_primitive(), |value| (value >= *min) & (value <= *max), broken);
                }
                other => return Err(unexpected(other)),
            },
            Check::Integers { min, max } => {
                return scan_integers(array.as_ref(), |value| (value >= *min) & (value <= *max), broken);
            }
            Check::Pattern(regex) => scan_text(array.as_string(), |text| regex.is_match(text), broken),
            Check::AllowedText { set, .. } => scan_text(array.as_string(), |text| set.contains(text), broken),
            Check::AllowedIntegers { sorted, .. } => {
                return scan_integers(array.as_ref(), |value| sorted.binary_search(&value).is_ok(), broken);
            }
            Check::AllowedBools { allowed, .. } => scan_bools(array.as_boolean(), *allowed, broken),
            Check::TextBytes(max) => scan_lengths(array.as_string(), *max, broken),
            Check::Future { limit_us, .. } => {
                if let Some(latest) = received_at_us.map(|received| received.saturating_add(*limit_us)) {
                    scan::<TimestampMicrosecondType>(array.as_primitive(), |time| time <= latest, broken);
                }
            }
            Check::Past { limit_us, .. } => {
                if let Some(earliest) = received_at_us.map(|received| received.saturating_sub(*limit_us)) {
                    scan::<TimestampMicrosecondType>(array.as_primitive(), |time| time >= earliest, broken);
                }
            }
        }
        Ok(())
    }

    /// Adds a sentence with the value and the rule that it breaks.
    pub(super) fn explain(
        &self,
        rows: &RecordBatch,
        row: usize,
        received_at_us: Option<i64>,
        detail: &mut String,
    ) -> Result<(), StageError> {
        let array = rows.column(self.column);
        let name = &self.name;
        let shown = shown(array.as_ref(), row)?;
        let written = match &self.check {
            Check::Required => write!(detail, "{name} is null"),
            Check::Finite => write!(detail, "{name} is {shown}, not a finite number"),
            Check::Floats { min, max } => write!(detail, "{name} is {shown}, outside {min} to {max}"),
            Check::Integers { min, max } => write!(detail, "{name} is {shown}, outside {min} to {max}"),
            Check::Pattern(regex) => write!(detail, "{name} is {shown}, which does not match {regex}"),
            Check::AllowedText { list, .. }
            | Check::AllowedIntegers { list, .. }
            | Check::AllowedBools { list, .. } => write!(detail, "{name} is {shown}, not one of {list}"),
            Check::TextBytes(max) => {
                let bytes = array.as_string::<i32>().value_length(row);
                write!(detail, "{name} has {bytes} bytes, more than {max}")
            }
            Check::Future { limit, .. } => {
                let ahead = skew(array.as_ref(), row, received_at_us);
                write!(detail, "{name} is {shown}, {ahead} after receipt, more than {limit}")
            }
            Check::Past { limit, .. } => {
                let behind = skew(array.as_ref(), row, received_at_us);
                write!(detail, "{name} is {shown}, {behind} before receipt, more than {limit}")
            }
        };
        written.map_err(|_| StageError::bug("text could not be written to memory"))
    }
}

/// The value for a person: text in quotes, cut where it is long.
fn shown(array: &dyn Array, row: usize) -> Result<String, StageError> {
    if *array.data_type() == timestamp_type() {
        let time_us = array.as_primitive::<TimestampMicrosecondType>().value(row);
        let time = DateTime::from_timestamp_micros(time_us);
        // Beyond the calendar, some 260,000 years away, only the number is left to show.
        return Ok(time.map_or_else(|| time_us.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true)));
    }
    if *array.data_type() != DataType::Utf8 {
        return Ok(array_value_to_string(array, row)?);
    }
    let text = array.as_string::<i32>().value(row);
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => Ok(format!("{:?}...", &text[..end])),
        None => Ok(format!("{text:?}")),
    }
}

/// How far the row's time lies from the time of receipt.
fn skew(array: &dyn Array, row: usize, received_at_us: Option<i64>) -> DurationText {
    let time = array.as_primitive::<TimestampMicrosecondType>().value(row);
    DurationText(Duration::from_micros(time.abs_diff(received_at_us.unwrap_or(time))))
}
