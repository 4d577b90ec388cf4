//! What makes queries fast again.

use pipeline_engine::stage::StageError;

use super::{PipelineDatabase, Script, Session, SinkTable, catalog, hypertable, indexes, interval};

/// An insert-only table is looked after once so much of it is new. PostgreSQL's default of 20 % leaves the newest day of a
/// month without statistics, and that is the day that everybody asks for.
const SCALE_FACTOR: &str = "0.05";

pub(super) async fn script(db: &PipelineDatabase, session: &Session) -> Result<Script, StageError> {
    let mut script = Script::default();
    for table in db.tables() {
        let name = table.table.sql_name();
        if !table.table.exists(session.client()).await? {
            script
                .note(format!("{name} of the sink \"{}\" is not there yet: `pipeline db init` makes it.", table.sink));
            continue;
        }
        let found = indexes::of(&name, session.client()).await?;
        for columns in indexes::missing(table, &found) {
            let (index, sql) = indexes::ddl(table, &columns, indexes::way(table, session).await?);
            script.step(format!("index {index}, which queries look rows up by"), sql);
        }
        for (index, other) in indexes::redundant(&found) {
            script.step(
                format!("index {} costs at every row, and {} does its work", index.name, other.name),
                format!("DROP INDEX IF EXISTS {}", index.name),
            );
        }
        settings(table, session, &mut script).await?;
        chunk_interval(table, session, &mut script).await?;
        script.step(format!("space and statistics of {name}"), format!("VACUUM (ANALYZE) {name}"));
    }
    Ok(script)
}

/// How often autovacuum looks, and room for rows that are replaced.
async fn settings(table: &SinkTable, session: &Session, script: &mut Script) -> Result<(), StageError> {
    let mut wanted = vec![
        ("autovacuum_vacuum_scale_factor", SCALE_FACTOR),
        ("autovacuum_analyze_scale_factor", SCALE_FACTOR),
        ("autovacuum_vacuum_insert_scale_factor", SCALE_FACTOR),
    ];
    if table.table.replaces {
        // A row that is replaced stays on its page, and no index has to be changed.
        wanted.push(("fillfactor", "90"));
    }
    let sql = "SELECT coalesce(reloptions, '{}')::text[] FROM pg_class WHERE oid = to_regclass($1)";
    let row = session.client().query_one(sql, &[&table.table.sql_name()]).await.map_err(catalog)?;
    let there: Vec<String> = row.get(0);
    wanted.retain(|(name, value)| !there.contains(&format!("{name}={value}")));
    if wanted.is_empty() {
        return Ok(());
    }
    let settings: Vec<String> = wanted.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    let name = table.table.sql_name();
    script.step(
        format!("{name} is looked after once a twentieth of it is new"),
        format!("ALTER TABLE {name} SET ({})", settings.join(", ")),
    );
    Ok(())
}

/// Chunks as the pipeline file has them now; those that are there stay as they are.
async fn chunk_interval(table: &SinkTable, session: &Session, script: &mut Script) -> Result<(), StageError> {
    let (Some(found_us), Some(timescale)) =
        (hypertable::chunk_interval_us(table, session).await?, &session.server.timescale)
    else {
        return Ok(());
    };
    let wanted = table.table.chunk_interval;
    if u128::try_from(found_us) != Ok(wanted.as_micros()) {
        let name = table.table.sql_name();
        script.step(
            format!("new chunks of {name} hold as much time as the pipeline file says"),
            format!("SELECT \"{}\".set_chunk_time_interval('{name}', {})", timescale.schema, interval(wanted)),
        );
    }
    Ok(())
}
