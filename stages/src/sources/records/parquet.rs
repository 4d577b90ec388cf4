//! Rows of a Parquet file.
//!
//! A row is decoded as if it were JSON with the same fields, so that a schema means the same whatever a file is written in,
//! and a row that breaks it is one dead letter. Bytes are what the schema makes of them: text in a column of text, and
//! base64, as in JSON, elsewhere. Timestamps without a zone are UTC.

use std::fs::File;
use std::io;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericBinaryArray, OffsetSizeTrait, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::schema::{ColumnType, DeclaredSchema, Origin};
use pipeline_engine::units::SizeText;

use super::Unpacked;
use super::pages::{BoundedGroups, PageTooLarge};
use crate::decode::{Decoder, Message};

/// Rows that are read at once: a few hundred kilobytes of telemetry.
const ROWS_AT_ONCE: usize = 64;

/// The rows of a file, one by one.
pub(crate) struct ParquetRecords {
    batches: ParquetRecordBatchReader,
    /// Columns of bytes that the schema takes as text.
    texts: Vec<String>,
    /// Rows as JSON, one a line, that were read at once.
    lines: Vec<u8>,
    /// How many bytes of them are done with.
    done: usize,
    /// The number of the last row, from 1.
    row: u64,
    /// What the rows to come may amount to. A footer can say less than its file holds: a million nulls, or a million times the
    /// same text, take a few bytes.
    left: u64,
    bounds: Unpacked,
}

impl ParquetRecords {
    /// Reads the footer.
    ///
    /// # Errors
    /// It is no Parquet file, or one that grows too far.
    pub(crate) fn open(file: File, schema: Option<&DeclaredSchema>, bounds: Unpacked) -> io::Result<Self> {
        let again = file.try_clone()?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(broken)?;
        let groups = builder.metadata().row_groups();
        let unpacked: u64 = groups
            .iter()
            .map(|group| u64::try_from(group.total_byte_size()).unwrap_or(u64::MAX))
            .fold(0, u64::saturating_add);
        if unpacked > bounds.bytes_max {
            return Err(too_large(bounds));
        }
        let levels = parquet_to_arrow_field_levels(
            builder.parquet_schema(),
            ProjectionMask::all(),
            Some(builder.schema().fields()),
        );
        let groups = BoundedGroups::new(again, builder.metadata().clone(), bounds.bytes_max);
        let levels = levels.map_err(broken)?;
        let batches = ParquetRecordBatchReader::try_new_with_row_groups(&levels, &groups, ROWS_AT_ONCE, None);
        let batches = batches.map_err(broken)?;
        let columns = schema.map(|schema| schema.columns.as_slice()).unwrap_or_default();
        let text = |column: &pipeline_engine::schema::Column| match &column.origin {
            Origin::Field(path) if column.kind != ColumnType::Binary && path.len() == 1 => Some(path[0].clone()),
            _ => None,
        };
        let texts = columns.iter().filter_map(text).collect();
        Ok(Self { batches, texts, lines: Vec::new(), done: 0, row: 0, left: bounds.bytes_max, bounds })
    }

    /// Decodes the next row, and answers with its number; `None` at the end.
    pub(super) fn read_into(
        &mut self,
        decoder: &mut Decoder,
        topic: Option<&str>,
        received_at_us: i64,
    ) -> io::Result<Option<u64>> {
        while self.done == self.lines.len() {
            let Some(batch) = self.batches.next() else { return Ok(None) };
            let batch = batch
                .map_err(|error| if is_page_too_large(&error) { too_large(self.bounds) } else { broken(error) })?;
            let Some(left) = self.left.checked_sub(bytes_of(&batch)?) else { return Err(too_large(self.bounds)) };
            self.left = left;
            let rows = as_json_has_it(&batch, &self.texts).map_err(broken)?;
            (self.lines, self.done) = (json_lines(&rows).map_err(broken)?, 0);
        }
        let rest = &self.lines[self.done..];
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        self.row += 1;
        decoder.push(Message { topic, payload: &rest[..end], received_at_us, position: self.row.into() });
        self.done += (end + 1).min(rest.len());
        Ok(Some(self.row))
    }
}

/// What rows take as columns, without what was set aside for more.
fn bytes_of(rows: &RecordBatch) -> io::Result<u64> {
    let bytes = |column: &ArrayRef| column.to_data().get_slice_memory_size().map(|bytes| bytes as u64);
    rows.columns().iter().map(bytes).sum::<Result<u64, _>>().map_err(broken)
}

fn too_large(bounds: Unpacked) -> io::Error {
    let max = SizeText(bounds.bytes_max);
    io::Error::new(io::ErrorKind::QuotaExceeded, format!("it unpacks to more than {max}"))
}

/// The library hands on what a page says, in errors of its own.
fn is_page_too_large(error: &ArrowError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<PageTooLarge>() {
            return true;
        }
        cause = error.source();
    }
    error.to_string().contains(&PageTooLarge.to_string())
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The same rows with columns that JSON has a form for.
fn as_json_has_it(rows: &RecordBatch, texts: &[String]) -> Result<RecordBatch, ArrowError> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        let column = match field.data_type() {
            DataType::Timestamp(..) => {
                let micros = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
                let times = micros.as_primitive::<TimestampMicrosecondType>().clone();
                Arc::new(times.with_timezone_utc()) as ArrayRef
            }
            DataType::Binary => text_of(column.as_binary::<i32>(), texts.contains(field.name())),
            DataType::LargeBinary => text_of(column.as_binary::<i64>(), texts.contains(field.name())),
            DataType::FixedSizeBinary(_) | DataType::BinaryView => {
                let bytes = cast(column, &DataType::Binary)?;
                text_of(bytes.as_binary::<i32>(), texts.contains(field.name()))
            }
            _ => column.clone(),
        };
        fields.push(Field::new(field.name(), column.data_type().clone(), true));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn text_of<O: OffsetSizeTrait>(bytes: &GenericBinaryArray<O>, is_text: bool) -> ArrayRef {
    let text =
        |bytes: &[u8]| if is_text { String::from_utf8_lossy(bytes).into_owned() } else { STANDARD.encode(bytes) };
    Arc::new(bytes.iter().map(|bytes| bytes.map(text)).collect::<StringArray>())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use arrow::array::{BinaryArray, Float64Array, Int32Array, StringArray, TimestampNanosecondArray};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::Compression;
    use parquet::file::properties::{WriterProperties, WriterVersion};
    use pipeline_engine::testing::build_context;

    use super::*;
    use crate::decode::Format;

    const WIDE: Unpacked = Unpacked { bytes_max: 1 << 30 };

    fn file(columns: Vec<(&str, ArrayRef)>) -> File {
        let rows =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)));
        let rows = rows.unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let mut writer = ArrowWriter::try_new(&mut file, rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        file.rewind().unwrap();
        file
    }

    /// Rows and dead letters as JSON, and how many records there were.
    fn read(file: File, columns: &str) -> (String, String, u64) {
        let schema = build_context("in", &format!("[schema.t]\n{columns}")).schema("schema", "t").unwrap();
        let mut decoder = Decoder::new(Some(&schema), Format::Json, "in");
        let mut rows = ParquetRecords::open(file, Some(&schema), WIDE).unwrap();
        let mut last = 0;
        while let Some(row) = rows.read_into(&mut decoder, Some("key"), 7).unwrap() {
            assert_eq!(row, last + 1);
            last = row;
        }
        let decoded = decoder.take();
        let json = |rows| String::from_utf8(json_lines(rows).unwrap()).unwrap();
        (json(&decoded.rows), json(&decoded.rejected), last)
    }

    #[test]
    fn rows_are_decoded_as_json_would_be() {
        let file = file(vec![
            ("device", Arc::new(BinaryArray::from_vec(vec![b"d1", b"d2", b"d3"]))),
            ("at", Arc::new(TimestampNanosecondArray::from(vec![1_500_000_000, 0, 1]).with_timezone("UTC"))),
            ("n", Arc::new(Int32Array::from(vec![Some(1), None, Some(70_000)]))),
            ("raw", Arc::new(BinaryArray::from_vec(vec![b"\xff\x00", b"", b"x"]))),
            ("note", Arc::new(StringArray::from(vec![Some("a"), None, None]))),
            ("t", Arc::new(Float64Array::from(vec![0.1, f64::NAN, 1.0]))),
        ]);
        let columns = "device = \"text\"\nat = \"timestamp\"\nn = \"int16\"\nraw = \"binary\"\nnote = \"text\"\nt = \"float64\"\n\
                       from = { type = \"text\", message = \"topic\" }\n";
        let (rows, refused, count) = read(file, columns);
        let expected = "{\"device\":\"d1\",\"at\":\"1970-01-01T00:00:01.500Z\",\"n\":1,\"raw\":\"ff00\",\"note\":\"a\",\"t\":0.1,\"from\":\"key\"}\n\
                        {\"device\":\"d2\",\"at\":\"1970-01-01T00:00:00Z\",\"raw\":\"\",\"from\":\"key\"}\n";
        assert_eq!(rows, expected);
        assert!(refused.contains("\"reason\":\"out_of_range\"") && refused.contains("\"position\":\"3\""), "{refused}");
        assert_eq!(count, 3);
    }

    #[test]
    fn more_rows_than_are_read_at_once_come_in_order() {
        let count = 3 * ROWS_AT_ONCE as i32 + 1;
        let (rows, _, last) =
            read(file(vec![("n", Arc::new(Int32Array::from_iter_values(0..count)))]), "n = \"int32\"\n");
        let expected: String = (0..count).map(|n| format!("{{\"n\":{n}}}\n")).collect();
        assert_eq!((rows, last), (expected, count as u64));
    }

    fn packed(codec: Compression, version: WriterVersion, column: ArrayRef) -> File {
        let rows = RecordBatch::try_from_iter_with_nullable([("text", column, true)]).unwrap();
        let properties = WriterProperties::builder()
            .set_compression(codec)
            .set_writer_version(version)
            .set_dictionary_enabled(false)
            .build();
        let mut file = tempfile::tempfile().unwrap();
        let mut writer = ArrowWriter::try_new(&mut file, rows.schema(), Some(properties)).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn packed_pages_of_both_kinds_are_read_as_they_were_written() {
        let texts = || (0..1_000).map(|n| (n % 3 != 0).then(|| format!("text {n}")));
        let expected: String =
            texts().map(|text| text.map_or("{}\n".to_owned(), |text| format!("{{\"text\":\"{text}\"}}\n"))).collect();
        for codec in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())] {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let file = packed(codec, version, Arc::new(StringArray::from_iter(texts())));
                let (rows, refused, count) = read(file, "text = \"text\"\n");
                assert_eq!((rows, refused.as_str(), count), (expected.clone(), "", 1_000), "{codec:?} {version:?}");
                let nulls = packed(codec, version, Arc::new(StringArray::new_null(10)));
                assert_eq!(read(nulls, "text = \"text\"\n").0, "{}\n".repeat(10), "{codec:?} {version:?}");
            }
        }
    }

    /// The footer of a bomb says what it likes; here it is the sum that is left out.
    #[test]
    fn a_page_that_unpacks_too_far_is_refused_before_it_has() {
        for codec in [Compression::SNAPPY, Compression::ZSTD(Default::default())] {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let blanks = StringArray::from_iter_values([" ".repeat(1 << 20)]);
                let file = packed(codec, version, Arc::new(blanks));
                let metadata = ParquetRecordBatchReaderBuilder::try_new(file.try_clone().unwrap()).unwrap();
                let metadata = metadata.metadata().clone();
                let groups = BoundedGroups::new(file, metadata.clone(), 100_000);
                let levels =
                    parquet_to_arrow_field_levels(metadata.file_metadata().schema_descr(), ProjectionMask::all(), None);
                let rows = ParquetRecordBatchReader::try_new_with_row_groups(&levels.unwrap(), &groups, 64, None);
                let error = rows.unwrap().next().unwrap().unwrap_err();
                assert!(is_page_too_large(&error), "{codec:?} {version:?}: {error}");
            }
        }
    }

    /// What a footer says is what the pages take: a million times the same text is a few bytes there.
    #[test]
    fn rows_that_grow_beyond_what_the_footer_says_are_refused_where_they_do() {
        let text = "x".repeat(1_000);
        let rows = StringArray::from_iter_values(std::iter::repeat_n(&text, 100_000));
        let file = file(vec![("text", Arc::new(rows))]);
        let packed = file.metadata().unwrap().len();
        assert!(packed < 10_000, "{packed} bytes");
        let mut decoder = Decoder::new(None, Format::Json, "in");
        let mut rows = ParquetRecords::open(file, None, Unpacked { bytes_max: 1 << 20 }).unwrap();
        let error = loop {
            match rows.read_into(&mut decoder, None, 7) {
                Ok(Some(_)) => drop(decoder.take()),
                Ok(None) => panic!("all rows were read"),
                Err(error) => break error,
            }
        };
        let read = rows.row;
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded, "{error}");
        assert!((900..1_049).contains(&read), "{read} rows of a kilobyte in a megabyte");
    }

    #[test]
    fn what_is_no_parquet_and_what_grows_too_far_is_refused() {
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(b"{\"n\": 1}\n").unwrap();
        assert!(ParquetRecords::open(text, None, WIDE).is_err());
        let zeros = file(vec![("n", Arc::new(StringArray::from_iter_values((0..10_000).map(|n| format!("{n:100}")))))]);
        let error = ParquetRecords::open(zeros, None, Unpacked { bytes_max: 10_000 }).err().unwrap();
        assert!(error.to_string().contains("unpacks to more than"), "{error}");
    }
}
