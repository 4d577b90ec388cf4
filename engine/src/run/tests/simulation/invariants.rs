//! What must hold at the end of every seed, whatever has happened; and what must hold all the time.

use std::collections::{BTreeMap, BTreeSet};

use super::windows::Windows;
use super::world::{REFUSED, Row, World};
use crate::report::Report;
use crate::stats::{RunStats, StageState};

/// A batch is let through a bound alone: the largest that a source here makes.
const BATCH_ROWS_MAX: u64 = 3 * 12;
/// What one chunk of rows may take that waits on disk.
const CHUNK_BYTES_MAX: u64 = 100_000;

/// Everything that is stored anywhere.
pub(super) fn stored(world: &World) -> (BTreeMap<&'static str, Vec<Row>>, Vec<Row>) {
    (world.database().tables.clone(), objects(world))
}

fn objects(world: &World) -> Vec<Row> {
    world.store().values().flatten().cloned().collect()
}

fn table(world: &World, name: &str) -> Vec<Row> {
    world.database().tables.get(name).cloned().unwrap_or_default()
}

/// What of all that was published, and that no broker has lost, is not where it belongs yet.
pub(super) fn missing(world: &World) -> Option<String> {
    if let Some(broker) = world.brokers.iter().find(|broker| !broker.is_empty()) {
        return Some(format!("{} still has messages", broker.name()));
    }
    if world.published().len() < world.messages() {
        return Some("not all messages are published".to_owned());
    }
    let lost = lost(world);
    let numbers = |rows: Vec<Row>| -> BTreeSet<i64> { rows.iter().map(|row| row[0]).collect() };
    let (table, letters) = (numbers(table(world, "table")), numbers(table(world, "letters")));
    let lake = numbers(objects(world));
    for (number, reading) in world.published().iter().filter(|(number, _)| !lost.contains(number)) {
        let is_refused = reading.as_ref().is_none_or(|reading| reading[3] == REFUSED);
        if is_refused && !letters.contains(number) {
            return Some(format!("message {number} is no dead letter"));
        }
        if !is_refused && !table.contains(number) {
            return Some(format!("message {number} is not in the table"));
        }
        if reading.is_some() && !lake.contains(number) {
            return Some(format!("message {number} is in no object"));
        }
    }
    let rollups: BTreeSet<Row> = self::table(world, "rollups").into_iter().collect();
    let absent = expected_rollups(world).into_iter().find(|row| !rollups.contains(row));
    absent.map(|row| format!("the window {row:?} was not closed"))
}

fn lost(world: &World) -> BTreeSet<i64> {
    world.brokers.iter().flat_map(|broker| broker.accounts().1).collect()
}

/// The windows of an undisturbed run over the readings that are in the lake, in the order in which they
/// were published.
fn expected_rollups(world: &World) -> Vec<Row> {
    let mut readings = objects(world);
    readings.sort();
    readings.dedup();
    let mut windows = Windows::default();
    readings.iter().filter_map(|reading| windows.add(reading)).collect()
}

/// Checks everything, now that nothing happens any more.
pub(super) fn check(world: &World) {
    let published = world.published().clone();
    let acknowledged: BTreeSet<i64> = world.brokers.iter().flat_map(|broker| broker.accounts().0).collect();
    let table = once(world, "the table", table(world, "table"));
    let letters = once(world, "the dead letters", self::table(world, "letters"));
    let lake = once(world, "the objects", objects(world));
    for (number, row) in table.iter().chain(&lake) {
        if published.get(number) != Some(&Some(row.clone())) {
            world.violated(format!("{row:?} is stored and was never published so"));
        }
    }
    for number in acknowledged {
        let reading = &published[&number];
        let is_refused = reading.as_ref().is_none_or(|reading| reading[3] == REFUSED);
        let place = if is_refused { ("the dead letters", &letters) } else { ("the table", &table) };
        let places = [Some(place), reading.is_some().then_some(("the objects", &lake))];
        for (name, rows) in places.into_iter().flatten() {
            if !rows.contains_key(&number) {
                world.violated(format!("message {number} was acknowledged and is not in {name}"));
            }
        }
    }
    let of_table = table.keys().chain(letters.keys().filter(|number| published[number].is_some()));
    let (of_table, of_lake): (BTreeSet<_>, BTreeSet<_>) = (of_table.collect(), lake.keys().collect());
    if of_table != of_lake {
        let differ: Vec<_> = of_table.symmetric_difference(&of_lake).collect();
        world.violated(format!("objects and table differ in the messages {differ:?}"));
    }
    let (mut rollups, mut expected) = (self::table(world, "rollups"), expected_rollups(world));
    rollups.sort();
    expected.sort();
    if rollups != expected {
        let (found, wanted): (BTreeSet<_>, BTreeSet<_>) = (rollups.iter().collect(), expected.iter().collect());
        let differ: Vec<_> = found.symmetric_difference(&wanted).collect();
        world.violated(format!(
            "{} windows were stored, an undisturbed run has {}; they differ in {differ:?}",
            rollups.len(),
            expected.len()
        ));
    }
}

/// Rows by number; none may be there twice.
fn once(world: &World, place: &str, rows: Vec<Row>) -> BTreeMap<i64, Row> {
    let mut by_number = BTreeMap::new();
    for row in rows {
        if let Some(row) = by_number.insert(row[0], row) {
            world.violated(format!("message {} is twice in {place}", row[0]));
        }
    }
    by_number
}

/// After a clean end every row that came to a required sink has its verdict.
pub(super) fn check_report(world: &World, report: &Report) {
    if report.stages().iter().any(|stage| stage.state() != StageState::Ended) {
        // The drain timeout was over before the last sink was done.
        return;
    }
    for stage in report.stages().iter().filter(|stage| stage.kind == "sink" && stage.name != "tap") {
        let imbalance = report.imbalance(stage);
        if imbalance != 0 {
            world.violated(format!("\"{}\" can't account for {imbalance} rows", stage.name));
        }
    }
}

/// Whatever is bounded is within its bound.
pub(super) fn check_bounds(world: &World, stats: &RunStats) {
    for edge in &stats.edges {
        let rows_max = u64::from(edge.rows_max()).max(BATCH_ROWS_MAX);
        if edge.rows_waiting() > rows_max {
            world.violated(format!("{} rows wait between {} and {}", edge.rows_waiting(), edge.from, edge.to));
        }
        if edge.overflow_bytes() > world.climate.overflow_bytes_max + CHUNK_BYTES_MAX {
            world.violated(format!("{} bytes wait on disk before {}", edge.overflow_bytes(), edge.to));
        }
    }
    for broker in 0..2 {
        let prefix = format!("/spool/{broker}/");
        let held = world.disk.files().into_iter().filter(|(path, _)| path.to_string_lossy().starts_with(&prefix));
        let bytes: usize = held.map(|(_, bytes)| bytes).sum();
        // Besides the segments there are the cursors, and what is being written.
        if bytes as u64 > world.climate.spool_bytes_max + world.climate.segment_bytes + 4_000 {
            world.violated(format!("the spool {broker} takes {bytes} bytes"));
        }
    }
}
