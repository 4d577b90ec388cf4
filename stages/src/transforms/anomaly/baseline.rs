//! The recent readings of one device and metric, and where a new one stands against them.
//!
//! Mean and variance are kept as running sums of distances from an anchor near the mean, so that a
//! reading costs the same whatever the window. Running sums round, and a spike that has left the
//! window leaves its rounding behind. Two rules bound that: the window is summed anew each time its
//! ring has turned over, and whenever the sums have shrunk so far below their peak that rounding
//! could show (see [`Baseline::is_worn`]). What comes out is that of a two-pass sum to 1e-9.

use pipeline_engine::stage::StageError;

use crate::transforms::snapshot::{Reader, Writer, damaged};

/// When a reading is flagged and what is learned from it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// A window with fewer readings gives no score.
    pub(super) warmup: u32,
    /// The score from which a reading is flagged.
    pub(super) threshold: f64,
    /// The score from which a flagged reading is critical.
    pub(super) critical: f64,
    /// After so many flagged readings in a row the window starts over. `None`: flagged readings are
    /// learned like any other.
    pub(super) relearn_after: Option<u32>,
}

impl Rules {
    pub(super) fn flags(&self, standing: &Standing) -> bool {
        standing.score.abs() >= self.threshold
    }

    pub(super) fn is_critical(&self, standing: &Standing) -> bool {
        standing.score.abs() >= self.critical
    }
}

/// The least spread that a reading is measured by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Floor {
    pub(super) absolute: f64,
    /// As a part of the mean.
    pub(super) relative: f64,
}

/// Keeps a score finite where the window is flat at zero and no floor is given: the unit of the last
/// place that a sensor could mean.
const SPREAD_MIN: f64 = 1e-9;
/// Far beyond any sensor, and far enough below the end of floats that no sum of squares gets there.
const VALUE_MAX: f64 = 1e100;

/// Where a reading stands against the window before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Standing {
    pub(super) mean: f64,
    /// The window's standard deviation, or the floor where that is larger.
    pub(super) spread: f64,
    /// The distance from the mean in spreads; finite.
    pub(super) score: f64,
    /// How many readings the window held.
    pub(super) readings: i32,
}

/// The sums over one window, whose readings lie in a ring beside it. Plain data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Baseline {
    /// How many readings the ring holds: its first ones until it is full.
    count: u32,
    /// Where the next reading goes.
    next: u32,
    /// Distances are taken from here.
    anchor: f64,
    /// The sum of the distances.
    sum: f64,
    /// The sum of their squares.
    squares: f64,
    /// The largest that `squares` has been since the window was summed anew.
    squares_peak: f64,
    /// The time of the newest reading in the window.
    newest_us: i64,
    /// How many readings in a row were not newer than that.
    late: u32,
    /// Two for each flagged reading, less one for each other; never below zero.
    strikes: u32,
}

impl Baseline {
    /// A window without readings.
    pub(super) const EMPTY: Self = Self {
        count: 0,
        next: 0,
        anchor: 0.0,
        sum: 0.0,
        squares: 0.0,
        squares_peak: 0.0,
        newest_us: i64::MIN,
        late: 0,
        strikes: 0,
    };

    /// The window as it is, its sums included: they were rounded in their own order.
    pub(super) fn write(&self, ring: &[f64], state: &mut Writer) {
        for count in [self.count, self.next, self.late, self.strikes] {
            state.u32(count);
        }
        for sum in [self.anchor, self.sum, self.squares, self.squares_peak] {
            state.f64(sum);
        }
        state.i64(self.newest_us);
        ring[..self.count as usize].iter().for_each(|value| state.f64(*value));
    }

    /// The window that was written, its readings put into an empty ring.
    ///
    /// # Errors
    /// There can't be such a window.
    pub(super) fn read(ring: &mut [f64], state: &mut Reader<'_>) -> Result<Self, StageError> {
        let [count, next, late, strikes] = [state.u32()?, state.u32()?, state.u32()?, state.u32()?];
        let [anchor, sum, squares, squares_peak] = [state.f64()?, state.f64()?, state.f64()?, state.f64()?];
        let newest_us = state.i64()?;
        if count as usize > ring.len() || next as usize >= ring.len() {
            return Err(damaged());
        }
        for value in &mut ring[..count as usize] {
            *value = state.f64()?;
        }
        Ok(Self { count, next, anchor, sum, squares, squares_peak, newest_us, late, strikes })
    }

    /// Where the reading stands against the window before it, if that is warm; then learns from it
    /// what the rules allow.
    pub(super) fn observe(
        &mut self,
        ring: &mut [f64],
        value: f64,
        time_us: Option<i64>,
        rules: &Rules,
        floor: Floor,
    ) -> Option<Standing> {
        let is_reading = value.abs() <= VALUE_MAX; // false for NaN as well
        if !is_reading {
            return None;
        }
        let standing = (self.count >= rules.warmup).then(|| self.measure(ring, value, floor));
        if self.is_in_order(time_us, rules.warmup) {
            let is_flagged = standing.is_some_and(|standing| rules.flags(&standing));
            self.learn(ring, value, is_flagged, rules);
        }
        standing
    }

    /// Whether a reading of that time may be learned; moves `newest_us` if so.
    fn is_in_order(&mut self, time_us: Option<i64>, late_max: u32) -> bool {
        let Some(time_us) = time_us else { return false };
        if time_us <= self.newest_us {
            self.late += 1;
            if self.late < late_max {
                return false;
            }
        }
        self.late = 0;
        self.newest_us = time_us;
        true
    }

    fn learn(&mut self, ring: &mut [f64], value: f64, is_flagged: bool, rules: &Rules) {
        if let Some(relearn_after) = rules.relearn_after.filter(|_| is_flagged) {
            self.strikes += 2;
            if self.strikes < relearn_after.saturating_mul(2) {
                return;
            }
            *self = Self { newest_us: self.newest_us, ..Self::EMPTY };
        } else {
            self.strikes = self.strikes.saturating_sub(1);
        }
        self.push(ring, value);
    }

    fn push(&mut self, ring: &mut [f64], value: f64) {
        let next = self.next as usize;
        if self.count as usize == ring.len() {
            let oldest = ring[next] - self.anchor;
            self.sum -= oldest;
            self.squares -= oldest * oldest;
        } else {
            self.count += 1;
        }
        if self.count == 1 {
            self.anchor = value;
        }
        ring[next] = value;
        let distance = value - self.anchor;
        self.sum += distance;
        self.squares += distance * distance;
        self.squares_peak = self.squares_peak.max(self.squares);
        self.next += 1;
        if self.next as usize == ring.len() {
            self.next = 0;
            self.sum_anew(ring);
        }
    }

    /// Two passes over the window, about an anchor that is its mean.
    fn sum_anew(&mut self, ring: &[f64]) {
        let readings = &ring[..self.count as usize];
        let count = f64::from(self.count);
        // Distances from one of the readings: they lose no digits to a large common part.
        let first = readings[0];
        self.anchor = first + readings.iter().map(|value| value - first).sum::<f64>() / count;
        self.sum = readings.iter().map(|value| value - self.anchor).sum();
        self.squares = readings.iter().map(|value| (value - self.anchor) * (value - self.anchor)).sum();
        self.squares_peak = self.squares;
    }

    /// The sum of squared distances from the mean.
    fn scatter(&self) -> f64 {
        self.squares - self.sum * self.sum / f64::from(self.count)
    }

    /// Whether rounding could show in the ninth digit. Since the window was summed anew there were at
    /// most as many updates as it has places, each off by some 2e-16 of the peak; so the scatter is
    /// good to 1e-10 while it is at least 1e-5 of the peak for each place.
    fn is_worn(&self, places: usize) -> bool {
        let places = places as f64;
        self.scatter() < self.squares_peak * places * 1e-5
    }

    fn measure(&mut self, ring: &[f64], value: f64, floor: Floor) -> Standing {
        if self.is_worn(ring.len()) {
            self.sum_anew(ring);
        }
        let count = f64::from(self.count);
        let mean = self.anchor + self.sum / count;
        let stddev = (self.scatter().max(0.0) / (count - 1.0)).sqrt();
        let spread = stddev.max(floor.absolute).max(floor.relative * mean.abs()).max(SPREAD_MIN);
        // Not `value - mean`: the mean is rounded to its own size, which may dwarf the spread.
        let score = ((value - self.anchor) - self.sum / count) / spread;
        Standing { mean, spread, score, readings: i32::try_from(self.count).unwrap_or(i32::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_FLOOR: Floor = Floor { absolute: 0.0, relative: 0.0 };

    /// Mean as a distance from the first reading, and standard deviation, in two passes.
    fn two_passes(window: &[f64]) -> (f64, f64) {
        let count = window.len() as f64;
        let from_first: Vec<f64> = window.iter().map(|value| value - window[0]).collect();
        let mean = from_first.iter().sum::<f64>() / count;
        let scatter: f64 = from_first.iter().map(|value| (value - mean).powi(2)).sum();
        (mean, (scatter / (count - 1.0)).sqrt())
    }

    proptest! {
        /// Offsets dwarf the noise and spikes dwarf both; each leaves rounding in a running sum.
        #[test]
        fn running_sums_are_those_of_two_passes(
            places in 2..80usize,
            offset in prop_oneof![Just(0.0), Just(25.0), Just(-1e6), Just(1e9)],
            noise in prop_oneof![Just(1e-3), Just(1.0), Just(100.0)],
            steps in prop::collection::vec((-1.0..1.0f64, 0..100u32), 2..400),
        ) {
            let mut ring = vec![0.0; places];
            let mut baseline = Baseline::EMPTY;
            let mut all: Vec<f64> = Vec::new();
            for (step, chance) in steps {
                let spike = match chance { 0 => 1e7, 1 => -1e4, _ => 1.0 };
                let value = offset + step * noise * spike;
                if all.len() >= 2 {
                    let window = &all[all.len().saturating_sub(places)..];
                    let (mean, stddev) = two_passes(window);
                    let found = baseline.measure(&ring, value, NO_FLOOR);
                    let spread = stddev.max(SPREAD_MIN);
                    prop_assert!((found.spread - spread).abs() <= 1e-9 * spread, "{} {}", found.spread, spread);
                    let score = ((value - window[0]) - mean) / spread;
                    prop_assert!((found.score - score).abs() <= 1e-9 * score.abs().max(1.0), "{} {}", found.score, score);
                }
                baseline.push(&mut ring, value);
                all.push(value);
            }
        }
    }

    #[test]
    fn the_largest_window_is_as_exact() {
        let places = 10_000;
        let mut ring = vec![0.0; places];
        let mut baseline = Baseline::EMPTY;
        let mut all: Vec<f64> = Vec::new();
        for index in 0..25_000_u32 {
            let value = if index == 12_000 { 1e9 } else { 1000.0 + f64::from(index % 997) * 0.01 };
            baseline.push(&mut ring, value);
            all.push(value);
            if index % 500 == 499 {
                let (_, stddev) = two_passes(&all[all.len().saturating_sub(places)..]);
                let found = baseline.measure(&ring, 0.0, NO_FLOOR).spread;
                assert!((found - stddev).abs() <= 1e-9 * stddev, "after {index}: {found} {stddev}");
            }
        }
    }
}
