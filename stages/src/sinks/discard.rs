//! Throws rows away and counts them: what a port holds that nobody wants to keep, and the far end of a measurement.
//!
//! Rows that are thrown away count as stored: their messages are acknowledged.

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use pipeline_engine::stage::{
    BuildContext, BuildError, BuiltSink, Group, Grouping, Sink, SinkConfig, StageDoc, StageError,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// `type = "discard"` in a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscardConfig {}

impl SinkConfig for DiscardConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "discard",
        summary: "Throws rows away and counts them.",
        ports: &[],
        failure: "Nothing can fail. What is thrown away counts as stored, so its messages are acknowledged: it does not \
                  come again.",
    };

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        Ok(BuiltSink { sink: Box::new(Discard), grouping: Grouping::default(), outputs: Vec::new() })
    }
}

/// The running stage; the engine counts the rows.
struct Discard;

#[async_trait]
impl Sink for Discard {
    async fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    async fn write(&mut self, _: &Group) -> Result<(), StageError> {
        Ok(())
    }
}
