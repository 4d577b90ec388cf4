//! A table that sinks keep for themselves, beside those that people query: made where it is missing, and looked at before it
//! is relied on.

use pipeline_engine::stage::StageError;
use tokio_postgres::{Client, Error};

use super::table::{Table, make_once};
use crate::postgres::fault::while_opening;

/// The table, in the schema of a sink's.
#[derive(Debug, Clone)]
pub(crate) struct OwnTable {
    /// As SQL takes it.
    pub(super) name: String,
    /// What is between the brackets of its statement.
    columns: &'static str,
    /// What it is for, as the rest of a sentence: "the sink's positions are kept".
    purpose: &'static str,
}

impl OwnTable {
    pub(super) fn beside(table: &Table, name: &str, columns: &'static str, purpose: &'static str) -> Self {
        let name = Table { name: name.to_owned(), ..table.clone() }.sql_name();
        Self { name, columns, purpose }
    }

    /// Its name, as SQL takes it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The statement that makes it.
    pub(crate) fn ddl(&self) -> String {
        format!("CREATE TABLE {} ({})", self.name, self.columns)
    }

    /// Makes it where it is missing, and tells its oid.
    pub(super) async fn ensure(&self, client: &Client) -> Result<u32, StageError> {
        if let Some(oid) = self.oid(client).await? {
            self.check_rights(client, oid).await?;
            return Ok(oid);
        }
        make_once(client, &self.name, &self.ddl()).await.map_err(|error| self.not_made(error))?;
        self.oid(client)
            .await?
            .ok_or_else(|| StageError::transient(format!("{} was dropped as it was made", self.name)))
    }

    /// Whether it can be kept, for `pipeline doctor`: makes it where it is missing, and takes that back. `limits` are
    /// settings of that transaction.
    pub(super) async fn rehearse(&self, client: &Client, limits: &str) -> Result<String, StageError> {
        if let Some(oid) = self.oid(client).await? {
            self.check_rights(client, oid).await?;
            return Ok(format!("are kept in {}", self.name));
        }
        let made = client.batch_execute(&format!("BEGIN; {limits}; {}", self.ddl())).await;
        let rolled_back = client.batch_execute("ROLLBACK").await;
        made.and(rolled_back).map_err(|error| self.not_made(error))?;
        Ok(format!("will be kept in {}, which can be created", self.name))
    }

    fn not_made(&self, error: Error) -> StageError {
        let error = while_opening(error, &format!("can't create {}, where {}", self.name, self.purpose));
        if error.outside_code() == Some("42501") { error.hint(format!("Run: {};", self.ddl())) } else { error }
    }

    /// `None` where it is not there.
    pub(super) async fn oid(&self, client: &Client) -> Result<Option<u32>, StageError> {
        let row = client.query_one("SELECT to_regclass($1)::oid", &[&self.name]).await;
        row.map(|row| row.get(0)).map_err(|error| while_opening(error, "can't read the database's catalog"))
    }

    async fn check_rights(&self, client: &Client, oid: u32) -> Result<(), StageError> {
        let sql = "SELECT bool_and(has_table_privilege($1::oid, right_name)), quote_ident(current_user) \
                   FROM unnest('{SELECT,INSERT,UPDATE}'::text[]) AS right_name";
        let row = client.query_one(sql, &[&oid]).await;
        let row = row.map_err(|error| while_opening(error, "can't read the database's catalog"))?;
        if row.get(0) {
            return Ok(());
        }
        let (table, user): (_, String) = (&self.name, row.get(1));
        Err(StageError::permanent(format!("user {user} may not read and write {table}, where {}", self.purpose))
            .hint(format!("To mend it: GRANT SELECT, INSERT, UPDATE ON {table} TO {user};")))
    }
}
