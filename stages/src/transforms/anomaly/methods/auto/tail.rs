//! How rare a distance is, by the distances of the same kind that came before it.
//!
//! Nothing is said of the bulk. Beyond the quantile [`BULK`] the tail is taken for a power law, as most
//! that devices send has it (queues, latencies, counts), and its exponent comes from the distances seen
//! there (Hill's estimator). A bell curve's tail falls faster than any power: there the exponent comes out
//! large, which is near enough for the little way that is extrapolated.
//!
//! Distances are kept as a histogram of their logarithms with the oldest fading out, so that a tail
//! costs [`Tail::BINS`] numbers whatever the rate of readings.

use pipeline_engine::stage::StageError;

use crate::transforms::snapshot::{Reader, Writer, damaged};

/// The part of all distances that is ordinary.
const BULK: f64 = 0.98;
/// The width of a bin, in logarithms: a twentieth more.
const WIDTH: f64 = 0.05;
/// Where the first distance goes: there is room for 22,000 times less and for 15 times more before the
/// bins have to move.
const FIRST: i64 = 200;
/// The lowest bin that the quantile may move to when the bins make room above: greater distances than 14,000 times
/// the quantile count as that much, so that one absurd number doesn't push all others out.
const QUANTILE_LOWEST: usize = 64;
/// With fewer distances than this nothing is said.
const READINGS_MIN: f64 = 50.0;
/// The mean excess of a tail that was not seen yet, as a logarithm, and how many distances that is
/// worth: that of a bell curve beyond [`BULK`] is 0.13, that of an exponential 0.23.
const EXCESS_PRIOR: f64 = 0.2;
const EXCESS_PRIOR_WEIGHT: f64 = 2.0;

/// The distances that came before.
#[derive(Debug, Clone)]
pub(super) struct Tail {
    /// What each bin holds, the oldest fading.
    weights: Box<[f64]>,
    /// The highest bin that holds anything.
    highest: usize,
    /// The number of the first bin: bin `i` holds logarithms from `(first + i) * WIDTH` on.
    first: i64,
    total: f64,
    /// The weight of the next distance: instead of all that is there fading, each new one weighs more.
    next: f64,
}

impl Tail {
    pub(super) const BINS: usize = 256;

    pub(super) fn empty() -> Self {
        Self { weights: Box::default(), highest: 0, first: 0, total: 0.0, next: 1.0 }
    }

    /// The natural logarithm of one over the chance of so great a distance; zero within the bulk.
    /// Distances count as `least` at least.
    pub(super) fn surprise(&self, distance: f64, least: f64) -> f64 {
        if self.total < READINGS_MIN * self.next {
            return 0.0;
        }
        let rare = self.total * (1.0 - BULK);
        // From the top down to the bin that holds the quantile.
        let (mut above, mut excess) = (0.0, 0.0);
        let mut quantile = self.first as f64 * WIDTH;
        for (index, weight) in self.weights[..=self.highest].iter().enumerate().rev() {
            let weight = *weight;
            let low = (self.first + index as i64) as f64 * WIDTH;
            if above + weight >= rare {
                let share = (rare - above) / weight;
                quantile = low + WIDTH * (1.0 - share);
                excess += (rare - above) * (low + WIDTH * (1.0 - share / 2.0));
                above = rare;
                break;
            }
            above += weight;
            excess += weight * (low + WIDTH / 2.0);
        }
        let seen = (excess / above.max(f64::MIN_POSITIVE) - quantile).max(0.0);
        let readings = rare / self.next;
        let excess = (seen * readings + EXCESS_PRIOR * EXCESS_PRIOR_WEIGHT) / (readings + EXCESS_PRIOR_WEIGHT);
        let beyond = distance.max(least).ln() - quantile.max(least.ln());
        if beyond <= 0.0 { 0.0 } else { beyond / excess - (1.0 - BULK).ln() }
    }

    /// Takes in a distance; those before it fade to a weight of `keep` each time.
    pub(super) fn push(&mut self, distance: f64, least: f64, keep: f64) {
        let bin = (distance.max(least).ln() / WIDTH).floor() as i64;
        let last = Self::BINS as i64 - 1;
        // Distances have become so small that the bins tell them no longer apart.
        let is_below = bin < self.first && self.weights.first().is_some_and(|lowest| *lowest >= BULK * self.total);
        if self.weights.is_empty() || is_below {
            *self = Self { weights: vec![0.0; Self::BINS].into(), first: bin - FIRST, ..Self::empty() };
        }
        if bin - self.first > last {
            let room = self.quantile_bin().saturating_sub(QUANTILE_LOWEST) as i64;
            self.move_up((bin - self.first - last).min(room));
        }
        let index = (bin - self.first).clamp(0, last) as usize;
        self.weights[index] += self.next;
        self.highest = self.highest.max(index);
        self.total += self.next;
        self.next /= keep;
        if self.next > 1e6 {
            self.weights.iter_mut().for_each(|weight| *weight /= self.next);
            self.total /= self.next;
            self.next = 1.0;
        }
    }

    fn quantile_bin(&self) -> usize {
        let rare = self.total * (1.0 - BULK);
        let mut above = 0.0;
        let is_in = |weight: &f64| {
            above += *weight;
            above >= rare
        };
        self.weights.iter().rposition(is_in).unwrap_or(0)
    }

    /// What falls out below is in the lowest bin from then on.
    fn move_up(&mut self, bins: i64) {
        let count = usize::try_from(bins).unwrap_or(usize::MAX).min(Self::BINS);
        let below: f64 = self.weights[..count].iter().sum();
        self.weights.copy_within(count.., 0);
        self.weights[Self::BINS - count..].fill(0.0);
        self.weights[0] += below;
        self.highest = self.highest.saturating_sub(count);
        self.first += bins;
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.u32(self.weights.len() as u32);
        out.i64(self.first);
        out.f64(self.total);
        out.f64(self.next);
        self.weights.iter().for_each(|weight| out.f64(*weight));
    }

    /// # Errors
    /// There can't be such a tail.
    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, StageError> {
        let bins = from.u32()? as usize;
        if bins != 0 && bins != Self::BINS {
            return Err(damaged());
        }
        let (first, total, next) = (from.i64()?, from.f64()?, from.f64()?);
        let weights: Result<Box<[f64]>, StageError> = (0..bins).map(|_| from.f64()).collect();
        let weights = weights?;
        let highest = weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0);
        Ok(Self { weights, highest, first, total, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: f64 = 1e-9;
    const KEEP: f64 = 1.0 - 1.0 / 2000.0;

    /// Numbers between 0 and 1, the same each time.
    fn evenly() -> impl Iterator<Item = f64> {
        let mut state = 7_u64;
        std::iter::from_fn(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Some(((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64)
        })
    }

    fn taught(distances: impl Iterator<Item = f64>) -> Tail {
        let mut tail = Tail::empty();
        distances.for_each(|distance| tail.push(distance, LEAST, KEEP));
        tail
    }

    #[test]
    fn a_power_law_is_told_beyond_what_was_seen() {
        // One in ten at 10, one in a hundred at 100, and so on.
        let tail = taught(evenly().map(|chance| 1.0 / chance).take(20_000));
        for (distance, rarity) in [(100.0, 100.0_f64), (1_000.0, 1_000.0), (100_000.0, 100_000.0)] {
            let found = tail.surprise(distance, LEAST);
            assert!((found / rarity.ln() - 1.0).abs() < 0.2, "{distance}: {found} {}", rarity.ln());
        }
        assert_eq!(tail.surprise(20.0, LEAST), 0.0, "within the bulk");
    }

    #[test]
    fn an_absurd_distance_blinds_nobody() {
        let even = || evenly().map(|chance| 1.0 + chance);
        let calm = taught(even().take(5_000));
        let mut shaken = calm.clone();
        shaken.push(1e90, LEAST, KEEP);
        even().take(50).for_each(|distance| shaken.push(distance, LEAST, KEEP));
        for distance in [1.5, 3.0, 10.0] {
            let (found, expected) = (shaken.surprise(distance, LEAST), calm.surprise(distance, LEAST));
            assert_eq!(found > 0.0, expected > 0.0);
        }
        assert!(shaken.surprise(10.0, LEAST) > 6.0);
    }

    #[test]
    fn one_that_came_first_is_forgotten() {
        let tail = taught(std::iter::once(1e90).chain(evenly().take(200)));
        assert!(tail.surprise(50.0, LEAST) > 6.0);
        let shrunk = taught(evenly().take(3_000).chain(evenly().map(|chance| chance * 1e-9).take(10_000)));
        assert!(shrunk.surprise(1e-6, LEAST) > 6.0);
    }
}
