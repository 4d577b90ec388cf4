//! Which columns say when a row happened: of what sinks are given, by their own word, and of what sources send, by
//! the same name.

use std::collections::BTreeSet;

use crate::dead_letter;
use crate::plan::{Edge, Node};
use crate::registry::{Built, Kind};
use crate::schema::timestamp_type;
use crate::stage::Port;

/// Tells the counters of sources and sinks. Dead letters did not happen, they were received.
pub(super) fn find(nodes: &[Node], edges: &[Edge]) {
    // The names by which some sink behind a stage knows the time; stages come after those they read.
    let mut names: Vec<BTreeSet<String>> = vec![BTreeSet::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate().rev() {
        if let Built::Sink(built) = &node.built
            && let Some(column) = built.sink.time_column()
            && let Some(schema) = edges.iter().find(|edge| edge.to == index).and_then(|edge| schema(nodes, *edge))
            && *schema != dead_letter::schema()
        {
            node.stats.set_time_column(column);
            names[index].insert(schema.field(column).name().clone());
        }
        for edge in edges.iter().filter(|edge| edge.from == index) {
            let behind = names[edge.to].clone();
            names[index].extend(behind);
        }
        if node.kind == Kind::Source
            && let Some((_, schema)) = node.outputs.iter().find(|(port, _)| *port == Port::MAIN)
            && let Some(column) = schema
                .fields()
                .iter()
                .position(|field| *field.data_type() == timestamp_type() && names[index].contains(field.name()))
        {
            node.stats.set_time_column(column);
        }
    }
}

fn schema(nodes: &[Node], edge: Edge) -> Option<&arrow::datatypes::SchemaRef> {
    nodes[edge.from].outputs.iter().find(|(port, _)| *port == edge.port).map(|(_, schema)| schema)
}
