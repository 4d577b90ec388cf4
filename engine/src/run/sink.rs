//! Runs a sink: groups batches, commits each group with retries, and only then keeps the promises.
//!
//! Grouping, retry, bisection of bad groups, positions and verdicts are written here, once for all
//! sinks.

mod orders;
mod refused;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::Instant as Deadline;
use tokio_util::sync::CancellationToken;

use super::patience::Patience;
use crate::balance::{STORED_BEFORE, TAKEN_OVER};
use crate::batch::Batch;
use crate::error::{Fault, StageError};
use crate::position::Position;
use crate::queue::{Inbox, Outbox};
use crate::stage::{Adopted, Advance, BuiltSink, Group, Grouping, Port, Sink};
use crate::stats::{Counter, StageState, StageStats};
use crate::tenure::{Claim, Orders, SinkOrder};

/// An attempt that takes longer is told of, and again each time it has taken twice as long.
const LONG: Duration = Duration::from_secs(30);

/// One edge into a sink.
pub(super) struct Input {
    /// What its positions are kept under: the stage and port that the pipeline file names, and what is decided on the way.
    pub name: String,
    /// Positions on it only go up. They don't where a source's rows come by two ways that join before it:
    /// then a row is known by its key alone.
    pub is_ordered: bool,
}

/// What a sink does about an error that needs a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnPermanent {
    /// The run stops.
    Stop,
    /// It stops while nothing was ever stored, since then a mistake is likelier than a fault; later the
    /// sink pauses.
    PauseOnceOpen,
    /// The sink pauses.
    Pause,
}

/// Opens a sink, waiting for its outside as long as it takes.
pub(super) async fn open(sink: &mut dyn Sink, stats: &StageStats, on_permanent: OnPermanent) -> Result<(), StageError> {
    let mut patience = Patience::new(on_permanent == OnPermanent::Pause);
    loop {
        match sink.open().await {
            Ok(()) => return Ok(()),
            Err(error) => patience.wait(error, stats, "open").await?,
        }
    }
}

/// Resolves once a run that stops has ended all inputs of a sink and nothing has come by them. What comes instead is put into
/// `waiting`, in the sink's hands.
async fn nothing_to_store(
    inbox: &mut Inbox,
    stopping: &CancellationToken,
    stats: &StageStats,
    waiting: &mut Option<(usize, Batch)>,
) {
    stopping.cancelled().await;
    let Some((edge, batch)) = inbox.next_batch().await else { return };
    stats.taken_in_hand(batch.rows.num_rows());
    stats.holds_since(batch.ack.received_at_us());
    *waiting = Some((edge, batch));
    std::future::pending::<()>().await;
}

/// Says, while an attempt goes on, that it takes long: whatever the outside does, a person can see it.
async fn told_of<T>(attempt: impl Future<Output = T>, stage: &str, rows: usize) -> T {
    let started = Instant::now();
    let mut attempt = pin!(attempt);
    let mut patience = LONG;
    loop {
        match tokio::time::timeout(patience, &mut attempt).await {
            Ok(outcome) => return outcome,
            Err(_) => {
                let seconds = started.elapsed().as_secs();
                tracing::warn!(stage, rows, seconds, "a group is being stored for long: the outside does not answer");
                patience *= 2;
            }
        }
    }
}

pub(super) struct SinkTask {
    sink: Box<dyn Sink>,
    grouping: Grouping,
    inputs: Vec<Input>,
    /// How far the sink has come, by input and partition.
    committed: BTreeMap<(usize, String), Position>,
    /// Somebody reads what the sink refuses.
    has_rejected: bool,
    on_permanent: OnPermanent,
    outbox: Outbox,
    stats: Arc<StageStats>,
    replayed: Counter,
    /// In the sink's hands until the group before it is stored.
    waiting: Option<(usize, Batch)>,
    /// Where several workers share the source.
    orders: Option<Orders>,
    /// One that has ended a group, to be obeyed behind it.
    ordered: Option<SinkOrder>,
    /// The tenures that are on record, by partition.
    tenures: BTreeMap<String, u64>,
}

impl SinkTask {
    pub(super) fn new(
        built: BuiltSink,
        inputs: Vec<Input>,
        on_permanent: OnPermanent,
        outbox: Outbox,
        stats: Arc<StageStats>,
        orders: Option<Orders>,
    ) -> Self {
        Self {
            sink: built.sink,
            grouping: built.grouping,
            inputs,
            committed: BTreeMap::new(),
            has_rejected: outbox.is_read(Port::REJECTED),
            on_permanent,
            outbox,
            replayed: Counter::default(),
            stats,
            waiting: None,
            orders,
            ordered: None,
            tenures: BTreeMap::new(),
        }
    }

    /// `opened`: it was opened before the sources started. `resumes`: the run goes on from where an earlier
    /// one has come to. `stopping`: it was asked to stop.
    pub(super) async fn run(
        mut self,
        mut inbox: Inbox,
        opened: bool,
        resumes: bool,
        stopping: CancellationToken,
    ) -> Result<(), StageError> {
        if !opened {
            tokio::select! {
                biased;
                opened = open(self.sink.as_mut(), &self.stats, self.on_permanent) => opened?,
                // Nobody waits for an outside that is not needed.
                () = nothing_to_store(&mut inbox, &stopping, &self.stats, &mut self.waiting) => return Ok(()),
            }
            self.stats.set_state(StageState::Running);
        }
        // Of a partition that is shared this is learnt when its tenure begins.
        if resumes && self.orders.is_none() {
            self.learn_committed().await?;
        }
        while let Some((edge, batch)) = self.next_batch(&mut inbox).await? {
            let Some(first) = self.unless_stored(edge, batch) else {
                self.stats.holds_nothing();
                continue;
            };
            let group = self.collect(edge, first, &mut inbox).await?;
            self.store(group).await?;
            self.stats.holds_nothing();
        }
        self.sink.close().await
    }

    async fn learn_committed(&mut self) -> Result<(), StageError> {
        let mut patience = Patience::new(self.pauses());
        let committed = loop {
            match self.sink.committed().await {
                Ok(committed) => break committed,
                Err(error) => patience.wait(error, &self.stats, "read how far it has come").await?,
            }
        };
        patience.is_over(&self.stats);
        for entry in committed {
            // An input that is no longer one has nothing to leave out.
            if let Some(edge) = self.inputs.iter().position(|input| input.name == entry.input) {
                self.committed.insert((edge, entry.partition), entry.position);
            }
        }
        Ok(())
    }

    fn pauses(&self) -> bool {
        self.on_permanent != OnPermanent::Stop
    }

    /// The batch, unless the sink has stored it in an earlier run.
    fn unless_stored(&mut self, edge: usize, batch: Batch) -> Option<Batch> {
        if self.is_taken_over(&batch) {
            self.give_up(batch);
            return None;
        }
        if let Some((partition, span)) = self.place_of(edge, &batch)
            && self.committed.get(&(edge, partition)).is_some_and(|committed| *committed >= span.last)
        {
            if self.replayed.get() == 0 {
                self.replayed = self.stats.counter(STORED_BEFORE);
            }
            self.replayed.add(batch.rows.num_rows() as u64);
            batch.ack.deliver();
            return None;
        }
        Some(batch)
    }

    /// Where a batch stands, if its positions mean the same after a restart.
    fn place_of(&self, edge: usize, batch: &Batch) -> Option<(String, crate::position::Span)> {
        let partition = batch.ack.partition().filter(|partition| partition.is_resumable())?;
        let (_, span) = batch.ack.span()?;
        self.inputs[edge].is_ordered.then(|| (partition.name().to_owned(), span))
    }

    /// A group: what is there now, or what comes while it may linger. Whoever orders something, or waits for what it has, waits
    /// for no more to come.
    async fn collect(&mut self, edge: usize, first: Batch, inbox: &mut Inbox) -> Result<Group, StageError> {
        let deadline = Deadline::now() + self.grouping.linger;
        let mut gathered = Gathered::default();
        self.gather(&mut gathered, edge, first)?;
        while gathered.rows < self.grouping.rows_max && gathered.bytes < self.grouping.bytes_max {
            let next = match inbox.try_next_batch() {
                Some(batch) => Some(batch),
                None if self.grouping.linger.is_zero() => None,
                None => self.next_before(deadline, inbox).await,
            };
            let Some((edge, batch)) = next else { break };
            if self.is_ahead_of_orders(&batch) {
                self.stats.taken_in_hand(batch.rows.num_rows());
                self.waiting = Some((edge, batch));
                break;
            }
            if let Some(batch) = self.unless_stored(edge, batch) {
                self.gather(&mut gathered, edge, batch)?;
            }
        }
        self.stats.entered(gathered.rows);
        self.stats.taken_in_hand(gathered.rows);
        let advances = gathered.advances.into_iter().map(|((edge, partition), to)| {
            let from = self.committed.get(&(edge, partition.clone())).copied();
            let tenure = self.tenures.get(&partition).copied();
            Advance { input: self.inputs[edge].name.clone(), partition, from, to, tenure }
        });
        let advances = advances.collect();
        Ok(Group::advancing(gathered.batches, advances))
    }

    fn gather(&self, gathered: &mut Gathered, edge: usize, batch: Batch) -> Result<(), StageError> {
        if let Some((partition, span)) = self.place_of(edge, &batch) {
            let key = (edge, partition);
            let before = gathered.advances.get(&key).or_else(|| self.committed.get(&key));
            if before.is_some_and(|before| span.first <= *before) {
                let input = &self.inputs[edge].name;
                return Err(StageError::bug(format!("\"{input}\" went back to {span} of \"{}\"", key.1)));
            }
            gathered.advances.insert(key, span.last);
        }
        self.stats.holds_since(batch.ack.received_at_us());
        gathered.rows += batch.rows.num_rows();
        gathered.bytes += batch.rows.get_array_memory_size();
        gathered.batches.push(batch);
        Ok(())
    }

    /// Commits a group, without the rows that are refused.
    async fn store(&mut self, group: Group) -> Result<(), StageError> {
        let (group, outcome) = self.write_ours(group).await;
        match outcome {
            Ok(()) => {
                self.keep_promises(group);
                Ok(())
            }
            Err(error) if error.fault() == Fault::Data => self.store_without_refused(group, error).await,
            Err(error) => Err(error),
        }
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        if group.batches().is_empty() && group.advances().is_empty() {
            return Ok(());
        }
        let mut patience = Patience::new(self.pauses());
        loop {
            let busy = self.stats.busy.start();
            let outcome = told_of(self.sink.write(group), &self.stats.name, group.rows()).await;
            drop(busy);
            match outcome {
                Err(error) if !error.superseded_partitions().is_empty() => {
                    patience.is_over(&self.stats);
                    return Err(error);
                }
                Err(error) if error.fault() != Fault::Data => {
                    self.stats.delivery_failed();
                    patience.wait(error, &self.stats, "store a group").await?
                }
                outcome => {
                    patience.is_over(&self.stats);
                    return outcome;
                }
            }
        }
    }

    fn keep_promises(&mut self, group: Group) {
        let rows = group.rows();
        if rows > 0 {
            self.stats.stored(group.batches());
            self.stats.out_of_hand(rows);
        }
        let (batches, advances) = group.into_parts();
        for advance in advances {
            if let Some(edge) = self.inputs.iter().position(|input| input.name == advance.input) {
                self.committed.insert((edge, advance.partition), advance.to);
            }
        }
        batches.into_iter().for_each(|batch| batch.ack.deliver());
    }

    /// A sink that can pause does, for good: only a changed pipeline file ends it.
    async fn check_rejected_is_read(&mut self, error: &StageError) -> Result<(), StageError> {
        if self.has_rejected {
            return Ok(());
        }
        let mut patience = Patience::new(self.pauses());
        loop {
            let cause = error.refused_rows().first().map_or_else(|| error.chain(), |refused| refused.detail.clone());
            let hint = format!(
                "Add \"{}.rejected\" to the inputs of a sink, so that the bad row is kept there.",
                self.stats.name
            );
            let unread = StageError::permanent("a row was refused, and nothing reads the port \"rejected\"");
            patience.wait(unread.because(cause).hint(hint), &self.stats, "store a group").await?;
        }
    }
}

/// A group in the making.
#[derive(Default)]
struct Gathered {
    batches: Vec<Batch>,
    rows: usize,
    bytes: usize,
    advances: BTreeMap<(usize, String), Position>,
}
