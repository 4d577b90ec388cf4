//! Who has which partition of a source that several workers share, in a table beside the sink's rows.
//!
//! `_pipeline_claims` has one row for each sink and each partition: the number of the tenure that may store, and the
//! checkpoint that the next one goes on from. Every group looks its tenures up in its own transaction, behind a lock that
//! a new tenure takes for itself while it puts its number there. So what a worker still has in its hands that was paused
//! past its lease is either committed before the next one reads how far the sink has come, or refused.
//!
//! **Danger.** A worker that is stopped in the midst of a transaction holds that lock. Its session is ended after
//! [`LOCK_TIMEOUT`], and its group is rolled back with it.

use pipeline_engine::stage::{Adopted, StageError};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Statement};

use super::ledger::Ledger;
use super::own_table::OwnTable;
use super::table::Table;
use crate::postgres::fault::while_opening;

/// The table's name, in the schema of the sink's table.
const NAME: &str = "_pipeline_claims";
const COLUMNS: &str = "pipeline text, sink text, partition text, tenure bigint NOT NULL, holder text NOT NULL, \
                       checkpoint bytea, updated_at timestamp with time zone NOT NULL DEFAULT now(), \
                       PRIMARY KEY (pipeline, sink, partition)";
/// A group is committed in less, or whoever writes it has stopped.
const LOCK_TIMEOUT: &str = "2s";
/// So often a session is ended that holds the lock, before the claim is tried again from the start.
const LOCK_ATTEMPTS: u32 = 3;

/// What the server says where the lock was not given in time: by `lock_timeout`, or by a shorter `statement_timeout`.
const HELD: [SqlState; 2] = [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED];

/// The claims, as one sink of one pipeline uses them.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    own: OwnTable,
    pipeline: String,
    sink: String,
    /// This sink of this process, and no other: the number of a tenure is one worker's as long as the table of leases
    /// keeps its word, and here nobody has to believe it.
    holder: String,
}

/// What a session asks for each group.
pub(crate) struct ClaimStatements {
    lock: Statement,
    lost: Statement,
}

impl Claims {
    pub fn beside(table: &Table, pipeline: &str, sink: &str) -> Self {
        let own = OwnTable::beside(table, NAME, COLUMNS, "workers claim partitions");
        let holder = format!("{:016x}", rand::random::<u64>());
        Self { own, pipeline: pipeline.to_owned(), sink: sink.to_owned(), holder }
    }

    /// Its table.
    pub fn table(&self) -> &OwnTable {
        &self.own
    }

    /// Makes the table where it is missing, and gets ready to look tenures up.
    pub async fn prepare(&self, client: &Client) -> Result<ClaimStatements, StageError> {
        let failed = |error| while_opening(error, &format!("can't use {}", self.own.name));
        self.own.ensure(client).await?;
        let lock = client
            .prepare("SELECT pg_advisory_xact_lock_shared(hashtextextended(name, 0)) FROM unnest($1::text[]) AS name")
            .await
            .map_err(failed)?;
        let lost = format!(
            "SELECT held.partition FROM unnest($3::text[], $4::int8[]) AS held (partition, tenure) WHERE NOT EXISTS \
             (SELECT FROM {} AS claims WHERE pipeline = $1 AND sink = $2 AND claims.partition = held.partition \
             AND claims.tenure = held.tenure AND claims.holder = $5)",
            self.own.name
        );
        Ok(ClaimStatements { lock, lost: client.prepare(&lost).await.map_err(failed)? })
    }

    /// Begins a tenure: from the commit of this on, nothing of an earlier one is stored.
    ///
    /// # Errors
    /// [`StageError::superseded`] where a later one is on record, or somebody else's of this number.
    pub async fn adopt(
        &self,
        client: &Client,
        ledger: &Ledger,
        partition: &str,
        tenure: u64,
        parents: &[String],
    ) -> Result<Adopted, StageError> {
        let failed = |error| while_opening(error, &format!("can't claim \"{partition}\" in {}", self.own.name));
        for _ in 0..LOCK_ATTEMPTS {
            // Each statement must see what was committed before the lock was given.
            let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'");
            client.batch_execute(&begin).await.map_err(failed)?;
            let name = self.lock_name(partition);
            let locked = client.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&name]).await;
            match locked {
                Ok(_) => {
                    let adopted = self.adopt_locked(client, ledger, partition, tenure, parents).await;
                    let ended = if matches!(adopted, Ok(Some(_))) { "COMMIT" } else { "ROLLBACK" };
                    client.batch_execute(ended).await.map_err(failed)?;
                    let superseded = || StageError::superseded(vec![partition.to_owned()]);
                    return adopted?.ok_or_else(superseded);
                }
                Err(error) if error.code().is_some_and(|code| HELD.contains(code)) => {
                    client.batch_execute("ROLLBACK").await.map_err(failed)?;
                    let ended = end_holders(client, &name).await.map_err(|error| {
                        // Another role's session ends by its own timeouts.
                        StageError::transient(format!("\"{partition}\" is held by a session that can't be ended"))
                            .because(error)
                    })?;
                    tracing::warn!(
                        partition,
                        sessions = ended,
                        "a worker that has lost this partition was in the midst of storing it, and did not go on: its \
                         session was ended"
                    );
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Err(StageError::transient(format!("\"{partition}\" of {} was held by another session", self.own.name)))
    }

    /// `None` where a later tenure is on record.
    async fn adopt_locked(
        &self,
        client: &Client,
        ledger: &Ledger,
        partition: &str,
        tenure: u64,
        parents: &[String],
    ) -> Result<Option<Adopted>, StageError> {
        let failed = |error| while_opening(error, &format!("can't claim \"{partition}\" in {}", self.own.name));
        let sql = format!(
            "INSERT INTO {0} AS claims (pipeline, sink, partition, tenure, holder) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (pipeline, sink, partition) DO UPDATE \
             SET tenure = excluded.tenure, holder = excluded.holder, updated_at = now() \
             WHERE claims.tenure < excluded.tenure \
             OR (claims.tenure = excluded.tenure AND claims.holder = excluded.holder) RETURNING checkpoint",
            self.own.name
        );
        let row =
            client.query_opt(&sql, &[&self.pipeline, &self.sink, &partition, &number(tenure), &self.holder]).await;
        let Some(row) = row.map_err(failed)? else { return Ok(None) };
        let checkpoint: Option<Vec<u8>> = row.get(0);
        let mut inherited = Vec::new();
        if checkpoint.is_none() && !parents.is_empty() {
            let sql = format!(
                "SELECT checkpoint FROM {} WHERE pipeline = $1 AND sink = $2 AND partition = ANY($3) \
                 AND checkpoint IS NOT NULL ORDER BY partition",
                self.own.name
            );
            let rows = client.query(&sql, &[&self.pipeline, &self.sink, &parents]).await.map_err(failed)?;
            inherited = rows.iter().map(|row| row.get(0)).collect();
        }
        let mut positions = ledger.committed(client).await?;
        positions.retain(|entry| entry.partition == partition);
        Ok(Some(Adopted { positions, checkpoint, inherited }))
    }

    /// Keeps what the next tenure goes on from.
    ///
    /// # Errors
    /// [`StageError::superseded`] where this one is over.
    pub async fn keep(
        &self,
        client: &Client,
        partition: &str,
        tenure: u64,
        checkpoint: &[u8],
    ) -> Result<(), StageError> {
        let sql = format!(
            "UPDATE {} SET checkpoint = $6, updated_at = now() WHERE pipeline = $1 AND sink = $2 AND partition = $3 \
             AND tenure = $4 AND holder = $5",
            self.own.name
        );
        let values: [&(dyn ToSql + Sync); 6] =
            [&self.pipeline, &self.sink, &partition, &number(tenure), &self.holder, &checkpoint];
        let kept = client.execute(&sql, &values).await;
        match kept.map_err(|error| while_opening(error, &format!("can't keep a checkpoint in {}", self.own.name)))? {
            0 => Err(StageError::superseded(vec![partition.to_owned()])),
            _ => Ok(()),
        }
    }

    /// Takes a partition off the record that nobody will claim again, unless one of its heirs would begin with what is kept of
    /// it. True once nothing of it is there.
    ///
    /// What a worker still has in its hands of it stays refused: a tenure that is not on record is over. Should somebody claim it
    /// once more after all, it begins anew, behind the positions in the ledger, which stay.
    pub async fn forget(&self, client: &Client, partition: &str, heirs: &[String]) -> Result<bool, StageError> {
        let sql = format!(
            "WITH forgotten AS (DELETE FROM {0} WHERE pipeline = $1 AND sink = $2 AND partition = $3 \
             AND (checkpoint IS NULL OR NOT EXISTS (SELECT FROM unnest($4::text[]) AS heirs (heir) WHERE NOT EXISTS \
             (SELECT FROM {0} AS theirs WHERE theirs.pipeline = $1 AND theirs.sink = $2 AND theirs.partition = heir \
             AND theirs.checkpoint IS NOT NULL))) RETURNING 1) \
             SELECT EXISTS (SELECT FROM forgotten) \
             OR NOT EXISTS (SELECT FROM {0} WHERE pipeline = $1 AND sink = $2 AND partition = $3)",
            self.own.name
        );
        let row = client.query_one(&sql, &[&self.pipeline, &self.sink, &partition, &heirs]).await;
        row.map(|row| row.get(0)).map_err(|error| {
            let error = while_opening(error, &format!("can't forget \"{partition}\" in {}", self.own.name));
            if error.outside_code() == Some("42501") {
                error.hint(format!("To mend it: GRANT DELETE ON {} TO the sink's user.", self.own.name))
            } else {
                error
            }
        })
    }

    /// Within the transaction of a group: the partitions of these that another worker has by now. Where there is none, none
    /// can be taken over before its end.
    pub async fn lost(
        &self,
        client: &Client,
        statements: &ClaimStatements,
        claims: &[(&str, u64)],
    ) -> Result<Vec<String>, Error> {
        let names: Vec<String> = claims.iter().map(|(partition, _)| self.lock_name(partition)).collect();
        let partitions: Vec<&str> = claims.iter().map(|(partition, _)| *partition).collect();
        let tenures: Vec<i64> = claims.iter().map(|(_, tenure)| number(*tenure)).collect();
        // Sent together; the second sees what was committed before the first has its locks.
        let values: [&(dyn ToSql + Sync); 5] = [&self.pipeline, &self.sink, &partitions, &tenures, &self.holder];
        let names: [&(dyn ToSql + Sync); 1] = [&names];
        let (locked, lost) =
            futures::join!(client.query(&statements.lock, &names), client.query(&statements.lost, &values));
        locked?;
        Ok(lost?.iter().map(|row| row.get(0)).collect())
    }

    fn lock_name(&self, partition: &str) -> String {
        format!("{} {} {} {partition}", self.own.name, self.pipeline, self.sink)
    }
}

/// Ends the sessions that hold the lock of this name, and tells how many these are.
async fn end_holders(client: &Client, name: &str) -> Result<u64, Error> {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_locks, hashtextextended($1, 0) AS name \
               WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid <> pg_backend_pid() \
               AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
               AND classid = ((name >> 32) & 4294967295)::oid AND objid = (name & 4294967295)::oid";
    client.execute(sql, &[&name]).await
}

/// As SQL takes it: counters of leases are far below the largest.
fn number(tenure: u64) -> i64 {
    i64::try_from(tenure).unwrap_or(i64::MAX)
}
