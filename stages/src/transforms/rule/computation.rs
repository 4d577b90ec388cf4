//! An expression alone, for stages that compute columns: what stands behind SELECT in a rule.

use std::collections::BTreeSet;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Schema};
use pipeline_engine::schema::{ColumnType, json_field};
use pipeline_engine::stage::{Batch, BuildContext, BuildError, StageError};

use super::bind::{self, Surroundings};
use super::dice::Dice;
use super::expression::{Expression, Kind, Op, Projection, Query};
use super::fit::{can_fit, fit};
use super::input::{Input, Places};
use super::kernels;
use super::sql::{self, Refusal, line_and_column};
use super::{TEXT, TIME, client_id, is_messages, named, received_at, topic};

/// A column of results over rows, in the language of rules and with its semantics.
pub(in crate::transforms) struct Computation {
    places: Places,
    expression: Expression,
    /// The type of the results, where another one is asked for than the expression has.
    declared: Option<ColumnType>,
    /// The columns that it reads.
    reads: Vec<usize>,
    /// Whether anything in it is random, and what no other stage draws from.
    draws: Option<String>,
}

/// A row that a result could not be computed for: its number, and why.
pub(in crate::transforms) type Failure = (u32, String);

impl Computation {
    /// Reads `text`, which stands at `key`; `declared` is the type that its results shall have.
    ///
    /// # Errors
    /// At `key`, with the place in the text: it is no expression, names a column that is not there or a function that
    /// is not, or no result of it can have the type.
    pub(in crate::transforms) fn parse(
        key: &str,
        text: &str,
        declared: Option<ColumnType>,
        input: &Schema,
        cx: &BuildContext,
    ) -> Result<Self, BuildError> {
        if is_messages(input) {
            return Err(BuildError::invalid(key, "the rows are undecoded messages, which have no columns")
                .hint("Decode them with a schema at the source, or use a transform `rule`."));
        }
        if text.trim().is_empty() {
            return Err(BuildError::invalid(key, "there is no expression")
                .hint("Write one as behind SELECT, such as \"temperature * 9 / 5 + 32\"."));
        }
        let places = Places {
            topic: named(input, key, &topic(), &topic(), TEXT)?,
            received_at: named(input, key, &received_at(), &received_at(), TIME)?,
            payload: None,
        };
        let client_id = named(input, key, &client_id(), &client_id(), TEXT)?;
        let around = Surroundings { schema: input, messages: false, topic: places.topic, client_id };
        let refused = |refusal: Refusal| refused(key, text, &refusal);
        let tree = sql::parse::parse_expression(text).map_err(refused)?;
        let (expression, draws) = bind::bind_expression(&tree, &around).map_err(refused)?;
        if expression.kind == Kind::Undefined {
            let message = "this is Undefined in every row: the column would always be empty";
            return Err(refused(
                Refusal::new(tree.at, message)
                    .hint("AWS IoT gives Undefined for an operation on values of a type it does not take."),
            ));
        }
        if let Some(wanted) = declared
            && !can_fit(expression.kind, wanted)
        {
            let message = format!("no result of this can be {wanted}");
            return Err(refused(Refusal::new(tree.at, message).hint("cast(a AS type) converts a value.")));
        }
        let mut reads = BTreeSet::new();
        columns_of(&expression, &mut reads);
        let draws = draws.then(|| format!("{}/{}/{key}", cx.pipeline, cx.stage));
        Ok(Self { places, expression, declared, reads: reads.into_iter().collect(), draws })
    }

    /// The column that the results make.
    pub(in crate::transforms) fn field(&self, name: &str) -> Field {
        let (data_type, is_json) = match (self.declared, self.expression.kind) {
            (Some(declared), _) => (declared.arrow(), declared == ColumnType::Json),
            (None, Kind::Bool) => (DataType::Boolean, false),
            (None, Kind::Int) => (DataType::Int64, false),
            (None, Kind::Decimal) => (DataType::Float64, false),
            (None, Kind::Text) => (DataType::Utf8, false),
            (None, Kind::Dynamic | Kind::Undefined) => (DataType::Utf8, true),
        };
        let field = Field::new(name, data_type, true);
        if is_json { json_field(field) } else { field }
    }

    /// The results for `rows`, which came with `batch`: one for each, null where there is none. And in order the rows
    /// for which it failed: those without a result although each column that it reads has a value, and those whose
    /// result does not fit its type.
    ///
    /// # Errors
    /// A column has another type than it was built for.
    pub(in crate::transforms) fn results(
        &self,
        rows: &RecordBatch,
        batch: &Batch,
    ) -> Result<(ArrayRef, Vec<Failure>), StageError> {
        let received_at_us = batch.ack().received_at_us().unwrap_or(0);
        let dice = match &self.draws {
            None => Dice::default(),
            Some(name) => {
                let position = batch.ack().span().map(|(partition, span)| format!("{partition} {span}"));
                Dice::new(name, &position.unwrap_or_default(), received_at_us)
            }
        };
        let values = kernels::column(&self.expression, &Input::new(rows.clone(), self.places, received_at_us, dice))?;
        let mut failures = Vec::new();
        let results = match self.declared {
            None => values.into_array(),
            Some(wanted) => fit(&values, wanted, rows.num_rows(), |row, value| {
                failures.push((row, format!("{} does not fit its type", super::run::shown(&value))));
            }),
        };
        if results.null_count() > failures.len() {
            let mut misfits = failures.iter().map(|(row, _)| *row).peekable();
            let mut unknown = Vec::new();
            for row in (0..rows.num_rows()).filter(|row| results.is_null(*row)) {
                let is_misfit = misfits.next_if_eq(&(row as u32)).is_some();
                if !is_misfit && self.reads.iter().all(|column| has_value(rows.column(*column), row)) {
                    unknown.push((row as u32, "it can't be computed".to_owned()));
                }
            }
            failures.extend(unknown);
            failures.sort_by_key(|(row, _)| *row);
        }
        Ok((results, failures))
    }
}

/// Whether a column tells anything in a row: floats that are no number do not.
fn has_value(column: &ArrayRef, row: usize) -> bool {
    column.is_valid(row)
        && match column.data_type() {
            DataType::Float32 => column.as_primitive::<Float32Type>().value(row).is_finite(),
            DataType::Float64 => column.as_primitive::<Float64Type>().value(row).is_finite(),
            _ => true,
        }
}

/// Gathers the columns that an expression reads.
fn columns_of(expression: &Expression, columns: &mut BTreeSet<usize>) {
    let mut all = |expressions: &[&Expression]| expressions.iter().for_each(|of| columns_of(of, columns));
    match &expression.op {
        Op::Column(column) | Op::ClientId(column) => {
            columns.insert(*column);
        }
        Op::Topic(Some(of))
        | Op::IsNull(of)
        | Op::IsUndefined(of)
        | Op::Member(of, _)
        | Op::Not(of)
        | Op::Cast(_, of) => all(&[of]),
        Op::Index(left, right)
        | Op::And(left, right)
        | Op::Or(left, right)
        | Op::Equal { left, right, .. }
        | Op::Compare(_, left, right)
        | Op::Calculate(_, left, right)
        | Op::In(left, right) => all(&[left, right]),
        Op::Case { operand, arms, otherwise } => {
            all(&operand.iter().chain(otherwise).map(AsRef::as_ref).collect::<Vec<_>>());
            arms.iter().for_each(|(when, then)| all(&[when, then]));
        }
        Op::Call { arguments, .. } | Op::Array(arguments) => all(&arguments.iter().collect::<Vec<_>>()),
        Op::Object(members) => members.iter().for_each(|(_, value)| all(&[value])),
        Op::Query(query) => {
            let Query { from, condition, projection } = query.as_ref();
            all(&[from]);
            all(&condition.iter().collect::<Vec<_>>());
            if let Projection::Value(value) = projection {
                all(&[value]);
            }
        }
        Op::Constant(_)
        | Op::Document
        | Op::Payload
        | Op::Element
        | Op::Slot(_)
        | Op::Topic(None)
        | Op::ReceivedAt
        | Op::Random(_)
        | Op::Uuid(_) => {}
    }
}

fn refused(key: &str, text: &str, refusal: &Refusal) -> BuildError {
    let at = refusal.at.start.min(text.len())..refusal.at.end.min(text.len());
    let (line, column) = line_and_column(text, at.start);
    let message = format!("{} (line {line}, column {column} of the expression)", refusal.message);
    let error = BuildError::invalid(key, message).within(at);
    match &refusal.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
