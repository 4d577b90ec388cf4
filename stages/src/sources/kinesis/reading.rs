//! A run of the source: finds the shards, reads those that may be read, and lets go of what every sink has stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pipeline_engine::stage::{Fault, SourceContext, StageError};
use pipeline_engine::{Backoff, Outside, Partition, Position, now_us};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::batches::Assembly;
use super::fan_out;
use super::feed::Start;
use super::journal::{Journal, Recorded};
use super::lag::Lag;
use super::lineage::Lineage;
use super::polling::{Place, Polling};
use super::retention::Retention;
use super::roster::Origin;
use super::sending::Sending;
use super::shard::{Ended, ShardReader, Shared};
use super::{Kinesis, StartAt};
use crate::kinesis::{Shard, Stream};

/// How often the stream is asked for shards that nobody has told of.
pub(super) const LIST_INTERVAL: Duration = Duration::from_secs(60);
/// How soon after a shard has ended whose children are not listed yet.
const CHILDREN_INTERVAL: Duration = Duration::from_secs(2);
/// Every closed shard has children, unless they have come to the end of their retention too.
const CHILDREN_PATIENCE: Duration = Duration::from_secs(300);
/// How often what is stored everywhere is let go of.
const SETTLE_INTERVAL: Duration = Duration::from_secs(2);
/// Answers of up to 10 MiB each that may be in memory at once, of all shards.
pub(super) const ANSWERS_MAX: usize = 16;

/// A run of the source, with all that it has opened.
pub(super) struct Reading {
    shared: Arc<Shared>,
    start: StartAt,
    started_at_us: i64,
    poll_interval: Duration,
    poll_records: i32,
    batch_rows_max: usize,
    retention: Retention,
    answers: Arc<Semaphore>,
    /// The list of the shards.
    list: Outside,
    lineage: Lineage,
    shards: JoinSet<Result<(String, Ended), StageError>>,
    followed: BTreeMap<String, Followed>,
    /// Shards that have ended, and since when, whose children are not listed yet.
    childless: BTreeMap<String, Instant>,
    /// Nothing was ever read of this stream before.
    is_first: bool,
}

/// A partition whose progress lets the journal forget.
struct Followed {
    partition: Partition,
    checkpointed: watch::Receiver<Option<Position>>,
    /// The checkpoint before the newest: that is used where the newest is damaged.
    before: Option<Position>,
    newest: Option<Position>,
}

impl Reading {
    /// Connects, opens the journal and finds the shards, for as long as that takes; `None` if the source is asked to stop
    /// first.
    ///
    /// # Errors
    /// The stream or the disk needs a person.
    pub(super) async fn begin(source: Kinesis, cx: SourceContext) -> Result<Option<Self>, StageError> {
        let Kinesis { stage, mut stream, start, fan_out, decoder, dir, journal, .. } = source;
        // Before the stream is asked for anything, so that "latest" is never later than what was asked for.
        let started_at_us = now_us();
        let opening = async {
            let (mut backoff, mut outside) = (Backoff::default(), cx.outside());
            loop {
                match connect(&mut stream, fan_out.as_deref()).await {
                    Ok(connected) => return Ok(connected),
                    Err(error) if error.fault() == Fault::Transient => {
                        outside.failed(&error);
                        let wait = backoff.next_wait();
                        tracing::warn!(stage, "{}; trying again in {} ms", error.chain(), wait.as_millis());
                        tokio::time::sleep(wait).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let (summary, consumer_arn) = tokio::select! {
            connected = opening => connected?,
            () = cx.stop_requested() => return Ok(None),
        };
        let Some(journal) = Journal::open(&cx, dir, journal, stream.name(), &summary).await? else { return Ok(None) };
        let is_first = journal.is_first();
        let sending = Sending::new(cx, decoder, Some(journal));
        let lag = Lag::new(sending.cx.behind_ms());
        let list = sending.cx.outside();
        Ok(Some(Self {
            shared: Arc::new(Shared { stage, stream, consumer_arn, sending, lag }),
            start,
            started_at_us,
            poll_interval: source.poll_interval,
            poll_records: source.poll_records,
            batch_rows_max: source.batch_rows_max,
            retention: Retention::of_hours(summary.retention_hours),
            answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
            list,
            lineage: Lineage::default(),
            shards: JoinSet::new(),
            followed: BTreeMap::new(),
            childless: BTreeMap::new(),
            is_first,
        }))
    }

    /// Reads until the source is asked to stop, and then waits for its promises.
    ///
    /// # Errors
    /// The stream or the disk needs a person, a stage behind this one has ended, or a promise was broken.
    pub(super) async fn run(mut self) -> Result<(), StageError> {
        let read = self.read().await;
        // They end by themselves: the token that they watch is that of the stop. After an error nobody waits for them.
        if read.is_ok() {
            while let Some(ended) = self.shards.join_next().await {
                outcome(ended)?;
            }
        }
        self.shards.shutdown().await;
        read?;
        let shared = self.shared.clone();
        shared.sending.cx.close().await;
        let partitions: Vec<Partition> = self.followed.values().map(|followed| followed.partition.clone()).collect();
        for partition in &partitions {
            shared.sending.cx.drain(partition).await?;
        }
        self.let_go().await;
        self.followed.clear();
        drop(self);
        match Arc::into_inner(shared) {
            Some(shared) => match shared.sending.journal {
                Some(journal) => journal.close().await,
                None => Ok(()),
            },
            None => Err(StageError::bug("a shard is still being read after the end")),
        }
    }

    async fn read(&mut self) -> Result<(), StageError> {
        let shared = self.shared.clone();
        let mut list_at = Instant::now();
        let mut settle = tokio::time::interval(SETTLE_INTERVAL);
        loop {
            tokio::select! {
                biased;
                () = shared.sending.stop_requested() => return Ok(()),
                Some(ended) = self.shards.join_next() => {
                    let (id, ended) = outcome(ended)?;
                    shared.lag.forget(&id);
                    if ended == Ended::Shard {
                        tracing::info!(stage = shared.stage, shard = id, "the shard is closed and read to its end");
                        self.lineage.done(&id);
                        let has_child = self.lineage.has_child(&id);
                        self.start_those(true).await?;
                        if !has_child {
                            self.childless.insert(id, Instant::now());
                            list_at = Instant::now();
                        }
                    }
                }
                () = tokio::time::sleep_until(list_at) => {
                    let all_are_known = self.list().await?;
                    list_at = Instant::now() + if all_are_known { LIST_INTERVAL } else { CHILDREN_INTERVAL };
                }
                _ = settle.tick() => {
                    self.let_go().await;
                    shared.lag.show();
                    let behind = Duration::from_millis(shared.sending.cx.behind_ms().get());
                    self.retention.look(&shared.stage, behind);
                }
            }
        }
    }

    /// Asks for the shards and begins to read those that may be read. False where it should be asked again soon.
    async fn list(&mut self) -> Result<bool, StageError> {
        let shared = self.shared.clone();
        let listed = match shared.stream.shards().await {
            Ok(listed) => listed,
            Err(error) if error.fault() == Fault::Transient => {
                tracing::warn!(stage = shared.stage, "{}; trying again", error.chain());
                self.list.failed(&error);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        self.list.is_back();
        let new = self.lineage.learn(&listed);
        let origin = |shard: &Shard| match self.start {
            // Whatever comes later has come from what is being read.
            _ if !self.is_first => Origin::Horizon,
            StartAt::Horizon => Origin::Horizon,
            StartAt::Time(at_us) => Origin::Time(at_us),
            StartAt::Latest if shard.is_closed => Origin::Skipped,
            StartAt::Latest => Origin::Latest(self.started_at_us),
        };
        if let Err(error) = shared.sending.journal()?.enrol(&listed, origin).await {
            tracing::warn!(stage = shared.stage, "{}; trying again", error.chain());
            new.iter().for_each(|shard| self.lineage.forget(&shard.id));
            return Ok(false);
        }
        let latest_was_asked = !self.is_first;
        self.is_first = false;
        for shard in &new {
            if shared.sending.journal()?.recorded(&shard.id).is_some_and(|recorded| recorded.origin == Origin::Skipped)
            {
                self.lineage.done(&shard.id);
            }
        }
        self.start_those(latest_was_asked).await?;
        let lineage = &self.lineage;
        self.childless.retain(|id, since| !lineage.has_child(id) && since.elapsed() < CHILDREN_PATIENCE);
        Ok(self.childless.is_empty())
    }

    /// Begins to read every shard whose turn it is.
    async fn start_those(&mut self, latest_was_asked: bool) -> Result<(), StageError> {
        loop {
            // Again after shards that have expired: the turn is that of their children then.
            let ids = self.lineage.startable();
            if ids.is_empty() {
                return Ok(());
            }
            for id in ids {
                match self.shared.sending.journal()?.recorded(&id) {
                    Some(recorded) => self.start_reader(&id, recorded, latest_was_asked).await?,
                    None => self.give_up(&id),
                }
            }
        }
    }

    /// Of a shard that has waited for its parent until the stream listed it no more. Should a later list name it after all,
    /// it is read then.
    fn give_up(&mut self, id: &str) {
        let shared = &self.shared;
        tracing::error!(stage = shared.stage, shard = id, "its records have passed their retention before it was read");
        shared.sending.expired_shards.increment();
        self.lineage.forget(id);
    }

    async fn start_reader(&mut self, id: &str, recorded: Recorded, latest_was_asked: bool) -> Result<(), StageError> {
        let shared = &self.shared;
        let name = format!("{}@{}/{id}", shared.stream.name(), shared.sending.journal()?.generation());
        let (partition, after) = shared.sending.cx.resumable_partition(&name).await;
        let origin = recorded.origin;
        let newest = after.or(recorded.passed);
        tracing::info!(stage = shared.stage, shard = id, "reading the shard");
        let checkpointed = partition.checkpointed();
        let followed = Followed { partition: partition.clone(), checkpointed, before: None, newest };
        self.followed.insert(id.to_owned(), followed);
        let reader = ShardReader {
            shared: shared.clone(),
            id: id.to_owned(),
            partition,
            assembly: Assembly::new(after, recorded, self.batch_rows_max),
            origin,
            latest_was_asked,
            earliest_us: None,
            polling: Polling {
                stream: shared.stream.clone(),
                shard: id.to_owned(),
                records_max: self.poll_records,
                idle: self.poll_interval,
                answers: self.answers.clone(),
                place: Place::At(Start::Horizon),
                next_at: Instant::now(),
            },
            stop: shared.sending.cx.stop_token(),
        };
        self.shards.spawn(reader.run());
        Ok(())
    }

    /// Lets the journal forget what no restart asks for.
    async fn let_go(&mut self) {
        let sending = &self.shared.sending;
        let Some(journal) = &sending.journal else { return };
        for (shard, followed) in &mut self.followed {
            if let Some(position) = followed.passed(sending.cx.takes_checkpoints()) {
                journal.passed(shard, position);
            }
        }
        if let Err(error) = journal.settle().await {
            tracing::warn!(stage = self.shared.stage, "{}; trying again", error.chain());
        }
    }
}

impl Followed {
    /// What no restart asks for again.
    fn passed(&mut self, takes_checkpoints: bool) -> Option<Position> {
        if !takes_checkpoints {
            return self.partition.progress().borrow().delivered;
        }
        if self.checkpointed.has_changed().unwrap_or(false) {
            let newest = *self.checkpointed.borrow_and_update();
            if newest != self.newest {
                (self.before, self.newest) = (self.newest, newest);
            }
        }
        self.before
    }
}

pub(super) async fn connect(
    stream: &mut Stream,
    consumer: Option<&str>,
) -> Result<(crate::kinesis::Summary, Option<String>), StageError> {
    stream.connect().await?;
    let summary = stream.describe().await?;
    let consumer_arn = match consumer {
        Some(name) => Some(fan_out::consumer(stream, &summary.arn, name).await?),
        None => None,
    };
    Ok((summary, consumer_arn))
}

fn outcome(
    ended: Result<Result<(String, Ended), StageError>, tokio::task::JoinError>,
) -> Result<(String, Ended), StageError> {
    ended.unwrap_or_else(|error| Err(StageError::bug("the reader of a shard panicked").because(error)))
}
