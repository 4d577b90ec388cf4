//! What a device measures, built so that a rolling z-score can tell a planted spike from noise.
//!
//! With sigma = 1/100 of a metric's range, a reading is the sum of
//! - the device's level, between 30% and 70% of the range,
//! - a daily wave of 15 sigma, humidity low when temperature is high,
//! - noise with a standard deviation of 1 sigma that is never beyond 3 sigma,
//! - in a planted anomaly and only there, a spike of `spike_factor` times 10 to 15 sigma, up or
//!   down, in this one reading.
//!
//! So a normal reading is always inside the range, and with the default factor of 2.5 a spike is 25
//! to 37.5 sigma high. All of it is plain arithmetic that gives the same bits on every machine.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Names of the metrics, in the order of the payload.
pub(super) const METRICS: [&str; 2] = ["temperature", "humidity"];

const SIGMAS_IN_RANGE: f64 = 100.0;
const WAVE_SIGMAS: f64 = 15.0;
const DAY_US: i64 = 86_400_000_000;

/// One metric of the whole fleet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metric {
    low: f64,
    sigma: f64,
    /// 10 to the power of `decimals`.
    scale: f64,
    /// Decimals of its values: at least two, and enough that rounding is small against the noise.
    pub(super) decimals: u32,
}

impl Metric {
    /// A metric whose normal values lie between the two.
    pub(super) fn new([low, high]: [f64; 2]) -> Self {
        let sigma = (high - low) / SIGMAS_IN_RANGE;
        let mut decimals = 2;
        let mut scale = 100.0;
        while sigma * scale < 10.0 && decimals < 9 {
            decimals += 1;
            scale *= 10.0;
        }
        Self { low, sigma, scale, decimals }
    }

    fn rounded(&self, value: f64) -> i64 {
        (value * self.scale).round() as i64
    }
}

/// One reading of a device, values as whole numbers of the last decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reading {
    pub(super) device: usize,
    pub(super) time_us: i64,
    pub(super) seq: u64,
    pub(super) values: [i64; 2],
}

/// The random numbers of one reading. Always as many, so that what is planted in one reading changes
/// no other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draws {
    /// Decides what becomes of the reading.
    pub(super) fate: u64,
    /// Decides the details of it.
    pub(super) detail: u64,
}

/// The signals of one device. Nothing another device does changes them.
#[derive(Debug, Clone)]
pub(super) struct Signals {
    random: Pcg64Mcg,
    /// Levels, as a value.
    levels: [f64; 2],
    /// Noise, in sigmas.
    noise: [f64; 2],
    /// Where in its wave the device is at midnight, in turns.
    phase: f64,
}

impl Signals {
    pub(super) fn new(seed: u64, device: u64, metrics: &[Metric; 2]) -> Self {
        // Neighbouring seeds and devices must not give related streams: both go through a mixer.
        let mut random = Pcg64Mcg::seed_from_u64(mix(seed ^ mix(device)));
        let [first, second] = signed_pair(random.next_u64());
        let levels = [first, second].map(|draw| 50.0 + 20.0 * draw);
        let [phase, _] = signed_pair(random.next_u64());
        Self {
            random,
            levels: [0, 1].map(|index| metrics[index].low + metrics[index].sigma * levels[index]),
            noise: [0.0; 2],
            // The warmest hour is 15:00 UTC, an hour and a half more or less.
            phase: 0.375 + phase / 16.0,
        }
    }

    /// The next values, without a spike.
    pub(super) fn measure(&mut self, time_us: i64, metrics: &[Metric; 2]) -> ([f64; 2], Draws) {
        let shocks = signed_pair(self.random.next_u64());
        let draws = Draws { fate: self.random.next_u64(), detail: self.random.next_u64() };
        let day = time_us.rem_euclid(DAY_US) as f64 / DAY_US as f64;
        let wave = WAVE_SIGMAS * wave(day + self.phase);
        let waves = [wave, -wave];
        let mut values = [0.0; 2];
        for index in 0..2 {
            // A shock is uniform: with these factors the variance settles at 1 and the sum of all
            // shocks can't pass 3.
            self.noise[index] = 0.5 * self.noise[index] + 1.5 * shocks[index];
            values[index] = self.levels[index] + metrics[index].sigma * (waves[index] + self.noise[index]);
        }
        (values, draws)
    }
}

/// Adds a spike to one of the values and says to which.
pub(super) fn add_spike(values: &mut [f64; 2], metrics: &[Metric; 2], spike_factor: f64, detail: u64) -> usize {
    let index = usize::from(detail & 1 == 1);
    let direction = if detail & 2 == 2 { 1.0 } else { -1.0 };
    let sigmas = spike_factor * (10.0 + 5.0 * fraction(detail));
    values[index] += direction * sigmas * metrics[index].sigma;
    index
}

/// Values as whole numbers of the last decimal.
pub(super) fn rounded(values: [f64; 2], metrics: &[Metric; 2]) -> [i64; 2] {
    [metrics[0].rounded(values[0]), metrics[1].rounded(values[1])]
}

/// From the top 32 bits: 0 to below 1.
fn fraction(draw: u64) -> f64 {
    (draw >> 32) as f64 / 4_294_967_296.0
}

/// Two numbers from -1 to below 1.
fn signed_pair(draw: u64) -> [f64; 2] {
    [fraction(draw), fraction(draw << 32)].map(|part| 2.0 * part - 1.0)
}

/// One turn of a wave between -1 and 1, of parabolas and not `sin`, whose last bit depends on the
/// machine. The peak is at a whole number of turns.
fn wave(turns: f64) -> f64 {
    let half_turns = 2.0 * (turns + 0.25).fract();
    if half_turns < 1.0 {
        4.0 * half_turns * (1.0 - half_turns)
    } else {
        -4.0 * (half_turns - 1.0) * (2.0 - half_turns)
    }
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit of the input.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGES: [[f64; 2]; 2] = [[15.0, 35.0], [30.0, 80.0]];

    fn metrics() -> [Metric; 2] {
        RANGES.map(Metric::new)
    }

    #[test]
    fn normal_values_stay_inside_the_range_all_day() {
        let metrics = metrics();
        for device in 0..50 {
            let mut signals = Signals::new(1, device, &metrics);
            for step in 0..2_000 {
                let (values, _) = signals.measure(step * 43_200_000, &metrics);
                for (value, [low, high]) in values.into_iter().zip(RANGES) {
                    assert!(low <= value && value <= high, "{value} is not between {low} and {high}");
                }
            }
        }
    }

    #[test]
    fn noise_has_the_spread_that_the_documentation_states() {
        let metrics = metrics();
        let mut signals = Signals::new(1, 0, &metrics);
        let count = 100_000;
        let mut squares = 0.0;
        for _ in 0..count {
            signals.measure(0, &metrics);
            assert!(signals.noise.iter().all(|noise| noise.abs() <= 3.0));
            squares += signals.noise[0] * signals.noise[0];
        }
        let deviation = (squares / f64::from(count)).sqrt();
        assert!((0.97..1.03).contains(&deviation), "{deviation}");
    }

    #[test]
    fn a_spike_is_as_large_as_the_documentation_states() {
        let metrics = metrics();
        let mut seen = [0; 2];
        for draw in 0..1_000_u64 {
            let mut values = [20.0, 50.0];
            let index = add_spike(&mut values, &metrics, 2.5, mix(draw));
            let sigmas = (values[index] - [20.0, 50.0][index]).abs() / metrics[index].sigma;
            assert!((25.0..=37.5).contains(&sigmas), "{sigmas}");
            assert_eq!(values[1 - index], [20.0, 50.0][1 - index]);
            seen[index] += 1;
        }
        assert!(seen.iter().all(|count| *count > 400), "{seen:?}");
    }

    #[test]
    fn a_narrow_range_gets_decimals_enough_for_its_noise() {
        assert_eq!(Metric::new([15.0, 35.0]).decimals, 2);
        assert_eq!(Metric::new([0.0, 1.0]).decimals, 3);
        assert_eq!(Metric::new([0.0, 0.001]).decimals, 6);
    }

    #[test]
    fn the_wave_turns_once_a_day_around_zero() {
        let close = |turns: f64, expected: f64| assert!((wave(turns) - expected).abs() < 1e-12, "{turns}");
        close(0.0, 1.0);
        close(0.25, 0.0);
        close(0.5, -1.0);
        close(0.75, 0.0);
        close(1.0, 1.0);
    }
}
