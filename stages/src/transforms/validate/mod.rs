//! Sends rows that keep their rules onward, and the rest to [`Port::REJECTED`].
//!
//! ```toml
//! [transforms.valid]
//! type = "validate"
//! inputs = ["telemetry"]
//! required = ["device_id", "timestamp"]
//! range = { temperature = [-40, 85], humidity = [0, 100] }
//! pattern = { device_id = "^[a-z0-9-]+$" }
//! allowed = { status = ["ok", "warn"] }
//! max_future = "5m"
//! max_past = "30d"
//! ```
//!
//! No row is lost: each input row leaves on exactly one of the two outputs. A row that breaks
//! several rules is rejected once: its reason is the first of them in the order `required`,
//! `finite`, `range`, `pattern`, `allowed`, `max_text_bytes`, `future`, `past`, and by the columns of
//! the input within each; its detail names them all. A null breaks no rule but `required`.
//!
//! A rule for a column that the input does not have is reported when the plan is built and cannot
//! occur while it runs. The only clock is the time of receipt that travels with the batch, so a
//! replay judges every row as it was judged before.

mod rules;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use pipeline_engine::dead_letter;
use pipeline_engine::stage::{
    Batch, BuildContext, BuildError, BuiltTransform, Emitter, Port, StageDoc, StageError, Transform, TransformConfig,
};
use pipeline_engine::units::{DurationText, SizeText};
use schemars::JsonSchema;
use serde::Deserialize;

use self::rules::Rule;
use super::refusal::{self, Refused};
use super::values::{Number, Scalar};

/// `type = "validate"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidateConfig {
    /// Columns that must not be null.
    #[serde(default)]
    pub required: Vec<String>,
    /// Every float that is present must be a finite number: neither NaN nor infinite.
    #[serde(default = "yes")]
    pub finite: bool,
    /// The lowest and the highest value each column of numbers may hold, both included; `-inf` and
    /// `inf` leave a side open.
    #[serde(default)]
    pub range: BTreeMap<String, [Number; 2]>,
    /// A regular expression that each text column must match. It may match anywhere in the value:
    /// `^` and `$` tie it to the ends.
    #[serde(default)]
    pub pattern: BTreeMap<String, String>,
    /// The values that each column of text, whole numbers or truth values may hold.
    #[serde(default)]
    pub allowed: BTreeMap<String, Vec<Scalar>>,
    /// The longest value that any text column may hold.
    pub max_text_bytes: Option<SizeText>,
    /// The column that `max_future` and `max_past` look at.
    #[serde(default = "timestamp")]
    pub time_column: String,
    /// How far `time_column` may lie after the time of receipt. The time of receipt is that of the
    /// oldest row of the batch, so leave room for the time it takes to fill one.
    pub max_future: Option<DurationText>,
    /// How far `time_column` may lie before the time of receipt.
    pub max_past: Option<DurationText>,
}

fn yes() -> bool {
    true
}

fn timestamp() -> String {
    "timestamp".to_owned()
}

impl TransformConfig for ValidateConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "validate",
        summary: "Sends rows that keep their rules onward, and the rest out as dead letters.",
        ports: &[("rejected", "Rows that break a rule, with the rule's name as reason: `range.temperature`.")],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. A replay judges each row as \
                  before: it adds no duplicates of its own, and the keys of the rows are untouched.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let transform =
            Validate { stage: cx.stage.clone(), rules: rules::of_config(&self, input)?, broken: Vec::new() };
        let outputs = vec![(Port::MAIN, input.clone()), (Port::REJECTED, dead_letter::schema())];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}

/// The running stage.
struct Validate {
    stage: String,
    /// In the order in which they give the reason.
    rules: Vec<Rule>,
    /// Row and rule of each breach in the batch at hand; kept for its capacity.
    broken: Vec<(u32, u32)>,
}

impl Transform for Validate {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let received_at_us = batch.ack().received_at_us();
        self.broken.clear();
        for (index, rule) in (0..).zip(&self.rules) {
            rule.find_broken(&batch.rows, received_at_us, |row| self.broken.push((row, index)))?;
        }
        if self.broken.is_empty() {
            out.emit(batch);
            return Ok(());
        }
        self.broken.sort_unstable();
        let refused = self.explain(&batch.rows, received_at_us)?;
        let kept = refusal::keep_rest(&batch.rows, refused.iter().map(|(row, ..)| *row))?;
        let letters = refusal::letters(&batch, &refused, &self.stage)?;
        refusal::emit(batch, kept, letters, out);
        Ok(())
    }
}

impl Validate {
    /// One entry for each row in `broken`: its first rule is the reason, and the detail names all.
    fn explain(&self, rows: &RecordBatch, received_at_us: Option<i64>) -> Result<Vec<Refused>, StageError> {
        let mut refused = Vec::new();
        for breaches in self.broken.chunk_by(|left, right| left.0 == right.0) {
            let (row, first) = breaches[0];
            let mut detail = String::new();
            for (_, rule) in breaches {
                if !detail.is_empty() {
                    detail.push_str("; ");
                }
                self.rules[*rule as usize].explain(rows, row as usize, received_at_us, &mut detail)?;
            }
            refused.push((row, self.rules[first as usize].word.clone(), Some(detail)));
        }
        Ok(refused)
    }
}
