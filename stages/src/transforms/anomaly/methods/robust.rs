//! Distance from the median of the last readings, in median absolute deviations: up to half of the
//! window may be wrong and neither moves far.
//!
//! The deviation is scaled by 1.4826, so that a score means for the bell curve what it means as a
//! standard deviation. Where more than half of the window is one value, the deviation is zero and the
//! least spread stands in for it.

use pipeline_engine::stage::StageError;

use super::{Limits, Method, Reading, Standing};
use crate::transforms::snapshot::{Fingerprint, Reader, Writer, damaged};

/// The standard deviation of the bell curve whose median absolute deviation is 1: one over the
/// quantile of three quarters.
const STDDEV_OF_MAD: f64 = 1.482_602_218_505_602;

/// `method = "robust"`
pub(in super::super) struct Robust {
    pub(in super::super) window: u32,
    /// A window with fewer readings gives no score.
    pub(in super::super) warmup: u32,
}

/// The ring's place; its readings lie in the first half of the places as they came, and in the second
/// half in order of size.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Ring {
    count: u32,
    next: u32,
}

impl Ring {
    fn push(&mut self, places: &mut [f64], value: f64) {
        // The two zeros are equal in order of size and must not differ in what comes out.
        let value = value + 0.0;
        let (ring, sorted) = places.split_at_mut(places.len() / 2);
        let count = self.count as usize;
        let oldest = &mut ring[self.next as usize];
        if count == sorted.len() {
            // Slides what lies between the oldest one's place and the new one's by one place.
            let from = sorted.partition_point(|other| *other < *oldest).min(count - 1);
            let to = sorted.partition_point(|other| *other < value);
            if from < to {
                sorted.copy_within(from + 1..to, from);
                sorted[to - 1] = value;
            } else {
                sorted.copy_within(to..from, to + 1);
                sorted[to] = value;
            }
        } else {
            let to = sorted[..count].partition_point(|other| *other < value);
            sorted.copy_within(to..count, to + 1);
            sorted[to] = value;
            self.count += 1;
        }
        *oldest = value;
        self.next += 1;
        if self.next as usize == ring.len() {
            self.next = 0;
        }
    }

    /// The readings in order of size.
    fn sorted<'a>(&self, places: &'a [f64]) -> &'a [f64] {
        &places[places.len() / 2..][..self.count as usize]
    }
}

/// The middle of values in order of size; of an even number, the mean of the two in the middle.
fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// The median of the distances from `centre`: they rise from there to both sides, so it is the middle of
/// two lists that are in order. A binary search finds how many of the lower half lie below the centre.
fn median_distance(sorted: &[f64], centre: f64) -> f64 {
    let split = sorted.partition_point(|value| *value < centre);
    let (below, above) = sorted.split_at(split);
    let below_at = |index: usize| below.len().checked_sub(index + 1).map_or(f64::INFINITY, |at| centre - below[at]);
    let above_at = |index: usize| above.get(index).map_or(f64::INFINITY, |value| value - centre);
    let half = sorted.len() / 2;
    let (mut least, mut most) = (half.saturating_sub(above.len()), half.min(below.len()));
    while least < most {
        let taken = usize::midpoint(least, most);
        if below_at(taken) < above_at(half - taken - 1) {
            least = taken + 1;
        } else {
            most = taken;
        }
    }
    let others = half - least;
    let upper = below_at(least).min(above_at(others));
    if sorted.len() % 2 == 1 {
        return upper;
    }
    let lower = [(least, &below_at as &dyn Fn(usize) -> f64), (others, &above_at)];
    let lower = lower.into_iter().filter(|(taken, _)| *taken > 0).map(|(taken, at)| at(taken - 1));
    f64::midpoint(lower.fold(0.0, f64::max), upper)
}

impl Method for Robust {
    const WORD: &'static str = "robust";

    type State = Ring;

    fn empty(&self) -> Ring {
        Ring { count: 0, next: 0 }
    }

    fn places(&self) -> usize {
        2 * self.window as usize
    }

    fn measure(&self, state: &mut Ring, places: &mut [f64], reading: Reading, limits: &Limits) -> Option<Standing> {
        if state.count < self.warmup {
            return None;
        }
        let sorted = state.sorted(places);
        let expected = median(sorted);
        let spread = limits.at_least(STDDEV_OF_MAD * median_distance(sorted, expected), expected);
        Some(Standing {
            expected,
            spread,
            score: (reading.value - expected) / spread,
            readings: state.count,
            method: Self::WORD,
        })
    }

    fn learn(&self, state: &mut Ring, places: &mut [f64], reading: Reading, _: &Limits) {
        state.push(places, reading.value);
    }

    fn mark(&self, fingerprint: &mut Fingerprint) {
        fingerprint.number(self.window.into());
    }

    fn write(&self, state: &Ring, places: &[f64], out: &mut Writer) {
        out.u32(state.count);
        out.u32(state.next);
        places[..state.count as usize].iter().for_each(|value| out.f64(*value));
    }

    fn read(&self, places: &mut [f64], from: &mut Reader<'_>) -> Result<Ring, StageError> {
        let state = Ring { count: from.u32()?, next: from.u32()? };
        let (ring, sorted) = places.split_at_mut(places.len() / 2);
        let count = state.count as usize;
        if count > ring.len() || state.next as usize >= ring.len() {
            return Err(damaged());
        }
        for value in &mut ring[..count] {
            *value = from.f64()?;
        }
        sorted[..count].copy_from_slice(&ring[..count]);
        sorted[..count].sort_unstable_by(f64::total_cmp);
        Ok(state)
    }
}
