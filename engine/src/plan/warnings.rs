//! What a plan may be and hardly should.

use std::collections::BTreeSet;

use super::check::edge_name;
use super::{Edge, Node};
use crate::registry::{Built, Kind};

pub(super) fn of(nodes: &[Node], edges: &[Edge]) -> Vec<String> {
    let mut warnings = unread_ports(nodes, edges);
    warnings.extend(divided_devices(nodes, edges));
    warnings
}

/// Sources that get a part of each device, in front of transforms that go by what came before.
fn divided_devices(nodes: &[Node], edges: &[Edge]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let Built::Source(built) = &node.built else { continue };
        let Some(group) = built.source.divides_with() else { continue };
        let behind = reached_from(index, edges);
        let remembering: Vec<String> = behind
            .iter()
            .filter_map(|&reached| {
                let Built::Transform(built) = &nodes[reached].built else { return None };
                let Node { name, type_name, .. } = &nodes[reached];
                built.transform.snapshot().is_some().then(|| format!("\"{name}\" ({type_name})"))
            })
            .collect();
        if !remembering.is_empty() {
            warnings.push(format!(
                "\"{}\" divides its messages with all of the group \"{group}\", so a part of each device comes here, and not in \
                 its order: what {} made of it is wrong. Let that be done behind the common table, or behind a stream \
                 that keeps each device together",
                node.name,
                match &remembering[..] {
                    [one] => format!("{one} has"),
                    many => format!("{} have", many.join(", ")),
                }
            ));
        }
    }
    warnings
}

/// All that rows of a stage can come to. Edges lead from earlier nodes to later ones.
fn reached_from(start: usize, edges: &[Edge]) -> BTreeSet<usize> {
    let mut reached = BTreeSet::from([start]);
    let mut next = Some(start);
    while let Some(from) = next {
        reached.extend(edges.iter().filter(|edge| edge.from == from).map(|edge| edge.to));
        next = reached.range(from + 1..).next().copied();
    }
    reached
}

fn unread_ports(nodes: &[Node], edges: &[Edge]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        for (port, _) in &node.outputs {
            let read = edges.iter().any(|edge| edge.from == index && edge.port == *port);
            if read {
                continue;
            }
            let name = edge_name(&node.name, *port);
            warnings.push(match node.kind {
                Kind::Sink => format!("nothing reads {name}: a row that the sink refuses will stop the run"),
                _ => format!("nothing reads {name}: its rows are counted and dropped"),
            });
        }
    }
    warnings
}
