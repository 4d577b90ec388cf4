//! One connection, ready to store groups.

use bytes::Bytes;
use futures::{SinkExt, pin_mut};
use pipeline_engine::stage::StageError;
use tokio_postgres::error::SqlState;
use tokio_postgres::{CopyInSink, Error, Statement, ToStatement};

use super::connect::Link;
use super::copy::Chunks;
use super::error::while_opening;
use super::server::Server;
use super::sink::StoredRows;
use super::table::Table;

/// The SQL of the sink.
pub(super) struct Statements {
    copy: String,
    /// How a group with duplicates is stored; `None` without a key.
    staging: Option<Staging>,
}

/// A group is copied to a temporary table, and what is new goes on to the table.
struct Staging {
    create: String,
    copy: String,
    insert_new: String,
    count_conflicts: String,
}

/// Rows of a group that were not stored because their key was there already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Skipped {
    /// The same row again.
    pub duplicates: u64,
    /// Another row of the same key.
    pub conflicts: u64,
}

impl Statements {
    pub fn new(table: &Table) -> Self {
        let (name, columns, key) = (table.sql_name(), table.column_list(), table.key_list());
        // The same types, and none of the table's constraints. Emptied by each commit.
        let staging = || Staging {
            create: format!(
                "CREATE TEMPORARY TABLE IF NOT EXISTS pipeline_staging ON COMMIT DELETE ROWS \
                 AS SELECT {columns} FROM {name} WITH NO DATA"
            ),
            copy: format!("COPY pg_temp.pipeline_staging ({columns}) FROM STDIN BINARY"),
            insert_new: format!(
                "INSERT INTO {name} ({columns}) SELECT {columns} FROM pg_temp.pipeline_staging \
                 ON CONFLICT ({key}) DO NOTHING"
            ),
            count_conflicts: count_conflicts(table),
        };
        Self {
            copy: format!("COPY {name} ({columns}) FROM STDIN BINARY"),
            staging: (!table.key.is_empty()).then(staging),
        }
    }
}

/// Counts rows of the temporary table whose key is taken by a row with other values.
fn count_conflicts(table: &Table) -> String {
    let same_key = table.columns.iter().filter(|column| table.key.contains(&column.name)).map(|column| {
        // Only `=` can use the index, and it is enough where there are no nulls.
        let same = if column.required { "=" } else { "IS NOT DISTINCT FROM" };
        format!("stored.\"{0}\" {same} new.\"{0}\"", column.name)
    });
    let all = |of: &str| {
        let columns = table.columns.iter().map(|column| format!("{of}.\"{}\"", column.name));
        columns.collect::<Vec<_>>().join(", ")
    };
    format!(
        "SELECT count(*) FROM pg_temp.pipeline_staging new JOIN {} stored ON {} WHERE ({}) IS DISTINCT FROM ({})",
        table.sql_name(),
        same_key.collect::<Vec<_>>().join(" AND "),
        all("new"),
        all("stored"),
    )
}

/// A connection to a table that fits. What is prepared belongs to the connection and ends with it.
pub(super) struct Session {
    link: Link,
    server: Server,
    copy: Statement,
}

impl Session {
    pub async fn prepare(link: Link, server: Server, statements: &Statements) -> Result<Self, StageError> {
        let copy = link.client.prepare(&statements.copy).await;
        let copy = copy.map_err(|error| while_opening(error, "can't prepare the COPY"))?;
        Ok(Self { link, server, copy })
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn is_open(&self) -> bool {
        !self.link.client.is_closed()
    }

    /// Stores a group in one transaction; returns which rows were there already. After an error
    /// the transaction is still open: [`Session::roll_back`], or drop the session.
    ///
    /// Not cancel safe: drop the session as well.
    pub async fn store(&self, statements: &Statements, rows: &StoredRows) -> Result<Skipped, Error> {
        let client = &self.link.client;
        client.batch_execute("BEGIN").await?;
        // Here the ledger of positions will be moved on, in the same transaction.
        let skipped = match &statements.staging {
            None => self.copy(&self.copy, rows).await.map(|_| Skipped::default())?,
            Some(staging) => self.copy_new(staging, rows).await?,
        };
        // Lost from here on, the outcome is unknown: sent again, all rows turn out as duplicates.
        client.batch_execute("COMMIT").await?;
        Ok(skipped)
    }

    /// Most groups hold no duplicate, and a plain COPY is more than twice as fast as the way that
    /// can skip some: so that comes second.
    async fn copy_new(&self, staging: &Staging, rows: &StoredRows) -> Result<Skipped, Error> {
        let client = &self.link.client;
        client.batch_execute("SAVEPOINT direct").await?;
        match self.copy(&self.copy, rows).await {
            Ok(_) => return Ok(Skipped::default()),
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {}
            Err(error) => return Err(error),
        }
        client.batch_execute("ROLLBACK TO SAVEPOINT direct").await?;
        client.batch_execute(&staging.create).await?;
        let copied = self.copy(staging.copy.as_str(), rows).await?;
        let inserted = client.execute(staging.insert_new.as_str(), &[]).await?;
        let conflicts = client.query_one(staging.count_conflicts.as_str(), &[]).await?.get::<_, i64>(0);
        let conflicts = u64::try_from(conflicts).unwrap_or(0);
        Ok(Skipped { duplicates: (copied - inserted).saturating_sub(conflicts), conflicts })
    }

    async fn copy<T: ToStatement + ?Sized>(&self, statement: &T, rows: &StoredRows) -> Result<u64, Error> {
        let sink: CopyInSink<Bytes> = self.link.client.copy_in(statement).await?;
        pin_mut!(sink);
        for chunk in Chunks::new(&rows.rows, &rows.types, &rows.order) {
            sink.send(chunk).await?;
        }
        sink.finish().await
    }

    /// Back to a session without a transaction.
    pub async fn roll_back(&self) -> Result<(), Error> {
        self.link.client.batch_execute("ROLLBACK").await
    }

    pub async fn close(self) -> Result<(), Error> {
        self.link.close().await
    }
}
