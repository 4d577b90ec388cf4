//! What is in the table, looked at from beside a run: marked rows counted and removed, queries measured.
//!
//! On a connection of its own, which a run does not notice. Rows are found by the devices' whole names, which the index of the
//! table's key begins with as a rule: so looking often costs the database little, however large the table is.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::TryStreamExt;
use pipeline_engine::far_end::{FarEnd, Found, MARK, Marked};
use pipeline_engine::stage::StageError;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::sink::TimescaleDb;
use super::sql_type::SqlType;
use super::table::Column;
use crate::postgres::fault::while_opening;
use crate::postgres::{Database, Link};

/// A query of a dashboard that takes longer is not waited for.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct TableEnd {
    database: Database,
    table: String,
    /// What a column of the input is called in the table, and its type.
    columns: Vec<(String, Column)>,
    keeps_every_row: bool,
    /// The column by which chunks can be left out.
    time: Option<String>,
    link: Option<Link>,
}

impl TableEnd {
    pub(super) fn of(sink: &TimescaleDb) -> Self {
        let inputs = sink.layout.schema.fields().iter().map(|field| field.name().clone());
        Self {
            database: sink.database.clone(),
            table: sink.table.sql_name(),
            columns: inputs.zip(sink.table.columns.iter().cloned()).collect(),
            keeps_every_row: sink.table.newest_by.is_none(),
            time: sink.table.time.clone(),
            link: None,
        }
    }

    async fn client(&mut self) -> Result<&Client, StageError> {
        if self.link.as_ref().is_none_or(|link| link.client.is_closed()) {
            self.link = Some(self.database.connect().await?);
        }
        self.link.as_ref().map(|link| &link.client).ok_or_else(|| StageError::bug("a connection is gone"))
    }

    fn column(&self, input: &str) -> Result<&Column, StageError> {
        let found = self.columns.iter().find(|(name, _)| name == input).map(|(_, column)| column);
        found.ok_or_else(|| {
            StageError::permanent(format!("table {} stores no column \"{input}\"", self.table))
                .hint("Name a column that every sink gets as it was sent.")
        })
    }

    /// The column as a whole number, as SQL.
    fn number(&self, input: &str) -> Result<String, StageError> {
        let column = self.column(input)?;
        let name = format!("\"{}\"", column.name);
        match column.kind {
            SqlType::Timestamptz => Ok(format!("(extract(epoch FROM {name}) * 1000000)::int8")),
            SqlType::Int2 | SqlType::Int4 | SqlType::Int8 => Ok(format!("{name}::int8")),
            _ => Err(StageError::permanent(format!("\"{input}\" tells no rows apart: it is {:?}", column.kind))),
        }
    }

    fn failed(&self, verb: &str) -> impl Fn(tokio_postgres::Error) -> StageError + Send + 'static {
        let doing = format!("can't {verb} {}", self.table);
        move |error| while_opening(error, &doing)
    }
}

#[async_trait]
impl FarEnd for TableEnd {
    fn place(&self) -> String {
        format!("table {} of {}", self.table, self.database)
    }

    async fn find(&mut self, marked: &Marked) -> Result<Found, StageError> {
        let device = format!("\"{}\"", self.column(&marked.device_column)?.name);
        let number = self.number(&marked.number_column)?;
        // Rows are of now, but for the devices' clocks and for those that are sent late on purpose.
        let recent = self.time.as_ref().map_or_else(String::new, |time| {
            format!(" AND \"{time}\" >= 'epoch'::timestamptz + {} * interval '1 microsecond'", marked.since_us)
        });
        let sql = format!(
            "SELECT {device}, {number}, count(*) FROM {} WHERE {device} = ANY($1){recent} AND {number} IS NOT NULL \
             GROUP BY 1, 2",
            self.table
        );
        let failed = self.failed("look for rows in");
        let client = self.client().await?;
        let rows = client.query_raw(&sql, [&marked.devices]).await.map_err(&failed)?;
        let mut rows = std::pin::pin!(rows);
        let mut found = Found::new();
        while let Some(row) = rows.try_next().await.map_err(&failed)? {
            let count = u64::try_from(row.get::<_, i64>(2)).unwrap_or(0);
            found.entry(row.get(0)).or_default().insert(row.get(1), count);
        }
        Ok(found)
    }

    async fn remove(&mut self, device_column: &str, devices: Option<&[String]>) -> Result<Option<u64>, StageError> {
        let device = format!("\"{}\"", self.column(device_column)?.name);
        let (condition, names) = match devices {
            Some(devices) => (format!("{device} = ANY($1)"), devices.to_vec()),
            None => (format!("starts_with({device}, ($1::text[])[1])"), vec![MARK.to_owned()]),
        };
        let sql = format!("DELETE FROM {} WHERE {condition}", self.table);
        let failed = self.failed("remove rows from");
        self.client().await?.execute(&sql, &[&names]).await.map(Some).map_err(failed)
    }

    fn keeps_every_row(&self) -> bool {
        self.keeps_every_row
    }

    fn speaks_sql(&self) -> bool {
        true
    }

    async fn time_query(&mut self, sql: &str) -> Result<Duration, StageError> {
        let failed = self.failed("measure a query of the database of");
        let client = self.client().await?;
        let started = Instant::now();
        let measured = tokio::time::timeout(QUERY_TIMEOUT, async {
            // Whatever the statement says, it changes nothing.
            client.batch_execute("BEGIN READ ONLY").await?;
            let began = started.elapsed();
            let rows: Vec<SimpleQueryMessage> = client.simple_query(sql).await?;
            drop(rows);
            let took = started.elapsed() - began;
            client.batch_execute("ROLLBACK").await?;
            Ok(took)
        });
        let outcome = match measured.await {
            Ok(outcome) => outcome.map_err(failed),
            // At least so long; left out it would count for nothing, and the slowest are what matters.
            Err(_) => {
                self.link = None;
                return Ok(QUERY_TIMEOUT);
            }
        };
        if outcome.is_err() {
            // Within a transaction that has failed, or with a query that still runs.
            self.link = None;
        }
        outcome
    }
}
