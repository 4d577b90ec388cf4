//! One run at a time: a lock of the database that the sink's connection holds.
//!
//! It is held for as long as the connection lives, so a run that has died lets go of it by itself: at once
//! where the server hears of it, and within a minute where the network is gone (see
//! [`super::server::settle_session`]). So a lock that is taken is waited for first, and only then reported
//! as another run.

use std::fmt;
use std::time::{Duration, SystemTime};

use pipeline_engine::stage::StageError;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::postgres::fault::while_opening;

/// How long what an earlier run has left may hold the lock. The server notices a client that is gone after
/// 60 s, and then rolls back.
const PATIENCE: Duration = Duration::from_secs(90);

/// The lock, before it is taken and after.
#[derive(Debug)]
pub(super) struct Fence {
    pipeline: String,
    sink: String,
    /// The last session of this sink that held it.
    ours: Option<Backend>,
    /// Since when we wait, and for whom.
    waiting: Option<Waiting>,
}

/// A session of the server: no two have the same two of these.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Backend {
    pid: i32,
    started: String,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// By the server's clock.
    since_there: SystemTime,
    holder: Backend,
}

/// Who holds the lock. What the server doesn't tell this user is `None`.
#[derive(Debug)]
struct Holder {
    backend: Backend,
    application: Option<String>,
    address: Option<String>,
    user: Option<String>,
    /// When its client last asked for something.
    asked_at: Option<SystemTime>,
}

impl Fence {
    pub fn new(pipeline: &str, sink: &str) -> Self {
        Self { pipeline: pipeline.to_owned(), sink: sink.to_owned(), ours: None, waiting: None }
    }

    /// Takes the lock for this connection. `ledger` is the oid of the table that it protects. `is_shared`: several workers
    /// store by the sink, each what it has claimed, and nobody stores by it who claims nothing.
    ///
    /// # Errors
    /// Transient while it may be what is left of an earlier run, permanent once it can't.
    pub async fn take(&mut self, client: &Client, ledger: u32, is_shared: bool) -> Result<(), StageError> {
        let failed = |error| while_opening(error, "can't lock the sink against a second run");
        let name = format!("{ledger} {} {}", self.pipeline, self.sink);
        let lock = if is_shared { "pg_try_advisory_lock_shared" } else { "pg_try_advisory_lock" };
        let sql = format!(
            "SELECT {lock}(hashtextextended($1, 0)), pg_backend_pid(), \
             (SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid())"
        );
        let row = client.query_one(&sql, &[&name]).await.map_err(failed)?;
        if row.get(0) {
            self.ours = row.get::<_, Option<String>>(2).map(|started| Backend { pid: row.get(1), started });
            self.waiting = None;
            return Ok(());
        }
        let Some((holder, now_there)) = holder_of(client, &name).await.map_err(failed)? else {
            return Err(StageError::transient("the sink was locked by a session that has just ended"));
        };
        if self.ours.as_ref() == Some(&holder.backend) {
            // Our own last connection: we know that nobody speaks by it any more. What it was about to
            // commit is committed or not, and the ledger tells.
            let sql =
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";
            let asked = client.execute(sql, &[&holder.backend.pid, &holder.backend.started]).await;
            if asked.is_ok() {
                return Err(StageError::transient(
                    "the server still had this sink's last connection, which was lost: it was asked to end it",
                ));
            }
        }
        Err(self.wait_for(holder, now_there))
    }

    fn wait_for(&mut self, holder: Holder, now_there: SystemTime) -> StageError {
        let waiting = self.waiting.take().filter(|waiting| waiting.holder == holder.backend);
        let waiting = waiting.unwrap_or_else(|| Waiting {
            since: Instant::now(),
            since_there: now_there,
            holder: holder.backend.clone(),
        });
        let is_alive = holder.asked_at.is_some_and(|asked_at| asked_at > waiting.since_there);
        let is_late = waiting.since.elapsed() > PATIENCE;
        self.waiting = Some(waiting);
        let Self { pipeline, sink, .. } = self;
        if is_alive || is_late {
            let pid = holder.backend.pid;
            return StageError::permanent(format!(
                "another run of pipeline \"{pipeline}\" stores by its sink \"{sink}\" already: {holder}"
            ))
            .hint(format!(
                "Stop one of the two; if they are meant to share the work, each needs a name of its own in [pipeline]. If \
                 that session is nobody's any more: SELECT pg_terminate_backend({pid});"
            ));
        }
        StageError::transient(format!(
            "the sink \"{sink}\" of pipeline \"{pipeline}\" was locked by another session ({holder}). If it is what an \
             earlier run has left, the server ends it within a minute or two"
        ))
    }
}

async fn holder_of(client: &Client, name: &str) -> Result<Option<(Holder, SystemTime)>, tokio_postgres::Error> {
    let sql = "SELECT pid, backend_start::text, application_name, host(client_addr), usename::text, query_start, \
               clock_timestamp() FROM pg_locks JOIN pg_stat_activity USING (pid), hashtextextended($1, 0) AS name \
               WHERE locktype = 'advisory' AND granted AND objsubid = 1 \
               AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
               AND classid = ((name >> 32) & 4294967295)::oid AND objid = (name & 4294967295)::oid LIMIT 1";
    let row = client.query_opt(sql, &[&name]).await?;
    Ok(row.map(|row| {
        let holder = Holder {
            backend: Backend { pid: row.get(0), started: row.get::<_, Option<String>>(1).unwrap_or_default() },
            application: row.get::<_, Option<String>>(2).filter(|name| !name.is_empty()),
            address: row.get(3),
            user: row.get(4),
            asked_at: row.get(5),
        };
        (holder, row.get(6))
    }))
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of the server", self.backend.pid)?;
        let Self { application, address, user, .. } = self;
        for (word, value) in [("application", application), ("user", user), ("from", address)] {
            if let Some(value) = value {
                write!(f, ", {word} \"{value}\"")?;
            }
        }
        if !self.backend.started.is_empty() {
            write!(f, ", connected since {}", self.backend.started)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pipeline_engine::stage::Fault;

    use super::*;

    const NOON: SystemTime = SystemTime::UNIX_EPOCH;

    fn holder(pid: i32, asked_at: SystemTime) -> Holder {
        let backend = Backend { pid, started: "2026-01-01 12:00:00+00".to_owned() };
        let words = ["pipeline iot", "10.0.0.7", "keeper"].map(|word| Some(word.to_owned()));
        let [application, address, user] = words;
        Holder { backend, application, address, user, asked_at: Some(asked_at) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_holder_is_waited_for_and_one_that_asks_for_something_is_another_run() {
        let mut fence = Fence::new("iot", "table");
        let silent = || holder(7, NOON - Duration::from_secs(5));
        let error = fence.wait_for(silent(), NOON);
        assert_eq!(error.fault(), Fault::Transient);
        let shown = "process 7 of the server, application \"pipeline iot\", user \"keeper\", from \"10.0.0.7\", connected \
                     since 2026-01-01 12:00:00+00";
        assert!(error.chain().contains(shown), "{}", error.chain());
        tokio::time::advance(PATIENCE).await;
        assert_eq!(fence.wait_for(silent(), NOON + PATIENCE).fault(), Fault::Transient);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(fence.wait_for(silent(), NOON + PATIENCE).fault(), Fault::Permanent);
        // Another one now: it may be on its way out as well.
        assert_eq!(fence.wait_for(holder(8, NOON), NOON).fault(), Fault::Transient);
        assert_eq!(fence.wait_for(holder(8, NOON + Duration::from_secs(1)), NOON).fault(), Fault::Permanent);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_server_does_not_tell_is_left_out() {
        let backend = Backend { pid: 7, started: String::new() };
        let unknown = Holder { backend, application: None, address: None, user: None, asked_at: None };
        assert_eq!(unknown.to_string(), "process 7 of the server");
        assert_eq!(Fence::new("iot", "table").wait_for(unknown, NOON).fault(), Fault::Transient);
    }
}
