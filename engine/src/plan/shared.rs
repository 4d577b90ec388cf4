//! What a pipeline must be like whose source shares its partitions among several workers.

use std::ops::Range;

use super::{Node, Plan};
use crate::file::Mistake;
use crate::registry::Built;
use crate::stage::Sharing;

/// Finds what would not be right with several workers, and tells the sinks of them. `places`: where each stage is written.
pub(super) fn check(nodes: &mut [Node], places: &[Option<Range<usize>>], mistakes: &mut Vec<Mistake>) {
    let Some(source) = nodes.iter().find(|node| is_shared(node)).map(|node| node.name.clone()) else { return };
    let mut keeps = false;
    for (node, place) in nodes.iter_mut().zip(places) {
        match &mut node.built {
            Built::Source(_) if node.name != source => {
                let message =
                    format!("\"{source}\" shares its partitions among workers, and has the pipeline to itself");
                let hint = "Put this source into a pipeline file of its own.";
                mistakes.push(Mistake::new(place.clone(), message).hint(hint));
            }
            Built::Sink(built) => match built.sink.sharing() {
                Sharing::ExactlyOnce { keeps_checkpoints } if node.required => {
                    keeps |= keeps_checkpoints;
                    built.sink.share();
                }
                Sharing::ExactlyOnce { .. } => {
                    let message = format!("\"{}\" is optional, and \"{source}\" has \"workers\"", node.name);
                    let hint = "A worker that takes a shard over has to know how far the sink has come, and so waits for it: take \
                                \"optional\" out.";
                    mistakes.push(Mistake::new(place.clone(), message).hint(hint));
                }
                Sharing::AtLeastOnce => built.sink.share(),
                Sharing::Refused(hint) => {
                    let message = format!(
                        "several workers can't store by \"{}\" ({}), and \"{source}\" has \"workers\"",
                        node.name, node.type_name
                    );
                    mistakes.push(Mistake::new(place.clone(), message).hint(hint));
                }
            },
            Built::Source(_) | Built::Transform(_) => {}
        }
    }
    if keeps {
        return;
    }
    for (node, place) in nodes.iter().zip(places) {
        let Built::Transform(built) = &node.built else { continue };
        if built.transform.snapshot().is_some() {
            let message = format!(
                "\"{}\" ({}) remembers what came before, and no sink keeps that for the next worker",
                node.name, node.type_name
            );
            let hint = "Add a sink of type timescaledb: it keeps it beside its rows. Or take \
                        \"workers\" out of the source: one worker keeps it on its disk.";
            mistakes.push(Mistake::new(place.clone(), message).hint(hint));
        }
    }
}

fn is_shared(node: &Node) -> bool {
    matches!(&node.built, Built::Source(built) if built.source.is_shared())
}

impl Plan {
    /// Whether several workers may run this pipeline at once, each a part of its source.
    pub fn is_shared(&self) -> bool {
        self.nodes.iter().any(is_shared)
    }

    /// The sink that keeps what the next owner of a partition goes on from: the first that can.
    pub(crate) fn keeper(nodes: &[Node]) -> Option<usize> {
        let keeps = Sharing::ExactlyOnce { keeps_checkpoints: true };
        let can = |node: &Node| matches!(&node.built, Built::Sink(built) if built.sink.sharing() == keeps);
        nodes.iter().position(|node| node.required && can(node))
    }
}
