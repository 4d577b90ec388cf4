//! `pipeline compare`: the table of the old path against that of the new one.

use clap::Args;
use humantime::parse_duration;
use pipeline_engine::now_us;
use pipeline_engine::terminal::{printable, printable_json};
use pipeline_engine::time::parse_us;
use pipeline_stages::db::{ComparedTable, Comparing, Comparison, MinuteDifference, Part, compare};
use secrecy::SecretString;

use super::{Failure, runtime};

/// Hold two tables against each other by device and minute: as many rows, and the same values in them?
///
/// For a path that runs beside another one. A table may also be a lake: its Parquet objects are copied into a temporary table
/// first. Both databases aggregate by themselves, and nothing is changed. Exits with 0 if
/// they are alike, 1 if they differ, 2 if they could not be compared.
#[derive(Debug, Args)]
pub struct CompareArguments {
    /// The table of the old path: `telemetry`, or `schema.telemetry`; or a lake: `s3://bucket/prefix` or `./folder`.
    old: String,
    /// That of the new path.
    new: String,
    /// The database of the new table, and of the old one too unless that has its own: postgres://user@host/database. For a
    /// lake, the database that aggregates it.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database: SecretString,
    /// The database of the old table.
    #[arg(long, env = "OLD_DATABASE_URL", hide_env_values = true)]
    old_database: Option<SecretString>,
    /// The column with the device.
    #[arg(long, default_value = "device_id")]
    device: String,
    /// The column with the time of a reading.
    #[arg(long, default_value = "timestamp")]
    time: String,
    /// The columns whose values are compared; left out: all that both tables have.
    #[arg(long, value_delimiter = ',')]
    columns: Vec<String>,
    /// From this time on: 2026-01-31T12:00:00Z, or how long ago, such as 24h.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Up to this time; left out: now.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Younger minutes than this are left alone: one of the two may not have all of them yet.
    #[arg(long, default_value = "5m", value_parser = parse_duration)]
    settle: std::time::Duration,
    /// Show so many differences.
    #[arg(long, default_value_t = 20, value_name = "N")]
    first: usize,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: CompareArguments) -> Result<(), Failure> {
    let now_us = now_us();
    let time = |option: &str, text: &Option<String>| {
        let time = text.as_deref().map(|text| parse_us(text, now_us)).transpose();
        time.map_err(|why| Failure::Wrong(format!("error: {option}: {why}")))
    };
    let settled_us = now_us.saturating_sub(i64::try_from(arguments.settle.as_micros()).unwrap_or(i64::MAX));
    let comparing = Comparing {
        device: arguments.device.clone(),
        time: arguments.time.clone(),
        columns: arguments.columns.clone(),
        from_us: time("--from", &arguments.from)?,
        until_us: time("--until", &arguments.until)?.unwrap_or(now_us).min(settled_us),
        first: arguments.first,
    };
    let old_database = arguments.old_database.as_ref().unwrap_or(&arguments.database);
    let old = ComparedTable { url: old_database.clone(), name: arguments.old.clone() };
    let new = ComparedTable { url: arguments.database.clone(), name: arguments.new.clone() };
    let compared = runtime()?.block_on(compare(&old, &new, &comparing));
    let compared = compared.map_err(|error| Failure::Wrong(format!("error: {}", error.explanation())))?;
    if arguments.json {
        println!("{}", printable_json(serde_json::to_string(&compared).map_err(Failure::failed)?));
    } else {
        print!("{}", text(&compared));
    }
    if compared.differing() == 0 { Ok(()) } else { Err(Failure::Told(1)) }
}

fn text(compared: &Comparison) -> String {
    let Comparison { equal, other_count, other_values, rows_old, rows_new, until, .. } = compared;
    let word = if compared.differing() == 0 { "ALIKE" } else { "DIFFERENT" };
    let mut text = format!(
        "{word}: {equal} device-minutes alike, {other_count} with another number of rows, {other_values} with other values; \
         {rows_old} rows in the old table, {rows_new} in the new, before {until}\n"
    );
    text += &format!("values of: {}\n", printable(&compared.columns.join(", ")));
    if !compared.not_compared.is_empty() {
        text += &format!("in one table alone: {}\n", printable(&compared.not_compared.join(", ")));
    }
    for MinuteDifference { device, minute, old, new } in &compared.first {
        let what = match (old, new) {
            (Some(Part { rows: old, .. }), Some(Part { rows: new, .. })) if old == new => {
                format!("{old} rows in both, with other values")
            }
            (old, new) => {
                let rows = |part: &Option<Part>| part.as_ref().map_or(0, |part| part.rows);
                format!("{} rows in the old table, {} in the new", rows(old), rows(new))
            }
        };
        text += &format!("  {minute}  {}  {what}\n", printable(device));
    }
    let more = compared.differing().saturating_sub(compared.first.len() as u64);
    if more > 0 {
        text += &format!("  and {more} more: --first N shows more of them\n");
    }
    text
}
