//! Pages of the documentation whose every command is run, in their order, as they stand: what a newcomer or an operator
//! types works.
//!
//! A block of shell is run unless its fence says ```` ```sh ignore ````. All blocks of a page share one shell. Around them
//! is a machine of the test's own: a folder, a broker's topic, a database, a bucket; and where systemd would be, a
//! `systemctl` that starts, stops and reloads the pipeline as its unit does.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::http::free_port;
use crate::process::root;
use crate::services;

/// What a page is walked on.
struct Machine {
    folder: TempDir,
    variables: Vec<(String, String)>,
}

impl Machine {
    /// With a broker, a database and a bucket.
    fn new(name: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let s3 = services::s3();
        let mut variables = vec![
            ("MQTT_URL".to_owned(), services::mqtt_url()),
            ("MQTT_TOPIC".to_owned(), format!("iot/telemetry/{}/#", services::unique(name))),
            ("MQTT_CLIENT_ID".to_owned(), services::unique(name)),
            ("DATABASE_URL".to_owned(), services::database(name)),
            ("S3_URL".to_owned(), format!("s3://{}/lake", services::bucket())),
            ("PIPELINE_DATA_DIR".to_owned(), folder.path().join("data").display().to_string()),
        ];
        variables.extend(s3.environment());
        let machine = Self { folder, variables };
        machine.install();
        machine
    }

    /// Puts commands into `bin/` and the project's files where a checkout has them.
    fn install(&self) {
        let bin = self.folder.path().join("bin");
        fs::create_dir(&bin).expect("a folder of ours");
        symlink(env!("CARGO_BIN_EXE_pipeline"), bin.join("pipeline")).expect("a link");
        let services = root().join("tests/services/services");
        // Where the services are installed.
        let home = std::env::var("HOME").expect("a home");
        let client = |name: &str| format!("export HOME={home}\nexec {} client {name} \"$@\"", services.display());
        let shims = [
            // In the version of the server: this machine may have none, or older ones.
            ("psql", client("psql")),
            ("pg_dump", client("pg_dump")),
            ("pg_restore", client("pg_restore")),
            ("systemctl", SYSTEMCTL.to_owned()),
            ("journalctl", "cat \"$HOME/pipeline.log\"".to_owned()),
        ];
        for (name, script) in shims {
            let file = bin.join(name);
            fs::write(&file, format!("#!/usr/bin/env bash\nset -eu\n{script}\n")).expect("a file of ours");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("a file of ours");
        }
        for name in ["pipelines", "ops", "docs"] {
            symlink(root().join(name), self.folder.path().join(name)).expect("a link");
        }
    }

    /// Runs all blocks of a page in one shell.
    fn walk(&self, page: &str) {
        let text = fs::read_to_string(root().join(page)).expect("a page");
        let blocks = blocks(&text);
        assert!(blocks.len() > 1, "{page} has {} blocks", blocks.len());
        // The shell stops at the first command that fails, and says in which block that is.
        let mut script = "set -eEuo pipefail\ntrap 'echo \"failed in the block at line $line\" >&2' ERR\n".to_owned();
        for (line, block) in &blocks {
            let file = self.folder.path().join(format!(".block-{line}.sh"));
            fs::write(&file, block).expect("a file of ours");
            script += &format!("line={line}; echo \"--- line {line}\"; source {}\n", file.display());
        }
        let log = self.folder.path().join("walk.log");
        let out = fs::File::create(&log).expect("a file of ours");
        let path = format!("{}:{}", self.folder.path().join("bin").display(), std::env::var("PATH").expect("a PATH"));
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", "600", "bash", "-c", &script]);
        command.current_dir(self.folder.path()).env("PATH", path).env("HOME", self.folder.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let status = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("an open file"))
            .stderr(out)
            .status()
            .expect("bash is there");
        let said = fs::read_to_string(&log).unwrap_or_default();
        assert!(status.success(), "{page}: {status}\n{said}\n{}", self.pipeline_log());
    }

    fn pipeline_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("pipeline.log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Machine {
    /// What a page has left running ends with its test.
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.path("pipeline.pid")).unwrap_or_default();
        if !pid.trim().is_empty() {
            // It has usually ended already.
            Command::new("kill").args(["-s", "KILL", pid.trim()]).stderr(Stdio::null()).status().ok();
        }
    }
}

/// The unit of `ops/systemd`, as far as a page asks for it: SIGTERM and SIGHUP go where systemd would send them.
const SYSTEMCTL: &str = r#"
pid() { cat "$HOME/pipeline.pid" 2>/dev/null; }
is_up() { local pid; pid=$(pid) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; }
start() {
  is_up && return
  setsid pipeline run "$FILE" </dev/null >>"$HOME/pipeline.log" 2>&1 &
  echo $! >"$HOME/pipeline.pid"
}
stop() {
  is_up || return 0
  kill -s TERM "$(pid)"
  while is_up; do sleep 0.1; done
}
case $1 in
  status) is_up ;;
  start) start ;;
  stop) stop ;;
  restart) stop; start ;;
  reload) kill -s HUP "$(pid)" ;;
  *) echo "this stand-in for systemctl knows no $1" >&2; exit 1 ;;
esac"#;

/// Blocks of shell with the number of their first line.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    let mut in_other = false;
    for (number, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => found.push(block),
            (Some("sh"), None) if !in_other => open = Some((number + 2, String::new())),
            (Some(_), None) => in_other = !in_other,
            (None, Some((start, block))) => open = Some((start, block + line + "\n")),
            (None, None) => {}
        }
    }
    found
}

#[test]
fn the_first_pipeline_works_as_it_is_told() {
    let mut machine = Machine::new("walk_guide");
    // Another pipeline of this machine may have the page's usual port.
    machine.variables.push(("HTTP_PORT".to_owned(), free_port().to_string()));
    machine.walk("docs/guide/first-pipeline.md");
    assert!(machine.path("live.log").exists());
}

#[test]
fn the_migrated_file_is_made_checked_and_drawn_as_it_is_told() {
    let machine = Machine::new("walk_migration");
    machine.walk("docs/guide/migration.md");
    assert!(machine.path("new.toml").exists());
}

#[test]
fn every_command_of_the_runbook_runs() {
    let mut machine = Machine::new("walk_runbook");
    let file = machine.path("pipeline.toml");
    let port = free_port();
    let shipped = fs::read_to_string(root().join("pipelines/iot.toml")).expect("it ships");
    fs::write(&file, format!("{shipped}\n[http]\nlisten = \"127.0.0.1:{port}\"\n")).expect("a file of ours");
    machine.variables.push(("FILE".to_owned(), file.display().to_string()));
    machine.variables.push(("PIPELINE_URL".to_owned(), format!("http://127.0.0.1:{port}")));
    machine.walk("docs/runbook.md");
}

#[test]
fn blocks_of_other_languages_and_those_to_be_ignored_are_left_out() {
    let text = "```sh\na\n```\n```toml\nb\n```\n```sh ignore\nc\n```\ntext\n```sh\nd\ne\n```\n";
    assert_eq!(blocks(text), [(2, "a\n".to_owned()), (12, "d\ne\n".to_owned())]);
}
