//! Three roles for three kinds of users, each with no more rights than it needs.
//!
//! They can't log in: a login is made a member (`CREATE ROLE collector LOGIN PASSWORD '...' IN ROLE iot_writer`), so that
//! passwords change without touching rights.

use tokio_postgres::Client;

use pipeline_engine::stage::StageError;

use super::{PipelineDatabase, Script, catalog, literal};
use crate::sinks::timescaledb::{quoted, replay_log_ddl};

/// The roles of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleNames {
    /// Stores rows: what a pipeline logs in as.
    pub writer: String,
    /// Reads rows: dashboards, people.
    pub reader: String,
    /// Owns the tables: `pipeline db` logs in as a member of it.
    pub admin: String,
}

impl RoleNames {
    /// `iot_writer`, `iot_reader`, `iot_admin`.
    pub fn of(pipeline: &str) -> Self {
        // Room for the longest ending in the 63 letters of a name.
        let prefix: String = pipeline.replace('-', "_").chars().take(56).collect();
        let name = |ending: &str| format!("{prefix}_{ending}");
        Self { writer: name("writer"), reader: name("reader"), admin: name("admin") }
    }

    fn all(&self) -> [&String; 3] {
        [&self.writer, &self.reader, &self.admin]
    }
}

/// Who runs this, as the server knows.
struct Whoami {
    is_superuser: bool,
    may_make_roles: bool,
    name: String,
    schema: String,
}

/// Makes the roles and grants them what they need, whether the tables are new or not.
pub(super) async fn add(
    db: &PipelineDatabase,
    client: &Client,
    made: &[String],
    script: &mut Script,
) -> Result<(), StageError> {
    let names = RoleNames::of(&db.pipeline);
    let me = whoami(client).await?;
    for name in names.all() {
        let row = client.query_one("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", &[name]).await;
        if row.map_err(catalog)?.get::<_, bool>(0) {
            continue;
        }
        if !me.is_superuser && !me.may_make_roles {
            script.note(format!(
                "Roles are left out: \"{}\" may not make any. Have a superuser run this command, or ALTER ROLE \"{}\" CREATEROLE.",
                me.name, me.name
            ));
            return Ok(());
        }
        script.step(format!("role {name}"), format!("CREATE ROLE \"{name}\" NOLOGIN"));
    }
    script.together("who may do what", &grants(db, &names, &me));
    if me.is_superuser {
        let owned: Vec<String> =
            made.iter().map(|table| format!("ALTER TABLE {table} OWNER TO \"{}\"", names.admin)).collect();
        if !owned.is_empty() {
            script.together(format!("{} owns what is new", names.admin), &owned);
        }
    } else if !made.is_empty() {
        script.note(format!(
            "The new tables belong to \"{}\", since only a superuser can give them to \"{}\".",
            me.name, names.admin
        ));
    }
    Ok(())
}

fn grants(db: &PipelineDatabase, names: &RoleNames, me: &Whoami) -> Vec<String> {
    let RoleNames { writer, reader, admin } = names;
    let (all, database) = (format!("\"{writer}\", \"{reader}\", \"{admin}\""), db.name().replace('"', "\"\""));
    let mut schemas: Vec<&str> =
        db.tables().iter().map(|table| table.declared.table.schema.as_deref().unwrap_or(&me.schema)).collect();
    schemas.sort_unstable();
    schemas.dedup();
    let schemas = schemas.iter().map(|schema| schema.replace('"', "\"\"")).collect::<Vec<_>>();
    let schemas = quoted(schemas.iter().map(String::as_str));
    let mut grants = vec![
        format!("GRANT CONNECT ON DATABASE \"{database}\" TO {all}"),
        // The way that skips rows which are there already goes by a temporary table.
        format!("GRANT TEMPORARY ON DATABASE \"{database}\" TO \"{writer}\", \"{admin}\""),
        format!("GRANT USAGE ON SCHEMA {schemas} TO {all}"),
        format!("GRANT CREATE ON SCHEMA {schemas} TO \"{admin}\""),
    ];
    for table in db.tables() {
        let name = table.table.sql_name();
        let update = if table.table.replaces { ", UPDATE" } else { "" };
        grants.push(format!("GRANT SELECT, INSERT{update} ON {name} TO \"{writer}\""));
        grants.push(format!("GRANT SELECT ON {name} TO \"{reader}\""));
        grants.push(format!("GRANT ALL ON {name} TO \"{admin}\""));
        for kept in
            [Some(table.ledger.table().name().to_owned()), table.keeps_letters.then(|| replay_log_ddl(&table.table).0)]
                .into_iter()
                .flatten()
        {
            let grant = format!("GRANT SELECT, INSERT, UPDATE ON {kept} TO \"{writer}\", \"{admin}\"");
            if !grants.contains(&grant) {
                grants.push(grant);
            }
        }
    }
    for claims in db.claims() {
        // Those of shards that the stream has forgotten are deleted.
        grants.push(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO \"{writer}\", \"{admin}\"", claims.name()));
    }
    grants
}

async fn whoami(client: &Client) -> Result<Whoami, StageError> {
    let sql = "SELECT rolsuper, rolcreaterole, rolname::text, current_schema()::text FROM pg_roles WHERE rolname = current_user";
    let row = client.query_one(sql, &[]).await.map_err(catalog)?;
    let schema = row.get::<_, Option<String>>(3).unwrap_or_else(|| "public".to_owned());
    Ok(Whoami { is_superuser: row.get(0), may_make_roles: row.get(1), name: row.get(2), schema })
}

/// Lets the reader see a table or view that was made after `init`, where there is that role.
pub(super) fn readable(pipeline: &str, name: &str) -> String {
    let reader = RoleNames::of(pipeline).reader;
    format!(
        "DO $grant$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = {}) THEN GRANT SELECT ON {name} TO \"{reader}\"; \
         END IF; END $grant$",
        literal(&reader)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_named_after_the_pipeline_and_fit_into_a_name() {
        assert_eq!(RoleNames::of("iot").writer, "iot_writer");
        assert_eq!(RoleNames::of("plant-7").reader, "plant_7_reader");
        assert_eq!(RoleNames::of(&"x".repeat(63)).reader.len(), 63);
    }
}
