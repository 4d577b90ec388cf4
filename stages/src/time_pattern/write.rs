//! A moment as text.

use std::fmt::Write as _;

use chrono::{Datelike, NaiveDateTime, Timelike};

use super::zone::Local;
use super::{Field, MONTHS, OffsetStyle, Part, TimePattern, WEEKDAYS, Zone, name};

impl TimePattern {
    /// The time in the zone; `None` outside of the years that the calendar knows.
    pub fn write(&self, time_ms: i64, zone: &Zone) -> Option<String> {
        let local = zone.local(time_ms)?;
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Field(field, count) => write_field(*field, *count, &local, zone, &mut out),
            }
        }
        Some(out)
    }
}

fn write_field(field: Field, count: usize, local: &Local, zone: &Zone, out: &mut String) {
    let time = local.time;
    match field {
        Field::Era => out.push_str(if time.year() > 0 { "AD" } else { "BC" }),
        Field::Year => put_year(time.year(), count, out),
        Field::YearOfEra => put_year(year_of_era(time), count, out),
        Field::WeekYear => put_year(time.iso_week().year(), count, out),
        Field::Week => put(time.iso_week().week(), count, out),
        Field::Month if count >= 3 => out.push_str(name(MONTHS[time.month0() as usize], count)),
        Field::Month => put(time.month(), count, out),
        Field::Day => put(time.day(), count, out),
        Field::DayOfYear => put(time.ordinal(), count, out),
        Field::WeekdayNumber => put(time.weekday().number_from_monday(), count, out),
        Field::Weekday => out.push_str(name(WEEKDAYS[time.weekday().num_days_from_monday() as usize], count)),
        Field::HalfDay => out.push_str(if time.hour() < 12 { "AM" } else { "PM" }),
        Field::HourOfHalfDay => put(time.hour() % 12, count, out),
        Field::ClockHourOfHalfDay => put(time.hour12().1, count, out),
        Field::Hour => put(time.hour(), count, out),
        Field::ClockHour => put(if time.hour() == 0 { 24 } else { time.hour() }, count, out),
        Field::Minute => put(time.minute(), count, out),
        Field::Second => put(time.second(), count, out),
        Field::Fraction => {
            let digits = format!("{:09}", time.nanosecond() % 1_000_000_000);
            out.push_str(&digits[..count]);
        }
        Field::ZoneName => out.push_str(&local.name),
        Field::ZoneId => out.push_str(&zone.id()),
        Field::Offset(style) => put_offset(local.offset_s, style, out),
    }
}

fn year_of_era(time: NaiveDateTime) -> i32 {
    if time.year() > 0 { time.year() } else { 1 - time.year() }
}

fn put_year(year: i32, count: usize, out: &mut String) {
    if count == 2 {
        return put(year.rem_euclid(100).unsigned_abs(), 2, out);
    }
    if year < 0 {
        out.push('-');
    }
    put(year.unsigned_abs(), count, out);
}

fn put(number: u32, width: usize, out: &mut String) {
    // Memory takes all that is written.
    write!(out, "{number:0width$}").unwrap_or_default();
}

fn put_offset(offset_s: i32, style: OffsetStyle, out: &mut String) {
    if style.z && offset_s == 0 {
        out.push('Z');
        return;
    }
    out.push(if offset_s < 0 { '-' } else { '+' });
    let minutes = offset_s.unsigned_abs() / 60;
    put(minutes / 60, 2, out);
    if style.short && minutes.is_multiple_of(60) {
        return;
    }
    if style.colon {
        out.push(':');
    }
    put(minutes % 60, 2, out);
}
