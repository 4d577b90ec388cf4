//! `pipeline db backup`, `restore`, `archive` and `drill`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use pipeline_stages::db::{ArchiveOptions, Manifest, Place, SinkLake, Tools, lakes};

use super::{Target, failed};
use crate::commands::{Failure, confirmed};
use crate::db::outcome;

/// Dump the database by pg_dump, read the dump back, and call it the newest backup.
///
/// Beside the dump lies what it holds: counts and checksums of all tables and the positions of the sinks, of the very same
/// moment. The pipeline may run meanwhile.
#[derive(Debug, Args)]
pub(super) struct BackupArguments {
    #[command(flatten)]
    target: Target,
    /// A folder, or s3://bucket/prefix with AWS's own variables.
    #[arg(long, value_name = "PLACE")]
    to: String,
    /// Afterwards, delete backups of this database that are older.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    keep: Option<Duration>,
    /// Go on with a place whose backups are of another server: after this one was restored from there, or upgraded.
    #[arg(long)]
    take_over: bool,
    /// Where pg_dump and pg_restore are. Default: PATH, and where distributions keep them.
    #[arg(long, value_name = "FOLDER")]
    tools: Option<PathBuf>,
    /// Print the manifest as JSON.
    #[arg(long)]
    json: bool,
}

/// Bring a backup back: into a scratch database, compared with its manifest, up to date from the lake, and then in the
/// place of the database.
///
/// Stop the pipeline first. The database that was there is kept under another name. When the pipeline starts again it
/// goes on from the restored positions.
#[derive(Debug, Args)]
pub(super) struct RestoreArguments {
    #[command(flatten)]
    target: Target,
    /// Where backups lie.
    #[arg(long, value_name = "PLACE")]
    from: String,
    /// Which one, by its name. Default: the newest.
    #[arg(long, value_name = "NAME")]
    backup: Option<String>,
    /// List the backups and do nothing.
    #[arg(long)]
    list: bool,
    /// Leave the tables as of the backup: nothing is put in from the lake.
    #[arg(long)]
    no_catch_up: bool,
    /// Afterwards, have the next run read the spools again from their oldest record, with transforms as new: for tables that
    /// no lake has. Sinks leave out what they have; what is published or printed comes again.
    #[arg(long)]
    rewind: bool,
    /// Send away whoever is still connected and is no pipeline.
    #[arg(long)]
    disconnect: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Where pg_restore is. Default: PATH, and where distributions keep it.
    #[arg(long, value_name = "FOLDER")]
    tools: Option<PathBuf>,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
}

/// Move old rows to Parquet: exported, read back, compared by the server, and only then dropped.
///
/// By whole chunks, or days where a table is no hypertable. Whatever ends it midway, the rows are in the table or in
/// objects that were proven; run it again, and it goes on.
#[derive(Debug, Args)]
pub(super) struct ArchiveArguments {
    #[command(flatten)]
    target: Target,
    /// Rows that are older than this: 90d.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Duration,
    /// A folder, or s3://bucket/prefix with AWS's own variables. Not needed with --dry-run.
    #[arg(long, value_name = "PLACE", required_unless_present = "dry_run")]
    to: Option<String>,
    /// Only the table of this sink; may be given several times.
    #[arg(long, value_name = "SINK")]
    sink: Vec<String>,
    /// Tell what would be archived, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// Try the whole way back: the newest backup into a scratch database, up to date from the lake, compared with all that is
/// known.
///
/// Nothing that the pipeline uses is touched, and it may run meanwhile. Tells how much time would be lost (RPO) and how
/// long it takes (RTO). Exits with 1 if a row is missing.
#[derive(Debug, Args)]
pub(super) struct DrillArguments {
    #[command(flatten)]
    target: Target,
    /// Where backups lie.
    #[arg(long, value_name = "PLACE")]
    from: String,
    /// How long to wait for the lake to come to where the live tables are.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Where pg_restore is. Default: PATH, and where distributions keep it.
    #[arg(long, value_name = "FOLDER")]
    tools: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn backup(arguments: BackupArguments) -> Result<(), Failure> {
    let (_, found) = arguments.target.open()?;
    let place = Place::open(&arguments.to).await.map_err(failed)?;
    for database in found {
        let tools = database.tools(arguments.tools.as_deref()).await.map_err(failed)?;
        let made = database.back_up(&place, &tools, arguments.keep, arguments.take_over).await;
        let manifest = made.map_err(failed)?;
        if arguments.json {
            println!("{}", serde_json::to_string(&manifest).map_err(Failure::failed)?);
        } else {
            println!("{}", outcome::backup(&manifest, place.shown()));
        }
    }
    Ok(())
}

pub(super) async fn restore(arguments: RestoreArguments) -> Result<(), Failure> {
    let (plan, database) = arguments.target.open_one()?;
    let place = Place::open(&arguments.from).await.map_err(failed)?;
    if arguments.list {
        for manifest in Manifest::all(&place, &database.name()).await.map_err(failed)? {
            println!("{}", outcome::backup(&manifest, place.shown()));
        }
        return Ok(());
    }
    let tools: Tools = database.tools(arguments.tools.as_deref()).await.map_err(failed)?;
    let which = arguments.backup.as_deref().unwrap_or("the newest backup");
    let question = format!("Put {which} from {} in the place of {}?", place.shown(), database.place());
    if !arguments.yes && !confirmed(&question)? {
        println!("nothing was done");
        return Ok(());
    }
    let mut lakes: Vec<SinkLake> = if arguments.no_catch_up { Vec::new() } else { lakes(&plan) };
    let done = database.restore(&place, arguments.backup.as_deref(), &tools, &mut lakes, arguments.disconnect).await;
    let done = done.map_err(failed)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&done).map_err(Failure::failed)?);
    } else {
        print!("{}", outcome::restored(&done, &database.name()));
    }
    if arguments.rewind {
        let rewound = plan.rewind().map_err(|error| {
            Failure::failed(format!("the database is restored, and the spools are not rewound: {error}"))
        })?;
        if rewound.is_empty() {
            eprintln!("{}", outcome::NOTHING_REWOUND);
        }
        for (source, oldest_us) in rewound {
            eprintln!("{}", outcome::rewound(&source, oldest_us));
        }
    }
    Ok(())
}

pub(super) async fn archive(arguments: ArchiveArguments) -> Result<(), Failure> {
    let (_, database) = arguments.target.open_one()?;
    let options = ArchiveOptions { older_than: arguments.older_than, sinks: arguments.sink };
    let due = database.to_archive(&options).await.map_err(failed)?;
    let Some(to) = arguments.to.filter(|_| !arguments.dry_run) else {
        for parcel in &due {
            println!("{}", outcome::due(parcel));
        }
        println!("{} parcels would be archived", due.len());
        return Ok(());
    };
    if due.is_empty() {
        println!("nothing is older");
        return Ok(());
    }
    let question = format!("Move {} parcels of {} to {to}?", due.len(), database.place());
    if !arguments.yes && !confirmed(&question)? {
        println!("nothing was done");
        return Ok(());
    }
    let place = Place::open(&to).await.map_err(failed)?;
    database.archive(&place, &options, |done| println!("{}", outcome::archived(done))).await.map_err(failed)
}

pub(super) async fn drill(arguments: DrillArguments) -> Result<(), Failure> {
    let (plan, database) = arguments.target.open_one()?;
    let place = Place::open(&arguments.from).await.map_err(failed)?;
    let tools = database.tools(arguments.tools.as_deref()).await.map_err(failed)?;
    let mut lakes = lakes(&plan);
    let report = database.drill(&plan, &place, &tools, &mut lakes, arguments.patience).await.map_err(failed)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&report).map_err(Failure::failed)?);
    } else {
        print!("{}", outcome::drill(&report));
    }
    if report.passed() { Ok(()) } else { Err(Failure::Told(1)) }
}
