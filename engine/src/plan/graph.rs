//! A plan drawn as text: Mermaid, DOT, or lines for a terminal.

use std::fmt::Write;

use super::Plan;
use crate::registry::Kind;
use crate::stage::Port;

/// How [`Plan::graph`] draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GraphFormat {
    /// For Markdown.
    Mermaid,
    /// For Graphviz.
    Dot,
    /// For a terminal: each stage with its inputs and the columns of its ports.
    Text,
}

pub(super) fn draw(plan: &Plan, format: GraphFormat) -> String {
    let mut out = String::new();
    let written = match format {
        GraphFormat::Mermaid => mermaid(plan, &mut out),
        GraphFormat::Dot => dot(plan, &mut out),
        GraphFormat::Text => text(plan, &mut out),
    };
    written.expect("writing to a string can't fail");
    out
}

fn mermaid(plan: &Plan, out: &mut String) -> std::fmt::Result {
    writeln!(out, "flowchart LR")?;
    for (index, node) in plan.nodes.iter().enumerate() {
        let (open, close) = match node.kind {
            Kind::Source => ("([", "])"),
            Kind::Transform => ("[", "]"),
            Kind::Sink => ("[(", ")]"),
        };
        writeln!(out, "    n{index}{open}\"{}<br/>{}\"{close}", node.name, node.type_name)?;
    }
    for edge in &plan.edges {
        match edge.port {
            Port::MAIN => writeln!(out, "    n{} --> n{}", edge.from, edge.to)?,
            port => writeln!(out, "    n{} -. {} .-> n{}", edge.from, port.name(), edge.to)?,
        }
    }
    Ok(())
}

fn dot(plan: &Plan, out: &mut String) -> std::fmt::Result {
    writeln!(out, "digraph \"{}\" {{", plan.name())?;
    writeln!(out, "    rankdir=LR;")?;
    for (index, node) in plan.nodes.iter().enumerate() {
        let shape = match node.kind {
            Kind::Source => "ellipse",
            Kind::Transform => "box",
            Kind::Sink => "cylinder",
        };
        writeln!(out, "    n{index} [shape={shape}, label=\"{}\\n{}\"];", node.name, node.type_name)?;
    }
    for edge in &plan.edges {
        match edge.port {
            Port::MAIN => writeln!(out, "    n{} -> n{};", edge.from, edge.to)?,
            port => writeln!(out, "    n{} -> n{} [style=dashed, label=\"{}\"];", edge.from, edge.to, port.name())?,
        }
    }
    writeln!(out, "}}")
}

fn text(plan: &Plan, out: &mut String) -> std::fmt::Result {
    for (index, node) in plan.nodes.iter().enumerate() {
        writeln!(out, "{} {} ({})", node.kind.word(), node.name, node.type_name)?;
        let inputs = plan.edges.iter().filter(|edge| edge.to == index);
        let inputs: Vec<String> = inputs.map(|edge| port_name(&plan.nodes[edge.from].name, edge.port)).collect();
        if !inputs.is_empty() {
            writeln!(out, "    reads {}", inputs.join(", "))?;
        }
        for (port, schema) in &node.outputs {
            let columns = schema.fields().iter().map(|field| {
                let optional = if field.is_nullable() { "?" } else { "" };
                format!("{}{optional}: {}", field.name(), short(field.data_type()))
            });
            writeln!(out, "    {} {{ {} }}", port_name(&node.name, *port), columns.collect::<Vec<_>>().join(", "))?;
        }
    }
    Ok(())
}

fn port_name(stage: &str, port: Port) -> String {
    if port == Port::MAIN { stage.to_owned() } else { format!("{stage}.{}", port.name()) }
}

/// The words of the pipeline file where it has one.
fn short(data_type: &arrow::datatypes::DataType) -> String {
    use arrow::datatypes::DataType;
    match data_type {
        DataType::Utf8 => "text".to_owned(),
        DataType::Boolean => "bool".to_owned(),
        DataType::Binary => "binary".to_owned(),
        DataType::Timestamp(..) => "timestamp".to_owned(),
        other => other.to_string().to_lowercase(),
    }
}
