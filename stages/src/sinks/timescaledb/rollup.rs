//! Rows summed up by buckets of time: what `pipeline db rollups` keeps.
//!
//! In the community edition of TimescaleDB a rollup is a continuous aggregate. Elsewhere it is a table of the same name
//! and columns, brought up to date by SQL that computes the buckets again in which rows may have come.

use std::collections::BTreeMap;
use std::time::Duration;

use pipeline_engine::stage::BuildError;
use pipeline_engine::units::DurationText;
use schemars::JsonSchema;
use serde::Deserialize;

use super::table::{Table, is_identifier, quoted};

/// What can be written, for a person who has written something else.
const FORMS: &str = "It can be count(), or count, sum, mean, min and max of a column: \"mean(temperature)\".";

/// `[sinks.NAME.rollups.ROLLUP]` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollupConfig {
    /// How much time a row stands for: `"1h"`, at most 7 days. Buckets begin at whole multiples of it, in UTC.
    every: DurationText,
    /// Columns of the table that have a row each of their own in every bucket. Left out: the first column of the key that
    /// is not the time.
    by: Option<Vec<String>>,
    /// Columns of the rollup, each computed from one of the table: `{ avg_temp = "mean(temperature)", reading_count =
    /// "count()" }`. There are `count`, `sum`, `mean`, `min` and `max`.
    aggregates: BTreeMap<String, String>,
    /// How late rows may come and still be counted: so far back buckets are computed again each time.
    #[serde(default = "default_late")]
    late: DurationText,
}

fn default_late() -> DurationText {
    DurationText::secs(2 * 86_400)
}

/// A rollup of a table that is known to have its columns.
#[derive(Debug, Clone)]
pub(crate) struct Rollup {
    /// Its name, beside the table.
    pub name: String,
    pub every: Duration,
    pub late: Duration,
    /// Columns of the table.
    pub by: Vec<String>,
    /// Name and SQL of each computed column.
    pub aggregates: Vec<(String, String)>,
}

impl RollupConfig {
    /// Checks it against its table.
    pub(super) fn rollup(
        &self,
        name: &str,
        table: &Table,
        retention: Option<Duration>,
        sink: &str,
    ) -> Result<Rollup, BuildError> {
        let at = |key: &str| if key.is_empty() { format!("rollups.{name}") } else { format!("rollups.{name}.{key}") };
        let Some(time) = &table.time else {
            return Err(BuildError::invalid(
                at(""),
                format!("the table of \"{sink}\" has no time column to sum up by"),
            )
            .hint("Name it: time_column = \"...\"."));
        };
        if !is_identifier(name) || name == table.name {
            return Err(BuildError::invalid(at(""), format!("\"{name}\" can't be the name of a rollup"))
                .hint("Letters, digits and underscores, and not the name of the table."));
        }
        let (every, late) = (self.every.0, self.late.0);
        if every < Duration::from_secs(1) || every > Duration::from_secs(7 * 86_400) {
            return Err(BuildError::invalid(at("every"), "a bucket holds a second at least and 7 days at most"));
        }
        // Buckets whose rows are dropped in part would be computed again from what is left.
        if retention.is_some_and(|retention| retention < late + every * 2) {
            return Err(BuildError::invalid(at("late"), "rows are dropped while their bucket is still computed again")
                .hint("Keep rows longer (retention), or set \"late\" below it by two buckets at least."));
        }
        let has_column = |name: &str| table.columns.iter().any(|column| column.name == name);
        let by = match &self.by {
            Some(columns) => columns.clone(),
            None => table.key.iter().find(|column| *column != time).into_iter().cloned().collect(),
        };
        if let Some(missing) = by.iter().find(|column| !has_column(column)) {
            return Err(BuildError::invalid(at("by"), format!("the table has no column \"{missing}\"")));
        }
        if self.aggregates.is_empty() {
            return Err(BuildError::invalid(at("aggregates"), "nothing is computed").hint(FORMS));
        }
        let mut aggregates = Vec::new();
        for (column, text) in &self.aggregates {
            let key = at(&format!("aggregates.{column}"));
            if !is_identifier(column) || column == "bucket" || by.contains(column) {
                return Err(BuildError::invalid(key, format!("\"{column}\" can't be the name of a computed column"))
                    .hint("Letters, digits and underscores; \"bucket\" and the columns of \"by\" are there already."));
            }
            let sql = aggregate_sql(text, has_column).ok_or_else(|| {
                BuildError::invalid(key, format!("\"{text}\" can't be computed of the table")).hint(FORMS)
            })?;
            aggregates.push((column.clone(), sql));
        }
        Ok(Rollup { name: name.to_owned(), every, late, by, aggregates })
    }
}

/// `mean(temperature)` as SQL.
fn aggregate_sql(text: &str, has_column: impl Fn(&str) -> bool) -> Option<String> {
    let (function, column) = text.trim().strip_suffix(')')?.split_once('(')?;
    let (function, column) = (function.trim(), column.trim());
    if column.is_empty() {
        return (function == "count").then(|| "count(*)".to_owned());
    }
    let function = match function {
        "mean" => "avg",
        "count" | "sum" | "min" | "max" => function,
        _ => return None,
    };
    has_column(column).then(|| format!("{function}(\"{column}\")"))
}

impl Rollup {
    /// Its name as SQL takes it, beside that of its table.
    pub fn sql_name(&self, table: &Table) -> String {
        Table { name: self.name.clone(), ..table.clone() }.sql_name()
    }

    /// The rows of the rollup as a query over the table; `bucket` is the SQL of the bucket, `condition` is one on the rows.
    pub fn query(&self, table: &Table, bucket: &str, condition: &str) -> String {
        let mut columns = vec![format!("{bucket} AS bucket")];
        columns.extend(self.by.iter().map(|column| format!("\"{column}\"")));
        columns.extend(self.aggregates.iter().map(|(name, sql)| format!("{sql} AS \"{name}\"")));
        let groups: Vec<String> = (1..=self.by.len() + 1).map(|number| number.to_string()).collect();
        let condition = if condition.is_empty() { String::new() } else { format!(" WHERE {condition}") };
        format!("SELECT {} FROM {}{condition} GROUP BY {}", columns.join(", "), table.sql_name(), groups.join(", "))
    }

    /// The columns that tell its rows apart.
    pub fn key(&self) -> String {
        let columns = quoted(self.by.iter().map(String::as_str));
        if columns.is_empty() { "bucket".to_owned() } else { format!("bucket, {columns}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregates_are_functions_of_columns_that_are_there() {
        let known = |name: &str| name == "temperature";
        assert_eq!(aggregate_sql("count()", known).as_deref(), Some("count(*)"));
        assert_eq!(aggregate_sql(" mean( temperature ) ", known).as_deref(), Some("avg(\"temperature\")"));
        assert_eq!(aggregate_sql("max(temperature)", known).as_deref(), Some("max(\"temperature\")"));
        for bad in
            ["mean()", "mean(speed)", "median(temperature)", "temperature", "mean(temperature", "mean(a);drop(b)"]
        {
            assert_eq!(aggregate_sql(bad, known), None, "{bad}");
        }
    }
}
