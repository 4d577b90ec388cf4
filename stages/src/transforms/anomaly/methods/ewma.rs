//! Distance from the exponentially weighted mean, in exponentially weighted standard deviations: the
//! newest readings count most, and nothing leaves at an edge. Five numbers of memory.
//!
//! With `alpha = 2 / (window + 1)` the k-th reading from the newest weighs `(1 - alpha)^k`. Mean and
//! standard deviation are those of pandas' `ewm(span=window)`: weights adjusted to the readings there
//! are, the variance without bias.

use pipeline_engine::stage::StageError;

use super::{Limits, Method, Reading, Standing};
use crate::transforms::snapshot::{Fingerprint, Reader, Writer};

/// `method = "ewma"`
pub(in super::super) struct Ewma {
    /// The span: the weights' centre of mass lies as for an even window of so many readings.
    pub(in super::super) window: u32,
    /// Fewer readings give no score; two at least.
    pub(in super::super) warmup: u32,
}

/// Weighted sums of all readings so far.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Decayed {
    /// How many readings, up to the largest number of this type.
    count: u32,
    /// The sum of the weights.
    weight: f64,
    /// The sum of their squares.
    weight_squares: f64,
    /// The first reading. What follows is kept as distances from there, to lose no digits to a large common
    /// part.
    anchor: f64,
    /// The weighted mean, from the anchor.
    mean: f64,
    /// The weighted sum of squared distances from the mean.
    scatter: f64,
}

impl Decayed {
    const EMPTY: Self = Self { count: 0, weight: 0.0, weight_squares: 0.0, anchor: 0.0, mean: 0.0, scatter: 0.0 };

    fn push(&mut self, value: f64, decay: f64) {
        if self.count == 0 {
            self.anchor = value;
        }
        let before = self.weight * decay;
        let weight = before + 1.0;
        let distance = (value - self.anchor) - self.mean;
        self.mean += distance / weight;
        self.scatter = self.scatter * decay + distance * distance * (before / weight);
        self.weight = weight;
        self.weight_squares = self.weight_squares * decay * decay + 1.0;
        self.count = self.count.saturating_add(1);
    }

    /// Without bias; there are two readings at least.
    fn stddev(&self) -> f64 {
        let square = self.weight * self.weight;
        (self.scatter * self.weight / (square - self.weight_squares)).max(0.0).sqrt()
    }
}

impl Method for Ewma {
    const WORD: &'static str = "ewma";

    type State = Decayed;

    fn empty(&self) -> Decayed {
        Decayed::EMPTY
    }

    fn places(&self) -> usize {
        0
    }

    fn measure(&self, state: &mut Decayed, _: &mut [f64], reading: Reading, limits: &Limits) -> Option<Standing> {
        if state.count < self.warmup {
            return None;
        }
        let expected = state.anchor + state.mean;
        let spread = limits.at_least(state.stddev(), expected);
        Some(Standing {
            expected,
            spread,
            score: ((reading.value - state.anchor) - state.mean) / spread,
            readings: state.count,
            method: Self::WORD,
        })
    }

    fn learn(&self, state: &mut Decayed, _: &mut [f64], reading: Reading, _: &Limits) {
        state.push(reading.value, 1.0 - 2.0 / (f64::from(self.window) + 1.0));
    }

    fn mark(&self, fingerprint: &mut Fingerprint) {
        fingerprint.number(self.window.into());
    }

    fn write(&self, state: &Decayed, _: &[f64], out: &mut Writer) {
        out.u32(state.count);
        let sums = [state.weight, state.weight_squares, state.anchor, state.mean, state.scatter];
        sums.into_iter().for_each(|sum| out.f64(sum));
    }

    fn read(&self, _: &mut [f64], from: &mut Reader<'_>) -> Result<Decayed, StageError> {
        Ok(Decayed {
            count: from.u32()?,
            weight: from.f64()?,
            weight_squares: from.f64()?,
            anchor: from.f64()?,
            mean: from.f64()?,
            scatter: from.f64()?,
        })
    }
}
