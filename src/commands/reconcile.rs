//! `pipeline reconcile FILE`: proves from what was stored that nothing is missing and nothing is there
//! twice.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use pipeline_engine::spool::{FsStorage, inspect};
use pipeline_engine::stage::Account;
use pipeline_engine::{Plan, Position, Run};
use serde_json::{Value, json};

use super::{Failure, load, runtime};

/// Prove from spools, ledgers, tables and objects that nothing is missing and nothing is there twice.
///
/// Compares how far each sink has come, by what it has stored itself, with what was received; and what
/// its record says with what is there. Changes nothing, and works while the pipeline runs; what is on its
/// way then is said to be. Exits with 1 if something contradicts something else.
#[derive(Debug, Args)]
pub struct ReconcileArguments {
    /// The pipeline file.
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: ReconcileArguments) -> Result<(), Failure> {
    let plan = load(&arguments.file)?;
    let received = received(&plan)?;
    let accounts = runtime()?.block_on(async { Run::new(plan).accounts().await });
    let mut findings = Findings { received, sinks: Vec::new(), contradictions: Vec::new() };
    for (sink, outcome) in accounts {
        let account = outcome.map_err(|error| Failure::failed(format!("{sink}: {}", error.chain())))?;
        if let Some(mut account) = account {
            account.positions.sort();
            findings.contradictions.extend(account.contradictions.iter().map(|text| format!("{sink}: {text}")));
            findings.sinks.push((sink, account));
        }
    }
    findings.compare();
    if arguments.json {
        println!("{:#}", findings.json());
    } else {
        findings.print();
    }
    match findings.contradictions.len() {
        0 => Ok(()),
        count => Err(Failure::failed(format!("{count} contradictions"))),
    }
}

/// The last position that each spool has made durable, by partition.
fn received(plan: &Plan) -> Result<BTreeMap<String, Position>, Failure> {
    let spools = plan.spools().map_err(|error| {
        Failure::failed(format!("can't read the data directory \"{}\": {error}", plan.data_dir().display()))
    })?;
    let mut received = BTreeMap::new();
    for place in spools.into_iter().filter(|place| !place.orphaned) {
        let found =
            inspect(&place.dir, &FsStorage).map_err(|error| Failure::failed(format!("{}: {error}", place.source)))?;
        let epoch = found.segments.iter().rev().find_map(|segment| segment.epoch);
        if let (Some(lsns), Some(epoch)) = (found.lsns, epoch) {
            received.insert(format!("{}/spool", place.source), Position([0, 0, epoch, *lsns.end()]));
        }
    }
    Ok(received)
}

struct Findings {
    received: BTreeMap<String, Position>,
    sinks: Vec<(String, Account)>,
    contradictions: Vec<String>,
}

impl Findings {
    /// Sinks that read the same inputs and have come equally far must have been given equally many rows.
    fn compare(&mut self) {
        for (index, (sink, account)) in self.sinks.iter().enumerate() {
            for (other, earlier) in &self.sinks[..index] {
                let same = !account.positions.is_empty() && account.positions == earlier.positions;
                if let (true, Some(here), Some(there)) = (same, account.rows_recorded, earlier.rows_recorded)
                    && here != there
                {
                    self.contradictions.push(format!("{sink} was given {here} rows, and {other} {there} of the same"));
                }
            }
            if let Some(recorded) = account.rows_recorded.filter(|recorded| *recorded < account.rows_found) {
                let found = account.rows_found;
                self.contradictions.push(format!(
                    "{sink} has stored {recorded} rows, and {found} are there: the others are somebody else's"
                ));
            }
            for committed in &account.positions {
                if let Some(received) = self.received.get(&committed.partition)
                    && epoch(*received) == epoch(committed.position)
                    && *received < committed.position
                {
                    self.contradictions.push(format!(
                        "{sink} has stored \"{}\" up to {}, and only {} was received",
                        committed.input,
                        number(committed.position),
                        number(*received)
                    ));
                }
            }
        }
    }

    fn behind(&self, partition: &str, position: Position) -> Option<u64> {
        let received = self.received.get(partition)?;
        let waiting = number(*received).saturating_sub(number(position));
        Some(if epoch(*received) == epoch(position) { waiting } else { number(*received) })
    }

    fn print(&self) {
        for (partition, position) in &self.received {
            println!("{partition}: {} messages received", number(*position));
        }
        for (sink, account) in &self.sinks {
            let recorded = account.rows_recorded.map_or_else(String::new, |rows| format!("{rows} rows stored, "));
            println!("{sink}: {recorded}{} are there, in {}", account.rows_found, account.found_in);
            if let Some(gone) =
                account.rows_recorded.map(|rows| rows.saturating_sub(account.rows_found)).filter(|gone| *gone > 0)
            {
                println!("  {gone} of them were there already when they came, or have been deleted since");
            }
            for committed in &account.positions {
                let place = match self.behind(&committed.partition, committed.position) {
                    Some(0) => "all of it".to_owned(),
                    Some(waiting) => format!("all but the last {waiting}, which are on their way"),
                    None => format!("up to {}", committed.position),
                };
                println!("  {} of {}: {place}", committed.input, committed.partition);
            }
        }
        for contradiction in &self.contradictions {
            println!("CONTRADICTION {contradiction}");
        }
        if self.contradictions.is_empty() {
            println!("nothing is missing, and nothing is there twice");
        }
    }

    fn json(&self) -> Value {
        let sinks: Vec<Value> = self
            .sinks
            .iter()
            .map(|(sink, account)| {
                let positions: Vec<Value> = account
                    .positions
                    .iter()
                    .map(|committed| {
                        json!({
                            "input": committed.input,
                            "partition": committed.partition,
                            "position": committed.position.to_string(),
                            "records_behind": self.behind(&committed.partition, committed.position),
                        })
                    })
                    .collect();
                json!({
                    "sink": sink,
                    "rows_recorded": account.rows_recorded,
                    "rows_found": account.rows_found,
                    "found_in": account.found_in,
                    "positions": positions,
                })
            })
            .collect();
        let received: BTreeMap<&String, u64> =
            self.received.iter().map(|(name, position)| (name, number(*position))).collect();
        json!({ "received": received, "sinks": sinks, "contradictions": self.contradictions })
    }
}

/// A spool's records are counted from 1 in the last word of their position.
fn number(position: Position) -> u64 {
    position.0[3]
}

/// Which life of its directory a spool was in.
fn epoch(position: Position) -> u64 {
    position.0[2]
}
