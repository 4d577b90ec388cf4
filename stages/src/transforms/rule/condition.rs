//! A condition alone, for stages that choose among rows: what stands behind WHERE in a rule.

use arrow::array::{BooleanArray, RecordBatch};
use arrow::datatypes::Schema;
use pipeline_engine::stage::{Batch, BuildContext, BuildError, StageError};

use super::alone::{Alone, Text};
use super::bind::bind_condition;
use super::expression::Expression;
use super::kernels;

/// A condition over rows, in the language of rules and with its semantics.
pub(in crate::transforms) struct Condition {
    condition: Expression,
    alone: Alone,
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
        let example = "behind WHERE, such as \"temperature > 30\"";
        let text = Text { key, text, what: "condition", example };
        let (condition, alone) = text.read(input, cx, bind_condition)?;
        Ok(Self { condition, alone })
    }

    /// For each row of `rows`, which came with `batch`, whether it is true; what is Undefined is not.
    ///
    /// # Errors
    /// A column has another type than it was built for.
    pub(in crate::transforms) fn passing(&self, rows: &RecordBatch, batch: &Batch) -> Result<BooleanArray, StageError> {
        Ok(kernels::passing(&self.condition, &self.alone.input(rows, batch))?)
    }
}
