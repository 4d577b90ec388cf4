//! What kind of server it is, and the session that the sink keeps with it.

use std::time::Duration;

use pipeline_engine::stage::StageError;
use tokio_postgres::Client;

use crate::postgres::fault::while_opening;

/// What the sink must know of the server.
#[derive(Debug)]
pub(crate) struct Server {
    /// Of PostgreSQL: `17.12`.
    pub version: String,
    /// The extension in this database; `None` on plain PostgreSQL.
    pub timescale: Option<Timescale>,
    /// The extension could be created.
    pub timescale_available: bool,
}

/// The TimescaleDB extension.
#[derive(Debug)]
pub(crate) struct Timescale {
    pub version: String,
    /// Where its functions are.
    pub schema: String,
    /// `timescale` (community) or `apache`.
    pub license: String,
}

impl Timescale {
    /// The edition that compresses, aggregates continuously and runs jobs.
    pub fn is_community(&self) -> bool {
        self.license == "timescale"
    }
}

impl Server {
    /// Asks the server.
    pub async fn identify(client: &Client) -> Result<Self, StageError> {
        let sql = "SELECT e.extversion, n.nspname::text, current_setting('timescaledb.license', true), \
                   EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb'), \
                   split_part(current_setting('server_version'), ' ', 1) \
                   FROM (SELECT) AS one LEFT JOIN pg_extension e ON e.extname = 'timescaledb' \
                   LEFT JOIN pg_namespace n ON n.oid = e.extnamespace";
        let failed = |error| while_opening(error, "can't ask the database for its extensions");
        let row = client.query_one(sql, &[]).await.map_err(failed)?;
        let timescale = row.get::<_, Option<String>>(0).zip(row.get(1)).map(|(version, schema)| Timescale {
            version,
            schema,
            license: row.get::<_, Option<String>>(2).unwrap_or_else(|| "unknown".to_owned()),
        });
        Ok(Self { version: row.get(4), timescale, timescale_available: row.get(3) })
    }

    /// Tells the operator, once a run.
    pub fn announce(&self, table: &str) {
        match &self.timescale {
            Some(Timescale { version, license, .. }) => tracing::info!(table, version, license, "TimescaleDB found"),
            None => tracing::warn!(
                table,
                hint = if self.timescale_available {
                    "CREATE EXTENSION timescaledb; before the table is created."
                } else {
                    "Install TimescaleDB on the server to have hypertables."
                },
                "the database has no TimescaleDB extension: rows go to an ordinary table"
            ),
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.timescale {
            Some(timescale) => {
                let edition = if timescale.is_community() { "community" } else { &timescale.license };
                write!(f, "PostgreSQL {}, TimescaleDB {} ({edition} edition)", self.version, timescale.version)
            }
            None => write!(f, "PostgreSQL {} without TimescaleDB", self.version),
        }
    }
}

/// Makes a new session keep what the sink promises.
///
/// A commit waits for the disk, whatever the server's default. A transaction whose client is gone
/// ends by itself: it would hold its keys, and the group that is sent again would wait for it. So does a
/// session whose client fell silent, after 60 s and not the two hours that systems wait by default.
pub(super) async fn settle_session(client: &Client, write_timeout: Duration) -> Result<(), StageError> {
    let timeout_ms = write_timeout.as_millis();
    let sql = format!(
        "SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false), \
         set_config('tcp_keepalives_count', '3', false), \
         set_config('statement_timeout', '{timeout_ms}', false), \
         set_config('idle_in_transaction_session_timeout', '{timeout_ms}', false), \
         CASE WHEN current_setting('synchronous_commit') = 'off' \
         THEN set_config('synchronous_commit', 'on', false) END"
    );
    client.batch_execute(&sql).await.map_err(|error| while_opening(error, "can't set up the session"))?;
    // Servers before 14, and some platforms, don't have it: there the timeouts above must do. A
    // connection that was lost here is met by the next statement.
    drop(client.batch_execute("SET client_connection_check_interval = '5s'").await);
    Ok(())
}
