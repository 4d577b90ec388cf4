//! How far the sink has come, in a table beside its rows.
//!
//! `_pipeline_ledger` has one row for each input of a sink and each partition of a source that reach it. A
//! group moves these rows on in its own transaction, from where the run believes them to be to where the
//! group takes them. So a row of the input is stored exactly as often as its position is passed: once. A
//! commit whose answer was lost is known by the position it left, and a run that somebody else has
//! overtaken finds another position than it left and stops.

use std::collections::BTreeMap;

use pipeline_engine::stage::{Advance, Committed, Group, Position, StageError};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row, Statement};

use super::own_table::OwnTable;
use super::table::Table;
use crate::postgres::fault::while_opening;

/// The table's name, in the schema of the sink's table.
pub(crate) const NAME: &str = "_pipeline_ledger";
const COLUMNS: &str = "pipeline text, sink text, input text, partition text, position text NOT NULL, \
                       rows_total bigint NOT NULL, updated_at timestamp with time zone NOT NULL DEFAULT now(), \
                       PRIMARY KEY (pipeline, sink, input, partition)";

/// The ledger, as one sink of one pipeline uses it.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    own: OwnTable,
    pipeline: String,
    sink: String,
}

/// What became of the positions of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// They are moved on, by the transaction under way.
    Moved,
    /// Not all of them were where the run believes them to be: none of this may be committed.
    Elsewhere,
}

impl Ledger {
    pub fn beside(table: &Table, pipeline: &str, sink: &str) -> Self {
        let own = OwnTable::beside(table, NAME, COLUMNS, "the sink's positions are kept");
        Self { own, pipeline: pipeline.to_owned(), sink: sink.to_owned() }
    }

    /// Its table.
    pub fn table(&self) -> &OwnTable {
        &self.own
    }

    /// What the ledger says of this sink.
    pub async fn committed(&self, client: &Client) -> Result<Vec<Committed>, StageError> {
        let sql = format!("SELECT input, partition, position FROM {} WHERE pipeline = $1 AND sink = $2", self.own.name);
        let failed = |error| while_opening(error, &format!("can't read {}", self.own.name));
        let rows = client.query(&sql, &[&self.pipeline, &self.sink]).await.map_err(failed)?;
        rows.iter().map(|row| self.entry(row)).collect()
    }

    /// What the ledger says of this sink, with the rows that it was given in all; `None` if it has none.
    pub async fn record(&self, client: &Client) -> Result<Option<(Vec<Committed>, u64)>, StageError> {
        if self.own.oid(client).await?.is_none() {
            return Ok(None);
        }
        let positions = self.committed(client).await?;
        let sql = format!(
            "SELECT coalesce(sum(rows_total), 0)::int8 FROM {} WHERE pipeline = $1 AND sink = $2",
            self.own.name
        );
        let failed = |error| while_opening(error, &format!("can't read {}", self.own.name));
        let rows: i64 = client.query_one(&sql, &[&self.pipeline, &self.sink]).await.map_err(failed)?.get(0);
        Ok((!positions.is_empty()).then(|| (positions, u64::try_from(rows).unwrap_or(0))))
    }

    fn entry(&self, row: &Row) -> Result<Committed, StageError> {
        let (input, partition): (String, String) = (row.get(0), row.get(1));
        let position: Position = row.get::<_, &str>(2).parse().map_err(|error| {
            StageError::permanent(format!("{} was changed by hand, for \"{input}\" of \"{partition}\"", self.own.name))
                .because(error)
                .hint("Put the position back that was there, a whole number.")
        })?;
        Ok(Committed { input, partition, position })
    }

    /// Prepares what [`Ledger::move_on`] runs.
    pub async fn prepare(&self, client: &Client) -> Result<Statement, StageError> {
        let sql = format!(
            "WITH wanted AS (SELECT * FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::int8[]) \
                AS wanted (input, partition, before, after, rows)), \
             moved AS (UPDATE {0} AS ledger SET position = after, rows_total = rows_total + rows, updated_at = now() \
                FROM wanted WHERE ledger.pipeline = $1 AND ledger.sink = $2 AND ledger.input = wanted.input \
                AND ledger.partition = wanted.partition AND ledger.position = before RETURNING 1), \
             made AS (INSERT INTO {0} (pipeline, sink, input, partition, position, rows_total) \
                SELECT $1, $2, input, partition, after, rows FROM wanted WHERE before IS NULL \
                ON CONFLICT (pipeline, sink, input, partition) DO NOTHING RETURNING 1) \
             SELECT (SELECT count(*) FROM moved) + (SELECT count(*) FROM made)",
            self.own.name
        );
        let failed = |error| while_opening(error, &format!("can't prepare the change of {}", self.own.name));
        client.prepare(&sql).await.map_err(failed)
    }

    /// Moves the positions of a group on, each from where the run believes it to be.
    pub async fn move_on(&self, client: &Client, prepared: &Statement, group: &Group) -> Result<Standing, Error> {
        let advances = group.advances();
        let inputs: Vec<&str> = advances.iter().map(|advance| advance.input.as_str()).collect();
        let partitions: Vec<&str> = advances.iter().map(|advance| advance.partition.as_str()).collect();
        let before: Vec<Option<String>> =
            advances.iter().map(|advance| advance.from.as_ref().map(ToString::to_string)).collect();
        let after: Vec<String> = advances.iter().map(|advance| advance.to.to_string()).collect();
        let rows = rows_by_advance(group);
        let values: [&(dyn ToSql + Sync); 7] =
            [&self.pipeline, &self.sink, &inputs, &partitions, &before, &after, &rows];
        let changed: i64 = client.query_one(prepared, &values).await?.get(0);
        Ok(if usize::try_from(changed) == Ok(advances.len()) { Standing::Moved } else { Standing::Elsewhere })
    }

    /// Whether a group whose positions are elsewhere is stored already. Called outside its transaction.
    ///
    /// # Errors
    /// It is not: what there is and what there should be.
    pub async fn is_stored(&self, client: &Client, advances: &[Advance]) -> Result<bool, StageError> {
        let committed = self.committed(client).await?;
        let found: BTreeMap<(&str, &str), Position> =
            committed.iter().map(|entry| ((&*entry.input, &*entry.partition), entry.position)).collect();
        let stands_at = |advance: &Advance| found.get(&(&*advance.input, &*advance.partition)).copied();
        let (done, open): (Vec<_>, Vec<_>) =
            advances.iter().partition(|advance| stands_at(advance).is_some_and(|position| position >= advance.to));
        // A group moves all of its positions or none: one that is half done is not this run's doing.
        let strange = open.iter().find(|advance| stands_at(advance) != advance.from).or(done.first());
        match strange {
            Some(advance) if !open.is_empty() => Err(self.overtaken(advance, stands_at(advance))),
            _ => Ok(open.is_empty()),
        }
    }

    fn overtaken(&self, advance: &Advance, stands_at: Option<Position>) -> StageError {
        let Advance { input, partition, from, .. } = advance;
        let shown = |position: Option<Position>| position.map_or("nothing".to_owned(), |position| position.to_string());
        let place = format!("\"{input}\" of \"{partition}\"");
        let (there, here) = (shown(stands_at), shown(*from));
        let message = format!("this run has stored {place} up to {here}, and {} says {there}", self.own.name);
        StageError::permanent(message).hint(if stands_at < *from {
            "The database was restored, or the ledger changed by hand. Start the pipeline again: it goes on from what \
             the ledger says, as far as its source still has it."
        } else {
            "Another run of this pipeline stores there. Stop one of the two, and start the other again: it goes on from \
             what the ledger says."
        })
    }
}

/// The rows that each position stands for. A partition that reaches the sink by several inputs has all of
/// its rows with the first of them.
fn rows_by_advance(group: &Group) -> Vec<i64> {
    let advances = group.advances();
    let mut rows = vec![0; advances.len()];
    for batch in group.batches() {
        let partition = batch.ack().span().map(|(partition, _)| partition);
        let place = advances.iter().position(|advance| Some(&*advance.partition) == partition).unwrap_or(0);
        if let Some(rows) = rows.get_mut(place) {
            *rows += i64::try_from(batch.rows.num_rows()).unwrap_or(i64::MAX);
        }
    }
    rows
}
