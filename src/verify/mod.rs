//! `pipeline verify`: messages of its own through the front door of a running pipeline, waited for at its far ends.
//!
//! Each message is of a device that nobody has ([`MARK`]), new in each run, so that its rows are told from all others and
//! transforms that remember devices meet a new one. Rows in tables are removed afterwards; objects of a lake can't be: what
//! reads them leaves out devices whose name begins with the mark.

mod arrivals;
mod door;
mod outcome;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use futures::future::join_all;
use pipeline_engine::dlq::{LetterFilter, NotSent};
use pipeline_engine::far_end::{MARK, Marked};
use pipeline_engine::{Plan, now_us};
use serde_json::{Map, Value};
use tokio::sync::watch;

pub use arrivals::{Arrivals, wait};
pub use door::{Destination, Door, DoorArguments, all_ends};
pub use outcome::{Far, Kept, Outcome, removed_text};

/// A device's clock may be set back by a rule, a time zone or a fix.
const SINCE_SLACK_US: i64 = 86_400_000_000;
/// Refused messages that are looked through for ours.
const LETTERS_MAX: usize = 10_000;

/// How it is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many messages.
    pub messages: u32,
    /// How long to wait for the last of them.
    pub timeout: Duration,
    /// Where rows are waited for; empty: everywhere that keeps every row.
    pub sinks: Vec<String>,
    /// Values for columns, in place of what is made up.
    pub values: Map<String, Value>,
    /// Leave the rows where they are.
    pub keep: bool,
}

/// A message that the broker has taken.
struct Sent {
    number: i64,
    at: Instant,
}

/// Sends messages, and says what became of them.
///
/// # Errors
/// In words: there is no way in, no way to see what arrives, or the broker takes nothing.
pub async fn verify(plan: &Plan, arguments: &DoorArguments, options: &Options) -> Result<Outcome, String> {
    let mut door = Door::of(plan, arguments)?;
    let destinations = door.destinations(plan, &options.sinks)?;
    let device = new_device();
    let started_us = now_us();
    let marked = Marked {
        device_column: door.device_column.clone(),
        devices: vec![device.clone()],
        number_column: door.number_column.clone(),
        since_us: started_us.saturating_sub(SINCE_SLACK_US),
    };
    let (expect, expected) = watch::channel(None);
    let mut waiting = Vec::new();
    for Destination { sink, mut end } in destinations {
        let (marked, expected) = (marked.clone(), expected.clone());
        let place = end.place();
        waiting.push(async move { (sink, place, wait(end.as_mut(), &marked, expected).await) });
    }
    let publishing = async {
        let sent = publish(&mut door, &device, options).await;
        door.close().await;
        let count = sent.as_ref().map_or(0, |(sent, _)| sent.len());
        // With nothing sent there is nothing to wait for.
        expect.send_replace(Some((count, Instant::now() + options.timeout)));
        sent
    };
    let (arrived, sent) = tokio::join!(join_all(waiting), publishing);
    let (sent, refused) = sent?;
    let mut outcome = Outcome {
        pipeline: plan.name().to_owned(),
        source: door.source.clone(),
        device: device.clone(),
        sent: sent.len() as u64,
        not_taken: refused,
        ends: arrived.into_iter().map(|(sink, place, arrivals)| far(sink, place, &device, &sent, arrivals)).collect(),
        dead_letters: dead_letters(plan, &device, started_us).await,
        removed: BTreeMap::new(),
    };
    if !options.keep {
        outcome.removed = remove(plan, &door.device_column, Some(&[device])).await;
    }
    Ok(outcome)
}

/// A name that no device has, and no other run.
pub fn new_device() -> String {
    // What the standard library seeds its hash tables with is as random as this needs.
    format!("{MARK}{:08x}", RandomState::new().hash_one(now_us()) >> 32)
}

/// Removes what earlier runs have left in tables, such as windows that have closed since.
pub async fn clean(plan: &Plan, device_column: &str) -> BTreeMap<String, Kept> {
    remove(plan, device_column, None).await
}

async fn publish(
    door: &mut Door,
    device: &str,
    options: &Options,
) -> Result<(Vec<Sent>, BTreeMap<String, u64>), String> {
    let topic = door.topic_of(device).ok_or_else(|| format!("source \"{}\" reads no topic", door.source))?;
    let (mut sent, mut refused) = (Vec::new(), BTreeMap::new());
    let mut last_us = 0;
    for index in 1..=i64::from(options.messages) {
        // Never two of the same time, since that may be the key.
        let time_us = now_us().max(last_us + 1_000);
        last_us = time_us;
        let number = if door.numbers_are_times() { time_us } else { index };
        let row = door.row(device, index, time_us, &options.values).to_string();
        let message = door.message(row, &topic)?;
        let at = Instant::now();
        match door.send(&[message]).await?.pop() {
            Some(Ok(())) => sent.push(Sent { number, at }),
            Some(Err(NotSent::Refused(why) | NotSent::Later(why))) => *refused.entry(why).or_default() += 1,
            None => {}
        }
    }
    Ok((sent, refused))
}

/// Holds what was sent against what has arrived.
fn far(sink: String, place: String, device: &str, sent: &[Sent], arrivals: Arrivals) -> Far {
    let found = arrivals.found.get(device);
    let count = |number: i64| found.and_then(|numbers| numbers.get(&number)).copied().unwrap_or(0);
    let lost: Vec<i64> = sent.iter().map(|sent| sent.number).filter(|number| count(*number) == 0).collect();
    let mut latencies: Vec<Duration> = sent
        .iter()
        .filter_map(|sent| arrivals.seen.get(&(device.to_owned(), sent.number)).map(|seen| *seen - sent.at))
        .collect();
    latencies.sort_unstable();
    Far {
        sink,
        place,
        found: sent.len() as u64 - lost.len() as u64,
        lost: lost.len() as u64,
        duplicates: sent.iter().map(|sent| count(sent.number).saturating_sub(1)).sum(),
        latency: outcome::Latency::of(&latencies),
        failure: arrivals.failure,
    }
}

/// Why messages of the device were refused on their way, by stage and reason.
async fn dead_letters(plan: &Plan, device: &str, since_us: i64) -> BTreeMap<String, u64> {
    let filter = LetterFilter { since_us: Some(since_us), ..LetterFilter::default() };
    for (_, _, mut store) in plan.letter_stores() {
        // Where one place can't be read, another may be.
        let Ok(letters) = store.newest(&filter, LETTERS_MAX).await else { continue };
        let mut reasons = BTreeMap::new();
        let is_ours = |payload: &[u8]| payload.windows(device.len()).any(|part| part == device.as_bytes());
        for letter in letters.iter().filter(|letter| is_ours(&letter.payload)) {
            *reasons.entry(format!("{}: {}", letter.stage, letter.reason)).or_default() += 1;
        }
        return reasons;
    }
    BTreeMap::new()
}

/// Removes the rows of these devices, or of all that nobody has, wherever they can be.
pub async fn remove(plan: &Plan, device_column: &str, devices: Option<&[String]>) -> BTreeMap<String, Kept> {
    let mut removed = BTreeMap::new();
    for Destination { sink, mut end } in all_ends(plan, device_column) {
        let kept = match end.remove(device_column, devices).await {
            Ok(Some(rows)) => Kept::Removed(rows),
            Ok(None) => Kept::Stays(end.place()),
            Err(error) => Kept::Failed(error.chain()),
        };
        removed.insert(sink, kept);
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_is_there_twice_is_counted_by_number() {
        let start = Instant::now();
        let sent: Vec<Sent> = (1..=4).map(|number| Sent { number, at: start }).collect();
        let mut arrivals = Arrivals::default();
        arrivals.found.insert("d".to_owned(), BTreeMap::from([(1, 1), (2, 3), (4, 1), (9, 1)]));
        for (number, millis) in [(1, 10), (2, 20), (4, 40)] {
            arrivals.seen.insert(("d".to_owned(), number), start + Duration::from_millis(millis));
        }
        let far = far("table".to_owned(), "here".to_owned(), "d", &sent, arrivals);
        assert_eq!((far.found, far.lost, far.duplicates), (3, 1, 2));
        let latency = far.latency.expect("some have arrived");
        assert_eq!((latency.p50_ms, latency.p99_ms, latency.max_ms), (20, 40, 40));
    }
}
