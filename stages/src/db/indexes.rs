//! The indexes of a table: which a pipeline's queries need, and which are of no use beside the others.

use pipeline_engine::stage::StageError;
use tokio_postgres::Client;

use super::{Session, SinkTable, catalog, hypertable};
use crate::sinks::timescaledb::quoted;

/// An index of plain columns that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    pub name: String,
    /// It keeps a rule, and so is never in the way.
    pub is_rule: bool,
    /// Each column, and whether it goes down.
    pub columns: Vec<(String, bool)>,
}

/// The indexes over plain columns that a table has.
pub(super) async fn of(table: &str, client: &Client) -> Result<Vec<Index>, StageError> {
    let sql = "SELECT format('%I.%I', n.nspname, c.relname), i.indisunique OR i.indisexclusion, \
               ARRAY(SELECT a.attname::text FROM generate_series(0, i.indnkeyatts - 1) AS place \
                 JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[place] ORDER BY place), \
               ARRAY(SELECT i.indoption[place] & 1 = 1 FROM generate_series(0, i.indnkeyatts - 1) AS place ORDER BY place) \
               FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               JOIN pg_am m ON m.oid = c.relam \
               WHERE i.indrelid = to_regclass($1) AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
               AND m.amname = 'btree' ORDER BY c.relname";
    let rows = client.query(sql, &[&table]).await.map_err(catalog)?;
    let index = |row: &tokio_postgres::Row| {
        let (names, down): (Vec<String>, Vec<bool>) = (row.get(2), row.get(3));
        Index { name: row.get(0), is_rule: row.get(1), columns: names.into_iter().zip(down).collect() }
    };
    Ok(rows.iter().map(index).collect())
}

/// The columns that queries look rows up by: the newest of all, and the newest of one device. Tables without a time are
/// small, and looked up by their key.
pub(super) fn wanted(table: &SinkTable) -> Vec<Vec<String>> {
    let Some(time) = &table.table.time else { return Vec::new() };
    let device = table.table.key.iter().find(|column| *column != time);
    [vec![time.clone()]].into_iter().chain(device.map(|device| vec![device.clone(), time.clone()])).collect()
}

/// Those of the wanted ones that no index begins with.
pub(super) fn missing(table: &SinkTable, found: &[Index]) -> Vec<Vec<String>> {
    let begins_with = |index: &Index, columns: &[String]| {
        index.columns.len() >= columns.len()
            && index.columns.iter().zip(columns).all(|((name, _), column)| name == column)
    };
    let mut wanted = wanted(table);
    wanted.retain(|columns| !found.iter().any(|index| begins_with(index, columns)));
    wanted
}

/// How an index is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// With the table, before any row is in it.
    WithTheTable,
    /// Chunk by chunk: a hypertable knows no CONCURRENTLY.
    ChunkByChunk,
    /// While rows are stored.
    Concurrently,
}

/// How an index is made on a table that is there, so that rows can be stored meanwhile.
pub(super) async fn way(table: &SinkTable, session: &Session) -> Result<Way, StageError> {
    let chunks = hypertable::chunk_interval_us(table, session).await?;
    Ok(if chunks.is_some() { Way::ChunkByChunk } else { Way::Concurrently })
}

/// What makes an index over these columns, the last of which is the time: `idx_telemetry_timestamp`.
pub(super) fn ddl(table: &SinkTable, columns: &[String], way: Way) -> (String, String) {
    let mut name = format!("idx_{}_{}", table.table.name, columns.join("_"));
    // What the server would do, with a notice.
    name.truncate(63);
    let on = format!("ON {} ({} DESC)", table.table.sql_name(), quoted(columns.iter().map(String::as_str)));
    let sql = match way {
        Way::WithTheTable => format!("CREATE INDEX IF NOT EXISTS \"{name}\" {on}"),
        Way::ChunkByChunk => {
            format!("CREATE INDEX IF NOT EXISTS \"{name}\" {on} WITH (timescaledb.transaction_per_chunk)")
        }
        Way::Concurrently => format!("CREATE INDEX CONCURRENTLY IF NOT EXISTS \"{name}\" {on}"),
    };
    (name, sql)
}

/// Indexes that another one does the work of: each with that other one.
pub(super) fn redundant(found: &[Index]) -> Vec<(&Index, &Index)> {
    let does_the_work_of = |other: &Index, index: &Index| {
        let pairs = || index.columns.iter().zip(&other.columns);
        let begins = index.columns.len() <= other.columns.len() && pairs().all(|(left, right)| left.0 == right.0);
        // Read backwards, an index is its own reverse.
        let same_way = pairs().all(|(left, right)| left.1 == right.1) || pairs().all(|(left, right)| left.1 != right.1);
        let stays = other.is_rule || other.columns.len() > index.columns.len() || other.name < index.name;
        begins && same_way && stays
    };
    let droppable = found.iter().enumerate().filter(|(_, index)| !index.is_rule);
    droppable
        .filter_map(|(place, index)| {
            let others = found.iter().enumerate().filter(|(other, _)| *other != place);
            others.map(|(_, other)| other).find(|other| does_the_work_of(other, index)).map(|other| (index, other))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(name: &str, is_rule: bool, columns: &[(&str, bool)]) -> Index {
        let columns = columns.iter().map(|(name, down)| ((*name).to_owned(), *down)).collect();
        Index { name: name.to_owned(), is_rule, columns }
    }

    #[test]
    fn an_index_is_redundant_where_another_begins_with_its_columns() {
        let found = [
            index("device", false, &[("device_id", false)]),
            index("device_time", false, &[("device_id", false), ("timestamp", true)]),
            index("device_time_again", false, &[("device_id", true), ("timestamp", false)]),
            index("key", true, &[("device_id", false), ("timestamp", false), ("seq", false)]),
            index("time", false, &[("timestamp", true)]),
        ];
        let names: Vec<_> =
            redundant(&found).iter().map(|(index, other)| (index.name.as_str(), other.name.as_str())).collect();
        // The key goes up in both columns: it is no substitute for one that goes up and down.
        assert_eq!(names, [("device", "device_time"), ("device_time_again", "device_time")]);
    }
}
