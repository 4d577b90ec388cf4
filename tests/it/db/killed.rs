//! A restore and a backup that are killed: the database is the one or the other, the newest backup is one that was proven.

use super::{Site, tools};
use crate::process::{Process, wait_until};

fn contents(site: &Site) -> Vec<String> {
    ["telemetry", "device_status", "dead_letters"].iter().map(|table| site.content(table)).collect()
}

#[test]
fn killed_at_any_moment_a_restore_leaves_the_one_database_or_the_other() {
    let site = Site::new("cut_off");
    let (place, tools) = (site.path("backups").display().to_string(), tools(site.folder.path()));
    site.store(800, 3, 1);
    site.done("backup", &["--to", &place, "--tools", &tools]);
    site.store(400, 2, 2);
    let whole = contents(&site);
    let wreck = || site.sql("DELETE FROM telemetry WHERE device_id LIKE '%1'; TRUNCATE dead_letters");
    wreck();
    let wrecked = contents(&site);
    let file = site.file().display().to_string();
    let arguments = ["db", "restore", &file, "--from", &place, "--tools", &tools, "--yes", "--disconnect"];
    let mut kills = 0;
    for round in 0..8_u64 {
        let mut process = Process::start(&arguments, &[], site.folder.path(), &format!("restore-{round}"));
        std::thread::sleep(std::time::Duration::from_millis(150 + 400 * round));
        kills += i32::from(process.status().is_none());
        process.kill();
        let found = contents(&site);
        assert!(found == wrecked || found == whole, "round {round}: {found:?}");
        if found == whole {
            wreck();
        }
    }
    assert!(kills > 0, "no restore was killed midway");
    // Whoever was killed may have left a session behind that fills a scratch database.
    wait_until("the database to be free", || {
        let said = site.db("restore", &arguments[3..]);
        (said.code == 0).then_some(())
    });
    assert_eq!(contents(&site), whole);
}

#[test]
fn killed_at_any_moment_a_backup_leaves_the_newest_that_was_proven() {
    let site = Site::new("half_dumped");
    let (place, tools) = (site.path("backups").display().to_string(), tools(site.folder.path()));
    site.done("init", &["--no-roles"]);
    site.fill(60);
    site.done("backup", &["--to", &place, "--tools", &tools]);
    let file = site.file().display().to_string();
    let mut kills = 0;
    for round in 0..6_u64 {
        let arguments = ["db", "backup", &file, "--to", &place, "--tools", &tools];
        let mut process = Process::start(&arguments, &[], site.folder.path(), &format!("backup-{round}"));
        std::thread::sleep(std::time::Duration::from_millis(100 + 250 * round));
        kills += i32::from(process.status().is_none());
        process.kill();
        // All that counts as a backup restores.
        let listed = site.done("restore", &["--from", &place, "--list"]);
        assert!(listed.lines().count() >= 1, "{listed}");
    }
    assert!(kills > 0, "no backup was killed midway");
    let said = site.db("drill", &["--from", &place, "--tools", &tools, "--patience", "0s"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
}
