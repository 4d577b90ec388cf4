//! The rows of a parcel as Parquet objects, and the proof that these hold them.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use pipeline_engine::stage::StageError;
use pipeline_engine::time::format_us;
use serde_json::json;
use tokio_postgres::Client;

use super::columns::{ArchiveColumn, arrays, schema};
use super::{Archiving, condition};
use crate::db::SinkTable;
use crate::db::catch_up::copy;
use crate::db::place::{Measured, Meter, Place};
use crate::postgres::fault::while_opening;
use crate::sinks::timescaledb::SqlType;

/// Rows that are in memory as rows at once.
const FETCH_ROWS: usize = 20_000;
/// An object is in memory until it is complete: so many rows of telemetry are some 20 MB.
const OBJECT_ROWS_MAX: u64 = 4_000_000;
const TEMPORARY: &str = "_pipeline_read_back";
/// The key of the footer that says what the object is.
const FOOTER: &str = "pipeline.archive";

/// An object that is in its place.
pub(super) struct WrittenObject {
    pub name: String,
    pub rows: u64,
    pub measured: Measured,
}

/// Writes the parcel as of the transaction's snapshot.
pub(super) async fn write(
    table: &SinkTable,
    parcel: &Archiving,
    columns: &[ArchiveColumn],
    to: &Place,
    client: &Client,
) -> Result<Vec<WrittenObject>, StageError> {
    let failed = |error| while_opening(error, &format!("{} can't be read", parcel.table));
    let selected: Vec<String> = columns.iter().map(ArchiveColumn::exported).collect();
    // The same rows in the same order make the same object. Without a key, equal rows are equal in any order.
    let mut order: Vec<String> =
        table.table.time.iter().chain(&table.table.key).map(|name| format!("\"{name}\"")).collect();
    if table.table.key.is_empty() {
        order.extend((1..=columns.len()).map(|place| place.to_string()));
    }
    let declare = format!(
        "DECLARE parcel NO SCROLL CURSOR FOR SELECT {} FROM {} {} ORDER BY {}",
        selected.join(", "),
        parcel.table,
        condition(table, parcel),
        order.join(", ")
    );
    client.batch_execute(&declare).await.map_err(failed)?;
    let mut objects = Vec::new();
    let mut open: Option<OpenObject> = None;
    loop {
        let rows = client.query(&format!("FETCH {FETCH_ROWS} FROM parcel"), &[]).await.map_err(failed)?;
        let is_last = rows.len() < FETCH_ROWS;
        if !rows.is_empty() {
            let object = match &mut open {
                Some(object) => object,
                none => none.insert(OpenObject::begin(parcel, columns, objects.len())?),
            };
            object.add(RecordBatch::try_new(object.schema.clone(), arrays(&rows, columns))?)?;
        }
        let is_full = open.as_ref().is_some_and(|object| object.rows >= OBJECT_ROWS_MAX);
        if (is_last || is_full)
            && let Some(object) = open.take()
        {
            objects.push(object.put(table, parcel, to).await?);
        }
        if is_last {
            break;
        }
    }
    client.batch_execute("CLOSE parcel").await.map_err(failed)?;
    Ok(objects)
}

struct OpenObject {
    schema: Arc<arrow::datatypes::Schema>,
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
}

fn not_encoded(error: parquet::errors::ParquetError) -> StageError {
    StageError::bug("the Parquet writer failed").because(error)
}

impl OpenObject {
    fn begin(parcel: &Archiving, columns: &[ArchiveColumn], part: usize) -> Result<Self, StageError> {
        let schema = Arc::new(schema(columns));
        let types: serde_json::Map<String, serde_json::Value> =
            columns.iter().map(|column| (column.name.clone(), json!(column.type_text))).collect();
        let footer = json!({
            "table": parcel.table, "from": format_us(parcel.from_us), "to": format_us(parcel.to_us), "part": part,
            "columns": types,
        });
        let level = ZstdLevel::try_new(3).map_err(not_encoded)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_key_value_metadata(Some(vec![KeyValue::new(FOOTER.to_owned(), footer.to_string())]))
            .build();
        let writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties)).map_err(not_encoded)?;
        Ok(Self { schema, writer, rows: 0 })
    }

    fn add(&mut self, rows: RecordBatch) -> Result<(), StageError> {
        self.rows += rows.num_rows() as u64;
        // Some milliseconds for so many rows: a command has nobody to hold up.
        self.writer.write(&rows).map_err(not_encoded)
    }

    /// Names it by its content, and puts it there, unless it is there.
    async fn put(self, table: &SinkTable, parcel: &Archiving, to: &Place) -> Result<WrittenObject, StageError> {
        let content = Bytes::from(self.writer.into_inner().map_err(not_encoded)?);
        let measured = measure(&content);
        let day = DateTime::<Utc>::from_timestamp_micros(parcel.from_us).unwrap_or_default();
        let folder = match &table.table.schema {
            Some(schema) => format!("{schema}.{}", table.table.name),
            None => table.table.name.clone(),
        };
        let name = format!(
            "{folder}/{}/{}-{}-{}.parquet",
            day.format("year=%Y/month=%m/day=%d"),
            table.table.name,
            day.format("%Y%m%dT%H%M%S"),
            &measured.sha256[..32]
        );
        if to.get(&name).await?.is_none_or(|found| measure(&found) != measured) {
            to.put(&name, content).await?;
        }
        Ok(WrittenObject { name, rows: self.rows, measured })
    }
}

fn measure(content: &Bytes) -> Measured {
    let mut meter = Meter::new();
    meter.take(content);
    meter.end()
}

/// Reads the objects from where they lie into a temporary table of the transaction.
pub(super) async fn read_back(
    objects: &[WrittenObject],
    columns: &[ArchiveColumn],
    from: &Place,
    client: &Client,
) -> Result<(), StageError> {
    let fields: Vec<String> = columns.iter().map(ArchiveColumn::temporary).collect();
    let create = format!("CREATE TEMPORARY TABLE {TEMPORARY} ({}) ON COMMIT DROP", fields.join(", "));
    let failed = |error| while_opening(error, "a temporary table for what was read back can't be made");
    client.batch_execute(&create).await.map_err(failed)?;
    let kinds: Vec<SqlType> = columns.iter().map(|column| column.kind).collect();
    for object in objects {
        let damaged = |why: String| {
            StageError::permanent(format!("\"{}\" in {} does not read back: {why}", object.name, from.shown()))
                .hint("Nothing was dropped.")
        };
        let content = from.get(&object.name).await?.ok_or_else(|| damaged("it is not there".to_owned()))?;
        if measure(&content) != object.measured {
            return Err(damaged("it is not what was written".to_owned()));
        }
        // Columns come back by their schema, so it is what a reader of the archive gets.
        let read = tokio::task::spawn_blocking(move || {
            let reader = ParquetRecordBatchReaderBuilder::try_new(content).map_err(|error| error.to_string())?;
            let batches = reader.build().map_err(|error| error.to_string())?;
            batches.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())
        });
        let batches = read.await.unwrap_or_else(|panic| Err(panic.to_string())).map_err(damaged)?;
        for rows in batches {
            copy(client, &format!("COPY {TEMPORARY} FROM STDIN BINARY"), &rows, &kinds).await?;
        }
    }
    Ok(())
}

/// Has the server compare what was read back with the parcel, value for value, both ways.
pub(super) async fn compare(
    table: &SinkTable,
    parcel: &Archiving,
    columns: &[ArchiveColumn],
    client: &Client,
) -> Result<(), StageError> {
    let compared: Vec<String> = columns.iter().map(ArchiveColumn::compared).collect();
    let rows = format!("SELECT {} FROM {} {}", compared.join(", "), parcel.table, condition(table, parcel));
    let read = format!("SELECT * FROM {TEMPORARY}");
    let sql = format!(
        "SELECT (SELECT count(*) FROM ({rows} EXCEPT ALL {read}) AS lost), \
         (SELECT count(*) FROM ({read} EXCEPT ALL {rows}) AS foreign_rows)"
    );
    let failed = |error| while_opening(error, "what was read back can't be compared");
    let row = client.query_one(&sql, &[]).await.map_err(failed)?;
    let (lost, foreign): (i64, i64) = (row.get(0), row.get(1));
    if (lost, foreign) == (0, 0) {
        return Ok(());
    }
    Err(StageError::permanent(format!(
        "the archive of {} does not hold what the table holds: {lost} rows are missing, {foreign} are others",
        parcel.table
    ))
    .hint("Nothing was dropped."))
}
