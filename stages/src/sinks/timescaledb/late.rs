//! Rows for chunks that are compressed by now: a lane of their own.
//!
//! Before such a row is stored, TimescaleDB may have to unpack those that it could conflict with, and a
//! limit on how many (`timescaledb.max_tuples_decompressed_per_dml_transaction`) ends the transaction with
//! SQLSTATE 53400; servers too old to store there say 0A000. Either would hit the whole group, for as long as
//! it is sent again. So the group is written once more with its late rows apart: the others first, under the
//! usual limits, then the late ones without that limit and with more time. All in one transaction still.

use pipeline_engine::stage::StageError;
use tokio_postgres::Client;

use super::sql_type::SqlType;
use super::store::StoredRows;
use super::table::Table;
use crate::postgres::fault::while_opening;

/// How many times longer than another group one with late rows may take.
pub(super) const PATIENCE: u32 = 10;

/// No limit, for the rest of the transaction; nothing where the server knows no such limit.
pub(super) const UNLIMITED: &str = "SELECT set_config(name, '0', true) FROM pg_settings \
     WHERE name = 'timescaledb.max_tuples_decompressed_per_dml_transaction'";

/// The limit on what one transaction may unpack was met.
const LIMIT_MET: &str = "53400";

/// The server can't do it, whatever the settings: late rows are refused, and the others stored.
pub(super) const UNSUPPORTED: &str = "0A000";

/// Whether late rows can be the cause of an error.
pub(super) fn may_be_late(error: &StageError) -> bool {
    [Some(LIMIT_MET), Some(UNSUPPORTED)].contains(&error.outside_code())
}

/// The rows of a group by the lane that they go in.
pub(super) struct Lanes {
    pub usual: Vec<u32>,
    pub late: Vec<u32>,
}

impl Lanes {
    /// All rows go the usual way.
    pub fn usual(rows: &StoredRows) -> Self {
        Self { usual: rows.order.clone(), late: Vec::new() }
    }

    /// The lanes for a group that has failed with an error that late rows may have caused; `None` if no row of
    /// it is late.
    pub async fn after(
        error: &StageError,
        client: &Client,
        table: &Table,
        rows: &StoredRows,
    ) -> Result<Option<Self>, StageError> {
        let limit_met = error.outside_code() == Some(LIMIT_MET);
        let compressed = Compressed::of(table, client).await?;
        let is_late = |row: &u32| compressed.as_ref().is_some_and(|chunks| chunks.hold(rows, *row));
        let (late, usual): (Vec<u32>, Vec<u32>) = rows.order.iter().partition(|row| is_late(row));
        Ok(match (late.is_empty(), limit_met) {
            (false, _) => Some(Self { usual, late }),
            // The limit was met all the same: by chunks compressed since, or cut by something we can't see.
            (true, true) => Some(Self { usual: late, late: usual }),
            (true, false) => None,
        })
    }
}

/// The compressed chunks of a hypertable.
struct Compressed {
    /// The column that it is cut by, by its place among the stored ones.
    column: usize,
    /// From when until before when, in microseconds since 1970; in order, none overlaps another.
    ranges: Vec<(i64, i64)>,
}

impl Compressed {
    /// `None` if there are none, or if we can't tell which rows they hold.
    async fn of(table: &Table, client: &Client) -> Result<Option<Self>, StageError> {
        let failed = |error| while_opening(error, "can't read which chunks are compressed");
        let known = "SELECT to_regclass('timescaledb_information.chunks') IS NOT NULL";
        if !client.query_one(known, &[]).await.map_err(failed)?.get::<_, bool>(0) {
            return Ok(None);
        }
        let sql = "SELECT primary_dimension::text, (extract(epoch FROM range_start) * 1000000)::int8, \
                   (extract(epoch FROM range_end) * 1000000)::int8 FROM timescaledb_information.chunks \
                   JOIN pg_class ON relname = hypertable_name \
                   JOIN pg_namespace ON pg_namespace.oid = relnamespace AND nspname = hypertable_schema \
                   WHERE pg_class.oid = to_regclass($1) AND is_compressed AND range_start IS NOT NULL ORDER BY 2";
        let rows = client.query(sql, &[&table.sql_name()]).await.map_err(failed)?;
        let Some(column) = rows.first().and_then(|row| {
            let name: &str = row.get(0);
            table.columns.iter().position(|column| column.name == name && column.kind == SqlType::Timestamptz)
        }) else {
            return Ok(None);
        };
        let mut ranges: Vec<(i64, i64)> = rows.iter().map(|row| (row.get(1), row.get(2))).collect();
        // A table that is cut by more than time has several chunks for one time.
        ranges.dedup();
        Ok(Some(Self { column, ranges }))
    }

    fn hold(&self, rows: &StoredRows, row: u32) -> bool {
        is_within(&self.ranges, rows.time(self.column, row))
    }
}

/// Whether one of the ranges, in order and apart, holds the number: its start, not its end.
fn is_within(ranges: &[(i64, i64)], number: i64) -> bool {
    let behind = ranges.partition_point(|(start, _)| *start <= number);
    behind > 0 && number < ranges[behind - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_its_start_and_not_its_end() {
        let ranges = [(-20, -10), (-10, 0), (5, 7)];
        let held: Vec<i64> = (-22..9).filter(|number| is_within(&ranges, *number)).collect();
        assert_eq!(held, (-20..0).chain(5..7).collect::<Vec<_>>());
        assert!(!is_within(&[], 0));
    }
}
