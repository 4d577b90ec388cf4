//! Scores the transform `anomaly` on the Numenta Anomaly Benchmark, by its published rules.
//!
//! ```sh
//! cargo run --release --example nab -- FOLDER [METHOD | KEY=VALUE]...
//! ```
//!
//! FOLDER holds `windows.json` and the series, or is a checkout of the benchmark. Each method runs as it
//! ships, with nothing set but its name and what is given as KEY=VALUE (`cooldown="1d"`); each series is a device of its own, read once and in order. It prints
//!
//! - the benchmark's figure: one threshold for all series, the one that is best for them, over the scores;
//! - the same with the threshold that ships: what is scored then are the alerts, rows of the port `anomalies`;
//! - the figure of each folder at the threshold that is best for all *other* folders;
//! - false alarms a device and day on the series without anomalies;
//! - what became of each file.

mod corpus;
mod scoring;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

#[path = "detect.rs"]
mod detect;

use self::corpus::Series;
use self::detect::Detections;
use self::scoring::{Outcome, PROFILES, Scored, at_threshold, best_threshold, normalised};

const METHODS: [&str; 7] = ["auto", "zscore", "ewma", "robust", "seasonal", "rate", "flatline"];

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = PathBuf::from(arguments.next().context("usage: nab FOLDER [METHOD | KEY=VALUE]...")?);
    let words = arguments.map(|word| word.to_string_lossy().into_owned());
    let (settings, chosen): (Vec<String>, Vec<String>) = words.partition(|word| word.contains('='));
    let settings = settings.join("\n");
    let (series, missing) = corpus::read(&folder)?;
    ensure!(!series.is_empty(), "there is no series in {}", folder.display());
    let rows: usize = series.iter().map(|series| series.values.len()).sum();
    let windows: usize = series.iter().map(|series| series.labels.windows.len()).sum();
    println!("{} series, {rows} rows, {windows} windows; {missing} labelled series are not there\n", series.len());
    for method in METHODS.iter().filter(|method| chosen.is_empty() || chosen.iter().any(|word| word == *method)) {
        let found: Result<Vec<Detections>> =
            series.iter().map(|series| detect::run(series, method, &settings)).collect();
        report(method, &series, &found?);
    }
    Ok(())
}

/// All that is said of one method.
fn report(method: &str, series: &[Series], found: &[Detections]) {
    let all: Vec<Scored<'_>> = scored(series, found, |_| true);
    let windows: usize = series.iter().map(|series| series.labels.windows.len()).sum();
    println!("{method}");
    for profile in &PROFILES {
        let threshold = best_threshold(&all, profile);
        let best = at_threshold(&all, threshold, profile);
        let shipped = total(
            series
                .iter()
                .zip(found)
                .map(|(series, found)| series.labels.outcome(found.alerts.iter().copied(), profile)),
        );
        println!(
            "  {:<20} best threshold {:>6.2}: {}   as it ships: {}",
            profile.name,
            threshold,
            told(&best, windows, profile),
            told(&shipped, windows, profile),
        );
    }
    let mut folders: Vec<&str> = series.iter().map(Series::folder).collect();
    folders.dedup();
    for folder in folders {
        let profile = &PROFILES[0];
        let here = scored(series, found, |series| series.folder() == folder);
        let windows: usize = here.iter().map(|(labels, _)| labels.windows.len()).sum();
        let threshold = best_threshold(&scored(series, found, |series| series.folder() != folder), profile);
        let outcome = at_threshold(&here, threshold, profile);
        println!("  {folder:<24} at the others' threshold {threshold:>6.2}: {}", told(&outcome, windows, profile));
    }
    let clean = series.iter().zip(found).filter(|(series, _)| series.labels.windows.is_empty());
    let (alerts, days) =
        clean.fold((0, 0.0), |(alerts, days), (series, found)| (alerts + found.alerts.len(), days + series.days()));
    println!("  series without anomalies: {alerts} alerts in {days:.1} device-days, {:.3} a day", alerts as f64 / days);
    for (series, found) in series.iter().zip(found) {
        let outcome = series.labels.outcome(found.alerts.iter().copied(), &PROFILES[0]);
        println!(
            "    {:<58} {} of {} windows, {:>3} false alarms, {:>6.2}",
            series.name,
            outcome.found,
            series.labels.windows.len(),
            outcome.false_alarms,
            outcome.raw,
        );
    }
    println!();
}

fn scored<'a>(series: &'a [Series], found: &'a [Detections], is_meant: impl Fn(&Series) -> bool) -> Vec<Scored<'a>> {
    let pairs = series.iter().zip(found).filter(|(series, _)| is_meant(series));
    pairs.map(|(series, found)| (&series.labels, found.scores.as_slice())).collect()
}

fn total(outcomes: impl Iterator<Item = Outcome>) -> Outcome {
    outcomes.fold(Outcome::default(), |sum, outcome| Outcome {
        found: sum.found + outcome.found,
        false_alarms: sum.false_alarms + outcome.false_alarms,
        raw: sum.raw + outcome.raw,
    })
}

fn told(outcome: &Outcome, windows: usize, profile: &scoring::Profile) -> String {
    let score = normalised(outcome.raw, windows, profile).map_or("     -".to_owned(), |score| format!("{score:>6.1}"));
    format!("{score} ({} of {windows} windows, {} false alarms)", outcome.found, outcome.false_alarms)
}
