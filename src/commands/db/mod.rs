//! `pipeline db`: the tables of a pipeline made, watched, kept up, backed up and brought back.

mod day_two;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use pipeline_engine::Plan;
use pipeline_engine::stage::StageError;
use pipeline_stages::db::{InitOptions, PipelineDatabase, Script, databases};
use secrecy::SecretString;

use super::{Failure, confirmed, load, runtime};
use crate::db::status;
use crate::doctor;

/// Make, watch and keep up the tables that a pipeline stores in; back them up and bring them back.
///
/// All of it works on what the sinks of type "timescaledb" in the pipeline file say: tables, keys, how long rows are kept
/// (`retention`), when chunks are compressed (`compress_after`), and rollups. Log in as a member of the role
/// PIPELINE_admin, or as a superuser: by --login, where the sinks log in as somebody with fewer rights.
#[derive(Debug, Args)]
pub struct DbArguments {
    #[command(subcommand)]
    command: DbCommand,
}

#[derive(Debug, Subcommand)]
enum DbCommand {
    Init(InitArguments),
    Status(StatusArguments),
    /// Make queries fast again: indexes that are missing or do nobody's work, statistics, autovacuum, chunk intervals.
    Optimize(ScriptArguments),
    Retention(RetentionArguments),
    /// Compress chunks that are older than the `compress_after` of their sink, now and from now on.
    ///
    /// TimescaleDB's community edition alone can; elsewhere it is said what to do instead, and exits with 1.
    Compress(ScriptArguments),
    Rollups(RollupsArguments),
    Backup(day_two::BackupArguments),
    Restore(day_two::RestoreArguments),
    Archive(day_two::ArchiveArguments),
    Drill(day_two::DrillArguments),
}

/// Which pipeline, and which of its databases.
#[derive(Debug, Args)]
struct Target {
    /// The pipeline file.
    file: PathBuf,
    /// Only this database, where the sinks store in several.
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Log in by this url and not by that of the sinks: as an owner of the tables, where the pipeline itself may only store
    /// in them. As a variable, others can't read it.
    #[arg(long, value_name = "URL", env = "PIPELINE_DB_URL", hide_env_values = true)]
    login: Option<SecretString>,
}

/// Make tables, hypertables, keys, indexes, ledgers and roles that are not there yet.
///
/// What is there is not altered: what does not fit is told, with what mends it. Three roles are made: PIPELINE_writer
/// stores rows, PIPELINE_reader reads them, PIPELINE_admin owns the tables. They have no login; make one a member:
/// CREATE ROLE collector LOGIN PASSWORD '...' IN ROLE iot_writer.
#[derive(Debug, Args)]
struct InitArguments {
    #[command(flatten)]
    target: Target,
    /// Print the SQL, which runs with psql as it stands, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Make no roles and grant nothing.
    #[arg(long)]
    no_roles: bool,
}

/// Tell how the tables are: edition, sizes, chunks, ages, what is kept up, the last backup, slow queries.
///
/// Exits as monitoring plugins do: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
#[derive(Debug, Args)]
struct StatusArguments {
    #[command(flatten)]
    target: Target,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
    /// How old the last backup may be.
    #[arg(long, value_name = "DURATION", default_value = "75m", value_parser = humantime::parse_duration)]
    backup_max_age: Duration,
}

/// What commands take that only run a script.
#[derive(Debug, Args)]
struct ScriptArguments {
    #[command(flatten)]
    target: Target,
    /// Print the SQL, which runs with psql as it stands, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Drop rows that are older than the `retention` of their sink, by TimescaleDB's policy where the edition has them.
///
/// Asks first. Rollups are brought up to date before. What is dropped is gone: `pipeline db archive` keeps it as Parquet.
#[derive(Debug, Args)]
struct RetentionArguments {
    #[command(flatten)]
    target: Target,
    /// Print the SQL, which runs with psql as it stands, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// Make the rollups of the pipeline file and bring them up to date: continuous aggregates where the edition has them,
/// tables elsewhere.
#[derive(Debug, Args)]
struct RollupsArguments {
    #[command(flatten)]
    target: Target,
    /// Compute them from every row there is, not only where rows may have come.
    #[arg(long)]
    all: bool,
    /// Print the SQL, which runs with psql as it stands, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

pub fn run(arguments: DbArguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    match arguments.command {
        DbCommand::Init(arguments) => runtime.block_on(init(arguments)),
        DbCommand::Status(arguments) => runtime.block_on(status(arguments)),
        DbCommand::Optimize(ScriptArguments { target, dry_run }) => {
            runtime.block_on(each(target, dry_run, true, async |database| database.optimize().await))
        }
        DbCommand::Retention(RetentionArguments { target, dry_run, yes }) => {
            runtime.block_on(each(target, dry_run, yes, async |database| database.retention().await))
        }
        DbCommand::Compress(ScriptArguments { target, dry_run }) => {
            runtime.block_on(each(target, dry_run, true, async |database| database.compress().await))
        }
        DbCommand::Rollups(RollupsArguments { target, all, dry_run }) => {
            runtime.block_on(each(target, dry_run, true, async |database| database.rollups(all).await))
        }
        DbCommand::Backup(arguments) => runtime.block_on(day_two::backup(arguments)),
        DbCommand::Restore(arguments) => runtime.block_on(day_two::restore(arguments)),
        DbCommand::Archive(arguments) => runtime.block_on(day_two::archive(arguments)),
        DbCommand::Drill(arguments) => runtime.block_on(day_two::drill(arguments)),
    }
}

fn failed(error: StageError) -> Failure {
    Failure::failed(error.chain())
}

impl Target {
    /// The plan and the databases that are meant.
    fn open(&self) -> Result<(Plan, Vec<PipelineDatabase>), Failure> {
        let plan = load(&self.file)?;
        let mut found = databases(&plan);
        if found.is_empty() {
            return Err(Failure::Wrong(format!(
                "error: no sink of {} is of type \"timescaledb\"",
                self.file.display()
            )));
        }
        let names: Vec<String> = found.iter().map(|database| format!("\"{}\"", database.name())).collect();
        if let Some(name) = &self.database {
            found.retain(|database| database.name() == *name);
            if found.is_empty() {
                return Err(Failure::Wrong(format!(
                    "error: no sink stores in the database \"{name}\"\n  = hint: These are there: {}.",
                    names.join(", ")
                )));
            }
        }
        if let Some(url) = &self.login {
            if found.len() > 1 {
                let hint = "One login is for one database: name it by --database.";
                return Err(Failure::Wrong(format!("error: the sinks store in several databases\n  = hint: {hint}")));
            }
            let login = pipeline_stages::db::login(url, plan.name())
                .map_err(|error| Failure::Wrong(format!("error: the login can't be used: {}", error.chain())))?;
            if login.database() != found[0].name() {
                let hint = "By --login or PIPELINE_DB_URL another user is named, not another database.";
                return Err(Failure::Wrong(format!(
                    "error: the login is to the database \"{}\", and the sinks store in \"{}\"\n  = hint: {hint}",
                    login.database(),
                    found[0].name()
                )));
            }
            found = found.into_iter().map(|database| database.by_login(&login)).collect();
        }
        Ok((plan, found))
    }

    /// The one that is meant, for what can't be done to several.
    fn open_one(&self) -> Result<(Plan, PipelineDatabase), Failure> {
        let (plan, mut found) = self.open()?;
        if found.len() > 1 {
            let names: Vec<String> = found.iter().map(|database| format!("\"{}\"", database.name())).collect();
            return Err(Failure::Wrong(format!(
                "error: the sinks store in several databases\n  = hint: Name one by --database: {}.",
                names.join(", ")
            )));
        }
        Ok((plan, found.remove(0)))
    }
}

/// Makes a script for each database, and prints or runs it.
async fn each(
    target: Target,
    dry_run: bool,
    yes: bool,
    make: impl AsyncFn(&PipelineDatabase) -> Result<Script, StageError>,
) -> Result<(), Failure> {
    for database in target.open()?.1 {
        let script = make(&database).await.map_err(failed)?;
        carry_out(&database, &script, dry_run, yes).await?;
    }
    Ok(())
}

async fn carry_out(database: &PipelineDatabase, script: &Script, dry_run: bool, yes: bool) -> Result<(), Failure> {
    if dry_run {
        println!("-- database {}", database.place());
        print!("{script}");
        return Ok(());
    }
    for note in &script.notes {
        eprintln!("note: {note}");
    }
    if !script.drops.is_empty() && !yes {
        let question = format!("Drop {} for good?", script.drops.join("; and "));
        if !confirmed(&question)? {
            println!("nothing was done");
            return Ok(());
        }
    }
    if script.steps.is_empty() {
        println!("{}: nothing to do", database.place());
        return Ok(());
    }
    database.run(script, |step| println!("done: {}", step.why)).await.map_err(failed)
}

async fn init(arguments: InitArguments) -> Result<(), Failure> {
    let options = InitOptions { without_roles: arguments.no_roles };
    each(arguments.target, arguments.dry_run, true, async |database| database.init(&options).await).await
}

async fn status(arguments: StatusArguments) -> Result<(), Failure> {
    let unknown = |text: String| {
        println!("UNKNOWN: {text}");
        Failure::Told(doctor::Status::Unknown.exit_code())
    };
    let (plan, found) = match arguments.target.open() {
        Ok(opened) => opened,
        Err(Failure::Failed(text) | Failure::Wrong(text)) => return Err(unknown(text)),
        Err(told) => return Err(told),
    };
    let mut all = Vec::new();
    for database in &found {
        match database.status().await {
            Ok(status) => all.push(status),
            Err(error) => {
                println!("CRITICAL: {}", error.chain());
                return Err(Failure::Told(doctor::Status::Critical.exit_code()));
            }
        }
    }
    let last_backup = found.first().and_then(PipelineDatabase::last_backup);
    let overview = status::Overview {
        pipeline: plan.name().to_owned(),
        databases: all,
        backup: status::backup_finding(last_backup.as_ref(), arguments.backup_max_age),
        last_backup,
    };
    if arguments.json {
        println!("{}", overview.json());
    } else {
        print!("{}", overview.text());
    }
    match overview.status().exit_code() {
        0 => Ok(()),
        code => Err(Failure::Told(code)),
    }
}
