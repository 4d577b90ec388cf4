//! One column's values in one window.

use std::cmp::Ordering;

use arrow::array::{
    Array, AsArray, BooleanArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::DataType;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::StageError;

use super::aggregate::{Aggregate, Function};
use super::curve::Curve;
use super::sketch::Sketch;
use super::sum::Sum;
use super::value::Value;
use crate::transforms::snapshot::{Reader, Writer};

/// What is asked of a column, so that nothing else is kept.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Needs {
    sum: bool,
    spread: bool,
    extremes: bool,
    ends: bool,
    sketch: bool,
    curve: bool,
}

impl Needs {
    /// What all aggregates of a column need together.
    pub(super) fn of(column: usize, aggregates: &[Aggregate]) -> Self {
        let mut needs = Self::default();
        for aggregate in aggregates.iter().filter(|aggregate| aggregate.column == Some(column)) {
            match aggregate.function {
                Function::Rows | Function::Count => {}
                Function::Sum | Function::Mean => needs.sum = true,
                Function::Stddev => needs.spread = true,
                Function::Min | Function::Max => needs.extremes = true,
                Function::First | Function::Last => needs.ends = true,
                Function::Percentile(_) => needs.sketch = true,
                Function::TimeWeightedMean(_) => needs.curve = true,
            }
        }
        needs
    }
}

/// The values of a column in a batch.
pub(super) enum Values<'a> {
    Int16(&'a Int16Array),
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    Float32(&'a Float32Array),
    Float64(&'a Float64Array),
    Time(&'a TimestampMicrosecondArray),
    Bool(&'a BooleanArray),
    Text(&'a StringArray),
}

impl<'a> Values<'a> {
    /// # Errors
    /// The column has another type than the build accepts.
    pub(super) fn of(array: &'a dyn Array) -> Result<Self, StageError> {
        Ok(match array.data_type() {
            DataType::Int16 => Self::Int16(array.as_primitive()),
            DataType::Int32 => Self::Int32(array.as_primitive()),
            DataType::Int64 => Self::Int64(array.as_primitive()),
            DataType::Float32 => Self::Float32(array.as_primitive()),
            DataType::Float64 => Self::Float64(array.as_primitive()),
            DataType::Boolean => Self::Bool(array.as_boolean()),
            DataType::Utf8 => Self::Text(array.as_string()),
            kind if *kind == timestamp_type() => Self::Time(array.as_primitive()),
            kind => {
                return Err(StageError::bug(format!("an aggregate of type {kind}, which its build does not accept")));
            }
        })
    }

    /// Null, and what is not a finite number, is no value.
    pub(super) fn get(&self, row: usize) -> Option<Value<'a>> {
        let float = |value: f64| value.is_finite().then_some(Value::Float(value));
        match self {
            Self::Int16(array) => array.is_valid(row).then(|| Value::Whole(array.value(row).into())),
            Self::Int32(array) => array.is_valid(row).then(|| Value::Whole(array.value(row).into())),
            Self::Int64(array) => array.is_valid(row).then(|| Value::Whole(array.value(row))),
            Self::Time(array) => array.is_valid(row).then(|| Value::Whole(array.value(row))),
            Self::Float32(array) if array.is_valid(row) => float(array.value(row).into()),
            Self::Float64(array) if array.is_valid(row) => float(array.value(row)),
            Self::Float32(_) | Self::Float64(_) => None,
            Self::Bool(array) => array.is_valid(row).then(|| Value::Bool(array.value(row))),
            Self::Text(array) => array.is_valid(row).then(|| Value::Text(array.value(row).into())),
        }
    }
}

/// What is known of a column's values in a window.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct ColumnState {
    count: u64,
    sum: Sum,
    /// Welford's: the mean so far, and the sum of squared differences from it.
    mean: f64,
    squares: f64,
    least: Option<Value<'static>>,
    greatest: Option<Value<'static>>,
    first: Option<(i64, Value<'static>)>,
    last: Option<(i64, Value<'static>)>,
    sketch: Option<Box<Sketch>>,
    pub(super) curve: Option<Box<Curve>>,
}

impl ColumnState {
    /// Takes a value in.
    pub(super) fn add(&mut self, needs: Needs, time_us: i64, value: &Value<'_>) {
        self.count += 1;
        if needs.ends {
            // Of two at one time the first is the one that came first, and the last the one that came last.
            if self.first.as_ref().is_none_or(|(first, _)| time_us < *first) {
                self.first = Some((time_us, value.to_owned()));
            }
            if self.last.as_ref().is_none_or(|(last, _)| time_us >= *last) {
                self.last = Some((time_us, value.to_owned()));
            }
        }
        if needs.extremes {
            if self.least.as_ref().is_none_or(|least| value.compare(least) == Ordering::Less) {
                self.least = Some(value.to_owned());
            }
            if self.greatest.as_ref().is_none_or(|greatest| value.compare(greatest) == Ordering::Greater) {
                self.greatest = Some(value.to_owned());
            }
        }
        let Some(number) = value.number() else { return };
        if needs.sum {
            self.sum.add(number);
        }
        if needs.spread {
            let before = number - self.mean;
            self.mean += before / self.count as f64;
            self.squares += before * (number - self.mean);
        }
        if needs.sketch {
            self.sketch.get_or_insert_default().add(number);
        }
        if needs.curve {
            self.curve.get_or_insert_default().add(time_us, number);
        }
    }

    /// The values of a later window come into this one.
    pub(super) fn merge(&mut self, later: Self) {
        if later.count == 0 {
            return;
        }
        let (left, right) = (self.count as f64, later.count as f64);
        let apart = later.mean - self.mean;
        self.mean += apart * right / (left + right);
        self.squares += later.squares + apart * apart * left * right / (left + right);
        self.count += later.count;
        self.sum.merge(later.sum);
        let pick = |left: Option<Value<'static>>, right: Option<Value<'static>>, wanted| match (left, right) {
            (Some(left), Some(right)) => Some(if right.compare(&left) == wanted { right } else { left }),
            (left, right) => left.or(right),
        };
        self.least = pick(self.least.take(), later.least, Ordering::Less);
        self.greatest = pick(self.greatest.take(), later.greatest, Ordering::Greater);
        self.first = self.first.take().or(later.first);
        self.last = later.last.or(self.last.take());
        if let Some(sketch) = later.sketch {
            self.sketch.get_or_insert_default().merge(&sketch);
        }
        if let Some(curve) = later.curve {
            self.curve.get_or_insert_default().merge(*curve);
        }
    }

    /// The result of an aggregate; `None` is null.
    pub(super) fn result(&self, function: Function) -> Option<Value<'static>> {
        match function {
            Function::Rows | Function::Count => Some(Value::Whole(self.count as i64)),
            _ if self.count == 0 => None,
            Function::Sum => Some(Value::Float(self.sum.total())),
            Function::Mean => Some(Value::Float(self.sum.total() / self.count as f64)),
            Function::Min => self.least.clone(),
            Function::Max => self.greatest.clone(),
            Function::First => self.first.as_ref().map(|(_, value)| value.clone()),
            Function::Last => self.last.as_ref().map(|(_, value)| value.clone()),
            Function::Stddev if self.count == 1 => None,
            Function::Stddev => Some(Value::Float((self.squares / (self.count - 1) as f64).max(0.0).sqrt())),
            Function::Percentile(percent) => self.sketch.as_ref()?.percentile(percent).map(Value::Float),
            Function::TimeWeightedMean(between) => self.curve.as_ref()?.mean(between).map(Value::Float),
        }
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u64(self.count);
        self.sum.write(writer);
        writer.f64(self.mean);
        writer.f64(self.squares);
        for value in [&self.least, &self.greatest] {
            Value::write(value.as_ref(), writer);
        }
        for end in [&self.first, &self.last] {
            writer.optional_i64(end.as_ref().map(|(time_us, _)| *time_us));
            Value::write(end.as_ref().map(|(_, value)| value), writer);
        }
        writer.u32(self.sketch.is_some().into());
        if let Some(sketch) = &self.sketch {
            sketch.write(writer);
        }
        writer.u32(self.curve.is_some().into());
        if let Some(curve) = &self.curve {
            curve.write(writer);
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, StageError> {
        let end = |reader: &mut Reader<'_>| -> Result<_, StageError> {
            let time_us = reader.optional_i64()?;
            Ok(time_us.zip(Value::read(reader)?))
        };
        Ok(Self {
            count: reader.u64()?,
            sum: Sum::read(reader)?,
            mean: reader.f64()?,
            squares: reader.f64()?,
            least: Value::read(reader)?,
            greatest: Value::read(reader)?,
            first: end(reader)?,
            last: end(reader)?,
            sketch: if reader.u32()? == 0 { None } else { Some(Box::new(Sketch::read(reader)?)) },
            curve: if reader.u32()? == 0 { None } else { Some(Box::new(Curve::read(reader)?)) },
        })
    }
}
