//! Time zones by name and by offset.

use chrono::{DateTime, Days, FixedOffset, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::{OffsetName, Tz};

/// A time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Zone {
    Named(Tz),
    Fixed(FixedOffset),
}

/// A moment as a clock in some zone shows it.
pub(super) struct Local {
    pub(super) time: NaiveDateTime,
    pub(super) offset_s: i32,
    /// `CST`
    pub(super) name: String,
}

impl Zone {
    pub const UTC: Zone = Zone::Named(Tz::UTC);

    /// `America/Belize`, `UTC`, `Z`, `UTC+01:00`, `+0100`; `None` where there is no such zone.
    pub fn read(text: &str) -> Option<Self> {
        if text == "Z" {
            return Some(Self::UTC);
        }
        let prefix = ["UTC", "GMT", "UT"].iter().find_map(|prefix| text.strip_prefix(prefix));
        match prefix {
            Some("") => return Some(Self::UTC),
            Some(offset) if offset.starts_with(['+', '-']) => return offset_in(offset).map(Self::Fixed),
            _ if text.starts_with(['+', '-']) => return offset_in(text).map(Self::Fixed),
            _ => {}
        }
        text.parse().ok().map(Self::Named)
    }

    /// What a clock shows; `None` outside of the years that the calendar knows.
    pub(super) fn local(&self, time_ms: i64) -> Option<Local> {
        let moment = DateTime::<Utc>::from_timestamp_millis(time_ms).filter(|moment| {
            moment.checked_add_days(Days::new(1)).is_some() && moment.checked_sub_days(Days::new(1)).is_some()
        })?;
        Some(match self {
            Self::Named(zone) => {
                let local = moment.with_timezone(zone);
                let offset_s = local.offset().fix().local_minus_utc();
                let name = local.offset().abbreviation().map_or_else(|| offset_text(offset_s), str::to_owned);
                Local { time: local.naive_local(), offset_s, name }
            }
            Self::Fixed(offset) => {
                let offset_s = offset.local_minus_utc();
                Local { time: moment.with_timezone(offset).naive_local(), offset_s, name: offset_text(offset_s) }
            }
        })
    }

    /// The moment at which a clock shows this. Where it shows it twice, the first; where it skips it, as
    /// long after the gap.
    pub(super) fn moment_ms(&self, time: NaiveDateTime) -> Option<i64> {
        match self {
            Self::Fixed(offset) => Some(offset.from_local_datetime(&time).single()?.timestamp_millis()),
            Self::Named(zone) => {
                let hour = TimeDelta::hours(1);
                let found = zone.from_local_datetime(&time).earliest();
                let moment = match found {
                    Some(moment) => moment,
                    None => zone.from_local_datetime(&time.checked_add_signed(hour)?).earliest()?,
                };
                Some(moment.timestamp_millis())
            }
        }
    }

    /// `America/Belize`, `+01:00`
    pub(super) fn id(&self) -> String {
        match self {
            Self::Named(zone) => zone.name().to_owned(),
            Self::Fixed(offset) => offset_text(offset.local_minus_utc()),
        }
    }
}

fn offset_text(offset_s: i32) -> String {
    let sign = if offset_s < 0 { '-' } else { '+' };
    let minutes = offset_s.abs() / 60;
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

/// `+1`, `+01`, `+0130`, `+01:30`
pub(super) fn offset_in(text: &str) -> Option<FixedOffset> {
    let negative = text.starts_with('-');
    let digits: String = text[1..].chars().filter(|c| *c != ':').collect();
    if digits.is_empty() || digits.len() > 4 || !digits.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes) = if digits.len() > 2 { digits.split_at(digits.len() - 2) } else { (digits.as_str(), "0") };
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    let seconds = (hours * 60 + minutes) * 60;
    if minutes > 59 || hours > 18 {
        return None;
    }
    FixedOffset::east_opt(if negative { -seconds } else { seconds })
}
