//! The running sink: one connection, one transaction a group.
//!
//! After any error but a bad row the connection is dropped, and the next attempt makes a new one:
//! what state it was in need never be known.

use std::any::Any;
use std::time::Duration;

use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use async_trait::async_trait;
use pipeline_engine::Counter;
use pipeline_engine::dlq::LetterStore;
use pipeline_engine::far_end::FarEnd;
use pipeline_engine::stage::{
    Account, Adopted, Committed, Examination, Fault, Group, SchemaComparison, Sharing, Sink, StageError,
};

use super::claims::Claims;
use super::declared::{DeclaredTable, Upkeep};
use super::examine;
use super::far_end::TableEnd;
use super::fence::Fence;
use super::late::{self, Lanes};
use super::ledger::Ledger;
use super::letters::{LetterColumns, TableLetters};
use super::nature::Nature;
use super::server;
use super::server::Server;
use super::session::{Session, Statements};
use super::sql_type::SqlType;
use super::store::{Stored, StoredRows, Writer};
use super::table::Table;
use crate::postgres::Database;
use crate::postgres::fault::while_opening;

/// A claim waits for a group of the last owner, and ends a session that does not come to an end.
const ADOPT_PATIENCE: u32 = 4;

/// See [`super::TimescaleDbConfig`].
pub(super) struct TimescaleDb {
    pub database: Database,
    pub table: Table,
    /// Where the parts of a dead letter are stored, if the sink stores dead letters.
    pub letters: Option<LetterColumns>,
    pub pipeline: String,
    pub layout: Layout,
    pub statements: Statements,
    pub ledger: Ledger,
    pub claims: Claims,
    pub fence: Fence,
    /// The run goes on where an earlier one has ended: the sink keeps its positions, and nobody else may
    /// store by it meanwhile.
    pub keeps_positions: bool,
    /// Several workers store by it at once, each the partitions that it has claimed.
    pub is_shared: bool,
    /// For `pipeline db`.
    pub upkeep: Upkeep,
    /// The stored columns of the input, in the order of the table's.
    pub stored_names: Vec<String>,
    pub create: bool,
    pub direct_compress: bool,
    pub write_timeout: Duration,
    /// `None` before the first connection and after a failure. Taken out while it is used, so that
    /// a dropped future drops the connection in the middle of its transaction.
    pub session: Option<Session>,
    pub counters: Counters,
}

/// What the sink counts besides what the engine does.
pub(super) struct Counters {
    /// Rows that were there already, value for value.
    pub duplicates: Counter,
    /// Rows that lost their place to a later row of the same key.
    pub replaced: Counter,
    /// Rows that went by the lane for compressed chunks.
    pub late: Counter,
    /// Groups whose commit had lost its answer, and that turned out to be stored.
    pub resolved: Counter,
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

    fn time_column(&self) -> Option<usize> {
        let named = self.table.time.as_ref()?;
        let place = self.table.columns.iter().position(|column| column.name == *named)?;
        self.layout.stored.get(place).copied()
    }

    async fn committed(&mut self) -> Result<Vec<Committed>, StageError> {
        self.keeps_positions = true;
        let session = self.ready_session().await?;
        let committed = self.ledger.committed(session.client()).await?;
        self.session = Some(session);
        Ok(committed)
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        let rows = self.layout.rows_of(group)?;
        self.keeps_positions |= !group.advances().is_empty();
        let session = self.ready_session().await?;
        let limit = self.write_timeout;
        let table = self.table.sql_name();
        let writer = Writer {
            session: &session,
            statements: &self.statements,
            ledger: &self.ledger,
            claims: &self.claims,
            table: &table,
            limit,
        };
        let mut outcome = writer.store_within(limit, &rows, group, Lanes::usual(&rows)).await;
        if let Err(error) = &outcome
            && let Some(lanes) = writer.lanes_after(error, &self.table, &rows).await?
        {
            outcome = writer.store_within(limit.saturating_mul(late::PATIENCE), &rows, group, lanes).await;
        }
        match &outcome {
            Ok(stored) => {
                self.count(stored);
                self.session = Some(session);
            }
            Err(error) if !error.superseded_partitions().is_empty() => self.session = Some(session),
            // The engine sends the rest of the group next: not worth a new connection.
            Err(error) if error.fault() == Fault::Data => {
                if let Ok(Ok(())) = tokio::time::timeout(limit, session.roll_back()).await {
                    self.session = Some(session);
                }
            }
            Err(_) => {}
        }
        outcome.map(drop)
    }

    fn sharing(&self) -> Sharing {
        Sharing::ExactlyOnce { keeps_checkpoints: true }
    }

    async fn adopt(&mut self, partition: &str, tenure: u64, parents: &[String]) -> Result<Adopted, StageError> {
        self.keeps_positions = true;
        self.is_shared = true;
        let session = self.ready_session().await?;
        let limit = self.write_timeout.saturating_mul(ADOPT_PATIENCE);
        let late = |_| Err(StageError::transient(format!("{} did not answer within {limit:?}", self.database)));
        let adopting = self.claims.adopt(session.client(), &self.ledger, partition, tenure, parents);
        let adopted = tokio::time::timeout(limit, adopting).await.unwrap_or_else(late);
        // After another error nothing is known of its transaction.
        let is_clean = adopted.as_ref().map_or_else(|error| !error.superseded_partitions().is_empty(), |_| true);
        self.session = Some(session).filter(|_| is_clean);
        adopted
    }

    async fn keep_checkpoint(&mut self, partition: &str, tenure: u64, checkpoint: &[u8]) -> Result<(), StageError> {
        let session = self.ready_session().await?;
        let limit = self.write_timeout;
        let late = |_| Err(StageError::transient(format!("{} did not answer within {limit:?}", self.database)));
        let keeping = self.claims.keep(session.client(), partition, tenure, checkpoint);
        let kept = tokio::time::timeout(limit, keeping).await.unwrap_or_else(late);
        let is_clean = kept.as_ref().map_or_else(|error| !error.superseded_partitions().is_empty(), |()| true);
        self.session = Some(session).filter(|_| is_clean);
        kept
    }

    async fn forget(&mut self, partition: &str, heirs: &[String]) -> Result<bool, StageError> {
        self.keeps_positions = true;
        self.is_shared = true;
        let session = self.ready_session().await?;
        let limit = self.write_timeout;
        let late = |_| Err(StageError::transient(format!("{} did not answer within {limit:?}", self.database)));
        let forgetting = self.claims.forget(session.client(), partition, heirs);
        let forgotten = tokio::time::timeout(limit, forgetting).await.unwrap_or_else(late);
        self.session = Some(session).filter(|_| forgotten.is_ok());
        forgotten
    }

    async fn probe(&mut self) -> Result<String, StageError> {
        let link = self.database.connect().await?;
        let (client, table) = (&link.client, &self.table);
        let server = Server::identify(client).await?;
        if self.create && !table.exists(client).await? {
            return Ok(format!("{server}; table {} will be created", table.sql_name()));
        }
        table.check(client, &server).await?;
        let nature = Nature::of(table, client, &server).await?;
        if self.direct_compress {
            nature.compress_directly(client, &server, table).await?;
        }
        let direct = nature.on_direct_compress(&server, self.direct_compress);
        Ok(format!("{server}; table {} fits: {nature}, {}; {direct}", table.sql_name(), table.key_text()))
    }

    async fn examine(&mut self, report: &Examination) {
        examine::examine(self, report).await;
    }

    async fn compare_schema(&mut self) -> Result<Option<SchemaComparison>, StageError> {
        let link = self.database.connect().await?;
        let comparison = self.table.compare(&link.client).await?;
        let against = || format!("table {}, which is not there yet", self.table.sql_name());
        Ok(Some(comparison.unwrap_or_else(|| SchemaComparison { against: against(), differences: Vec::new() })))
    }

    async fn account(&mut self) -> Result<Option<Account>, StageError> {
        let link = self.database.connect().await?;
        if !self.table.exists(&link.client).await? {
            return Ok(None);
        }
        // Both of one moment, though somebody stores meanwhile.
        let failed = |error| while_opening(error, "can't read what is stored");
        link.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(failed)?;
        let record = self.ledger.record(&link.client).await?;
        let sql = format!("SELECT count(*) FROM {}", self.table.sql_name());
        let rows: i64 = link.client.query_one(&sql, &[]).await.map_err(failed)?.get(0);
        let rows_found = u64::try_from(rows).unwrap_or(0);
        let found_in = format!("table {}", self.table.sql_name());
        let (positions, rows) = record.map_or((Vec::new(), None), |(positions, rows)| (positions, Some(rows)));
        // How many rows one row of a device has replaced says nothing of how many should be there.
        let rows_recorded = rows.filter(|_| self.table.newest_by.is_none());
        Ok(Some(Account { positions, rows_recorded, rows_found, found_in, contradictions: Vec::new() }))
    }

    fn declared(&self) -> Option<Box<dyn Any + Send>> {
        Some(Box::new(DeclaredTable {
            database: self.database.clone(),
            table: self.table.clone(),
            stored_names: self.stored_names.clone(),
            upkeep: self.upkeep.clone(),
            ledger: self.ledger.clone(),
            claims: self.claims.clone(),
            keeps_letters: self.letters.is_some(),
        }))
    }

    fn dead_letters(&self) -> Option<Box<dyn LetterStore>> {
        let columns = self.letters.as_ref()?;
        Some(Box::new(TableLetters::new(&self.database, &self.table, columns, &self.pipeline)))
    }

    fn far_end(&self) -> Option<Box<dyn FarEnd>> {
        Some(Box::new(TableEnd::of(self)))
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
    fn count(&self, stored: &Stored) {
        self.counters.duplicates.add(stored.duplicates);
        self.counters.replaced.add(stored.replaced);
        self.counters.late.add(stored.late);
        if stored.before {
            self.counters.resolved.increment();
        }
    }

    /// A session that may store: the one there is, or a new one.
    async fn ready_session(&mut self) -> Result<Session, StageError> {
        let mut session = match self.session.take() {
            Some(session) if session.is_open() => session,
            _ => {
                self.counters.reconnects.increment();
                self.connect(false).await?
            }
        };
        if self.keeps_positions && session.move_on.is_none() {
            let limit = self.write_timeout;
            let late = || StageError::transient(format!("{} did not answer within {limit:?}", self.database));
            let ready = tokio::time::timeout(limit, async {
                let ledger = self.ledger.table().ensure(session.client()).await?;
                self.fence.take(session.client(), ledger, self.is_shared).await?;
                if self.is_shared {
                    session.keep_claims(&self.claims).await?;
                }
                session.keep_positions(&self.ledger).await
            });
            ready.await.map_err(|_| late())??;
        }
        Ok(session)
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
            if self.direct_compress {
                let nature = Nature::of(&self.table, &link.client, &server).await?;
                nature.compress_directly(&link.client, &server, &self.table).await?;
            }
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

impl Layout {
    fn rows_of(&self, group: &Group) -> Result<StoredRows, ArrowError> {
        let batches = group.batches().iter().map(|batch| batch.rows.project(&self.stored));
        let rows = concat_batches(&self.schema, &batches.collect::<Result<Vec<_>, _>>()?)?;
        let order = sorted(&rows, &self.key)?;
        let starts = group.batches().iter().scan(0, |next, batch| {
            let start = *next;
            *next += batch.rows.num_rows();
            Some(start)
        });
        Ok(StoredRows { rows, types: self.types.clone(), order, starts: starts.collect() })
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
