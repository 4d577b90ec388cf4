//! The units run by a systemd, in namespaces: installed by the commands of docs/operations.md as they stand, with a secret that
//! only the folder of credentials holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::http::free_port;
use crate::process::root;
use crate::services;

/// A database of version 17 wants a client of that version: where the services have theirs.
const PG_DUMP: &str = "usr/lib/postgresql/17/bin/pg_dump";

/// After the installation. What is not asserted here the test reads in the logs.
const SCRIPT: &str = r#"
timeout 60 bash -c 'until pipeline status --url "$0" >/dev/null 2>&1; do sleep 0.1; done' "$URL"
systemctl start pipeline-db.service
systemctl start pipeline-backup.service
systemctl is-enabled pipeline.service pipeline-backup.timer pipeline-db.timer
systemctl is-active pipeline.service pipeline-backup.timer pipeline-db.timer
# What the service may see of its secret, and what others may.
main=$(systemctl show --value --property MainPID pipeline.service)
grep -z '^CREDENTIALS_DIRECTORY=' "/proc/$main/environ" | tr -d '\0'; echo
if grep -qz "$SECRET" "/proc/$main/environ" "/proc/$main/cmdline"; then echo "the secret is in the environment" >&2; exit 1; fi
stat -c '%U %a' "/run/credentials/pipeline.service"
systemctl reload pipeline.service
systemctl stop pipeline.service
cp -a /var/lib/private/pipeline/backups /srv/shared/backups

echo "--- a folder of credentials that is empty"
mv /etc/pipeline/credentials/database-url /root/
systemctl start pipeline.service && echo "it started without its secret" >&2 && exit 1
systemctl stop pipeline.service
mv /root/database-url /etc/pipeline/credentials/
systemctl start pipeline.service
timeout 60 bash -c 'until pipeline status --url "$0" >/dev/null 2>&1; do sleep 0.1; done' "$URL"
systemctl stop pipeline.service

echo "--- a typo in the file"
cp /etc/pipeline/pipeline.toml /root/
sed -i 's/^type = "mqtt"/type = "mqqt"/' /etc/pipeline/pipeline.toml
systemctl start pipeline.service && echo "it started with a typo in its file" >&2 && exit 1
# One that waits to be started again is "activating".
systemctl show --property ActiveState,NRestarts,ExecMainStatus pipeline.service
mv /root/pipeline.toml /etc/pipeline/
systemctl start pipeline.service
systemctl is-active pipeline.service
systemctl stop pipeline.service
"#;

/// The first block of commands below a heading.
fn block(page: &str, heading: &str) -> String {
    let text = fs::read_to_string(root().join(page)).expect("a page");
    let (_, below) = text.split_once(heading).unwrap_or_else(|| panic!("{page} has no {heading}"));
    let (_, block) = below.split_once("```sh\n").expect("it shows commands");
    block.split_once("```").expect("the block ends").0.to_owned()
}

/// A checkout that has been built, with the pipeline of these tests in it.
fn checkout(folder: &Path, port: u16) {
    // Copies: the machine sees no other file system than the root's.
    for name in ["target/release", "pipelines", "ops/systemd"] {
        fs::create_dir_all(folder.join(name)).expect("our own folder");
    }
    fs::copy(env!("CARGO_BIN_EXE_pipeline"), folder.join("target/release/pipeline")).expect("our own folder");
    let copy = |name: &str| {
        fs::copy(root().join(name), folder.join(name)).expect("our own folder");
    };
    copy("pipelines/devices.csv");
    for unit in fs::read_dir(root().join("ops/systemd")).expect("they are shipped").flatten() {
        copy(&format!("ops/systemd/{}", unit.file_name().to_string_lossy()));
    }
    let shipped = fs::read_to_string(root().join("pipelines/iot.toml")).expect("it is shipped");
    let text = format!("[http]\nlisten = \"127.0.0.1:{port}\"\n\n{shipped}");
    fs::write(folder.join("pipelines/iot.toml"), text).expect("our own folder");
}

/// Where the services have their programs.
fn release() -> PathBuf {
    services::database_url();
    let home = std::env::var("HOME").unwrap_or_default();
    let cache = std::env::var("SERVICES_CACHE").unwrap_or_else(|_| format!("{home}/.cache/pipeline/services"));
    let releases = fs::read_dir(&cache).expect("the services are installed").flatten();
    let release = releases.map(|entry| entry.path()).find(|release| release.join(PG_DUMP).exists());
    release.expect("the database has its own client")
}

/// A client for `pipeline db backup` that runs as any user.
fn client(release: &Path) -> String {
    let release = release.display();
    // It is of another release than this machine: with its own loader and libraries.
    format!(
        "cp -a {release}/usr/lib/postgresql/17/bin /opt/postgresql && cp -aL {release}/usr/lib/x86_64-linux-gnu /opt/lib
cat >/usr/local/bin/pg_dump <<'END'
#!/bin/sh
exec /opt/lib/ld-linux-x86-64.so.2 --library-path /opt/lib /opt/postgresql/${{0##*/}} \"$@\"
END
chmod 755 /usr/local/bin/pg_dump && cp /usr/local/bin/pg_dump /usr/local/bin/pg_restore\n"
    )
}

/// Runs a script on a machine of its own, which also sees this folder; `None` where there can be none.
fn boot(folder: &Path, script: &str, seen: &Path) -> Option<i32> {
    fs::write(folder.join("script.sh"), script).expect("our own folder");
    let namespaces = ["--kill-child", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup"];
    if !Command::new("unshare")
        .args(namespaces)
        .arg("true")
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|ran| ran.success())
    {
        return None;
    }
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "200", "unshare"]).args(namespaces);
    let output =
        command.arg(root().join("tests/it/systemd/machine.sh")).arg(folder).arg("script.sh").arg(seen).output();
    let output = output.expect("unshare was there");
    eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let code = fs::read_to_string(folder.join("code")).ok()?;
    code.trim().parse().ok()
}

#[test]
fn the_units_run_as_the_documentation_installs_them_with_a_secret_that_only_they_see() {
    let (folder, port) = (TempDir::new().expect("a folder"), free_port());
    checkout(folder.path(), port);
    let release = release();
    let (database, topic) = (services::database("units"), services::unique("units"));
    let install = block("docs/operations.md", "## As a service");
    let example = "postgres://pipeline:PASSWORD@db/iot_analytics";
    assert!(install.contains(example), "{install}");
    let environment = format!(
        "MQTT_URL={}\nMQTT_TOPIC={topic}/#\nMQTT_CLIENT_ID={topic}\nS3_URL=/var/lib/pipeline/lake\n",
        services::mqtt_url()
    );
    let script = format!(
        "URL=http://127.0.0.1:{port}\nSECRET='{database}'\n{}install -d /etc/pipeline\n\
         printf '{environment}' >/etc/pipeline/environment\n{}{SCRIPT}",
        client(&release),
        install.replace(example, &database),
    );
    let Some(code) = boot(folder.path(), &script, &release) else {
        eprintln!("skipped: no systemd can be started in namespaces here");
        return;
    };
    let log = |name: &str| fs::read_to_string(folder.path().join(format!("{name}.log"))).unwrap_or_default();
    let units =
        ["pipeline", "pipeline-db", "pipeline-backup"].map(|unit| format!("--- {unit}\n{}", log(unit))).concat();
    let said = log("script");
    assert_eq!(code, 0, "{said}\n{units}");
    assert!(said.contains("CREDENTIALS_DIRECTORY=/run/credentials/pipeline.service"), "{said}");
    assert!(said.contains("\npipeline 500\n"), "nobody but the unit's own user reads it: {said}");
    let (_, without) = said.split_once("--- a folder of credentials that is empty").expect("the script says so");
    assert!(without.contains("Job for pipeline.service failed"), "{said}");
    let run = log("pipeline");
    assert!(run.contains("can't read the credential \"database-url\""), "{run}");
    let (_, typo) = said.split_once("--- a typo in the file").expect("the script says so");
    for state in ["ActiveState=failed", "NRestarts=0", "ExecMainStatus=2", "\nactive\n"] {
        assert!(typo.contains(state), "no {state}: {said}\n{run}");
    }
    assert_eq!(run.matches("no type of source is named \"mqqt\"").count(), 1, "told once, and not tried again: {run}");
    assert!(run.contains("Did you mean \"mqtt\"?") && run.contains("/etc/pipeline/pipeline.toml:"), "{run}");
    let backups = fs::read_dir(folder.path().join("backups")).expect("they were copied").flatten();
    let names: Vec<String> = backups.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|name| name.ends_with(".latest.json")), "{names:?}\n{units}");
    assert!(log("pipeline-db").contains("up to date"), "{units}");
}
