//! Lets the rows through for which a condition is true.
//!
//! ```toml
//! [transforms.hot]
//! type = "filter"
//! inputs = ["valid"]
//! keep = "temperature > 30 AND startswith(device_id, 'press-')"
//! ```
//!
//! The condition is what stands behind WHERE in a rule of AWS IoT, with its semantics: `docs/rule.md`. A row for which it
//! is false, or Undefined since a value is missing, is left out and counted in `filtered_rows`.

use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use pipeline_engine::Counter;
use pipeline_engine::stage::{
    Batch, BuildContext, BuildError, BuiltTransform, Emitter, Port, StageDoc, StageError, Transform, TransformConfig,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::rule::Condition;

/// `type = "filter"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterConfig {
    /// Which rows go on, as behind WHERE in a rule: `temperature > 30`.
    pub keep: String,
}

impl TransformConfig for FilterConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "filter",
        summary: "Lets the rows through for which a condition is true.",
        ports: &[],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. What can't be computed is \
                  Undefined, and such a row is left out. A replay chooses as before, and the keys of rows are untouched.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let transform =
            Filter { keep: Condition::parse("keep", &self.keep, input, cx)?, filtered: cx.counter("filtered_rows") };
        Ok(BuiltTransform { transform: Box::new(transform), outputs: vec![(Port::MAIN, input.clone())] })
    }
}

struct Filter {
    keep: Condition,
    filtered: Counter,
}

impl Transform for Filter {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let keep = self.keep.passing(&batch.rows, &batch)?;
        self.filtered.add((keep.len() - keep.true_count()) as u64);
        let rows = filter_record_batch(&batch.rows, &keep)?;
        out.emit(batch.with_rows(rows));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transforms::testing::{Outcome, Reading, apply, built, context, example, mistake, rows};

    fn filtered(keep: &str, temperatures: &[Option<f64>]) -> Outcome {
        let readings: Vec<Reading> = temperatures
            .iter()
            .map(|temperature| Reading { temperature: *temperature, ..Reading::of("a", 0) })
            .collect();
        let mut stage = built::<FilterConfig>(&format!("keep = '''{keep}'''"), &context()).unwrap();
        apply(&mut *stage.transform, Batch::detached(rows(&readings)))
    }

    #[test]
    fn rows_for_which_it_is_true_go_on() {
        let all = [Some(1.0), Some(40.0), None, Some(31.0)];
        assert_eq!(filtered("temperature > 30", &all).texts(Port::MAIN, "temperature"), ["40.0", "31.0"]);
        assert_eq!(
            filtered("NOT temperature > 30", &all).texts(Port::MAIN, "temperature"),
            ["1.0"],
            "not the missing one"
        );
        assert_eq!(filtered("isUndefined(temperature)", &all).count(Port::MAIN), 1);
        assert_eq!(filtered("status = 'no'", &all).count(Port::MAIN), 0);
    }

    #[test]
    fn the_example_in_its_header_works() {
        built::<FilterConfig>(&example(include_str!("filter.rs")), &context())
            .unwrap_or_else(|error| panic!("{error}"));
    }

    #[test]
    fn mistakes_are_placed_in_the_condition() {
        for (keep, says) in [
            ("temprature > 30", "line 1, column 1 of the condition"),
            ("temperature > ", "of the condition"),
            ("temperature > 30 GROUP BY x", "of the condition"),
            ("", "there is no condition"),
        ] {
            let (key, message) = mistake::<FilterConfig>(&format!("keep = '''{keep}'''"));
            assert!(key == "keep" && message.contains(says), "{keep}: {message}");
        }
    }
}
