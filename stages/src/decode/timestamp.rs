//! Points in time, as text or as a number, to microseconds since 1970.
//!
//! Fractions finer than a microsecond are cut, never rounded up: a reading is not moved into the
//! future. Only the years 0001 to 9999 pass, which every sink can store.

use pipeline_engine::schema::TimestampFormat;

/// 0001-01-01T00:00:00Z.
const FIRST_US: i64 = -62_135_596_800_000_000;
/// 9999-12-31T23:59:59.999999Z.
const LAST_US: i64 = 253_402_300_799_999_999;

/// Why a value is no timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mistake {
    /// Text of another shape, or a day that no calendar has.
    NotATime,
    /// A time outside the years 0001 to 9999.
    OutOfRange,
    /// NaN or an infinity.
    NotFinite,
}

/// RFC 3339, also with a space for the `T`, with lower-case letters, with `+01` or `+0100` for
/// `+01:00`, and without an offset, which then is UTC. A leap second is the second after it.
pub(super) fn parse(text: &[u8]) -> Result<i64, Mistake> {
    let Some((head, rest)) = text.split_first_chunk::<19>() else { return Err(Mistake::NotATime) };
    let mut wrong = 0; // above 9 once any byte was no digit
    let mut digit = |at: usize| {
        let value = u32::from(head[at].wrapping_sub(b'0'));
        wrong = wrong.max(value);
        value
    };
    let year = digit(0) * 1000 + digit(1) * 100 + digit(2) * 10 + digit(3);
    let (month, day) = (digit(5) * 10 + digit(6), digit(8) * 10 + digit(9));
    let (hour, minute) = (digit(11) * 10 + digit(12), digit(14) * 10 + digit(15));
    let second = digit(17) * 10 + digit(18);
    let separated = head[4] == b'-'
        && head[7] == b'-'
        && matches!(head[10], b'T' | b't' | b' ')
        && head[13] == b':'
        && head[16] == b':';
    if wrong > 9 || !separated || hour > 23 || minute > 59 || second > 60 {
        return Err(Mistake::NotATime);
    }
    if month == 0 || month > 12 || day == 0 || day > days_in(year, month) {
        return Err(Mistake::NotATime);
    }
    let (fraction_us, rest) = fraction(rest)?;
    let offset_s = offset(rest)?;
    let seconds = days_since_1970(year, month, day) * 86_400 + i64::from(hour * 3600 + minute * 60 + second) - offset_s;
    in_range(seconds * 1_000_000 + fraction_us)
}

/// A whole number, in the unit of the format.
pub(super) fn from_int(value: i64, format: TimestampFormat) -> Result<i64, Mistake> {
    let micros = match unit(value.unsigned_abs() as f64, format) {
        Unit::Second => value.checked_mul(1_000_000),
        Unit::Milli => value.checked_mul(1_000),
        Unit::Micro => Some(value),
        Unit::Nano => Some(value.div_euclid(1_000)),
    };
    micros.ok_or(Mistake::OutOfRange).and_then(in_range)
}

/// A number with a fraction, in the unit of the format; to the nearest microsecond, since a float
/// is rarely the exact number that was meant.
pub(super) fn from_float(value: f64, format: TimestampFormat) -> Result<i64, Mistake> {
    if !value.is_finite() {
        return Err(Mistake::NotFinite);
    }
    let micros = match unit(value.abs(), format) {
        Unit::Second => (value * 1e6).round(),
        Unit::Milli => (value * 1e3).round(),
        Unit::Micro => value.round(),
        Unit::Nano => (value / 1e3).floor(),
    };
    // `as` saturates, so that what doesn't fit stays out of range.
    in_range(micros as i64)
}

/// Seconds since 1970 and nanoseconds within the second.
pub(super) fn from_parts(seconds: i64, nanos: u32) -> Result<i64, Mistake> {
    let micros = seconds.checked_mul(1_000_000).and_then(|micros| micros.checked_add(i64::from(nanos / 1_000)));
    micros.ok_or(Mistake::OutOfRange).and_then(in_range)
}

enum Unit {
    Second,
    Milli,
    Micro,
    Nano,
}

fn unit(size: f64, format: TimestampFormat) -> Unit {
    match format {
        TimestampFormat::UnixS => Unit::Second,
        TimestampFormat::UnixMs => Unit::Milli,
        TimestampFormat::UnixUs => Unit::Micro,
        TimestampFormat::UnixNs => Unit::Nano,
        TimestampFormat::Auto | TimestampFormat::Rfc3339 => match size {
            _ if size < 1e11 => Unit::Second,
            _ if size < 1e14 => Unit::Milli,
            _ if size < 1e17 => Unit::Micro,
            _ => Unit::Nano,
        },
    }
}

fn in_range(micros: i64) -> Result<i64, Mistake> {
    if (FIRST_US..=LAST_US).contains(&micros) { Ok(micros) } else { Err(Mistake::OutOfRange) }
}

/// Microseconds of `.5`, and what follows them.
fn fraction(text: &[u8]) -> Result<(i64, &[u8]), Mistake> {
    let Some((b'.', digits)) = text.split_first() else { return Ok((0, text)) };
    let mut micros = 0;
    let mut scale = 100_000;
    let mut count = 0;
    while let Some(digit) = digits.get(count).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit <= 9) {
        micros += i64::from(digit) * scale;
        scale /= 10; // zero after six digits: the rest is cut
        count += 1;
    }
    if count == 0 { Err(Mistake::NotATime) } else { Ok((micros, &digits[count..])) }
}

/// Seconds east of UTC.
fn offset(text: &[u8]) -> Result<i64, Mistake> {
    let (sign, hours, minutes) = match text {
        [] | [b'Z' | b'z'] => return Ok(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] | [sign @ (b'+' | b'-'), h1, h2, m1, m2] => {
            (sign, [h1, h2], [m1, m2])
        }
        [sign @ (b'+' | b'-'), h1, h2] => (sign, [h1, h2], [&b'0', &b'0']),
        _ => return Err(Mistake::NotATime),
    };
    let number = |[tens, ones]: [&u8; 2]| {
        let both = tens.is_ascii_digit() && ones.is_ascii_digit();
        both.then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0')).ok_or(Mistake::NotATime)
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    if hours > 23 || minutes > 59 {
        return Err(Mistake::NotATime);
    }
    let seconds = hours * 3600 + minutes * 60;
    Ok(if *sign == b'-' { -seconds } else { seconds })
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Howard Hinnant's `days_from_civil`: the year starts in March, so that the leap day is its last.
fn days_since_1970(year: u32, month: u32, day: u32) -> i64 {
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = i64::from((153 * ((month + 9) % 12) + 2) / 5 + day - 1);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, FixedOffset, SecondsFormat};
    use proptest::prelude::*;

    const NOON_US: i64 = 1_769_860_800_000_000; // 2026-01-31T12:00:00Z

    #[test]
    fn every_shape_of_one_instant_is_the_same_instant() {
        for text in [
            "2026-01-31T12:00:00Z",
            "2026-01-31t12:00:00z",
            "2026-01-31 12:00:00",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00:00.000000000Z",
            "2026-01-31T13:00:00+01:00",
            "2026-01-31T13:00:00+01",
            "2026-01-31T06:30:00-0530",
            "2026-01-31T11:59:60Z",
            "2026-01-31T12:00:00.0000009-00:00",
        ] {
            assert_eq!(parse(text.as_bytes()), Ok(NOON_US), "{text}");
        }
        assert_eq!(parse(b"2026-01-31T12:00:00.5Z"), Ok(NOON_US + 500_000));
        assert_eq!(parse(b"2026-01-31 12:00:00.123456789"), Ok(NOON_US + 123_456));
    }

    #[test]
    fn what_no_clock_shows_is_no_time() {
        for text in [
            "",
            "2026",
            "2026-01-31",
            "12:00:00",
            "2026-01-31T12:00Z",
            "2026-02-29T12:00:00Z",
            "2026-04-31T12:00:00Z",
            "1900-02-29T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-00-01T12:00:00Z",
            "2026-01-00T12:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:60:00Z",
            "2026-01-31T12:00:61Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00+24:00",
            "2026-01-31T12:00:00+01:60",
            "2026-01-31T12:00:00+1:00",
            "2026-01-31T12:00:00ZZ",
            "2026-01-31T12:00:00 UTC",
            "2026-01-31T12:00:00Z ",
            " 2026-01-31T12:00:00Z",
            "2026/01/31 12:00:00",
            "31.01.2026 12:00:00",
            "2O26-01-31T12:00:00Z",
            "+026-01-31T12:00:00Z",
            "2026-01-31T12:00:00,5Z",
            "2026-01-31T12:00:00\u{665}",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(Mistake::NotATime), "{text}");
        }
    }

    #[test]
    fn the_years_0001_to_9999_pass_and_no_others() {
        assert_eq!(parse(b"0001-01-01T00:00:00Z"), Ok(FIRST_US));
        assert_eq!(parse(b"9999-12-31T23:59:59.999999Z"), Ok(LAST_US));
        for text in
            ["0000-12-31T23:59:59Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "9999-12-31T23:59:60Z"]
        {
            assert_eq!(parse(text.as_bytes()), Err(Mistake::OutOfRange), "{text}");
        }
        assert_eq!(from_int(LAST_US, TimestampFormat::UnixUs), Ok(LAST_US));
        assert_eq!(from_int(LAST_US + 1, TimestampFormat::UnixUs), Err(Mistake::OutOfRange));
        assert_eq!(from_int(i64::MIN, TimestampFormat::UnixS), Err(Mistake::OutOfRange));
        assert_eq!(from_float(1e300, TimestampFormat::UnixMs), Err(Mistake::OutOfRange));
        assert_eq!(from_float(f64::NAN, TimestampFormat::UnixMs), Err(Mistake::NotFinite));
    }

    #[test]
    fn a_number_is_in_the_unit_that_is_declared_or_that_its_size_tells() {
        use TimestampFormat::{Auto, UnixMs, UnixNs, UnixS, UnixUs};
        for (value, format) in [
            (1_769_860_800, UnixS),
            (1_769_860_800_000, UnixMs),
            (1_769_860_800_000_000, UnixUs),
            (1_769_860_800_000_000_999, UnixNs),
            (1_769_860_800, Auto),
            (1_769_860_800_000, Auto),
            (1_769_860_800_000_000, Auto),
            (1_769_860_800_000_000_000, Auto),
        ] {
            assert_eq!(from_int(value, format), Ok(NOON_US), "{value} {format:?}");
        }
        assert_eq!(from_int(5_000, UnixS), Ok(5_000_000_000), "a small number is no other unit than declared");
        assert_eq!(from_int(-1, UnixNs), Ok(-1), "cut towards the past on both sides of 1970");
        assert_eq!(from_float(1_769_860_800.123_456, UnixS), Ok(NOON_US + 123_456));
        assert_eq!(from_float(1_769_860_800_000.5, Auto), Ok(NOON_US + 500));
    }

    proptest! {
        #[test]
        fn text_means_what_chrono_says_it_means(
            micros in FIRST_US + 86_400_000_000..LAST_US - 86_400_000_000,
            offset_minutes in -1439..1440,
            digits in 0..4_usize,
            space in any::<bool>(),
        ) {
            let zone = FixedOffset::east_opt(offset_minutes * 60).unwrap();
            let instant = DateTime::from_timestamp_micros(micros).unwrap().with_timezone(&zone);
            let precision = [SecondsFormat::Secs, SecondsFormat::Millis, SecondsFormat::Micros, SecondsFormat::Nanos][digits];
            let mut text = instant.to_rfc3339_opts(precision, true);
            let expected = DateTime::parse_from_rfc3339(&text).unwrap().timestamp_micros();
            if space {
                text.replace_range(10..11, " ");
            }
            prop_assert_eq!(parse(text.as_bytes()), Ok(expected), "{}", text);
        }

        #[test]
        fn what_chrono_takes_for_rfc_3339_is_taken(text in "[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,12})?([Zz]|[+-][0-2][0-9]:[0-6][0-9])") {
            let ours = parse(text.as_bytes());
            match DateTime::parse_from_rfc3339(&text) {
                Ok(theirs) => prop_assert!(ours == in_range(theirs.timestamp_micros()) || text.contains(":60"), "{} {:?}", text, ours),
                Err(_) => prop_assert!(ours.is_err(), "{} {:?}", text, ours),
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(bytes.len() >= 19 || parse(&bytes).is_err());
        }
    }
}
