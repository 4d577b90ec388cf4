//! One database takes the place of another, in one transaction.
//!
//! Both are renamed together or not at all, so whatever ends us in between leaves the pipeline's database where it was.
//! The one that was replaced is kept.

use std::collections::BTreeSet;
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

/// Bytes of a name in PostgreSQL; what is longer is cut off without an error.
const NAME_MAX: usize = 63;

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
        let aside = free_name(client, &name, "before").await?;
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

/// A name for a database beside another one, by what it is for and the second, that no database of the server has: two restores
/// may begin within one second.
pub(super) async fn free_name(client: &Client, database: &str, purpose: &str) -> Result<String, StageError> {
    let rows = client.query("SELECT datname::text FROM pg_database", &[]).await.map_err(catalog)?;
    let taken: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(unless_taken(database, &format!("{purpose}_{}", stamp(now_us())), &taken))
}

fn unless_taken(database: &str, what: &str, taken: &BTreeSet<String>) -> String {
    let numbered = |number: &str| {
        let name = format!("{database}_{what}{number}");
        if name.len() <= NAME_MAX { name } else { format!("pipeline_{what}{number}") }
    };
    let (mut name, mut number) = (numbered(""), 1);
    while taken.contains(&name) {
        number += 1;
        name = numbered(&format!("_{number}"));
    }
    name
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_or_too_long_gives_way_to_another() {
        let name = |database: &str, taken: &[&str]| {
            unless_taken(database, "before_20261126-182414", &taken.iter().map(|&name| name.to_owned()).collect())
        };
        assert_eq!(name("iot", &[]), "iot_before_20261126-182414");
        assert_eq!(name("iot", &["iot_before_20261126-182414"]), "iot_before_20261126-182414_2");
        let both = ["iot_before_20261126-182414", "iot_before_20261126-182414_2"];
        assert_eq!(name("iot", &both), "iot_before_20261126-182414_3");
        let long = "i".repeat(41);
        assert_eq!(name(&long, &[]), "pipeline_before_20261126-182414");
        assert_eq!(name(&long, &["pipeline_before_20261126-182414"]), "pipeline_before_20261126-182414_2");
        // It fits by itself, and with a number does not.
        let whole = format!("{}_before_20261126-182414", &long[..40]);
        assert_eq!((whole.len(), name(&long[..40], &[]).as_str()), (NAME_MAX, whole.as_str()));
        assert_eq!(name(&long[..40], &[&whole]), "pipeline_before_20261126-182414_2");
    }
}
