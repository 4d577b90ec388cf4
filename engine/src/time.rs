//! Points in time as a person writes and reads them. Inside they are microseconds since 1970.

use std::time::Duration;

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use arrow::temporal_conversions::timestamp_us_to_datetime;

/// `2026-01-31T12:00:00.000001Z`; what no calendar holds as its number of microseconds.
pub fn format_us(us: i64) -> String {
    match timestamp_us_to_datetime(us) {
        Some(time) => time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        None => format!("{us} us after 1970"),
    }
}

/// A date, a time as RFC 3339 has it (UTC if it names no zone), or how long ago: `2026-01-31`,
/// `2026-01-31T12:00:00+01:00`, `90m`.
///
/// # Errors
/// What is wrong with the text, in a sentence without a full stop.
pub fn parse_us(text: &str, now_us: i64) -> Result<i64, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now_us.saturating_sub(i64::try_from(ago.as_micros()).unwrap_or(i64::MAX)));
    }
    string_to_timestamp_nanos(text.trim()).map(|nanos| nanos.div_euclid(1_000)).map_err(|_| {
        format!("\"{text}\" is no time: write 2026-01-31, 2026-01-31T12:00:00Z, or how long ago, such as 90m")
    })
}

/// A duration for a person, no finer than it matters: `3m 20s`, `2days 4h`.
pub fn format_age(age: Duration) -> String {
    let secs = age.as_secs();
    let step = match secs {
        0..3_600 => 1,
        3_600..86_400 => 60,
        _ => 3_600,
    };
    humantime::format_duration(Duration::from_secs(secs - secs % step)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for us in [0, -1, 1_769_860_800_000_001, -2_000_000_000_000_000] {
            assert_eq!(parse_us(&format_us(us), 0), Ok(us), "{}", format_us(us));
        }
        assert_eq!(format_us(1_769_860_800_000_001), "2026-01-31T12:00:00.000001Z");
        assert!(format_us(i64::MAX).ends_with(" us after 1970"));
    }

    #[test]
    fn a_time_is_a_date_a_moment_or_how_long_ago() {
        let noon = 1_769_860_800_000_000;
        assert_eq!(parse_us("2026-01-31", 0), Ok(noon - 43_200_000_000));
        assert_eq!(parse_us("2026-01-31T13:00:00+01:00", 0), Ok(noon));
        assert_eq!(parse_us("1h 30m", noon), Ok(noon - 5_400_000_000));
        assert!(parse_us("yesterday", noon).unwrap_err().contains("\"yesterday\" is no time"));
    }

    #[test]
    fn an_age_is_no_finer_than_it_matters() {
        for (secs, text) in [(59, "59s"), (3_599, "59m 59s"), (7_265, "2h 1m"), (187_300, "2days 4h")] {
            assert_eq!(format_age(Duration::from_secs(secs)), text);
        }
    }
}
