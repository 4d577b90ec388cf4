//! An expression that stands by itself in a configuration, outside of a rule: what conditions and computed columns share.

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use pipeline_engine::stage::{Batch, BuildContext, BuildError};

use super::bind::Surroundings;
use super::dice::Dice;
use super::expression::Expression;
use super::input::{Input, Places};
use super::sql::tree::Tree;
use super::sql::{self, Refusal, line_and_column};
use super::{TEXT, TIME, client_id, is_messages, named, received_at, topic};

/// Where an expression stands, and what it is.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub(super) key: &'a str,
    pub(super) text: &'a str,
    /// In a word: `condition`.
    pub(super) what: &'static str,
    /// How to write one, for who has written none.
    pub(super) example: &'static str,
}

/// What an expression by itself knows of rows besides their columns.
pub(super) struct Alone {
    places: Places,
    /// Whether anything in it is random, and what no other stage draws from.
    draws: Option<String>,
}

impl Text<'_> {
    /// Reads the text, and looks its names up by `bind`, which also says whether anything in it is random.
    ///
    /// # Errors
    /// At the key, with the place in the text, if it is none.
    pub(super) fn read(
        self,
        input: &Schema,
        cx: &BuildContext,
        bind: impl FnOnce(&Tree, &Surroundings<'_>) -> Result<(Expression, bool), Refusal>,
    ) -> Result<(Expression, Alone), BuildError> {
        let Self { key, text, what, example } = self;
        if is_messages(input) {
            return Err(BuildError::invalid(key, "the rows are undecoded messages, which have no columns")
                .hint("Decode them with a schema at the source, or use a transform `rule`."));
        }
        if text.trim().is_empty() {
            return Err(
                BuildError::invalid(key, format!("there is no {what}")).hint(format!("Write one as {example}."))
            );
        }
        let places = Places {
            topic: named(input, key, &topic(), &topic(), TEXT)?,
            received_at: named(input, key, &received_at(), &received_at(), TIME)?,
            payload: None,
        };
        let client_id = named(input, key, &client_id(), &client_id(), TEXT)?;
        let around = Surroundings { schema: input, messages: false, topic: places.topic, client_id };
        let tree = sql::parse::parse_expression(text).map_err(|refusal| self.refused(&refusal))?;
        let (expression, draws) = bind(&tree, &around).map_err(|refusal| self.refused(&refusal))?;
        let draws = draws.then(|| format!("{}/{}/{key}", cx.pipeline, cx.stage));
        Ok((expression, Alone { places, draws }))
    }

    fn refused(self, refusal: &Refusal) -> BuildError {
        let end = self.text.len();
        let at = refusal.at.start.min(end)..refusal.at.end.min(end);
        let (line, column) = line_and_column(self.text, at.start);
        let message = format!("{} (line {line}, column {column} of the {})", refusal.message, self.what);
        let error = BuildError::invalid(self.key, message).within(at);
        match &refusal.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl Alone {
    /// What the expression looks at in `rows`, which came with `batch`.
    pub(super) fn input(&self, rows: &RecordBatch, batch: &Batch) -> Input {
        let received_at_us = batch.ack().received_at_us().unwrap_or(0);
        let dice = match &self.draws {
            None => Dice::default(),
            Some(name) => {
                let position = batch.ack().span().map(|(partition, span)| format!("{partition} {span}"));
                Dice::new(name, &position.unwrap_or_default(), received_at_us)
            }
        };
        Input::new(rows.clone(), self.places, received_at_us, dice)
    }
}
