//! Settings of a database itself (`ALTER DATABASE … SET`, `ALTER ROLE … IN DATABASE … SET`), which no dump has: written down
//! with a backup, and given to what is restored.

use pipeline_engine::stage::StageError;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::restore::{execute, ident};
use super::{catalog, literal};

/// Settings whose values are lists of names that are quoted one by one already, as the server keeps them (`GUC_LIST_QUOTE`).
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// TimescaleDB sets this one itself, before and after a restore.
const OF_A_RESTORE: &str = "timescaledb.restoring";

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSetting {
    /// For whom; `None`: for everybody.
    pub role: Option<String>,
    /// `work_mem`.
    pub name: String,
    /// As the server keeps it.
    pub value: String,
}

/// All settings of the database that this is a connection to.
pub(super) async fn of(client: &Client) -> Result<Vec<DatabaseSetting>, StageError> {
    let sql = "SELECT r.rolname::text, setting FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS setting \
               LEFT JOIN pg_roles r ON r.oid = s.setrole \
               WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) \
               ORDER BY r.rolname NULLS FIRST, setting";
    let rows = client.query(sql, &[]).await.map_err(catalog)?;
    let setting = |row: &tokio_postgres::Row| {
        let (name, value) = row.get::<_, &str>(1).split_once('=')?;
        Some(DatabaseSetting { role: row.get(0), name: name.to_owned(), value: value.to_owned() })
    };
    Ok(rows.iter().filter_map(setting).filter(|setting| setting.name != OF_A_RESTORE).collect())
}

/// Gives them to a database, for the sessions that begin from now on.
pub(super) async fn give(client: &Client, database: &str, settings: &[DatabaseSetting]) -> Result<(), StageError> {
    for setting in settings {
        execute(client, &setting.statement(database)).await?;
    }
    Ok(())
}

impl DatabaseSetting {
    fn statement(&self, database: &str) -> String {
        let of = match &self.role {
            Some(role) => format!("ROLE {} IN DATABASE {}", ident(role), ident(database)),
            None => format!("DATABASE {}", ident(database)),
        };
        // The name of an extension's setting has two parts.
        let name = self.name.split('.').map(ident).collect::<Vec<_>>().join(".");
        let value = match LISTS.contains(&self.name.to_ascii_lowercase().as_str()) {
            true => list(&self.value).iter().map(|item| literal(item)).collect::<Vec<_>>().join(", "),
            false => literal(&self.value),
        };
        format!("ALTER {of} SET {name} TO {}", if value.is_empty() { "''" } else { &value })
    }
}

/// The items of `"$user", public`, without their quotes.
fn list(text: &str) -> Vec<String> {
    let (mut items, mut item, mut in_quotes) = (Vec::new(), String::new(), false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if in_quotes && letters.next_if_eq(&'"').is_some() => item.push('"'),
            '"' => in_quotes = !in_quotes,
            ',' if !in_quotes => items.push(std::mem::take(&mut item)),
            ' ' if !in_quotes => {}
            letter => item.push(letter),
        }
    }
    if !items.is_empty() || !item.is_empty() {
        items.push(item);
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_given_as_it_was_kept() {
        let setting = |role: Option<&str>, name: &str, value: &str| DatabaseSetting {
            role: role.map(str::to_owned),
            name: name.to_owned(),
            value: value.to_owned(),
        };
        for (setting, statement) in [
            (setting(None, "work_mem", "64MB"), r#"ALTER DATABASE "i""o" SET "work_mem" TO '64MB'"#),
            (
                setting(Some("reader"), "statement_timeout", "30s"),
                r#"ALTER ROLE "reader" IN DATABASE "i""o" SET "statement_timeout" TO '30s'"#,
            ),
            (
                setting(None, "search_path", r#""$user", public, "a, ""b""""#),
                r#"ALTER DATABASE "i""o" SET "search_path" TO '$user', 'public', 'a, "b"'"#,
            ),
            (setting(None, "search_path", ""), r#"ALTER DATABASE "i""o" SET "search_path" TO ''"#),
            (setting(None, "timescaledb.x", "it's"), r#"ALTER DATABASE "i""o" SET "timescaledb"."x" TO 'it''s'"#),
        ] {
            assert_eq!(setting.statement("i\"o"), statement);
        }
    }
}
