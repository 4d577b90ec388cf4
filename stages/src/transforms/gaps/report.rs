//! Gaps as rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildError, StageError};

use super::sequence::Gap;
use crate::transforms::keys::KeyColumns;

/// The key's columns, then what is known of the gap.
pub(super) fn report_schema(key: &KeyColumns) -> Result<SchemaRef, BuildError> {
    let mut fields: Vec<Field> = key.fields().collect();
    let own = [
        Field::new("first_missing", DataType::Int64, false),
        Field::new("last_missing", DataType::Int64, false),
        Field::new("missing_count", DataType::Int64, false),
        Field::new("time_before", timestamp_type(), true),
        Field::new("time_after", timestamp_type(), true),
    ];
    for field in own {
        if fields.iter().any(|other| other.name() == field.name()) {
            return Err(BuildError::invalid("key", format!("gaps have a column \"{}\" of their own", field.name())));
        }
        fields.push(field);
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// One row for each gap of a device, in this order.
pub(super) fn report(
    found: &[(Arc<[u8]>, Gap)],
    key: &KeyColumns,
    schema: &SchemaRef,
) -> Result<RecordBatch, StageError> {
    let numbers =
        |of: fn(&Gap) -> i64| Arc::new(Int64Array::from_iter_values(found.iter().map(|(_, gap)| of(gap)))) as ArrayRef;
    let times = |of: fn(&Gap) -> Option<i64>| {
        let times: TimestampMicrosecondArray = found.iter().map(|(_, gap)| of(gap)).collect();
        Arc::new(times.with_timezone("UTC")) as ArrayRef
    };
    let mut columns = key.decode(found.iter().map(|(key, _)| &**key))?;
    columns.extend([
        numbers(|gap| gap.first),
        numbers(|gap| gap.last),
        numbers(Gap::count),
        times(|gap| gap.before_us),
        times(|gap| gap.after_us),
    ]);
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}
