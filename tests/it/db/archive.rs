//! Old rows to Parquet: all of them, each once, whatever happens in between.

use super::{Said, Site};
use crate::process::{Process, wait_until};
use crate::services;

const OLD: &str = "SELECT count(*) FROM telemetry WHERE timestamp < now() - interval '30 days'";

fn archive(site: &Site, more: &[&str]) -> Said {
    let to = site.path("archive").display().to_string();
    let mut arguments = vec!["--older-than", "30d", "--sink", "telemetry_table", "--to", &to];
    arguments.extend(more);
    site.db("archive", &arguments)
}

/// What a reader that is not ours finds in the archive: rows, the sum of `seq` and of the temperatures.
fn read(site: &Site) -> (i64, i64, f64) {
    let script = "import duckdb, sys\n\
                  r = duckdb.sql(f\"select count(*), sum(seq)::bigint, sum(temperature) from read_parquet('{sys.argv[1]}/**/*.parquet')\").fetchall()[0]\n\
                  print(r[0], r[1] or 0, r[2] or 0.0)";
    let mut python = std::process::Command::new(services::python());
    let output = python.args(["-c", script]).arg(site.path("archive")).output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    (words[0].parse().expect("rows"), words[1].parse().expect("a sum"), words[2].parse().expect("a sum"))
}

#[test]
fn what_is_old_lies_in_parquet_and_no_longer_in_the_table() {
    for plain in [false, true] {
        let site = if plain { Site::plain("archived_plain") } else { Site::new("archived") };
        if plain {
            site.sql("CREATE TABLE telemetry (device_id text NOT NULL, timestamp timestamptz NOT NULL, temperature float8, \
                      humidity float8, seq bigint); CREATE UNIQUE INDEX ON telemetry (device_id, timestamp, seq) NULLS NOT DISTINCT");
        } else {
            site.done("init", &["--no-roles"]);
        }
        // A column of somebody else's, of a type that Parquet has no like of.
        site.sql(
            "ALTER TABLE telemetry ADD COLUMN price numeric(12, 4), ADD COLUMN stored_at timestamptz DEFAULT now()",
        );
        site.fill(40);
        site.sql("UPDATE telemetry SET price = seq / 3.0, humidity = CASE WHEN seq % 7 = 0 THEN 'NaN' WHEN seq % 5 = 0 THEN NULL ELSE humidity END");
        let all = site.rows().0;
        let due = site.done("archive", &["--older-than", "30d", "--sink", "telemetry_table", "--dry-run"]);
        assert!(due.contains("parcels would be archived") && due.lines().count() > 9, "{due}");
        let said = archive(&site, &[]);
        assert!(said.code == 2 && said.err.contains("give --yes"), "{}{}", said.out, said.err);
        assert_eq!(site.rows().0, all);

        let seqs = site.number("SELECT sum(seq)::int8 FROM telemetry");
        let said = archive(&site, &["--yes"]);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        let (rows, sum, _) = read(&site);
        assert_eq!(rows + site.rows().0, all, "{}", said.out);
        assert_eq!(sum + site.number("SELECT coalesce(sum(seq), 0)::int8 FROM telemetry"), seqs);
        assert!(rows > 0 && site.number(OLD) <= 5 * 6 * 24, "at most what is in the same day as younger rows");
        assert_eq!(site.number("SELECT sum(rows)::int8 FROM _pipeline_archive"), rows);
        assert_eq!(site.number("SELECT sum(reading_count)::int8 FROM telemetry_hourly"), all, "the rollup has all");
        // A second time there is nothing to do.
        let said = archive(&site, &["--yes"]);
        assert!(said.code == 0 && said.out.contains("nothing is older"), "{}{}", said.out, said.err);
        // A row that comes a month late is archived for itself.
        site.sql("INSERT INTO telemetry (device_id, timestamp, temperature, seq) VALUES ('late', now() - interval '35 days', 1, 1)");
        assert_eq!(archive(&site, &["--yes"]).code, 0);
        assert_eq!(read(&site).0, rows + 1);
    }
}

#[test]
fn killed_at_any_moment_no_row_is_lost_and_none_is_in_two_places_for_good() {
    let site = Site::new("killed");
    site.done("init", &["--no-roles"]);
    site.fill(45);
    let all = site.rows().0;
    let temperatures = "SELECT coalesce(sum(temperature), 0)::float8::text FROM telemetry";
    let sum: f64 = site.text(temperatures).parse().expect("a sum");
    let (file, to) = (site.file().display().to_string(), site.path("archive").display().to_string());
    let arguments = ["db", "archive", &file, "--older-than", "30d", "--sink", "telemetry_table", "--to", &to, "--yes"];
    let noted = || match site.number("SELECT (to_regclass('_pipeline_archive') IS NOT NULL)::int4::int8") {
        1 => site.number("SELECT coalesce(sum(rows), 0)::int8 FROM _pipeline_archive"),
        _ => 0,
    };
    let mut kills = 0;
    for round in 0..6 {
        let before = noted();
        let mut process = Process::start(&arguments, &[], site.folder.path(), &format!("killed-{round}"));
        // Somewhere behind the first parcel that this process has noted.
        wait_until("a parcel", || (noted() > before || process.status().is_some()).then_some(()));
        std::thread::sleep(std::time::Duration::from_millis(37 * round));
        kills += i32::from(process.status().is_none());
        process.kill();
        wait_until("its session to end", || {
            let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pipeline %'";
            (site.number(sessions) == 0).then_some(())
        });
        assert_eq!(noted() + site.rows().0, all, "what is noted and what is there are all");
    }
    assert!(kills > 0, "no process was killed midway");
    let said = archive(&site, &["--yes"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let (rows, _, archived) = read(&site);
    assert_eq!(rows + site.rows().0, all, "no object holds a row twice");
    let left: f64 = site.text(temperatures).parse().expect("a sum");
    assert!((archived + left - sum).abs() < 1e-3, "{archived} + {left}, {sum}");
}

#[test]
fn an_archive_that_does_not_read_back_drops_nothing() {
    let site = Site::new("damaged");
    site.done("init", &["--no-roles"]);
    site.fill(33);
    let all = site.rows().0;
    // A time that no Parquet file can hold, in a column of somebody else's.
    site.sql("ALTER TABLE telemetry ADD COLUMN valid_until timestamptz");
    site.sql("UPDATE telemetry SET valid_until = 'infinity' WHERE timestamp < now() - interval '32 days' AND device_id = 'd3'");
    let said = archive(&site, &["--yes"]);
    assert!(said.code == 1 && said.err.contains("infin"), "{}{}", said.out, said.err);
    assert_eq!(site.rows().0, all, "{}", said.err);
    site.sql("UPDATE telemetry SET valid_until = NULL");
    // A place that can't be written.
    std::fs::write(site.path("file"), "").expect("our own folder");
    let to = site.path("file").display().to_string();
    let said = site.db("archive", &["--older-than", "30d", "--to", &to, "--yes"]);
    assert_eq!(said.code, 1, "{}", said.out);
    assert_eq!(site.rows().0, all);
}
