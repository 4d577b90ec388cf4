//! Rows become the bytes of one Parquet file.
//!
//! The same rows, names and positions give the same bytes: no time, host or random number goes in.
//! The name of an object rests on that (see the module of the sink).

use std::collections::HashSet;
use std::hash::Hash;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

/// Smaller row groups cost: at 100,000 rows the writer was half as fast.
const ROW_GROUP_ROWS: usize = 1_000_000;

/// Values looked at to decide on a dictionary: enough to tell 10,000 devices from unique values.
const SAMPLE_ROWS: usize = 20_000;

/// One file with these rows, in this order. `entries` are keys and values of its footer.
///
/// # Errors
/// None that occur: the rows are of the schema.
pub(super) fn write(
    schema: &SchemaRef,
    codec: Compression,
    batches: &[RecordBatch],
    entries: &[(&str, &str)],
) -> Result<Bytes, ParquetError> {
    let properties = properties(schema, codec, batches, entries);
    let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))?;
    for rows in batches {
        writer.write(rows)?;
    }
    Ok(writer.into_inner()?.into())
}

fn properties(
    schema: &Schema,
    codec: Compression,
    batches: &[RecordBatch],
    entries: &[(&str, &str)],
) -> WriterProperties {
    let entries = entries.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), (*value).to_owned()));
    let mut properties = WriterProperties::builder()
        .set_compression(codec)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        // Only where values repeat: else the dictionary grows as large as the column. A million
        // readings took 3.0 bytes a row so, 5.5 with a dictionary for text only.
        .set_dictionary_enabled(false)
        .set_key_value_metadata(Some(entries.collect()));
    for (index, field) in schema.fields().iter().enumerate() {
        let path = ColumnPath::from(vec![field.name().clone()]);
        properties = match field.data_type() {
            DataType::Utf8 | DataType::Float32 | DataType::Float64 => {
                properties.set_column_dictionary_enabled(path, values_repeat(batches, index))
            }
            DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Timestamp(..) => {
                properties.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED)
            }
            _ => properties,
        };
    }
    properties.build()
}

/// Whether a column of text or measurements holds each value twice or more on average, judged by an
/// even sample. Devices do, and so do most sensors, whose readings have one or two decimals.
fn values_repeat(batches: &[RecordBatch], index: usize) -> bool {
    let columns = || batches.iter().map(|rows| rows.column(index));
    let Some(first) = columns().next() else { return false };
    match first.data_type() {
        DataType::Utf8 => repeat(columns(), |column, row| column.as_string::<i32>().value(row)),
        DataType::Float64 => repeat(columns(), |column, row| column.as_primitive::<Float64Type>().value(row).to_bits()),
        DataType::Float32 => repeat(columns(), |column, row| column.as_primitive::<Float32Type>().value(row).to_bits()),
        _ => false,
    }
}

fn repeat<'a, T: Hash + Eq>(
    columns: impl Iterator<Item = &'a ArrayRef> + Clone,
    value: impl Fn(&'a ArrayRef, usize) -> T,
) -> bool {
    let rows: usize = columns.clone().map(|column| column.len()).sum();
    let step = rows.div_ceil(SAMPLE_ROWS).max(1);
    let (mut seen, mut distinct) = (0_usize, HashSet::new());
    for column in columns {
        for row in (0..column.len()).step_by(step).filter(|row| column.is_valid(*row)) {
            seen += 1;
            distinct.insert(value(column, row));
        }
    }
    distinct.len() * 2 <= seen
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BinaryArray, BooleanArray, Float64Array, Int16Array, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::Field;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use pipeline_engine::schema::timestamp_type;

    use super::*;

    fn every_type(rows: i16) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("time", timestamp_type(), false),
            Field::new("device.id", DataType::Utf8, true),
            Field::new("message", DataType::Utf8, false),
            Field::new("seq", DataType::Int16, true),
            Field::new("value", DataType::Float64, true),
            Field::new("on", DataType::Boolean, true),
            Field::new("raw", DataType::Binary, true),
        ]);
        let times =
            TimestampMicrosecondArray::from_iter_values((0..rows).map(|row| 1_700_000_000_000_001 + i64::from(row)));
        let devices = (0..rows).map(|row| (row % 5 != 0).then(|| format!("device-{}", row % 3)));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(times.with_timezone("UTC")),
            Arc::new(StringArray::from_iter(devices)),
            Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("message {row}")))),
            Arc::new(Int16Array::from_iter((0..rows).map(|row| (row % 7 != 0).then_some(i16::MIN + row)))),
            Arc::new(Float64Array::from_iter((0..rows).map(|row| (row % 2 == 0).then_some(f64::from(row) / 3.0)))),
            Arc::new(BooleanArray::from_iter((0..rows).map(|row| (row % 3 != 0).then_some(row % 2 == 0)))),
            Arc::new(BinaryArray::from_iter((0..rows).map(|row| (row % 4 != 0).then(|| row.to_be_bytes())))),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    fn written(rows: &[RecordBatch]) -> Bytes {
        write(&rows[0].schema(), Compression::ZSTD(Default::default()), rows, &[]).unwrap()
    }

    #[test]
    fn every_type_reads_back_as_it_was_written() {
        let rows = every_type(1_000);
        let file = written(&[rows.slice(0, 300), rows.slice(300, 700)]);
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().with_batch_size(2_000).build().unwrap();
        let read: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
        assert_eq!(read, [rows]);
    }

    fn with_dictionary(rows: RecordBatch) -> Vec<String> {
        let file = written(&[rows]);
        let reader = SerializedFileReader::new(file).unwrap();
        let columns = reader.metadata().row_group(0).columns().iter();
        columns
            .filter(|column| column.dictionary_page_offset().is_some())
            .map(|column| column.column_path().parts().concat())
            .collect()
    }

    #[test]
    fn only_values_that_repeat_have_a_dictionary() {
        let rows = every_type(1_000);
        assert_eq!(with_dictionary(rows.clone()), ["device.id"]);
        let rounded = Float64Array::from_iter_values((0..1_000).map(|row| f64::from(row % 300) / 10.0));
        let mut columns = rows.columns().to_vec();
        columns[4] = Arc::new(rounded);
        let rounded = RecordBatch::try_new(rows.schema(), columns).unwrap();
        assert_eq!(with_dictionary(rounded), ["device.id", "value"]);
    }

    #[test]
    fn times_and_numbers_are_written_as_differences() {
        let rows = every_type(1_000);
        let file = written(&[rows]);
        let reader = SerializedFileReader::new(file).unwrap();
        for column in [0, 3] {
            let mut encodings = reader.metadata().row_group(0).column(column).encodings();
            assert!(encodings.any(|encoding| encoding == Encoding::DELTA_BINARY_PACKED), "column {column}");
        }
    }

    #[test]
    fn the_same_rows_give_the_same_bytes() {
        let rows = every_type(500);
        assert_eq!(written(std::slice::from_ref(&rows)), written(&[rows]));
    }
}
