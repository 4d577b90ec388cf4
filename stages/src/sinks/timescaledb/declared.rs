//! The table as a pipeline file declares it: what `pipeline db` works on.

use std::time::Duration;

use super::OnConflict;
use super::ledger::Ledger;
use super::rollup::Rollup;
use super::table::Table;
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
