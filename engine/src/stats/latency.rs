//! How long rows take from end to end, in buckets that never change: so that figures of many runs and machines
//! add up, and a quantile can be had of any stretch of time between two looks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::TimestampMicrosecondType;

/// Upper bounds of the buckets in seconds; what is beyond the last goes into one more. Around the promises that
/// people make (5, 10 and 30 seconds) and fine enough below for a database that commits in milliseconds.
pub const LATENCY_BOUNDS_SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

const BOUNDS_US: [i64; 14] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Counts of rows by latency. A latency below zero, of a device whose clock is ahead, counts as none.
#[derive(Debug, Default)]
pub struct Latencies {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
    /// What rows are held against one by one, since it need not be one of the bounds.
    limit_us: OnceLock<i64>,
    within: AtomicU64,
}

impl Latencies {
    /// From now on it is counted as well how many rows took no longer than this. The first limit stays.
    pub fn hold_against(&self, limit: Duration) {
        self.limit_us.get_or_init(|| i64::try_from(limit.as_micros()).unwrap_or(i64::MAX));
    }

    /// How many rows took no longer than the limit; 0 where there is none.
    pub fn within(&self) -> u64 {
        self.within.load(Relaxed)
    }

    /// So many rows took so long.
    pub(crate) fn observe(&self, latency_us: i64, rows: u64) {
        let latency_us = latency_us.max(0);
        self.buckets[bucket_of(latency_us)].fetch_add(rows, Relaxed);
        self.sum_us.fetch_add(latency_us.unsigned_abs() * rows, Relaxed);
        if self.limit_us.get().is_some_and(|limit_us| latency_us <= *limit_us) {
            self.within.fetch_add(rows, Relaxed);
        }
    }

    /// These rows, which happened at the times of a timestamp column, are there now. Rows without a time are
    /// left out.
    pub(crate) fn observe_times(&self, times: &ArrayRef, now_us: i64) {
        let Some(times) = times.as_primitive_opt::<TimestampMicrosecondType>() else { return };
        let (counts, sum_us) = if times.null_count() == 0 {
            count(times.values().iter().copied(), now_us)
        } else {
            count(times.iter().flatten(), now_us)
        };
        for (total, count) in self.buckets.iter().zip(counts) {
            if count > 0 {
                total.fetch_add(count, Relaxed);
            }
        }
        self.sum_us.fetch_add(sum_us, Relaxed);
        if let Some(limit_us) = self.limit_us.get() {
            let is_within = |time: &i64| now_us.saturating_sub(*time) <= *limit_us;
            let within = times.iter().flatten().filter(is_within).count();
            self.within.fetch_add(within as u64, Relaxed);
        }
    }

    /// The counts so far.
    pub fn counts(&self) -> LatencyCounts {
        LatencyCounts {
            buckets: self.buckets.each_ref().map(|bucket| bucket.load(Relaxed)),
            sum_seconds: self.sum_us.load(Relaxed) as f64 / 1e6,
        }
    }
}

/// Counts by bucket and the sum. Neighbours are nearly always of one bucket: the search is for the others.
fn count(times: impl Iterator<Item = i64>, now_us: i64) -> ([u64; BUCKETS], u64) {
    let (mut counts, mut sum_us) = ([0; BUCKETS], 0_u64);
    let (mut bucket, mut lowest, mut highest, mut run) = (0, 0, BOUNDS_US[0], 0);
    for time in times {
        let latency_us = now_us.saturating_sub(time).max(0);
        if latency_us < lowest || latency_us > highest {
            counts[bucket] += run;
            run = 0;
            bucket = bucket_of(latency_us);
            lowest = if bucket == 0 { 0 } else { BOUNDS_US[bucket - 1] + 1 };
            highest = BOUNDS_US.get(bucket).copied().unwrap_or(i64::MAX);
        }
        run += 1;
        sum_us = sum_us.wrapping_add(latency_us.unsigned_abs());
    }
    counts[bucket] += run;
    (counts, sum_us)
}

fn bucket_of(latency_us: i64) -> usize {
    BOUNDS_US.partition_point(|bound| *bound < latency_us)
}

/// The greatest time of a timestamp column that is not after now.
pub(super) fn newest(times: &ArrayRef, now_us: i64) -> Option<i64> {
    let times = times.as_primitive_opt::<TimestampMicrosecondType>()?;
    let known = (0..times.len()).filter(|row| times.is_valid(*row)).map(|row| times.value(row));
    known.filter(|at| *at <= now_us).max()
}

/// Rows by latency, of a run or of a stretch of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LatencyCounts {
    /// One entry for each of [`LATENCY_BOUNDS_SECONDS`], and one for what is beyond them. Not added up.
    pub buckets: [u64; BUCKETS],
    /// All latencies added up.
    pub sum_seconds: f64,
}

impl LatencyCounts {
    /// How many rows.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What has come since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut buckets = self.buckets;
        buckets.iter_mut().zip(earlier.buckets).for_each(|(bucket, before)| *bucket = bucket.saturating_sub(before));
        Self { buckets, sum_seconds: (self.sum_seconds - earlier.sum_seconds).max(0.0) }
    }

    /// The latency in seconds that this share of the rows kept, by a straight line within its bucket as
    /// Prometheus draws it; the last bound for what is beyond. `None` without rows.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = share * count as f64;
        let mut below = 0.0;
        for (index, rows) in self.buckets.iter().enumerate() {
            let rows = *rows as f64;
            if rows > 0.0 && below + rows >= wanted {
                let lower = if index == 0 { 0.0 } else { LATENCY_BOUNDS_SECONDS[index - 1] };
                let upper = LATENCY_BOUNDS_SECONDS.get(index).copied().unwrap_or(lower);
                return Some(lower + (upper - lower) * ((wanted - below) / rows).clamp(0.0, 1.0));
            }
            below += rows;
        }
        LATENCY_BOUNDS_SECONDS.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::TimestampMicrosecondArray;

    use super::*;

    #[test]
    fn the_bounds_are_the_same_in_both_units() {
        for (seconds, us) in LATENCY_BOUNDS_SECONDS.iter().zip(BOUNDS_US) {
            assert_eq!(seconds * 1e6, us as f64);
        }
    }

    #[test]
    fn a_column_of_times_counts_as_its_rows_do_one_by_one() {
        let now = 1_000_000_000;
        let latencies = [0, -5, 4_999, 5_000, 5_001, 70_000, 70_001, 300_000_000, 300_000_001, 999_999_999];
        let times: Vec<Option<i64>> = latencies.iter().map(|us| Some(now - us)).chain([None]).collect();
        let column: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times));
        let (all, one_by_one) = (Latencies::default(), Latencies::default());
        [&all, &one_by_one].iter().for_each(|latencies| latencies.hold_against(Duration::from_micros(70_000)));
        all.observe_times(&column, now);
        latencies.iter().for_each(|us| one_by_one.observe(*us, 1));
        assert_eq!(all.counts(), one_by_one.counts());
        assert_eq!(all.counts().count(), 10, "a row without a time is left out");
        assert_eq!((all.within(), one_by_one.within()), (6, 6), "70,001 is too long");
        assert_eq!(all.counts().buckets[0], 4);
        assert_eq!(all.counts().buckets[14], 2);
        assert_eq!(newest(&column, now), Some(now), "a clock that is ahead moves nothing");
    }

    #[test]
    fn quantiles_are_those_of_a_stretch_of_time() {
        let latencies = Latencies::default();
        latencies.observe(2_000_000, 100);
        let before = latencies.counts();
        assert_eq!(before.since(&before).quantile(0.5), None);
        latencies.observe(60_000, 50);
        latencies.observe(700_000, 50);
        let since = latencies.counts().since(&before);
        assert_eq!((since.count(), since.quantile(0.5)), (100, Some(0.1)));
        let quarter = since.quantile(0.25).expect("there are rows");
        assert!((quarter - 0.075).abs() < 1e-9, "half of the way from 0.05 to 0.1: {quarter}");
        assert_eq!(since.quantile(1.0), Some(1.0));
        latencies.observe(900_000_000, 1_000_000);
        assert_eq!(latencies.counts().quantile(0.99), Some(300.0));
    }
}
