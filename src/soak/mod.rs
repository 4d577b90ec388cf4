//! `pipeline soak`: a fleet that numbers what it sends, held against what the file asks for.
//!
//! The fleet is that of `pipeline simulate`; its devices have names that nobody has (see [`crate::verify`]). Each message that
//! the broker has taken is looked for by its number at every far end that keeps every row: what is missing there is lost, and
//! what is there more often is a duplicate. What the pipeline measures of itself (latency, anomalies) is the difference
//! between two looks at its own counts, so that nothing from before counts.

mod check;
mod fleet;
mod instance;
mod outcome;

use std::path::Path;
use std::time::Duration;

use pipeline_engine::far_end::Marked;
use pipeline_engine::{Plan, now_us};

use crate::verify::{Door, DoorArguments, new_device, remove};
use instance::Instance;
pub use outcome::Outcome;

/// What is asked of the pipeline.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the fleet sends.
    pub duration: Duration,
    /// Messages a second, of all devices together.
    pub rate: f64,
    pub devices: u32,
    /// Where rows are looked for; empty: everywhere that keeps every row.
    pub sinks: Vec<String>,
    /// How long to wait for the last row after the last message.
    pub timeout: Duration,
    /// How often queries and dashboards are measured; 0: not at all.
    pub measurements: u32,
    /// Leave the rows where they are.
    pub keep: bool,
}

/// Runs a fleet against the pipeline of this file, which is started if it does not run.
///
/// # Errors
/// In words: there is no way in, no way to see what arrives, or the pipeline does not start.
pub async fn soak(file: &Path, plan: &Plan, arguments: &DoorArguments, options: &Options) -> Result<Outcome, String> {
    let mut door = Door::of(plan, arguments)?;
    let mut destinations = door.destinations(plan, &options.sinks)?;
    let prefix = format!("{}-", new_device());
    let instance = Instance::find_or_start(file, plan).await?;
    let before = instance.report().await;
    let since_us = now_us().saturating_sub(Duration::from_secs(3_600).as_micros() as i64);

    let load = fleet::run(&mut door, &prefix, options).await;
    door.close().await;
    let load = load?;
    let marked = Marked {
        device_column: door.device_column.clone(),
        devices: load.devices().map(str::to_owned).collect(),
        number_column: door.number_column.clone(),
        since_us,
    };
    let mut checked = Vec::new();
    for destination in &mut destinations {
        checked.push(check::check(destination, &marked, &load, options.timeout).await);
    }
    let after = instance.report().await;
    let lines = outcome::lines(plan, options, &load, &checked, before.as_ref().zip(after.as_ref())).await;
    let removed =
        if options.keep { Default::default() } else { remove(plan, &door.device_column, Some(&marked.devices)).await };
    instance.stop().await;
    Ok(Outcome::new(plan.name(), load, checked, lines, removed))
}
