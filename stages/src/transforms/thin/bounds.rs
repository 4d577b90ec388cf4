//! How far a reading may lie from what the kept rows say of it.

use schemars::JsonSchema;
use serde::Deserialize;

/// What it means that a row has no value of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Nulls {
    /// There is no value from there on: where values end or begin, the row stays.
    #[default]
    Gap,
    /// Nothing: the row says nothing of the column.
    Ignore,
}

/// Bounds of all columns that are thinned, in their order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bounds {
    /// Kept rows are no farther apart, in microseconds.
    pub(super) heartbeat: Option<i64>,
    pub(super) nulls: Nulls,
    pub(super) tolerances: Box<[Tolerance]>,
}

/// The bound of one column.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Tolerance {
    /// In the column's unit.
    pub(super) absolute: f64,
    /// As a part of the reading.
    pub(super) of_value: f64,
}

impl Tolerance {
    /// In the column's unit, for this reading.
    pub(super) fn at(self, value: f64) -> f64 {
        self.absolute.max(self.of_value * value.abs())
    }

    /// Whether `said` is near enough to a reading; without a value only no value is.
    pub(super) fn holds(self, said: f64, value: f64) -> bool {
        if said.is_nan() || value.is_nan() {
            return said.is_nan() && value.is_nan();
        }
        (said - value).abs() <= self.at(value)
    }
}

/// The slopes that a straight line from a kept row can have without missing a reading since, per microsecond.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Corridor {
    pub(super) least: f64,
    pub(super) greatest: f64,
}

impl Corridor {
    /// There has been no reading yet.
    pub(super) const OPEN: Self = Self { least: f64::NEG_INFINITY, greatest: f64::INFINITY };

    /// No line will do: the newest row must be kept.
    const CLOSED: Self = Self { least: f64::INFINITY, greatest: f64::NEG_INFINITY };

    /// Whether a line from the kept value to this one, `elapsed_us` later, misses none.
    pub(super) fn admits(self, elapsed_us: f64, kept: f64, value: f64) -> bool {
        if kept.is_nan() || value.is_nan() {
            return kept.is_nan() && value.is_nan() && self != Self::CLOSED;
        }
        if elapsed_us == 0.0 {
            // It stands beside the kept row and ends no line.
            return self != Self::CLOSED;
        }
        // Not finite where the values are too far apart to say: then it does not hold.
        let slope = (value - kept) / elapsed_us;
        self.least <= slope && slope <= self.greatest && slope.is_finite()
    }

    /// Less room, since this reading must not be missed either.
    pub(super) fn narrow(&mut self, tolerance: Tolerance, elapsed_us: f64, kept: f64, value: f64) {
        if kept.is_nan() || value.is_nan() || elapsed_us == 0.0 {
            if !tolerance.holds(kept, value) {
                *self = Self::CLOSED;
            }
            return;
        }
        let bound = tolerance.at(value);
        let least = (value - kept - bound) / elapsed_us;
        let greatest = (value - kept + bound) / elapsed_us;
        if least.is_finite() && greatest.is_finite() {
            self.least = self.least.max(least);
            self.greatest = self.greatest.min(greatest);
        } else {
            *self = Self::CLOSED;
        }
    }
}
