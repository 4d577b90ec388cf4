//! Reads a table's file into columns of the wanted types, and says where it could not.

use std::fs::File;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use pipeline_engine::schema::ColumnType;
use pipeline_engine::stage::StageError;
use pipeline_engine::suggest::suggest;

use super::table::TableSpec;

/// What was read: the wanted columns and where each row stood.
pub(super) struct Cells {
    /// Text, or numbers of 64 bits.
    pub(super) key: ArrayRef,
    pub(super) columns: Vec<ArrayRef>,
    pub(super) places: Places,
}

/// Where rows stand in the file, for a person.
pub(super) enum Places {
    /// The line that each record starts on.
    Lines(Vec<u64>),
    /// A file without lines: rows by number, from 1.
    Rows,
}

impl Places {
    pub(super) fn name(&self, row: u32) -> String {
        match self {
            Self::Lines(lines) => format!("line {}", lines[row as usize]),
            Self::Rows => format!("row {}", u64::from(row) + 1),
        }
    }
}

fn open(spec: &TableSpec) -> Result<File, StageError> {
    let file = File::open(&spec.path).map_err(|error| spec.broken("can't be opened").because(error))?;
    let bytes = file.metadata().map_err(|error| spec.broken("can't be opened").because(error))?.len();
    if bytes > spec.bytes_max {
        let text = format!("it has {bytes} bytes, more than `max_table_size`, {}", spec.bytes_max);
        return Err(spec.broken(text).hint("It is held in memory: raise the limit if that much may be used."));
    }
    Ok(file)
}

/// The index of each wanted column in the file, the key first.
fn find_all<'a>(spec: &TableSpec, header: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<usize>, StageError> {
    let wanted = std::iter::once(&spec.key).chain(spec.columns.iter().map(|(name, _)| name));
    wanted
        .map(|name| {
            header.clone().position(|column| column == name).ok_or_else(|| {
                spec.broken(format!("it has no column \"{name}\"")).hint(suggest(
                    name,
                    header.clone(),
                    "Its columns",
                    "It has no columns at all.",
                ))
            })
        })
        .collect()
}

/// The types of the wanted columns, the key first.
fn types(spec: &TableSpec) -> impl Iterator<Item = (&str, ColumnType)> {
    let key = if spec.is_text_key { ColumnType::Text } else { ColumnType::Int64 };
    std::iter::once((spec.key.as_str(), key)).chain(spec.columns.iter().map(|(name, kind)| (name.as_str(), *kind)))
}

fn split_key(mut columns: Vec<ArrayRef>, places: Places) -> Cells {
    let key = columns.remove(0);
    Cells { key, columns, places }
}

pub(super) fn csv(spec: &TableSpec) -> Result<Cells, StageError> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(open(spec)?);
    let invalid = |error: csv::Error| spec.broken("it is not valid CSV").because(error);
    let indices = find_all(spec, reader.headers().map_err(invalid)?.clone().iter())?;
    let mut texts: Vec<Vec<Option<String>>> = vec![Vec::new(); indices.len()];
    let mut lines = Vec::new();
    for record in reader.records() {
        let record = record.map_err(invalid)?;
        lines.push(record.position().map_or(0, csv::Position::line));
        for (cells, index) in texts.iter_mut().zip(&indices) {
            cells.push(record.get(*index).filter(|cell| !cell.is_empty()).map(str::to_owned));
        }
    }
    let places = Places::Lines(lines);
    let mut columns = Vec::with_capacity(indices.len());
    for ((name, kind), cells) in types(spec).zip(texts) {
        columns.push(parse(spec, name, kind, StringArray::from(cells), &places)?);
    }
    Ok(split_key(columns, places))
}

/// Text as values of a type; the first cell that is none is named.
fn parse(
    spec: &TableSpec,
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
        _ => convert(&texts, kind, &CastOptions::default()).map_err(|error| cant_convert(spec, name, error))?,
    };
    let refused = (0..).zip(texts.iter()).find(|(row, text)| text.is_some() && parsed.is_null(*row as usize));
    match refused {
        Some((row, text)) => {
            let text = text.unwrap_or_default();
            Err(spec.broken(format!("{}: \"{text}\" in column \"{name}\" is no {kind}", places.name(row))))
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

fn cant_convert(spec: &TableSpec, name: &str, error: arrow::error::ArrowError) -> StageError {
    spec.broken(format!("column \"{name}\" can't be read")).because(error)
}

#[cfg(not(feature = "parquet"))]
pub(super) fn parquet(_: &TableSpec) -> Result<Cells, StageError> {
    Err(StageError::bug("a build without Parquet has built a stage that reads it"))
}

#[cfg(feature = "parquet")]
pub(super) fn parquet(spec: &TableSpec) -> Result<Cells, StageError> {
    use arrow::compute::concat_batches;
    use parquet::arrow::ProjectionMask;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    let invalid = || spec.broken("it is not valid Parquet");
    let file = open(spec)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| invalid().because(error))?;
    let header = builder.schema().clone();
    let indices = find_all(spec, header.fields().iter().map(|field| field.name().as_str()))?;
    for ((name, kind), index) in types(spec).zip(&indices) {
        let found = header.field(*index).data_type();
        if !holds(found, kind) {
            return Err(spec.broken(format!("column \"{name}\" is {found}, not {kind}")));
        }
    }
    let mask = ProjectionMask::roots(builder.parquet_schema(), indices.iter().copied());
    let reader = builder.with_projection(mask).build().map_err(|error| invalid().because(error))?;
    let schema = arrow::array::RecordBatchReader::schema(&reader);
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|error| invalid().because(error))?;
    let rows = concat_batches(&schema, &batches).map_err(|error| invalid().because(error))?;
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let mut columns = Vec::with_capacity(indices.len());
    for (name, kind) in types(spec) {
        let column = rows.column_by_name(name).ok_or_else(invalid)?;
        columns.push(convert(column, kind, &strict).map_err(|error| cant_convert(spec, name, error))?);
    }
    Ok(split_key(columns, Places::Rows))
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
