//! `pipeline spool FILE`: what the spools of a pipeline hold, whether it is damaged, and how to get it
//! out.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use pipeline_engine::spool::{FsStorage, Inspection, SegmentInspection, SpoolError, export, inspect, verify};
use pipeline_engine::time::{format_age, format_us};
use pipeline_engine::units::SizeText;
use pipeline_engine::{SpoolPlace, now_us};
use serde_json::json;

use super::{Failure, load};

/// Show what the spools of a pipeline hold. Changes nothing, and works while the pipeline runs.
///
/// Exits with 1 if damage is found.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SpoolArguments {
    #[command(subcommand)]
    command: Option<SpoolCommand>,
    #[command(flatten)]
    place: Option<Place>,
    /// Read everything and compare every checksum, not only what is newest.
    #[arg(long)]
    verify: bool,
    /// Print one JSON object for each spool.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum SpoolCommand {
    Export(ExportArguments),
}

/// Write the records of a spool to stdout as JSON lines: `lsn`, `received_at`, `topic`, `payload` (or
/// `payload_base64` where it is no text), and the source's `flags` and `mark` if any are set.
///
/// Takes out whatever is undamaged; what can't be read is said on stderr, and the exit code is 1 then.
/// For a spool that is damaged, or whose source is no longer in the pipeline file.
#[derive(Debug, Args)]
struct ExportArguments {
    #[command(flatten)]
    place: Place,
    /// The source whose spool it is, if the pipeline has several.
    #[arg(long, value_name = "NAME", conflicts_with = "dir")]
    source: Option<String>,
    /// The first record to write.
    #[arg(long, value_name = "LSN", default_value_t = 1)]
    from: u64,
    /// The last record to write.
    #[arg(long, value_name = "LSN", default_value_t = u64::MAX, hide_default_value = true)]
    to: u64,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// The pipeline file.
    file: Option<PathBuf>,
    /// The directory of one spool, such as DATA_DIR/PIPELINE/SOURCE/spool.
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub fn run(arguments: SpoolArguments) -> Result<(), Failure> {
    if let Some(SpoolCommand::Export(arguments)) = arguments.command {
        return export_one(&arguments);
    }
    let Some(place) = arguments.place else {
        return Err(Failure::Wrong("error: no pipeline file is given".to_owned()));
    };
    let mut damaged = 0;
    for place in spools(&place)? {
        let look = if arguments.verify { verify } else { inspect };
        let found = look(&place.dir, &FsStorage).map_err(failed)?;
        damaged += usize::from(!found.is_sound());
        if arguments.json {
            println!("{}", as_json(&place, &found, arguments.verify));
        } else {
            print!("{}", as_text(&place, &found, arguments.verify));
        }
    }
    match damaged {
        0 => Ok(()),
        1 => Err(Failure::failed("a spool is damaged")),
        many => Err(Failure::failed(format!("{many} spools are damaged"))),
    }
}

fn failed(error: SpoolError) -> Failure {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    Failure::Failed(format!("error: {error}{cause}"))
}

fn spools(place: &Place) -> Result<Vec<SpoolPlace>, Failure> {
    let Some(file) = &place.file else {
        let dir = place.dir.clone().unwrap_or_default();
        return Ok(vec![SpoolPlace { source: String::new(), dir, orphaned: false }]);
    };
    let plan = load(file)?;
    let found = plan.spools().map_err(|error| {
        Failure::failed(format!("can't read the data directory \"{}\": {error}", plan.data_dir().display()))
    })?;
    if found.is_empty() {
        let dir = plan.data_dir().display();
        return Err(Failure::failed(format!(
            "there is no spool in \"{dir}\": the pipeline has not run here yet, or none of its sources keeps one"
        )));
    }
    Ok(found)
}

fn export_one(arguments: &ExportArguments) -> Result<(), Failure> {
    let mut found = spools(&arguments.place)?;
    let names: Vec<String> = found.iter().map(|place| format!("\"{}\"", place.source)).collect();
    if let Some(source) = &arguments.source {
        found.retain(|place| place.source == *source);
    }
    let place = match &found[..] {
        [only] => only,
        [] => return Err(Failure::Wrong(format!("error: spools are there of {}, no other", names.join(", ")))),
        _ => return Err(Failure::Wrong(format!("error: say which with --source: {}", names.join(", ")))),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut outcome = Ok(());
    let found = export(&place.dir, &FsStorage, arguments.from..=arguments.to, |exported| {
        outcome = writeln!(out, "{}", exported.json());
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let found = found.map_err(failed)?;
    match outcome.and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(error) => return Err(Failure::failed(format!("can't write to stdout: {error}"))),
        Ok(()) => {}
    }
    eprint!("{}", damage_text(&found));
    if found.is_sound() { Ok(()) } else { Err(Failure::failed("not every record could be read")) }
}

fn as_json(place: &SpoolPlace, found: &Inspection, verified: bool) -> serde_json::Value {
    let lags: serde_json::Map<_, _> =
        found.cursors.iter().map(|(name, lsn)| (name.clone(), found.lag_records(*lsn).into())).collect();
    json!({
        "source": (!place.source.is_empty()).then_some(&place.source),
        "dir": place.dir.display().to_string(),
        "orphaned": place.orphaned,
        "verified": verified,
        "sound": found.is_sound(),
        "lag_records": lags,
        "spool": found,
    })
}

fn as_text(place: &SpoolPlace, found: &Inspection, verified: bool) -> String {
    let mut text = match place.source.as_str() {
        "" => format!("spool {}\n", place.dir.display()),
        source => format!("spool of source \"{source}\": {}\n", place.dir.display()),
    };
    if place.orphaned {
        text +=
            "  orphaned: the pipeline has no source of that name, so nobody reads it; `pipeline spool export` does\n";
    }
    let received = found.oldest_received_at_us.map(|us| format!(", the oldest received at {}", format_us(us)));
    text += &match &found.lsns {
        Some(lsns) => format!("  records {} to {}{}\n", lsns.start(), lsns.end(), received.unwrap_or_default()),
        None => "  no records\n".to_owned(),
    };
    text += &format!("  {} segments, {}\n", found.segments.len(), SizeText(found.bytes));
    for segment in &found.segments {
        text += &segment_text(segment);
    }
    for (name, lsn) in &found.cursors {
        text += &format!("  cursor {name}: has passed {lsn}, {} records behind\n", found.lag_records(*lsn));
    }
    if found.cursors.is_empty() {
        text += "  no cursors: no sink has come past a record yet\n";
    }
    text += &damage_text(found);
    if found.is_sound() {
        text += if verified {
            "  sound: every record was read\n"
        } else {
            "  sound as far as it was read; --verify reads everything\n"
        };
    }
    text
}

fn segment_text(segment: &SegmentInspection) -> String {
    let lsns = segment.lsns.as_ref().map_or("none".to_owned(), |lsns| format!("{} to {}", lsns.start(), lsns.end()));
    // What wasn't read answers for as many records as its numbers say.
    let numbers = segment.lsns.as_ref().map_or(0, |lsns| lsns.end() - lsns.start() + 1);
    let records = segment.counts.map_or(numbers, |counts| counts.records);
    let age = segment.opened_at_us.map_or("of unknown age".to_owned(), |us| {
        let age = Duration::from_micros(u64::try_from(now_us().saturating_sub(us)).unwrap_or(0));
        format!("{} old", format_age(age))
    });
    let (name, size, state) = (&segment.name, SizeText(segment.bytes), segment.state);
    format!("  segment {name}: {records} records ({lsns}), {size}, {age}, {state}\n")
}

fn damage_text(found: &Inspection) -> String {
    let mut text = String::new();
    for damage in &found.damage {
        text += &format!("  damage: {damage}\n");
    }
    let unlisted = found.damage_total.saturating_sub(found.damage.len() as u64);
    if unlisted > 0 {
        text += &format!("  damage: {unlisted} more places\n");
    }
    if found.damage_total > 0 {
        text +=
            &format!("  damage: {} records are lost in all; the pipeline goes on without them\n", found.records_lost);
    }
    if found.cursors_damaged {
        text += "  damage: the file \"cursors\" can't be read; at the next start each sink's own record counts\n";
    }
    for copy in &found.quarantine {
        text += &format!("  quarantine: {} ({})\n", copy.path, SizeText(copy.bytes));
    }
    if let Some(torn) = &found.torn_tail {
        text += &format!("  note: {torn}\n");
    }
    text
}
