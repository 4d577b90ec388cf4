//! Adds what a table knows about a row's key, and constants.
//!
//! ```toml
//! [transforms.located]
//! type = "enrich"
//! inputs = ["valid"]
//! table = "devices.csv"                                    # device_id,site,model,latitude
//! key = "device_id"
//! columns = ["site", "model", "latitude"]
//! types = { latitude = "float64" }                         # all others are text
//! constants = { region = "eu-1" }
//! ```
//!
//! No row is lost: a row whose key is null or has no entry goes on with nulls, leaves by
//! [`Port::REJECTED`] or is dropped and counted, as `missing` says.
//!
//! The table is read before any source starts; a mistake in it (a key twice, a cell that is not of
//! its column's type) ends the run there, with its line. While the pipeline runs, the file is looked
//! at once a second and read again when its size or time has changed and is at rest: replace it by
//! renaming a finished file over it. A broken new file is logged and counted as `reload_failures`, and
//! the table stays as it was.
//!
//! A reload takes effect between two batches, and which two is not recorded: this is the one transform
//! whose replay can differ. After a crash, rows that are replayed are enriched by the table as it is
//! then. That is accepted because a table says what *is* (where a device hangs), not what was; with
//! `missing = "reject"`, though, a row that was rejected before may be accepted now.

mod build;
mod read;
mod run;
mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;

use arrow::datatypes::SchemaRef;
use pipeline_engine::dead_letter;
use pipeline_engine::schema::ColumnType;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use pipeline_engine::units::SizeText;
use schemars::JsonSchema;
use serde::Deserialize;

use self::run::Enrich;
pub use self::table::TableFormat;
use super::values::Scalar;

/// `type = "enrich"` in a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrichConfig {
    /// A CSV file with a header, or a Parquet file; relative to the folder that the pipeline runs in.
    pub table: Option<PathBuf>,
    /// What the table is, where its name does not end in `.csv` or `.parquet`.
    pub format: Option<TableFormat>,
    /// The column of the input that is looked up: text or whole numbers.
    pub key: Option<String>,
    /// The table's column with the keys, if it has another name than `key`.
    pub table_key: Option<String>,
    /// The table's columns to add, in this order; all those in `types` where none are given.
    #[serde(default)]
    pub columns: Vec<String>,
    /// The types of the table's columns. Columns of a CSV file without one are text; those of a Parquet
    /// file must have one, which the file is held to.
    #[serde(default)]
    pub types: BTreeMap<String, ColumnType>,
    /// What becomes of a row whose key is null or has no entry.
    #[serde(default)]
    pub missing: Missing,
    /// Columns that have the same value in every row: text, a number or a truth value.
    #[serde(default)]
    pub constants: BTreeMap<String, Scalar>,
    /// A larger table is refused: it is held in memory.
    #[serde(default = "max_table_size")]
    pub max_table_size: SizeText,
}

/// What becomes of a row whose key has no entry. All are counted as `missing_rows`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// It goes on, with nulls for the table's columns.
    #[default]
    Null,
    /// It leaves by `rejected`, with the reason `missing.KEY`.
    Reject,
    /// It is dropped.
    Drop,
}

fn max_table_size() -> SizeText {
    SizeText(256 << 20)
}

impl TransformConfig for EnrichConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "enrich",
        summary: "Adds what a CSV or Parquet table knows about a row's key, and constants.",
        ports: &[("rejected", "Rows whose key has no entry, where `missing = \"reject\"`.")],
        failure: "A table that can't be read at the start is permanent: the run ends before anything is read from a \
                  source. One that can't be read again later changes nothing: it is logged, counted as \
                  `reload_failures`, and the old one stays. Adds no duplicates and leaves the keys of rows alone; \
                  rows replayed after a crash are enriched by the table as it is then.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        if self.table.is_none() && self.constants.is_empty() {
            return Err(BuildError::invalid("", "there is nothing to add").hint("Give a `table`, or `constants`."));
        }
        let lookup = self.lookup(input, cx)?;
        let schema = self.schema(input, lookup.as_ref())?;
        let constants = self.constants.into_values().collect();
        let transform = Enrich { stage: cx.stage.clone(), lookup, constants, schema: schema.clone() };
        let outputs = vec![(Port::MAIN, schema), (Port::REJECTED, dead_letter::schema())];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}
