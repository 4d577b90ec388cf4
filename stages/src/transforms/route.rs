//! Sends each row the ways whose conditions are true for it.
//!
//! ```toml
//! [transforms.sorted]
//! type = "route"
//! inputs = ["valid"]
//!
//! [transforms.sorted.routes]
//! hot = "temperature > 30"
//! pressed = "startswith(device_id, 'press-')"
//! ```
//!
//! Each route is a port: `sorted.hot`, `sorted.pressed`. A row leaves by every route whose condition is true, and by the
//! main port, `sorted`, where none is. The conditions are what stands behind WHERE in a rule of AWS IoT, with its
//! semantics: `docs/rule.md`.

use std::collections::BTreeMap;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::compute::kernels::boolean::{not, or};
use arrow::datatypes::SchemaRef;
use pipeline_engine::stage::{
    Batch, BuildContext, BuildError, BuiltTransform, Emitter, Port, StageDoc, StageError, Transform, TransformConfig,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::rule::Condition;

/// `type = "route"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// The routes: a port's name and which rows leave by it, as behind WHERE in a rule.
    pub routes: BTreeMap<String, String>,
}

impl TransformConfig for RouteConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "route",
        summary: "Sends each row the ways whose conditions are true for it, and the rest on.",
        ports: &[("NAME", "Rows for which the condition of the route NAME is true.")],
        failure: "Touches nothing outside, so nothing can fail for a time or for good. What can't be computed is \
                  Undefined, which is not true. A replay chooses as before, and the keys of rows are untouched: where \
                  a row leaves by two routes to one sink, its key makes one row of it.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        if self.routes.is_empty() {
            return Err(BuildError::invalid("routes", "there are no routes")
                .hint("Name at least one, such as hot = \"temperature > 30\"."));
        }
        let mut routes = Vec::new();
        let mut outputs = vec![(Port::MAIN, input.clone())];
        for (name, text) in &self.routes {
            let key = format!("routes.{name}");
            let is_word = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            if !is_word || name.is_empty() || name == Port::REJECTED.name() {
                return Err(BuildError::invalid(key, format!("\"{name}\" can't be the name of a port"))
                    .hint("Lower-case letters, digits and underscores, and not \"rejected\"."));
            }
            let condition = Condition::parse(&key, text, input, cx)?;
            let port = Port::configured(name);
            routes.push((port, condition));
            outputs.push((port, input.clone()));
        }
        Ok(BuiltTransform { transform: Box::new(Route { routes }), outputs })
    }

    fn ways(&self) -> Vec<(String, String)> {
        let rest = (Port::MAIN.name().to_owned(), format!("none of {:?}", self.routes.values()));
        self.routes.iter().map(|(name, condition)| (name.clone(), condition.clone())).chain([rest]).collect()
    }
}

struct Route {
    routes: Vec<(Port, Condition)>,
}

impl Transform for Route {
    fn apply(&mut self, mut batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let all = batch.rows.clone();
        let mut taken = BooleanArray::from(vec![false; all.num_rows()]);
        for (port, condition) in &self.routes {
            let passing = condition.passing(&all, &batch)?;
            if passing.true_count() == 0 {
                continue;
            }
            taken = or(&taken, &passing)?;
            let (part, rest) = batch.split(filter_record_batch(&all, &passing)?, all.clone());
            out.emit_to(*port, part);
            batch = rest;
        }
        out.emit(batch.with_rows(filter_record_batch(&all, &not(&taken)?)?));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transforms::testing::{Reading, apply, built, context, mistake, rows};

    const TEXT: &str = "[routes]\nhot = \"temperature > 30\"\npressed = \"startswith(device_id, 'press-')\"";

    #[test]
    fn a_row_leaves_by_every_route_that_is_true_and_else_by_the_main_port() {
        let mut stage = built::<RouteConfig>(TEXT, &context()).unwrap();
        let reading = |device: &str, temperature| Reading { temperature, ..Reading::of(device, 0) };
        let given = [
            reading("press-1", Some(40.0)),
            reading("press-2", Some(20.0)),
            reading("oven", Some(90.0)),
            reading("pump", Some(20.0)),
            reading("fan", None),
        ];
        let outcome = apply(&mut *stage.transform, Batch::detached(rows(&given)));
        assert!(outcome.keeps(&stage.outputs));
        let (hot, pressed) = (stage.outputs[1].0, stage.outputs[2].0);
        assert_eq!((hot.name(), pressed.name()), ("hot", "pressed"));
        assert_eq!(outcome.texts(hot, "device_id"), ["press-1", "oven"]);
        assert_eq!(outcome.texts(pressed, "device_id"), ["press-1", "press-2"]);
        assert_eq!(outcome.texts(Port::MAIN, "device_id"), ["pump", "fan"]);
        // A batch that leaves by routes alone goes on empty: its promise must be kept.
        let outcome = apply(&mut *stage.transform, Batch::detached(rows(&given[..1])));
        assert_eq!((outcome.0.len(), outcome.count(Port::MAIN)), (3, 0));
    }

    #[test]
    fn mistakes_are_named_with_a_way_out() {
        for (text, key, says) in [
            ("[routes]", "routes", "there are no routes"),
            ("[routes]\nHot = \"temperature > 1\"", "routes.Hot", "Lower-case"),
            ("[routes]\nrejected = \"temperature > 1\"", "routes.rejected", "not \"rejected\""),
            ("[routes]\nhot = \"temprature > 1\"", "routes.hot", "column 1 of the condition"),
        ] {
            let (found, message) = mistake::<RouteConfig>(text);
            assert!(found == key && message.contains(says), "{text}: {found}: {message}");
        }
    }
}
