//! A condition alone, for stages that choose among rows: what stands behind WHERE in a rule.

use arrow::array::{BooleanArray, RecordBatch};
use arrow::datatypes::Schema;
use pipeline_engine::stage::{Batch, BuildContext, BuildError, StageError};

use super::bind::{self, Surroundings};
use super::dice::Dice;
use super::expression::Expression;
use super::input::{Input, Places};
use super::kernels;
use super::sql::{self, Refusal, line_and_column};
use super::{TEXT, TIME, client_id, is_messages, named, received_at, topic};

/// What makes a rule of a condition.
const BEFORE: &str = "SELECT * WHERE ";

/// A condition over rows, in the language of rules and with its semantics.
pub(in crate::transforms) struct Condition {
    places: Places,
    condition: Expression,
    /// Whether anything in it is random, and what no other stage draws from.
    draws: Option<String>,
}

impl Condition {
    /// Reads `text`, which stands at `key`.
    ///
    /// # Errors
    /// At `key`, with the place in the text: it is no condition, names a column that is not there or a function that
    /// is not.
    pub(in crate::transforms) fn parse(
        key: &str,
        text: &str,
        input: &Schema,
        cx: &BuildContext,
    ) -> Result<Self, BuildError> {
        if is_messages(input) {
            return Err(BuildError::invalid(key, "the rows are undecoded messages, which have no columns")
                .hint("Decode them with a schema at the source, or use a transform `rule`."));
        }
        if text.trim().is_empty() {
            return Err(BuildError::invalid(key, "there is no condition")
                .hint("Write one as behind WHERE, such as \"temperature > 30\"."));
        }
        let places = Places {
            topic: named(input, key, &topic(), &topic(), TEXT)?,
            received_at: named(input, key, &received_at(), &received_at(), TIME)?,
            payload: None,
        };
        let client_id = named(input, key, &client_id(), &client_id(), TEXT)?;
        let around = Surroundings { schema: input, messages: false, topic: places.topic, client_id };
        let refused = |refusal: Refusal| refused(key, text, &refusal);
        let tree = sql::parse::parse(&format!("{BEFORE}{text}")).map_err(refused)?;
        let bound = bind::bind(&tree, &around).map_err(refused)?;
        let Some(condition) = bound.condition else {
            return Err(BuildError::invalid(key, "it is no condition"));
        };
        let draws = bound.draws.then(|| format!("{}/{}/{key}", cx.pipeline, cx.stage));
        Ok(Self { places, condition, draws })
    }

    /// For each row of `rows`, which came with `batch`, whether it is true; what is Undefined is not.
    ///
    /// # Errors
    /// A column has another type than it was built for.
    pub(in crate::transforms) fn passing(&self, rows: &RecordBatch, batch: &Batch) -> Result<BooleanArray, StageError> {
        let received_at_us = batch.ack().received_at_us().unwrap_or(0);
        let dice = match &self.draws {
            None => Dice::default(),
            Some(name) => {
                let position = batch.ack().span().map(|(partition, span)| format!("{partition} {span}"));
                Dice::new(name, &position.unwrap_or_default(), received_at_us)
            }
        };
        Ok(kernels::passing(&self.condition, &Input::new(rows.clone(), self.places, received_at_us, dice))?)
    }
}

fn refused(key: &str, text: &str, refusal: &Refusal) -> BuildError {
    let in_text = |at: usize| at.saturating_sub(BEFORE.len()).min(text.len());
    let at = in_text(refusal.at.start)..in_text(refusal.at.end);
    let (line, column) = line_and_column(text, at.start);
    let message = format!("{} (line {line}, column {column} of the condition)", refusal.message);
    let error = BuildError::invalid(key, message).within(at);
    match &refusal.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
