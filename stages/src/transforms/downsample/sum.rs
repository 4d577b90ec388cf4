//! A sum that does not lose the small parts (Neumaier's).

use pipeline_engine::stage::StageError;

use crate::transforms::snapshot::{Reader, Writer};

/// A sum of floats and what its roundings have left out.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Sum {
    sum: f64,
    rest: f64,
}

impl Sum {
    pub(super) fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        self.rest += if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        self.sum = sum;
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.add(other.sum);
        self.rest += other.rest;
    }

    pub(super) fn total(self) -> f64 {
        // Beyond the range of a float the rest is not a number.
        if self.sum.is_finite() { self.sum + self.rest } else { self.sum }
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.f64(self.sum);
        writer.f64(self.rest);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, StageError> {
        Ok(Self { sum: reader.f64()?, rest: reader.f64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parts_are_not_lost_beside_large_ones() {
        let mut sum = Sum::default();
        for value in [1.0, 1e100, 1.0, -1e100] {
            sum.add(value);
        }
        assert_eq!(sum.total(), 2.0);
        sum.add(f64::MAX);
        sum.add(f64::MAX);
        assert_eq!(sum.total(), f64::INFINITY);
    }
}
