//! The edges of a run: a queue for each, and room on disk before sinks.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::Run;
use super::sink::Input;
use crate::error::StageError;
use crate::overflow::{Loans, Overflow};
use crate::plan::{Edge, Node};
use crate::queue::{Inbox, Receiver, Sender, queue};
use crate::registry::{Built, Kind};
use crate::stage::{Port, WAY_MARK};
use crate::stats::EdgeStats;

/// How long rows that an optional sink has taken in are waited for, beyond what the sink waits itself for a
/// group to fill: several attempts. A sink that stores in time loses nothing in a crash.
const OPTIONAL_PATIENCE: Duration = Duration::from_secs(30);

type Work = Pin<Box<dyn Future<Output = Result<(), StageError>> + Send>>;

/// The ends of all edges, by stage.
pub(super) struct Edges {
    pub inboxes: Vec<Vec<Receiver>>,
    /// What each inbox reads, in the same order.
    pub inputs: Vec<Vec<Input>>,
    pub outboxes: Vec<Vec<(Port, Vec<Sender>)>>,
    /// What passes rows on over the disk, with the sink it does it for.
    pub overflows: Vec<(usize, Work)>,
}

pub(super) fn stats(nodes: &[Node], edge: Edge) -> EdgeStats {
    EdgeStats::new(&nodes[edge.from].name, edge.port, &nodes[edge.to].name)
}

/// A queue for each edge. Before a sink of a run that resumes there is room on disk, so that it holds up
/// nobody else; before an optional sink there may be none, but it never holds up anybody.
pub(super) fn connect(nodes: &[Node], run: &Run, resumes: bool) -> Edges {
    let settings = &run.plan.settings;
    let mut edges = Edges {
        inboxes: nodes.iter().map(|_| Vec::new()).collect(),
        inputs: nodes.iter().map(|_| Vec::new()).collect(),
        outboxes: nodes.iter().map(|node| node.outputs.iter().map(|(port, _)| (*port, Vec::new())).collect()).collect(),
        overflows: Vec::new(),
    };
    let ordered = ordered(nodes, &run.plan.edges);
    let names = names(nodes, &run.plan.edges);
    for (((edge, stats), is_ordered), name) in run.plan.edges.iter().zip(&run.edges).zip(ordered).zip(names) {
        let (mut sender, receiver) = queue(settings.queue_rows, stats.clone());
        let to = &nodes[edge.to];
        if to.kind == Kind::Sink && (resumes || !to.required) {
            let overflow = Overflow {
                dir: settings.data_dir.join(&to.name).join("overflow").join(name_of(nodes, edge)),
                bytes_max: if resumes { settings.overflow_bytes_max } else { 0 },
                loans: (!to.required).then(|| Loans::new(linger_of(to) + OPTIONAL_PATIENCE)),
                stats: stats.clone(),
            };
            let hidden = Arc::new(self::stats(nodes, *edge));
            stats.set_before_overflow(hidden.clone());
            let (outer, outer_end) = queue(settings.queue_rows, hidden);
            let onward = std::mem::replace(&mut sender, outer.counting_for(stats.clone()));
            edges.overflows.push((edge.to, Box::pin(overflow.run(Inbox::new(vec![outer_end]), onward))));
        }
        edges.inboxes[edge.to].push(receiver);
        edges.inputs[edge.to].push(Input { name, is_ordered });
        let port = edges.outboxes[edge.from].iter_mut().find(|(port, _)| *port == edge.port);
        port.expect("the plan checked the port").1.push(sender);
    }
    edges
}

fn linger_of(sink: &Node) -> Duration {
    match &sink.built {
        Built::Sink(built) => built.grouping.linger,
        Built::Source(_) | Built::Transform(_) => Duration::ZERO,
    }
}

/// The stage and port that an edge reads, as the pipeline file names them.
fn name_of(nodes: &[Node], edge: &Edge) -> String {
    let from = &nodes[edge.from].name;
    if edge.port == Port::MAIN { from.clone() } else { format!("{from}.{}", edge.port.name()) }
}

/// What each edge is called on record: the stage and port that it reads. Where ways part before it, what decides who takes which is
/// part of the name: decided otherwise, it is another input, of which nothing is stored yet.
fn names(nodes: &[Node], edges: &[Edge]) -> Vec<String> {
    // By stage, all that was decided on the way to it; stages come after those they read.
    let mut decided: Vec<BTreeSet<String>> = vec![BTreeSet::new(); nodes.len()];
    let mut names = Vec::new();
    for edge in edges {
        let name = name_of(nodes, edge);
        let mut here = decided[edge.from].clone();
        here.extend(nodes[edge.from].ways.get(edge.port.name()).map(|way| format!("{name} {way}")));
        names.push(if here.is_empty() {
            name
        } else {
            let mut hasher = crc32fast::Hasher::new();
            here.iter().for_each(|way| hasher.update(format!("{way}\n").as_bytes()));
            format!("{name}{WAY_MARK}{:08x}", hasher.finalize())
        });
        decided[edge.to].extend(here);
    }
    names
}

/// For each edge whether the positions on it only go up: no source's rows come to it by two ways.
fn ordered(nodes: &[Node], edges: &[Edge]) -> Vec<bool> {
    // How many ways lead from each source to each stage; stages come after those they read.
    let mut ways: Vec<BTreeMap<usize, usize>> = vec![BTreeMap::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        if node.kind == Kind::Source {
            ways[index].insert(index, 1);
        }
        for edge in edges.iter().filter(|edge| edge.to == index) {
            for (source, count) in ways[edge.from].clone() {
                *ways[index].entry(source).or_default() += count;
            }
        }
    }
    edges.iter().map(|edge| ways[edge.from].values().all(|count| *count < 2)).collect()
}
