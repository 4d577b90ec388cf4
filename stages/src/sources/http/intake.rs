//! From messages to the spool: appended in order, each post as a whole behind the one before, and answered once durable.

use std::time::Duration;

use pipeline_engine::spool::{PauseReason, Spool, SpoolError, SpoolStatus, SpoolWriter};
use pipeline_engine::stage::{SourceContext, StageError};
use pipeline_engine::{Counter, IntakeStats};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout_at};

use super::post::Post;
use super::refusal::Refusal;
use super::repeats::Requests;
use crate::sources::spooled::OVERSIZE;

/// How long a post waits until the spool takes its first message; nothing of it is there before.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it then waits until all of it is on disk. Firehose waits for 180 s for its answer.
const DURABLE_PATIENCE: Duration = Duration::from_secs(120);

/// What the source counts besides rows.
pub(super) struct Counters {
    /// Posts that were answered with 200.
    pub(super) posts: Counter,
    /// Posts that were refused for good, whatever the reason.
    pub(super) refused_posts: Counter,
    /// Posts that were told to come again, since nothing could be taken then.
    pub(super) postponed_posts: Counter,
    /// Posts without a right token.
    pub(super) unauthorized_posts: Counter,
    /// Posts that had come before, as a whole or in part.
    pub(super) redelivered: Counter,
    /// Messages of which only the beginning was kept.
    pub(super) oversize: Counter,
}

impl Counters {
    pub(super) fn of(cx: &SourceContext) -> Self {
        Self {
            posts: cx.counter("posts"),
            refused_posts: cx.counter("refused_posts"),
            postponed_posts: cx.counter("postponed_posts"),
            unauthorized_posts: cx.counter("unauthorized_posts"),
            redelivered: cx.counter("redelivered"),
            oversize: cx.counter("oversize"),
        }
    }
}

/// The way into the spool, for all requests.
pub(super) struct Intake {
    /// `None` once it is closed.
    inside: Mutex<Option<Inside>>,
    durable: watch::Receiver<u64>,
    status: watch::Receiver<SpoolStatus>,
    pub(super) counters: Counters,
    stats: IntakeStats,
}

struct Inside {
    writer: SpoolWriter,
    requests: Requests,
}

impl Intake {
    pub(super) fn new(
        cx: &SourceContext,
        spool: &Spool,
        writer: SpoolWriter,
        requests: Requests,
        counters: Counters,
    ) -> Self {
        Self {
            inside: Mutex::new(Some(Inside { writer, requests })),
            durable: spool.durable(),
            status: spool.status(),
            counters,
            stats: cx.intake(),
        }
    }

    /// Whether something can be taken in now.
    ///
    /// # Errors
    /// Why not, and when it is worth asking again.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match &*self.status.borrow() {
            SpoolStatus::Running => Ok(()),
            SpoolStatus::Closed => Err(Refusal::closing()),
            SpoolStatus::Paused(pause) => {
                let what = match pause.reason {
                    PauseReason::SpoolFull => "the spool is full, until the sinks have stored some of it",
                    PauseReason::DiskFull => "the disk is full",
                    PauseReason::DiskFailing => "the disk is failing",
                };
                Err(Refusal::later(what, Duration::from_secs(30)))
            }
        }
    }

    /// Puts a post into the spool, but for what is there of it already, and waits until all of it is on disk.
    ///
    /// Dropped midway, the first of its messages may be there; a post with a key is completed when it comes again.
    ///
    /// # Errors
    /// None of it was taken, or it is not known whether it is durable.
    pub(super) async fn take(&self, post: Post) -> Result<(), Refusal> {
        self.check()?;
        let last_lsn = self.append(post).await?;
        let mut durable = self.durable.clone();
        match timeout_at(Instant::now() + DURABLE_PATIENCE, durable.wait_for(|durable| *durable >= last_lsn)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Refusal::unknown("the spool was closed")),
            Err(_) => Err(Refusal::unknown("the disk did not write it in time")),
        }
    }

    /// Gives the number of the last message of the post; 0 if it has none.
    async fn append(&self, post: Post) -> Result<u64, Refusal> {
        let begin_by = Instant::now() + PATIENCE;
        let busy = || Refusal::later("the disk is slower than what is posted", Duration::from_secs(5));
        let mut inside = timeout_at(begin_by, self.inside.lock()).await.map_err(|_| busy())?;
        let Some(Inside { writer, requests }) = &mut *inside else { return Err(Refusal::closing()) };
        let before = post.key.and_then(|key| requests.find(key));
        let (there, mut last_lsn) = before.map_or((0, 0), |taken| (taken.messages, taken.last_lsn));
        if there > 0 {
            self.counters.redelivered.increment();
        } else {
            timeout_at(begin_by, writer.room()).await.map_err(|_| busy())?;
        }
        for record in post.records_from(there) {
            last_lsn = writer.append(&record).await.map_err(refused)?;
            if record.flags & OVERSIZE != 0 {
                self.counters.oversize.increment();
            }
            // Nothing is awaited between the two: whoever hangs up midway leaves both or none.
            if let Some(key) = post.key {
                requests.note(key, last_lsn);
            }
            self.stats.received.increment();
            self.stats.taken_to.set(last_lsn);
        }
        Ok(last_lsn)
    }

    /// Makes what was taken durable, and takes nothing more.
    ///
    /// # Errors
    /// The disk does not let it: what was not answered comes again.
    pub(super) async fn close(&self) -> Result<(), StageError> {
        let Some(Inside { writer, .. }) = self.inside.lock().await.take() else { return Ok(()) };
        writer.close().await.map_err(|error| StageError::permanent("the spool").because(error))
    }
}

fn refused(error: SpoolError) -> Refusal {
    match error {
        SpoolError::Closed => Refusal::closing(),
        error => Refusal::unknown(format!("the spool takes nothing: {error}")),
    }
}
