//! Two tables held against each other by device and minute: as many rows, and the same values in them?
//!
//! Each database makes of its table a line for each device and minute, a count and a sum of hashes that does not depend on the
//! order of rows (as in `fingerprint`), and sorts the lines alike. Here they are merged as they come, a few thousand at a
//! time: memory does not grow with the tables.
//!
//! A lake is copied into a temporary table first, object by object, so that one server makes the text of both sides' values. That
//! takes room in the database; a prefix may name a month or a day.
//!
//! Types may differ between the two, as they do where another program made the old table: numbers are compared as numbers,
//! times as microseconds, JSON as JSON, all else as text.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;

use arrow::array::new_null_array;
use arrow::datatypes::{FieldRef, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipeline_engine::stage::StageError;
use pipeline_engine::time::format_us;
use secrecy::SecretString;
use serde::Serialize;
use tokio_postgres::Client;

use super::catch_up::{arrow_type, copy};
use super::place::Place;
use super::{catalog, fingerprint, literal, microseconds};
use crate::postgres::fault::while_opening;
use crate::postgres::{Database, Link};
use crate::sinks::timescaledb::SqlType;

/// The rows of a lake, in the database that aggregates them.
const LAKE_TABLE: &str = "_pipeline_compared";
/// Lines of one side that are in memory at once.
const FETCH_LINES: usize = 5_000;
const MINUTE_US: i64 = 60_000_000;

/// A table, and the database that it is in; or a lake, and the database that is to aggregate it.
pub struct ComparedTable {
    /// As the `url` of a sink.
    pub url: SecretString,
    /// `table`, or `schema.table`; or of a lake `s3://bucket/prefix`, or a folder with a slash or a dot at its beginning.
    pub name: String,
}

/// What is compared.
#[derive(Debug, Clone)]
pub struct Comparing {
    /// The column with the device.
    pub device: String,
    /// The column with the time of a reading. Rows without one are not looked at.
    pub time: String,
    /// The columns whose values are compared; empty: all that both tables have.
    pub columns: Vec<String>,
    /// From the minute of this time on, in microseconds since 1970.
    pub from_us: Option<i64>,
    /// Up to the minute of this time, which is not looked at.
    pub until_us: i64,
    /// So many differences are given out; all are counted.
    pub first: usize,
}

/// What one side has of a device and minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// How many rows.
    pub rows: i64,
    /// The sum of the hashes of their values.
    pub checksum: String,
}

/// A device and minute that both sides do not have alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MinuteDifference {
    /// The device.
    pub device: String,
    /// The minute, in RFC 3339.
    pub minute: String,
    /// What the old table has.
    pub old: Option<Part>,
    /// What the new table has.
    pub new: Option<Part>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The columns whose values were compared.
    pub columns: Vec<String>,
    /// Columns that one of the tables alone has.
    pub not_compared: Vec<String>,
    /// Where it ends, in RFC 3339: later minutes are not looked at.
    pub until: String,
    /// Devices and minutes that both have alike.
    pub equal: u64,
    /// Those with another number of rows.
    pub other_count: u64,
    /// Those with as many rows and other values.
    pub other_values: u64,
    /// Rows of the old table.
    pub rows_old: i64,
    /// Rows of the new table.
    pub rows_new: i64,
    /// The first differences, by device and time.
    pub first: Vec<MinuteDifference>,
}

impl Comparison {
    /// How many devices and minutes differ.
    pub fn differing(&self) -> u64 {
        self.other_count + self.other_values
    }
}

/// Compares two tables, each as of one moment.
///
/// # Errors
/// One can't be read, or has not the columns that were named.
pub async fn compare(
    old: &ComparedTable,
    new: &ComparedTable,
    comparing: &Comparing,
) -> Result<Comparison, StageError> {
    let (old, new) = tokio::try_join!(Side::open(old), Side::open(new))?;
    let columns = match &comparing.columns[..] {
        [] => old.columns.keys().filter(|name| new.columns.contains_key(*name)).cloned().collect(),
        named => named.to_vec(),
    };
    for name in columns.iter().chain([&comparing.device, &comparing.time]) {
        for side in [&old, &new] {
            if !side.columns.contains_key(name) {
                return Err(StageError::permanent(format!("{} has no column \"{name}\"", side.name)));
            }
        }
    }
    let only_one = |one: &Side, other: &Side| {
        let names =
            one.columns.keys().filter(|name| comparing.columns.is_empty() && !other.columns.contains_key(*name));
        names.cloned().collect::<Vec<_>>()
    };
    let until_us = comparing.until_us - comparing.until_us.rem_euclid(MINUTE_US);
    let mut found = Comparison {
        not_compared: [only_one(&old, &new), only_one(&new, &old)].concat(),
        until: minute(until_us),
        ..Comparison::default()
    };
    let values: Vec<String> =
        columns.iter().map(|name| canonical(name, &old.columns[name], &new.columns[name])).collect();
    found.columns = columns;
    let (mut old, mut new) =
        tokio::try_join!(old.read(&values, comparing, until_us), new.read(&values, comparing, until_us))?;
    merge(&mut old, &mut new, comparing.first, &mut found).await?;
    Ok(found)
}

/// Walks both in their common order.
async fn merge(old: &mut Lines, new: &mut Lines, first: usize, found: &mut Comparison) -> Result<(), StageError> {
    loop {
        let (left, right) = (old.peek().await?, new.peek().await?);
        let order = match (&left, &right) {
            (None, None) => return Ok(()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(left), Some(right)) => left.place().cmp(&right.place()),
        };
        let left = if order.is_le() { old.next() } else { None };
        let right = if order.is_ge() { new.next() } else { None };
        let rows = |line: &Option<Line>| line.as_ref().map_or(0, |line| line.part.rows);
        found.rows_old += rows(&left);
        found.rows_new += rows(&right);
        let (parts, place) = (
            (left.as_ref().map(|line| &line.part), right.as_ref().map(|line| &line.part)),
            left.as_ref().or(right.as_ref()),
        );
        if parts.0 == parts.1 {
            found.equal += 1;
            continue;
        }
        if rows(&left) == rows(&right) {
            found.other_values += 1
        } else {
            found.other_count += 1
        }
        if let Some(line) = place.filter(|_| found.first.len() < first) {
            let difference = MinuteDifference {
                device: line.device.clone(),
                minute: minute(line.minute.saturating_mul(MINUTE_US)),
                old: parts.0.cloned(),
                new: parts.1.cloned(),
            };
            found.first.push(difference);
        }
    }
}

/// A whole minute, in RFC 3339.
fn minute(us: i64) -> String {
    format_us(us).replace(".000000Z", "Z")
}

/// A table that is open.
struct Side {
    link: Link,
    /// As SQL names it.
    name: String,
    columns: BTreeMap<String, Kind>,
}

/// A column's type, as the catalog has it.
struct Kind {
    name: String,
    /// `N` for numbers, `D` for times.
    category: String,
}

impl Side {
    async fn open(table: &ComparedTable) -> Result<Self, StageError> {
        let database = Database::of_url(&table.url, None, "pipeline compare");
        let database = database.map_err(|error| StageError::permanent(error.message))?;
        let link = database.connect().await?;
        link.client.batch_execute(fingerprint::SETTINGS).await.map_err(catalog)?;
        let name = if is_lake(&table.name) {
            copy_lake(&table.name, &link.client).await?;
            LAKE_TABLE.to_owned()
        } else {
            table.name.splitn(2, '.').map(identifier).collect::<Vec<_>>().join(".")
        };
        let sql = "SELECT a.attname::text, t.typname::text, t.typcategory::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
                   WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";
        let rows = link.client.query(sql, &[&name]).await.map_err(catalog)?;
        if rows.is_empty() {
            return Err(StageError::permanent(format!("there is no table {name} in {database}")));
        }
        let kind = |row: &tokio_postgres::Row| (row.get(0), Kind { name: row.get(1), category: row.get(2) });
        Ok(Self { columns: rows.iter().map(kind).collect(), link, name })
    }

    /// Has the database make its lines, of the rows that there are now.
    async fn read(self, values: &[String], comparing: &Comparing, until_us: i64) -> Result<Lines, StageError> {
        let (device, time) = (identifier(&comparing.device), identifier(&comparing.time));
        let mut condition = format!("{time} < {}::timestamptz", literal(&format_us(until_us)));
        if let Some(from_us) = comparing.from_us {
            let from_us = from_us - from_us.rem_euclid(MINUTE_US);
            write!(condition, " AND {time} >= {}::timestamptz", literal(&format_us(from_us))).unwrap_or_default();
        }
        // A null is no empty text, and no text runs into the next.
        let text = |value: &String| format!("coalesce(length({value}) || ':' || {value}, '-')");
        let row = if values.is_empty() {
            "''".to_owned()
        } else {
            values.iter().map(text).collect::<Vec<_>>().join(" || ' ' || ")
        };
        let sql = format!(
            "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; DECLARE lines NO SCROLL CURSOR FOR \
             SELECT coalesce({device}::text, '') COLLATE \"C\", floor(extract(epoch FROM {time}) / 60)::bigint, count(*), \
             sum({})::text FROM {} WHERE {condition} GROUP BY 1, 2 ORDER BY 1, 2",
            fingerprint::hash(&row),
            self.name
        );
        let failed = |error| while_opening(error, &format!("can't read {}", self.name));
        self.link.client.batch_execute(&sql).await.map_err(failed)?;
        Ok(Lines { side: self, fetched: VecDeque::new(), is_at_end: false })
    }

    fn client(&self) -> &Client {
        &self.link.client
    }
}

fn is_lake(name: &str) -> bool {
    name.contains("://") || name.starts_with(['/', '.'])
}

/// Copies the rows of all Parquet objects below a place into a temporary table of the connection.
async fn copy_lake(text: &str, client: &Client) -> Result<(), StageError> {
    if !text.contains("://") && !std::path::Path::new(text).is_dir() {
        return Err(StageError::permanent(format!("there is no folder \"{text}\"")));
    }
    let place = Place::open(text).await?;
    let objects = place.all(".parquet").await?;
    let mut columns: Vec<(String, SqlType)> = Vec::new();
    // The newest first: it has the columns that there are now.
    for path in objects.iter().rev() {
        let Some(content) = place.content(path).await? else { continue };
        let unreadable = |why: String| StageError::permanent(format!("\"{path}\" can't be read as Parquet: {why}"));
        // On a damaged object the library may panic.
        let read = tokio::task::spawn_blocking(move || batches(content)).await;
        let (schema, batches) = read.unwrap_or_else(|panic| Err(panic.to_string())).map_err(unreadable)?;
        if columns.is_empty() {
            let column = |field: &FieldRef| SqlType::of(field).map(|kind| (field.name().clone(), kind));
            columns = schema.fields().iter().filter_map(column).collect();
            let of_table: Vec<String> =
                columns.iter().map(|(name, kind)| format!("{} {}", identifier(name), kind.name())).collect();
            let create = format!("CREATE TEMPORARY TABLE {LAKE_TABLE} ({})", of_table.join(", "));
            client
                .batch_execute(&create)
                .await
                .map_err(|error| while_opening(error, "can't make a temporary table"))?;
        }
        let kinds: Vec<SqlType> = columns.iter().map(|(_, kind)| *kind).collect();
        for batch in batches {
            let rows = as_table(&batch, &columns).map_err(unreadable)?;
            copy(client, &format!("COPY {LAKE_TABLE} FROM STDIN BINARY"), &rows, &kinds).await?;
        }
    }
    if columns.is_empty() {
        return Err(StageError::permanent(format!("there is no Parquet object below \"{text}\"")));
    }
    Ok(())
}

fn batches(content: Bytes) -> Result<(SchemaRef, Vec<RecordBatch>), String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(content).map_err(|error| error.to_string())?;
    let schema = reader.schema().clone();
    let batches = reader.build().map_err(|error| error.to_string())?.collect::<Result<_, _>>();
    Ok((schema, batches.map_err(|error: ArrowError| error.to_string())?))
}

/// The columns of the temporary table; one that an object has not is null.
fn as_table(batch: &RecordBatch, columns: &[(String, SqlType)]) -> Result<RecordBatch, String> {
    let mut arrays = Vec::new();
    for (name, kind) in columns {
        let expected = arrow_type(*kind);
        let array = match batch.column_by_name(name) {
            Some(array) if *array.data_type() == expected => array.clone(),
            Some(array) => {
                return Err(format!("column \"{name}\" is {}, and {expected} in a newer object", array.data_type()));
            }
            None => new_null_array(&expected, batch.num_rows()),
        };
        arrays.push((name, array, true));
    }
    RecordBatch::try_from_iter_with_nullable(arrays).map_err(|error| error.to_string())
}

/// What a database has made of a device and minute.
#[derive(Debug)]
struct Line {
    device: String,
    /// Since 1970.
    minute: i64,
    part: Part,
}

impl Line {
    fn place(&self) -> (&str, i64) {
        (&self.device, self.minute)
    }
}

/// The lines of one side, as they are asked for.
struct Lines {
    side: Side,
    fetched: VecDeque<Line>,
    is_at_end: bool,
}

impl Lines {
    /// The next line; `None` behind the last.
    async fn peek(&mut self) -> Result<Option<&Line>, StageError> {
        if self.fetched.is_empty() && !self.is_at_end {
            let failed = |error| while_opening(error, &format!("can't read {}", self.side.name));
            let rows =
                self.side.client().query(&format!("FETCH {FETCH_LINES} FROM lines"), &[]).await.map_err(failed)?;
            self.is_at_end = rows.is_empty();
            self.fetched.extend(rows.iter().map(|row| Line {
                device: row.get(0),
                minute: row.get(1),
                part: Part { rows: row.get(2), checksum: row.get(3) },
            }));
        }
        Ok(self.fetched.front())
    }

    fn next(&mut self) -> Option<Line> {
        self.fetched.pop_front()
    }
}

/// A value as text that is the same for equal values of both types.
fn canonical(name: &str, old: &Kind, new: &Kind) -> String {
    let column = identifier(name);
    let both = |is: fn(&Kind) -> bool| is(old) && is(new);
    if both(|kind| ["int2", "int4", "int8"].contains(&kind.name.as_str())) {
        format!("{column}::int8::text")
    } else if both(|kind| kind.category == "N") {
        // Through text: a `real` of 25.1 is the number that it is shown as. And zero has no sign.
        format!("({column}::text::float8 + 0.0)::text")
    } else if both(|kind| ["timestamp", "timestamptz"].contains(&kind.name.as_str())) {
        format!("({})::text", microseconds(&column))
    } else if both(|kind| ["json", "jsonb"].contains(&kind.name.as_str())) {
        format!("{column}::jsonb::text")
    } else {
        format!("{column}::text")
    }
}

/// A name as SQL takes it.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
