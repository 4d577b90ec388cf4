//! Which day's folder each row belongs in.

use std::collections::BTreeMap;

use arrow::array::{Array, TimestampMicrosecondArray, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Datelike};

const DAY_US: i64 = 86_400_000_000;

/// 0001-01-01 and 9999-12-31, in days since 1970: the years that calendars of readers can hold.
const NAMEABLE_DAYS: std::ops::RangeInclusive<i64> = -719_162..=2_932_896;

/// A day in UTC, in days since 1970. `None`: the row has no time, or one that no calendar holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Day(Option<i64>);

impl Day {
    /// The day of a time in microseconds since 1970.
    pub(super) fn of(time_us: i64) -> Self {
        let day = time_us.div_euclid(DAY_US);
        Self(NAMEABLE_DAYS.contains(&day).then_some(day))
    }

    /// The folder in Hive's layout. Rows without a day lie in Hive's own folder for nulls, which
    /// readers know.
    pub(super) fn folder(self) -> String {
        match self.0.and_then(|day| DateTime::from_timestamp(day * 86_400, 0)) {
            Some(date) => format!("year={:04}/month={:02}/day={:02}", date.year(), date.month(), date.day()),
            None => ["year", "month", "day"].map(|key| format!("{key}=__HIVE_DEFAULT_PARTITION__")).join("/"),
        }
    }
}

/// The rows of each day, in order of arrival. Each row is in exactly one of the batches.
pub(super) fn split_by_day(rows: &RecordBatch, time_column: usize) -> Result<Vec<(Day, RecordBatch)>, ArrowError> {
    let times = rows.column(time_column).as_any().downcast_ref::<TimestampMicrosecondArray>();
    let times = times.ok_or_else(|| ArrowError::CastError("the time column holds no timestamps".to_owned()))?;
    let day_of = |row| if times.is_null(row) { Day(None) } else { Day::of(times.value(row)) };

    let mut rows_of = BTreeMap::<Day, Vec<u64>>::new();
    for row in 0..times.len() {
        rows_of.entry(day_of(row)).or_default().push(row as u64);
    }
    if let [(day, _)] = rows_of.iter().collect::<Vec<_>>()[..] {
        return Ok(vec![(*day, rows.clone())]);
    }
    let take = |(day, indices)| Ok((day, take_record_batch(rows, &UInt64Array::from(indices))?));
    rows_of.into_iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, cast::AsArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use pipeline_engine::schema::timestamp_type;

    use super::*;

    fn us(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
    }

    fn split(times: Vec<Option<i64>>) -> Vec<(String, Vec<i64>)> {
        let schema =
            Schema::new(vec![Field::new("time", timestamp_type(), true), Field::new("row", DataType::Int64, false)]);
        let numbers = Int64Array::from_iter_values(0..times.len() as i64);
        let times = TimestampMicrosecondArray::from(times).with_timezone("UTC");
        let rows = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(times), Arc::new(numbers)]).unwrap();
        let days = split_by_day(&rows, 0).unwrap();
        days.iter()
            .map(|(day, rows)| (day.folder(), rows.column(1).as_primitive::<Int64Type>().values().to_vec()))
            .collect()
    }

    #[test]
    fn rows_on_both_sides_of_midnight_and_of_a_months_end_part() {
        let times = ["2026-01-31T23:59:59.999999Z", "2026-02-01T00:00:00Z", "2026-01-31T00:00:00Z"];
        let parted = split(times.iter().map(|text| Some(us(text))).collect());
        assert_eq!(
            parted,
            [("year=2026/month=01/day=31".to_owned(), vec![0, 2]), ("year=2026/month=02/day=01".to_owned(), vec![1])]
        );
    }

    #[test]
    fn a_time_before_1970_belongs_to_the_day_it_says() {
        assert_eq!(Day::of(-1).folder(), "year=1969/month=12/day=31");
        assert_eq!(Day::of(us("0001-01-01T00:00:00Z")).folder(), "year=0001/month=01/day=01");
        assert_eq!(Day::of(us("9999-12-31T23:59:59.999999Z")).folder(), "year=9999/month=12/day=31");
    }

    #[test]
    fn rows_without_a_time_that_a_calendar_holds_lie_in_the_folder_for_nulls() {
        let nulls = "year=__HIVE_DEFAULT_PARTITION__/month=__HIVE_DEFAULT_PARTITION__/day=__HIVE_DEFAULT_PARTITION__";
        let year_0 = us("0001-01-01T00:00:00Z") - 1;
        let year_10000 = us("9999-12-31T23:59:59.999999Z") + 1;
        let parted = split(vec![None, Some(0), Some(i64::MIN), Some(i64::MAX), Some(year_0), Some(year_10000)]);
        assert_eq!(
            parted,
            [(nulls.to_owned(), vec![0, 2, 3, 4, 5]), ("year=1970/month=01/day=01".to_owned(), vec![1])]
        );
    }
}
