//! What lies at the far end of a sink, looked at from beside a run: for `pipeline verify` and `pipeline soak`, which
//! publish rows of their own and wait for them there, and for `pipeline slo`, which measures queries.
//!
//! Rows of their own are *marked*: they are those of a device whose name begins with [`MARK`]. A table gives them up again,
//! a lake does not; stages and dashboards that tell of devices leave them out.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::StageError;

/// What the names of devices begin with that are none: reserved for rows that are sent to see whether they arrive.
pub const MARK: &str = "pipeline-verify-";

/// Whether a device is one that only `verify` and `soak` know.
pub fn is_marked(device: &str) -> bool {
    device.starts_with(MARK)
}

/// Which rows are looked for, by the names of columns as the sink is given them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// The text column that names devices.
    pub device_column: String,
    /// The devices, whose names all begin with [`MARK`].
    pub devices: Vec<String>,
    /// The column that tells the rows of a device apart: whole numbers, or times in microseconds since 1970.
    pub number_column: String,
    /// The rows were sent no earlier, by this machine's clock, in microseconds since 1970.
    pub since_us: i64,
}

/// What is there of one device: how often each of its numbers.
pub type Numbers = BTreeMap<i64, u64>;

/// What is there of all marked devices, by their names.
pub type Found = BTreeMap<String, Numbers>;

/// Looks at what a sink has stored. Connects when it is first asked something.
#[async_trait]
pub trait FarEnd: Send {
    /// The place, for a person.
    fn place(&self) -> String;

    /// The marked rows that are there now.
    ///
    /// # Errors
    /// The place can't be read, or has no such columns.
    async fn find(&mut self, marked: &Marked) -> Result<Found, StageError>;

    /// Removes the rows of these devices, by the column that names devices; of all whose name begins with [`MARK`] if none
    /// are given. `None` where what is written stays.
    ///
    /// # Errors
    /// The place can't be written, or has no such column.
    async fn remove(&mut self, device_column: &str, devices: Option<&[String]>) -> Result<Option<u64>, StageError>;

    /// Whether each row that was stored is there by itself, and not replaced by a later one of its device.
    fn keeps_every_row(&self) -> bool {
        true
    }

    /// Whether there is a database behind it that can be asked in SQL.
    fn speaks_sql(&self) -> bool {
        false
    }

    /// How long a statement of SQL takes to its last row, which are thrown away. Changes nothing.
    ///
    /// # Errors
    /// There is no database, or the statement failed.
    async fn time_query(&mut self, sql: &str) -> Result<Duration, StageError> {
        let _ = sql;
        Err(StageError::permanent(format!("{} is no database", self.place())))
    }
}
