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
        };
        Self {
            copy: format!("COPY {name} ({columns}) FROM STDIN BINARY"),
            staging: (!table.key.is_empty()).then(staging),
        }
    }
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

    /// Stores a group in one transaction; returns how many rows were there already. After an error
    /// the transaction is still open: [`Session::roll_back`], or drop the session.
    ///
    /// Not cancel safe: drop the session as well.
    pub async fn store(&self, statements: &Statements, rows: &StoredRows) -> Result<u64, Error> {
        let client = &self.link.client;
        client.batch_execute("BEGIN").await?;
        // Here the ledger of positions will be moved on, in the same transaction.
        let duplicates = match &statements.staging {
            None => self.copy(&self.copy, rows).await.map(|_| 0)?,
            Some(staging) => self.copy_new(staging, rows).await?,
        };
        // Lost from here on, the outcome is unknown: sent again, all rows turn out as duplicates.
        client.batch_execute("COMMIT").await?;
        Ok(duplicates)
    }

    /// Most groups hold no duplicate, and a plain COPY is more than twice as fast as the way that
    /// can skip some: so that comes second.
    async fn copy_new(&self, staging: &Staging, rows: &StoredRows) -> Result<u64, Error> {
        let client = &self.link.client;
        client.batch_execute("SAVEPOINT direct").await?;
        match self.copy(&self.copy, rows).await {
            Ok(_) => return Ok(0),
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {}
            Err(error) => return Err(error),
        }
        client.batch_execute("ROLLBACK TO SAVEPOINT direct").await?;
        client.batch_execute(&staging.create).await?;
        let copied = self.copy(staging.copy.as_str(), rows).await?;
        let inserted = client.execute(staging.insert_new.as_str(), &[]).await?;
        Ok(copied - inserted)
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
