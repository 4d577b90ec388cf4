//! PostgreSQL's own programs, `pg_dump` and `pg_restore`: found, held to the server's version, and run.
//!
//! They are given the password by the environment, which others can't read, and never as an argument. What they write and
//! read goes through pipes: no dump lies on this machine's disk on its way to a bucket.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use pipeline_engine::stage::StageError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::place::{Measured, Place};
use crate::postgres::Database;

/// Where Debian and Red Hat keep the programs of each version.
const FOLDERS: [(&str, &str); 2] = [("/usr/lib/postgresql", "bin"), ("/usr", "bin")];
/// Of what a program says on stderr, so much is told.
const COMPLAINT_BYTES_MAX: usize = 4 << 10;

/// The two programs.
#[derive(Debug, Clone)]
pub struct Tools {
    dump: PathBuf,
    restore: PathBuf,
    /// `17.2`.
    version: String,
}

impl Tools {
    /// Looks for programs that can dump a server of this version (`17.2`): in `folder`, or else by PATH and where
    /// distributions keep them. `None` for a version that is not known, where the newest are taken.
    ///
    /// # Errors
    /// There are none, or none new enough: what to install.
    pub async fn find(folder: Option<&Path>, server: Option<&str>) -> Result<Self, StageError> {
        let wanted = server.and_then(major);
        let mut found = Vec::new();
        for folder in folder.map_or_else(usual_folders, |folder| vec![folder.to_owned()]) {
            let (dump, restore) = (folder.join("pg_dump"), folder.join("pg_restore"));
            if !dump.is_file() || !restore.is_file() {
                continue;
            }
            if let Some(version) = version_of(&dump).await {
                found.push(Self { dump, restore, version });
            }
        }
        let newest = found.into_iter().max_by_key(|tools| major(&tools.version));
        let needed = wanted.map_or_else(String::new, |major| format!(" {major}"));
        let hint = format!(
            "Install the client programs of PostgreSQL{needed} (Debian: apt-get install postgresql-client{}), or name \
             their folder by --tools.",
            wanted.map_or_else(String::new, |major| format!("-{major}"))
        );
        match newest {
            None => Err(StageError::permanent(match folder {
                Some(folder) => format!("there is no pg_dump with its pg_restore in \"{}\"", folder.display()),
                None => "pg_dump and pg_restore are not installed here".to_owned(),
            })
            .hint(hint)),
            Some(tools) if major(&tools.version) < wanted => Err(StageError::permanent(format!(
                "\"{}\" is of version {}, and the server of {}",
                tools.dump.display(),
                tools.version,
                server.unwrap_or_default()
            ))
            .hint(hint)),
            Some(tools) => Ok(tools),
        }
    }

    /// Their version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Dumps a database as of a snapshot into an object.
    pub(super) async fn dump(
        &self,
        database: &Database,
        snapshot: &str,
        to: &Place,
        name: &str,
    ) -> Result<Measured, StageError> {
        let mut command = Command::new(&self.dump);
        command
            .args(["--format=custom", "--no-password", "--lock-wait-timeout=60s"])
            .arg(format!("--snapshot={snapshot}"));
        let mut program = Program::start("pg_dump", command, database, Stdio::null(), Stdio::piped())?;
        let Some(output) = program.child.stdout.take() else { return Err(StageError::bug("pg_dump has no output")) };
        // A dump that was cut off reads like one that ended: what the program says decides, and the object goes.
        let measured = to.upload(name, output).await;
        let ended = program.end().await;
        match (ended, measured) {
            (Ok(()), measured) => measured,
            (Err(error), _) => {
                to.delete(name).await?;
                Err(error)
            }
        }
    }

    /// Reads an object to its end, and has `pg_restore` read its table of contents.
    pub(super) async fn inspect(&self, from: &Place, name: &str) -> Result<Measured, StageError> {
        let mut command = Command::new(&self.restore);
        command.arg("--list");
        let mut program = Program::bare("pg_restore", command, Stdio::piped(), Stdio::null())?;
        let mut input = program.child.stdin.take();
        let measured = from
            .read_through(name, async |piece| {
                // It stops reading behind the table of contents.
                if let Some(stdin) = &mut input
                    && stdin.write_all(&piece).await.is_err()
                {
                    input = None;
                }
                Ok(())
            })
            .await?;
        drop(input);
        program.end().await?;
        Ok(measured)
    }

    /// Fills a database from a dump.
    pub(super) async fn restore(&self, from: &Place, name: &str, into: &Database) -> Result<Measured, StageError> {
        let mut command = Command::new(&self.restore);
        command.args(["--format=custom", "--no-password", "--exit-on-error"]).arg(format!("--dbname={}", into.name()));
        let mut program = Program::start("pg_restore", command, into, Stdio::piped(), Stdio::null())?;
        let mut input = program.child.stdin.take();
        let fed = from
            .read_through(name, async |piece| {
                // Why it stopped reading is what it says itself.
                if let Some(stdin) = &mut input
                    && stdin.write_all(&piece).await.is_err()
                {
                    input = None;
                }
                Ok(())
            })
            .await;
        drop(input);
        program.end().await?;
        fed
    }
}

/// A program under way. Ended when it is dropped.
struct Program {
    name: &'static str,
    child: Child,
    complaints: JoinHandle<String>,
}

impl Program {
    fn start(
        name: &'static str,
        mut command: Command,
        database: &Database,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<Self, StageError> {
        // What is in the environment already would stand beside ours.
        for inherited in std::env::vars_os().map(|(name, _)| name) {
            if inherited.to_string_lossy().starts_with("PG") {
                command.env_remove(inherited);
            }
        }
        command.envs(database.environment());
        Self::bare(name, command, stdin, stdout)
    }

    fn bare(name: &'static str, mut command: Command, stdin: Stdio, stdout: Stdio) -> Result<Self, StageError> {
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped()).kill_on_drop(true).env("LC_ALL", "C.UTF-8");
        let mut child = command
            .spawn()
            .map_err(|error| StageError::permanent(format!("{name} can't be started")).because(error))?;
        let stderr = child.stderr.take();
        let complaints = tokio::spawn(async move {
            let (mut kept, mut piece) = (Vec::new(), [0; 1024]);
            let Some(mut stderr) = stderr else { return String::new() };
            while let Ok(read @ 1..) = stderr.read(&mut piece).await {
                kept.extend_from_slice(&piece[..read]);
                let surplus = kept.len().saturating_sub(COMPLAINT_BYTES_MAX);
                kept.drain(..surplus);
            }
            String::from_utf8_lossy(&kept).trim().to_owned()
        });
        Ok(Self { name, child, complaints })
    }

    async fn end(mut self) -> Result<(), StageError> {
        let status = self.child.wait().await;
        let status =
            status.map_err(|error| StageError::bug(format!("{} was not waited for", self.name)).because(error))?;
        let complaints = self.complaints.await.unwrap_or_default();
        if status.success() {
            if !complaints.is_empty() {
                tracing::debug!(program = self.name, "{complaints}");
            }
            return Ok(());
        }
        Err(StageError::permanent(format!("{} failed ({status}): {complaints}", self.name)))
    }
}

fn usual_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for (root, rest) in FOLDERS {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        // `/usr/lib/postgresql/17/bin`, `/usr/pgsql-17/bin`.
        let versions = entries.map(|entry| entry.path()).filter(|path| {
            path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.trim_start_matches("pgsql-").chars().all(|letter| letter.is_ascii_digit())
            })
        });
        folders.extend(versions.map(|version| version.join(rest)));
    }
    folders
}

/// `17.2` of `pg_dump (PostgreSQL) 17.2 (Debian 17.2-1)`.
async fn version_of(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    output.status.success().then(|| version.to_owned())
}

/// `17` of `17.2`, also of `18beta1`.
fn major(version: &str) -> Option<u32> {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn programs_that_are_missing_or_too_old_are_told_with_what_to_install() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tools::find(Some(folder.path()), Some("17.2")).await.unwrap_err();
        assert!(error.chain().contains("there is no pg_dump") && error.chain().contains("postgresql-client-17"));
        for name in ["pg_dump", "pg_restore"] {
            let path = folder.path().join(name);
            std::fs::write(&path, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)'\n").unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let error = Tools::find(Some(folder.path()), Some("17.2")).await.unwrap_err();
        assert!(error.chain().contains("is of version 15.18, and the server of 17.2"), "{}", error.chain());
        assert_eq!(Tools::find(Some(folder.path()), Some("15.4")).await.unwrap().version(), "15.18");
        assert_eq!(major("18beta1"), Some(18));
    }
}
