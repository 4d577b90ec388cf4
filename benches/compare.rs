//! Holds what criterion has measured last against the recorded baseline: a regression of a fifth shows, and ends with 1.
//!
//! ```sh
//! benches/regressions                        # runs the suites, then this
//! cargo bench --bench compare                # this alone, on what was measured last
//! cargo bench --bench compare -- --record    # makes what was measured last the baseline
//! ```
//!
//! Machines differ, and one machine differs from hour to hour. So each bench is held against the middle of all: where
//! all take twice as long, the machine is to blame (or everything is: that is told too); where one does, the code is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Slower than the baseline by more than this, beyond what all are, is a regression.
const SLOWER_MAX: f64 = 1.2;

/// Nanoseconds of an iteration by bench.
type Times = BTreeMap<String, f64>;

fn main() -> ExitCode {
    // `cargo test --benches` asks whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    let baseline = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/baseline.json");
    let mut now = Times::new();
    collect(&criterion_folder(), &mut now);
    if now.is_empty() {
        eprintln!("error: nothing has been measured here yet: run `cargo bench`, or benches/regressions");
        return ExitCode::from(2);
    }
    if std::env::args().any(|argument| argument == "--record") {
        let text = serde_json::to_string_pretty(&now).expect("numbers");
        fs::write(&baseline, text + "\n").expect("benches/baseline.json can be written");
        println!("{} benches are the baseline now: benches/baseline.json", now.len());
        return ExitCode::SUCCESS;
    }
    let text = fs::read_to_string(&baseline).expect("benches/baseline.json");
    let before: Times = serde_json::from_str(&text).expect("benches/baseline.json is what --record writes");
    compare(&before, &now)
}

fn compare(before: &Times, now: &Times) -> ExitCode {
    let ratios: Vec<(&str, f64, f64)> =
        now.iter().filter_map(|(name, time)| before.get(name).map(|was| (name.as_str(), *time, time / was))).collect();
    let machine = median(ratios.iter().map(|(.., ratio)| *ratio).collect());
    println!("{} benches; the middle of all takes {machine:.2} times what it took.\n", ratios.len());
    println!("| bench | ns an iteration | to the baseline | beyond the middle |\n|---|---|---|---|");
    let mut slower = Vec::new();
    for (name, time, ratio) in &ratios {
        let beyond = ratio / machine;
        let mark = if beyond > SLOWER_MAX { " **slower**" } else { "" };
        println!("| {name} | {time:.0} | {ratio:.2} | {beyond:.2}{mark} |");
        if beyond > SLOWER_MAX {
            slower.push(*name);
        }
    }
    let unknown = now.keys().filter(|name| !before.contains_key(*name)).count();
    let missing: Vec<&str> = before.keys().filter(|name| !now.contains_key(*name)).map(String::as_str).collect();
    println!("\nWithout a baseline: {unknown}. Not measured here: {}.", missing.len());
    if slower.is_empty() {
        println!("None is slower by more than {:.0}%.", (SLOWER_MAX - 1.0) * 100.0);
        ExitCode::SUCCESS
    } else {
        println!(
            "Slower by more than {:.0}%: {}. Measure again before you believe it.",
            (SLOWER_MAX - 1.0) * 100.0,
            slower.join(", ")
        );
        ExitCode::FAILURE
    }
}

/// Where criterion keeps what it measures.
fn criterion_folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target")).join("criterion")
}

/// Every `BENCH/new/estimates.json` below a folder.
fn collect(folder: &Path, times: &mut Times) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        if path.file_name().is_some_and(|name| name == "new") {
            let read = |file: &str| -> Option<serde_json::Value> {
                serde_json::from_str(&fs::read_to_string(path.join(file)).ok()?).ok()
            };
            let name = read("benchmark.json").and_then(|told| Some(told.get("full_id")?.as_str()?.to_owned()));
            // The slope where criterion has one; a bench of few samples has a mean alone.
            let time = read("estimates.json").and_then(|told| {
                let of = |kind: &str| told.get(kind)?.get("point_estimate")?.as_f64();
                of("slope").or_else(|| of("mean"))
            });
            if let (Some(name), Some(time)) = (name, time) {
                times.insert(name, time);
            }
        } else {
            collect(&path, times);
        }
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(1.0)
}
