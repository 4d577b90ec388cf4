//! The table as a pipeline file declares it: what `pipeline db` works on.

use std::time::Duration;

use pipeline_engine::stage::BuildError;

use super::claims::Claims;
use super::ledger::Ledger;
use super::rollup::{Rollup, RollupConfig};
use super::table::Table;
use super::{OnConflict, TimescaleDbConfig};
use crate::postgres::Database;

/// A table that a sink stores in, with what is to be done about it over the months.
#[derive(Debug, Clone)]
pub struct DeclaredTable {
    pub(crate) database: Database,
    pub(crate) table: Table,
    /// The input's columns that are stored, in the order of the table's.
    pub(crate) stored_names: Vec<String>,
    pub(crate) upkeep: Upkeep,
    pub(crate) ledger: Ledger,
    /// Used where several workers share the source.
    pub(crate) claims: Claims,
    /// It holds dead letters, of which replays are noted.
    pub(crate) keeps_letters: bool,
}

/// What a pipeline file wants done about a table, besides storing in it.
#[derive(Debug, Clone)]
pub(crate) struct Upkeep {
    pub retention: Option<Duration>,
    pub compress_after: Option<Duration>,
    pub rollups: Vec<Rollup>,
    /// Which of two rows with one key stays.
    pub conflict: OnConflict,
}

impl TimescaleDbConfig {
    /// What `pipeline db` is to keep up.
    pub(super) fn upkeep(&self, table: &Table, sink: &str) -> Result<Upkeep, BuildError> {
        let times = [("retention", self.retention), ("compress_after", self.compress_after)];
        for (key, _) in times.iter().filter(|(_, given)| given.is_some()) {
            if table.time.is_none() {
                return Err(BuildError::invalid(*key, "the table has no time column, so no row of it is old")
                    .hint("Name the time column (time_column), or remove this key."));
            }
        }
        for (key, given) in times {
            if given.is_some_and(|given| given.0 < Duration::from_secs(60)) {
                return Err(BuildError::invalid(key, "rows are kept a minute at least"));
            }
        }
        let retention = self.retention.map(|text| text.0);
        let rollup = |(name, config): (&String, &RollupConfig)| config.rollup(name, table, retention, sink);
        let rollups = self.rollups.iter().map(rollup).collect::<Result<_, _>>()?;
        let compress_after = self.compress_after.map(|text| text.0);
        Ok(Upkeep { retention, compress_after, rollups, conflict: self.on_conflict })
    }
}
