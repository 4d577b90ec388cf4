//! Writes payloads digit by digit into a reused buffer: no allocation and no formatting machinery
//! per message, and the same bytes on every machine.

use chrono::{DateTime, Datelike};

use super::signal::Reading;

/// Appends a whole number.
pub(super) fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = digit(rest % 10);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends `value / 10^decimals` with all its decimals: 2251 with two is `22.51`.
pub(super) fn push_fixed(out: &mut Vec<u8>, value: i64, decimals: u32) {
    if value < 0 {
        out.push(b'-');
    }
    let size = value.unsigned_abs();
    let scale = 10_u64.pow(decimals);
    push_number(out, size / scale);
    if decimals > 0 {
        out.push(b'.');
        let mut place = scale / 10;
        while place > 0 {
            out.push(digit(size / place % 10));
            place /= 10;
        }
    }
}

fn digit(number: u64) -> u8 {
    b"0123456789"[(number % 10) as usize]
}

/// Writes points in time as `2026-01-31T12:00:00.123456Z`, and again only what has changed since
/// the last one.
#[derive(Debug)]
pub(super) struct ClockFace {
    day: i64,
    second: i64,
    text: [u8; 27],
}

impl ClockFace {
    pub(super) fn new() -> Self {
        Self { day: i64::MIN, second: i64::MIN, text: *b"0000-00-00T00:00:00.000000Z" }
    }

    /// Shows a time, in microseconds since 1970.
    pub(super) fn show(&mut self, time_us: i64) -> &str {
        let second = time_us.div_euclid(1_000_000);
        if second != self.second {
            self.second = second;
            self.show_second(second);
        }
        self.put(20, 6, time_us.rem_euclid(1_000_000));
        self.text()
    }

    /// The time shown last.
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.text).expect("digits and separators are ASCII")
    }

    fn show_second(&mut self, second: i64) {
        let day = second.div_euclid(86_400);
        if day != self.day {
            self.day = day;
            // Years beyond the calendar's end are refused when the source is built.
            let date = DateTime::from_timestamp(second, 0).unwrap_or_default();
            self.put(0, 4, date.year().into());
            self.put(5, 2, date.month().into());
            self.put(8, 2, date.day().into());
        }
        let in_day = second.rem_euclid(86_400);
        self.put(11, 2, in_day / 3600);
        self.put(14, 2, in_day / 60 % 60);
        self.put(17, 2, in_day % 60);
    }

    fn put(&mut self, at: usize, width: usize, number: i64) {
        let mut rest = number.unsigned_abs();
        for place in self.text[at..at + width].iter_mut().rev() {
            *place = digit(rest % 10);
            rest /= 10;
        }
    }
}

/// What every payload of a device begins with: everything up to the timestamp.
pub(super) fn head(device_id: &str) -> Vec<u8> {
    format!("{{\"device_id\":{},\"timestamp\":\"", quoted(device_id)).into_bytes()
}

/// A text as JSON.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Writes the payload of a reading, in place of what the buffer held.
pub(super) fn write_reading(out: &mut Vec<u8>, head: &[u8], timestamp: &str, reading: &Reading, decimals: [u32; 2]) {
    out.clear();
    out.extend_from_slice(head);
    out.extend_from_slice(timestamp.as_bytes());
    out.extend_from_slice(b"\",\"temperature\":");
    push_fixed(out, reading.values[0], decimals[0]);
    out.extend_from_slice(b",\"humidity\":");
    push_fixed(out, reading.values[1], decimals[1]);
    out.extend_from_slice(b",\"seq\":");
    push_number(out, reading.seq);
    out.push(b'}');
}

/// The ways in which a payload can be bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The text ends in the middle.
    Truncated,
    /// Text that is no JSON at all.
    NotJson,
    /// Nothing.
    Empty,
    /// Bytes that are no UTF-8.
    InvalidUtf8,
    /// `temperature` is a text.
    WrongType,
    /// `temperature` is `NaN`, which JSON does not have.
    NotANumber,
    /// `timestamp` is no point in time.
    BadTimestamp,
    /// There is no `device_id`.
    NoDeviceId,
    /// `temperature` is -9999, what a broken sensor says. The only flaw that decodes.
    OutOfRange,
}

impl Flaw {
    pub(super) const ALL: [Flaw; 9] = [
        Flaw::Truncated,
        Flaw::NotJson,
        Flaw::Empty,
        Flaw::InvalidUtf8,
        Flaw::WrongType,
        Flaw::NotANumber,
        Flaw::BadTimestamp,
        Flaw::NoDeviceId,
        Flaw::OutOfRange,
    ];

    /// The word for it in the truth file.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::NotJson => "not_json",
            Self::Empty => "empty",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::WrongType => "wrong_type",
            Self::NotANumber => "not_a_number",
            Self::BadTimestamp => "bad_timestamp",
            Self::NoDeviceId => "no_device_id",
            Self::OutOfRange => "out_of_range",
        }
    }

    /// Spoils a payload that [`write_reading`] wrote.
    pub(super) fn spoil(self, payload: &mut Vec<u8>) {
        match self {
            Self::Truncated => payload.truncate(payload.len() / 2),
            Self::NotJson => {
                payload.clear();
                payload.extend_from_slice(b"ERROR: sensor offline");
            }
            Self::Empty => payload.clear(),
            Self::InvalidUtf8 => {
                // The first character of the device id's value, or its closing quote.
                let at = b"{\"device_id\":\"".len();
                payload[at] = 0xff;
            }
            Self::WrongType => replace(payload, b"\"temperature\":", b",", b"\"n/a\""),
            Self::NotANumber => replace(payload, b"\"temperature\":", b",", b"NaN"),
            Self::OutOfRange => replace(payload, b"\"temperature\":", b",", b"-9999"),
            Self::BadTimestamp => replace(payload, b"\"timestamp\":", b",", b"\"yesterday\""),
            Self::NoDeviceId => replace(payload, b"{", b"\"timestamp\":", b""),
        }
    }
}

/// Puts other bytes between the last `before` and the next `after`. The last, since a device id may
/// hold anything.
fn replace(payload: &mut Vec<u8>, before: &[u8], after: &[u8], with: &[u8]) {
    let find_last = |wanted: &[u8]| payload.windows(wanted.len()).rposition(|window| window == wanted);
    let Some(start) = find_last(before).map(|at| at + before.len()) else { return };
    let Some(length) = payload[start..].windows(after.len()).position(|window| window == after) else { return };
    payload.splice(start..start + length, with.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(value: i64, decimals: u32) -> String {
        let mut out = Vec::new();
        push_fixed(&mut out, value, decimals);
        String::from_utf8(out).unwrap()
    }

    fn payload() -> Vec<u8> {
        let reading = Reading { device: 0, time_us: 0, seq: 912, values: [2251, -7] };
        let mut out = b"left over".to_vec();
        write_reading(&mut out, &head("device-17"), "2026-01-31T12:00:00.123456Z", &reading, [2, 2]);
        out
    }

    #[test]
    fn numbers_keep_all_their_decimals() {
        assert_eq!(fixed(2251, 2), "22.51");
        assert_eq!(fixed(2200, 2), "22.00");
        assert_eq!(fixed(-5, 2), "-0.05");
        assert_eq!(fixed(12, 0), "12");
        assert_eq!(fixed(i64::MIN, 0), i64::MIN.to_string());
    }

    #[test]
    fn a_clock_face_shows_what_chrono_shows() {
        let mut face = ClockFace::new();
        let start = 951_782_399_999_998_i64; // two microseconds before 29 February 2000
        for step in [0, 1, 2, 3, 1_000_000, 86_400_000_000, 86_400_000_001, 3_153_600_000_000_000, 0] {
            let time = DateTime::from_timestamp_micros(start + step).unwrap();
            assert_eq!(face.show(start + step), time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
        }
    }

    #[test]
    fn a_payload_is_compact_json() {
        let expected = r#"{"device_id":"device-17","timestamp":"2026-01-31T12:00:00.123456Z","temperature":22.51,"humidity":-0.07,"seq":912}"#;
        assert_eq!(String::from_utf8(payload()).unwrap(), expected);
    }

    #[test]
    fn a_device_id_is_escaped() {
        let head = String::from_utf8(head("a\"b\\")).unwrap();
        assert_eq!(head, r#"{"device_id":"a\"b\\","timestamp":""#);
    }

    #[test]
    fn each_flaw_spoils_what_it_says() {
        let spoilt = |flaw: Flaw| {
            let mut bytes = payload();
            flaw.spoil(&mut bytes);
            bytes
        };
        for flaw in [Flaw::Truncated, Flaw::NotJson, Flaw::Empty, Flaw::InvalidUtf8, Flaw::NotANumber] {
            assert!(serde_json::from_slice::<serde_json::Value>(&spoilt(flaw)).is_err(), "{}", flaw.word());
        }
        let json = |flaw| serde_json::from_slice::<serde_json::Value>(&spoilt(flaw)).expect("JSON, if not a reading");
        assert_eq!(json(Flaw::WrongType)["temperature"], "n/a");
        assert_eq!(json(Flaw::BadTimestamp)["timestamp"], "yesterday");
        assert_eq!(json(Flaw::OutOfRange)["temperature"], -9999);
        assert_eq!(json(Flaw::NoDeviceId).get("device_id"), None);
        assert_eq!(json(Flaw::NoDeviceId)["seq"], 912);
    }
}
