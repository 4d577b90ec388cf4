//! What must hold at the end of every seed, whatever has happened; and what must hold all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use super::windows::Windows;
use super::world::{REFUSED, Row, World};
use crate::report::Report;
use crate::stats::{RunStats, StageState};

/// What must hold. Each planted mistake breaks one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Invariant {
    /// A message that was acknowledged is in the table and in an object, or is a dead letter.
    NothingLost,
    /// No row, object, dead letter or window is anywhere twice.
    NothingTwice,
    /// What is stored was published, value for value.
    NothingInvented,
    /// What is in the table is in the objects, and the other way round.
    PlacesAgree,
    /// Windows are those of a run that was never disturbed.
    StateGoesOn,
    /// Once nothing goes wrong any more, everything comes to where it belongs.
    ComesToAnEnd,
    /// Acknowledgements come by the connection that their messages came by, in the order of those.
    AcknowledgedInOrder,
    /// Where no disk is damaged, no spool says so.
    SpoolIsSound,
    /// Queues, rows that wait on disk and spools stay within their bounds.
    WithinBounds,
    /// Of each row that a stage was given it is counted what became of it.
    RowsAccountedFor,
    /// No run finds that the engine contradicts itself.
    NoMistakeOfItsOwn,
    /// A run after a clean end has nothing to do.
    CleanEndIsComplete,
}

/// An invariant that does not hold, and how that shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub invariant: Invariant,
    pub how: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.how)
    }
}

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

fn is_refused(reading: Option<&Row>) -> bool {
    reading.is_none_or(|reading| reading[3] == REFUSED)
}

/// What of all that was published, and that no broker has lost, is not where it belongs yet.
pub(super) fn missing(world: &World) -> Option<String> {
    if let Some(broker) = world.brokers.iter().find(|broker| !broker.is_empty()) {
        return Some(format!("{} still has messages", broker.name()));
    }
    if world.published().len() < world.messages() {
        return Some("not all messages are published".to_owned());
    }
    let lost: BTreeSet<i64> = world.brokers.iter().flat_map(|broker| broker.accounts().lost).collect();
    let places = Places::of(world);
    let published = world.published();
    let owed = published.iter().filter(|(number, _)| !lost.contains(number));
    if let Some((number, place)) = owed.flat_map(|(number, reading)| places.lack(*number, reading.as_ref())).next() {
        return Some(format!("message {number} is not in {place}"));
    }
    let rollups: BTreeSet<Row> = table(world, "rollups").into_iter().collect();
    let absent = expected_rollups(world).into_iter().find(|row| !rollups.contains(row));
    absent.map(|row| format!("the window {row:?} was not closed"))
}

/// The numbers of the messages that are in each place.
struct Places {
    table: BTreeSet<i64>,
    letters: BTreeSet<i64>,
    objects: BTreeSet<i64>,
}

impl Places {
    fn of(world: &World) -> Self {
        let numbers = |rows: Vec<Row>| rows.iter().map(|row| row[0]).collect();
        Self {
            table: numbers(table(world, "table")),
            letters: numbers(table(world, "letters")),
            objects: numbers(objects(world)),
        }
    }

    /// Where a message belongs and is not.
    fn lack(&self, number: i64, reading: Option<&Row>) -> Vec<(i64, &'static str)> {
        let place = if is_refused(reading) { ("the dead letters", &self.letters) } else { ("the table", &self.table) };
        let places = [Some(place), reading.map(|_| ("the objects", &self.objects))];
        let lacks = places.into_iter().flatten().filter(|(_, numbers)| !numbers.contains(&number));
        lacks.map(|(name, _)| (number, name)).collect()
    }
}

/// The windows of an undisturbed run over the readings that are in the objects, in the order in which they
/// were published.
fn expected_rollups(world: &World) -> Vec<Row> {
    let mut readings = objects(world);
    readings.sort();
    readings.dedup();
    let mut windows = Windows::default();
    readings.iter().filter_map(|reading| windows.add(reading)).collect()
}

/// Checks what must hold whenever a process has ended, however much is still to come.
pub(super) fn check_stored(world: &World) {
    let published = world.published().clone();
    for (place, rows) in [("the table", table(world, "table")), ("the objects", objects(world))] {
        for row in &rows {
            if published.get(&row[0]) != Some(&Some(row.clone())) {
                let how = format!("{row:?} is in {place} and was never published so");
                world.violated(Invariant::NothingInvented, how);
            }
        }
        check_once(world, place, rows.iter().map(|row| row[..1].to_vec()));
    }
    check_once(world, "the dead letters", table(world, "letters").into_iter());
    // A window is of one device.
    check_once(world, "the windows", table(world, "rollups").iter().map(|row| row[..2].to_vec()));
}

fn check_once(world: &World, place: &str, keys: impl Iterator<Item = Row>) {
    let mut seen = BTreeSet::new();
    for key in keys {
        if let Some(key) = seen.replace(key) {
            world.violated(Invariant::NothingTwice, format!("{key:?} is twice in {place}"));
        }
    }
}

/// Checks what must hold besides, now that nothing is to come any more.
pub(super) fn check_complete(world: &World) {
    let published = world.published().clone();
    let places = Places::of(world);
    for number in world.brokers.iter().flat_map(|broker| broker.accounts().acknowledged) {
        for (number, place) in places.lack(number, published[&number].as_ref()) {
            let how = format!("message {number} was acknowledged and is not in {place}");
            world.violated(Invariant::NothingLost, how);
        }
    }
    let refused_by_table = places.letters.iter().filter(|number| published[number].is_some());
    let of_table: BTreeSet<i64> = places.table.iter().chain(refused_by_table).copied().collect();
    let differ: Vec<_> = of_table.symmetric_difference(&places.objects).collect();
    if !differ.is_empty() {
        world.violated(Invariant::PlacesAgree, format!("objects and table differ in the messages {differ:?}"));
    }
    let found: BTreeSet<Row> = table(world, "rollups").into_iter().collect();
    let expected: BTreeSet<Row> = expected_rollups(world).into_iter().collect();
    let differ: Vec<_> = found.symmetric_difference(&expected).collect();
    if !differ.is_empty() {
        let (found, expected) = (found.len(), expected.len());
        let how = format!("{found} windows were stored, an undisturbed run has {expected}; they differ in {differ:?}");
        world.violated(Invariant::StateGoesOn, how);
    }
}

/// After a clean end every stage accounts for every row it was given.
pub(super) fn check_report(world: &World, report: &Report) {
    if report.stages().iter().any(|stage| stage.state() != StageState::Ended) {
        // The drain timeout was over before the last sink was done.
        return;
    }
    for (stage, balance) in report.balances() {
        if balance.imbalance() != 0 {
            world.violated(Invariant::RowsAccountedFor, format!("\"{}\": {balance}", stage.name));
        }
    }
}

/// Whatever is bounded is within its bound.
pub(super) fn check_bounds(world: &World, stats: &RunStats) {
    let too_much = |how| world.violated(Invariant::WithinBounds, how);
    for edge in &stats.edges {
        let rows_max = u64::from(edge.rows_max()).max(BATCH_ROWS_MAX);
        if edge.rows_waiting() > rows_max {
            too_much(format!("{} rows wait between {} and {}", edge.rows_waiting(), edge.from, edge.to));
        }
        if edge.overflow_bytes() > world.climate.overflow_bytes_max + CHUNK_BYTES_MAX {
            too_much(format!("{} bytes wait on disk before {}", edge.overflow_bytes(), edge.to));
        }
    }
    let files = world.disk.files();
    for dir in ["/spool/0", "/spool/1"] {
        let held = files.iter().filter(|(path, _)| path.parent() == Some(Path::new(dir)));
        let bytes: usize = held.map(|(_, bytes)| bytes).sum();
        // Besides the segments there are the cursors, and what is being written.
        if bytes as u64 > world.climate.spool_bytes_max + world.climate.segment_bytes + 4_000 {
            too_much(format!("the spool in {dir} takes {bytes} bytes"));
        }
    }
}
