//! Sends dead letters back to where they came from, so that they run through the mended pipeline.
//!
//! What a source refused is sent as it was received. What a later stage refused is a row: its source is
//! asked to make a message of it again, provided that the row has all columns that the source reads.
//! A letter that is refused again is a new letter, with the new time of receipt.

use std::collections::{BTreeMap, HashSet};

use arrow::datatypes::Schema;
use futures::TryStreamExt;

use super::{CHUNK, Letter, LetterFilter, LetterForm, LetterId, LetterStore, NotSent, ReplayLog, Resender, Resent};
use crate::error::StageError;
use crate::plan::{Node, Plan};
use crate::registry::Built;
use crate::stage::Port;

/// How a replay goes.
#[derive(Debug, Clone, Default)]
pub struct ReplayOptions {
    /// Also letters that were replayed before.
    pub again: bool,
    /// Where letters go that do not know their topic.
    pub topic: Option<String>,
    /// No more letters than this.
    pub limit: Option<u64>,
    /// Send nothing: only say what would be.
    pub dry_run: bool,
}

/// What became of the letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Published, and noted as replayed.
    pub sent: u64,
    /// Left out, since they were replayed before.
    pub replayed_before: u64,
    /// Can't be replayed, by the reason.
    pub unsent: BTreeMap<String, Unsent>,
}

/// Letters that can't be replayed for the same reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsent {
    /// How many.
    pub letters: u64,
    /// One of them.
    pub example: LetterId,
}

/// Replays the letters of a store that the filter lets through, the oldest first.
///
/// # Errors
/// The store, the log or a source's outside can't be reached. `report` then says what was done.
pub async fn replay(
    plan: &Plan,
    store: &mut dyn LetterStore,
    log: &mut dyn ReplayLog,
    filter: &LetterFilter,
    options: &ReplayOptions,
    report: &mut ReplayReport,
) -> Result<(), StageError> {
    let mut ways = Ways::of(plan);
    let outcome = ways.replay(store, log, filter, options, report).await;
    for resender in ways.resenders.values_mut() {
        resender.close().await;
    }
    outcome
}

/// The ways back, one for each source that has one.
struct Ways<'p> {
    plan: &'p Plan,
    resenders: BTreeMap<&'p str, Box<dyn Resender>>,
}

impl<'p> Ways<'p> {
    fn of(plan: &'p Plan) -> Self {
        let way = |node: &'p Node| match &node.built {
            Built::Source(built) => Some((node.name.as_str(), built.source.resender()?)),
            Built::Transform(_) | Built::Sink(_) => None,
        };
        Self { plan, resenders: plan.nodes.iter().filter_map(way).collect() }
    }

    async fn replay(
        &mut self,
        store: &mut dyn LetterStore,
        log: &mut dyn ReplayLog,
        filter: &LetterFilter,
        options: &ReplayOptions,
        report: &mut ReplayReport,
    ) -> Result<(), StageError> {
        let mut seen = HashSet::new();
        let mut left = options.limit.unwrap_or(u64::MAX);
        let mut chunks = store.read(filter).await?.try_chunks(CHUNK);
        while left > 0
            && let Some(mut letters) = chunks.try_next().await.map_err(|error| error.1)?
        {
            letters.retain(|letter| seen.insert(letter.id));
            if !options.again {
                let ids: Vec<_> = letters.iter().map(|letter| letter.id).collect();
                let before = log.replayed(&ids).await?;
                letters.retain(|letter| !before.contains_key(&letter.id));
                report.replayed_before += before.len() as u64;
            }
            letters.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= letters.len() as u64;
            self.send(&letters, log, options, report).await?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        letters: &[Letter],
        log: &mut dyn ReplayLog,
        options: &ReplayOptions,
        report: &mut ReplayReport,
    ) -> Result<(), StageError> {
        let mut by_source = BTreeMap::<&str, (Vec<LetterId>, Vec<Resent>)>::new();
        for letter in letters {
            match self.message(letter, options.topic.as_deref()) {
                Ok((source, message)) => {
                    let (ids, messages) = by_source.entry(source).or_default();
                    ids.push(letter.id);
                    messages.push(message);
                }
                Err(reason) => report.not_sent(letter.id, reason),
            }
        }
        for (source, (ids, messages)) in by_source {
            if options.dry_run {
                report.sent += ids.len() as u64;
                continue;
            }
            let resender = self.resenders.get_mut(source).expect("a message was made by it");
            let outcomes = resender.send(&messages).await?;
            let mut taken = Vec::new();
            let mut later = None;
            for (id, outcome) in ids.into_iter().zip(outcomes) {
                match outcome {
                    Ok(()) => taken.push(id),
                    Err(NotSent::Refused(reason)) => {
                        report.not_sent(id, format!("was refused again on its way: {reason}"))
                    }
                    Err(NotSent::Later(reason)) => later = Some(reason),
                }
            }
            // Also when it ends here: what was published must not be published again.
            if !taken.is_empty() {
                log.note(&taken).await?;
            }
            report.sent += taken.len() as u64;
            if let Some(reason) = later {
                return Err(StageError::transient(format!("not all letters could be sent: {reason}"))
                    .hint("Run the same command again: what was sent is left out then."));
            }
        }
        Ok(())
    }

    /// The message that brings a letter back, and the source that will read it.
    fn message(&self, letter: &Letter, topic: Option<&str>) -> Result<(&'p str, Resent), String> {
        let Some(stage) = self.plan.nodes.iter().position(|node| node.name == letter.stage) else {
            return Err(format!("was refused by \"{}\", which is no stage of the pipeline any more", letter.stage));
        };
        let (source, form) = match &self.plan.nodes[stage].built {
            Built::Source(_) => (stage, LetterForm::Message),
            Built::Transform(_) | Built::Sink(_) => (self.source_of_row(letter, stage)?, LetterForm::Row),
        };
        let node = &self.plan.nodes[source];
        let Some(resender) = self.resenders.get(node.name.as_str()) else {
            return Err(format!(
                "came from \"{}\", and nothing can be sent to a source of type {}",
                node.name, node.type_name
            ));
        };
        Ok((node.name.as_str(), resender.message(letter, form, topic)?))
    }

    /// The source of a row that a later stage has refused.
    fn source_of_row(&self, letter: &Letter, stage: usize) -> Result<usize, String> {
        let nodes = &self.plan.nodes;
        let above = self.sources_above(stage);
        let named = |source: &usize| {
            // Partitions are named SOURCE/PARTITION.
            let rest =
                letter.position.as_deref().and_then(|position| position.strip_prefix(nodes[*source].name.as_str()));
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let source = match (above.iter().copied().find(named), &above[..]) {
            (Some(source), _) | (None, &[source]) => source,
            (None, _) => return Err("came from one of several sources, and does not say from which".to_owned()),
        };
        let columns = nodes[source].outputs.iter().find(|(port, _)| *port == Port::MAIN).map(|(_, schema)| schema);
        let has_columns = |input: &Schema| {
            columns.is_some_and(|columns| {
                columns.fields().iter().all(|field| {
                    input.field_with_name(field.name()).is_ok_and(|found| found.data_type() == field.data_type())
                })
            })
        };
        match self.plan.input_schema(stage).filter(|input| has_columns(input)) {
            Some(_) => Ok(source),
            None => Err(format!(
                "is a row that \"{}\" reads, which has not all columns of the source \"{}\": no message can be made of it",
                letter.stage, nodes[source].name
            )),
        }
    }

    fn sources_above(&self, stage: usize) -> Vec<usize> {
        let (mut above, mut next) = (HashSet::new(), vec![stage]);
        while let Some(stage) = next.pop() {
            if above.insert(stage) {
                next.extend(self.plan.edges.iter().filter(|edge| edge.to == stage).map(|edge| edge.from));
            }
        }
        let is_source = |stage: &usize| matches!(self.plan.nodes[*stage].built, Built::Source(_));
        let mut sources: Vec<_> = above.into_iter().filter(is_source).collect();
        sources.sort_unstable();
        sources
    }
}

impl ReplayReport {
    fn not_sent(&mut self, letter: LetterId, reason: String) {
        self.unsent.entry(reason).or_insert(Unsent { letters: 0, example: letter }).letters += 1;
    }

    /// Letters that can't be replayed, for whatever reason.
    pub fn letters_unsent(&self) -> u64 {
        self.unsent.values().map(|unsent| unsent.letters).sum()
    }
}
