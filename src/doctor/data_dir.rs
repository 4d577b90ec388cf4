//! The data directory: is it there, is there room, how long a sync takes, who uses it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pipeline_engine::stage::DiskBounds;
use pipeline_engine::storage::{FsStorage, Storage};
use pipeline_engine::units::SizeText;
use pipeline_engine::{Finding, Plan, Verdict};

use super::filesystem::{self, Trouble};

const OWN_DISK: &str =
    "Set \"data_dir\" in [pipeline] to a folder on a local disk that the pipeline's user may write to.";
/// A spool syncs each group of messages: with slower disks the broker waits for acknowledgements.
const SYNC_SLOW: Duration = Duration::from_millis(50);
/// Enough for a median that a single hiccup does not move.
const SYNCS: usize = 15;
/// A group of messages on a quiet day.
const BLOCK: [u8; 4096] = [0; 4096];
/// What the lock of a run is called.
const LOCK: &str = "lock";
const IN_USE: &str = "in use";

fn finding(check: &'static str, verdict: Verdict, found: impl Into<String>, fix: Option<&str>) -> Finding {
    Finding { check, verdict, found: found.into(), fix: fix.map(str::to_owned) }
}

/// The disk could not be looked at.
pub fn not_looked_at(why: &str) -> Finding {
    finding(
        "write",
        Verdict::Fail,
        why,
        Some("Look at the disk and its mount: a file system behind a network hangs so."),
    )
}

/// All checks of the directory; leaves nothing there.
pub fn examine(plan: &Plan) -> Vec<Finding> {
    let dir = plan.data_dir();
    let mut findings = Vec::new();
    let Some(base) = nearest(dir) else {
        findings.push(finding(
            "write",
            Verdict::Fail,
            format!("no folder above \"{}\" is there", dir.display()),
            Some(OWN_DISK),
        ));
        return findings;
    };
    findings.push(kind(dir, &base));
    let writable = write(&base, dir, &mut findings);
    findings.extend(room(plan, &base));
    if writable {
        findings.extend(lock(dir));
    }
    findings.extend(spools(plan));
    findings
}

/// The directory itself, or the folder above it that it would be made in.
fn nearest(dir: &Path) -> Option<PathBuf> {
    let here = |folder: &Path| if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() };
    dir.ancestors().map(here).find(|folder| folder.exists())
}

fn kind(dir: &Path, base: &Path) -> Finding {
    let there = if dir.exists() { "is there" } else { "will be created" };
    let place = format!("\"{}\" {there}", dir.display());
    match filesystem::kind_of(base) {
        None => finding("file system", Verdict::Pass, place, None),
        Some(kind) => match Trouble::of(&kind) {
            None => finding("file system", Verdict::Pass, format!("{place}, on {kind}"), None),
            Some(trouble) => {
                let (what, fix) = trouble.words();
                finding("file system", Verdict::Warn, format!("{place}, on {kind}, {what}"), Some(fix))
            }
        },
    }
}

/// Writes and syncs a file of its own, and takes it away. False where that can't be.
fn write(base: &Path, dir: &Path, findings: &mut Vec<Finding>) -> bool {
    let path = base.join(format!(".pipeline-doctor-{}", std::process::id()));
    let measured = syncs(&path);
    let removed = fs::remove_file(&path);
    let mut syncs = match measured.and_then(|syncs| removed.map(|()| syncs)) {
        Ok(syncs) => syncs,
        Err(error) => {
            findings.push(not_written(dir, &error));
            return false;
        }
    };
    findings.push(finding("write", Verdict::Pass, "a file was written, synced and removed", None));
    syncs.sort_unstable();
    let (median, longest) = (syncs[syncs.len() / 2], syncs[syncs.len() - 1]);
    let shown = |took: Duration| format!("{:.1} ms", took.as_secs_f64() * 1e3);
    let found = format!("a sync takes {} in the middle of {SYNCS}, {} at most", shown(median), shown(longest));
    findings.push(if median > SYNC_SLOW {
        finding("sync", Verdict::Warn, found, Some("Use a faster disk: each message is acknowledged after a sync."))
    } else {
        finding("sync", Verdict::Pass, found, None)
    });
    true
}

fn syncs(path: &Path) -> io::Result<Vec<Duration>> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let mut took = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&BLOCK)?;
        let began = Instant::now();
        file.sync_data()?;
        took.push(began.elapsed());
    }
    Ok(took)
}

fn not_written(dir: &Path, error: &io::Error) -> Finding {
    let place = dir.display();
    let (found, fix) = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            (format!("the disk of \"{place}\" is full"), "Make room: a pipeline that runs goes on by itself.")
        }
        ErrorKind::ReadOnlyFilesystem => (
            format!("\"{place}\" is on a file system that is mounted read-only"),
            "Mount it writable; after an error a system mounts it read-only by itself: look at the kernel's log.",
        ),
        ErrorKind::PermissionDenied => (
            format!("this user may not write to \"{place}\""),
            "Give the folder to the user that runs the pipeline (chown), and ask as that user.",
        ),
        ErrorKind::NotADirectory => (format!("a file is where the folder \"{place}\" should be"), OWN_DISK),
        _ => (format!("\"{place}\" can't be written to: {error}"), OWN_DISK),
    };
    finding("write", Verdict::Fail, found, Some(fix))
}

/// Free space against what may come to lie there.
fn room(plan: &Plan, base: &Path) -> Option<Finding> {
    let free = match FsStorage.free_space(base) {
        Ok(free) => free,
        Err(error) => {
            let found = format!("free space is unknown: {error}");
            return Some(finding("free space", Verdict::Warn, found, Some("Look with df.")));
        }
    };
    let bounds = plan.disk_bounds();
    let shown = SizeText(free);
    if let Some((stage, _, bound)) = bounds.iter().find(|(.., bound)| free < bound.free_bytes_min) {
        let floor = SizeText(bound.free_bytes_min);
        let found =
            format!("{shown} are free, and \"{stage}\" takes in nothing while less than {floor} are (spool.min_free)");
        return Some(finding(
            "free space",
            Verdict::Fail,
            found,
            Some("Make room, or lower `min_free` in the source's spool."),
        ));
    }
    let most: u64 = bounds.iter().map(|(.., bound)| bound.bytes_max).fold(0, u64::saturating_add);
    let floor = bounds.iter().map(|(.., bound)| bound.free_bytes_min).max().unwrap_or(0);
    let to_come = most.saturating_sub(bytes_below(plan.data_dir()));
    if free < to_come.saturating_add(floor) {
        let found = format!(
            "{shown} are free, and an outage may need {} more ({}), with {} left free: the disk fills up before the \
             bounds hold",
            SizeText(to_come),
            what_may_come(&bounds),
            SizeText(floor)
        );
        let fix = "Set `spool.max` of the sources and `overflow_max` in [pipeline] to what the disk has, or use a larger one.";
        return Some(finding("free space", Verdict::Warn, found, Some(fix)));
    }
    Some(finding("free space", Verdict::Pass, format!("{shown} are free, {} may be needed", SizeText(to_come)), None))
}

/// Each spool by its name, and in front of sinks, where all have the same room, how often.
fn what_may_come(bounds: &[(&str, &str, DiskBounds)]) -> String {
    let (spools, overflows): (Vec<_>, Vec<_>) = bounds.iter().partition(|(_, what, _)| *what == "spool");
    let mut parts: Vec<String> = spools
        .iter()
        .map(|(stage, _, bound)| format!("{} in the spool of \"{stage}\"", SizeText(bound.bytes_max)))
        .collect();
    if let Some((.., bound)) = overflows.first() {
        let inputs =
            if overflows.len() == 1 { "the one input" } else { &format!("each of the {} inputs", overflows.len()) };
        parts.push(format!("{} before {inputs} of sinks", SizeText(bound.bytes_max)));
    }
    parts.join(", ")
}

/// What lies in a folder; what can't be read counts as nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |file| file.len()),
        _ => 0,
    });
    bytes.fold(0, u64::saturating_add)
}

/// Whether a run has the directory. The lock is given back at once.
fn lock(dir: &Path) -> Option<Finding> {
    let path = dir.join(LOCK);
    // Never made here: a run makes it.
    let file = File::open(&path).ok()?;
    match file.try_lock() {
        Ok(()) => Some(finding(IN_USE, Verdict::Pass, "no run has it now", None)),
        Err(TryLockError::WouldBlock) => {
            let holder = filesystem::holder_of(&path).map(|pid| format!(", process {pid}")).unwrap_or_default();
            let found = format!(
                "\"{}\" is in use by a run of this pipeline{holder}: a second one would not start",
                dir.display()
            );
            let fix = "If that is the pipeline as it should run, nothing; else stop it, or give this one a \"data_dir\" of its own.";
            Some(finding(IN_USE, Verdict::Warn, found, Some(fix)))
        }
        Err(TryLockError::Error(error)) => {
            let found = format!("this file system can't lock \"{}\": {error}", path.display());
            Some(finding(IN_USE, Verdict::Fail, found, Some(OWN_DISK)))
        }
    }
}

/// That a run has the directory is as it should be, where it answers at the pipeline's own address.
pub fn excuse_the_running_pipeline(mut findings: Vec<Finding>, runs: bool) -> Vec<Finding> {
    for finding in
        findings.iter_mut().filter(|finding| runs && finding.check == IN_USE && finding.verdict == Verdict::Warn)
    {
        finding.verdict = Verdict::Pass;
        finding.fix = None;
    }
    findings
}

/// Spools that nobody reads any more.
fn spools(plan: &Plan) -> Vec<Finding> {
    let found = match plan.spools() {
        Ok(found) => found,
        Err(error) => {
            let found = format!("\"{}\" can't be read: {error}", plan.data_dir().display());
            return vec![finding("spools", Verdict::Fail, found, Some(OWN_DISK))];
        }
    };
    let orphaned = found.iter().filter(|spool| spool.orphaned && bytes_below(&spool.dir) > 0);
    let orphaned = orphaned.map(|spool| {
        let found = format!(
            "the spool of \"{}\" is left ({}), and the pipeline has no such source any more: nobody reads what is in it",
            spool.source,
            SizeText(bytes_below(&spool.dir))
        );
        let fix = format!(
            "See what it holds with `pipeline spool`; name a source \"{}\" again to have it stored, or delete \"{}\".",
            spool.source,
            spool.dir.display()
        );
        finding("spools", Verdict::Warn, found, Some(&fix))
    });
    orphaned.collect()
}
