//! The running stage.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use pipeline_engine::Counter;
use pipeline_engine::dead_letter::{DeadLetter, DeadLetters};
use pipeline_engine::stage::{Batch, Emitter, StageError, Transform};

use super::dice::Dice;
use super::evaluate::{Row, project};
use super::expression::{Expression, Item, Projection};
use super::input::{Input, Places};
use super::json;
use super::kernels;
use super::output::{self, OutputColumn};
use super::topic_filter::TopicFilter;
use super::value::Value;
use crate::decode::reason;
use crate::transforms::refusal::{self, Refused};

/// A rule over the batches of one run. It keeps nothing from one batch to the next.
pub struct RunningRule {
    pub stage: String,
    /// Pipeline and stage: what no other stage draws from.
    pub full_name: String,
    pub places: Places,
    pub filter: Option<TopicFilter>,
    pub slots: Vec<Expression>,
    pub condition: Option<Expression>,
    pub output: Output,
    /// Whether anything is random.
    pub draws: bool,
    /// Rows of topics that FROM does not take.
    pub other_topics: Counter,
    /// Rows for which WHERE is not true.
    pub unmatched: Counter,
}

/// What comes out.
pub enum Output {
    Rows {
        columns: Vec<OutputColumn>,
        schema: SchemaRef,
    },
    /// Messages with another payload; `reads_message`: payloads are read as JSON.
    Messages {
        projection: Projection,
        reads_message: bool,
        payload: usize,
    },
}

impl Transform for RunningRule {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let received_at_us = batch.ack().received_at_us().unwrap_or(0);
        let input = Input::new(batch.rows.clone(), self.places, received_at_us, self.dice(&batch, received_at_us));
        let input = self.of_topics(input)?;
        let (mut input, mut letters) = self.with_messages(input, &batch, received_at_us)?;
        for slot in &self.slots {
            let values = kernels::column(slot, &input)?;
            input.push_slot(values);
        }
        if let Some(condition) = &self.condition {
            let passing = kernels::passing(condition, &input)?;
            self.unmatched.add((passing.len() - passing.true_count()) as u64);
            input = kept(input, &passing)?;
        }
        match &self.output {
            Output::Messages { projection, payload, .. } => {
                let rows = messages(projection, *payload, &input)?;
                refusal::emit(batch, rows, letters.take(), out);
            }
            Output::Rows { columns, schema } => {
                let (rows, misfits) = output::rows(columns, schema, &input)?;
                let refused = refused(misfits);
                // Letters hold rows as they came, of those that are left.
                let batch = batch.with_rows(input.rows);
                let kept = refusal::keep_rest(&rows, refused.iter().map(|(row, ..)| *row))?;
                let letters = refusal::letters(&batch, &refused, &self.stage)?;
                refusal::emit(batch, kept, letters, out);
            }
        }
        Ok(())
    }
}

impl RunningRule {
    fn dice(&self, batch: &Batch, received_at_us: i64) -> Dice {
        if !self.draws {
            return Dice::default();
        }
        let position = batch.ack().span().map(|(partition, span)| format!("{partition} {span}"));
        Dice::new(&self.full_name, &position.unwrap_or_default(), received_at_us)
    }

    /// The rows whose topic FROM takes.
    fn of_topics(&self, input: Input) -> Result<Input, StageError> {
        let Some(filter) = &self.filter else { return Ok(input) };
        let matches = |row| input.full_topic(row).is_some_and(|topic| filter.matches(topic));
        let taken: BooleanArray = (0..input.len()).map(|row| Some(matches(row))).collect();
        self.other_topics.add((taken.len() - taken.true_count()) as u64);
        kept(input, &taken)
    }

    /// Where the rule looks into messages, those that are JSON, and letters for the others.
    fn with_messages(
        &self,
        input: Input,
        batch: &Batch,
        received_at_us: i64,
    ) -> Result<(Input, DeadLetters), StageError> {
        let mut letters = DeadLetters::default();
        let Output::Messages { reads_message: true, payload, .. } = self.output else { return Ok((input, letters)) };
        let payloads = input.rows.column(payload).as_binary::<i32>();
        let position = batch.ack().span().map(|(partition, span)| format!("{partition} {span}"));
        let (mut documents, mut good) = (Vec::with_capacity(input.len()), Vec::with_capacity(input.len()));
        for row in 0..input.len() {
            match json::read(payloads.value(row)) {
                Ok(document) => {
                    documents.push(document);
                    good.push(true);
                }
                Err(error) => {
                    letters.push(DeadLetter {
                        received_at_us,
                        stage: &self.stage,
                        reason: reason::INVALID_JSON,
                        detail: Some(&error.to_string()),
                        topic: input.full_topic(row),
                        position: position.as_deref(),
                        payload: payloads.value(row),
                    });
                    good.push(false);
                }
            }
        }
        Ok((kept(input, &BooleanArray::from(good))?.with_documents(documents), letters))
    }
}

fn kept(input: Input, keep: &BooleanArray) -> Result<Input, StageError> {
    if keep.true_count() == keep.len() { Ok(input) } else { Ok(input.filtered(keep)?) }
}

/// The messages with the payloads that the rule gives. A message whose result is Undefined has an empty
/// one, as in AWS IoT.
fn messages(projection: &Projection, payload: usize, input: &Input) -> Result<RecordBatch, StageError> {
    let passes_on = matches!(projection, Projection::Items(items) if matches!(items[..], [Item::All]));
    if passes_on {
        return Ok(input.rows.clone());
    }
    let has_star = matches!(projection, Projection::Items(items) if items.iter().any(|item| matches!(item, Item::All)));
    let payloads = (0..input.len()).map(|row| {
        let whole = if has_star { input.document(row) } else { std::borrow::Cow::Owned(Value::Undefined) };
        json::write(&project(projection, &whole, &Row::new(input, row)))
    });
    let payloads: ArrayRef = Arc::new(BinaryArray::from_iter_values(payloads));
    let mut columns = input.rows.columns().to_vec();
    columns[payload] = payloads;
    Ok(RecordBatch::try_new(input.rows.schema(), columns)?)
}

/// One entry a row: the first column that does not fit is the reason, the detail names all.
fn refused(mut misfits: Vec<output::Misfit>) -> Vec<Refused> {
    misfits.sort_by_key(|(row, ..)| *row);
    let mut refused: Vec<Refused> = Vec::new();
    for (row, column, value) in misfits {
        let text = format!("{column}: {} does not fit its type", shown(&value));
        match refused.last_mut() {
            Some((last, _, Some(detail))) if *last == row => {
                detail.push_str("; ");
                detail.push_str(&text);
            }
            _ => refused.push((row, format!("type.{column}"), Some(text))),
        }
    }
    refused
}

/// Enough of a value for a person: the payload has it all.
pub(super) fn shown(value: &str) -> String {
    const CHARS_MAX: usize = 80;
    match value.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}
