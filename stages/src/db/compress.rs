//! Chunks that are no longer written to are compressed: in TimescaleDB's community edition alone.

use std::time::Duration;

use pipeline_engine::stage::StageError;

use super::{PipelineDatabase, Script, Session, SinkTable, hypertable, interval, literal, span_text};
use crate::sinks::timescaledb::{SqlType, Timescale, quoted};

pub(super) async fn script(db: &PipelineDatabase, session: &Session) -> Result<Script, StageError> {
    let tables: Vec<_> =
        db.tables().into_iter().filter_map(|table| Some((table, table.upkeep.compress_after?))).collect();
    if tables.is_empty() {
        return Err(StageError::permanent("no sink says after what time its chunks are compressed")
            .hint("Add compress_after = \"7d\" to a sink of type \"timescaledb\"."));
    }
    let Some(timescale) = session.server.timescale.as_ref().filter(|timescale| timescale.is_community()) else {
        return Err(StageError::permanent(format!("{} can't compress tables", session.server)).hint(
            "TimescaleDB's community edition can. Here, keep old rows as Parquet, which takes about as little: \
             `pipeline db archive --older-than 30d`.",
        ));
    };
    let mut script = Script::default();
    for (table, after) in tables {
        if hypertable::chunk_interval_us(table, session).await?.is_none() {
            script.note(format!("{} is no hypertable, so it has no chunks to compress.", table.table.sql_name()));
            continue;
        }
        add(table, after, timescale, session, &mut script).await?;
    }
    Ok(script)
}

async fn add(
    table: &SinkTable,
    after: Duration,
    timescale: &Timescale,
    session: &Session,
    script: &mut Script,
) -> Result<(), StageError> {
    let (name, schema) = (table.table.sql_name(), &timescale.schema);
    let chunks = hypertable::chunks(table, session).await?;
    let policies = hypertable::policies(&name, session).await?;
    let policy =
        policies.iter().find(|job| ["policy_compression", "policy_columnstore"].contains(&job.procedure.as_str()));
    if policy.is_none() && !chunks.iter().any(|chunk| chunk.is_compressed) {
        script.step(
            format!("how chunks of {name} are compressed: rows of one device together, by time"),
            format!("ALTER TABLE {name} SET ({})", settings(table)),
        );
    }
    let wanted_us = i64::try_from(after.as_micros()).unwrap_or(i64::MAX);
    if policy.is_none_or(|policy| policy.after_us != Some(wanted_us)) {
        let mut statements = Vec::new();
        if policy.is_some() {
            statements.push(format!("SELECT \"{schema}\".remove_compression_policy('{name}')"));
        }
        statements.push(format!("SELECT \"{schema}\".add_compression_policy('{name}', {})", interval(after)));
        let why = format!("TimescaleDB compresses chunks of {name} once they are older than {}", span_text(after));
        script.together(why, &statements);
    }
    script.step(
        format!("what is older in {name} by now"),
        format!(
            "SELECT \"{schema}\".compress_chunk(chunk, if_not_compressed => true) \
             FROM \"{schema}\".show_chunks('{name}', older_than => {}) AS chunk",
            interval(after)
        ),
    );
    Ok(())
}

/// Rows of one device lie together and compress well. Every column of the key is in one of the two lists, or the server
/// could not tell whether a late row is there already.
fn settings(table: &SinkTable) -> String {
    let table = &table.table;
    let is_text =
        |name: &&String| table.columns.iter().any(|column| column.name == **name && column.kind == SqlType::Text);
    let segment = table.key.iter().find(is_text);
    let mut order: Vec<String> = table.time.iter().map(|time| format!("\"{time}\" DESC")).collect();
    let rest = table.key.iter().filter(|name| Some(*name) != segment && Some(*name) != table.time.as_ref());
    order.extend(rest.map(|name| format!("\"{name}\"")));
    let segment = segment.map_or_else(String::new, |name| {
        format!(", timescaledb.compress_segmentby = {}", literal(&quoted([name.as_str()])))
    });
    format!("timescaledb.compress{segment}, timescaledb.compress_orderby = {}", literal(&order.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::declared;

    #[test]
    fn every_column_of_the_key_is_in_one_of_the_two_lists() {
        let table = declared("key = [\"device_id\", \"timestamp\", \"seq\"]");
        let expected = "timescaledb.compress, timescaledb.compress_segmentby = '\"device_id\"', \
                        timescaledb.compress_orderby = '\"timestamp\" DESC, \"seq\"'";
        assert_eq!(settings(&table), expected);
        let keyless = declared("key = []");
        assert_eq!(settings(&keyless), "timescaledb.compress, timescaledb.compress_orderby = '\"timestamp\" DESC'");
    }
}
