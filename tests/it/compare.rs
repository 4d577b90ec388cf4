//! `pipeline compare` on tables of a real server: by count and by value, with types that differ, in one database and in two.

use std::process::Command;

use serde_json::Value;

use crate::services;
use crate::shipped::{execute, parsed};

/// The old table as another program would have made it, and the new one as the sink does: 3 devices, 10 minutes, 6 readings each.
fn tables(name: &str) -> String {
    let database = services::database(name);
    execute(
        &database,
        "CREATE TABLE old (device_id varchar(40), timestamp timestamp, temperature numeric(8,3), humidity real, seq int, note json);
         CREATE TABLE new (device_id text, timestamp timestamptz, temperature float8, humidity float8, seq bigint, note jsonb, \
           site text);
         SET TimeZone = 'UTC';
         INSERT INTO old SELECT 'd' || device, timestamp '2026-01-01' + second * interval '10 s', 20.1 + second / 8.0, 50.1, second, \
           '{\"b\": 1,  \"a\": null}' FROM generate_series(1, 3) device, generate_series(0, 59) second ORDER BY random();
         INSERT INTO new SELECT device_id, timestamp, temperature::float8, humidity::text::float8, seq, note::jsonb, 'here' FROM old \
           ORDER BY random()",
    );
    database
}

/// Exit code and JSON.
fn compare(database: &str, arguments: &[&str]) -> (i32, Value) {
    parsed(&output(database, &[arguments, &["--json"]].concat()))
}

fn output(database: &str, arguments: &[&str]) -> std::process::Output {
    output_of(database, &[&["old", "new"], arguments].concat())
}

fn output_of(database: &str, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.arg("compare").args(arguments).env("DATABASE_URL", database);
    command.env_remove("OLD_DATABASE_URL").output().expect("the binary runs")
}

#[test]
fn the_same_readings_are_alike_in_whatever_order_and_types() {
    let database = tables("compare_alike");
    let (code, found) = compare(&database, &[]);
    assert_eq!(
        (code, &found["equal"], &found["rows_old"], &found["rows_new"]),
        (0, &30.into(), &180.into(), &180.into()),
        "{found}"
    );
    assert_eq!(found["not_compared"], serde_json::json!(["site"]));
    // As in two databases.
    let other = tables("compare_other");
    let (code, found) = compare(&database, &["--old-database", &other]);
    assert_eq!((code, &found["equal"]), (0, &30.into()), "{found}");
}

#[test]
fn a_lake_of_the_pipeline_is_held_against_the_table_that_had_the_same_rows() {
    let database = services::database("compare_lake");
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name).display().to_string();
    let readings: String = (0..120)
        .map(|second| {
            let (minute, rest) = (second / 60, second % 60);
            format!(
                "{{\"device_id\":\"d{}\",\"timestamp\":\"2026-01-01T00:{minute:02}:{rest:02}Z\",\"temperature\":{}}}\n",
                second % 3,
                20.1 + f64::from(second) / 8.0
            )
        })
        .collect();
    std::fs::write(place("in.jsonl"), readings).expect("a folder of ours");
    let file = place("both.toml");
    let text = format!(
        "[pipeline]\nname = \"both\"\ndata_dir = \"{}\"\n[http]\nlisten = \"off\"\n\
         [schema.telemetry]\ndevice_id = {{ type = \"text\", required = true }}\n\
         timestamp = {{ type = \"timestamp\", required = true }}\ntemperature = \"float64\"\n\
         [sources.in]\ntype = \"file\"\nformat = \"jsonl\"\npath = \"{}\"\nschema = \"telemetry\"\n\
         [sinks.table]\ntype = \"timescaledb\"\ninputs = [\"in\"]\nurl = \"{database}\"\ntable = \"telemetry\"\ncreate = true\n\
         [sinks.lake]\ntype = \"parquet\"\ninputs = [\"in\"]\nurl = \"{}\"\ntime_column = \"timestamp\"\nroll_rows = 50\n\
         [sinks.none]\ntype = \"discard\"\ninputs = [\"in.rejected\", \"table.rejected\"]\n",
        place("data"),
        place("in.jsonl"),
        place("lake")
    );
    std::fs::write(&file, text).expect("a folder of ours");
    let run = Command::new(env!("CARGO_BIN_EXE_pipeline")).args(["run", &file]).output().expect("the binary runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let lake = place("lake");
    let against = || parsed(&output_of(&database, &["telemetry", &lake, "--json"]));
    let (code, found) = against();
    assert_eq!((code, &found["equal"], &found["rows_new"]), (0, &6.into(), &120.into()), "{found}");
    assert_eq!(found["columns"], serde_json::json!(["device_id", "temperature", "timestamp"]));
    execute(&database, "UPDATE telemetry SET temperature = 0 WHERE timestamp = '2026-01-01T00:01:00Z'");
    let (code, found) = against();
    assert_eq!((code, &found["equal"], &found["other_values"]), (1, &5.into(), &1.into()), "{found}");
}

#[test]
fn each_way_to_differ_is_found_at_its_device_and_minute() {
    let database = tables("compare_differ");
    execute(
        &database,
        "DELETE FROM new WHERE device_id = 'd1' AND seq = 7;
         UPDATE new SET temperature = temperature + 0.001 WHERE device_id = 'd2' AND seq = 13;
         UPDATE new SET humidity = NULL WHERE device_id = 'd2' AND seq = 20;
         INSERT INTO new SELECT * FROM new WHERE device_id = 'd3' AND seq = 30;
         DELETE FROM old WHERE device_id = 'd3' AND seq BETWEEN 54 AND 59;
         INSERT INTO new (device_id, timestamp) VALUES ('d4', '2026-01-01T00:00:00Z')",
    );
    let (code, found) = compare(&database, &[]);
    assert_eq!(code, 1);
    assert_eq!(
        (&found["equal"], &found["other_count"], &found["other_values"]),
        (&25.into(), &4.into(), &2.into()),
        "{found}"
    );
    let first = found["first"].as_array().expect("a list");
    let places: Vec<String> = first
        .iter()
        .map(|difference| {
            let rows = |side: &str| difference[side]["rows"].as_i64().unwrap_or(0);
            let (device, minute) = (difference["device"].as_str().unwrap(), difference["minute"].as_str().unwrap());
            format!("{device} {} {}:{}", &minute[14..16], rows("old"), rows("new"))
        })
        .collect();
    assert_eq!(places, ["d1 01 6:5", "d2 02 6:6", "d2 03 6:6", "d3 05 6:7", "d3 09 0:6", "d4 00 0:1"]);
    // Two swapped values leave every count as it is, and are found.
    let (_, chosen) = compare(&database, &["--columns", "seq"]);
    assert_eq!(chosen["other_values"], 0);
    let text = output(&database, &["--first", "1"]);
    let said = String::from_utf8_lossy(&text.stdout);
    assert!(said.starts_with("DIFFERENT: 25 device-minutes alike"), "{said}");
    assert!(said.contains("d1  6 rows in the old table, 5 in the new\n  and 5 more"), "{said}");
}

#[test]
fn minutes_outside_the_span_and_those_that_have_not_settled_are_left_alone() {
    let database = tables("compare_settle");
    execute(
        &database,
        "DELETE FROM new WHERE seq = 0;
         INSERT INTO old (device_id, timestamp) VALUES ('d1', now() AT TIME ZONE 'UTC' - interval '1 minute')",
    );
    let (code, found) = compare(&database, &["--from", "2026-01-01T00:01:00Z"]);
    assert_eq!((code, &found["equal"]), (0, &27.into()), "{found}");
    let (code, found) = compare(&database, &["--from", "2026-01-01T00:01:00Z", "--until", "2026-01-01T00:03:59Z"]);
    assert_eq!((code, &found["equal"], &found["until"]), (0, &6.into(), &"2026-01-01T00:03:00Z".into()), "{found}");
    let (code, found) = compare(&database, &["--from", "1h", "--settle", "0s"]);
    assert_eq!((code, &found["other_count"]), (1, &1.into()), "{found}");
}

#[test]
fn what_can_not_be_compared_is_told_with_another_exit_code() {
    let database = tables("compare_not");
    for (arguments, why) in [
        (&["--columns", "pressure"][..], "has no column \"pressure\""),
        (&["--device", "a\"; DROP TABLE old; --"], "has no column"),
        (&["--from", "yesterday"], "--from"),
        (&["--old-database", "postgres://nobody@127.0.0.1:1/none"], "can't connect"),
    ] {
        let output = output(&database, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().display().to_string();
    std::fs::create_dir(folder.path().join("damaged")).expect("a folder of ours");
    std::fs::write(folder.path().join("damaged/x.parquet"), "PAR1 nonsense PAR1").expect("a folder of ours");
    let damaged = folder.path().join("damaged").display().to_string();
    for (new, why) in [
        ("nothing", "there is no table \"nothing\""),
        ("./no/such/folder", "there is no folder"),
        (&damaged, "can't be read as Parquet"),
    ] {
        let output = output_of(&database, &["old", new]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{new}: {said}");
    }
    std::fs::remove_dir_all(damaged).expect("a folder of ours");
    let output = output_of(&database, &["old", &empty]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no Parquet object"));
}
