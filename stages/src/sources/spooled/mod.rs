//! What sources that can't be asked again have in common (MQTT, HTTP): whatever they receive is on
//! disk before it is acknowledged, and everything behind that reads it from there.
//!
//! ```text
//! outside ──▶ intake ──append──▶ spool ──▶ Forward ──decoded batches──▶ pipeline
//!    ▲           │                 │          ▲
//!    └── ack ◀───┴──── durable ◀───┘          └── trimmed behind the last checkpoint
//! ```
//! The intake is the source's own. It appends what arrives to the [`SpoolWriter`] and acknowledges what
//! [`Spool::durable`] has passed. [`Forward`] knows nothing of the outside: it goes on where the last run
//! has come to, whether the outside is there or not.

mod config;
mod forward;
mod record;
mod resend;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use pipeline_engine::Backoff;
use pipeline_engine::spool::{Record, RecoveryReport, Replay, Spool, SpoolError, SpoolOptions, SpoolWriter};
use pipeline_engine::stage::{SourceContext, StageError};
use tokio::task::{JoinError, JoinSet};

pub use config::SpoolConfig;
pub(crate) use forward::Forward;
pub(crate) use record::{KEYED, OVERSIZE, OWED, key, keyed_topic, oversize_payload};
pub(crate) use resend::message_of;

/// A spool that is open: the two ends, and what was found.
pub(crate) struct Opened {
    pub(crate) spool: Spool,
    pub(crate) writer: SpoolWriter,
    pub(crate) report: RecoveryReport,
}

/// A run that has just ended may still hold the lock for so many tenths of a second.
const LOCKED_ATTEMPTS: u32 = 20;

/// Opens the spool in a directory; `None` if the source is asked to stop first. A disk without room is
/// waited for.
///
/// # Errors
/// Another process has the spool, or it is another source's, or the directory can't be used.
pub(crate) async fn open(
    cx: &SourceContext,
    stage: &str,
    dir: PathBuf,
    options: SpoolOptions,
) -> Result<Option<Opened>, StageError> {
    let mut backoff = Backoff::default();
    let mut locked = 0;
    loop {
        let (place, settings, storage) = (dir.clone(), options.clone(), cx.storage());
        let opening = tokio::task::spawn_blocking(move || Spool::open(&place, settings, storage));
        let error = match opening.await {
            Ok(Ok((spool, writer, report))) => {
                tell(stage, &report);
                show_counters(cx, &spool);
                cx.show_spool(spool.meter());
                cx.intake().taken_to.set(report.durable_lsn);
                return Ok(Some(Opened { spool, writer, report }));
            }
            Ok(Err(error)) => error,
            Err(error) => return Err(StageError::bug("opening the spool panicked").because(error)),
        };
        let wait = if is_full(&error) {
            let wait = backoff.next_wait();
            tracing::warn!(stage, "the disk of \"{}\" is full; trying again in {} ms", dir.display(), wait.as_millis());
            wait
        } else if matches!(error, SpoolError::Locked { .. }) && locked < LOCKED_ATTEMPTS {
            locked += 1;
            Duration::from_millis(100)
        } else {
            return Err(unusable(error));
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cx.stop_requested() => return Ok(None),
        }
    }
}

fn tell(stage: &str, report: &RecoveryReport) {
    if report.is_sound() {
        tracing::info!(stage, spool = %report, "the spool is open");
    } else {
        tracing::error!(stage, spool = %report, "the spool is open and was damaged; `pipeline spool FILE` shows where");
    }
}

fn show_counters(cx: &SourceContext, spool: &Spool) {
    let counters = spool.counters();
    for (name, counter) in [
        ("spool_groups", &counters.groups),
        ("spool_bytes", &counters.bytes),
        ("spool_failures", &counters.failures),
        ("spool_pauses", &counters.pauses),
        ("spool_damage", &counters.damage),
    ] {
        cx.show_counter(name, counter);
    }
}

fn is_full(error: &SpoolError) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error, SpoolError::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
}

fn unusable(error: SpoolError) -> StageError {
    let hint = match &error {
        SpoolError::Locked { .. } => {
            "Is this pipeline running already? A second one needs a `data_dir` and a client id of its own."
        }
        SpoolError::Foreign { .. } => {
            "Set `data_dir` in [pipeline] to another folder, or give the source its old name back. `pipeline spool export --dir DIR` takes out what is in there."
        }
        SpoolError::Version { .. } => {
            "Work it off with the program that wrote it, or take it out with that program's `pipeline spool export`."
        }
        _ => "Set `data_dir` in [pipeline] to a folder on a local disk that this user may write to.",
    };
    StageError::permanent("can't use the spool").because(error).hint(hint)
}

/// Sends on what is in the spool while an intake of the source's own fills it, until both have ended. `intake` must
/// have closed the spool when it ends.
///
/// # Errors
/// Whichever of the two fails first.
pub(crate) async fn forward_beside(
    forward: Forward,
    cx: &SourceContext,
    spool: Spool,
    intake: impl Future<Output = Result<(), StageError>> + Send + 'static,
) -> Result<(), StageError> {
    // A set, since dropping it ends the task: at a hard stop nobody is left to tell it.
    let mut receiving = JoinSet::new();
    receiving.spawn(intake);
    {
        let mut forwarding = std::pin::pin!(forward.run(cx, &spool));
        loop {
            tokio::select! {
                Some(ended) = receiving.join_next() => outcome(ended)?,
                forwarded = &mut forwarding => break forwarded?,
            }
        }
    }
    // Its end of the spool is closed, so the intake has ended; if with an error, that is the cause.
    while let Some(ended) = receiving.join_next().await {
        outcome(ended)?;
    }
    // It waits for the disk.
    tokio::task::spawn_blocking(move || drop(spool))
        .await
        .map_err(|error| StageError::bug("the spool panicked").because(error))
}

fn outcome(ended: Result<Result<(), StageError>, JoinError>) -> Result<(), StageError> {
    ended.unwrap_or_else(|error| Err(StageError::bug("the intake panicked").because(error)))
}

/// Shows the newest records that are durable, at most so many, with their numbers; the oldest first. Damaged ones are left
/// out: whoever forwards reports them. None is kept: so many payloads may be more than there is memory.
///
/// # Errors
/// The disk can't be read.
pub(crate) async fn visit_newest(
    spool: &Spool,
    count: usize,
    mut visit: impl FnMut(u64, Record),
) -> Result<(), StageError> {
    let durable = *spool.durable().borrow();
    let first = durable.saturating_sub(count as u64) + 1;
    let mut reader = spool.reader(first);
    let mut at = first;
    while at <= durable {
        match reader.next().await {
            Ok(Some(Replay::Frame(frame))) => {
                at = frame.last_lsn() + 1;
                let newest = (frame.first_lsn..).zip(frame.records).filter(|(lsn, _)| *lsn >= first);
                newest.for_each(|(lsn, record)| visit(lsn, record));
            }
            Ok(Some(Replay::Lost(lost))) => at = lost.end() + 1,
            Ok(None) => break,
            Err(error) => return Err(unusable(error)),
        }
    }
    Ok(())
}
