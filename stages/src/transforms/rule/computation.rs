//! An expression alone, for stages that compute columns: what stands behind SELECT in a rule.

use std::collections::BTreeSet;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Schema};
use pipeline_engine::schema::{ColumnType, json_field};
use pipeline_engine::stage::{Batch, BuildContext, BuildError, StageError};

use super::alone::{Alone, Text};
use super::bind::bind_expression;
use super::expression::{Expression, Kind, Op, Projection, Query};
use super::fit::{can_fit, fit};
use super::kernels;
use super::sql::Refusal;

/// A column of results over rows, in the language of rules and with its semantics.
pub(in crate::transforms) struct Computation {
    expression: Expression,
    alone: Alone,
    /// The type of the results, where another one is asked for than the expression has.
    declared: Option<ColumnType>,
    /// The columns that it reads.
    reads: Vec<usize>,
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
        let example = "behind SELECT, such as \"temperature * 9 / 5 + 32\"";
        let text = Text { key, text, what: "expression", example };
        let (expression, alone) = text.read(input, cx, |tree, around| {
            let (expression, draws) = bind_expression(tree, around)?;
            if expression.kind == Kind::Undefined {
                let message = "this is Undefined in every row: the column would always be empty";
                return Err(Refusal::new(tree.at.clone(), message)
                    .hint("AWS IoT gives Undefined for an operation on values of a type it does not take."));
            }
            match declared.filter(|wanted| !can_fit(expression.kind, *wanted)) {
                Some(wanted) => Err(Refusal::new(tree.at.clone(), format!("no result of this can be {wanted}"))
                    .hint("cast(a AS type) converts a value.")),
                None => Ok((expression, draws)),
            }
        })?;
        let mut reads = BTreeSet::new();
        columns_of(&expression, &mut reads);
        Ok(Self { expression, alone, declared, reads: reads.into_iter().collect() })
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
        let values = kernels::column(&self.expression, &self.alone.input(rows, batch))?;
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
