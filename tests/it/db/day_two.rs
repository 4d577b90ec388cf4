//! Backups, restores and drills of a pipeline that has really run: its table, its lake, its dead letters.

use std::path::Path;

use serde_json::Value;

use super::{Site, tools};
use crate::process::Process;
use crate::services;

/// The tables of the pipeline, each as one hash.
fn contents(site: &Site) -> Vec<String> {
    ["telemetry", "device_status", "dead_letters"].iter().map(|table| site.content(table)).collect()
}

fn backup(site: &Site) -> Value {
    let (to, tools) = (site.path("backups").display().to_string(), tools(site.folder.path()));
    site.json("backup", &["--to", &to, "--tools", &tools, "--json"])
}

fn restore(site: &Site, more: &[&str]) -> super::Said {
    let (from, tools) = (site.path("backups").display().to_string(), tools(site.folder.path()));
    let mut arguments = vec!["--from", &from, "--tools", &tools, "--yes"];
    arguments.extend(more);
    site.db("restore", &arguments)
}

fn drill(site: &Site, more: &[&str]) -> super::Said {
    let (from, tools) = (site.path("backups").display().to_string(), tools(site.folder.path()));
    let mut arguments = vec!["--from", &from, "--tools", &tools];
    arguments.extend(more);
    site.db("drill", &arguments)
}

/// Databases of the server that were made beside the site's own.
fn beside(site: &Site) -> i64 {
    site.number(&format!(
        "SELECT count(*) FROM pg_database WHERE datname LIKE '{}\\_%' OR datname ~ '^pipeline_(drill|restore)_'",
        site.database().replace('_', "\\_")
    ))
}

#[test]
fn a_restored_database_is_that_of_the_backup_or_with_the_lake_that_of_the_last_row() {
    let site = Site::new("restored");
    site.store(3_000, 20, 1);
    let manifest = backup(&site);
    let tables = manifest["tables"].as_array().expect("a list");
    let telemetry = tables.iter().find(|table| table["table"] == "public.telemetry").expect("it is in the backup");
    assert_eq!(telemetry["rows"], 3_000);
    assert!(manifest["positions"].as_array().is_some_and(|positions| positions.len() >= 3), "{manifest:#}");
    let at_backup = contents(&site);

    site.store(2_000, 10, 2);
    let at_the_end = contents(&site);
    assert_ne!(at_backup, at_the_end);
    // The worst of all days: rows are gone, others are wrong.
    site.sql("DELETE FROM telemetry WHERE device_id LIKE '%1'; UPDATE device_status SET temperature = 0; TRUNCATE dead_letters");

    let said = restore(&site, &["--no-catch-up"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(contents(&site), at_backup);
    assert_eq!(
        site.number("SELECT count(*) FROM timescaledb_information.hypertables"),
        2,
        "they are hypertables still"
    );

    let said = restore(&site, &[]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(contents(&site), at_the_end, "{}", said.out);

    // A run goes on behind what came from the lake: nothing is lost, nothing is there twice, also without a key.
    site.store(1_000, 5, 3);
    assert_eq!(site.rows(), (6_000, 35));
    let said = site.pipeline(&["reconcile", &site.file().display().to_string()]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    // Both databases that were replaced are there, until somebody drops them.
    assert_eq!(beside(&site), 2);
}

#[test]
fn tables_that_no_lake_has_are_made_again_from_the_spool() {
    let site = Site::new("rewound");
    let text = std::fs::read_to_string(site.file()).expect("it was written");
    std::fs::write(site.file(), text.split("[sinks.lake]").next().expect("what is before it")).expect("our own folder");
    site.store(1_000, 5, 1);
    backup(&site);
    site.store(700, 3, 2);
    let at_the_end = contents(&site);
    let report: Value = serde_json::from_str(&drill(&site, &["--json", "--patience", "0s"]).out).expect("JSON");
    let in_spool: u64 =
        report["tables"].as_array().expect("a list").iter().filter_map(|it| it["in_spool"].as_u64()).sum();
    assert!(report["missing"] == 0 && in_spool >= 703, "{report:#}");

    site.sql("TRUNCATE telemetry");
    let said = restore(&site, &["--rewind"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.err.contains("reads the spool of \"telemetry\" again"), "{}", said.err);
    assert_eq!(site.rows(), (1_000, 5));
    let file = site.file().display().to_string();
    let run = Process::start(&["run", &file], &[], site.folder.path(), "rewound");
    crate::process::wait_until("the rest", || (site.rows() == (1_700, 8)).then_some(()));
    let (status, log) = run.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(contents(&site), at_the_end);
}

#[test]
fn a_restore_that_can_not_be_proven_changes_nothing() {
    let site = Site::new("unproven");
    site.store(500, 2, 1);
    let name = backup(&site)["name"].as_str().expect("a name").to_owned();
    let before = contents(&site);
    let (dump, manifest) =
        (site.path("backups").join(format!("{name}.dump")), site.path("backups").join(format!("{name}.json")));
    let whole = std::fs::read(&dump).expect("the dump");

    // Cut off, changed within, and with another count in the manifest.
    std::fs::write(&dump, &whole[..whole.len() / 2]).expect("our own file");
    let said = restore(&site, &[]);
    assert_eq!(said.code, 1, "{}", said.out);
    let mut changed = whole.clone();
    let last = changed.len() - 40;
    changed[last] ^= 1;
    std::fs::write(&dump, changed).expect("our own file");
    let said = restore(&site, &[]);
    assert_eq!(said.code, 1, "{}", said.out);
    std::fs::write(&dump, &whole).expect("our own file");
    let text = std::fs::read_to_string(&manifest).expect("the manifest");
    std::fs::write(&manifest, text.replace("\"rows\": 500", "\"rows\": 501")).expect("our own file");
    let said = restore(&site, &[]);
    assert!(
        said.code == 1 && said.err.contains("has 500 rows") && said.err.contains("Nothing was replaced"),
        "{}",
        said.err
    );
    assert_eq!(contents(&site), before);
    assert_eq!(beside(&site), 0, "no scratch database stays");

    // Somebody is connected: told before an hour of work, and sent away only on request.
    std::fs::write(&manifest, text).expect("our own file");
    let client = site.connect(&site.url);
    let said = restore(&site, &[]);
    assert!(said.code == 1 && said.err.contains("is in use") && said.err.contains("--disconnect"), "{}", said.err);
    let said = restore(&site, &["--disconnect"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(site.runtime.block_on(client.query("SELECT 1", &[])).is_err(), "it was sent away");
    assert_eq!(contents(&site), before);

    // A pipeline that runs is not: it would store on in the other database.
    let file = site.file().display().to_string();
    let mut run = Process::start(&["run", &file], &[], site.folder.path(), "in-the-way");
    run.wait_for_log("subscribed");
    let said = restore(&site, &["--disconnect"]);
    assert!(said.code == 1 && said.err.contains("Stop the pipeline first"), "{}{}", said.out, said.err);
    let (status, log) = run.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(contents(&site), before);
}

#[test]
fn a_backup_that_fails_moves_no_pointer_and_old_ones_go_once_a_new_one_is_proven() {
    let site = Site::new("dumped");
    site.done("init", &["--no-roles"]);
    site.fill(2);
    let first = backup(&site)["name"].as_str().expect("a name").to_owned();
    let to = site.path("backups").display().to_string();
    let pointer = site.path("backups").join(format!("{}.latest.json", site.database()));
    let newest = || std::fs::read_to_string(&pointer).expect("a pointer");
    assert!(newest().contains(&first));
    let record = std::fs::read_to_string(site.path("data").join(&site.name).join("backup.json")).expect("a record");
    assert!(record.contains(&first), "{record}");
    let status = site.json("status", &["--json"]);
    assert_eq!(status["last_backup"]["name"], first.as_str());

    // Programs that fail midway, of the wrong version, or not there at all.
    let broken = site.path("broken");
    std::fs::create_dir_all(&broken).expect("our own folder");
    let program = |name: &str, text: &str| {
        let path = broken.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("our own file");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("our own file");
    };
    let attempt = || site.db("backup", &["--to", &to, "--tools", &broken.display().to_string()]);
    assert!(attempt().err.contains("there is no pg_dump"));
    program("pg_restore", "exit 0");
    program("pg_dump", "[ \"$1\" = --version ] && echo 'pg_dump (PostgreSQL) 15.1' && exit; exit 1");
    assert!(attempt().err.contains("is of version 15.1"), "{}", attempt().err);
    program(
        "pg_dump",
        "[ \"$1\" = --version ] && echo 'pg_dump (PostgreSQL) 17.9' && exit; echo half; echo 'disk is gone' >&2; exit 1",
    );
    // Backups are named by the second.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let said = attempt();
    assert!(said.code == 1 && said.err.contains("pg_dump failed") && said.err.contains("disk is gone"), "{}", said.err);
    assert!(newest().contains(&first), "the pointer stays");
    let dumps = |folder: &Path| {
        let files = std::fs::read_dir(folder).expect("our own folder").flatten();
        files.filter(|file| file.file_name().to_string_lossy().ends_with(".dump")).count()
    };
    assert_eq!(dumps(&site.path("backups")), 1, "half a dump is none");

    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let tools = tools(site.folder.path());
    site.done("backup", &["--to", &to, "--tools", &tools, "--keep", "1s"]);
    let listed = site.done("restore", &["--from", &to, "--list"]);
    assert!(!newest().contains(&first) && listed.lines().count() == 1 && !listed.contains(&first), "{listed}");
    assert_eq!(dumps(&site.path("backups")), 1);
}

#[test]
fn the_drill_passes_while_the_pipeline_runs_and_finds_rows_that_are_nowhere_else() {
    let site = Site::new("drilled");
    site.store(2_000, 10, 1);
    backup(&site);
    let file = site.file().display().to_string();
    let mut run = Process::start(&["run", &file], &[], site.folder.path(), "run-on");
    run.wait_for_log("subscribed");
    site.fleet(3_000, 2);
    site.letters(5, 2);
    crate::process::wait_until("all to be stored", || (site.rows() == (5_000, 15)).then_some(()));
    let said = drill(&site, &["--json"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let report: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!((&report["missing"], &report["compared_with_live"]), (&0.into(), &true.into()), "{report:#}");
    assert_eq!(report["rpo_seconds"], 0.0);
    assert!(report["rto_seconds"].as_f64() > Some(0.0));
    let table = |name: &str| {
        let tables = report["tables"].as_array().expect("a list");
        tables.iter().find(|table| table["table"] == name).expect("it was drilled").clone()
    };
    assert_eq!(table("\"telemetry\"")["rows_added"], 3_000, "{report:#}");
    assert_eq!(table("\"dead_letters\"")["rows_added"], 5, "{report:#}");
    assert_eq!(beside(&site), 0, "no scratch database stays");
    let (status, log) = run.stop();
    assert_eq!(status.code(), Some(0), "{log}");

    // A row that no backup, lake or spool has.
    site.sql("INSERT INTO telemetry VALUES ('by hand', now(), 1, 1, 1)");
    std::fs::remove_dir_all(site.path("data").join(&site.name).join("telemetry/spool")).expect("the spool");
    let said = drill(&site, &["--patience", "0s"]);
    assert!(said.code == 1 && said.out.starts_with("CRITICAL: 1 row missing"), "{}{}", said.out, said.err);
    let lost = site.json(
        "drill",
        &[
            "--json",
            "--patience",
            "0s",
            "--from",
            &site.path("backups").display().to_string(),
            "--tools",
            &tools(site.folder.path()),
        ],
    );
    assert!(lost["rpo_seconds"].as_f64() > Some(0.0), "{lost:#}");
}

/// Acceptance: one command, on a machine where nothing is left but the backups and the lake, here both on S3.
#[test]
fn the_drill_passes_from_an_empty_machine_with_nothing_but_backups_and_lake_on_s3() {
    let site = Site::new("empty");
    let (s3, bucket) = (services::s3(), services::bucket());
    let text = std::fs::read_to_string(site.file()).expect("it was written");
    let dir = site.path("").display().to_string();
    std::fs::write(site.file(), text.replace(&format!("{dir}/l"), &format!("s3://{bucket}/l")))
        .expect("our own folder");
    let variables = s3.environment();
    // Every process of this site is given the variables of the store.
    let pipeline = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.args(arguments).current_dir(crate::process::root()).envs(variables.clone());
        super::said(command.output().expect("the binary runs"))
    };
    let file = site.file().display().to_string();
    let store = |messages: i64, seed: usize| {
        let environment: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut run = Process::start(&["run", &file], &environment, site.folder.path(), &format!("s3-{seed}"));
        run.wait_for_log("subscribed");
        let before = site.rows();
        site.fleet(usize::try_from(messages).expect("a count"), seed);
        site.letters(5, seed);
        crate::process::wait_until("all to be stored", || {
            (site.rows() == (before.0 + messages, before.1 + 5)).then_some(())
        });
        let (status, log) = run.stop();
        assert_eq!(status.code(), Some(0), "{log}");
    };
    store(2_000, 1);
    let (place, tools) = (format!("s3://{bucket}/backups"), tools(site.folder.path()));
    let said = pipeline(&["db", "backup", &file, "--to", &place, "--tools", &tools]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    store(1_500, 2);
    let at_the_end = contents(&site);

    // The machine burns down: no database, no spool, no checkpoints.
    let admin = site.connect(&site.url.replace(site.database(), "postgres"));
    site.runtime
        .block_on(admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", site.database())))
        .expect("gone");
    std::fs::remove_dir_all(site.path("data")).expect("gone");
    let said = pipeline(&["db", "drill", &file, "--from", &place, "--tools", &tools, "--json"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let report: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!((&report["missing"], &report["compared_with_live"]), (&0.into(), &false.into()), "{report:#}");

    // And as a drill goes, so it goes in earnest.
    let said = pipeline(&["db", "restore", &file, "--from", &place, "--tools", &tools, "--yes"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(contents(&site), at_the_end);
    store(500, 3);
    assert_eq!(site.rows(), (4_000, 15));
}

#[test]
fn settings_of_the_database_itself_come_back_and_a_rewind_of_nothing_says_so() {
    let site = Site::new("settings");
    let (name, reader) = (site.database(), services::unique("reader"));
    site.sql(&format!(
        "CREATE TABLE telemetry (device_id text); CREATE ROLE {reader}; \
         ALTER DATABASE {name} SET search_path TO \"$user\", public, \"a, b\"; \
         ALTER DATABASE {name} SET timezone TO 'UTC'; \
         ALTER ROLE {reader} IN DATABASE {name} SET statement_timeout TO '30s'"
    ));
    let settings = || {
        site.text(
            // What TimescaleDB notes of its own restore is no setting of ours.
            "SELECT string_agg(coalesce(r.rolname || ': ', '') || setting, '; ' ORDER BY r.rolname, setting) \
             FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS setting LEFT JOIN pg_roles r ON r.oid = s.setrole \
             WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND setting NOT LIKE 'timescaledb.restoring=%'",
        )
    };
    let before = settings();
    let manifest = backup(&site);
    assert_eq!(manifest["settings"].as_array().map(Vec::len), Some(3), "{manifest:#}");
    site.sql(&format!("ALTER DATABASE {name} RESET ALL; ALTER ROLE {reader} IN DATABASE {name} RESET ALL"));

    let said = restore(&site, &["--no-catch-up", "--rewind"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(settings(), before);
    assert!(said.err.contains("nothing is rewound"), "{}", said.err);
}

#[test]
fn a_place_with_backups_of_another_server_is_refused_until_it_is_taken_over() {
    let site = Site::new("strange");
    site.sql("CREATE TABLE telemetry (device_id text)");
    let first = backup(&site);
    let file = site.path("backups").join(format!("{}.json", first["name"].as_str().expect("a name")));
    let text = std::fs::read_to_string(&file).expect("the manifest");
    let system = first["system"].as_str().expect("the cluster's own");
    std::fs::write(&file, text.replace(system, "6999999999999999999")).expect("our own file");
    let pointer = || std::fs::read(site.path("backups").join(format!("{}.latest.json", site.database())));
    let before = pointer().expect("there is a newest one");

    let (to, tools) = (site.path("backups").display().to_string(), tools(site.folder.path()));
    let said = site.db("backup", &["--to", &to, "--tools", &tools]);
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    for part in ["of another server", "6999999999999999999", system, "--take-over"] {
        assert!(said.err.contains(part), "{part}: {}", said.err);
    }
    assert_eq!(pointer().expect("it is still there"), before);
    // Backups are named by the second.
    crate::process::wait_until("the next second", || {
        let said = site.db("backup", &["--to", &to, "--tools", &tools, "--take-over"]);
        (said.code == 0).then_some(())
    });
    assert_ne!(pointer().expect("it has moved"), before);
    crate::process::wait_until("the next second", || {
        let said = site.db("backup", &["--to", &to, "--tools", &tools]);
        (said.code == 0).then_some(())
    });
}
