//! Entry points for hostile input to what stages read. See [`pipeline_engine::fuzzing`].

mod decoder;
mod letters;
mod pipeline_file;
mod records;

use pipeline_engine::fuzzing::Target;

/// All fuzz targets, those of the engine among them.
pub const TARGETS: [Target; 5] =
    [decoder::TARGET, records::TARGET, pipeline_file::TARGET, letters::TARGET, pipeline_engine::fuzzing::spool::TARGET];

/// Checks one input.
///
/// # Panics
/// A promise is broken, or no target has this name.
pub fn check(target: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|known| known.name == target).expect("the name of a target");
    (target.check)(input);
}

/// Schemas that leave no type and no origin of a value out.
const SCHEMAS: &str = r#"
[schema.types]
i16 = "int16"
i32 = "int32"
i64 = "int64"
f32 = "float32"
f64 = "float64"
b = "bool"
t = "text"
at = "timestamp"
j = "json"
x = "binary"

[schema.required]
device_id = { type = "text", required = true }
timestamp = { type = "timestamp", required = true, path = "state.at" }
temperature = { type = "float64", path = "state.reported.temp" }
site = { type = "text", topic_segment = 2 }
topic = { type = "text", message = "topic" }
received = { type = "timestamp", message = "received_at" }
rest = { type = "json", rest = true }

[schema.shared]
state = "json"
temp = { type = "float64", path = "state.temp" }
at_text = { type = "text", path = "state.at" }
at = { type = "timestamp", path = "state.at" }
raw = { type = "binary", path = "state.raw" }

[schema.epochs]
s = { type = "timestamp", format = "unix_s" }
ms = { type = "timestamp", format = "unix_ms" }
us = { type = "timestamp", format = "unix_us" }
ns = { type = "timestamp", format = "unix_ns" }
text = { type = "timestamp", format = "rfc3339" }

[schema.notes]
id = { type = "int64", required = true }
note = "text"
"#;

/// The declared schemas by number; beyond the last it begins again.
fn schema(number: u8) -> std::sync::Arc<pipeline_engine::schema::DeclaredSchema> {
    use std::sync::{Arc, OnceLock};

    use pipeline_engine::schema::DeclaredSchema;

    static ALL: OnceLock<Vec<Arc<DeclaredSchema>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let cx = pipeline_engine::testing::build_context("fuzzed", SCHEMAS);
        ["types", "required", "shared", "epochs", "notes"]
            .map(|name| cx.schema("schema", name).expect("declared above"))
            .into()
    });
    all[usize::from(number) % all.len()].clone()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pipeline_engine::fuzzing::replay;

    use super::*;

    const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus");

    #[test]
    fn any_payload_is_rows_or_one_dead_letter() {
        replay(&decoder::TARGET, Path::new(CORPUS), 8_000);
    }

    #[test]
    fn any_file_of_records_reads_the_same_however_it_is_cut() {
        replay(&records::TARGET, Path::new(CORPUS), 2_000);
    }

    #[test]
    fn any_pipeline_file_is_a_plan_or_has_mistakes_with_their_places() {
        replay(&pipeline_file::TARGET, Path::new(CORPUS), 1_000);
    }

    #[test]
    fn any_refused_row_is_a_message_or_says_why_not() {
        replay(&letters::TARGET, Path::new(CORPUS), 4_000);
    }
}
