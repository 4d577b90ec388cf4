//! The rows of each key in the order of time, so that the one that was valid at a reading's time is found.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::datatypes::TimestampMicrosecondType;
use pipeline_engine::stage::StageError;
use pipeline_engine::time::format_us;

use super::table::TableSpec;
use crate::transforms::tables::read::Places;

/// How a table says when its rows are valid. Its times are in the layout's columns behind the key.
#[derive(Debug)]
pub(super) struct HistorySpec {
    /// The name of the column with the ends, if there is one.
    pub(super) valid_to: Option<String>,
    /// A row is valid no longer than this, itself included.
    pub(super) max_age_us: Option<i64>,
}

/// One row of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Period {
    from_us: i64,
    row: u32,
    /// The first time at which it is no longer valid.
    until_us: i64,
}

/// All rows of all keys.
#[derive(Debug)]
pub(super) struct History {
    /// Those of a key side by side, in the order of their beginning.
    periods: Vec<Period>,
    /// By the key's number: where its periods are.
    of_key: Vec<Range<usize>>,
}

impl HistorySpec {
    /// How many columns of the layout hold times.
    pub(super) fn columns(&self) -> usize {
        1 + usize::from(self.valid_to.is_some())
    }

    /// Orders the rows; `times` are the beginnings and, if there are any, the ends. `numbers` says whose each row is.
    ///
    /// # Errors
    /// Permanent: a row without a beginning, or with its end before it; two rows of a key that begin at once.
    pub(super) fn build(
        &self,
        spec: &TableSpec,
        times: &[ArrayRef],
        numbers: &[u32],
        places: &Places,
    ) -> Result<History, StageError> {
        let begins = times[0].as_primitive::<TimestampMicrosecondType>();
        let ends = times.get(1).map(|ends| ends.as_primitive::<TimestampMicrosecondType>());
        let begin_name = &spec.layout.columns[1].0;
        let mut ordered: Vec<(u32, Period)> = Vec::with_capacity(numbers.len());
        for ((row, number), from_us) in (0..).zip(numbers).zip(begins) {
            let Some(from_us) = from_us else {
                return Err(spec.broken(format!("{} has no \"{begin_name}\"", places.name(row))));
            };
            let end_us = ends.filter(|ends| ends.is_valid(row as usize)).map(|ends| ends.value(row as usize));
            if end_us.is_some_and(|end_us| end_us <= from_us) {
                let end_name = self.valid_to.as_deref().unwrap_or_default();
                let text = format!("{}: its \"{end_name}\" is not after its \"{begin_name}\"", places.name(row));
                return Err(spec.broken(text));
            }
            let aged_us = self.max_age_us.map_or(i64::MAX, |age| from_us.saturating_add(age).saturating_add(1));
            let until_us = end_us.unwrap_or(i64::MAX).min(aged_us);
            ordered.push((*number, Period { from_us, row, until_us }));
        }
        ordered.sort_unstable();
        if let Some(pair) = ordered.windows(2).find(|pair| same_begin(pair[0], pair[1])) {
            let (first, second) = (places.name(pair[0].1.row), places.name(pair[1].1.row));
            let text =
                format!("{second} has the same \"{}\" and \"{begin_name}\" as {first}", spec.layout.columns[0].0);
            return Err(spec.broken(text));
        }
        let of_key = ordered.chunk_by(|a, b| a.0 == b.0).scan(0, |end, periods| {
            let start = *end;
            *end += periods.len();
            Some(start..*end)
        });
        Ok(History { of_key: of_key.collect(), periods: ordered.iter().map(|(_, period)| *period).collect() })
    }
}

fn same_begin((a, first): (u32, Period), (b, second): (u32, Period)) -> bool {
    a == b && first.from_us == second.from_us
}

impl History {
    /// The row that is valid at each reading's time: of the rows of its key that have begun, the one that began last,
    /// unless it has ended. Null where there is none, or no time.
    pub(super) fn find(&self, keys: &UInt32Array, times: &ArrayRef) -> UInt32Array {
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let mut places = UInt32Array::builder(keys.len());
        for (key, time) in keys.iter().zip(times) {
            places.append_option(key.zip(time).and_then(|(key, time_us)| self.row(key, time_us)));
        }
        places.finish()
    }

    fn row(&self, key: u32, time_us: i64) -> Option<u32> {
        let periods = &self.periods[self.of_key[key as usize].clone()];
        let begun = periods.partition_point(|period| period.from_us <= time_us);
        let last = periods[..begun].last()?;
        (time_us < last.until_us).then_some(last.row)
    }
}

/// A reading's time for a person; `None` for a null.
pub(super) fn shown_time(times: &ArrayRef, row: usize) -> Option<String> {
    let times = times.as_primitive::<TimestampMicrosecondType>();
    times.is_valid(row).then(|| format_us(times.value(row)))
}
