//! A value of any type that can be aggregated.

use std::borrow::Cow;
use std::cmp::Ordering;

use pipeline_engine::stage::StageError;

use crate::transforms::snapshot::{Reader, Writer, damaged};

/// A value, without its exact type: that is the column's.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Float(f64),
    /// A whole number, or a time in microseconds since 1970.
    Whole(i64),
    Bool(bool),
    Text(Cow<'a, str>),
}

impl Value<'_> {
    /// As a float; `None` for what is none.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Float(float) => Some(*float),
            Self::Whole(whole) => Some(*whole as f64),
            Self::Bool(_) | Self::Text(_) => None,
        }
    }

    /// Of two values of one column.
    pub(super) fn compare(&self, other: &Value<'_>) -> Ordering {
        match (self, other) {
            (Self::Float(left), Value::Float(right)) => left.total_cmp(right),
            (Self::Whole(left), Value::Whole(right)) => left.cmp(right),
            (Self::Bool(left), Value::Bool(right)) => left.cmp(right),
            (Self::Text(left), Value::Text(right)) => left.cmp(right),
            _ => Ordering::Equal,
        }
    }

    pub(super) fn to_owned(&self) -> Value<'static> {
        match self {
            Self::Float(float) => Value::Float(*float),
            Self::Whole(whole) => Value::Whole(*whole),
            Self::Bool(truth) => Value::Bool(*truth),
            Self::Text(text) => Value::Text(Cow::Owned(text.to_string())),
        }
    }

    pub(super) fn write(value: Option<&Self>, writer: &mut Writer) {
        match value {
            None => writer.u32(0),
            Some(Self::Float(float)) => {
                writer.u32(1);
                writer.f64(*float);
            }
            Some(Self::Whole(whole)) => {
                writer.u32(2);
                writer.i64(*whole);
            }
            Some(Self::Bool(truth)) => writer.u32(3 + u32::from(*truth)),
            Some(Self::Text(text)) => {
                writer.u32(5);
                writer.bytes(text.as_bytes());
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Option<Value<'static>>, StageError> {
        Ok(Some(match reader.u32()? {
            0 => return Ok(None),
            1 => Value::Float(reader.f64()?),
            2 => Value::Whole(reader.i64()?),
            3 => Value::Bool(false),
            4 => Value::Bool(true),
            5 => {
                let text = std::str::from_utf8(reader.bytes()?).map_err(|_| damaged())?;
                Value::Text(Cow::Owned(text.to_owned()))
            }
            _ => return Err(damaged()),
        }))
    }
}
