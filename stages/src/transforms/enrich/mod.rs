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
//! The table is a file, an object in S3 or the rows of a query (see `transforms/tables`); `as_of` looks up the row that was
//! valid at the reading's time. docs/enrich.md has examples of each.
//!
//! No row is lost: a row whose key is null or has no entry goes on with nulls, leaves by
//! [`Port::REJECTED`] or is dropped and counted, as `missing` says.
//!
//! The table is read before any source starts; a mistake in it (a key twice, a cell that is not of
//! its column's type) ends the run there, with its line. A database or store that is away then is waited for, as
//! for a sink. While the pipeline runs, the table is asked for again every `refresh`, beside the rows, and takes the old
//! one's place once it is whole and right. A file is read again when its size or time has changed and is at rest: replace
//! it by renaming a finished file over it. An object is when its `ETag` has changed. What can't be read is
//! logged and counted as `reload_failures`, and the table stays as it was.
//!
//! A reload takes effect between two batches, and which two is not recorded: this is the one transform
//! whose replay can differ, and it keeps no snapshot. After a crash, rows that are replayed are enriched by the table as
//! it is then. That is accepted because a table says what *is* (where a device hangs), not what was; with
//! `missing = "reject"`, though, a row that was rejected before may be accepted now. A table that says what was, to which rows
//! are only added, gives the same again with `as_of`.

mod build;
mod history;
mod run;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use pipeline_engine::dead_letter;
use pipeline_engine::schema::ColumnType;
use pipeline_engine::secret::SecretText;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use pipeline_engine::units::{DurationText, SizeText};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

use self::run::Enrich;
pub use super::tables::TableFormat;
pub use super::tables::join::Missing;
use super::values::Scalar;

/// `type = "enrich"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrichConfig {
    /// A CSV file with a header, or a Parquet file: of this machine, relative to the folder that the pipeline runs in,
    /// or in S3 as `s3://bucket/key`.
    pub table: Option<String>,
    /// What the table is, where its name does not end in `.csv` or `.parquet`.
    pub format: Option<TableFormat>,
    /// In the place of `table`: a statement whose rows are the table, such as `SELECT device_id, site FROM devices`. It is
    /// run at the database `url`, in a transaction that only reads.
    pub query: Option<String>,
    /// The database of `query`, as the `timescaledb` sink takes it: `postgres://user@host:5432/database`.
    #[schemars(with = "Option<SecretText>")]
    pub url: Option<SecretString>,
    /// The password for `url`, if it is not in there.
    #[schemars(with = "Option<SecretText>")]
    pub password: Option<SecretString>,
    /// The S3 API to use, if not that of AWS: `https://s3.example.com`. Overrides AWS_ENDPOINT_URL. Credentials come from
    /// AWS's own variables or the machine's role, as for the `parquet` sink.
    pub endpoint: Option<String>,
    /// The region of the bucket. Overrides AWS_REGION.
    pub region: Option<String>,
    /// Also talks to an endpoint without TLS that is not on this machine.
    #[serde(default)]
    pub allow_http: bool,
    /// How often it is looked whether the table has changed: 1 s for a file, 30 s for an object and a query, if not
    /// given. At least 100 ms.
    pub refresh: Option<DurationText>,
    /// How long one try to read an object or a query may take, from connecting to the last row: 60 s if not given.
    pub read_timeout: Option<DurationText>,
    /// The column of the input that is looked up: text or whole numbers.
    pub key: Option<String>,
    /// The table's column with the keys, if it has another name than `key`.
    pub table_key: Option<String>,
    /// Looks up the row that was valid at the reading's time, in a table with many rows of a key: `{ time = "timestamp",
    /// valid_from = "since" }`.
    pub as_of: Option<AsOf>,
    /// The table's columns to add, in this order; all those in `types` where none are given.
    #[serde(default)]
    pub columns: Vec<String>,
    /// The types of the table's columns. Columns of a CSV file and of a query without one are text, those named in `as_of`
    /// timestamps; those of a Parquet file must have one, which the file is held to.
    #[serde(default)]
    pub types: BTreeMap<String, ColumnType>,
    /// What becomes of a row whose key is null or has no entry (with `as_of`: none that is valid then): counted as
    /// `missing_rows`, and rejected with the reason `missing.KEY` if that is asked for.
    #[serde(default)]
    pub missing: Missing,
    /// Columns that have the same value in every row: text, a number or a truth value.
    #[serde(default)]
    pub constants: BTreeMap<String, Scalar>,
    /// A larger table is refused: it is held in memory. Of a file or an object its size counts (of Parquet its columns
    /// as well), of a query the text of its cells. At most 2 GiB.
    #[serde(default = "max_table_size")]
    pub max_table_size: SizeText,
    #[serde(skip)]
    environment: Option<BTreeMap<String, String>>,
}

impl EnrichConfig {
    /// Takes AWS's variables from here, not from the process: for programs that embed the engine.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment = Some(variables.into_iter().collect());
        self
    }
}

/// Which of a key's rows is looked up: the one that was valid at the reading's time.
///
/// Of the rows of its key that have begun by then, that is the one that began last. Where that one has ended or is too
/// old, none is: an older row does not come back. Two rows of a key that begin at once are a mistake in the table, whose
/// rows may stand in any order.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AsOf {
    /// The column of the input with the reading's time: a timestamp.
    pub time: String,
    /// The table's column with the time from which on a row is valid, itself included.
    pub valid_from: String,
    /// The table's column with the time from which on it no longer is; null: it still is.
    pub valid_to: Option<String>,
    /// A row is valid for no longer than this after `valid_from`, the last moment included.
    pub max_age: Option<DurationText>,
}

impl AsOf {
    fn names(&self, column: &str) -> bool {
        self.valid_from == column || self.valid_to.as_deref() == Some(column)
    }
}

fn max_table_size() -> SizeText {
    SizeText(256 << 20)
}

impl TransformConfig for EnrichConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "enrich",
        summary: "Adds what a table knows about a row's key (a file, an object in S3, a query; as of the reading's time if \
                  wanted), and constants.",
        ports: &[("rejected", "Rows whose key has no entry, where `missing = \"reject\"`.")],
        failure: "A database or a store that is away at the start (transient) is tried again until it answers, before \
                  anything is read from a source. A table that is not there, may not be read, is too large or has a \
                  mistake in it is permanent then: the run ends. What goes wrong when the table is read again later \
                  changes nothing: it is logged, counted as `reload_failures` (what went well as `reloads`), and the old \
                  table stays. Adds no duplicates and leaves the keys of rows alone; rows replayed after a crash are \
                  enriched by the table as it is then.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        if self.table.is_none() && self.query.is_none() && self.constants.is_empty() {
            let hint = "Give a `table`, a `query` or `constants`.";
            return Err(BuildError::invalid("", "there is nothing to add").hint(hint));
        }
        let lookup = self.lookup(input, cx)?;
        let schema = self.schema(input, lookup.as_ref())?;
        let constants = self.constants.into_values().collect();
        let transform = Enrich { stage: cx.stage.clone(), lookup, constants, schema: schema.clone() };
        let outputs = vec![(Port::MAIN, schema), (Port::REJECTED, dead_letter::schema())];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}
