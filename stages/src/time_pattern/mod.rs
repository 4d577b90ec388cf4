//! Patterns of dates and times as Java writes them: `yyyy-MM-dd HH:mm:ss z`.
//!
//! AWS IoT reads the pattern of `parse_time` as Joda-Time does and that of `time_to_epoch` as JDK 11
//! does; a few letters differ. Firehose reads those of a prefix as the JDK does. Names of days, months and eras are English. A letter that is not known
//! is refused when the plan is built.

mod read;
mod write;
mod zone;

pub use zone::Zone;

/// Whose letters they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `parse_time`
    Joda,
    /// `time_to_epoch`, and prefixes of a Firehose.
    Jdk,
}

/// A pattern, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimePattern {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// A field and how often its letter stands there.
    Field(Field, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// AD or BC.
    Era,
    /// With a sign before the year 0.
    Year,
    YearOfEra,
    WeekYear,
    Week,
    Month,
    Day,
    DayOfYear,
    /// Monday is 1.
    WeekdayNumber,
    Weekday,
    /// AM or PM.
    HalfDay,
    /// 0 to 11.
    HourOfHalfDay,
    /// 1 to 12.
    ClockHourOfHalfDay,
    /// 0 to 23.
    Hour,
    /// 1 to 24.
    ClockHour,
    Minute,
    Second,
    Fraction,
    /// `CST`
    ZoneName,
    /// `America/Belize`
    ZoneId,
    Offset(OffsetStyle),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OffsetStyle {
    colon: bool,
    /// Zero is written as Z.
    z: bool,
    /// Minutes are left out where they are zero.
    short: bool,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Whether a name is written with three letters or in full.
fn name(full: &'static str, count: usize) -> &'static str {
    if count >= 4 { full } else { &full[..3] }
}

impl TimePattern {
    /// The pattern in the text.
    ///
    /// # Errors
    /// What is wrong with it, lower case and without a full stop.
    pub fn read(text: &str, dialect: Dialect) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            if c == '\'' {
                let mut literal = String::new();
                if rest.next_if_eq(&'\'').is_some() {
                    literal.push('\'');
                } else {
                    loop {
                        match rest.next() {
                            None => return Err("a quote in the pattern is not closed".to_owned()),
                            Some('\'') if rest.next_if_eq(&'\'').is_none() => break,
                            Some(c) => literal.push(c),
                        }
                    }
                }
                push_literal(&mut parts, &literal);
            } else if c.is_ascii_alphabetic() {
                let mut count = 1;
                while rest.next_if_eq(&c).is_some() {
                    count += 1;
                }
                parts.push(Part::Field(field(c, count, dialect)?, count));
            } else {
                push_literal(&mut parts, c.encode_utf8(&mut [0; 4]));
            }
        }
        Ok(Self { parts })
    }
}

#[cfg(feature = "parquet")]
impl TimePattern {
    /// So many microseconds begin and end with the clock in UTC and are written alike there: a day where the pattern has
    /// nothing shorter, down to a millisecond.
    pub fn step_us(&self) -> i64 {
        let step_us = |part: &Part| match part {
            Part::Field(Field::Fraction, _) => 1_000,
            Part::Field(Field::Second, _) => 1_000_000,
            Part::Field(Field::Minute, _) => 60_000_000,
            Part::Field(
                Field::HalfDay | Field::HourOfHalfDay | Field::ClockHourOfHalfDay | Field::Hour | Field::ClockHour,
                _,
            ) => 3_600_000_000,
            Part::Field(..) | Part::Literal(_) => 86_400_000_000,
        };
        self.parts.iter().map(step_us).min().unwrap_or(86_400_000_000)
    }
}

fn push_literal(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        Some(Part::Literal(literal)) => literal.push_str(text),
        _ => parts.push(Part::Literal(text.to_owned())),
    }
}

fn field(letter: char, count: usize, dialect: Dialect) -> Result<Field, String> {
    let unknown = || {
        let letters = match dialect {
            Dialect::Joda => "GYxwyMdDEeaKhHkmsSzZ",
            Dialect::Jdk => "GuyMLdDEaKhHkmsSzVXxZ",
        };
        let run = letter.to_string().repeat(count);
        Err(format!("\"{run}\" in the pattern is no field that is known ({letters}); text stands in single quotes"))
    };
    let offset = |colon, z, short| Field::Offset(OffsetStyle { colon, z, short });
    Ok(match (letter, dialect) {
        ('G', _) => Field::Era,
        ('y', Dialect::Joda) | ('u', Dialect::Jdk) => Field::Year,
        ('Y', Dialect::Joda) | ('y', Dialect::Jdk) => Field::YearOfEra,
        ('x', Dialect::Joda) => Field::WeekYear,
        ('w', Dialect::Joda) => Field::Week,
        ('M', _) | ('L', Dialect::Jdk) if count <= 4 => Field::Month,
        ('d', _) => Field::Day,
        ('D', _) => Field::DayOfYear,
        ('e', Dialect::Joda) => Field::WeekdayNumber,
        ('E', _) if count <= 4 => Field::Weekday,
        ('a', _) => Field::HalfDay,
        ('K', _) => Field::HourOfHalfDay,
        ('h', _) => Field::ClockHourOfHalfDay,
        ('H', _) => Field::Hour,
        ('k', _) => Field::ClockHour,
        ('m', _) => Field::Minute,
        ('s', _) => Field::Second,
        ('S', _) if count <= 9 => Field::Fraction,
        ('z', _) if count <= 3 => Field::ZoneName,
        ('V', Dialect::Jdk) if count == 2 => Field::ZoneId,
        ('Z', Dialect::Joda) if count >= 3 => Field::ZoneId,
        ('Z', Dialect::Joda) => offset(count == 2, false, false),
        ('Z', Dialect::Jdk) if count <= 3 => offset(false, false, false),
        ('Z', Dialect::Jdk) if count == 5 => offset(true, true, false),
        ('X' | 'x', Dialect::Jdk) if count <= 3 => offset(count == 3, letter == 'X', count == 1),
        _ => return unknown(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(pattern: &str, time_ms: i64, zone: &str) -> String {
        let pattern = TimePattern::read(pattern, Dialect::Joda).unwrap();
        pattern.write(time_ms, &Zone::read(zone).unwrap()).unwrap()
    }

    fn parse(text: &str, pattern: &str) -> Option<i64> {
        TimePattern::read(pattern, Dialect::Jdk).unwrap().parse(text)
    }

    #[test]
    fn every_field_is_written() {
        // 2026-03-07T16:05:09.042 in New York, a Saturday.
        let time_ms = 1_772_917_509_042;
        for (pattern, text) in [
            ("yyyy-MM-dd'T'HH:mm:ss.SSSZZ", "2026-03-07T16:05:09.042-05:00"),
            ("yy M d D e x w", "26 3 7 66 6 2026 10"),
            ("EEE, d MMM yyyy h:mm a z", "Sat, 7 Mar 2026 4:05 PM EST"),
            ("EEEE MMMM 'o''clock' kk KK", "Saturday March o'clock 16 04"),
            ("G YYYY Z ZZZ", "AD 2026 -0500 America/New_York"),
            ("SSSSSS", "042000"),
        ] {
            assert_eq!(write(pattern, time_ms, "America/New_York"), text, "{pattern}");
        }
        assert_eq!(write("yyyy z ZZ", 0, "GMT+01:30"), "1970 +01:30 +01:30");
    }

    #[test]
    fn a_text_is_read_by_its_pattern_or_not_at_all() {
        for (text, pattern, time_ms) in [
            ("2026-03-07 16:05", "yyyy-MM-dd HH:mm", Some(1_772_899_500_000)),
            ("7.3.2026 4 PM", "d.M.uuuu h a", Some(1_772_899_200_000)),
            ("7.3.2026 12 AM", "d.M.uuuu h a", Some(1_772_841_600_000)),
            ("Sat 07 Mar 26", "EEE dd MMM yy", Some(1_772_841_600_000)),
            ("2026-066", "yyyy-DDD", Some(1_772_841_600_000)),
            ("2026-03-07T16:05:00Z", "yyyy-MM-dd'T'HH:mm:ssX", Some(1_772_899_500_000)),
            ("2026-03-07T16:05:00+0130", "yyyy-MM-dd'T'HH:mm:ssxx", Some(1_772_894_100_000)),
            ("Sun 07 Mar 26", "EEE dd MMM yy", None),
            ("2026-02-30", "yyyy-MM-dd", None),
            ("2026-03-07 ", "yyyy-MM-dd", None),
            ("2026-3-07", "yyyy-MM-dd", None),
            ("16:05", "HH:mm", None),
            ("2026-03-07 Mars/Base", "yyyy-MM-dd VV", None),
        ] {
            assert_eq!(parse(text, pattern), time_ms, "{text} by {pattern}");
        }
    }

    #[cfg(feature = "parquet")]
    #[test]
    fn a_step_is_as_long_as_what_is_written_alike() {
        for (pattern, step_us) in [
            ("yyyy/MM/dd", 86_400_000_000),
            ("'HH'", 86_400_000_000),
            ("yyyy/MM/dd/HH", 3_600_000_000),
            ("a", 3_600_000_000),
            ("HH mm", 60_000_000),
            ("ss", 1_000_000),
            ("SSS yyyy", 1_000),
        ] {
            assert_eq!(TimePattern::read(pattern, Dialect::Jdk).unwrap().step_us(), step_us, "{pattern}");
        }
    }

    #[test]
    fn a_letter_that_is_no_field_is_refused() {
        for (pattern, part) in [("yyyy-MM-ddTHH", "\"T\""), ("QQ", "\"QQ\""), ("yyyy 'at", "not closed")] {
            let error = TimePattern::read(pattern, Dialect::Joda).unwrap_err();
            assert!(error.contains(part), "{pattern}: {error}");
        }
    }
}
