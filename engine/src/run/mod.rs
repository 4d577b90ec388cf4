//! The run loop: starts the stages of a plan in order, watches them, and stops them in order.
//!
//! Start: transforms and sinks open, and only when all are open do the sources read. Stop: the
//! sources stop reading and close their ports, each stage ends when its inputs have ended, sinks
//! write what they hold; the sources wait for their promises and let go. A fault of any stage stops
//! the run with that stage's name; what is on its way then counts as failed and comes again.
//!
//! Where every source can be resumed, more is possible: they read at once, each sink opens when its
//! outside is there, a sink that needs a person pauses without the others, and what is not stored at a
//! stop is left for the next run.

mod edges;
mod examine;
mod patience;
mod sink;
#[cfg(test)]
mod tests;
mod times;
mod transform;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backlog::BacklogMeter;
use crate::balance::Auditor;
use crate::checkpoint::{Checkpoint, CheckpointStore, Checkpointer, Gate, Reports, SharedCheckpointer};
use crate::context::{SourceContext, SourceResumption};
use crate::error::StageError;
use crate::plan::{Node, Plan};
use crate::queue::{Inbox, Outbox};
use crate::registry::{Built, Kind};
use crate::report::Report;
use crate::stage::{Account, SchemaComparison};
use crate::stats::{EdgeStats, RunStats, StageState, StageStats};
use crate::storage::{FsStorage, Storage};
use crate::tenure::Tenures;
use sink::{OnPermanent, SinkTask};
use transform::{Shares, TransformTask};

/// How long other stages may take to end by themselves after one has failed: long enough that the
/// cause is heard before its consequences.
const CAUSE_GRACE: Duration = Duration::from_secs(2);
/// How often it is checked that every row is accounted for, and said what is to be caught up.
const AUDIT_INTERVAL: Duration = Duration::from_secs(10);

/// A plan about to run.
pub struct Run {
    plan: Plan,
    stats: Arc<RunStats>,
    edges: Vec<Arc<EdgeStats>>,
    storage: Arc<dyn Storage>,
    /// Its transforms are open.
    is_prepared: bool,
}

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A stage failed.
    #[error("{kind} \"{stage}\" ({type_name}) stopped the run: {}", error.chain())]
    Stage {
        /// The stage's name.
        stage: String,
        /// `source`, `transform` or `sink`.
        kind: &'static str,
        /// The stage's type.
        type_name: &'static str,
        /// What happened.
        error: StageError,
    },
    /// What must survive a restart can't be kept.
    #[error("can't use the data directory \"{}\": {source}. {hint}", dir.display())]
    DataDir {
        /// `data_dir` of the pipeline, with the pipeline's name.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
        /// A way out.
        hint: &'static str,
    },
    /// The stop took longer than the pipeline allows.
    #[error(
        "{rows} rows were still on their way when the drain timeout of {} ended; they were not acknowledged, so a source that keeps them sends them again",
        humantime::format_duration(*timeout)
    )]
    NotDrained {
        /// Rows in queues at that time.
        rows: u64,
        /// `drain_timeout` of the pipeline.
        timeout: Duration,
    },
}

type Ended = (usize, Result<(), StageError>);

impl Run {
    /// Prepares the counters; nothing starts yet.
    pub fn new(plan: Plan) -> Self {
        times::find(&plan.nodes, &plan.edges);
        let edges: Vec<_> = plan.edges.iter().map(|edge| Arc::new(edges::stats(&plan.nodes, *edge))).collect();
        let stages = plan.nodes.iter().map(|node| node.stats.clone()).collect();
        let stats = Arc::new(RunStats { stages, edges: edges.clone() });
        Self { plan, stats, edges, storage: Arc::new(FsStorage), is_prepared: false }
    }

    /// Keeps what must survive a restart on another disk than this machine's: a simulated one.
    #[must_use]
    pub fn on_storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = storage;
        self
    }

    /// The counters, to look at while it runs.
    pub fn stats(&self) -> Arc<RunStats> {
        self.stats.clone()
    }

    /// Asks every source and sink, and each transform that has one, whether it can reach its outside, changing
    /// nothing there. One entry a stage, in the order of the plan.
    pub async fn probe(&mut self) -> Vec<(String, Result<String, StageError>)> {
        let mut found = Vec::new();
        for node in &mut self.plan.nodes {
            let outcome = match &mut node.built {
                Built::Source(built) => built.source.probe().await,
                Built::Sink(built) => built.sink.probe().await,
                Built::Transform(built) => match built.transform.probe() {
                    Some(outcome) => outcome,
                    None => continue,
                },
            };
            found.push((node.name.clone(), outcome));
        }
        found
    }

    /// What each sink can show of what it has stored. One entry a sink, in the order of the plan.
    pub async fn accounts(&mut self) -> Vec<(String, Result<Option<Account>, StageError>)> {
        let mut found = Vec::new();
        for node in &mut self.plan.nodes {
            if let Built::Sink(built) = &mut node.built {
                found.push((node.name.clone(), built.sink.account().await));
            }
        }
        found
    }

    /// How the rows of each sink differ from what lies at its far end. One entry a sink, in the order of the plan.
    pub async fn compare_schemas(&mut self) -> Vec<(String, Result<Option<SchemaComparison>, StageError>)> {
        let mut found = Vec::new();
        for node in &mut self.plan.nodes {
            if let Built::Sink(built) = &mut node.built {
                found.push((node.name.clone(), built.sink.compare_schema().await));
            }
        }
        found
    }

    /// Opens the transforms now, without patience: what of a plan can still be wrong on this machine, such as a table to look
    /// things up in. A run that has not been prepared opens them when it starts, and waits for an outside that is away.
    ///
    /// # Errors
    /// The first transform that can't be opened.
    pub async fn prepare(&mut self) -> Result<(), RunError> {
        if self.is_prepared {
            return Ok(());
        }
        for (index, node) in self.plan.nodes.iter_mut().enumerate() {
            if let Built::Transform(built) = &mut node.built
                && let Err(error) = transform::open_once(&mut built.transform).await
            {
                return Err(failed(&self.stats, index, error));
            }
        }
        self.is_prepared = true;
        Ok(())
    }

    /// Runs until every source has ended, or until `stop` resolves and what is on its way is stored.
    ///
    /// Must be called within a tokio runtime; the future may be spawned. Not cancel safe: dropping the future stops everything at
    /// once, as a crash would. A stop while a transform still waits for its outside leaves a thread of the runtime in that:
    /// let go of the runtime by `shutdown_background` or `shutdown_timeout`.
    ///
    /// # Errors
    /// The stage that failed, or a stop that took longer than the pipeline allows.
    pub async fn until(mut self, stop: impl Future<Output = ()> + Send) -> Result<Report, RunError> {
        let started = Instant::now();
        tokio::pin!(stop);
        let resumption = Resumption::of(&self)?;
        let opened = tokio::select! {
            biased;
            opened = open_all(&mut self.plan.nodes, self.is_prepared, resumption.as_ref()) => opened,
            () = &mut stop => return Ok(Report::new(started.elapsed(), &self.stats)),
        };
        if let Err((node, error)) = opened {
            return Err(failed(&self.stats, node, error));
        }
        let reading = CancellationToken::new();
        let drain_timeout = self.plan.settings.drain_timeout;
        let resumes = resumption.is_some();
        let (mut tasks, checkpoints) = Tasks::spawn(&mut self, &reading, resumption);
        let outcome = supervise(&self.stats, drain_timeout, &mut tasks, reading, stop).await;
        tasks.set.shutdown().await;
        if let Some(checkpoints) = checkpoints {
            checkpoints.end(outcome.is_ok()).await;
        }
        match outcome {
            Err(RunError::NotDrained { rows, timeout }) if resumes => {
                let timeout = humantime::format_duration(timeout);
                tracing::warn!(
                    "{rows} rows were not stored within the drain timeout of {timeout}: they are kept, and the next run stores them"
                );
            }
            outcome => outcome?,
        }
        Ok(Report::new(started.elapsed(), &self.stats))
    }
}

/// Where a run goes on that an earlier one has left.
struct Resumption {
    store: CheckpointStore,
    /// `None` if this is the first run.
    last: Option<Checkpoint>,
}

impl Resumption {
    /// `None` if a source of this plan can't be resumed.
    #[expect(clippy::result_large_err, reason = "made once a run")]
    fn of(run: &Run) -> Result<Option<Self>, RunError> {
        if !run.plan.resumes() {
            return Ok(None);
        }
        let dir = run.plan.settings.data_dir.clone();
        let opened = CheckpointStore::open(run.storage.clone(), &dir);
        let (store, last) = opened.map_err(|source| {
            let hint = match source.kind() {
                std::io::ErrorKind::WouldBlock => {
                    "This pipeline runs already with this directory. One of the two has to go, or needs a \"data_dir\" of its own."
                }
                _ => "Set \"data_dir\" in [pipeline] to a folder on a local disk that this user may write to.",
            };
            let source = match source.kind() {
                // The system's own words are about blocking.
                std::io::ErrorKind::WouldBlock => std::io::Error::new(source.kind(), "another run has it"),
                _ => source,
            };
            RunError::DataDir { dir, source, hint }
        })?;
        // Of partitions that several workers share, whatever this one has kept of them before is not the newest.
        let last = last.filter(|_| !run.plan.is_shared());
        Ok(Some(Self { store, last }))
    }

    fn on_permanent(&self) -> OnPermanent {
        if self.last.is_some() { OnPermanent::Pause } else { OnPermanent::PauseOnceOpen }
    }
}

/// The task that takes checkpoints, from its start to the last one. It holds the data directory, so it ends
/// with the run, however that ends.
struct Checkpoints {
    task: CheckpointTask,
    stop: watch::Sender<bool>,
}

enum CheckpointTask {
    OfThisRun(AbortOnDropHandle<Checkpointer>),
    OfSharedPartitions(AbortOnDropHandle<SharedCheckpointer>),
}

impl Checkpoints {
    fn start(checkpointer: Checkpointer) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = AbortOnDropHandle::new(tokio::spawn(checkpointer.run(stopped)));
        Self { task: CheckpointTask::OfThisRun(task), stop }
    }

    fn start_shared(checkpointer: SharedCheckpointer) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = AbortOnDropHandle::new(tokio::spawn(checkpointer.run(stopped)));
        Self { task: CheckpointTask::OfSharedPartitions(task), stop }
    }

    /// Takes the last checkpoint, if everything is stored now, and lets go of the directory.
    async fn end(self, all_is_stored: bool) {
        self.stop.send_replace(true);
        let ended = match self.task {
            CheckpointTask::OfThisRun(task) => task.await.map(Some),
            // The source has waited for the last ones before it let go of its partitions.
            CheckpointTask::OfSharedPartitions(task) => task.await.map(|_| None),
        };
        match ended {
            Ok(Some(checkpointer)) if all_is_stored => checkpointer.finish().await,
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "checkpoints ended early; a restart reads more again than it need"),
        }
    }
}

/// Waits for the stages to end, for the stop, and for the stop to take too long.
async fn supervise(
    stats: &RunStats,
    drain_timeout: Duration,
    tasks: &mut Tasks,
    reading: CancellationToken,
    mut stop: impl Future<Output = ()> + Unpin,
) -> Result<(), RunError> {
    let mut deadline = None;
    let mut auditor = Auditor::default();
    let mut backlogs = BacklogMeter::default();
    let mut audit = tokio::time::interval(AUDIT_INTERVAL);
    loop {
        tokio::select! {
            biased;
            ended = tasks.next() => match ended {
                None => return Ok(()),
                Some((_, Ok(()))) => {}
                Some((node, Err(error))) => {
                    reading.cancel();
                    let (node, error) = tasks.cause(node, error).await;
                    return Err(failed(stats, node, error));
                }
            },
            () = &mut stop, if deadline.is_none() => {
                tracing::info!("stopping: rows on their way are stored first");
                reading.cancel();
                deadline = Some(tokio::time::Instant::now() + drain_timeout);
            }
            _ = audit.tick() => {
                for (stage, balance) in auditor.audit(stats) {
                    tracing::error!(stage, "rows are not accounted for: {balance}");
                }
                for backlog in backlogs.measure(stats, Instant::now()) {
                    tracing::info!("{backlog}");
                }
            }
            () = sleep_until(deadline) => {
                let rows = stats.edges.iter().map(|edge| edge.rows_waiting()).sum();
                return Err(RunError::NotDrained { rows, timeout: drain_timeout });
            }
        }
    }
}

fn failed(stats: &RunStats, node: usize, error: StageError) -> RunError {
    let stats = &stats.stages[node];
    stats.set_state(StageState::Failed);
    stats.note_error(error.chain());
    RunError::Stage { stage: stats.name.clone(), kind: stats.kind, type_name: stats.type_name, error }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Opens transforms, unless that is done, each for as long as its outside takes to come, and gives them their state back; then
/// all sinks at once, each for as long as its outside takes. Of a run that resumes the sinks open by themselves, while the
/// sources read; an optional sink always does.
async fn open_all(
    nodes: &mut [Node],
    is_prepared: bool,
    resumption: Option<&Resumption>,
) -> Result<(), (usize, StageError)> {
    let last = resumption.and_then(|resumption| resumption.last.as_ref());
    for (index, node) in nodes.iter_mut().enumerate() {
        let Built::Transform(built) = &mut node.built else { continue };
        if !is_prepared {
            transform::open(&mut built.transform, &node.stats).await.map_err(|error| (index, error))?;
        }
        let Some(state) = last.and_then(|last| last.states.get(&node.name)) else { continue };
        if let Err(error) = built.transform.restore(state) {
            tracing::warn!(stage = node.name, "starts without the state it had: {}", error.chain());
        }
    }
    if resumption.is_some() {
        return Ok(());
    }
    let required = nodes.iter_mut().enumerate().filter(|(_, node)| node.kind == Kind::Sink && node.required);
    let opened = join_all(required.map(|(index, node)| async move {
        let Built::Sink(built) = &mut node.built else { return Ok(()) };
        sink::open(built.sink.as_mut(), &node.stats, OnPermanent::Stop).await.map_err(|error| (index, error))
    }));
    opened.await.into_iter().collect()
}

/// The running stages, one task each, and those of their overflowing edges.
struct Tasks {
    set: JoinSet<Ended>,
    /// Which stage a task runs, for one that panicked and can't say so itself.
    nodes: std::collections::HashMap<Id, usize>,
    stats: Vec<Arc<StageStats>>,
}

/// What the tasks of a run have in common.
struct Common {
    reading: CancellationToken,
    storage: Arc<dyn Storage>,
    resumption: SourceResumption,
    /// `None` where no checkpoints are taken.
    reports: Option<Reports>,
    on_permanent: OnPermanent,
}

impl Tasks {
    fn spawn(
        run: &mut Run,
        reading: &CancellationToken,
        resumption: Option<Resumption>,
    ) -> (Self, Option<Checkpoints>) {
        let tenures = run.plan.is_shared().then(Tenures::default);
        let nodes = std::mem::take(&mut run.plan.nodes);
        let keeper = Plan::keeper(&nodes);
        let mut keeper_orders = None;
        let mut edges = edges::connect(&nodes, run, resumption.is_some());
        let mut tasks = Self { set: JoinSet::new(), nodes: Default::default(), stats: run.stats.stages.clone() };
        for (to, overflow) in std::mem::take(&mut edges.overflows) {
            tasks.spawn_for(to, overflow);
        }
        let resume = resumption.as_ref().and_then(|resumption| resumption.last.as_ref());
        let (reports, reported) = mpsc::unbounded_channel();
        let common = Common {
            reading: reading.clone(),
            storage: run.storage.clone(),
            resumption: SourceResumption {
                after: Arc::new(resume.map(|last| last.positions.clone()).unwrap_or_default()),
                checkpoints: resumption.is_some(),
            },
            reports: resumption.is_some().then_some(reports),
            on_permanent: resumption.as_ref().map_or(OnPermanent::Stop, Resumption::on_permanent),
        };
        let transforms = nodes.iter().filter(|node| node.kind == Kind::Transform).map(|node| node.name.clone());
        let transforms = transforms.collect();
        let mut gates = Vec::new();
        // Last stages first, so that whoever writes finds its reader running.
        for (index, node) in nodes.into_iter().enumerate().rev() {
            let inbox = Inbox::new(std::mem::take(&mut edges.inboxes[index]));
            let outbox = Outbox::new(std::mem::take(&mut edges.outboxes[index]));
            let inputs = std::mem::take(&mut edges.inputs[index]);
            match node.built {
                Built::Source(built) => {
                    let gate = Arc::new(Gate::new(outbox));
                    gates.push(gate.clone());
                    let cx = SourceContext::new(
                        &node.name,
                        gate,
                        common.reading.clone(),
                        node.stats,
                        common.resumption.clone(),
                        common.storage.clone(),
                        tenures.clone().unwrap_or_default(),
                    );
                    tasks.spawn_for(index, built.source.run(cx));
                }
                Built::Transform(built) => {
                    let shares =
                        tenures.as_ref().and_then(|tenures| Shares::of(built.transform.as_ref(), node.anew, tenures));
                    let task = TransformTask {
                        transform: built.transform,
                        outbox,
                        stats: node.stats,
                        reports: common.reports.clone(),
                        stopping: common.reading.clone(),
                        shares,
                    };
                    tasks.spawn_for(index, task.run(inbox));
                }
                Built::Sink(built) => {
                    let on_permanent = if node.required { common.on_permanent } else { OnPermanent::Pause };
                    let orders = tenures.as_ref().map(|tenures| {
                        let (orders, ordered) = tenures.add_sink(node.required);
                        if keeper == Some(index) {
                            keeper_orders = Some(orders);
                        }
                        ordered
                    });
                    let task = SinkTask::new(built, inputs, on_permanent, outbox, node.stats, orders);
                    let resumes = resumption.is_some();
                    let stopping = common.reading.clone();
                    tasks.spawn_for(index, task.run(inbox, !resumes && node.required, resumes, stopping));
                }
            }
        }
        let checkpoints = resumption.map(|resumption| {
            if let Some(tenures) = tenures {
                return Checkpoints::start_shared(SharedCheckpointer {
                    _store: resumption.store,
                    interval: run.plan.settings.checkpoint_interval,
                    gate: gates.remove(0),
                    tenures,
                    keeper: keeper_orders,
                    transforms,
                    reports: reported,
                    last_id: 0,
                    kept: BTreeMap::new(),
                });
            }
            Checkpoints::start(Checkpointer {
                store: Arc::new(resumption.store),
                interval: run.plan.settings.checkpoint_interval,
                gates,
                transforms,
                reports: reported,
                last: resumption.last.unwrap_or_default(),
                ended: BTreeMap::new(),
            })
        });
        (tasks, checkpoints)
    }

    fn spawn_for(&mut self, node: usize, work: impl Future<Output = Result<(), StageError>> + Send + 'static) {
        let stats = self.stats[node].clone();
        let handle = self.set.spawn(async move {
            stats.set_state_if(StageState::Starting, StageState::Running);
            (node, work.await)
        });
        self.nodes.insert(handle.id(), node);
    }

    /// The next stage that ends, and how.
    async fn next(&mut self) -> Option<Ended> {
        let ended = match self.set.join_next_with_id().await? {
            Ok((_, ended)) => ended,
            Err(error) => (self.nodes[&error.id()], Err(panicked(error))),
        };
        let state = if ended.1.is_ok() { StageState::Ended } else { StageState::Failed };
        self.stats[ended.0].set_state(state);
        Some(ended)
    }

    /// The error that came first in time need not be the cause: a stage often hears that its reader is
    /// gone before the reader's own error arrives.
    async fn cause(&mut self, node: usize, error: StageError) -> (usize, StageError) {
        if !error.is_consequence() {
            return (node, error);
        }
        let wait = async {
            while let Some((node, outcome)) = self.next().await {
                match outcome {
                    Err(error) if !error.is_consequence() => return Some((node, error)),
                    _ => {}
                }
            }
            None
        };
        tokio::time::timeout(CAUSE_GRACE, wait).await.ok().flatten().unwrap_or((node, error))
    }
}

fn panicked(error: JoinError) -> StageError {
    let message = match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned()),
        Err(_) => "cancelled".to_owned(),
    };
    StageError::bug(format!("the stage panicked: {message}"))
}
