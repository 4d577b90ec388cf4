//! A sensor that is stuck: so many readings in a row, over so long, that don't move.
//!
//! Readings are a flat line while the highest and the lowest of them lie no farther apart than the metric's
//! `flat_tolerance` (none: the very same value). The score says how much of a flat line it takes has
//! been seen: it reaches `threshold` with the reading that makes `window` of them in `flat_for`.

use pipeline_engine::stage::StageError;

use super::{Limits, Method, Reading, Standing};
use crate::transforms::snapshot::{Fingerprint, Reader, Writer};

/// `method = "flatline"`
pub(in super::super) struct Flatline {
    /// How many readings make a flat line, at least.
    pub(in super::super) window: u32,
    /// How long it lasts, at least, from its first reading to its last.
    pub(in super::super) flat_for_us: i64,
    /// The score of the reading from which it counts as one.
    pub(in super::super) threshold: f64,
}

/// The readings that have not moved.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Run {
    readings: u32,
    since_us: i64,
    lowest: f64,
    highest: f64,
}

impl Run {
    const EMPTY: Self = Self { readings: 0, since_us: 0, lowest: 0.0, highest: 0.0 };

    /// The run with this reading, or the one that begins with it.
    fn with(self, value: f64, time_us: i64, tolerance: f64) -> Self {
        let (lowest, highest) = (self.lowest.min(value), self.highest.max(value));
        if self.readings > 0 && highest - lowest <= tolerance {
            return Self { readings: self.readings.saturating_add(1), lowest, highest, ..self };
        }
        Self { readings: 1, since_us: time_us, lowest: value, highest: value }
    }
}

impl Method for Flatline {
    const WORD: &'static str = "flatline";

    /// A flat line goes on until it ends: learning it would be to forget it.
    const KEEPS_OUT: bool = false;

    type State = Run;

    fn empty(&self) -> Run {
        Run::EMPTY
    }

    fn places(&self) -> usize {
        0
    }

    /// What is late belongs to a run that may have ended, and says nothing.
    fn measure(&self, state: &mut Run, _: &mut [f64], reading: Reading, limits: &Limits) -> Option<Standing> {
        let time_us = reading.time_us.filter(|_| reading.is_in_order)?;
        let run = state.with(reading.value, time_us, limits.flat_tolerance);
        let readings = f64::from(run.readings) / f64::from(self.window);
        let lasted_us = time_us.saturating_sub(run.since_us);
        let lasted = if self.flat_for_us == 0 { readings } else { lasted_us as f64 / self.flat_for_us as f64 };
        Some(Standing {
            expected: f64::midpoint(run.lowest, run.highest),
            spread: limits.flat_tolerance,
            // Times the whole last: a run that is long enough by a hair must not be rounded below.
            score: self.threshold * readings.min(lasted),
            readings: run.readings,
            method: Self::WORD,
        })
    }

    fn learn(&self, state: &mut Run, _: &mut [f64], reading: Reading, limits: &Limits) {
        if let Some(time_us) = reading.time_us {
            *state = state.with(reading.value, time_us, limits.flat_tolerance);
        }
    }

    fn mark(&self, _: &mut Fingerprint) {}

    fn write(&self, state: &Run, _: &[f64], out: &mut Writer) {
        out.u32(state.readings);
        out.i64(state.since_us);
        out.f64(state.lowest);
        out.f64(state.highest);
    }

    fn read(&self, _: &mut [f64], from: &mut Reader<'_>) -> Result<Run, StageError> {
        Ok(Run { readings: from.u32()?, since_us: from.i64()?, lowest: from.f64()?, highest: from.f64()? })
    }
}
