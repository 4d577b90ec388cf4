//! Distance from what the device sends at this hour of the day, this day of the week or this hour of
//! the week, in the standard deviation of those readings.
//!
//! A season is cut into buckets of whole hours or days of UTC. A reading is compared with the readings
//! of its bucket in *earlier* seasons, never with its own hour: so a fault that begins on the hour is
//! measured by yesterday, and not by itself. A bucket gives scores once it was visited in two earlier seasons and
//! holds `warmup` readings of them. With each later visit the earlier ones weigh less, as in an exponentially
//! weighted mean with a span of `seasons`.

use pipeline_engine::stage::StageError;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Limits, Method, Reading, Standing};
use crate::transforms::snapshot::{Fingerprint, Reader, Writer, damaged};

const HOUR_US: i64 = 3_600_000_000;
/// With one earlier season there is no telling what varies between seasons.
const VISITS_MIN: u32 = 2;

/// What repeats itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Season {
    /// 24 buckets.
    HourOfDay,
    /// 7 buckets.
    DayOfWeek,
    /// 168 buckets.
    HourOfWeek,
}

impl Season {
    fn bucket_us(self) -> i64 {
        match self {
            Self::HourOfDay | Self::HourOfWeek => HOUR_US,
            Self::DayOfWeek => 24 * HOUR_US,
        }
    }

    fn buckets(self) -> usize {
        match self {
            Self::HourOfDay => 24,
            Self::DayOfWeek => 7,
            Self::HourOfWeek => 168,
        }
    }

    /// Which bucket of all time, and which of the season. The season's begins with the epoch, a
    /// Thursday at midnight.
    fn bucket(self, time_us: i64) -> (i64, usize) {
        let visit = time_us.div_euclid(self.bucket_us());
        (visit, visit.rem_euclid(self.buckets() as i64) as usize)
    }
}

/// `method = "seasonal"`
pub(in super::super) struct Seasonal {
    pub(in super::super) season: Season,
    /// The span of the weights, in visits of a bucket.
    pub(in super::super) seasons: u32,
    /// A bucket with fewer readings in earlier seasons gives no score.
    pub(in super::super) warmup: u32,
}

/// Weight, mean and sum of squared distances from it.
#[derive(Debug, Clone, Copy)]
struct Moments {
    weight: f64,
    mean: f64,
    scatter: f64,
}

impl Moments {
    const EMPTY: Self = Self { weight: 0.0, mean: 0.0, scatter: 0.0 };

    fn push(&mut self, value: f64) {
        self.weight += 1.0;
        let distance = value - self.mean;
        self.mean += distance / self.weight;
        self.scatter += distance * (value - self.mean);
    }

    /// Takes in others, after letting its own weigh less.
    fn merge(&mut self, decay: f64, newer: &Self) {
        let before = self.weight * decay;
        let weight = before + newer.weight;
        let distance = newer.mean - self.mean;
        self.mean += distance * (newer.weight / weight);
        self.scatter = self.scatter * decay + newer.scatter + distance * distance * (before * newer.weight / weight);
        self.weight = weight;
    }
}

/// One hour of the day, or whatever the season is cut into.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Bucket {
    /// The bucket of all time that `current` is of.
    visit: i64,
    current: Moments,
    /// Earlier seasons.
    past: Moments,
    past_visits: u32,
    past_readings: u32,
}

impl Bucket {
    const EMPTY: Self =
        Self { visit: i64::MIN, current: Moments::EMPTY, past: Moments::EMPTY, past_visits: 0, past_readings: 0 };

    /// The visit that was is the past now, if it is another one that comes.
    fn turn(&mut self, visit: i64, decay: f64) {
        if visit == self.visit {
            return;
        }
        if self.current.weight > 0.0 {
            self.past.merge(decay, &self.current);
            self.past_visits = self.past_visits.saturating_add(1);
            self.past_readings = self.past_readings.saturating_add(self.current.weight as u32);
        }
        self.visit = visit;
        self.current = Moments::EMPTY;
    }
}

impl Seasonal {
    fn decay(&self) -> f64 {
        1.0 - 2.0 / (f64::from(self.seasons) + 1.0)
    }
}

impl Method for Seasonal {
    const WORD: &'static str = "seasonal";

    /// All buckets; none before the first reading is learned.
    type State = Vec<Bucket>;

    fn empty(&self) -> Vec<Bucket> {
        Vec::new()
    }

    fn places(&self) -> usize {
        0
    }

    fn measure(&self, state: &mut Vec<Bucket>, _: &mut [f64], reading: Reading, limits: &Limits) -> Option<Standing> {
        let (visit, bucket) = self.season.bucket(reading.time_us?);
        let mut bucket = *state.get(bucket)?;
        bucket.turn(visit, self.decay());
        if bucket.past_visits < VISITS_MIN || bucket.past_readings < self.warmup {
            return None;
        }
        let past = &bucket.past;
        let stddev = (past.scatter / (past.weight - 1.0).max(1.0)).max(0.0).sqrt();
        let spread = limits.at_least(stddev, past.mean);
        Some(Standing {
            expected: past.mean,
            spread,
            score: (reading.value - past.mean) / spread,
            readings: bucket.past_readings,
            method: Self::WORD,
        })
    }

    fn learn(&self, state: &mut Vec<Bucket>, _: &mut [f64], reading: Reading, _: &Limits) {
        let Some(time_us) = reading.time_us else { return };
        state.resize(self.season.buckets(), Bucket::EMPTY);
        let (visit, bucket) = self.season.bucket(time_us);
        let bucket = &mut state[bucket];
        bucket.turn(visit, self.decay());
        bucket.current.push(reading.value);
    }

    /// This bucket alone: the others have not been contradicted.
    fn start_over(&self, state: &mut Vec<Bucket>, places: &mut [f64], reading: Reading, limits: &Limits) {
        if let Some(time_us) = reading.time_us
            && let Some(bucket) = state.get_mut(self.season.bucket(time_us).1)
        {
            *bucket = Bucket::EMPTY;
        }
        self.learn(state, places, reading, limits);
    }

    fn mark(&self, fingerprint: &mut Fingerprint) {
        fingerprint.number(self.season.bucket_us() as u64);
        fingerprint.number(self.season.buckets() as u64);
        fingerprint.number(self.seasons.into());
    }

    fn write(&self, state: &Vec<Bucket>, _: &[f64], out: &mut Writer) {
        out.u32(state.len() as u32);
        for bucket in state {
            out.i64(bucket.visit);
            for moments in [&bucket.current, &bucket.past] {
                [moments.weight, moments.mean, moments.scatter].into_iter().for_each(|sum| out.f64(sum));
            }
            out.u32(bucket.past_visits);
            out.u32(bucket.past_readings);
        }
    }

    fn read(&self, _: &mut [f64], from: &mut Reader<'_>) -> Result<Vec<Bucket>, StageError> {
        let count = from.u32()? as usize;
        if count != 0 && count != self.season.buckets() {
            return Err(damaged());
        }
        let moments = |from: &mut Reader<'_>| -> Result<Moments, StageError> {
            Ok(Moments { weight: from.f64()?, mean: from.f64()?, scatter: from.f64()? })
        };
        let bucket = |_| {
            Ok(Bucket {
                visit: from.i64()?,
                current: moments(from)?,
                past: moments(from)?,
                past_visits: from.u32()?,
                past_readings: from.u32()?,
            })
        };
        (0..count).map(bucket).collect()
    }
}
