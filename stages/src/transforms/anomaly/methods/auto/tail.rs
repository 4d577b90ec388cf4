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
/// Where the first distance goes: there is room for 22,000 times less and for 25 times more before the
/// bins have to move.
const FIRST: i64 = 200;
/// The mean excess of a tail that was not seen yet, as a logarithm, and how many distances that is
/// worth: that of a bell curve beyond [`BULK`] is 0.13, that of an exponential 0.23.
const EXCESS_PRIOR: f64 = 0.2;
const EXCESS_PRIOR_WEIGHT: f64 = 2.0;

/// The distances that came before.
#[derive(Debug, Clone)]
pub(super) struct Tail {
    /// What each bin holds, the oldest fading.
    weights: Box<[f64]>,
    /// The number of the first bin: bin `i` holds logarithms from `(first + i) * WIDTH` on.
    first: i64,
    total: f64,
    /// The weight of the next distance: instead of all that is there fading, each new one weighs more.
    next: f64,
}

impl Tail {
    pub(super) const BINS: usize = 256;

    pub(super) fn empty() -> Self {
        Self { weights: Box::default(), first: 0, total: 0.0, next: 1.0 }
    }

    /// The natural logarithm of one over the chance of so great a distance; zero within the bulk.
    /// Distances count as `least` at least.
    pub(super) fn surprise(&self, distance: f64, least: f64) -> f64 {
        if self.total <= 0.0 {
            return 0.0;
        }
        let rare = self.total * (1.0 - BULK);
        // From the top down to the bin that holds the quantile.
        let (mut above, mut excess) = (0.0, 0.0);
        let mut quantile = self.first as f64 * WIDTH;
        for (index, weight) in self.weights.iter().enumerate().rev() {
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
        if self.weights.is_empty() {
            self.weights = vec![0.0; Self::BINS].into();
            self.first = bin - FIRST;
        }
        let last = Self::BINS as i64 - 1;
        if bin - self.first > last {
            self.move_up(bin - self.first - last);
        }
        let index = (bin - self.first).clamp(0, last) as usize;
        self.weights[index] += self.next;
        self.total += self.next;
        self.next /= keep;
        if self.next > 1e6 {
            self.weights.iter_mut().for_each(|weight| *weight /= self.next);
            self.total /= self.next;
            self.next = 1.0;
        }
    }

    /// What falls out below is in the lowest bin from then on.
    fn move_up(&mut self, bins: i64) {
        let count = usize::try_from(bins).unwrap_or(usize::MAX).min(Self::BINS);
        let below: f64 = self.weights[..count].iter().sum();
        self.weights.copy_within(count.., 0);
        self.weights[Self::BINS - count..].fill(0.0);
        self.weights[0] += below;
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
        Ok(Self { weights: weights?, first, total, next })
    }
}
