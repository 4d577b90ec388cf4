//! Rows that have come of age are dropped: by TimescaleDB's own policy in the community edition, chunk by chunk in the
//! Apache edition, row by row on plain PostgreSQL.
//!
//! Rollups are brought up to date before, so that they keep what the rows said.

use std::time::Duration;

use pipeline_engine::now_us;
use pipeline_engine::stage::StageError;

use super::hypertable::Policy;
use super::{PipelineDatabase, Script, Session, SinkTable, catalog, hypertable, interval, rollups, span_text};
use crate::sinks::timescaledb::Timescale;

pub(super) async fn script(db: &PipelineDatabase, session: &Session) -> Result<Script, StageError> {
    let mut script = Script::default();
    let tables: Vec<_> = db.tables().into_iter().filter_map(|table| Some((table, table.upkeep.retention?))).collect();
    if tables.is_empty() {
        return Err(StageError::permanent("no sink says how long its rows are kept")
            .hint("Add retention = \"90d\" to a sink of type \"timescaledb\"."));
    }
    for (table, kept) in tables {
        if !table.table.exists(session.client()).await? {
            continue;
        }
        for rollup in &table.upkeep.rollups {
            rollups::add(db, table, rollup, session, false, &mut script).await?;
        }
        let is_hypertable = hypertable::chunk_interval_us(table, session).await?.is_some();
        match &session.server.timescale {
            Some(timescale) if is_hypertable => of_hypertable(table, kept, timescale, session, &mut script).await?,
            _ => of_ordinary_table(table, kept, session, &mut script).await?,
        }
    }
    Ok(script)
}

async fn of_hypertable(
    table: &SinkTable,
    kept: Duration,
    timescale: &Timescale,
    session: &Session,
    script: &mut Script,
) -> Result<(), StageError> {
    let (name, schema) = (table.table.sql_name(), &timescale.schema);
    let limit_us = limit_us(kept);
    let old = hypertable::chunks(table, session).await?.iter().filter(|chunk| chunk.to_us <= limit_us).count();
    if old > 0 {
        let s = if old == 1 { "" } else { "s" };
        script.drops.push(format!("{old} chunk{s} of {name} with rows older than {}", span_text(kept)));
        script.step(
            format!("{old} chunk{s} of {name}, all of whose rows are older than {}", span_text(kept)),
            format!("SELECT \"{schema}\".drop_chunks('{name}', {})", interval(kept)),
        );
    }
    if !timescale.is_community() {
        script.note(format!(
            "TimescaleDB's Apache edition has no retention policies: this command drops what is old in {name} now, and has \
             to be run again, once a day (ops/systemd/pipeline-db.timer)."
        ));
        return Ok(());
    }
    let policies = hypertable::policies(&name, session).await?;
    let policy = policies.into_iter().find(|job| job.procedure == "policy_retention");
    if let Some(statements) = policy_statements(&name, schema, policy.as_ref(), kept) {
        script.drops.push(format!("from now on, by itself, whatever in {name} becomes older than {}", span_text(kept)));
        script
            .together(format!("TimescaleDB drops what in {name} becomes older than {}", span_text(kept)), &statements);
    }
    Ok(())
}

/// What has the community edition drop old chunks by itself; `None` where it does so already.
fn policy_statements(name: &str, schema: &str, found: Option<&Policy>, kept: Duration) -> Option<Vec<String>> {
    let wanted_us = i64::try_from(kept.as_micros()).unwrap_or(i64::MAX);
    if found.is_some_and(|policy| policy.after_us == Some(wanted_us)) {
        return None;
    }
    let remove = found.map(|_| format!("SELECT \"{schema}\".remove_retention_policy('{name}')"));
    let add = format!("SELECT \"{schema}\".add_retention_policy('{name}', {})", interval(kept));
    Some(remove.into_iter().chain([add]).collect())
}

async fn of_ordinary_table(
    table: &SinkTable,
    kept: Duration,
    session: &Session,
    script: &mut Script,
) -> Result<(), StageError> {
    let name = table.table.sql_name();
    let Some(time) = &table.table.time else { return Ok(()) };
    let limit = hypertable::instant(limit_us(kept));
    let sql = format!("SELECT count(*) FROM {name} WHERE \"{time}\" < {limit}");
    let old: i64 = session.client().query_one(&sql, &[]).await.map_err(catalog)?.get(0);
    script.note(format!(
        "{name} is no hypertable: its rows are deleted one by one, and this command has to be run again, once a day \
         (ops/systemd/pipeline-db.timer)."
    ));
    if old > 0 {
        script.drops.push(format!("{old} rows of {name} older than {}", span_text(kept)));
        script.step(
            format!("{old} rows of {name} that are older than {}", span_text(kept)),
            format!("DELETE FROM {name} WHERE \"{time}\" < {limit}"),
        );
    }
    Ok(())
}

fn limit_us(kept: Duration) -> i64 {
    now_us().saturating_sub(i64::try_from(kept.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_set_once_and_takes_the_place_of_one_with_another_time() {
        let day = Duration::from_secs(86_400);
        let policy = |after_us| Policy { procedure: "policy_retention".to_owned(), after_us, last_run_failed: false };
        let add = "SELECT \"public\".add_retention_policy('\"t\"', INTERVAL '1 day')";
        let statements = |found: Option<&Policy>| policy_statements("\"t\"", "public", found, day);
        assert_eq!(statements(None).unwrap(), [add]);
        assert_eq!(statements(Some(&policy(Some(86_400_000_000)))), None);
        let remove = "SELECT \"public\".remove_retention_policy('\"t\"')";
        assert_eq!(statements(Some(&policy(Some(1)))).unwrap(), [remove, add]);
    }
}
