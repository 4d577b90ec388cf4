//! Makes columns of the wanted types of a table as it came, and says where it could not.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, StringBuilder};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use bytes::Bytes;
use pipeline_engine::schema::ColumnType;
use pipeline_engine::stage::StageError;
use pipeline_engine::suggest::suggest;

use super::TableFormat;
use super::fetch::Content;
use super::place::Place;

/// What a table must hold, and what it is.
#[derive(Debug)]
pub(in crate::transforms) struct Layout {
    /// Where it lies, for errors.
    pub place: Arc<Place>,
    /// `None` for the rows of a query.
    pub format: Option<TableFormat>,
    /// The columns that are wanted, by name. One may be wanted twice, as two types.
    pub columns: Vec<(String, ColumnType)>,
}

/// The wanted columns, each of its type, and where each row stood.
pub(in crate::transforms) struct Cells {
    /// In the order of [`Layout::columns`].
    pub columns: Vec<ArrayRef>,
    pub places: Places,
}

impl Layout {
    /// The wanted columns.
    ///
    /// # Errors
    /// Permanent: it is not of its format, lacks a column, holds something that is not of its column's type, or is
    /// too large.
    pub fn read(&self, content: Content) -> Result<Cells, StageError> {
        match (content, self.format) {
            (Content::Bytes(bytes), Some(TableFormat::Csv)) => csv(self, &bytes),
            (Content::Bytes(bytes), Some(TableFormat::Parquet)) => parquet(self, bytes),
            (Content::Rows { names, columns }, None) => rows(self, &names, columns),
            _ => Err(StageError::bug("a table came in another form than was asked for")),
        }
    }

    /// The wanted columns of rows that stand in something else than a table, as text.
    ///
    /// # Errors
    /// As for [`Layout::read`].
    pub fn read_texts(&self, texts: impl Iterator<Item = StringArray>, places: Places) -> Result<Cells, StageError> {
        parse_all(self, texts, places)
    }

    /// A table that a person has to mend.
    pub fn broken(&self, what: impl AsRef<str>) -> StageError {
        self.place.broken(what)
    }
}

/// Where rows stand in the file, for a person.
pub(in crate::transforms) enum Places {
    /// The line that each record starts on.
    Lines(Vec<u64>),
    /// A table without lines: rows by number, from 1.
    Rows,
    /// Features of a GeoJSON file by number, from 1.
    Features,
}

impl Places {
    pub fn name(&self, row: u32) -> String {
        match self {
            Self::Lines(lines) => format!("line {}", lines[row as usize]),
            Self::Rows => format!("row {}", u64::from(row) + 1),
            Self::Features => format!("feature {}", u64::from(row) + 1),
        }
    }
}

/// The index of each wanted column in the table.
fn find_all<'a>(layout: &Layout, header: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<usize>, StageError> {
    let find = |(name, _): &(String, ColumnType)| {
        header.clone().position(|column| column == name).ok_or_else(|| {
            let hint = suggest(name, header.clone(), "Its columns", "It has no columns at all.");
            layout.broken(format!("it has no column \"{name}\"")).hint(hint)
        })
    };
    layout.columns.iter().map(find).collect()
}

fn csv(layout: &Layout, bytes: &[u8]) -> Result<Cells, StageError> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
    let invalid = |error: csv::Error| layout.broken("it is not valid CSV").because(error);
    let indices = find_all(layout, reader.headers().map_err(invalid)?.clone().iter())?;
    let mut texts: Vec<StringBuilder> = indices.iter().map(|_| StringBuilder::new()).collect();
    let mut lines = Vec::new();
    for record in reader.records() {
        let record = record.map_err(invalid)?;
        lines.push(record.position().map_or(0, csv::Position::line));
        for (cells, index) in texts.iter_mut().zip(&indices) {
            cells.append_option(record.get(*index).filter(|cell| !cell.is_empty()));
        }
    }
    parse_all(layout, texts.into_iter().map(|mut cells| cells.finish()), Places::Lines(lines))
}

fn rows(layout: &Layout, names: &[String], columns: Vec<StringArray>) -> Result<Cells, StageError> {
    let indices = find_all(layout, names.iter().map(String::as_str))?;
    // No copies: an array shares its buffers.
    parse_all(layout, indices.into_iter().map(|index| columns[index].clone()), Places::Rows)
}

fn parse_all(layout: &Layout, texts: impl Iterator<Item = StringArray>, places: Places) -> Result<Cells, StageError> {
    let mut columns = Vec::with_capacity(layout.columns.len());
    for ((name, kind), cells) in layout.columns.iter().zip(texts) {
        columns.push(parse(layout, name, *kind, cells, &places)?);
    }
    Ok(Cells { columns, places })
}

/// Text as values of a type; the first cell that is none is named.
fn parse(
    layout: &Layout,
    name: &str,
    kind: ColumnType,
    texts: StringArray,
    places: &Places,
) -> Result<ArrayRef, StageError> {
    let is_valid_json = |text: &str| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    let parsed: ArrayRef = match kind {
        ColumnType::Text => Arc::new(texts.clone()),
        ColumnType::Json => {
            Arc::new(texts.iter().map(|text| text.filter(|text| is_valid_json(text))).collect::<StringArray>())
        }
        _ => convert(&texts, kind, &CastOptions::default()).map_err(|error| cant_convert(layout, name, error))?,
    };
    let refused = (0..).zip(texts.iter()).find(|(row, text)| text.is_some() && parsed.is_null(*row as usize));
    match refused {
        Some((row, text)) => {
            let text = text.unwrap_or_default();
            Err(layout.broken(format!("{}: \"{text}\" in column \"{name}\" is no {kind}", places.name(row))))
        }
        None => Ok(parsed),
    }
}

/// Arrow reads and shifts times at an offset; `UTC` by name would need a database of zones.
fn convert(
    column: &dyn Array,
    kind: ColumnType,
    options: &CastOptions<'_>,
) -> Result<ArrayRef, arrow::error::ArrowError> {
    if kind != ColumnType::Timestamp {
        return cast_with_options(column, &kind.arrow(), options);
    }
    let offset = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
    let times = cast_with_options(column, &offset, options)?;
    Ok(Arc::new(times.as_primitive::<TimestampMicrosecondType>().clone().with_timezone("UTC")))
}

fn cant_convert(layout: &Layout, name: &str, error: arrow::error::ArrowError) -> StageError {
    layout.broken(format!("column \"{name}\" can't be read")).because(error)
}

#[cfg(not(feature = "parquet"))]
fn parquet(_: &Layout, _: Bytes) -> Result<Cells, StageError> {
    Err(StageError::bug("a build without Parquet has built a stage that reads it"))
}

#[cfg(feature = "parquet")]
fn parquet(layout: &Layout, bytes: Bytes) -> Result<Cells, StageError> {
    use arrow::compute::concat_batches;
    use parquet::arrow::ProjectionMask;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    let invalid = || layout.broken("it is not valid Parquet");
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|error| invalid().because(error))?;
    let header = builder.schema().clone();
    let indices = find_all(layout, header.fields().iter().map(|field| field.name().as_str()))?;
    for ((name, kind), index) in layout.columns.iter().zip(&indices) {
        let found = header.field(*index).data_type();
        if !holds(found, *kind) {
            return Err(layout.broken(format!("column \"{name}\" is {found}, not {kind}")));
        }
    }
    let mask = ProjectionMask::roots(builder.parquet_schema(), indices.iter().copied());
    let reader = builder.with_projection(mask).build().map_err(|error| invalid().because(error))?;
    let schema = arrow::array::RecordBatchReader::schema(&reader);
    let (mut batches, mut held) = (Vec::new(), 0);
    for batch in reader {
        let batch = batch.map_err(|error| invalid().because(error))?;
        held += batch.get_array_memory_size() as u64;
        // Columns that say little can take a thousand times the room of their file.
        if held > layout.place.bytes_max {
            let text = format!("its columns take more memory than `max_table_size`, {}", layout.place.bytes_max);
            return Err(layout.broken(text).hint("Raise the limit if that much may be used."));
        }
        batches.push(batch);
    }
    let rows = concat_batches(&schema, &batches).map_err(|error| invalid().because(error))?;
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let mut columns = Vec::with_capacity(indices.len());
    for (name, kind) in &layout.columns {
        let column = rows.column_by_name(name).ok_or_else(invalid)?;
        columns.push(convert(column, *kind, &strict).map_err(|error| cant_convert(layout, name, error))?);
    }
    Ok(Cells { columns, places: Places::Rows })
}

/// Whether every value of the file's type is one of the wanted type.
#[cfg(feature = "parquet")]
fn holds(found: &DataType, wanted: ColumnType) -> bool {
    use DataType::{Binary, Boolean, Dictionary, Float32, Float64, LargeBinary, LargeUtf8, Timestamp, Utf8, Utf8View};
    use DataType::{BinaryView, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32};
    match (wanted, found) {
        (_, Dictionary(_, values)) => holds(values, wanted),
        (ColumnType::Text | ColumnType::Json, Utf8 | LargeUtf8 | Utf8View) => true,
        (ColumnType::Bool, Boolean) => true,
        (ColumnType::Int16, Int8 | Int16 | UInt8) => true,
        (ColumnType::Int32, Int8 | Int16 | Int32 | UInt8 | UInt16) => true,
        (ColumnType::Int64, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32) => true,
        (ColumnType::Float32, Float32) => true,
        (ColumnType::Float64, Float32 | Float64) => true,
        (ColumnType::Timestamp, Timestamp(..)) => true,
        (ColumnType::Binary, Binary | LargeBinary | BinaryView) => true,
        _ => false,
    }
}
