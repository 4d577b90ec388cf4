//! Text as a moment.

use chrono::{Datelike, NaiveDate};

use super::zone::offset_in;
use super::{Field, MONTHS, Part, TimePattern, WEEKDAYS, Zone, name};

/// What the fields have said so far.
#[derive(Default)]
struct Found {
    year: Option<i32>,
    before_christ: bool,
    month: Option<u32>,
    day: Option<u32>,
    day_of_year: Option<u32>,
    weekday: Option<usize>,
    hour: Option<u32>,
    hour_of_half: Option<u32>,
    afternoon: bool,
    minute: u32,
    second: u32,
    nanosecond: u32,
    zone: Option<Zone>,
}

impl TimePattern {
    /// Milliseconds since 1970 of a text that is written by this pattern, all of it; `None` if it is not,
    /// or names no day. Without a zone in it, it is UTC; without a time of day, midnight.
    pub fn parse(&self, text: &str) -> Option<i64> {
        let mut found = Found::default();
        let mut rest = text;
        for part in &self.parts {
            rest = match part {
                Part::Literal(literal) => rest.strip_prefix(literal.as_str())?,
                Part::Field(field, count) => found.take(*field, *count, rest)?,
            };
        }
        if rest.is_empty() { found.moment_ms() } else { None }
    }
}

impl Found {
    /// Reads one field off the front; gives back what is left.
    fn take<'t>(&mut self, field: Field, count: usize, text: &'t str) -> Option<&'t str> {
        let (target, (number, rest)) = match field {
            Field::Era => {
                self.before_christ = text.starts_with("BC");
                return text.strip_prefix("AD").or_else(|| text.strip_prefix("BC"));
            }
            Field::Year | Field::YearOfEra => {
                let (number, rest) = digits(text, count, if count == 2 { 2 } else { 9 })?;
                let year = i32::try_from(number).ok()?;
                self.year = Some(if count == 2 { 2000 + year } else { year });
                return Some(rest);
            }
            Field::Month if count >= 3 => {
                let month = MONTHS.iter().position(|month| text.starts_with(name(month, count)))?;
                self.month = Some(month as u32 + 1);
                return text.strip_prefix(name(MONTHS[month], count));
            }
            Field::Weekday => {
                let day = WEEKDAYS.iter().position(|day| text.starts_with(name(day, count)))?;
                self.weekday = Some(day);
                return text.strip_prefix(name(WEEKDAYS[day], count));
            }
            Field::HalfDay => {
                self.afternoon = text.starts_with("PM");
                return text.strip_prefix("AM").or_else(|| text.strip_prefix("PM"));
            }
            Field::ZoneName | Field::ZoneId => {
                let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"/_+-:".contains(c)).unwrap_or(text.len());
                self.zone = Some(Zone::read(&text[..end])?);
                return Some(&text[end..]);
            }
            Field::Offset(_) => return self.take_offset(text),
            Field::Fraction => {
                let (number, rest) = digits(text, count, count)?;
                self.nanosecond = number * 10_u32.pow(9 - count as u32);
                return Some(rest);
            }
            Field::WeekYear | Field::Week | Field::WeekdayNumber => return None,
            Field::DayOfYear => (field, digits(text, count, 3.max(count))?),
            other => {
                let (least, most) = if count == 1 { (1, 2) } else { (count, count) };
                (other, digits(text, least, most)?)
            }
        };
        match target {
            Field::Month => self.month = Some(number),
            Field::Day => self.day = Some(number),
            Field::DayOfYear => self.day_of_year = Some(number),
            Field::Hour => self.hour = Some(number),
            Field::ClockHour => self.hour = Some(number % 24).filter(|_| (1..=24).contains(&number)),
            Field::HourOfHalfDay => self.hour_of_half = Some(number).filter(|number| *number < 12),
            Field::ClockHourOfHalfDay => self.hour_of_half = Some(number % 12).filter(|_| (1..=12).contains(&number)),
            Field::Minute => self.minute = number,
            Field::Second => self.second = number,
            _ => return None,
        }
        let hour_is_missing = matches!(field, Field::ClockHour) && self.hour.is_none()
            || matches!(field, Field::HourOfHalfDay | Field::ClockHourOfHalfDay) && self.hour_of_half.is_none();
        if hour_is_missing { None } else { Some(rest) }
    }

    fn take_offset<'t>(&mut self, text: &'t str) -> Option<&'t str> {
        if let Some(rest) = text.strip_prefix('Z') {
            self.zone = Some(Zone::UTC);
            return Some(rest);
        }
        let behind_sign = text.strip_prefix(['+', '-'])?;
        let length = behind_sign.find(|c: char| !c.is_ascii_digit() && c != ':').unwrap_or(behind_sign.len());
        self.zone = Some(Zone::Fixed(offset_in(&text[..=length])?));
        Some(&behind_sign[length..])
    }

    fn moment_ms(&self) -> Option<i64> {
        let year = self.year.map(|year| if self.before_christ { 1 - year } else { year })?;
        let date = match self.day_of_year {
            Some(day) => NaiveDate::from_yo_opt(year, day)?,
            None => NaiveDate::from_ymd_opt(year, self.month.unwrap_or(1), self.day.unwrap_or(1))?,
        };
        if self.weekday.is_some_and(|weekday| weekday != date.weekday().num_days_from_monday() as usize) {
            return None;
        }
        let hour = match (self.hour, self.hour_of_half) {
            (Some(hour), _) => hour,
            (None, Some(hour)) => hour + if self.afternoon { 12 } else { 0 },
            (None, None) => 0,
        };
        let time = date.and_hms_nano_opt(hour, self.minute, self.second, self.nanosecond)?;
        self.zone.as_ref().unwrap_or(&Zone::UTC).moment_ms(time)
    }
}

/// A number of so many digits off the front, and what is left.
fn digits(text: &str, least: usize, most: usize) -> Option<(u32, &str)> {
    let length = text.bytes().take(most.min(9)).take_while(u8::is_ascii_digit).count();
    if length < least {
        return None;
    }
    Some((text[..length].parse().ok()?, &text[length..]))
}
