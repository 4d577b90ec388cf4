//! The values of an expression in all rows of a batch.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, BooleanBuilder, Float64Array, Float64Builder, Int64Array, Int64Builder, StringArray,
    StringBuilder,
};
use arrow::compute::filter;
use arrow::error::ArrowError;

use super::expression::Kind;
use super::json;
use super::value::Value;

/// One value a row; Undefined is null where the kind is known.
#[derive(Debug, Clone)]
pub enum Column {
    Bool(BooleanArray),
    Int(Int64Array),
    Decimal(Float64Array),
    Text(StringArray),
    Dynamic(Vec<Value>),
}

impl Column {
    /// The values as a column of their kind. A value of another kind does not occur but for whole numbers
    /// among decimals; it would be null.
    pub fn of_values<'v>(kind: Kind, values: impl ExactSizeIterator<Item = Cow<'v, Value>>) -> Self {
        let rows = values.len();
        match kind {
            Kind::Bool => {
                let mut builder = BooleanBuilder::with_capacity(rows);
                values.for_each(|value| builder.append_option(as_bool(&value)));
                Self::Bool(builder.finish())
            }
            Kind::Int => {
                let mut builder = Int64Builder::with_capacity(rows);
                values.for_each(|value| builder.append_option(as_int(&value)));
                Self::Int(builder.finish())
            }
            Kind::Decimal => {
                let mut builder = Float64Builder::with_capacity(rows);
                values.for_each(|value| builder.append_option(as_decimal(&value)));
                Self::Decimal(builder.finish())
            }
            Kind::Text => {
                let mut builder = StringBuilder::with_capacity(rows, rows * 8);
                values.for_each(|value| match value.as_ref() {
                    Value::Text(text) => builder.append_value(text),
                    _ => builder.append_null(),
                });
                Self::Text(builder.finish())
            }
            Kind::Dynamic | Kind::Undefined => Self::Dynamic(values.map(Cow::into_owned).collect()),
        }
    }

    pub fn value(&self, row: usize) -> Cow<'_, Value> {
        let value = match self {
            Self::Bool(values) => Value::of_option(values.is_valid(row).then(|| values.value(row)), Value::Bool),
            Self::Int(values) => Value::of_option(values.is_valid(row).then(|| values.value(row)), Value::Int),
            Self::Decimal(values) => {
                Value::of_option(values.is_valid(row).then(|| values.value(row)), Value::of_decimal)
            }
            Self::Text(values) => Value::of_option(values.is_valid(row).then(|| values.value(row)), Value::of_text),
            Self::Dynamic(values) => return Cow::Borrowed(&values[row]),
        };
        Cow::Owned(value)
    }

    pub fn filtered(self, keep: &BooleanArray) -> Result<Self, ArrowError> {
        let kept = |array: &dyn Array| filter(array, keep);
        Ok(match self {
            Self::Bool(values) => Self::Bool(kept(&values)?.as_any().downcast_ref().cloned().unwrap_or(values)),
            Self::Int(values) => Self::Int(kept(&values)?.as_any().downcast_ref().cloned().unwrap_or(values)),
            Self::Decimal(values) => Self::Decimal(kept(&values)?.as_any().downcast_ref().cloned().unwrap_or(values)),
            Self::Text(values) => Self::Text(kept(&values)?.as_any().downcast_ref().cloned().unwrap_or(values)),
            Self::Dynamic(values) => {
                let pairs = values.into_iter().zip(keep.values().iter());
                Self::Dynamic(pairs.filter(|(_, keep)| *keep).map(|(value, _)| value).collect())
            }
        })
    }

    /// As an array of the pipeline: dynamic values are JSON text.
    pub fn into_array(self) -> ArrayRef {
        match self {
            Self::Bool(values) => Arc::new(values),
            Self::Int(values) => Arc::new(values),
            Self::Decimal(values) => Arc::new(values),
            Self::Text(values) => Arc::new(values),
            Self::Dynamic(values) => Arc::new(StringArray::from_iter(
                values.iter().map(|value| (!value.is_undefined()).then(|| json::write(value))),
            )),
        }
    }
}

fn as_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        _ => None,
    }
}

fn as_int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(whole) => Some(*whole),
        _ => None,
    }
}

fn as_decimal(value: &Value) -> Option<f64> {
    match value {
        Value::Int(whole) => Some(*whole as f64),
        Value::Decimal(number) => Some(*number),
        _ => None,
    }
}
