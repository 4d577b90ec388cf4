//! Adds what a table knows about a row's key, and constants.
//!
//! ```toml
//! [transforms.located]
//! type = "enrich"
//! inputs = ["valid"]
//! table = "devices.csv"                                    # device_id,site,model,latitude
//! key = "device_id"
//! columns = ["site", "model", "latitude"]
//! types = { latitude = "float64" }                         # all others are text
//! constants = { region = "eu-1" }
//! ```
//!
//! No row is lost: a row whose key is null or has no entry goes on with nulls, leaves by
//! [`Port::REJECTED`] or is dropped and counted, as `missing` says.
//!
//! The table is read before any source starts; a mistake in it (a key twice, a cell that is not of
//! its column's type) ends the run there, with its line. While the pipeline runs, the file is looked
//! at once a second and read again when its size or time has changed and is at rest: replace it by
//! renaming a finished file over it. A broken new file is logged and counted as `reload_failures`, and
//! the table stays as it was.
//!
//! A reload takes effect between two batches, and which two is not recorded: this is the one transform
//! whose replay can differ. After a crash, rows that are replayed are enriched by the table as it is
//! then. That is accepted because a table says what *is* (where a device hangs), not what was; with
//! `missing = "reject"`, though, a row that was rejected before may be accepted now.

mod read;
mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, UInt32Array};
use arrow::compute::{filter, filter_record_batch, is_not_null, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use pipeline_engine::schema::{ColumnType, json_field};
use pipeline_engine::stage::{
    Batch, BuildContext, BuildError, BuiltTransform, Emitter, Port, StageDoc, StageError, Transform, TransformConfig,
};
use pipeline_engine::units::SizeText;
use pipeline_engine::{Counter, columns, dead_letter};
use schemars::JsonSchema;
use serde::Deserialize;

use self::table::{Table, TableFormat, TableSpec};
use self::watch::{Reloads, WatchedTable};
use super::refusal::{self, Refused};
use super::values::Scalar;

/// `type = "enrich"` in a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrichConfig {
    /// A CSV file with a header, or a Parquet file; relative to the folder that the pipeline runs in.
    pub table: Option<PathBuf>,
    /// What the table is, where its name does not end in `.csv` or `.parquet`.
    pub format: Option<TableFormat>,
    /// The column of the input that is looked up: text or whole numbers.
    pub key: Option<String>,
    /// The table's column with the keys, if it has another name than `key`.
    pub table_key: Option<String>,
    /// The table's columns to add, in this order; all those in `types` where none are given.
    #[serde(default)]
    pub columns: Vec<String>,
    /// The types of the table's columns. Columns of a CSV file without one are text; those of a Parquet
    /// file must have one, which the file is held to.
    #[serde(default)]
    pub types: BTreeMap<String, ColumnType>,
    /// What becomes of a row whose key is null or has no entry.
    #[serde(default)]
    pub missing: Missing,
    /// Columns that have the same value in every row: text, a number or a truth value.
    #[serde(default)]
    pub constants: BTreeMap<String, Scalar>,
    /// A larger table is refused: it is held in memory.
    #[serde(default = "max_table_size")]
    pub max_table_size: SizeText,
}

/// What becomes of a row whose key has no entry. All are counted as `missing_rows`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// It goes on, with nulls for the table's columns.
    #[default]
    Null,
    /// It leaves by `rejected`, with the reason `missing.KEY`.
    Reject,
    /// It is dropped.
    Drop,
}

fn max_table_size() -> SizeText {
    SizeText(256 << 20)
}

impl TransformConfig for EnrichConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "enrich",
        summary: "Adds what a CSV or Parquet table knows about a row's key, and constants.",
        ports: &[("rejected", "Rows whose key has no entry, where `missing = \"reject\"`.")],
        failure: "A table that can't be read at the start is permanent: the run ends before anything is read from a \
                  source. One that can't be read again later changes nothing: it is logged, counted as \
                  `reload_failures`, and the old one stays. Adds no duplicates and leaves the keys of rows alone; \
                  rows replayed after a crash are enriched by the table as it is then.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        if self.table.is_none() && self.constants.is_empty() {
            return Err(BuildError::invalid("", "there is nothing to add").hint("Give a `table`, or `constants`."));
        }
        let lookup = self.lookup(input, cx)?;
        let schema = self.schema(input, lookup.as_ref())?;
        let constants = self.constants.into_values().collect();
        let transform = Enrich { stage: cx.stage.clone(), lookup, constants, schema: schema.clone() };
        let outputs = vec![(Port::MAIN, schema), (Port::REJECTED, dead_letter::schema())];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}

impl EnrichConfig {
    /// The table to look keys up in, unread; `None` where there are only constants.
    fn lookup(&self, input: &Schema, cx: &BuildContext) -> Result<Option<Lookup>, BuildError> {
        let Some(path) = &self.table else {
            let without = [
                ("key", self.key.is_some()),
                ("table_key", self.table_key.is_some()),
                ("columns", !self.columns.is_empty()),
                ("types", !self.types.is_empty()),
            ];
            return match without.into_iter().find(|(_, given)| *given) {
                Some((key, _)) => Err(BuildError::invalid(key, "means nothing without a `table`")),
                None => Ok(None),
            };
        };
        let Some(name) = &self.key else {
            return Err(BuildError::invalid("key", "missing")
                .hint("Name the column of the input whose values are looked up in the table."));
        };
        let wanted = "text or a whole number";
        let key = columns::find_typed(input, "key", name, wanted, |kind| {
            matches!(kind, DataType::Utf8 | DataType::Int16 | DataType::Int32 | DataType::Int64)
        })?;
        let format = self.format(path)?;
        let spec = TableSpec {
            path: path.clone(),
            format,
            key: self.table_key.clone().unwrap_or_else(|| name.clone()),
            is_text_key: *input.field(key).data_type() == DataType::Utf8,
            columns: self.table_columns(format)?,
            bytes_max: self.max_table_size.0,
        };
        if spec.columns.iter().any(|(column, _)| *column == spec.key) {
            return Err(BuildError::invalid("columns", format!("\"{}\" is the key of the table", spec.key))
                .hint("The rows have the key already."));
        }
        let reloads = Reloads { done: cx.counter("reloads"), failed: cx.counter("reload_failures") };
        let missing_rows = cx.counter("missing_rows");
        let table = TableState::Unread(Arc::new(spec), reloads);
        Ok(Some(Lookup { key, name: name.clone(), path: path.clone(), table, missing: self.missing, missing_rows }))
    }

    fn format(&self, path: &Path) -> Result<TableFormat, BuildError> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let format = match (self.format, extension.to_ascii_lowercase().as_str()) {
            (Some(format), _) => format,
            (None, "csv") => TableFormat::Csv,
            (None, "parquet") => TableFormat::Parquet,
            (None, _) => {
                let text = format!("\"{}\" ends neither in .csv nor in .parquet", path.display());
                return Err(BuildError::invalid("table", text).hint("Say what it is: format = \"csv\"."));
            }
        };
        if format == TableFormat::Parquet && cfg!(not(feature = "parquet")) {
            return Err(BuildError::invalid("table", "this build can't read Parquet")
                .hint("Build it with the feature `parquet`."));
        }
        Ok(format)
    }

    /// The table's columns to add, with their types.
    fn table_columns(&self, format: TableFormat) -> Result<Vec<(String, ColumnType)>, BuildError> {
        let named: Vec<&String> =
            if self.columns.is_empty() { self.types.keys().collect() } else { self.columns.iter().collect() };
        if named.is_empty() {
            return Err(BuildError::invalid("columns", "missing")
                .hint("Name the table's columns to add: the plan is checked before the table is read."));
        }
        if let Some((other, _)) = self.types.iter().find(|(name, _)| !named.contains(name)) {
            let known = named.iter().map(|name| name.as_str());
            return Err(BuildError::invalid(format!("types.{other}"), format!("\"{other}\" is not in `columns`"))
                .hint(pipeline_engine::suggest::suggest(other, known, "Columns", "")));
        }
        let mut columns = Vec::new();
        for name in named {
            let kind = match (self.types.get(name), format) {
                (Some(ColumnType::Binary), TableFormat::Csv) => {
                    return Err(BuildError::invalid(format!("types.{name}"), "a CSV file holds no bytes"));
                }
                (Some(kind), _) => *kind,
                (None, TableFormat::Csv) => ColumnType::Text,
                (None, TableFormat::Parquet) => {
                    return Err(BuildError::invalid("types", format!("\"{name}\" has no type"))
                        .hint("The plan is checked before the table is read: give the type of each column."));
                }
            };
            columns.push((name.clone(), kind));
        }
        Ok(columns)
    }

    /// The input's columns, then the table's, then the constants.
    fn schema(&self, input: &Schema, lookup: Option<&Lookup>) -> Result<SchemaRef, BuildError> {
        let mut added = Vec::new();
        for (name, kind) in lookup.into_iter().flat_map(Lookup::columns) {
            // Any cell of the table can be empty.
            let field = Field::new(name, kind.arrow(), true);
            added.push(("columns".to_owned(), if *kind == ColumnType::Json { json_field(field) } else { field }));
        }
        for (name, value) in &self.constants {
            let kind = match value {
                Scalar::Text(_) => DataType::Utf8,
                Scalar::Integer(_) => DataType::Int64,
                Scalar::Float(_) => DataType::Float64,
                Scalar::Bool(_) => DataType::Boolean,
            };
            added.push((format!("constants.{name}"), Field::new(name, kind, false)));
        }
        let mut names: HashSet<String> = input.fields().iter().map(|field| field.name().clone()).collect();
        let mut fields = input.fields().to_vec();
        for (key, field) in added {
            if !names.insert(field.name().clone()) {
                return Err(BuildError::invalid(key, format!("there is a column \"{}\" already", field.name()))
                    .hint("Leave it out, or give the new one another name."));
            }
            fields.push(Arc::new(field));
        }
        Ok(Arc::new(Schema::new(fields)))
    }
}

/// The running stage.
struct Enrich {
    stage: String,
    lookup: Option<Lookup>,
    /// In the order of the output's last columns.
    constants: Vec<Scalar>,
    schema: SchemaRef,
}

/// A table, and what is looked up in it.
struct Lookup {
    /// The input's column, by index and name.
    key: usize,
    name: String,
    path: PathBuf,
    table: TableState,
    missing: Missing,
    missing_rows: Counter,
}

enum TableState {
    Unread(Arc<TableSpec>, Reloads),
    Watched(Arc<TableSpec>, WatchedTable),
}

impl Transform for Enrich {
    fn open(&mut self) -> Result<(), StageError> {
        self.lookup.as_mut().map_or(Ok(()), |lookup| lookup.table().map(drop))
    }

    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let Some(lookup) = &mut self.lookup else {
            let rows = self.with_constants(&batch.rows, batch.rows.columns().to_vec())?;
            out.emit(batch.with_rows(rows));
            return Ok(());
        };
        let table = lookup.table()?;
        let places = table.find(batch.rows.column(lookup.key));
        lookup.missing_rows.add(places.null_count() as u64);
        if places.null_count() == 0 || lookup.missing == Missing::Null {
            let rows = self.with_table(&batch.rows, &table, &places)?;
            out.emit(batch.with_rows(rows));
            return Ok(());
        }
        let refused = if lookup.missing == Missing::Reject { lookup.refuse(&batch.rows, &places) } else { Vec::new() };
        let letters = refusal::letters(&batch, &refused, &self.stage)?;
        let is_found: BooleanArray = is_not_null(&places)?;
        let found = filter_record_batch(&batch.rows, &is_found)?;
        let places = UInt32Array::from(filter(&places, &is_found)?.to_data());
        let kept = self.with_table(&found, &table, &places)?;
        refusal::emit(batch, kept, letters, out);
        Ok(())
    }
}

impl Enrich {
    /// The rows with the table's columns at `places` and the constants.
    fn with_table(&self, rows: &RecordBatch, table: &Table, places: &UInt32Array) -> Result<RecordBatch, StageError> {
        let mut columns = rows.columns().to_vec();
        for column in &table.columns {
            columns.push(take(column, places, None)?);
        }
        self.with_constants(rows, columns)
    }

    fn with_constants(&self, rows: &RecordBatch, mut columns: Vec<ArrayRef>) -> Result<RecordBatch, StageError> {
        columns.extend(self.constants.iter().map(|value| repeat(value, rows.num_rows())));
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

impl Lookup {
    /// The table's columns to add.
    fn columns(&self) -> &[(String, ColumnType)] {
        let (TableState::Unread(spec, _) | TableState::Watched(spec, _)) = &self.table;
        &spec.columns
    }

    /// The table as it is now; read, and watched from then on, when it is first asked for.
    fn table(&mut self) -> Result<Arc<Table>, StageError> {
        if let TableState::Unread(spec, reloads) = &self.table {
            let watched = WatchedTable::open(spec.clone(), reloads.clone(), watch::EVERY)?;
            self.table = TableState::Watched(spec.clone(), watched);
        }
        match &self.table {
            TableState::Watched(_, watched) => Ok(watched.current()),
            TableState::Unread(..) => Err(StageError::bug("the table was read and is not there")),
        }
    }

    /// One entry for each row that has no place in the table.
    fn refuse(&self, rows: &RecordBatch, places: &UInt32Array) -> Vec<Refused> {
        let keys = rows.column(self.key);
        let missing = (0..).zip(places.iter()).filter(|(_, place)| place.is_none());
        missing
            .map(|(row, _)| {
                let detail = match table::shown_key(keys, row as usize) {
                    Some(key) => format!("{} {key} is not in \"{}\"", self.name, self.path.display()),
                    None => format!("{} is null", self.name),
                };
                (row, format!("missing.{}", self.name), Some(detail))
            })
            .collect()
    }
}

fn repeat(value: &Scalar, rows: usize) -> ArrayRef {
    match value {
        Scalar::Text(text) => Arc::new(StringArray::new_repeated(text, rows)),
        Scalar::Integer(whole) => Arc::new(Int64Array::from_value(*whole, rows)),
        Scalar::Float(float) => Arc::new(Float64Array::from_value(*float, rows)),
        Scalar::Bool(truth) => Arc::new(BooleanArray::from(vec![*truth; rows])),
    }
}
