//! Rollups made and brought up to date: continuous aggregates in the community edition, tables of the same name and
//! columns elsewhere.
//!
//! As a table, a rollup is computed again from two days (`late`) before the newest bucket it had, so late rows are counted
//! and nothing is counted twice, however often this runs. A bucket whose rows have been dropped stays as it is.

use pipeline_engine::stage::StageError;

use super::{PipelineDatabase, Script, Session, SinkTable, catalog, interval, literal, roles, span_text};
use crate::sinks::timescaledb::{Rollup, Table, Timescale};

/// How far each table of this kind has come, beside the tables.
pub(super) const STATE: &str = "_pipeline_rollups";

/// A Monday, from which TimescaleDB counts buckets too.
const ORIGIN: &str = "TIMESTAMPTZ '2000-01-03T00:00:00Z'";

pub(super) async fn script(db: &PipelineDatabase, session: &Session, all: bool) -> Result<Script, StageError> {
    let mut script = Script::default();
    let mut any = false;
    for table in db.tables() {
        for rollup in &table.upkeep.rollups {
            any = true;
            if table.table.exists(session.client()).await? {
                add(db, table, rollup, session, all, &mut script).await?;
            } else {
                script.note(format!("{} is not there yet: `pipeline db init` makes it.", table.table.sql_name()));
            }
        }
    }
    if !any {
        return Err(StageError::permanent("no sink has a rollup").hint(
            "Add a table [sinks.NAME.rollups.telemetry_hourly] with every = \"1h\" and aggregates = { avg_temp = \
             \"mean(temperature)\" }.",
        ));
    }
    Ok(script)
}

pub(super) async fn add(
    db: &PipelineDatabase,
    table: &SinkTable,
    rollup: &Rollup,
    session: &Session,
    all: bool,
    script: &mut Script,
) -> Result<(), StageError> {
    let name = rollup.sql_name(&table.table);
    let kind = kind_of(&name, session).await?;
    let community = session.server.timescale.as_ref().filter(|timescale| timescale.is_community());
    match (community, kind) {
        (_, Kind::Other) => Err(StageError::permanent(format!("{name} is there and is no rollup"))
            .hint("Give the rollup another name in the pipeline file, or move what is there.")),
        (Some(timescale), Kind::Missing | Kind::View) => {
            as_aggregate(&db.pipeline, table, rollup, timescale, (kind, all), script);
            Ok(())
        }
        (None, Kind::View) => {
            Err(StageError::permanent(format!("{name} is a continuous aggregate, and {} has none", session.server))
                .hint("Drop the view, and run this again: a table takes its place."))
        }
        // A table of an earlier edition goes on as one.
        (_, kind) => {
            as_table(db, table, rollup, kind, all, script);
            Ok(())
        }
    }
}

/// What has the name of a rollup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Missing,
    Table,
    View,
    Other,
}

async fn kind_of(name: &str, session: &Session) -> Result<Kind, StageError> {
    let sql = "SELECT c.relkind::text, EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'bucket') \
               FROM pg_class c WHERE c.oid = to_regclass($1)";
    let Some(row) = session.client().query_opt(sql, &[&name]).await.map_err(catalog)? else { return Ok(Kind::Missing) };
    Ok(match (row.get::<_, &str>(0), row.get(1)) {
        ("r", true) => Kind::Table,
        ("v", true) => Kind::View,
        _ => Kind::Other,
    })
}

fn as_aggregate(
    pipeline: &str,
    table: &SinkTable,
    rollup: &Rollup,
    timescale: &Timescale,
    (kind, all): (Kind, bool),
    script: &mut Script,
) {
    let (name, schema) = (rollup.sql_name(&table.table), &timescale.schema);
    let every = interval(rollup.every);
    if kind == Kind::Missing {
        let time = table.table.time.as_deref().unwrap_or_default();
        let query = rollup.query(&table.table, &format!("\"{schema}\".time_bucket({every}, \"{time}\")"), "");
        script.step(
            format!("{name}: a row for each {} as a continuous aggregate", span_text(rollup.every)),
            format!("CREATE MATERIALIZED VIEW {name} WITH (timescaledb.continuous) AS {query} WITH NO DATA"),
        );
        // From as late as rows may come to the last bucket that is over, as often as one is.
        script.step(
            format!("TimescaleDB keeps {name} up to date"),
            format!(
                "SELECT \"{schema}\".add_continuous_aggregate_policy('{name}', start_offset => {}, end_offset => {every}, \
                 schedule_interval => {every}, if_not_exists => true)",
                interval(rollup.late + rollup.every * 2)
            ),
        );
        script.step(format!("who may read {name}"), roles::readable(pipeline, &name));
    }
    // A bucket whose rows were dropped would be emptied if the range held it: only new aggregates begin at the first row.
    let start = if kind == Kind::Missing || all {
        "NULL".to_owned()
    } else {
        format!("now() - {}", interval(rollup.late + rollup.every * 2))
    };
    if all && kind != Kind::Missing && table.upkeep.retention.is_some() {
        script.note(format!("Computed from every row there is, {name} loses the buckets whose rows were dropped."));
    }
    script.step(
        format!("{name} up to date"),
        format!("CALL \"{schema}\".refresh_continuous_aggregate('{name}', {start}, NULL)"),
    );
}

fn as_table(db: &PipelineDatabase, table: &SinkTable, rollup: &Rollup, kind: Kind, all: bool, script: &mut Script) {
    let name = rollup.sql_name(&table.table);
    let state = Table { name: STATE.to_owned(), ..table.table.clone() }.sql_name();
    let time = table.table.time.as_deref().unwrap_or_default();
    let bucket = |time: &str| format!("date_bin({}, {time}, {ORIGIN})", interval(rollup.every));
    let column = format!("\"{time}\"");
    if kind == Kind::Missing {
        let query = rollup.query(&table.table, &bucket(&column), "");
        script.together(
            format!("{name}: a row for each {}, as a table", span_text(rollup.every)),
            &[
                format!(
                    "CREATE TABLE IF NOT EXISTS {state} (rollup text PRIMARY KEY, up_to timestamp with time zone NOT NULL, \
                     updated_at timestamp with time zone NOT NULL DEFAULT now())"
                ),
                format!("CREATE TABLE {name} AS {query} WITH NO DATA"),
                // A device without a site is a group too, and always the same one.
                format!("CREATE UNIQUE INDEX ON {name} ({}) NULLS NOT DISTINCT", rollup.key()),
                format!("CREATE INDEX ON {name} (bucket DESC)"),
                roles::readable(&db.pipeline, &name),
            ],
        );
    }
    let label = literal(&rollup.name);
    let known = format!("(SELECT up_to FROM {state} WHERE rollup = {label})");
    let since = if all {
        "'-infinity'::timestamptz".to_owned()
    } else {
        format!("coalesce({}, '-infinity')", bucket(&format!("{known} - {}", interval(rollup.late))))
    };
    // Of the bucket in which the oldest row lies, others may have been dropped: where there are older buckets, it is left
    // as it was.
    let oldest = format!("(SELECT min({column}) FROM {})", table.table.sql_name());
    let whole = format!(
        "(SELECT CASE WHEN EXISTS (SELECT FROM {name} WHERE bucket < {0}) THEN {0} + {1} ELSE {0} END)",
        bucket(&oldest),
        interval(rollup.every)
    );
    let condition = format!("{column} >= greatest({since}, {whole})");
    let columns = rollup.aggregates.iter().map(|(name, _)| format!("\"{name}\" = EXCLUDED.\"{name}\""));
    let set: Vec<String> = columns.collect();
    script.together(
        format!("{name} up to date{}", if all { ", from every row there is" } else { "" }),
        &[
            format!("SELECT pg_advisory_xact_lock(hashtext('pipeline rollup ' || {label}))"),
            format!(
                "INSERT INTO {name} {} ON CONFLICT ({}) DO UPDATE SET {}",
                rollup.query(&table.table, &bucket(&column), &condition),
                rollup.key(),
                set.join(", ")
            ),
            format!(
                "INSERT INTO {state} (rollup, up_to) SELECT {label}, max(bucket) FROM {name} HAVING max(bucket) IS NOT NULL \
                 ON CONFLICT (rollup) DO UPDATE SET up_to = EXCLUDED.up_to, updated_at = now()"
            ),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::declared;

    #[test]
    fn in_the_community_edition_a_rollup_is_the_aggregate_of_the_runbook_with_a_policy() {
        let table = declared(
            "key = [\"device_id\", \"timestamp\"]\n[rollups.telemetry_hourly]\nevery = \"1h\"\n\
             aggregates = { avg_temp = \"mean(temperature)\", reading_count = \"count()\" }",
        );
        let timescale = Timescale { version: "2.19.3".into(), schema: "public".into(), license: "timescale".into() };
        let made = |kind, all| {
            let mut script = Script::default();
            as_aggregate("iot", &table, &table.upkeep.rollups[0], &timescale, (kind, all), &mut script);
            script.steps.into_iter().map(|step| step.sql).collect::<Vec<_>>()
        };
        let new = made(Kind::Missing, false);
        assert_eq!(
            new[0],
            "CREATE MATERIALIZED VIEW \"telemetry_hourly\" WITH (timescaledb.continuous) AS SELECT \
             \"public\".time_bucket(INTERVAL '1 hour', \"timestamp\") AS bucket, \"device_id\", \
             avg(\"temperature\") AS \"avg_temp\", count(*) AS \"reading_count\" FROM \"telemetry\" GROUP BY 1, 2 \
             WITH NO DATA"
        );
        assert!(
            new[1].contains("add_continuous_aggregate_policy")
                && new[1].contains("start_offset => INTERVAL '50 hours'")
        );
        let refresh = |start: &str| {
            format!("CALL \"public\".refresh_continuous_aggregate('\"telemetry_hourly\"', {start}, NULL)")
        };
        assert_eq!(new.last(), Some(&refresh("NULL")));
        // Whatever is older may have been dropped: a refresh would empty its buckets.
        assert_eq!(made(Kind::View, false), [refresh("now() - INTERVAL '50 hours'")]);
        assert_eq!(made(Kind::View, true), [refresh("NULL")]);
    }
}
