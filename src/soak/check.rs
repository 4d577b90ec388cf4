//! What of a fleet's messages is at a far end: gaps in the numbers of each device, and what is there more than once.

use std::time::{Duration, Instant};

use pipeline_engine::far_end::{Found, Marked};
use serde::Serialize;

use super::fleet::Load;
use crate::slo::Tally;
use crate::verify::Destination;

/// A look counts all rows of the fleet: not too often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Gaps that are told one by one.
const GAPS_MAX: usize = 10;

/// What is at one far end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub sink: String,
    pub place: String,
    /// Messages that are there, of all that were taken.
    pub arrived: Tally,
    /// Devices whose newest message is there, of all.
    pub devices: Tally,
    /// Rows beyond one a message.
    pub duplicates: u64,
    /// Rows of these devices that nobody has sent.
    pub invented: u64,
    /// The first gaps: device, first and last number that are missing.
    pub gaps: Vec<(String, i64, i64)>,
    /// Why it could not be looked at.
    pub failure: Option<String>,
}

/// Looks until everything is there, or until it is time.
pub async fn check(destination: &mut Destination, marked: &Marked, load: &Load, timeout: Duration) -> Checked {
    let until = Instant::now() + timeout;
    let place = destination.end.place();
    let mut found = Found::new();
    let mut is_complete = false;
    loop {
        // It may pass: the failure that stays is told.
        let failure = match destination.end.find(marked).await {
            Ok(now) => {
                found = now;
                None
            }
            Err(error) => Some(error.chain()),
        };
        let checked = compare(&destination.sink, &place, load, &found);
        // One look more, for what comes a second time.
        if is_complete || Instant::now() >= until {
            return Checked { failure, ..checked };
        }
        is_complete = checked.arrived.missed() == 0 && failure.is_none();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn compare(sink: &str, place: &str, load: &Load, found: &Found) -> Checked {
    let mut checked = Checked {
        sink: sink.to_owned(),
        place: place.to_owned(),
        arrived: Tally::default(),
        devices: Tally::default(),
        duplicates: 0,
        invented: 0,
        gaps: Vec::new(),
        failure: None,
    };
    for (device, taken) in &load.taken {
        let numbers = found.get(device);
        let count = |number: &i64| numbers.and_then(|numbers| numbers.get(number)).copied().unwrap_or(0);
        let arrived = taken.iter().filter(|number| count(number) > 0).count() as u64;
        checked.arrived.good += arrived;
        checked.arrived.total += taken.len() as u64;
        checked.devices.total += 1;
        checked.devices.good += u64::from(taken.last().is_some_and(|newest| count(newest) > 0));
        checked.duplicates += taken.iter().map(|number| count(number).saturating_sub(1)).sum::<u64>();
        checked.invented += (numbers.map_or(0, |numbers| numbers.len()) as u64).saturating_sub(arrived);
        for gap in taken.chunk_by(|one, other| (count(one) == 0) == (count(other) == 0)) {
            if let (Some(first), Some(last)) = (gap.first(), gap.last())
                && count(first) == 0
                && checked.gaps.len() < GAPS_MAX
            {
                checked.gaps.push((device.clone(), *first, *last));
            }
        }
    }
    checked
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn gaps_duplicates_and_what_nobody_has_sent_are_told_apart() {
        let mut load = Load::default();
        load.taken.insert("a".to_owned(), (1..=10).collect());
        load.taken.insert("b".to_owned(), vec![1, 2]);
        let of = |numbers: &[(i64, u64)]| numbers.iter().copied().collect::<BTreeMap<i64, u64>>();
        let found = Found::from([
            ("a".to_owned(), of(&[(1, 1), (2, 3), (6, 1), (7, 1), (8, 1), (9, 1), (10, 1), (77, 1)])),
            ("b".to_owned(), of(&[(1, 1)])),
        ]);
        let checked = compare("table", "here", &load, &found);
        assert_eq!(checked.arrived, Tally { good: 8, total: 12 });
        assert_eq!(checked.devices, Tally { good: 1, total: 2 }, "the newest of b is missing");
        assert_eq!((checked.duplicates, checked.invented), (2, 1));
        assert_eq!(checked.gaps, [("a".to_owned(), 3, 5), ("b".to_owned(), 2, 2)]);
    }
}
