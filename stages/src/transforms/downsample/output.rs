//! Windows that have closed, as rows.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildError, StageError};

use super::aggregate::{Aggregate, Function};
use super::value::Value;
use super::windows::Window;
use crate::transforms::keys::KeyColumns;

/// A window that has closed, and whose.
pub(super) type Closed = (Arc<[u8]>, Window);

/// The key's columns, the window's bounds, the aggregates.
pub(super) fn schema(key: &KeyColumns, aggregates: &[Aggregate]) -> Result<SchemaRef, BuildError> {
    let mut fields: Vec<Field> = key.fields().collect();
    for name in ["window_start", "window_end"] {
        if fields.iter().any(|field| field.name() == name) {
            return Err(BuildError::invalid("key", format!("windows have a column \"{name}\" of their own")));
        }
        fields.push(Field::new(name, timestamp_type(), false));
    }
    for aggregate in aggregates {
        if fields.iter().any(|field| *field.name() == aggregate.name) {
            let text = format!("there is a column \"{}\" already", aggregate.name);
            return Err(BuildError::invalid(format!("aggregates.{}", aggregate.name), text));
        }
        let is_counted = matches!(aggregate.function, Function::Rows | Function::Count);
        fields.push(Field::new(&aggregate.name, aggregate.kind.clone(), !is_counted));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// One row for each window, in this order. `columns` says for each aggregate which state of a window is its own.
pub(super) fn rows(
    closed: &[Closed],
    key: &KeyColumns,
    aggregates: &[(Aggregate, Option<usize>)],
    schema: &SchemaRef,
) -> Result<RecordBatch, StageError> {
    let times = |of: fn(&Window) -> i64| {
        let times = TimestampMicrosecondArray::from_iter_values(closed.iter().map(|(_, window)| of(window)));
        Arc::new(times.with_timezone("UTC")) as ArrayRef
    };
    let mut columns = key.decode(closed.iter().map(|(key, _)| &**key))?;
    columns.push(times(|window| window.start));
    columns.push(times(|window| window.end));
    for (aggregate, state) in aggregates {
        let results = closed.iter().map(|(_, window)| match state {
            None => Some(Value::Whole(window.rows as i64)),
            Some(state) => window.columns[*state].result(aggregate.function),
        });
        columns.push(array(results, &aggregate.kind)?);
    }
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

fn array(results: impl Iterator<Item = Option<Value<'static>>>, kind: &DataType) -> Result<ArrayRef, StageError> {
    let whole = |value: Value<'_>| if let Value::Whole(whole) = value { Some(whole) } else { None };
    Ok(match kind {
        DataType::Utf8 => Arc::new(
            results
                .map(|result| result.and_then(|value| if let Value::Text(text) = value { Some(text) } else { None }))
                .collect::<StringArray>(),
        ),
        DataType::Boolean => Arc::new(
            results
                .map(|result| result.and_then(|value| if let Value::Bool(truth) = value { Some(truth) } else { None }))
                .collect::<BooleanArray>(),
        ),
        DataType::Float32 | DataType::Float64 => {
            let floats: Float64Array = results.map(|result| result.and_then(|value| value.number())).collect();
            // A float32 is what it was: it came from a column of that type.
            cast(&floats, kind)?
        }
        kind if *kind == timestamp_type() => {
            let times: TimestampMicrosecondArray = results.map(|result| result.and_then(whole)).collect();
            Arc::new(times.with_timezone("UTC"))
        }
        kind => {
            let numbers: Int64Array = results.map(|result| result.and_then(whole)).collect();
            cast(&numbers, kind)?
        }
    })
}
