//! One group, one transaction: its rows and how far they take the sink.
//!
//! Rows go in by one COPY. Where a key is taken they go again by way of a temporary table, and where a row
//! is bad the group is halved until it is alone; both within the transaction, behind a savepoint. What is
//! refused in the end is named, and nothing is stored: the engine writes the rest once those rows are kept
//! elsewhere.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int32Array};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::{SinkExt, pin_mut};
use pipeline_engine::stage::{Fault, Group, Refused, StageError};
use tokio::time::{Duration, Instant};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, CopyInSink, Error, ToStatement};

use super::claims::Claims;
use super::copy::Chunks;
use super::late::{self, Lanes};
use super::ledger::{Ledger, Standing};
use super::session::{Session, Statements};
use super::sql_type::SqlType;
use super::staging::{Staging, Taken, TimeRange};
use super::table::Table;
use crate::postgres::fault::{fault_of, while_writing};

/// More rows than this are not looked for at once: so many savepoints make a server slow, and the dead
/// letters of these are stored before the next are found.
const REFUSED_MAX: usize = 1_000;

/// A group ready to be written.
pub(super) struct StoredRows {
    pub rows: RecordBatch,
    pub types: Vec<SqlType>,
    /// The order to write them in.
    pub order: Vec<u32>,
    /// Where each batch of the group begins.
    pub starts: Vec<usize>,
}

/// What became of a group.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub duplicates: u64,
    pub replaced: u64,
    /// Rows that went by the lane for compressed chunks.
    pub late: u64,
    /// Nothing was stored now, since all of it was before: its commit had lost its answer.
    pub before: bool,
}

/// What a sink stores a group by.
pub(super) struct Writer<'a> {
    pub session: &'a Session,
    pub statements: &'a Statements,
    pub ledger: &'a Ledger,
    pub claims: &'a Claims,
    /// As SQL.
    pub table: &'a str,
    /// How long a group may take.
    pub limit: Duration,
}

impl Writer<'_> {
    /// Stores a group in one transaction. After an error the transaction may still be open:
    /// [`Session::roll_back`], or drop the session.
    ///
    /// Not cancel safe: drop the session as well.
    async fn store(&self, rows: &StoredRows, group: &Group, lanes: Lanes) -> Result<Stored, StageError> {
        let client = self.session.client();
        let failed = |error| while_writing(error, self.table);
        if let Some(lost) = self.lost(group).await.map_err(failed)? {
            client.batch_execute("ROLLBACK").await.map_err(failed)?;
            return Err(StageError::superseded(lost));
        }
        if self.begin(group).await.map_err(failed)? == Standing::Elsewhere {
            client.batch_execute("ROLLBACK").await.map_err(failed)?;
            if self.ledger.is_stored(client, group.advances()).await? {
                return Ok(Stored { before: true, ..Stored::default() });
            }
            return Err(StageError::transient(format!("the positions of {} were in use", self.table)));
        }
        let late = lanes.late.len() as u64;
        let mut work = Work {
            writer: self,
            client,
            rows,
            started: Instant::now(),
            is_late: false,
            taken: Taken::default(),
            refused: Vec::new(),
        };
        work.store_all(lanes).await.map_err(failed)?;
        if !work.refused.is_empty() {
            client.batch_execute("ROLLBACK").await.map_err(failed)?;
            return Err(StageError::refused(rows.in_order(work.refused)));
        }
        // Lost from here on, the outcome is unknown: sent again, the ledger knows the group by its positions,
        // and without positions its rows turn out as duplicates.
        client.batch_execute("COMMIT").await.map_err(failed)?;
        let Taken { duplicates, replaced, .. } = work.taken;
        Ok(Stored { duplicates, replaced, late, before: false })
    }

    /// [`Writer::store`], for so long.
    pub async fn store_within(
        &self,
        limit: Duration,
        rows: &StoredRows,
        group: &Group,
        lanes: Lanes,
    ) -> Result<Stored, StageError> {
        let late = || StageError::transient(format!("writing to {} took longer than {limit:?}", self.table));
        tokio::time::timeout(limit, self.store(rows, group, lanes)).await.map_err(|_| late())?
    }

    /// The lanes by which to write a group again that has failed with this error, if they are worth it.
    pub async fn lanes_after(
        &self,
        error: &StageError,
        table: &Table,
        rows: &StoredRows,
    ) -> Result<Option<Lanes>, StageError> {
        if !late::may_be_late(error) {
            return Ok(None);
        }
        let lost = |_| StageError::transient(format!("{} did not answer within {:?}", self.table, self.limit));
        let lanes = async {
            self.session.roll_back().await.map_err(|error| while_writing(error, self.table))?;
            Lanes::after(error, self.session.client(), table, rows).await
        };
        tokio::time::timeout(self.limit, lanes).await.map_err(lost)?
    }

    /// Begins the transaction of a group of which another worker could have something, and tells what that has.
    async fn lost(&self, group: &Group) -> Result<Option<Vec<String>>, Error> {
        let claims: Vec<(&str, u64)> = group.claims().into_iter().collect();
        let Some(statements) = self.session.claims.as_ref().filter(|_| !claims.is_empty()) else { return Ok(None) };
        let client = self.session.client();
        let (begun, lost) = futures::join!(
            client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED"),
            self.claims.lost(client, statements, &claims),
        );
        begun?;
        let lost = lost?;
        Ok((!lost.is_empty()).then_some(lost))
    }

    /// Begins the transaction, moves the positions on, and sets the savepoint of the first part: sent
    /// together, so that the ledger costs no round trip.
    async fn begin(&self, group: &Group) -> Result<Standing, Error> {
        let client = self.session.client();
        // That of a group with claims has begun.
        let begin = if group.claims().is_empty() { "BEGIN" } else { "" };
        let Some(move_on) = self.session.move_on.as_ref().filter(|_| !group.advances().is_empty()) else {
            client.batch_execute(&format!("{begin}; SAVEPOINT part")).await?;
            return Ok(Standing::Moved);
        };
        let (begun, standing, saved) = futures::join!(
            client.batch_execute(begin),
            self.ledger.move_on(client, move_on, group),
            client.batch_execute("SAVEPOINT part"),
        );
        begun?;
        let standing = standing?;
        saved?;
        Ok(standing)
    }
}

/// A group on its way into the table.
struct Work<'a> {
    writer: &'a Writer<'a>,
    client: &'a Client,
    rows: &'a StoredRows,
    started: Instant,
    /// The parts that are stored now are those of the late lane.
    is_late: bool,
    taken: Taken,
    /// By row of the group.
    refused: Vec<(usize, String, String)>,
}

impl Work<'_> {
    /// Puts all rows in but those that are refused.
    async fn store_all(&mut self, lanes: Lanes) -> Result<(), Error> {
        self.store_lane(lanes.usual).await?;
        if lanes.late.is_empty() || self.has_enough() {
            return Ok(());
        }
        let limit = self.writer.limit.saturating_mul(late::PATIENCE);
        // The largest that the server takes.
        let limit_ms = limit.as_millis().min(i32::MAX as u128);
        let settings = format!("SET LOCAL statement_timeout = {limit_ms}; {}", late::UNLIMITED);
        self.client.batch_execute(&format!("RELEASE SAVEPOINT part; {settings}; SAVEPOINT part")).await?;
        self.is_late = true;
        self.store_lane(lanes.late).await
    }

    /// Part by part: a part with a bad row is halved.
    async fn store_lane(&mut self, rows: Vec<u32>) -> Result<(), Error> {
        let mut parts = vec![rows];
        while let Some(part) = parts.pop() {
            match self.store_part(&part).await {
                Ok(()) if parts.is_empty() => {}
                // Good rows stay where they are: the next ones may break a rule together with them.
                Ok(()) => self.client.batch_execute("RELEASE SAVEPOINT part; SAVEPOINT part").await?,
                Err(error) if self.is_of_rows(&error) => {
                    self.client.batch_execute("ROLLBACK TO SAVEPOINT part").await?;
                    match part[..] {
                        [row] => self.refuse(row, error),
                        _ => {
                            let (left, right) = part.split_at(part.len() / 2);
                            parts.extend([right.to_vec(), left.to_vec()]);
                        }
                    }
                }
                Err(error) => return Err(error),
            }
            if self.has_enough() {
                break;
            }
        }
        Ok(())
    }

    /// Whether the error is due to what the rows hold.
    fn is_of_rows(&self, error: &Error) -> bool {
        let unsupported = error.code().is_some_and(|code| code.code() == late::UNSUPPORTED);
        fault_of(error) == Some(Fault::Data) || (self.is_late && unsupported)
    }

    /// What is refused by now goes out before more is looked for.
    fn has_enough(&self) -> bool {
        let late = self.started.elapsed() > self.writer.limit / 2;
        self.refused.len() >= REFUSED_MAX || (late && !self.refused.is_empty())
    }

    fn refuse(&mut self, row: u32, error: Error) {
        let error = while_writing(error, self.writer.table);
        self.refused.push((row as usize, error.outside_code().unwrap_or("refused").to_owned(), error.chain()));
    }

    /// Most groups hold no row that is there already, and a plain COPY is more than twice as fast as the way
    /// that can skip some: so that comes second.
    async fn store_part(&mut self, part: &[u32]) -> Result<(), Error> {
        if part.is_empty() {
            return Ok(());
        }
        let error = match self.copy(&self.writer.session.copy, &self.rows.rows, &self.rows.types, part).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match &self.writer.statements.staging {
            Some(staging) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                self.client.batch_execute("ROLLBACK TO SAVEPOINT part").await?;
                self.store_staged(staging, part).await
            }
            _ => Err(error),
        }
    }

    async fn store_staged(&mut self, staging: &Staging, part: &[u32]) -> Result<(), Error> {
        staging.clear(self.client).await?;
        let (rows, types) = self.rows.with_places(part);
        let copied = self.copy(staging.copy.as_str(), &rows, &types, part).await?;
        let range = staging.time.map(|column| self.rows.time_range(column, part));
        let taken = staging.store(self.client, copied, range).await?;
        self.taken.duplicates += taken.duplicates;
        self.taken.replaced += taken.replaced;
        for (place, columns) in taken.conflicts {
            let detail = format!("{} holds a row of the same key with other values in {columns}", self.writer.table);
            self.refused.push((part[place] as usize, "conflict".to_owned(), detail));
        }
        Ok(())
    }

    async fn copy<T: ToStatement + ?Sized>(
        &self,
        statement: &T,
        rows: &RecordBatch,
        types: &[SqlType],
        part: &[u32],
    ) -> Result<u64, Error> {
        let sink: CopyInSink<Bytes> = self.client.copy_in(statement).await?;
        pin_mut!(sink);
        for chunk in Chunks::new(rows, types, part) {
            sink.send(chunk).await?;
        }
        sink.finish().await
    }
}

impl StoredRows {
    /// The rows with another column: the place of each in a part.
    fn with_places(&self, part: &[u32]) -> (RecordBatch, Vec<SqlType>) {
        let mut places = vec![0; self.rows.num_rows()];
        for (place, row) in part.iter().enumerate() {
            places[*row as usize] = i32::try_from(place).expect("a group is bounded");
        }
        let places: ArrayRef = Arc::new(Int32Array::from(places));
        let schema = self.rows.schema();
        let named = schema.fields().iter().zip(self.rows.columns());
        let columns = named.map(|(field, column)| (field.name().clone(), column.clone(), true));
        let columns = columns.chain([("place in group".to_owned(), places, true)]);
        let rows = RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length");
        (rows, self.types.iter().copied().chain([SqlType::Int4]).collect())
    }

    /// The time in a column of timestamps that is never null.
    pub fn time(&self, column: usize, row: u32) -> i64 {
        self.rows.column(column).as_primitive::<TimestampMicrosecondType>().value(row as usize)
    }

    /// The first and the last time in a column that is never null, as the table may round them: to whole
    /// seconds at most. The part holds rows.
    fn time_range(&self, column: usize, part: &[u32]) -> TimeRange {
        const SECOND_US: i64 = 1_000_000;
        let times = || part.iter().map(|row| self.time(column, *row));
        let (first, last) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
        (first.saturating_sub(SECOND_US), last.saturating_add(SECOND_US))
    }

    /// Rows of the group as rows of its batches, in order.
    fn in_order(&self, mut rows: Vec<(usize, String, String)>) -> Vec<Refused> {
        rows.sort_unstable();
        let refused = rows.into_iter().map(|(row, reason, detail)| {
            let batch = self.starts.partition_point(|start| *start <= row) - 1;
            Refused { batch, row: row - self.starts[batch], reason, detail }
        });
        refused.collect()
    }
}
