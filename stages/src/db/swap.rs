//! One database takes the place of another, in one transaction.
//!
//! Both are renamed together or not at all, so whatever ends us in between leaves the pipeline's database where it was.
//! The one that was replaced is kept.

use std::time::Duration;

use pipeline_engine::now_us;
use pipeline_engine::stage::StageError;
use tokio_postgres::Client;

use super::PipelineDatabase;
use super::backup::stamp;
use super::catalog;
use super::restore::ident;
use crate::postgres::Database;
use crate::postgres::fault::while_opening;

/// Whoever is sent away may come back before the name has changed: tried so often.
const TRIES: usize = 20;

impl PipelineDatabase {
    /// Whether somebody works in the database, who would have to be sent away. A pipeline is never sent away: what it
    /// stores between our look at the lake and the swap would be in neither database.
    pub(super) async fn check_unused(&self, disconnect: bool) -> Result<(), StageError> {
        let link = self.maintenance().await?;
        let is_pipeline = |user: &&String| user.starts_with("pipeline ");
        let mut users = connected(&link.client, &self.name()).await?;
        // The server takes a moment to notice that a program has ended.
        for _ in 0..TRIES {
            if users.is_empty() || (disconnect && !users.iter().any(|user| is_pipeline(&user))) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            users = connected(&link.client, &self.name()).await?;
        }
        if let Some(pipeline) = users.iter().find(is_pipeline) {
            return Err(StageError::permanent(format!("\"{}\" is in use: {pipeline}", self.name()))
                .hint("Stop the pipeline first."));
        }
        if users.is_empty() || disconnect {
            return Ok(());
        }
        Err(StageError::permanent(format!("\"{}\" is in use: {}", self.name(), users.join(", ")))
            .hint("With --disconnect whoever is still connected is sent away."))
    }

    /// Puts a database in the place of the pipeline's own. Says what the old one is called now, if there was one.
    pub(super) async fn swap(&self, scratch: &Database, disconnect: bool) -> Result<Option<String>, StageError> {
        self.check_unused(disconnect).await?;
        let link = self.maintenance().await?;
        let client = &link.client;
        let name = self.name();
        let sql = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
        let exists: bool = client.query_one(sql, &[&name]).await.map_err(catalog)?.get(0);
        let mut aside = format!("{name}_before_{}", stamp(now_us()));
        if aside.len() > 63 {
            aside = format!("pipeline_before_{}", stamp(now_us()));
        }
        let mut statements = Vec::new();
        if exists {
            statements.push(format!("ALTER DATABASE {} RENAME TO {}", ident(&name), ident(&aside)));
        }
        statements.push(format!("ALTER DATABASE {} RENAME TO {}", ident(&scratch.name()), ident(&name)));
        let statements = format!("BEGIN; {}; COMMIT", statements.join("; "));
        let mut tries = 0;
        loop {
            tries += 1;
            // TimescaleDB's own workers are in every database that has the extension, and come back by themselves.
            for database in [&name, &scratch.name()] {
                send_away(client, database).await?;
            }
            let Err(error) = client.batch_execute(&statements).await else { break };
            client.batch_execute("ROLLBACK").await.map_err(catalog)?;
            let in_use = error.code() == Some(&tokio_postgres::error::SqlState::OBJECT_IN_USE);
            if !in_use || tries == TRIES {
                return Err(while_opening(error, "the restored database could not take its place"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(exists.then_some(aside))
    }
}

/// Who is connected, not counting what TimescaleDB runs.
async fn connected(client: &Client, database: &str) -> Result<Vec<String>, StageError> {
    let sql = "SELECT DISTINCT coalesce(nullif(application_name, ''), 'an unnamed program') || ' as ' || coalesce(usename, '?') \
               FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend' ORDER BY 1";
    let rows = client.query(sql, &[&database]).await.map_err(catalog)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn send_away(client: &Client, database: &str) -> Result<(), StageError> {
    let sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1";
    client.query(sql, &[&database]).await.map_err(catalog).map(drop)
}
