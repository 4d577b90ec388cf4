//! The rows of a query: asked for at each interval, on a connection of its own, in a transaction that only reads.
//!
//! Cells come in the database's own text form. So every type of the database can be read, also those
//! that a column of a pipeline has no type for (`uuid`, `numeric`, an enumeration), as what the
//! pipeline file says it is.

use std::hash::Hash;
use std::pin::pin;
use std::time::Duration;

use arrow::array::{StringArray, StringBuilder};
use futures::TryStreamExt;
use pipeline_engine::stage::StageError;
use siphasher::sip128::{Hasher128, SipHasher13};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Content, too_large};
use crate::postgres::Database;
use crate::postgres::fault::while_opening;
use crate::transforms::tables::place::Place;

/// What a cell takes in memory besides its text.
const CELL_BYTES: u64 = 4;
/// `INSERT` or the like in a transaction that only reads; for a sink, a standby that will be promoted.
const READ_ONLY: &str = "25006";

/// Knows the rows that it gave last.
#[derive(Default)]
pub(super) struct QueryFetcher {
    settled: Option<u128>,
}

impl QueryFetcher {
    pub(super) async fn fetch(
        &mut self,
        place: &Place,
        database: &Database,
        sql: &str,
    ) -> Result<Option<Content>, StageError> {
        let link = database.connect().await?;
        let rows = Rows::read(&link.client, place, sql).await;
        // Nothing is lost with a farewell that does not arrive.
        link.close().await.ok();
        let rows = rows?;
        let fingerprint = rows.hasher.finish128().as_u128();
        if self.settled.replace(fingerprint) == Some(fingerprint) {
            return Ok(None);
        }
        let columns = rows.columns.into_iter().map(|mut column| column.finish()).collect::<Vec<StringArray>>();
        Ok(Some(Content::Rows { names: rows.names, columns }))
    }
}

/// What has come so far.
struct Rows {
    names: Vec<String>,
    columns: Vec<StringBuilder>,
    bytes: u64,
    hasher: SipHasher13,
}

impl Rows {
    async fn read(client: &Client, place: &Place, sql: &str) -> Result<Self, StageError> {
        let failed = |error: tokio_postgres::Error| {
            let text = format!("{place}: the query failed");
            match error.code().is_some_and(|code| code.code() == READ_ONLY) {
                true => StageError::permanent(text).because(error).hint("A query for a table may only read."),
                false => while_opening(error, &text),
            }
        };
        client.batch_execute(&begin(place.read_timeout)).await.map_err(failed)?;
        // The server takes one statement here, and says where it is wrong.
        let statement = client.prepare(sql).await.map_err(failed)?;
        let names: Vec<String> = statement.columns().iter().map(|column| column.name().to_owned()).collect();
        drop(statement);
        if names.is_empty() {
            return Err(place.broken("the statement gives no rows").hint("Write a SELECT."));
        }
        let mut rows = Self::new(names);
        let mut messages = pin!(client.simple_query_raw(sql).await.map_err(failed)?);
        while let Some(message) = messages.try_next().await.map_err(failed)? {
            let SimpleQueryMessage::Row(row) = message else { continue };
            for index in 0..rows.columns.len() {
                rows.push(index, row.try_get(index).map_err(failed)?);
            }
            if rows.bytes > place.bytes_max {
                return Err(too_large(place, rows.bytes));
            }
        }
        client.batch_execute("ROLLBACK").await.map_err(failed)?;
        Ok(rows)
    }

    fn new(names: Vec<String>) -> Self {
        let mut hasher = SipHasher13::new();
        names.hash(&mut hasher);
        Self { columns: names.iter().map(|_| StringBuilder::new()).collect(), names, bytes: 0, hasher }
    }

    fn push(&mut self, index: usize, cell: Option<&str>) {
        cell.hash(&mut self.hasher);
        self.bytes += CELL_BYTES + cell.map_or(0, str::len) as u64;
        self.columns[index].append_option(cell);
    }
}

/// A transaction in which nothing is changed and nothing hangs, times are in UTC and in a form that a column of timestamps is
/// read from, and no digit of a number is left out.
///
/// All of it ends with the transaction: behind a pooler, the connection is somebody else's next.
fn begin(read_timeout: Duration) -> String {
    let timeout_ms = read_timeout.as_millis();
    format!(
        "BEGIN TRANSACTION READ ONLY; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'; \
         SET LOCAL extra_float_digits = 1; SET LOCAL statement_timeout = {timeout_ms}; \
         SET LOCAL idle_in_transaction_session_timeout = {timeout_ms}"
    )
}
