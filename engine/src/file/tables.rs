//! The tables of a pipeline file, for the reference: what there is to write in it beside the keys of each type of stage.

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::PipelineText;
use super::http::HttpText;
use super::slo::SloText;
use crate::schema::ColumnText;

/// The names of all top-level tables, in the order of the reference.
pub(super) const TABLES: [&str; 7] = ["pipeline", "http", "slo", "schema", "sources", "transforms", "sinks"];

/// One table of a pipeline file, as its reference tells of it.
pub struct TableDoc {
    /// How it begins: `[sinks.NAME]`.
    pub header: &'static str,
    /// What it is for, in sentences.
    pub summary: &'static str,
    /// Before each key: the tables within have a name that the file's author gives.
    pub prefix: &'static str,
    /// The JSON schema of the type that reads it.
    pub schema: Schema,
}

/// All tables, each at least once. Of stages there is what those of a kind share; the rest is with their types.
pub fn table_docs() -> Vec<TableDoc> {
    let doc = |header, summary, schema| TableDoc { header, summary, prefix: "", schema };
    let columns = "The columns that payloads are decoded into, by name and in the order of the tables that sinks make. `COLUMN = \
                   \"float64\"` is short for `COLUMN = { type = \"float64\" }`. A source names the schema it decodes into.";
    vec![
        doc("[pipeline]", "Settings of the run as a whole", schema_of::<PipelineText>()),
        doc("[http]", "Where a running pipeline can be looked at", schema_of::<HttpText>()),
        doc("[slo]", "What the pipeline has to keep", schema_of::<SloText>()),
        TableDoc { header: "[schema.NAME]", summary: columns, prefix: "COLUMN.", schema: schema_of::<ColumnText>() },
        doc("[sources.NAME]", "Where rows come from. The other keys are those of its type", schema_of::<SourceText>()),
        doc(
            "[transforms.NAME]",
            "What becomes of rows on their way. The other keys are those of its type",
            schema_of::<TransformText>(),
        ),
        doc("[sinks.NAME]", "Where rows are stored. The other keys are those of its type", schema_of::<SinkText>()),
    ]
}

fn schema_of<T: JsonSchema>() -> Schema {
    SchemaGenerator::default().into_root_schema_for::<T>()
}

/// What [`super::read_stage`] takes out of every source's table before its type reads the rest.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "each key is read by itself, for a mistake of its own; this is their documentation")]
struct SourceText {
    /// Which source it is: a word of `pipeline stages`.
    #[schemars(rename = "type")]
    kind: String,
}

/// The same of every transform.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "as for sources")]
struct TransformText {
    /// Which transform it is: a word of `pipeline stages`.
    #[schemars(rename = "type")]
    kind: String,
    /// The stages whose rows it takes, by name; `NAME.PORT` takes what leaves by another port, such as `NAME.rejected`.
    inputs: Vec<String>,
}

/// The same of every sink.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "as for sources")]
struct SinkText {
    /// Which sink it is: a word of `pipeline stages`.
    #[schemars(rename = "type")]
    kind: String,
    /// The stages whose rows it stores, by name; `NAME.PORT` takes what leaves by another port, such as `NAME.rejected`.
    inputs: Vec<String>,
    /// Whether a message is safe only once this sink has stored it. With `false` the sink goes without where it is away for
    /// longer than `overflow_max` lasts, and nobody waits for it.
    #[schemars(default = "is_required")]
    required: bool,
}

fn is_required() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_table_of_a_file_is_documented() {
        let word = |doc: &TableDoc| doc.header.trim_matches(['[', ']']).split('.').next().unwrap().to_owned();
        let documented: BTreeSet<String> = table_docs().iter().map(word).collect();
        assert_eq!(documented, TABLES.map(str::to_owned).into());
        for doc in table_docs() {
            let keys = doc.schema.get("properties").and_then(|keys| keys.as_object()).unwrap();
            assert!(!keys.is_empty(), "{}", doc.header);
            for (key, schema) in keys {
                assert!(schema["description"].is_string() || schema["$ref"].is_string(), "{}: {key}", doc.header);
            }
        }
    }
}
