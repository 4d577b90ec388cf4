//! Tables, ledgers, indexes and roles that are not there yet.

use pipeline_engine::stage::StageError;

use super::{PipelineDatabase, Script, Session, SinkTable, indexes, roles};
use crate::postgres::fault::while_opening;
use crate::sinks::timescaledb::{Server, Timescale, replay_log_ddl};

const POSITIONS: &str = "the sinks keep their positions and what was replayed";
const CLAIMS: &str = "workers claim shards, and leave for each other what is remembered of them";

/// What `init` is to leave out.
#[derive(Debug, Clone, Copy, Default)]
pub struct InitOptions {
    /// No roles are made, and nothing is granted.
    pub without_roles: bool,
}

pub(super) async fn script(
    db: &PipelineDatabase,
    session: &Session,
    options: &InitOptions,
) -> Result<Script, StageError> {
    let mut script = Script::default();
    let client = session.client();
    let server = with_extension(&session.server, &mut script);
    let mut made = Vec::new();
    for table in db.tables() {
        let name = table.table.sql_name();
        if let Some(schema) = &table.table.schema
            && !exists(session, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema).await?
        {
            script.step(format!("schema {schema}"), format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\""));
        }
        if table.table.exists(client).await? {
            tell_mistakes(table, session, &mut script).await?;
            let found = indexes::of(&name, client).await?;
            for columns in indexes::missing(table, &found) {
                let (index, sql) = indexes::ddl(table, &columns, indexes::way(table, session).await?);
                script.step(format!("index {index}, which queries of the runbook look rows up by"), sql);
            }
            continue;
        }
        let mut statements = table.table.ddl(&server);
        // Known of a table that was just made: its key, and a hypertable's own index on the time.
        let key = table.table.key.clone();
        for columns in indexes::wanted(table).into_iter().skip(1).filter(|columns| !key.starts_with(columns)) {
            statements.push(indexes::ddl(table, &columns, indexes::Way::WithTheTable).1);
        }
        script.together(format!("table {name} of the sink \"{}\"", table.sink), &statements);
        made.push(name);
    }
    add_ledgers(db, session, &mut script, &mut made).await?;
    if !options.without_roles {
        roles::add(db, client, &made, &mut script).await?;
    }
    Ok(script)
}

/// The server as it will be once its extension is there.
fn with_extension(server: &Server, script: &mut Script) -> Server {
    let Server { version, timescale, timescale_available } = server;
    let timescale = match timescale {
        Some(Timescale { version, schema, license }) => {
            Some(Timescale { version: version.clone(), schema: schema.clone(), license: license.clone() })
        }
        None if *timescale_available => {
            script
                .step("TimescaleDB in this database", "CREATE EXTENSION IF NOT EXISTS timescaledb WITH SCHEMA public");
            Some(Timescale { version: String::new(), schema: "public".to_owned(), license: String::new() })
        }
        None => {
            script.note(
                "The server has no TimescaleDB: tables are ordinary ones. To have hypertables, install it on the server \
                 before any row is stored.",
            );
            None
        }
    };
    Server { version: version.clone(), timescale, timescale_available: *timescale_available }
}

/// What is there is never altered: what does not fit is told, with what mends it.
async fn tell_mistakes(table: &SinkTable, session: &Session, script: &mut Script) -> Result<(), StageError> {
    for mistake in table.table.mistakes(session.client(), &session.server).await? {
        script.note(format!(
            "{} is there and does not fit the sink \"{}\": {}. To mend it: {}",
            table.table.sql_name(),
            table.sink,
            mistake.what,
            mistake.mend
        ));
    }
    Ok(())
}

/// Where positions, replays, rollups and archives are noted, beside the tables.
async fn add_ledgers(
    db: &PipelineDatabase,
    session: &Session,
    script: &mut Script,
    made: &mut Vec<String>,
) -> Result<(), StageError> {
    let mut ledgers: Vec<(String, String, &str)> = Vec::new();
    for table in &db.tables {
        ledgers.push((table.ledger.table().name().to_owned(), table.ledger.table().ddl(), POSITIONS));
        if table.keeps_letters {
            let (name, ddl) = replay_log_ddl(&table.table);
            ledgers.push((name, ddl, POSITIONS));
        }
    }
    ledgers.extend(db.claims().into_iter().map(|claims| (claims.name().to_owned(), claims.ddl(), CLAIMS)));
    ledgers.sort();
    ledgers.dedup();
    for (name, ddl, purpose) in ledgers {
        if !exists(session, "SELECT to_regclass($1) IS NOT NULL", &name).await? {
            script.step(format!("{name}, where {purpose}"), ddl);
            made.push(name);
        }
    }
    Ok(())
}

async fn exists(session: &Session, sql: &str, name: &str) -> Result<bool, StageError> {
    let row = session.client().query_one(sql, &[&name]).await;
    row.map(|row| row.get(0)).map_err(|error| while_opening(error, "can't read the database's catalog"))
}
