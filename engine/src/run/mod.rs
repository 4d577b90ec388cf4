//! The run loop: starts the stages of a plan in order, watches them, and stops them in order.
//!
//! Start: transforms and sinks open, and only when all are open do the sources read. Stop: the
//! sources stop reading and close their ports, each stage ends when its inputs have ended, sinks
//! write what they hold; the sources wait for their promises and let go. A fault of any stage stops
//! the run with that stage's name; what is on its way then counts as failed and comes again.

mod sink;
#[cfg(test)]
mod tests;
mod transform;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::context::SourceContext;
use crate::error::{Fault, StageError};
use crate::plan::{Edge, Node, Plan};
use crate::queue::{Inbox, Outbox, Receiver, Sender, queue};
use crate::registry::{Built, Kind};
use crate::report::Report;
use crate::stats::{EdgeStats, RunStats, StageState, StageStats};

/// How long other stages may take to end by themselves after one has failed: long enough that the
/// cause is heard before its consequences.
const CAUSE_GRACE: Duration = Duration::from_secs(2);

/// A plan about to run.
pub struct Run {
    plan: Plan,
    stats: Arc<RunStats>,
    edges: Vec<Arc<EdgeStats>>,
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
        let edges: Vec<_> = plan.edges.iter().map(|edge| Arc::new(edge_stats(&plan.nodes, *edge))).collect();
        let stages = plan.nodes.iter().map(|node| node.stats.clone()).collect();
        let stats = Arc::new(RunStats { stages, edges: edges.clone() });
        Self { plan, stats, edges }
    }

    /// The counters, to look at while it runs.
    pub fn stats(&self) -> Arc<RunStats> {
        self.stats.clone()
    }

    /// Asks every source and sink whether it can reach its outside, changing nothing there. One entry
    /// a stage, in the order of the plan.
    pub async fn probe(&mut self) -> Vec<(String, Result<String, StageError>)> {
        let mut found = Vec::new();
        for node in &mut self.plan.nodes {
            let outcome = match &mut node.built {
                Built::Source(built) => built.source.probe().await,
                Built::Sink(built) => built.sink.probe().await,
                Built::Transform(_) => continue,
            };
            found.push((node.name.clone(), outcome));
        }
        found
    }

    /// Runs until every source has ended, or until `stop` resolves and what is on its way is stored.
    ///
    /// Must be called within a tokio runtime; the future may be spawned. Not cancel safe: dropping the future stops everything at
    /// once, as a crash would.
    ///
    /// # Errors
    /// The stage that failed, or a stop that took longer than the pipeline allows.
    pub async fn until(mut self, stop: impl Future<Output = ()> + Send) -> Result<Report, RunError> {
        let started = Instant::now();
        tokio::pin!(stop);
        let opened = tokio::select! {
            opened = open_all(&mut self.plan.nodes) => opened,
            () = &mut stop => return Ok(Report::new(started.elapsed(), &self.stats)),
        };
        if let Err((node, error)) = opened {
            return Err(failed(&self.stats, node, error));
        }
        let reading = CancellationToken::new();
        let mut tasks = Tasks::spawn(&mut self, &reading);
        let outcome = supervise(&self.stats, self.plan.settings.drain_timeout, &mut tasks, reading, stop).await;
        tasks.set.shutdown().await;
        outcome.map(|()| Report::new(started.elapsed(), &self.stats))
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
    loop {
        tokio::select! {
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

fn edge_stats(nodes: &[Node], edge: Edge) -> EdgeStats {
    EdgeStats::new(&nodes[edge.from].name, edge.port, &nodes[edge.to].name)
}

/// Opens transforms, then all sinks at once, each for as long as its outside takes to come.
async fn open_all(nodes: &mut [Node]) -> Result<(), (usize, StageError)> {
    for (index, node) in nodes.iter_mut().enumerate() {
        if let Built::Transform(built) = &mut node.built {
            built.transform.open().map_err(|error| (index, error))?;
        }
    }
    let sinks = nodes.iter_mut().enumerate().filter(|(_, node)| node.kind == Kind::Sink);
    let opened = join_all(sinks.map(|(index, node)| async move {
        let Built::Sink(built) = &mut node.built else { return Ok(()) };
        sink::open(built.sink.as_mut(), &node.stats).await.map_err(|error| (index, error))
    }));
    opened.await.into_iter().collect()
}

/// The running stages, one task each.
struct Tasks {
    set: JoinSet<Ended>,
    /// Which stage a task runs, for one that panicked and can't say so itself.
    nodes: std::collections::HashMap<Id, usize>,
    stats: Vec<Arc<StageStats>>,
}

impl Tasks {
    fn spawn(run: &mut Run, reading: &CancellationToken) -> Self {
        let nodes = std::mem::take(&mut run.plan.nodes);
        let (mut inboxes, mut outboxes) = connect(&nodes, &run.plan.edges, &run.edges, run.plan.settings.queue_rows);
        let mut tasks = Self { set: JoinSet::new(), nodes: Default::default(), stats: run.stats.stages.clone() };
        // Last stages first, so that whoever writes finds its reader running.
        for (index, node) in nodes.into_iter().enumerate().rev() {
            let inbox = Inbox::new(std::mem::take(&mut inboxes[index]));
            let outbox = Outbox::new(std::mem::take(&mut outboxes[index]));
            let reading = reading.clone();
            let handle = tasks.set.spawn(async move { (index, run_node(node, inbox, outbox, reading).await) });
            tasks.nodes.insert(handle.id(), index);
        }
        tasks
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

type Ends = (Vec<Vec<Receiver>>, Vec<Vec<(crate::stage::Port, Vec<Sender>)>>);

/// A queue for each edge.
fn connect(nodes: &[Node], edges: &[Edge], stats: &[Arc<EdgeStats>], queue_rows: u32) -> Ends {
    let mut inboxes: Vec<Vec<Receiver>> = nodes.iter().map(|_| Vec::new()).collect();
    let mut outboxes: Vec<Vec<_>> =
        nodes.iter().map(|node| node.outputs.iter().map(|(port, _)| (*port, Vec::new())).collect()).collect();
    for (edge, stats) in edges.iter().zip(stats) {
        let (sender, receiver) = queue(queue_rows, stats.clone());
        inboxes[edge.to].push(receiver);
        let port = outboxes[edge.from].iter_mut().find(|(port, _)| *port == edge.port);
        port.expect("the plan checked the port").1.push(sender);
    }
    (inboxes, outboxes)
}

async fn run_node(node: Node, inbox: Inbox, outbox: Outbox, reading: CancellationToken) -> Result<(), StageError> {
    node.stats.set_state(StageState::Running);
    match node.built {
        Built::Source(built) => built.source.run(SourceContext::new(outbox, reading, node.stats)).await,
        Built::Transform(built) => transform::run(built.transform, inbox, outbox, &node.stats).await,
        Built::Sink(built) => {
            let stage = sink::SinkTask::new(built, node.name, outbox, node.stats);
            stage.run(inbox).await
        }
    }
}

/// Whether the engine tries again after this error.
fn is_transient(error: &StageError) -> bool {
    error.fault() == Fault::Transient
}
