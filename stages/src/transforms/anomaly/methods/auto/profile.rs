//! What a device sends at this time of the day: the mean of each hour over the last days.
//!
//! The hour at hand counts as one more day, and so does the mean of everything: so there is an
//! expectation from the second reading on, a value that does not depend on the time of day is expected
//! at its mean, and a day that is not like the others is followed while it lasts.

use pipeline_engine::stage::StageError;

use crate::transforms::snapshot::{Reader, Writer, damaged};

const HOURS: usize = 24;
const HOUR_US: i64 = 3_600_000_000;
/// How many earlier days a hour is the mean of: with each day that is added, the others fade.
const DAYS: f32 = 7.0;
/// How many readings the mean of everything is of.
const READINGS: f64 = 4000.0;

/// One hour of the day.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// The hour of all time that `mean` and `count` are of.
    visit: i64,
    mean: f64,
    past_mean: f64,
    count: u32,
    past_days: f32,
}

impl Bucket {
    const EMPTY: Self = Self { visit: i64::MIN, mean: 0.0, past_mean: 0.0, count: 0, past_days: 0.0 };

    /// Today is the past where another day comes.
    fn turn(&mut self, visit: i64) {
        if visit == self.visit {
            return;
        }
        if self.count > 0 {
            self.past_days = (self.past_days + 1.0).min(DAYS);
            self.past_mean += (self.mean - self.past_mean) / f64::from(self.past_days);
        }
        (self.visit, self.count, self.mean) = (visit, 0, 0.0);
    }
}

/// All hours of the day, and the mean of everything.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    /// None before the first reading.
    buckets: Box<[Bucket]>,
    mean: f64,
    readings: f64,
}

fn bucket_of(time_us: i64) -> (i64, usize) {
    let visit = time_us.div_euclid(HOUR_US);
    (visit, visit.rem_euclid(HOURS as i64) as usize)
}

impl Profile {
    pub(super) fn empty() -> Self {
        Self { buckets: Box::default(), mean: 0.0, readings: 0.0 }
    }

    /// What to expect at this time; there was a reading before.
    pub(super) fn expected(&self, time_us: i64) -> f64 {
        let (visit, bucket) = bucket_of(time_us);
        let Some(mut bucket) = self.buckets.get(bucket).copied() else { return self.mean };
        bucket.turn(visit);
        // As distances from the mean of everything: no digits are lost to it.
        let today = if bucket.count > 0 { 1.0 } else { 0.0 };
        let past_days = f64::from(bucket.past_days);
        let distances = past_days * (bucket.past_mean - self.mean) + today * (bucket.mean - self.mean);
        self.mean + distances / (past_days + today + 1.0)
    }

    pub(super) fn learn(&mut self, time_us: i64, value: f64) {
        if self.buckets.is_empty() {
            self.buckets = vec![Bucket::EMPTY; HOURS].into();
        }
        let (visit, bucket) = bucket_of(time_us);
        let bucket = &mut self.buckets[bucket];
        bucket.turn(visit);
        bucket.count = bucket.count.saturating_add(1);
        bucket.mean += (value - bucket.mean) / f64::from(bucket.count);
        self.readings = (self.readings + 1.0).min(READINGS);
        self.mean += (value - self.mean) / self.readings;
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.f64(self.mean);
        out.f64(self.readings);
        out.u32(self.buckets.len() as u32);
        for bucket in &self.buckets {
            out.i64(bucket.visit);
            out.f64(bucket.mean);
            out.f64(bucket.past_mean);
            out.u32(bucket.count);
            out.u32(bucket.past_days.to_bits());
        }
    }

    /// # Errors
    /// There can't be such a profile.
    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, StageError> {
        let (mean, readings) = (from.f64()?, from.f64()?);
        let count = from.u32()? as usize;
        if count != 0 && count != HOURS {
            return Err(damaged());
        }
        let bucket = |_| {
            Ok(Bucket {
                visit: from.i64()?,
                mean: from.f64()?,
                past_mean: from.f64()?,
                count: from.u32()?,
                past_days: f32::from_bits(from.u32()?),
            })
        };
        let buckets: Result<Box<[Bucket]>, StageError> = (0..count).map(bucket).collect();
        Ok(Self { buckets: buckets?, mean, readings })
    }
}
