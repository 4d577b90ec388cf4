//! A run of the source as one of several workers: renews its leases, takes those that it should have, hands over those that
//! others should have, and reads the shards of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pipeline_engine::stage::{Fault, SourceContext, StageError};
use pipeline_engine::{Backoff, Claimed, Counter, Gauge, Outside, now_us};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::super::lag::Lag;
use super::super::reading::{ANSWERS_MAX, connect};
use super::super::retention::Retention;
use super::super::sending::Sending;
use super::super::shard::{Ended, Shared};
use super::super::{Kinesis, StartAt};
use super::Workers;
use super::balance::Sightings;
use super::held::{Held, Lost, Standing};
use super::table::LeaseTable;
use crate::kinesis::Shard;

/// A run as one of several workers.
pub(in super::super) struct SharedReading {
    pub(super) shared: Arc<Shared>,
    pub(super) table: LeaseTable,
    /// The table of leases.
    pub(super) outside: Outside,
    pub(super) application: String,
    pub(super) worker: String,
    pub(super) lasts: Duration,
    pub(super) hand_over: Duration,
    pub(super) start: StartAt,
    pub(super) started_at_us: i64,
    pub(super) poll_interval: Duration,
    pub(super) poll_records: i32,
    pub(super) batch_rows_max: usize,
    pub(super) retention: Retention,
    pub(super) answers: Arc<Semaphore>,
    pub(super) sightings: Sightings,
    /// By shard.
    pub(super) held: BTreeMap<String, Held>,
    /// Shards that the sinks are asked to forget.
    pub(super) forgetting: BTreeSet<String>,
    /// That they can't was said.
    pub(super) forgetting_failed: bool,
    pub(super) listed: Vec<Shard>,
    pub(super) list_at: Instant,
    pub(super) tasks: JoinSet<(String, u64, Outcome)>,
    pub(super) counters: Counters,
    pub(super) is_stopping: bool,
}

pub(super) struct Counters {
    pub(super) taken: Counter,
    pub(super) lost: Counter,
    pub(super) handed_over: Counter,
    /// The shards that are read here.
    pub(super) shards: Gauge,
}

/// What a task has come to.
pub(super) enum Outcome {
    Claimed(Result<Claimed, StageError>),
    Read(Result<Ended, StageError>),
    /// Whether everything that was read is stored and kept.
    Stored(bool),
    /// Whether nothing of a shard is on record any more. The number beside it is the counter of its lease.
    Forgotten(Result<bool, StageError>),
}

impl SharedReading {
    /// Connects, for as long as that takes; `None` if the source is asked to stop first.
    ///
    /// # Errors
    /// The stream or the table needs a person.
    pub(in super::super) async fn begin(
        source: Kinesis,
        workers: Workers,
        cx: SourceContext,
    ) -> Result<Option<Self>, StageError> {
        let Kinesis { stage, mut stream, start, fan_out, decoder, .. } = source;
        let started_at_us = now_us();
        let worker = workers.name().await;
        let Workers { mut table, application, lasts, hand_over, .. } = workers;
        table.count_throttled(cx.counter("throttled"));
        let opening = async {
            let (mut backoff, mut outside) = (Backoff::default(), cx.outside());
            loop {
                let opened = async {
                    let connected = connect(&mut stream, fan_out.as_deref()).await?;
                    table.connect().await?;
                    table.ensure().await?;
                    Ok::<_, StageError>(connected)
                };
                match opened.await {
                    Ok(connected) => return Ok::<_, StageError>(connected),
                    Err(error) => wait_after(error, &stage, &mut outside, &mut backoff).await?,
                }
            }
        };
        let (summary, consumer_arn) = tokio::select! {
            connected = opening => connected?,
            () = cx.stop_requested() => return Ok(None),
        };
        tracing::info!(stage, worker, table = table.name(), "sharing the stream with other workers");
        let counters = Counters {
            taken: cx.counter("leases_taken"),
            lost: cx.counter("leases_lost"),
            handed_over: cx.counter("leases_handed_over"),
            shards: cx.partitions_held(),
        };
        let sending = Sending::new(cx, decoder, None);
        let lag = Lag::new(sending.cx.behind_ms());
        let outside = sending.cx.outside();
        Ok(Some(Self {
            shared: Arc::new(Shared { stage, stream, consumer_arn, sending, lag }),
            table,
            outside,
            application,
            worker,
            lasts,
            hand_over,
            start,
            started_at_us,
            poll_interval: source.poll_interval,
            poll_records: source.poll_records,
            batch_rows_max: source.batch_rows_max,
            retention: Retention::of_hours(summary.retention_hours),
            answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
            sightings: Sightings::default(),
            held: BTreeMap::new(),
            forgetting: BTreeSet::new(),
            forgetting_failed: false,
            listed: Vec::new(),
            list_at: Instant::now(),
            tasks: JoinSet::new(),
            counters,
            is_stopping: false,
        }))
    }

    /// Reads until the source is asked to stop, then waits until what was read is stored, and lets go of its leases.
    ///
    /// # Errors
    /// The stream, the table or a sink needs a person, or a stage behind this one has ended.
    pub(in super::super) async fn run(mut self) -> Result<(), StageError> {
        let shared = self.shared.clone();
        let mut tick = tokio::time::interval(self.lasts / 3);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !(self.is_stopping && self.held.is_empty()) {
            self.counters.shards.set(self.held.values().filter(|held| held.is_read()).count() as u64);
            // In no fixed order: where the table is slow the next tick is always due, and what tasks have come to would wait forever.
            tokio::select! {
                () = shared.sending.stop_requested(), if !self.is_stopping => self.stop().await,
                _ = tick.tick() => {
                    // Whatever of it is given up midway shows in the table with the next one.
                    let tick = tokio::time::timeout(self.lasts, self.tick()).await;
                    let late = |_| Err(StageError::transient("the table of leases did not answer in time"));
                    match tick.unwrap_or_else(late) {
                        Ok(()) => self.outside.is_back(),
                        Err(error) => self.patient(error)?,
                    }
                }
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok((shard, tenure, outcome)) => self.go_on(&shard, tenure, outcome).await?,
                    // A claim that was given up.
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return Err(StageError::bug("the reader of a shard panicked").because(error)),
                },
            }
        }
        self.counters.shards.set(0);
        shared.sending.cx.close().await;
        Ok(())
    }

    /// What passes is waited for with the next tick; leases that could not be renewed meanwhile are given up.
    pub(super) fn patient(&mut self, error: StageError) -> Result<(), StageError> {
        if error.fault() != Fault::Transient {
            return Err(error);
        }
        tracing::warn!(stage = self.shared.stage, "{}; trying again", error.chain());
        self.outside.failed(&error);
        let lasts = self.lasts;
        let lapsed = |(shard, held): (&String, &Held)| (held.renewed_at.elapsed() > lasts).then(|| shard.clone());
        let lapsed: Vec<String> = self.held.iter().filter_map(lapsed).collect();
        for shard in lapsed {
            self.lose(&shard, Lost::Lapsed);
        }
        Ok(())
    }

    /// The run is to stop: readers end by themselves, what is not read yet is let go of at once.
    async fn stop(&mut self) {
        self.is_stopping = true;
        let unread = |(shard, held): (&String, &Held)| {
            matches!(held.standing, Standing::Awaited { .. } | Standing::Claiming(_)).then(|| shard.clone())
        };
        let unread: Vec<String> = self.held.iter().filter_map(unread).collect();
        for shard in unread {
            let Some(held) = self.held.remove(&shard) else { continue };
            if let Standing::Claiming(task) = &held.standing {
                task.abort();
            }
            if let Err(error) = self.table.release(&shard, &self.worker, held.counter, None, &[]).await {
                // It runs out by itself.
                tracing::warn!(stage = self.shared.stage, shard, "{}", error.chain());
            }
        }
    }
}

async fn wait_after(
    error: StageError,
    stage: &str,
    outside: &mut Outside,
    backoff: &mut Backoff,
) -> Result<(), StageError> {
    if error.fault() != Fault::Transient {
        return Err(error);
    }
    outside.failed(&error);
    let wait = backoff.next_wait();
    tracing::warn!(stage, "{}; trying again in {} ms", error.chain(), wait.as_millis());
    tokio::time::sleep(wait).await;
    Ok(())
}
