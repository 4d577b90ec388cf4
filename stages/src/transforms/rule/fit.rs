//! Values put into columns of a declared type.
//!
//! Here the result of a rule meets a schema, and AWS IoT has no such place. What fits is put in without
//! loss: a value that does not is no null, its row is a dead letter.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Float32Builder, Float64Builder, Int16Builder, Int32Builder, Int64Builder,
    StringBuilder, TimestampMicrosecondBuilder,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::DateTime;
use pipeline_engine::schema::ColumnType;

use super::column::Column;
use super::expression::Kind;
use super::json;
use super::value::{Number, Value};

/// Whether any value of the kind can fit.
pub fn can_fit(kind: Kind, wanted: ColumnType) -> bool {
    let is_dynamic_or_text = matches!(kind, Kind::Dynamic | Kind::Text);
    match wanted {
        ColumnType::Text | ColumnType::Json => true,
        ColumnType::Bool => is_dynamic_or_text || kind == Kind::Bool,
        ColumnType::Binary => is_dynamic_or_text,
        _ => is_dynamic_or_text || kind.is_number(),
    }
}

/// The values as an array of the type. Undefined and Null are null; `misfit` is told each row whose value
/// does not fit, with the value as text.
pub fn fit(values: &Column, wanted: ColumnType, rows: usize, mut misfit: impl FnMut(u32, String)) -> ArrayRef {
    macro_rules! built {
        ($builder:expr, $convert:expr) => {{
            let mut builder = $builder;
            for row in 0..rows {
                let value = values.value(row);
                let converted = $convert(value.as_ref());
                if converted.is_none() && !matches!(value.as_ref(), Value::Undefined | Value::Null) {
                    misfit(row as u32, json::write(&value));
                }
                builder.append_option(converted);
            }
            Arc::new(builder.finish()) as ArrayRef
        }};
    }
    match wanted {
        ColumnType::Text => built!(StringBuilder::new(), |value: &Value| value.to_text().map(|text| text.into_owned())),
        ColumnType::Json => built!(StringBuilder::new(), as_json),
        ColumnType::Bool => built!(BooleanBuilder::new(), Value::to_bool),
        ColumnType::Int16 => built!(Int16Builder::new(), |value| whole(value).and_then(|whole| whole.try_into().ok())),
        ColumnType::Int32 => built!(Int32Builder::new(), |value| whole(value).and_then(|whole| whole.try_into().ok())),
        ColumnType::Int64 => built!(Int64Builder::new(), whole),
        ColumnType::Float32 => built!(Float32Builder::new(), single),
        ColumnType::Float64 => built!(Float64Builder::new(), Value::to_decimal),
        ColumnType::Timestamp => built!(TimestampMicrosecondBuilder::new().with_timezone("UTC"), time_us),
        ColumnType::Binary => built!(BinaryBuilder::new(), bytes),
    }
}

fn as_json(value: &Value) -> Option<String> {
    if matches!(value, Value::Undefined | Value::Null) { None } else { Some(json::write(value)) }
}

/// A number without a fraction.
fn whole(value: &Value) -> Option<i64> {
    match value.to_number()? {
        Number::Int(whole) => Some(whole),
        Number::Decimal(number) if number == number.trunc() => match Value::of_whole(number) {
            Value::Int(whole) => Some(whole),
            _ => None,
        },
        Number::Decimal(_) => None,
    }
}

/// The nearest number of 32 bits, unless that is infinite.
fn single(value: &Value) -> Option<f32> {
    value.to_decimal().map(|number| number as f32).filter(|number| number.is_finite())
}

/// A number is milliseconds, as everywhere in a rule; text is RFC 3339.
fn time_us(value: &Value) -> Option<i64> {
    match value {
        Value::Int(time_ms) => time_ms.checked_mul(1_000),
        Value::Decimal(time_ms) => match Value::of_whole((time_ms * 1_000.0).round()) {
            Value::Int(time_us) => Some(time_us),
            _ => None,
        },
        Value::Text(text) => DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros()),
        _ => None,
    }
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Text(text) => STANDARD.decode(text).ok(),
        _ => None,
    }
}
