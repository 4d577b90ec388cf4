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

use super::copy::Chunks;
use super::error::{fault_of, while_writing};
use super::ledger::{Ledger, Standing};
use super::session::{Session, Statements};
use super::sql_type::SqlType;
use super::staging::{Staging, Taken, TimeRange};

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
    /// Nothing was stored now, since all of it was before: its commit had lost its answer.
    pub before: bool,
}

/// What a sink stores a group by.
pub(super) struct Writer<'a> {
    pub session: &'a Session,
    pub statements: &'a Statements,
    pub ledger: &'a Ledger,
    /// As SQL.
    pub table: &'a str,
    /// Bad rows are looked for no longer than this once one is found.
    pub search_max: Duration,
}

impl Writer<'_> {
    /// Stores a group in one transaction. After an error the transaction may still be open:
    /// [`Session::roll_back`], or drop the session.
    ///
    /// Not cancel safe: drop the session as well.
    pub async fn store(&self, rows: &StoredRows, group: &Group) -> Result<Stored, StageError> {
        let client = self.session.client();
        let failed = |error| while_writing(error, self.table);
        if self.begin(group).await.map_err(failed)? == Standing::Elsewhere {
            client.batch_execute("ROLLBACK").await.map_err(failed)?;
            if self.ledger.is_stored(client, group.advances()).await? {
                return Ok(Stored { before: true, ..Stored::default() });
            }
            return Err(StageError::transient(format!("the positions of {} were in use", self.table)));
        }
        let mut work =
            Work { writer: self, client, rows, started: Instant::now(), taken: Taken::default(), refused: Vec::new() };
        work.store_all().await.map_err(failed)?;
        if !work.refused.is_empty() {
            client.batch_execute("ROLLBACK").await.map_err(failed)?;
            return Err(StageError::refused(rows.in_order(work.refused)));
        }
        // Lost from here on, the outcome is unknown: sent again, the ledger knows the group by its positions,
        // and without positions its rows turn out as duplicates.
        client.batch_execute("COMMIT").await.map_err(failed)?;
        Ok(Stored { duplicates: work.taken.duplicates, replaced: work.taken.replaced, before: false })
    }

    /// Begins the transaction, moves the positions on, and sets the savepoint of the first part: sent
    /// together, so that the ledger costs no round trip.
    async fn begin(&self, group: &Group) -> Result<Standing, Error> {
        let client = self.session.client();
        let Some(move_on) = self.session.move_on.as_ref().filter(|_| !group.advances().is_empty()) else {
            client.batch_execute("BEGIN; SAVEPOINT part").await?;
            return Ok(Standing::Moved);
        };
        let (begun, standing, saved) = futures::join!(
            client.batch_execute("BEGIN"),
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
    taken: Taken,
    /// By row of the group.
    refused: Vec<(usize, String, String)>,
}

impl Work<'_> {
    /// Puts all rows in but those that are refused, part by part.
    async fn store_all(&mut self) -> Result<(), Error> {
        let mut parts = vec![self.rows.order.clone()];
        while let Some(part) = parts.pop() {
            match self.store_part(&part).await {
                Ok(()) if parts.is_empty() => {}
                // Good rows stay where they are: the next ones may break a rule together with them.
                Ok(()) => self.client.batch_execute("RELEASE SAVEPOINT part; SAVEPOINT part").await?,
                Err(error) if fault_of(&error) == Some(Fault::Data) => {
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
            let late = self.started.elapsed() > self.writer.search_max;
            if self.refused.len() >= REFUSED_MAX || (late && !self.refused.is_empty()) {
                break;
            }
        }
        Ok(())
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

    /// The first and the last time in a column that is never null, as the table may round them: to whole
    /// seconds at most. The part holds rows.
    fn time_range(&self, column: usize, part: &[u32]) -> TimeRange {
        const SECOND_US: i64 = 1_000_000;
        let times = self.rows.column(column).as_primitive::<TimestampMicrosecondType>().values();
        let (first, last) = part.iter().fold((i64::MAX, i64::MIN), |(first, last), row| {
            let time = times[*row as usize];
            (first.min(time), last.max(time))
        });
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
