//! Percentiles within one percent: a DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch
//! with relative-error guarantees", VLDB 2019).
//!
//! Values are counted in buckets whose bounds grow by a fixed factor, so that the middle of a bucket is within
//! [`ERROR`] of each value in it. The order of the values makes no difference, and two sketches add up.

use std::collections::BTreeMap;

use pipeline_engine::stage::StageError;

use crate::transforms::snapshot::{Reader, Writer};

/// How far a percentile may be from the value at its rank, relative to that.
const ERROR: f64 = 0.01;
/// From one bucket to the next.
const FACTOR: f64 = (1.0 + ERROR) / (1.0 - ERROR);
/// Of one sign. So many span 17 powers of ten; smaller values are then counted with the smallest bucket there is.
const BUCKETS_MAX: usize = 2048;

/// How often each size of value has come.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Sketch {
    positive: Buckets,
    /// By the size without the sign.
    negative: Buckets,
    zeros: u64,
    /// The least and the greatest value: no percentile is beyond them.
    bounds: Option<(f64, f64)>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Buckets(BTreeMap<i32, u64>);

impl Buckets {
    fn add(&mut self, bucket: i32, count: u64) {
        *self.0.entry(bucket).or_default() += count;
        while self.0.len() > BUCKETS_MAX
            && let Some((_, smallest)) = self.0.pop_first()
            && let Some(mut next) = self.0.first_entry()
        {
            *next.get_mut() += smallest;
        }
    }

    fn total(&self) -> u64 {
        self.0.values().sum()
    }

    fn write(&self, writer: &mut Writer) {
        writer.u32(self.0.len() as u32);
        for (bucket, count) in &self.0 {
            writer.i64((*bucket).into());
            writer.u64(*count);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, StageError> {
        let mut buckets = Self::default();
        for _ in 0..reader.u32()? {
            buckets.add(reader.i64()? as i32, reader.u64()?);
        }
        Ok(buckets)
    }
}

impl Sketch {
    /// Takes a finite value in.
    pub(super) fn add(&mut self, value: f64) {
        match value {
            size if size > f64::MIN_POSITIVE => self.positive.add(bucket(size), 1),
            size if size < -f64::MIN_POSITIVE => self.negative.add(bucket(-size), 1),
            _ => self.zeros += 1,
        }
        let (least, greatest) = self.bounds.unwrap_or((value, value));
        self.bounds = Some((least.min(value), greatest.max(value)));
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.positive.0 {
            self.positive.add(*bucket, *count);
        }
        for (bucket, count) in &other.negative.0 {
            self.negative.add(*bucket, *count);
        }
        self.zeros += other.zeros;
        self.bounds = match (self.bounds, other.bounds) {
            (Some(left), Some(right)) => Some((left.0.min(right.0), left.1.max(right.1))),
            (left, right) => left.or(right),
        };
    }

    /// Within [`ERROR`] of the value at rank `percent / 100 * (count - 1)`, rounded down, in ascending order; `None`
    /// without values.
    pub(super) fn percentile(&self, percent: f64) -> Option<f64> {
        let (least, greatest) = self.bounds?;
        let (negative, positive) = (self.negative.total(), self.positive.total());
        let count = negative + self.zeros + positive;
        let rank = (percent / 100.0 * (count - 1) as f64) as u64;
        let value = if rank < negative {
            -size_at(self.negative.0.iter().rev(), rank)
        } else if rank < negative + self.zeros {
            0.0
        } else {
            size_at(self.positive.0.iter(), rank - negative - self.zeros)
        };
        Some(value.clamp(least, greatest))
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        self.positive.write(writer);
        self.negative.write(writer);
        writer.u64(self.zeros);
        writer.u32(self.bounds.is_some().into());
        if let Some((least, greatest)) = self.bounds {
            writer.f64(least);
            writer.f64(greatest);
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, StageError> {
        Ok(Self {
            positive: Buckets::read(reader)?,
            negative: Buckets::read(reader)?,
            zeros: reader.u64()?,
            bounds: match reader.u32()? {
                0 => None,
                _ => Some((reader.f64()?, reader.f64()?)),
            },
        })
    }
}

fn bucket(size: f64) -> i32 {
    (size.ln() / FACTOR.ln()).ceil() as i32
}

/// The middle of the bucket that holds the rank.
fn size_at<'a>(buckets: impl Iterator<Item = (&'a i32, &'a u64)>, rank: u64) -> f64 {
    let mut passed = 0;
    let mut last = 0;
    for (bucket, count) in buckets {
        (last, passed) = (*bucket, passed + count);
        if rank < passed {
            break;
        }
    }
    2.0 * FACTOR.powi(last) / (FACTOR + 1.0)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn of(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        values.iter().for_each(|value| sketch.add(*value));
        sketch
    }

    #[test]
    fn percentiles_are_within_one_percent_of_the_value_at_their_rank() {
        let mut rng = StdRng::seed_from_u64(1);
        for case in 0..300 {
            let count = rng.random_range(1..400);
            let scale = 10_f64.powi(rng.random_range(-12..12));
            let mut values: Vec<f64> = (0..count)
                .map(|_| match case % 3 {
                    0 => scale * rng.random_range(-1.0..1.0),
                    1 => scale * (rng.random_range(-8.0..8.0_f64)).exp(),
                    _ => f64::from(rng.random_range(-3..3)),
                })
                .collect();
            let sketch = of(&values);
            values.sort_by(f64::total_cmp);
            for percent in [0.0, 1.0, 25.0, 50.0, 90.0, 99.0, 99.9, 100.0] {
                let exact = values[(percent / 100.0 * (count - 1) as f64) as usize];
                let found = sketch.percentile(percent).unwrap();
                assert!((found - exact).abs() <= exact.abs() * (ERROR + 1e-9), "{percent} of {values:?}: {found}");
            }
        }
        assert_eq!(Sketch::default().percentile(50.0), None);
    }

    #[test]
    fn neither_order_nor_parting_makes_a_difference() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut values: Vec<f64> = (0..1000).map(|_| rng.random_range(-50.0..100.0)).collect();
        let whole = of(&values);
        values.shuffle(&mut rng);
        let (left, right) = values.split_at(300);
        let mut merged = of(left);
        merged.merge(&of(right));
        assert_eq!(merged, whole);
    }

    #[test]
    fn the_smallest_values_share_a_bucket_once_there_are_too_many() {
        let values: Vec<f64> = (0..5000).map(|power| 1.03_f64.powi(power - 2500)).collect();
        let sketch = of(&values);
        assert_eq!(sketch.positive.0.len(), BUCKETS_MAX);
        assert_eq!(sketch.positive.total(), 5000);
        let (found, exact) = (sketch.percentile(90.0).unwrap(), values[4499]);
        assert!((found / exact - 1.0).abs() <= ERROR + 1e-9, "{found} for {exact}");
    }
}
