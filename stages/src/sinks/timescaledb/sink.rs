//! The running sink: one connection, one transaction a group.
//!
//! After any error but a bad row the connection is dropped, and the next attempt makes a new one:
//! what state it was in need never be known.

use std::time::Duration;

use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use async_trait::async_trait;
use pipeline_engine::Counter;
use pipeline_engine::dlq::LetterStore;
use pipeline_engine::stage::{Fault, Group, Sink, StageError};

use super::connect::Database;
use super::letters::{LetterColumns, TableLetters};
use super::server::Server;
use super::session::{Session, Skipped, Statements};
use super::sql_type::SqlType;
use super::table::Table;
use super::{error, server};

/// See [`super::TimescaleDbConfig`].
pub(super) struct TimescaleDb {
    pub database: Database,
    pub table: Table,
    /// Where the parts of a dead letter are stored, if the sink stores dead letters.
    pub letters: Option<LetterColumns>,
    pub pipeline: String,
    pub layout: Layout,
    pub statements: Statements,
    pub create: bool,
    pub write_timeout: Duration,
    /// `None` before the first connection and after a failure. Taken out while it is used, so that
    /// a dropped future drops the connection in the middle of its transaction.
    pub session: Option<Session>,
    pub duplicates: Counter,
    pub conflicts: Counter,
    pub reconnects: Counter,
}

#[async_trait]
impl Sink for TimescaleDb {
    async fn open(&mut self) -> Result<(), StageError> {
        let session = self.connect(self.create).await?;
        session.server().announce(&self.table.sql_name());
        self.session = Some(session);
        Ok(())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        let rows = self.layout.rows_of(group)?;
        let session = match self.session.take() {
            Some(session) if session.is_open() => session,
            _ => {
                self.reconnects.increment();
                self.connect(false).await?
            }
        };
        let limit = self.write_timeout;
        let late = || StageError::transient(format!("writing to {} took longer than {limit:?}", self.table.sql_name()));
        let stored = tokio::time::timeout(limit, session.store(&self.statements, &rows)).await.map_err(|_| late())?;
        let error = match stored {
            Ok(skipped) => {
                self.count(skipped);
                self.session = Some(session);
                return Ok(());
            }
            Err(error) => error,
        };
        let error = error::while_writing(error, &self.table.sql_name());
        // The engine now sends halves of the group: not worth a new connection each.
        if error.fault() == Fault::Data
            && let Ok(Ok(())) = tokio::time::timeout(limit, session.roll_back()).await
        {
            self.session = Some(session);
        }
        Err(error)
    }

    async fn probe(&mut self) -> Result<String, StageError> {
        let link = self.database.connect().await?;
        let server = Server::identify(&link.client).await?;
        if self.create && !self.table.exists(&link.client).await? {
            return Ok(format!("{server}; table {} will be created", self.table.sql_name()));
        }
        self.table.check(&link.client, &server).await?;
        Ok(format!("{server}; table {} fits", self.table.sql_name()))
    }

    fn dead_letters(&self) -> Option<Box<dyn LetterStore>> {
        let columns = self.letters.as_ref()?;
        Some(Box::new(TableLetters::new(&self.database, &self.table, columns, &self.pipeline)))
    }

    async fn close(&mut self) -> Result<(), StageError> {
        if let Some(session) = self.session.take() {
            // All rows are committed: a server that does not answer the goodbye changes nothing.
            drop(tokio::time::timeout(Duration::from_secs(5), session.close()).await);
        }
        Ok(())
    }
}

impl TimescaleDb {
    fn count(&self, skipped: Skipped) {
        self.duplicates.add(skipped.duplicates);
        self.conflicts.add(skipped.conflicts);
        if skipped.conflicts > 0 {
            tracing::warn!(
                table = self.table.sql_name(),
                rows = skipped.conflicts,
                "rows have the key of a stored row and other values; the stored ones stay. A column that tells such \
                 rows apart belongs in `key`"
            );
        }
    }

    /// A session with a table that fits. It is compared at every connection: the server may be
    /// another one since, or the table altered.
    async fn connect(&self, create: bool) -> Result<Session, StageError> {
        let link = self.database.connect().await?;
        let limit = self.write_timeout;
        let late = || StageError::transient(format!("{} did not answer within {limit:?}", self.database));
        tokio::time::timeout(limit, async {
            server::settle_session(&link.client, limit).await?;
            let server = Server::identify(&link.client).await?;
            if create && !self.table.exists(&link.client).await? {
                self.table.create(&link.client, &server).await?;
            }
            self.table.check(&link.client, &server).await?;
            Session::prepare(link, server, &self.statements).await
        })
        .await
        .map_err(|_| late())?
    }
}

/// How rows of the input become rows of the table.
pub(super) struct Layout {
    /// Stored columns of the input, by index.
    pub stored: Vec<usize>,
    /// Their schema.
    pub schema: SchemaRef,
    pub types: Vec<SqlType>,
    /// The key, as indices of stored columns.
    pub key: Vec<usize>,
}

/// A group ready to be written.
pub(super) struct StoredRows {
    pub rows: RecordBatch,
    pub types: Vec<SqlType>,
    /// The order to write them in.
    pub order: Vec<u32>,
}

impl Layout {
    fn rows_of(&self, group: &Group) -> Result<StoredRows, ArrowError> {
        let batches = group.batches().iter().map(|batch| batch.rows.project(&self.stored));
        let rows = concat_batches(&self.schema, &batches.collect::<Result<Vec<_>, _>>()?)?;
        let order = sorted(&rows, &self.key)?;
        Ok(StoredRows { rows, types: self.types.clone(), order })
    }
}

/// Rows by their key; rows of the same key in order of arrival, so that the first is the one kept.
fn sorted(rows: &RecordBatch, key: &[usize]) -> Result<Vec<u32>, ArrowError> {
    let mut order: Vec<u32> = (0..u32::try_from(rows.num_rows()).expect("a group is bounded")).collect();
    if key.is_empty() {
        return Ok(order);
    }
    let columns = rows.project(key)?;
    let fields = columns.schema().fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
    let keys = RowConverter::new(fields)?.convert_columns(columns.columns())?;
    order.sort_by(|left, right| keys.row(*left as usize).cmp(&keys.row(*right as usize)));
    Ok(order)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray, TimestampMicrosecondArray};

    use super::*;

    #[test]
    fn rows_are_written_by_key_and_the_first_of_a_key_comes_first() {
        let columns: [(&str, ArrayRef); 3] = [
            ("value", Arc::new(StringArray::from(vec!["z", "y", "x", "w", "v"]))),
            ("device", Arc::new(StringArray::from(vec!["b", "a", "b", "a", "a"]))),
            ("time", Arc::new(TimestampMicrosecondArray::from(vec![5, 7, -5, -7, 7]))),
        ];
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        assert_eq!(sorted(&rows, &[1, 2]).unwrap(), [3, 1, 4, 2, 0]);
        assert_eq!(sorted(&rows, &[]).unwrap(), [0, 1, 2, 3, 4]);
    }
}
