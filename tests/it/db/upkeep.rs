//! What keeps tables small and queries fast, on TimescaleDB's Apache edition and on plain PostgreSQL.

use serde_json::Value;

use super::Site;
use crate::services;

/// What was found about a table by a check: verdict and text.
fn finding(status: &Value, about: &str, check: &str) -> String {
    let findings = status["databases"][0]["findings"].as_array().expect("a list");
    let found = findings.iter().filter(|it| it["about"].as_str().is_some_and(|it| it.contains(about)));
    let found = found.filter(|it| it["check"] == check).map(|it| format!("{} {}", it["verdict"], it["found"]));
    found.collect::<Vec<_>>().join("; ")
}

#[test]
fn retention_drops_what_is_too_old_only_after_a_yes_and_rollups_keep_what_it_said() {
    for plain in [false, true] {
        let site = if plain { Site::plain("kept_plain") } else { Site::new("kept") };
        if plain {
            site.sql("CREATE TABLE telemetry (device_id text NOT NULL, timestamp timestamptz NOT NULL, temperature float8, \
                      humidity float8, seq bigint); CREATE UNIQUE INDEX ON telemetry (device_id, timestamp, seq) NULLS NOT DISTINCT");
        } else {
            site.done("init", &["--no-roles"]);
        }
        site.fill(120);
        let (all, young) =
            (site.rows().0, "SELECT count(*) FROM telemetry WHERE timestamp > now() - interval '90 days'");
        let kept = site.number(young);
        let script = site.done("retention", &["--dry-run"]);
        assert!(script.contains(if plain { "DELETE FROM" } else { "drop_chunks" }), "{script}");
        let said = site.db("retention", &[]);
        assert_eq!(said.code, 2, "nobody can be asked here: {}", said.out);
        assert!(said.err.contains("give --yes"), "{}", said.err);
        assert_eq!(site.rows().0, all, "nothing was dropped");

        site.done("retention", &["--yes"]);
        let left = site.rows().0;
        assert!(left < all && left >= kept, "{left} of {all}, {kept} are young");
        assert!(left - kept <= 5 * 6 * 24, "no chunk of a day or more is too old: {}", left - kept);
        assert_eq!(site.number("SELECT sum(reading_count)::int8 FROM telemetry_hourly"), all, "the rollup knows all");
        // What is brought up to date again does not lose what was dropped.
        site.done("rollups", &["--all"]);
        assert_eq!(site.number("SELECT sum(reading_count)::int8 FROM telemetry_hourly"), all);
        let again = site.done("retention", &["--dry-run"]);
        assert!(!again.contains("drop_chunks") && !again.contains("DELETE"), "{again}");
    }
}

#[test]
fn a_rollup_counts_late_rows_and_every_row_once_however_often_it_is_brought_up_to_date() {
    let site = Site::new("rolled");
    site.done("init", &["--no-roles"]);
    site.fill(5);
    let script = site.done("rollups", &["--dry-run"]);
    site.psql(&script);
    let expected = "SELECT coalesce(sum(abs(a.avg_temp - b.avg_temp)), 0)::int8 + count(*) FILTER (WHERE a.reading_count IS DISTINCT \
                    FROM b.reading_count) FROM telemetry_hourly a FULL JOIN (SELECT date_trunc('hour', timestamp) AS bucket, \
                    device_id, avg(temperature) AS avg_temp, count(*) AS reading_count FROM telemetry GROUP BY 1, 2) b \
                    USING (bucket, device_id)";
    assert_eq!(site.number(expected), 0);
    assert_eq!(site.number("SELECT sum(reading_count)::int8 FROM telemetry_hourly"), site.rows().0);
    // A day late, and a day early: both are within what is computed again.
    site.sql("INSERT INTO telemetry VALUES ('late', now() - interval '1 day', 1, 1, 1), ('early', now() + interval '1 hour', 1, 1, 1)");
    for _ in 0..2 {
        site.done("rollups", &[]);
        assert_eq!(site.number(expected), 0);
    }
    // Later than `late`: not by itself, but on request.
    site.sql("INSERT INTO telemetry VALUES ('too late', now() - interval '4 days', 1, 1, 1)");
    site.done("rollups", &[]);
    assert_eq!(site.number("SELECT count(*) FROM telemetry_hourly WHERE device_id = 'too late'"), 0);
    site.done("rollups", &["--all"]);
    assert_eq!(site.number(expected), 0);
}

#[test]
fn the_apache_edition_says_that_it_cannot_compress_and_what_to_do_instead() {
    let site = Site::at("uncompressed", services::database("uncompressed"), "compress_after = \"7d\"");
    site.done("init", &["--no-roles"]);
    let said = site.db("compress", &[]);
    assert_eq!(said.code, 1, "{}", said.out);
    assert!(
        said.err.contains("(apache edition) can't compress") && said.err.contains("pipeline db archive"),
        "{}",
        said.err
    );
    let status = site.json("status", &["--json"]);
    assert!(finding(&status, "telemetry", "compression").contains("warn"), "{status:#}");
    site.write("");
    let said = site.db("compress", &[]);
    assert!(said.code == 1 && said.err.contains("compress_after = \"7d\""), "{}", said.err);
}

#[test]
fn optimize_makes_missing_indexes_drops_redundant_ones_and_gives_statistics() {
    let site = Site::new("fast");
    site.done("init", &["--no-roles"]);
    site.fill(3);
    // The runbook's own, of which the last two are of no use beside the key and the index on the time.
    site.sql("DROP INDEX telemetry_timestamp_idx; CREATE INDEX idx_telemetry_device_time ON telemetry (device_id, timestamp DESC); \
              CREATE INDEX idx_telemetry_device_id ON telemetry (device_id); \
              CREATE INDEX idx_telemetry_device_timestamp ON telemetry (device_id, timestamp DESC)");
    let status = site.json("status", &["--json"]);
    assert!(finding(&status, "telemetry", "indexes").contains("no index begins with timestamp"), "{status:#}");
    let script = site.done("optimize", &["--dry-run"]);
    site.psql(&script);
    let indexes =
        site.text("SELECT string_agg(indexname::text, ' ' ORDER BY 1) FROM pg_indexes WHERE tablename = 'telemetry'");
    assert!(indexes.contains("idx_telemetry_timestamp") && indexes.contains("idx_telemetry_device_time"), "{indexes}");
    assert!(!indexes.contains("idx_telemetry_device_id") && !indexes.contains("device_timestamp"), "{indexes}");
    assert!(
        site.text("SELECT reloptions::text FROM pg_class WHERE relname = 'device_status'").contains("fillfactor=90")
    );
    let again = site.done("optimize", &["--dry-run"]);
    assert!(!again.contains("INDEX") && !again.contains("ALTER"), "{again}");
    let status = site.json("status", &["--json"]);
    assert_eq!(status["databases"][0]["tables"][0]["rows_estimate"], site.rows().0, "{status:#}");
    // A chunk holds what the file says, from now on.
    site.write("chunk_interval = \"6h\"");
    site.done("optimize", &[]);
    let interval = "SELECT (extract(epoch FROM time_interval))::int8 FROM timescaledb_information.dimensions WHERE \
                    hypertable_name = 'telemetry'";
    assert_eq!(site.number(interval), 6 * 3600);
}

#[test]
fn status_says_how_each_table_is_and_its_exit_code_is_that_of_the_worst() {
    let site = Site::new("watched");
    let said = site.db("status", &[]);
    assert_eq!(said.code, 2, "no table yet: {}", said.out);
    assert!(said.out.starts_with("CRITICAL: ") && said.out.contains("pipeline db init"), "{}", said.out);

    site.done("init", &["--no-roles"]);
    site.fill(100);
    let said = site.db("status", &[]);
    assert_eq!(said.code, 1, "{}", said.out);
    for words in ["WARNING: ", "apache edition", "without compression", "\"telemetry\"", "backup"] {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    let status = site.json("status", &["--json"]);
    assert_eq!((&status["exit_code"], &status["databases"][0]["edition"]), (&1.into(), &"apache".into()));
    assert!(finding(&status, "telemetry", "retention").starts_with("\"warn\""), "{status:#}");
    assert!(finding(&status, "telemetry_hourly", "rollup").contains("not there yet"), "{status:#}");
    let table = &status["databases"][0]["tables"][0];
    assert_eq!((table["table"].as_str(), table["retention"].as_str()), (Some("\"telemetry\""), Some("90 days")));
    assert!(table["chunks"].as_u64().is_some_and(|chunks| chunks > 90) && table["bytes"].as_u64() > Some(1_000_000));

    // Statements are told where the server counts them, which one that was set up long ago may not.
    if site.text("SELECT current_setting('shared_preload_libraries')").contains("pg_stat_statements") {
        site.sql("CREATE EXTENSION pg_stat_statements");
        // What filled the table may have taken longer.
        site.sql(
            "SELECT pg_stat_statements_reset(0, (SELECT oid FROM pg_database WHERE datname = current_database()), 0)",
        );
        site.sql("SELECT pg_sleep(2.1)");
        let status = site.json("status", &["--json"]);
        let slowest = &status["databases"][0]["slow_queries"][0];
        assert!(slowest["query"].as_str().is_some_and(|query| query.contains("pg_sleep")), "{status:#}");
        assert!(slowest["mean_ms"].as_f64() > Some(2_000.0) && said.out.contains("PASS"), "{slowest:#}");
    } else {
        eprintln!("skipped in part: the server does not count statements");
    }

    site.done("retention", &["--yes"]);
    let status = site.json("status", &["--json"]);
    assert!(finding(&status, "telemetry", "retention").starts_with("\"pass\""), "{status:#}");
    assert!(finding(&status, "telemetry_hourly", "rollup").starts_with("\"pass\""), "{status:#}");

    let text = std::fs::read_to_string(site.file()).expect("it was written");
    std::fs::write(site.file(), text.replace(":postgres@", ":x@").replace(site.database(), "no_such")).expect("ours");
    let said = site.db("status", &[]);
    assert!(said.code == 2 && said.out.starts_with("CRITICAL: "), "{}", said.out);
}

#[test]
fn mistakes_in_what_is_to_be_kept_up_are_told_at_their_place() {
    for (more, words) in [
        ("retention = \"2d\"", "dropped while their bucket is still computed again"),
        ("retention = \"1s\"", "a minute at least"),
        ("compress_after = 7", "a duration with its unit"),
    ] {
        let site = Site::at("wrong", services::database("wrong"), "");
        let text = std::fs::read_to_string(site.file()).expect("it was written");
        std::fs::write(site.file(), text.replace("retention = \"90d\"", more)).expect("our own folder");
        let said = site.db("init", &["--dry-run"]);
        assert!(said.code == 2 && said.err.contains(words), "{more}: {}{}", said.out, said.err);
    }
}
