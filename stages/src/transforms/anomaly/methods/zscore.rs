//! Distance from the mean of the last readings, in their standard deviations.

use pipeline_engine::stage::StageError;

use super::window::Window;
use super::{Limits, Method, Reading, Standing};
use crate::transforms::snapshot::{Fingerprint, Reader, Writer};

/// `method = "zscore"`
pub(in super::super) struct Zscore {
    pub(in super::super) window: u32,
    /// A window with fewer readings gives no score; two at least.
    pub(in super::super) warmup: u32,
}

impl Method for Zscore {
    const WORD: &'static str = "zscore";

    type State = Window;

    fn empty(&self) -> Window {
        Window::EMPTY
    }

    fn places(&self) -> usize {
        self.window as usize
    }

    fn measure(&self, state: &mut Window, ring: &mut [f64], reading: Reading, limits: &Limits) -> Option<Standing> {
        if state.count() < self.warmup {
            return None;
        }
        let found = state.measure(ring, reading.value);
        let spread = limits.at_least(found.stddev, found.mean);
        Some(Standing {
            expected: found.mean,
            spread,
            score: found.distance / spread,
            readings: state.count(),
            method: Self::WORD,
        })
    }

    fn learn(&self, state: &mut Window, ring: &mut [f64], reading: Reading, _limits: &Limits) {
        state.push(ring, reading.value);
    }

    fn mark(&self, fingerprint: &mut Fingerprint) {
        fingerprint.number(self.window.into());
    }

    fn write(&self, state: &Window, ring: &[f64], out: &mut Writer) {
        state.write(ring, out);
    }

    fn read(&self, ring: &mut [f64], from: &mut Reader<'_>) -> Result<Window, StageError> {
        Window::read(ring, from)
    }
}
