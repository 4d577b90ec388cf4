//! The last readings of one device and metric as a ring, with their mean and standard deviation.
//!
//! Both are kept as running sums of distances from an anchor near the mean, so that a reading costs the
//! same whatever the window. Running sums round, and a spike that has left the window leaves its
//! rounding behind. Two rules bound that: the window is summed anew each time its ring has turned over,
//! and whenever the sums have shrunk so far below their peak that rounding could show (see
//! [`Window::is_worn`]). What comes out is that of a two-pass sum to 1e-9.

use pipeline_engine::stage::StageError;

use crate::transforms::snapshot::{Reader, Writer, damaged};

/// What a window says of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measure {
    pub(super) mean: f64,
    /// The sample's, with n - 1.
    pub(super) stddev: f64,
    /// The value's distance from the mean. Not their difference: the mean is rounded to its own size,
    /// which may dwarf the spread.
    pub(super) distance: f64,
}

/// The sums over one window, whose readings lie in a ring beside it. Plain data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct Window {
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
}

impl Window {
    /// A window without readings.
    pub(super) const EMPTY: Self = Self { count: 0, next: 0, anchor: 0.0, sum: 0.0, squares: 0.0, squares_peak: 0.0 };

    /// The window as it is, its sums included: they were rounded in their own order.
    pub(super) fn write(&self, ring: &[f64], state: &mut Writer) {
        for count in [self.count, self.next] {
            state.u32(count);
        }
        for sum in [self.anchor, self.sum, self.squares, self.squares_peak] {
            state.f64(sum);
        }
        ring[..self.count as usize].iter().for_each(|value| state.f64(*value));
    }

    /// The window that was written, its readings put into an empty ring.
    ///
    /// # Errors
    /// There can't be such a window.
    pub(super) fn read(ring: &mut [f64], state: &mut Reader<'_>) -> Result<Self, StageError> {
        let [count, next] = [state.u32()?, state.u32()?];
        let [anchor, sum, squares, squares_peak] = [state.f64()?, state.f64()?, state.f64()?, state.f64()?];
        if count as usize > ring.len() || next as usize >= ring.len() {
            return Err(damaged());
        }
        for value in &mut ring[..count as usize] {
            *value = state.f64()?;
        }
        Ok(Self { count, next, anchor, sum, squares, squares_peak })
    }

    /// How many readings the window holds.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Takes in a reading; a full window loses its oldest.
    pub(super) fn push(&mut self, ring: &mut [f64], value: f64) {
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

    /// What the window says of a value. It holds two readings at least.
    pub(super) fn measure(&mut self, ring: &[f64], value: f64) -> Measure {
        if self.is_worn(ring.len()) {
            self.sum_anew(ring);
        }
        let count = f64::from(self.count);
        Measure {
            mean: self.anchor + self.sum / count,
            stddev: (self.scatter().max(0.0) / (count - 1.0)).sqrt(),
            distance: (value - self.anchor) - self.sum / count,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            let mut sums = Window::EMPTY;
            let mut all: Vec<f64> = Vec::new();
            for (step, chance) in steps {
                let spike = match chance { 0 => 1e7, 1 => -1e4, _ => 1.0 };
                let value = offset + step * noise * spike;
                if all.len() >= 2 {
                    let window = &all[all.len().saturating_sub(places)..];
                    let (mean, stddev) = two_passes(window);
                    let found = sums.measure(&ring, value);
                    prop_assert!((found.stddev - stddev).abs() <= 1e-9 * stddev, "{} {}", found.stddev, stddev);
                    let distance = (value - window[0]) - mean;
                    let tolerance = 1e-9 * distance.abs().max(stddev);
                    prop_assert!((found.distance - distance).abs() <= tolerance, "{} {}", found.distance, distance);
                }
                sums.push(&mut ring, value);
                all.push(value);
            }
        }
    }

    #[test]
    fn the_largest_window_is_as_exact() {
        let places = 10_000;
        let mut ring = vec![0.0; places];
        let mut sums = Window::EMPTY;
        let mut all: Vec<f64> = Vec::new();
        for index in 0..25_000_u32 {
            let value = if index == 12_000 { 1e9 } else { 1000.0 + f64::from(index % 997) * 0.01 };
            sums.push(&mut ring, value);
            all.push(value);
            if index % 500 == 499 {
                let (_, stddev) = two_passes(&all[all.len().saturating_sub(places)..]);
                let found = sums.measure(&ring, 0.0).stddev;
                assert!((found - stddev).abs() <= 1e-9 * stddev, "after {index}: {found} {stddev}");
            }
        }
    }
}
