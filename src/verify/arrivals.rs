//! Waits for rows at a far end, and tells when each was first seen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pipeline_engine::far_end::{FarEnd, Found, Marked};
use tokio::sync::watch;

/// A database finds a few rows by their key in no time.
const LOOK_EVERY_SQL: Duration = Duration::from_millis(25);
/// A listing of a bucket costs money.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So long afterwards a row may still come a second time.
const SETTLE: Duration = Duration::from_secs(2);

/// What has arrived.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// When each row was first seen, by device and number.
    pub seen: BTreeMap<(String, i64), Instant>,
    /// What is there in the end.
    pub found: Found,
    /// Why the last look has failed, if it has.
    pub failure: Option<String>,
}

/// What is waited for: so many rows until then; `None` while they are still being sent.
pub type Expected = Option<(usize, Instant)>;

/// Looks until all rows are there and none comes a second time, or until it is time.
pub async fn wait(end: &mut dyn FarEnd, marked: &Marked, mut expected: watch::Receiver<Expected>) -> Arrivals {
    let every = if end.speaks_sql() { LOOK_EVERY_SQL } else { LOOK_EVERY };
    let mut arrivals = Arrivals::default();
    loop {
        look(end, marked, &mut arrivals).await;
        if let Some((rows, until)) = *expected.borrow_and_update()
            && (arrivals.seen.len() >= rows || Instant::now() >= until)
        {
            break;
        }
        tokio::time::sleep(every).await;
    }
    tokio::time::sleep(SETTLE).await;
    look(end, marked, &mut arrivals).await;
    arrivals
}

async fn look(end: &mut dyn FarEnd, marked: &Marked, arrivals: &mut Arrivals) {
    match end.find(marked).await {
        Ok(found) => {
            let now = Instant::now();
            for (device, numbers) in &found {
                for number in numbers.keys() {
                    arrivals.seen.entry((device.clone(), *number)).or_insert(now);
                }
            }
            (arrivals.found, arrivals.failure) = (found, None);
        }
        // It may pass: the one that stays is told.
        Err(error) => arrivals.failure = Some(error.chain()),
    }
}
