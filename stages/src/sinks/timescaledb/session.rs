//! One connection, ready to store groups.

use pipeline_engine::stage::StageError;
use tokio_postgres::{Client, Error, Statement};

use super::OnConflict;
use super::claims::{ClaimStatements, Claims};
use super::ledger::Ledger;
use super::server::Server;
use super::staging::Staging;
use super::table::Table;
use crate::postgres::Link;
use crate::postgres::fault::while_opening;

/// The SQL of the sink.
pub(super) struct Statements {
    copy: String,
    /// How rows are stored whose key is there already; `None` without a key.
    pub staging: Option<Staging>,
}

impl Statements {
    pub fn new(table: &Table, on_conflict: OnConflict) -> Self {
        Self {
            copy: format!("COPY {} ({}) FROM STDIN BINARY", table.sql_name(), table.column_list()),
            staging: (!table.key.is_empty()).then(|| Staging::new(table, on_conflict)),
        }
    }
}

/// A connection to a table that fits. What is prepared belongs to the connection and ends with it.
pub(super) struct Session {
    link: Link,
    server: Server,
    pub copy: Statement,
    /// Moves positions on, once the connection is the one that may.
    pub move_on: Option<Statement>,
    /// Looks tenures up, where several workers store.
    pub claims: Option<ClaimStatements>,
}

impl Session {
    pub async fn prepare(link: Link, server: Server, statements: &Statements) -> Result<Self, StageError> {
        let copy = link.client.prepare(&statements.copy).await;
        let copy = copy.map_err(|error| while_opening(error, "can't prepare the COPY"))?;
        Ok(Self { link, server, copy, move_on: None, claims: None })
    }

    /// Gets ready to move positions on.
    pub async fn keep_positions(&mut self, ledger: &Ledger) -> Result<(), StageError> {
        self.move_on = Some(ledger.prepare(&self.link.client).await?);
        Ok(())
    }

    /// Gets ready to look tenures up.
    pub async fn keep_claims(&mut self, claims: &Claims) -> Result<(), StageError> {
        self.claims = Some(claims.prepare(&self.link.client).await?);
        Ok(())
    }

    pub fn client(&self) -> &Client {
        &self.link.client
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn is_open(&self) -> bool {
        !self.link.client.is_closed()
    }

    /// Back to a session without a transaction.
    pub async fn roll_back(&self) -> Result<(), Error> {
        self.link.client.batch_execute("ROLLBACK").await
    }

    pub async fn close(self) -> Result<(), Error> {
        self.link.close().await
    }
}
