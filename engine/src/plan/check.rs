//! From names to a graph: inputs are found, cycles and dead ends refused, stages built in order with
//! the schema of what they read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};

use super::{Draft, DraftStage, Edge, Node, Plan, shared, warnings};
use crate::context::BuildContext;
use crate::file::Mistake;
use crate::registry::{Anew, Built, Kind};
use crate::stage::{BuildError, Outputs, Port};
use crate::stats::StageStats;
use crate::suggest::suggest;

/// An input by index: the stage it names, the port, and where it is written.
#[derive(Debug, Clone)]
struct Link {
    from: usize,
    port: String,
    place: Option<Range<usize>>,
}

pub(super) fn check(draft: Draft<'_>, mut mistakes: Vec<Mistake>) -> Result<Plan, Vec<Mistake>> {
    if draft.stages.is_empty() && mistakes.is_empty() {
        let message = "the pipeline has no stages";
        return Err(vec![Mistake::new(None, message).hint("Add [sources.NAME] and [sinks.NAME].")]);
    }
    let by_name = index_names(&draft.stages, &mut mistakes);
    let links = find_links(&draft.stages, &by_name, &mut mistakes);
    let order = match order_of(&links) {
        Ok(order) => order,
        Err(cycle) => {
            mistakes.push(cycle_mistake(&draft.stages, &links, &cycle));
            return Err(mistakes);
        }
    };
    // With an input that named nothing, a stage only looks unread.
    if mistakes.is_empty() {
        report_dead_ends(&draft.stages, &links, &order, &mut mistakes);
    }
    build(draft, &links, &order, mistakes)
}

fn index_names(stages: &[DraftStage<'_>], mistakes: &mut Vec<Mistake>) -> BTreeMap<String, usize> {
    let mut by_name = BTreeMap::new();
    for (index, stage) in stages.iter().enumerate() {
        // Those who read that name mean the first: that the other one is something else is no mistake of theirs.
        let first = *by_name.entry(stage.name.clone()).or_insert(index);
        if first != index {
            let message = format!("two stages are named \"{}\"", stage.name);
            let hint = format!("The other one is a {}. A name is used once in a file.", stages[first].kind.word());
            mistakes.push(Mistake::new(stage.places.of(""), message).hint(hint));
        }
    }
    by_name
}

fn find_links(
    stages: &[DraftStage<'_>],
    by_name: &BTreeMap<String, usize>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<Vec<Link>> {
    let mut all = Vec::new();
    for stage in stages {
        let mut links: Vec<Link> = Vec::new();
        for (input, place) in &stage.inputs {
            let (name, port) = input.split_once('.').unwrap_or((input, ""));
            // The main port has no name, and so no dot.
            let named = by_name.get(name).filter(|_| !input.ends_with('.'));
            let Some(&from) = named.filter(|from| readable(&stages[**from], port)) else {
                mistakes.push(unknown_input(stages, stage, input, place.clone()));
                continue;
            };
            if links.iter().any(|link| link.from == from && link.port == port) {
                mistakes.push(Mistake::new(place.clone(), format!("\"{input}\" is read twice")));
                continue;
            }
            links.push(Link { from, port: port.to_owned(), place: place.clone() });
        }
        all.push(links);
    }
    all
}

/// Whether a stage of this type can have the port at all; whether this one has it shows once built.
fn readable(stage: &DraftStage<'_>, port: &str) -> bool {
    match port {
        "" => stage.kind != Kind::Sink,
        // The type is unknown: its ports are too.
        _ if stage.type_name.is_empty() => true,
        port => stage.ports.iter().any(|(name, _)| *name == port || Port::new(name).is_placeholder()),
    }
}

fn unknown_input(
    stages: &[DraftStage<'_>],
    reader: &DraftStage<'_>,
    input: &str,
    place: Option<Range<usize>>,
) -> Mistake {
    let mut known = Vec::new();
    for stage in stages.iter().filter(|stage| stage.name != reader.name) {
        if stage.kind != Kind::Sink {
            known.push(stage.name.clone());
        }
        known.extend(stage.ports.iter().map(|(port, _)| format!("{}.{port}", stage.name)));
    }
    let what = format!("This {} can read", reader.kind.word());
    let hint = suggest(input, known.iter().map(String::as_str), &what, "There is nothing to read: add a source.");
    let sink = stages.iter().find(|stage| stage.kind == Kind::Sink && stage.name == input);
    let message = match sink {
        Some(_) => format!("\"{input}\" is a sink: nothing comes out of it"),
        None => format!("no stage or port is named \"{input}\""),
    };
    Mistake::new(place, message).hint(hint)
}

/// Indices so that every stage comes after those it reads; or the stages of a cycle.
fn order_of(links: &[Vec<Link>]) -> Result<Vec<usize>, Vec<usize>> {
    let mut order = Vec::new();
    let mut waiting: BTreeSet<usize> = (0..links.len()).collect();
    while !waiting.is_empty() {
        let ready = |stage: &usize| links[*stage].iter().all(|link| !waiting.contains(&link.from));
        let Some(next) = waiting.iter().copied().find(ready) else { return Err(cycle_in(links, &waiting)) };
        waiting.remove(&next);
        order.push(next);
    }
    Ok(order)
}

/// Every waiting stage reads another waiting one, so walking backwards must come round.
fn cycle_in(links: &[Vec<Link>], waiting: &BTreeSet<usize>) -> Vec<usize> {
    let mut path: Vec<usize> = waiting.iter().copied().take(1).collect();
    loop {
        let here = path[path.len() - 1];
        let before = links[here].iter().map(|link| link.from).find(|from| waiting.contains(from));
        let before = before.expect("a waiting stage reads a waiting stage");
        if let Some(start) = path.iter().position(|stage| *stage == before) {
            let mut cycle = path.split_off(start);
            cycle.reverse();
            return cycle;
        }
        path.push(before);
    }
}

fn cycle_mistake(stages: &[DraftStage<'_>], links: &[Vec<Link>], cycle: &[usize]) -> Mistake {
    let first = cycle[0];
    let last = cycle[cycle.len() - 1];
    let place = links[first].iter().find(|link| link.from == last).and_then(|link| link.place.clone());
    let mut names: Vec<&str> = cycle.iter().map(|stage| stages[*stage].name.as_str()).collect();
    names.push(names[0]);
    Mistake::new(place, format!("these stages read each other in a circle: {}", names.join(" -> ")))
        .hint("Rows flow from sources to sinks: take one of the inputs out.")
}

fn report_dead_ends(stages: &[DraftStage<'_>], links: &[Vec<Link>], order: &[usize], mistakes: &mut Vec<Mistake>) {
    let mut reaches_sink: Vec<bool> = stages.iter().map(|stage| stage.kind == Kind::Sink).collect();
    for &stage in order.iter().rev() {
        if reaches_sink[stage] {
            links[stage].iter().for_each(|link| reaches_sink[link.from] = true);
        }
    }
    for (stage, _) in stages.iter().zip(reaches_sink).filter(|(_, reaches)| !reaches) {
        let message = format!("{} \"{}\" leads to no sink", stage.kind.word(), stage.name);
        let hint = format!("Add \"{}\" to the inputs of a transform or sink, or take the stage out.", stage.name);
        mistakes.push(Mistake::new(stage.places.of(""), message).hint(hint));
    }
}

fn build(
    draft: Draft<'_>,
    links: &[Vec<Link>],
    order: &[usize],
    mut mistakes: Vec<Mistake>,
) -> Result<Plan, Vec<Mistake>> {
    let Draft { settings, schemas, stages } = draft;
    let mut drafts: Vec<Option<DraftStage<'_>>> = stages.into_iter().map(Some).collect();
    let mut nodes: Vec<Node> = Vec::new();
    // Where a draft's stage went; `None` if it could not be built.
    let mut built_at: Vec<Option<usize>> = vec![None; drafts.len()];
    let mut edges = Vec::new();
    let mut places = Vec::new();
    for &index in order {
        let mut stage = drafts[index].take().expect("the order names each stage once");
        let inputs = inputs_of(&stage, &links[index], &built_at, &nodes, &mut mistakes);
        let (Some(inputs), Some(config)) = (inputs, stage.config.take()) else { continue };
        let stats = Arc::new(StageStats::new(&stage.name, stage.type_name, stage.kind.word(), &ports_of(&stage)));
        let cx = BuildContext {
            stage: stage.name.clone(),
            pipeline: settings.name.clone(),
            data_dir: settings.data_dir.clone(),
            schemas: schemas.clone(),
            stats: stats.clone(),
        };
        let input = inputs.first().map(|(.., schema)| schema.clone());
        if input.is_none() && stage.kind != Kind::Source {
            continue;
        }
        let (anew, ways) = (config.again(input.as_ref(), &cx), config.ways().into_iter().collect());
        match config.build(input.as_ref(), &cx) {
            Ok(built) => {
                let to = nodes.len();
                edges.extend(inputs.into_iter().map(|(from, port, _)| Edge { from, port, to }));
                built_at[index] = Some(to);
                places.push(stage.places.of(""));
                nodes.push(node(stage, built, ways, anew, stats));
            }
            Err(error) => mistakes.extend(all_mistakes(&mut stage, error, input.as_ref(), &cx)),
        }
    }
    shared::check(&mut nodes, &places, &mut mistakes);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let warnings = warnings::of(&nodes, &edges);
    Ok(Plan { settings, nodes, edges, warnings })
}

/// A stage stops at its first mistake; so the key that holds it is taken out and the stage built again,
/// as long as that shows another one. What then points at no key of the file may only follow from the
/// one taken out, and is left for the next time.
fn all_mistakes(
    stage: &mut DraftStage<'_>,
    first: BuildError,
    input: Option<&SchemaRef>,
    cx: &BuildContext,
) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let mut reported = BTreeSet::new();
    let mut next = Some(first);
    while let Some(error) = next.take() {
        reported.insert(error.key.clone());
        let mut mistake = Mistake::new(stage.places.of(&error.key), in_code(stage, &error.key, error.message));
        mistake.hint = error.hint;
        mistake.within = error.within.filter(|_| stage.places.has(&error.key));
        mistake.because_of = error.because_of.filter(|key| stage.places.has(key)).and_then(|key| stage.places.of(key));
        mistakes.push(mistake);
        let rest = stage.source.as_mut().and_then(|source| source.without(&error.key));
        let again = rest.and_then(|config| config.build(input, cx).err());
        next = again.filter(|error| stage.places.has(&error.key) && !reported.contains(&error.key));
    }
    mistakes
}

/// A plan made in code has no place to point at: the text says where.
fn in_code(stage: &DraftStage<'_>, key: &str, message: String) -> String {
    match stage.places.of("") {
        Some(_) => message,
        None if key.is_empty() => format!("{} \"{}\": {message}", stage.kind.word(), stage.name),
        None => format!("{} \"{}\", key \"{key}\": {message}", stage.kind.word(), stage.name),
    }
}

fn ports_of(stage: &DraftStage<'_>) -> Vec<Port> {
    let named = stage.ports.iter().map(|(name, _)| Port::new(name));
    if stage.kind == Kind::Sink { named.collect() } else { std::iter::once(Port::MAIN).chain(named).collect() }
}

fn node(
    stage: DraftStage<'_>,
    built: Built,
    ways: BTreeMap<String, String>,
    anew: Option<Anew>,
    stats: Arc<StageStats>,
) -> Node {
    let outputs: Outputs = match &built {
        Built::Source(source) => source.outputs.clone(),
        Built::Transform(transform) => transform.outputs.clone(),
        Built::Sink(sink) => sink.outputs.clone(),
    };
    let DraftStage { name, kind, type_name, required, .. } = stage;
    stats.set_ports(outputs.iter().map(|(port, _)| *port));
    Node { name, kind, type_name, outputs, required, built, ways, anew, stats }
}

type Input = (usize, Port, SchemaRef);

/// The edges into a stage, with their schemas, which must be one and the same. `None` if one of them
/// is not known, which has been reported.
fn inputs_of(
    stage: &DraftStage<'_>,
    links: &[Link],
    built_at: &[Option<usize>],
    nodes: &[Node],
    mistakes: &mut Vec<Mistake>,
) -> Option<Vec<Input>> {
    let mut inputs: Vec<Input> = Vec::new();
    let mut complete = links.len() == stage.inputs.len();
    for link in links {
        let Some(from) = built_at[link.from] else {
            complete = false;
            continue;
        };
        let node = &nodes[from];
        let Some((port, schema)) = node.outputs.iter().find(|(port, _)| port.name() == link.port) else {
            let has = node.outputs.iter().map(|(port, _)| if port.name().is_empty() { "(main)" } else { port.name() });
            let port = if link.port.is_empty() { "main port".to_owned() } else { format!("port \"{}\"", link.port) };
            let message = format!("\"{}\" has no {port} as it is configured", node.name);
            let hint = format!("Its ports: {}.", has.collect::<Vec<_>>().join(", "));
            mistakes.push(Mistake::new(link.place.clone(), message).hint(hint));
            complete = false;
            continue;
        };
        if let Some((first, first_port, expected)) = inputs.first()
            && let Some(difference) = difference(expected, schema)
        {
            let message = format!(
                "the inputs of \"{}\" have different columns: {} {difference}",
                stage.name,
                edge_name(&node.name, *port)
            );
            let hint = format!(
                "All inputs of a stage have the schema of the first, {}.",
                edge_name(&nodes[*first].name, *first_port)
            );
            mistakes.push(Mistake::new(link.place.clone(), message).hint(hint));
            complete = false;
            continue;
        }
        inputs.push((from, *port, schema.clone()));
    }
    complete.then_some(inputs)
}

/// The first way in which `other` differs from `expected`, or `None`.
fn difference(expected: &Schema, other: &Schema) -> Option<String> {
    for field in expected.fields() {
        match other.field_with_name(field.name()) {
            Err(_) => return Some(format!("has no \"{}\"", field.name())),
            Ok(found) if found.data_type() != field.data_type() => {
                let (name, is, not) = (field.name(), found.data_type(), field.data_type());
                return Some(format!("has \"{name}\" as {is}, not {not}"));
            }
            Ok(found) if found.is_nullable() != field.is_nullable() => {
                let state = if found.is_nullable() { "optional, not required" } else { "required, not optional" };
                return Some(format!("has \"{}\" as {state}", field.name()));
            }
            Ok(_) => {}
        }
    }
    let extra = other.fields().iter().find(|field| expected.field_with_name(field.name()).is_err());
    if let Some(extra) = extra {
        return Some(format!("also has \"{}\"", extra.name()));
    }
    let same_order = expected.fields().iter().zip(other.fields()).all(|(left, right)| left.name() == right.name());
    (!same_order).then(|| "has them in another order".to_owned())
}

/// How `inputs` names a port of a stage.
pub(super) fn edge_name(stage: &str, port: Port) -> String {
    if port == Port::MAIN { format!("\"{stage}\"") } else { format!("\"{stage}.{}\"", port.name()) }
}
