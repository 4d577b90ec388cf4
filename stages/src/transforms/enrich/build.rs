//! Checks the configuration of `enrich` against the input, without a look at the table.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use pipeline_engine::columns;
use pipeline_engine::schema::{ColumnType, json_field, timestamp_type};
use pipeline_engine::stage::{BuildContext, BuildError};
use pipeline_engine::suggest::suggest;

use super::EnrichConfig;
use super::history::HistorySpec;
use super::run::{InputColumn, Lookup};
use super::table::TableSpec;
use crate::transforms::tables::TableFormat;
use crate::transforms::tables::follow::{Followed, Reloads};
use crate::transforms::tables::place::TableKeys;
use crate::transforms::tables::read::Layout;
use crate::transforms::units::micros;
use crate::transforms::values::Scalar;

impl EnrichConfig {
    /// The table to look keys up in, unread; `None` where there are only constants.
    pub(super) fn lookup(&self, input: &Schema, cx: &BuildContext) -> Result<Option<Lookup>, BuildError> {
        let Some(place) = self.table_keys().place(cx)? else {
            let without = [
                ("key", self.key.is_some()),
                ("table_key", self.table_key.is_some()),
                ("as_of", self.as_of.is_some()),
                ("format", self.format.is_some()),
                ("columns", !self.columns.is_empty()),
                ("types", !self.types.is_empty()),
            ];
            return match without.into_iter().find(|(_, given)| *given) {
                Some((key, _)) => Err(BuildError::invalid(key, "means nothing without a `table` or a `query`")),
                None => Ok(None),
            };
        };
        let Some(name) = &self.key else {
            return Err(BuildError::invalid("key", "a table needs the key \"key\"")
                .hint("Name the column of the input whose values are looked up in the table."));
        };
        let wanted = "text or a whole number";
        let index = columns::find_typed(input, "key", name, wanted, |kind| {
            matches!(kind, DataType::Utf8 | DataType::Int16 | DataType::Int32 | DataType::Int64)
        })?;
        let format = place.format(self.format)?;
        let added = self.added_columns(format)?;
        let table_key = self.table_key.clone().unwrap_or_else(|| name.clone());
        if added.iter().any(|(column, _)| *column == table_key) {
            return Err(BuildError::invalid("columns", format!("\"{table_key}\" is the key of the table"))
                .hint("The rows have the key already."));
        }
        let is_text_key = *input.field(index).data_type() == DataType::Utf8;
        let mut columns = vec![(table_key, if is_text_key { ColumnType::Text } else { ColumnType::Int64 })];
        let (time, history) = self.history(input, &mut columns)?.unzip();
        columns.extend(added);
        let spec = TableSpec { layout: Layout { place: place.clone(), format, columns }, is_text_key, history };
        Ok(Some(Lookup {
            key: InputColumn { index, name: name.clone() },
            time,
            table: Followed::unread(place, spec, Reloads::of(cx)),
            missing: self.missing,
            missing_rows: cx.counter("missing_rows"),
        }))
    }

    fn table_keys(&self) -> TableKeys<'_> {
        TableKeys {
            table: self.table.as_deref(),
            query: self.query.as_deref(),
            url: self.url.as_ref(),
            password: self.password.as_ref(),
            endpoint: self.endpoint.as_ref(),
            region: self.region.as_ref(),
            allow_http: self.allow_http,
            refresh: self.refresh,
            read_timeout: self.read_timeout,
            max_table_size: self.max_table_size,
            environment: self.environment.as_ref(),
        }
    }

    /// The input's time and what the table says of times, with the table's columns for it behind `columns`.
    fn history(
        &self,
        input: &Schema,
        columns: &mut Vec<(String, ColumnType)>,
    ) -> Result<Option<(InputColumn, HistorySpec)>, BuildError> {
        let Some(as_of) = &self.as_of else { return Ok(None) };
        let is_time = |kind: &DataType| *kind == timestamp_type();
        let index = columns::find_typed(input, "as_of.time", &as_of.time, "a timestamp", is_time)?;
        columns.push((as_of.valid_from.clone(), ColumnType::Timestamp));
        columns.extend(as_of.valid_to.iter().map(|name| (name.clone(), ColumnType::Timestamp)));
        let max_age_us = as_of.max_age.map(|age| micros("as_of.max_age", age)).transpose()?;
        let time = InputColumn { index, name: as_of.time.clone() };
        Ok(Some((time, HistorySpec { valid_to: as_of.valid_to.clone(), max_age_us })))
    }

    /// The table's columns to add, with their types.
    fn added_columns(&self, format: Option<TableFormat>) -> Result<Vec<(String, ColumnType)>, BuildError> {
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
        let is_parquet = format == Some(TableFormat::Parquet);
        let mut columns = Vec::new();
        for name in named {
            let kind = match self.types.get(name) {
                Some(ColumnType::Binary) if !is_parquet => {
                    let text = if format.is_some() { "a CSV file holds no bytes" } else { "a query gives no bytes" };
                    return Err(BuildError::invalid(format!("types.{name}"), text));
                }
                Some(kind) => *kind,
                None if self.as_of.as_ref().is_some_and(|as_of| as_of.names(name)) => ColumnType::Timestamp,
                None if !is_parquet => ColumnType::Text,
                None => {
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
