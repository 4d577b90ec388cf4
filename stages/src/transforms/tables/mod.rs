//! Tables from outside that a transform looks rows up in: read before the first row comes, held in memory,
//! and read again when they change.
//!
//! [`place`] is where a table lies and what a pipeline file says of that, [`fetch`] gets its bytes or rows from
//! there and knows whether they have changed, [`read`] makes typed columns of them, and [`follow`] keeps the
//! table of the moment beside the running transform, which never waits for it. [`join`] puts rows and table together.

pub(super) mod fetch;
pub(super) mod follow;
pub(super) mod join;
pub(super) mod place;
pub(super) mod read;

use schemars::JsonSchema;
use serde::Deserialize;

/// What kind of file a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableFormat {
    /// Comma-separated values with a header. Blanks around a cell are cut; an empty cell is null.
    Csv,
    /// Apache Parquet.
    Parquet,
}
