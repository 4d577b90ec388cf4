//! Checks the configuration of `enrich` against the input, without a look at the table.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use pipeline_engine::columns;
use pipeline_engine::schema::{ColumnType, json_field};
use pipeline_engine::stage::{BuildContext, BuildError};
use pipeline_engine::suggest::suggest;

use super::EnrichConfig;
use super::run::{Lookup, TableState};
use super::table::{TableFormat, TableSpec};
use super::watch::Reloads;
use crate::transforms::values::Scalar;

impl EnrichConfig {
    /// The table to look keys up in, unread; `None` where there are only constants.
    pub(super) fn lookup(&self, input: &Schema, cx: &BuildContext) -> Result<Option<Lookup>, BuildError> {
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
            return Err(BuildError::invalid("key", "a table needs the key \"key\"")
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
            return Err(BuildError::invalid("columns", "a table needs the key \"columns\"")
                .hint("Name the table's columns to add: the plan is checked before the table is read."));
        }
        if let Some((other, _)) = self.types.iter().find(|(name, _)| !named.contains(name)) {
            let known = named.iter().map(|name| name.as_str());
            return Err(BuildError::invalid(format!("types.{other}"), format!("\"{other}\" is not in `columns`"))
                .hint(suggest(other, known, "Columns", "")));
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
    pub(super) fn schema(&self, input: &Schema, lookup: Option<&Lookup>) -> Result<SchemaRef, BuildError> {
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
