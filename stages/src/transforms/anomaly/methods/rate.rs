//! How fast a reading has changed since the one before it: against a limit, or against how fast the
//! device's readings change otherwise.
//!
//! A change is taken a second of the readings' own time, so gaps and uneven steps don't look like
//! jumps. The answer is in the metric's unit again: what was to be expected now, and how far off is
//! usual after that time. With a limit, the score is `threshold` where the change is as fast as it.

use pipeline_engine::stage::StageError;

use super::window::Window;
use super::{Limits, Method, Reading, Standing};
use crate::transforms::snapshot::{Fingerprint, Reader, Writer};

/// `method = "rate"`
pub(in super::super) struct Rate {
    pub(in super::super) window: u32,
    /// A window with fewer changes gives no score; two at least. Limits need none.
    pub(in super::super) warmup: u32,
    /// The score of a change that is as fast as its limit.
    pub(in super::super) threshold: f64,
}

/// The reading before, and the window of changes, in units a second.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Changes {
    before: Option<(i64, f64)>,
    window: Window,
}

impl Changes {
    /// How much later than the reading before this one is, in seconds, and by how much it differs.
    fn change(&self, reading: Reading) -> Option<(f64, f64)> {
        let (time_us, value) = self.before?;
        let elapsed_us = reading.time_us?.checked_sub(time_us)?;
        (elapsed_us > 0).then(|| (elapsed_us as f64 / 1e6, reading.value - value))
    }
}

impl Method for Rate {
    const WORD: &'static str = "rate";

    type State = Changes;

    fn empty(&self) -> Changes {
        Changes { before: None, window: Window::EMPTY }
    }

    fn places(&self) -> usize {
        self.window as usize
    }

    fn measure(&self, state: &mut Changes, ring: &mut [f64], reading: Reading, limits: &Limits) -> Option<Standing> {
        let (elapsed, change) = state.change(reading)?;
        let before = reading.value - change;
        if let Some(rate_max) = limits.rate_max {
            let spread = rate_max * elapsed / self.threshold;
            return Some(Standing {
                expected: before,
                spread,
                score: change / spread,
                readings: 1,
                method: Self::WORD,
            });
        }
        if state.window.count() < self.warmup {
            return None;
        }
        let found = state.window.measure(ring, change / elapsed);
        let spread = limits.at_least(found.stddev * elapsed, before);
        Some(Standing {
            expected: before + found.mean * elapsed,
            spread,
            score: found.distance * elapsed / spread,
            readings: state.window.count(),
            method: Self::WORD,
        })
    }

    fn learn(&self, state: &mut Changes, ring: &mut [f64], reading: Reading, _: &Limits) {
        if let Some((elapsed, change)) = state.change(reading) {
            state.window.push(ring, change / elapsed);
        }
        self.pass_over(state, reading);
    }

    /// The next change is taken from here, whatever became of this one.
    fn pass_over(&self, state: &mut Changes, reading: Reading) {
        state.before = reading.time_us.map(|time_us| (time_us, reading.value));
    }

    fn start_over(&self, state: &mut Changes, ring: &mut [f64], reading: Reading, limits: &Limits) {
        state.window = Window::EMPTY;
        self.learn(state, ring, reading, limits);
    }

    fn mark(&self, fingerprint: &mut Fingerprint) {
        fingerprint.number(self.window.into());
    }

    fn write(&self, state: &Changes, ring: &[f64], out: &mut Writer) {
        out.optional_i64(state.before.map(|(time_us, _)| time_us));
        out.f64(state.before.map_or(0.0, |(_, value)| value));
        state.window.write(ring, out);
    }

    fn read(&self, ring: &mut [f64], from: &mut Reader<'_>) -> Result<Changes, StageError> {
        let time_us = from.optional_i64()?;
        let value = from.f64()?;
        Ok(Changes { before: time_us.map(|time_us| (time_us, value)), window: Window::read(ring, from)? })
    }
}
