//! Marked rows in the objects of a sink, counted from beside a run. Each object is read once, however often one looks:
//! objects never change. What is in them can't be removed.

use std::collections::BTreeSet;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use arrow::error::ArrowError;
use async_trait::async_trait;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipeline_engine::far_end::{FarEnd, Found, Marked};
use pipeline_engine::stage::StageError;

use super::format::{Unreadable, Written};
use super::letters::is_object_of;
use super::store::Reader;

/// A store whose clock is further behind ours takes no signed request.
const SKEW_MAX_US: i64 = 900_000_000;

/// See the module.
pub(super) struct LakeEnd {
    reader: Box<dyn Reader>,
    /// What the names of the sink's objects begin with.
    owner: String,
    schema: SchemaRef,
    read: BTreeSet<String>,
    found: Found,
}

impl LakeEnd {
    pub(super) fn new(reader: Box<dyn Reader>, owner: &str, schema: SchemaRef) -> Self {
        Self { reader, owner: owner.to_owned(), schema, read: BTreeSet::new(), found: Found::new() }
    }
}

#[async_trait]
impl FarEnd for LakeEnd {
    fn place(&self) -> String {
        self.reader.place()
    }

    async fn find(&mut self, marked: &Marked) -> Result<Found, StageError> {
        let mut listed = self.reader.list().await?;
        let is_new = |made_at_us: i64| made_at_us >= marked.since_us.saturating_sub(SKEW_MAX_US);
        listed.retain(|object| is_object_of(&self.owner, &object.key) && is_new(object.made_at_us));
        for key in listed.into_iter().map(|object| object.key) {
            if self.read.contains(&key) {
                continue;
            }
            // One that is gone has expired since it was listed.
            if let Some(content) = self.reader.get(&key).await? {
                for (device, number) in rows_of(key.clone(), content, self.schema.clone(), marked.clone()).await? {
                    *self.found.entry(device).or_default().entry(number).or_default() += 1;
                }
            }
            self.read.insert(key);
        }
        Ok(self.found.clone())
    }

    async fn remove(&mut self, _: &str, _: Option<&[String]>) -> Result<Option<u64>, StageError> {
        Ok(None)
    }
}

async fn rows_of(
    key: String,
    content: Bytes,
    schema: SchemaRef,
    marked: Marked,
) -> Result<Vec<(String, i64)>, StageError> {
    let unreadable =
        |error: Unreadable| StageError::permanent(format!("\"{key}\" can't be read for marked rows")).because(error);
    let Some(written) = Written::of(&key) else { return Ok(Vec::new()) };
    // On a damaged object the library may panic.
    let read = tokio::task::spawn_blocking(move || marked_rows(written, content, &schema, &marked)).await;
    read.map_err(|panic| unreadable(panic.into()))?.map_err(unreadable)
}

fn marked_rows(
    written: Written,
    content: Bytes,
    schema: &SchemaRef,
    marked: &Marked,
) -> Result<Vec<(String, i64)>, Unreadable> {
    let mut found = Vec::new();
    if written != Written::Parquet {
        for rows in written.read(content, schema)?.0 {
            found.extend(marked_of(&rows, marked)?);
        }
        return Ok(found);
    }
    // Of Parquet two columns are enough.
    let builder = ParquetRecordBatchReaderBuilder::try_new(content)?;
    let names = [marked.device_column.as_str(), marked.number_column.as_str()];
    let columns = ProjectionMask::columns(builder.parquet_schema(), names);
    for rows in builder.with_projection(columns).build()? {
        found.extend(marked_of(&rows?, marked)?);
    }
    Ok(found)
}

fn marked_of(rows: &RecordBatch, marked: &Marked) -> Result<Vec<(String, i64)>, ArrowError> {
    let column = |name: &str, kind: &DataType| {
        let column = rows.column_by_name(name);
        cast(column.ok_or_else(|| ArrowError::SchemaError(format!("it has no column \"{name}\"")))?, kind)
    };
    let devices = column(&marked.device_column, &DataType::Utf8)?;
    let numbers = column(&marked.number_column, &DataType::Int64)?;
    let (devices, numbers) = (devices.as_string::<i32>(), numbers.as_primitive::<Int64Type>());
    let sought: BTreeSet<&str> = marked.devices.iter().map(String::as_str).collect();
    let is_sought =
        |row: &usize| devices.is_valid(*row) && numbers.is_valid(*row) && sought.contains(devices.value(*row));
    let row = |row: usize| (devices.value(row).to_owned(), numbers.value(row));
    Ok((0..rows.num_rows()).filter(is_sought).map(row).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array, StringArray};

    use super::*;

    #[test]
    fn rows_of_the_devices_are_found_by_their_numbers_and_others_are_not() {
        let columns: [(&str, ArrayRef); 2] = [
            ("name", Arc::new(StringArray::from(vec![Some("a"), Some("b"), None, Some("a"), Some("a")]))),
            ("n", Arc::new(Int32Array::from(vec![Some(1), Some(1), Some(2), None, Some(1)]))),
        ];
        let rows = RecordBatch::try_from_iter(columns).expect("columns of one length");
        let marked = Marked {
            device_column: "name".to_owned(),
            devices: vec!["a".to_owned()],
            number_column: "n".to_owned(),
            since_us: 0,
        };
        let found = marked_of(&rows, &marked).expect("both columns are there");
        assert_eq!(found, [("a".to_owned(), 1), ("a".to_owned(), 1)]);
        let other = Marked { number_column: "m".to_owned(), ..marked };
        assert!(marked_of(&rows, &other).is_err_and(|error| error.to_string().contains("no column \"m\"")));
    }
}
