//! What the table is to TimescaleDB: told by `pipeline check --connect`, and what decides on direct compress.
//!
//! With direct compress the server packs the rows of a COPY into compressed batches as they come in, instead
//! of storing them row by row and packing them later. It does so only where nothing has to look at single
//! rows, and passes over the setting in silence elsewhere: so the sink says no where it would.

use std::fmt;

use pipeline_engine::stage::StageError;
use tokio_postgres::Client;

use super::server::Server;
use super::table::Table;
use crate::postgres::fault::while_opening;

/// The setting, in servers from 2.20 on.
const SETTING: &str = "timescaledb.enable_direct_compress_copy";

/// Facts about a table that is there.
#[derive(Debug, Default)]
pub(super) struct Nature {
    is_hypertable: bool,
    /// Its chunks can be compressed: it has a columnstore, as newer versions say.
    has_compression: bool,
    chunks: i64,
    compressed_chunks: i64,
    unique_indexes: Vec<String>,
    triggers: Vec<String>,
    /// The server knows the setting.
    has_setting: bool,
}

impl Nature {
    /// Asks the server.
    pub async fn of(table: &Table, client: &Client, server: &Server) -> Result<Self, StageError> {
        let failed = |error| while_opening(error, "can't read the database's catalog");
        let sql = "SELECT current_setting($2, true) IS NOT NULL, \
                   ARRAY(SELECT relname::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid \
                     WHERE indrelid = to_regclass($1) AND (indisunique OR indisexclusion) ORDER BY 1), \
                   ARRAY(SELECT tgname::text FROM pg_trigger WHERE tgrelid = to_regclass($1) AND NOT tgisinternal \
                     AND tgname <> 'ts_insert_blocker' ORDER BY 1)";
        let row = client.query_one(sql, &[&table.sql_name(), &SETTING]).await.map_err(failed)?;
        let mut nature =
            Self { has_setting: row.get(0), unique_indexes: row.get(1), triggers: row.get(2), ..Self::default() };
        if server.timescale.is_none() {
            return Ok(nature);
        }
        let sql = "SELECT compression_enabled, num_chunks, (SELECT count(*) FROM timescaledb_information.chunks c \
                     WHERE c.hypertable_schema = h.hypertable_schema AND c.hypertable_name = h.hypertable_name \
                     AND is_compressed) \
                   FROM timescaledb_information.hypertables h JOIN pg_namespace ON nspname = hypertable_schema \
                   JOIN pg_class ON relnamespace = pg_namespace.oid AND relname = hypertable_name \
                   WHERE pg_class.oid = to_regclass($1)";
        if let Some(row) = client.query_opt(sql, &[&table.sql_name()]).await.map_err(failed)? {
            nature.is_hypertable = true;
            (nature.has_compression, nature.chunks, nature.compressed_chunks) = (row.get(0), row.get(1), row.get(2));
        }
        Ok(nature)
    }

    /// Makes the session compress what it copies.
    ///
    /// # Errors
    /// All that stands against it.
    pub async fn compress_directly(&self, client: &Client, server: &Server, table: &Table) -> Result<(), StageError> {
        let against = self.against_direct_compress(server);
        if !against.is_empty() {
            let message = format!("direct_compress can't be used for {}: {}", table.sql_name(), against.join("; "));
            return Err(StageError::permanent(message).hint("Set direct_compress = false, or mend what is named."));
        }
        let failed = |error| while_opening(error, "can't turn direct compress on");
        client.batch_execute(&format!("SET {SETTING} = on")).await.map_err(failed)
    }

    fn against_direct_compress(&self, server: &Server) -> Vec<String> {
        let Some(timescale) = &server.timescale else {
            return vec!["the database has no TimescaleDB".to_owned()];
        };
        let mut against = Vec::new();
        if !self.has_setting {
            against.push(format!("TimescaleDB {} is older than 2.20", timescale.version));
        }
        if !timescale.is_community() {
            against.push(format!("the edition is \"{}\", and only \"timescale\" compresses", timescale.license));
        }
        if !self.is_hypertable {
            against.push("the table is no hypertable".to_owned());
        } else if !self.has_compression {
            against.push("compression is not enabled on the hypertable".to_owned());
        }
        for (what, names) in [("the unique index", &self.unique_indexes), ("the trigger", &self.triggers)] {
            against.extend(names.iter().map(|name| format!("{what} \"{name}\" looks at every row")));
        }
        against
    }

    /// Whether direct compress is used, could be, or why it can't.
    pub fn on_direct_compress(&self, server: &Server, is_wanted: bool) -> String {
        let against = self.against_direct_compress(server);
        match (against.is_empty(), is_wanted) {
            (true, true) => "direct compress is used".to_owned(),
            (true, false) => "direct compress could be used (direct_compress = true)".to_owned(),
            (false, _) => format!("direct compress can't be used: {}", against.join("; ")),
        }
    }
}

impl fmt::Display for Nature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_hypertable {
            return f.write_str("an ordinary table");
        }
        write!(f, "a hypertable of {} chunks, {} of them compressed", self.chunks, self.compressed_chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::timescaledb::server::Timescale;

    fn server(license: &str) -> Server {
        let timescale = Timescale { version: "2.23.0".into(), schema: "public".into(), license: license.into() };
        Server { version: "17.5".into(), timescale: Some(timescale), timescale_available: true }
    }

    #[test]
    fn direct_compress_is_for_compressed_hypertables_that_nothing_looks_into() {
        let plain = Nature { is_hypertable: true, has_compression: true, has_setting: true, ..Nature::default() };
        assert_eq!(plain.on_direct_compress(&server("timescale"), true), "direct compress is used");
        let could = "direct compress could be used (direct_compress = true)";
        assert_eq!(plain.on_direct_compress(&server("timescale"), false), could);

        let indexed =
            || Nature { unique_indexes: vec!["key".into()], triggers: vec!["note".into()], ..Nature::default() };
        let looked_into = Nature { is_hypertable: true, has_compression: true, has_setting: true, ..indexed() };
        let because = "direct compress can't be used: the unique index \"key\" looks at every row; the trigger \"note\" \
                       looks at every row";
        assert_eq!(looked_into.on_direct_compress(&server("timescale"), false), because);
        assert_eq!(
            indexed().against_direct_compress(&server("apache"))[..3],
            [
                "TimescaleDB 2.23.0 is older than 2.20",
                "the edition is \"apache\", and only \"timescale\" compresses",
                "the table is no hypertable",
            ]
        );
        let server = Server { timescale: None, ..server("") };
        assert_eq!(plain.against_direct_compress(&server), ["the database has no TimescaleDB"]);
    }
}
