//! Reads back what the pipeline has stored: every row of the tables, every object of the lake.
//!
//! A row is also compared with its reading's time and value; what differs is strange.

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row};

use super::oracle::Found;
use super::record::{Id, Kind, Message, Reading, device_of_name};
use crate::services::S3;

/// Everything that is outside now. `readings` are in order of device and number.
pub async fn read_all(database_url: &str, s3: &S3, bucket: &str, readings: &[(Id, Reading)]) -> Found {
    let mut found = Found::default();
    read_tables(database_url, readings, &mut found).await;
    for batch in s3.read_parquet(bucket, "lake").await {
        read_objects_rows(&batch, readings, &mut found);
    }
    for batch in s3.read_parquet(bucket, "dead_letters").await {
        found
            .strange
            .extend(text_column(&batch, "reason").map(|reason| format!("a letter of the table itself: {reason}")));
    }
    found
}

async fn read_tables(database_url: &str, readings: &[(Id, Reading)], found: &mut Found) {
    let (client, connection) = tokio_postgres::connect(database_url, NoTls).await.expect("the database");
    let serving = tokio::spawn(connection);
    let micros = "(extract(epoch from timestamp) * 1000000)::int8";
    for (table, attempt) in [("keyed", "0::int8"), ("keyless", "attempt")] {
        let sql = format!("select device_id, seq, {attempt}, {micros}, temperature from {table}");
        let rows = client.query_raw(&sql, std::iter::empty::<&(dyn ToSql + Sync)>()).await.expect("the table");
        let mut rows = std::pin::pin!(rows);
        while let Some(row) = rows.try_next().await.expect("its rows") {
            let value = Value {
                device: row.get(0),
                seq: row.get(1),
                attempt: row.get(2),
                at_us: row.get(3),
                temperature: row.get(4),
            };
            match value.checked(readings) {
                Ok(message) if table == "keyed" => found.keyed.push(message.id),
                Ok(message) => found.keyless.push(message),
                Err(why) => found.strange.push(format!("{table}: {why}")),
            }
        }
    }
    let letters = client.query("select stage, reason, payload from dead_letters", &[]).await.expect("the dead letters");
    for letter in letters {
        match letter_message(&letter) {
            Ok(message) => found.letters.push(message),
            Err(why) => found.strange.push(format!("dead_letters: {why}")),
        }
    }
    drop(client);
    serving.await.expect("no panic").ok();
}

fn read_objects_rows(batch: &RecordBatch, readings: &[(Id, Reading)], found: &mut Found) {
    let (seqs, attempts) = (column(batch, "seq"), column(batch, "attempt"));
    let (times, temperatures) = (column(batch, "timestamp"), column(batch, "temperature"));
    for (row, device) in text_column(batch, "device_id").enumerate() {
        let value = Value {
            device,
            seq: seqs.as_primitive::<Int64Type>().value(row),
            attempt: attempts.as_primitive::<Int64Type>().value(row),
            at_us: times.as_primitive::<TimestampMicrosecondType>().value(row),
            temperature: temperatures.as_primitive::<Float64Type>().value(row),
        };
        match value.checked(readings) {
            Ok(message) => found.lake.push(message),
            Err(why) => found.strange.push(format!("lake: {why}")),
        }
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> &'a ArrayRef {
    batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"))
}

fn text_column<'a>(batch: &'a RecordBatch, name: &str) -> impl Iterator<Item = String> + 'a {
    column(batch, name).as_string::<i32>().iter().map(|text| text.unwrap_or_default().to_owned())
}

/// A row as it is stored.
#[derive(Debug)]
struct Value {
    device: String,
    seq: i64,
    attempt: i64,
    at_us: i64,
    temperature: f64,
}

impl Value {
    /// Whose it is, if it holds what was sent.
    fn checked(&self, readings: &[(Id, Reading)]) -> Result<Message, String> {
        let stranger = || format!("{self:?}, which nobody has sent");
        let device = device_of_name(&self.device).ok_or_else(stranger)?;
        let id = Id { device, seq: u32::try_from(self.seq).map_err(|_| stranger())? };
        let message = Message { id, attempt: u16::try_from(self.attempt).map_err(|_| stranger())? };
        let index = readings.binary_search_by_key(&id, |(id, _)| *id).map_err(|_| stranger())?;
        let sent = readings[index].1;
        if (self.at_us, self.temperature) != (sent.at_us, id.temperature()) {
            return Err(format!("{self:?}, sent were {sent:?} and {}", id.temperature()));
        }
        Ok(message)
    }
}

fn letter_message(letter: &Row) -> Result<Message, String> {
    let (stage, reason): (&str, &str) = (letter.get(0), letter.get(1));
    let payload = String::from_utf8_lossy(letter.get(2)).into_owned();
    let message = Message::of_text(&payload).ok_or_else(|| format!("{stage} refused {payload:?}: {reason}"))?;
    let expected = match message.id.kind() {
        Kind::Torn => ("telemetry", "invalid_json"),
        Kind::OutOfRange => ("valid", "range.temperature"),
        Kind::Good => return Err(format!("{stage} refused the good reading {message:?}: {reason}")),
    };
    if (stage, reason) == expected {
        Ok(message)
    } else {
        Err(format!("{stage} refused {message:?}: {reason}, expected {expected:?}"))
    }
}
