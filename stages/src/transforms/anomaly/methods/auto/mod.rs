//! What to use where nothing is known of the data: how rare a reading is, for its device and this time of the
//! day, said once.
//!
//! 1. What is expected is the mean of this hour over the last days ([`profile`]).
//! 2. Two distances from it are looked at: the reading's own, for spikes, and the mean of those of the last
//!    [`LEVEL`] readings, for levels and trends that no single reading gives away.
//! 3. Each is weighed by the distances of its kind that came before ([`tail`]): the device's own past says what
//!    is far, so one threshold suits a thermometer and a queue's length. The rarer one counts.
//! 4. A surprise is one only once. What is no more surprising than something of the last day, or among the
//!    last [`LATELY`] readings where a day has fewer, scores zero: a fault is reported when it begins and
//!    when it gets worse, not as long as it lasts, and a device that is always odd is left alone.
//!
//! The score is the distance in standard deviations that would be as rare if all were a bell curve:
//! 3 is one reading in 370. Everything is learned, flagged or not: a new level is the normal one as
//! soon as the hour's mean is there.

mod normal;
mod profile;
mod tail;

use std::collections::VecDeque;

use pipeline_engine::stage::StageError;

use self::profile::Profile;
use self::tail::Tail;
use super::{Limits, Method, Reading, Standing};
use crate::transforms::snapshot::{Fingerprint, Reader, Writer, damaged};

/// How many readings make a level.
const LEVEL: usize = 10;
/// How many readings a surprise is remembered for at least, and how many are remembered at most.
const LATELY: u64 = 300;
/// How long it is remembered at least.
const LATELY_US: i64 = 86_400_000_000;
/// How many readings the tails are of; older ones fade.
const MEMORY: f64 = 2000.0;
/// Below it, a fiftieth of the distances is not yet two of them.
const WARMUP: u64 = 100;

/// `method = "auto"`
pub(in super::super) struct Auto;

/// What is remembered of one device and metric.
#[derive(Debug, Clone)]
pub(in super::super) struct Past {
    /// How many readings were learned.
    readings: u64,
    profile: Profile,
    /// The distances of the last readings, signed, the newest last.
    last: VecDeque<f64>,
    readings_tail: Tail,
    levels_tail: Tail,
    /// Surprises of late: those that no later one has reached. So the first is the greatest.
    surprises: VecDeque<Surprise>,
    /// What was found of the reading at hand, for learning it. Not part of a snapshot: each reading
    /// is measured before it is learned.
    found: Option<Found>,
}

/// A reading that was surprising.
#[derive(Debug, Clone, Copy)]
struct Surprise {
    /// How many readings were learned before it.
    number: u64,
    time_us: i64,
    size: f64,
}

/// How far a reading is from what was expected.
#[derive(Debug, Clone, Copy)]
struct Found {
    expected: f64,
    /// The distance, and the least that counts as one.
    reading: (f64, f64),
    /// That of the mean of the last readings.
    level: (f64, f64),
    of_reading: f64,
    of_level: f64,
}

impl Found {
    fn surprise(&self) -> f64 {
        self.of_reading.max(self.of_level)
    }
}

impl Past {
    fn find(&self, value: f64, time_us: i64, limits: &Limits) -> Option<Found> {
        if self.readings == 0 {
            return None;
        }
        let expected = self.profile.expected(time_us);
        let least = limits.at_least(0.0, expected);
        let distance = value - expected;
        let others = self.last.iter().skip((self.last.len() + 1).saturating_sub(LEVEL));
        let level = (others.clone().sum::<f64>() + distance) / (others.count() + 1) as f64;
        let (reading, level) = ((distance, least), (level, least / (LEVEL as f64).sqrt()));
        let surprise = |tail: &Tail, (distance, least): (f64, f64)| tail.surprise(distance.abs(), least);
        Some(Found {
            expected,
            reading,
            level,
            of_reading: surprise(&self.readings_tail, reading),
            of_level: surprise(&self.levels_tail, level),
        })
    }

    fn is_of_late(&self, surprise: &Surprise, time_us: i64) -> bool {
        // One from a clock that was ahead is of no day.
        let is_of_the_day = (0..=LATELY_US).contains(&time_us.saturating_sub(surprise.time_us));
        is_of_the_day || surprise.number + LATELY >= self.readings
    }

    /// Whether nothing of late was as surprising.
    fn is_news(&self, size: f64, time_us: i64) -> bool {
        let greatest = self.surprises.iter().find(|surprise| self.is_of_late(surprise, time_us));
        greatest.is_none_or(|greatest| size > greatest.size)
    }

    fn remember(&mut self, size: f64, time_us: i64) {
        while self.surprises.front().is_some_and(|surprise| !self.is_of_late(surprise, time_us)) {
            self.surprises.pop_front();
        }
        if size <= 0.0 {
            return;
        }
        while self.surprises.back().is_some_and(|earlier| earlier.size <= size) {
            self.surprises.pop_back();
        }
        // So many in a row that each is smaller than the last: the smallest is the least loss.
        if (self.surprises.len() as u64) < LATELY {
            self.surprises.push_back(Surprise { number: self.readings, time_us, size });
        }
    }
}

impl Method for Auto {
    const WORD: &'static str = "auto";

    const KEEPS_OUT: bool = false;

    type State = Past;

    fn empty(&self) -> Past {
        Past {
            readings: 0,
            profile: Profile::empty(),
            last: VecDeque::new(),
            readings_tail: Tail::empty(),
            levels_tail: Tail::empty(),
            surprises: VecDeque::new(),
            found: None,
        }
    }

    fn places(&self) -> usize {
        0
    }

    fn measure(&self, state: &mut Past, _: &mut [f64], reading: Reading, limits: &Limits) -> Option<Standing> {
        let time_us = reading.time_us?;
        state.found = state.find(reading.value, time_us, limits);
        let found = state.found.filter(|_| state.readings >= WARMUP)?;
        let is_level = found.of_level > found.of_reading;
        let (distance, least) = if is_level { found.level } else { found.reading };
        let surprise = found.surprise();
        let score =
            if surprise > 0.0 && state.is_news(surprise, time_us) { normal::distance_as_rare(surprise) } else { 0.0 };
        Some(Standing {
            expected: found.expected,
            spread: if score > 0.0 { distance.abs() / score } else { least },
            score: if score > 0.0 { score.copysign(distance) } else { 0.0 },
            readings: u32::try_from(state.readings).unwrap_or(u32::MAX).min(MEMORY as u32),
            method: if is_level { "auto:level" } else { "auto:reading" },
        })
    }

    fn learn(&self, state: &mut Past, _: &mut [f64], reading: Reading, _: &Limits) {
        let Some(time_us) = reading.time_us else { return };
        if let Some(found) = state.found.take() {
            let keep = 1.0 - 1.0 / MEMORY;
            state.readings_tail.push(found.reading.0.abs(), found.reading.1, keep);
            state.levels_tail.push(found.level.0.abs(), found.level.1, keep);
            if state.last.len() == LEVEL {
                state.last.pop_front();
            }
            state.last.push_back(found.reading.0);
            state.remember(if state.readings >= WARMUP { found.surprise() } else { 0.0 }, time_us);
        }
        state.profile.learn(time_us, reading.value);
        state.readings += 1;
    }

    fn mark(&self, _: &mut Fingerprint) {}

    fn write(&self, state: &Past, _: &[f64], out: &mut Writer) {
        out.u64(state.readings);
        state.profile.write(out);
        state.readings_tail.write(out);
        state.levels_tail.write(out);
        out.u32(state.last.len() as u32);
        state.last.iter().for_each(|distance| out.f64(*distance));
        out.u32(state.surprises.len() as u32);
        for surprise in &state.surprises {
            out.u64(surprise.number);
            out.i64(surprise.time_us);
            out.f64(surprise.size);
        }
    }

    fn read(&self, _: &mut [f64], from: &mut Reader<'_>) -> Result<Past, StageError> {
        let readings = from.u64()?;
        let profile = Profile::read(from)?;
        let (readings_tail, levels_tail) = (Tail::read(from)?, Tail::read(from)?);
        let count = from.u32()? as usize;
        if count > LEVEL {
            return Err(damaged());
        }
        let last: Result<_, StageError> = (0..count).map(|_| from.f64()).collect();
        let last = last?;
        let count = from.u32()?;
        if u64::from(count) > LATELY {
            return Err(damaged());
        }
        let surprises: Result<_, StageError> =
            (0..count).map(|_| Ok(Surprise { number: from.u64()?, time_us: from.i64()?, size: from.f64()? })).collect();
        Ok(Past { readings, profile, last, readings_tail, levels_tail, surprises: surprises?, found: None })
    }
}
