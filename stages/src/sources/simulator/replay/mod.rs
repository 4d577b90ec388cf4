//! A recorded data set, sent again as one device's messages.
//!
//! Values go out digit for digit as they stand in the file, in the order of the file. Only the
//! timestamp of a CSV row is completed: without a zone it is UTC, and it is sent as RFC 3339.

mod csv;
mod json_lines;

use std::borrow::Cow;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDateTime};
use pipeline_engine::stage::StageError;

use super::fleet::Outgoing;
use super::topic::Topic;
use csv::CsvRows;
use json_lines::JsonLines;

const TIMESTAMP: &str = "timestamp";
const DEVICE_ID: &str = "device_id";
/// The longest line of a JSON-lines file: what an MQTT broker still takes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// What to replay; the file has not been looked at yet.
#[derive(Debug, Clone)]
pub(super) struct ReplaySettings {
    pub(super) path: PathBuf,
    /// For rows without a `device_id` of their own.
    pub(super) device_id: String,
    pub(super) topic: Topic,
    pub(super) count: Option<u64>,
    pub(super) duration_us: Option<i64>,
}

/// The open file, one message ahead.
pub(super) struct Replay {
    rows: Rows,
    path: PathBuf,
    topic: Topic,
    left: u64,
    duration_us: Option<i64>,
    end_us: i64,
    current: Message,
    upcoming: Message,
    has_upcoming: bool,
    /// Why `upcoming` can't be read; told when its turn comes, after all that is before it.
    broken: Option<StageError>,
}

/// One message, its buffers reused.
#[derive(Default)]
struct Message {
    topic: String,
    payload: Vec<u8>,
    /// Never before the message before it: a file's clock may step back, the replay's does not.
    due_us: i64,
}

enum Rows {
    Csv(Box<CsvRows>),
    JsonLines(JsonLines),
}

/// What a row says besides its payload.
struct RowHead<'a> {
    time_us: i64,
    device_id: Cow<'a, str>,
}

/// What stops a replay, and at which line or row of the file.
struct Mistake {
    place: String,
    text: String,
}

impl Replay {
    /// Opens the file and reads its first row.
    ///
    /// # Errors
    /// Permanent: the file can't be read or its first row is no reading.
    pub(super) fn open(settings: &ReplaySettings) -> Result<Self, StageError> {
        let path = &settings.path;
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let rows = match extension {
            "jsonl" | "ndjson" | "json" => JsonLines::open(path, &settings.device_id).map(Rows::JsonLines)?,
            _ => CsvRows::open(path, &settings.device_id).map(|rows| Rows::Csv(Box::new(rows)))?,
        };
        let mut replay = Self {
            rows,
            path: path.clone(),
            topic: settings.topic.clone(),
            left: settings.count.unwrap_or(u64::MAX),
            duration_us: settings.duration_us,
            end_us: i64::MAX,
            current: Message::default(),
            upcoming: Message { due_us: i64::MIN, ..Message::default() },
            has_upcoming: false,
            broken: None,
        };
        replay.advance()?;
        if let (true, Some(duration_us)) = (replay.has_upcoming, replay.duration_us) {
            replay.end_us = replay.upcoming.due_us.saturating_add(duration_us);
        }
        Ok(replay)
    }

    /// When the next message is due, by the file's clock; `None` at its end.
    pub(super) fn due_us(&self) -> Option<i64> {
        let has_next = self.has_upcoming && self.upcoming.due_us < self.end_us;
        (self.left > 0 && (has_next || self.broken.is_some())).then_some(self.upcoming.due_us)
    }

    /// Sends nothing more.
    pub(super) fn stop(&mut self) {
        self.left = 0;
    }

    /// The next message.
    ///
    /// # Errors
    /// Permanent: its row can't be read.
    pub(super) fn next(&mut self) -> Result<Option<Outgoing<'_>>, StageError> {
        if self.due_us().is_none() {
            return Ok(None);
        }
        if let Some(mistake) = self.broken.take() {
            self.left = 0;
            return Err(mistake);
        }
        self.left -= 1;
        std::mem::swap(&mut self.current, &mut self.upcoming);
        self.upcoming.due_us = self.current.due_us;
        self.broken = self.advance().err();
        let Message { topic, payload, due_us } = &self.current;
        Ok(Some(Outgoing { topic, payload, sent_at_us: *due_us, planted: None }))
    }

    /// Reads one row into `upcoming`.
    fn advance(&mut self) -> Result<(), StageError> {
        let Message { topic, payload, due_us } = &mut self.upcoming;
        payload.clear();
        self.has_upcoming = false;
        let head = match &mut self.rows {
            Rows::Csv(rows) => rows.next(payload),
            Rows::JsonLines(lines) => lines.next(payload),
        };
        let head = head.map_err(|mistake| {
            StageError::permanent(format!("\"{}\", {}: {}", self.path.display(), mistake.place, mistake.text))
        })?;
        self.has_upcoming = head.is_some();
        if let Some(RowHead { time_us, device_id }) = head {
            *due_us = time_us.max(*due_us);
            topic.clear();
            match self.topic.of_device(&device_id) {
                Some(of_device) => topic.push_str(&of_device),
                None => topic.push_str(self.topic.text()),
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<BufReader<File>, StageError> {
    let file = File::open(path).map_err(|error| {
        StageError::permanent(format!("the file to replay, \"{}\", can't be read", path.display())).because(error)
    })?;
    Ok(BufReader::with_capacity(1 << 16, file))
}

/// Microseconds since 1970, and the same time as RFC 3339. A time without a zone is UTC.
fn read_time(text: &str) -> Option<(i64, String)> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some((time.timestamp_micros(), text.replacen(' ', "T", 1)));
    }
    let shape = if text.contains('T') { "%Y-%m-%dT%H:%M:%S%.f" } else { "%Y-%m-%d %H:%M:%S%.f" };
    let time = NaiveDateTime::parse_from_str(text, shape).ok()?.and_utc();
    // chrono also takes single digits, which RFC 3339 does not: what goes out must be read back.
    let completed = format!("{}Z", text.replacen(' ', "T", 1));
    DateTime::parse_from_rfc3339(&completed).ok()?;
    Some((time.timestamp_micros(), completed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(
        name: &str,
        content: &str,
        change: impl FnOnce(&mut ReplaySettings),
    ) -> Result<Vec<(i64, String, String)>, StageError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let topic = Topic::parse("iot/{device_id}").unwrap();
        let mut settings = ReplaySettings { path, device_id: "pump".to_owned(), topic, count: None, duration_us: None };
        change(&mut settings);
        let mut replay = Replay::open(&settings)?;
        let mut sent = Vec::new();
        while let Some(due_us) = replay.due_us() {
            let message = replay.next()?.expect("a message is due");
            assert_eq!(message.sent_at_us, due_us);
            sent.push((due_us, message.topic.to_owned(), String::from_utf8(message.payload.to_vec()).unwrap()));
        }
        Ok(sent)
    }

    fn payloads(name: &str, content: &str) -> Vec<String> {
        replay(name, content, |_| {}).unwrap().into_iter().map(|(.., payload)| payload).collect()
    }

    #[test]
    fn values_go_out_digit_for_digit() {
        let file = "timestamp,value\n2013-12-02 21:15:00,73.96732207\r\n2013-12-02 21:20:00.5,74.93588199999998\n2013-12-02T21:25:00+01:00,-1.00035107164e-05\n";
        let expected = [
            r#"{"device_id":"pump","timestamp":"2013-12-02T21:15:00Z","value":73.96732207,"seq":1}"#,
            r#"{"device_id":"pump","timestamp":"2013-12-02T21:20:00.5Z","value":74.93588199999998,"seq":2}"#,
            r#"{"device_id":"pump","timestamp":"2013-12-02T21:25:00+01:00","value":-1.00035107164e-05,"seq":3}"#,
        ];
        assert_eq!(payloads("m.csv", file), expected);
    }

    #[test]
    fn fields_that_are_no_numbers_are_null_or_text() {
        let file = "\u{feff}value,state,ok,timestamp\n,\"a \"\"b\"\", c\",true,2013-12-02 21:15:00\n+5,NaN,007,2013-12-02 21:15:01\n";
        let expected = [
            r#"{"device_id":"pump","timestamp":"2013-12-02T21:15:00Z","value":null,"state":"a \"b\", c","ok":true,"seq":1}"#,
            r#"{"device_id":"pump","timestamp":"2013-12-02T21:15:01Z","value":"+5","state":"NaN","ok":"007","seq":2}"#,
        ];
        assert_eq!(payloads("m.csv", file), expected);
    }

    #[test]
    fn a_device_id_in_the_file_wins_and_names_the_topic() {
        let file = "device_id,timestamp,value\nd7,2013-12-02 21:15:00,1\n,2013-12-02 21:15:01,2\n";
        let sent = replay("m.csv", file, |_| {}).unwrap();
        assert_eq!(sent[0].1, "iot/d7");
        assert_eq!(sent[0].2, r#"{"device_id":"d7","timestamp":"2013-12-02T21:15:00Z","value":1,"seq":1}"#);
        assert_eq!(sent[1].1, "iot/pump");
    }

    #[test]
    fn json_lines_go_out_as_they_are() {
        let lines = [
            "{\"device_id\":\"d1\",  \"timestamp\":\"2013-12-02T21:15:00Z\",\"v\":1.50}",
            "{\"timestamp\":\"2013-12-02 21:15:01\",\"v\":2}",
        ];
        let sent = replay("m.jsonl", &format!("{}\n\n{}", lines[0], lines[1]), |_| {}).unwrap();
        assert_eq!(sent[0].2, lines[0]);
        assert_eq!(sent[1].2, r#"{"device_id":"pump","timestamp":"2013-12-02 21:15:01","v":2}"#);
        assert_eq!((sent[0].1.as_str(), sent[1].1.as_str()), ("iot/d1", "iot/pump"));
    }

    #[test]
    fn a_clock_that_steps_back_keeps_the_order_of_the_file() {
        let file = "timestamp,v\n2014-01-07 03:00:00,1\n2014-01-07 02:00:00,2\n2014-01-07 03:05:00,3\n";
        let sent = replay("m.csv", file, |_| {}).unwrap();
        assert_eq!(sent.iter().map(|(due_us, ..)| due_us - sent[0].0).collect::<Vec<_>>(), [0, 0, 300_000_000]);
        assert!(sent[1].2.contains("02:00:00"), "{}", sent[1].2);
    }

    #[test]
    fn count_and_duration_end_a_replay() {
        let file = "timestamp,v\n2014-01-07 00:00:00,1\n2014-01-07 00:00:01,2\n2014-01-07 00:00:02,3\n";
        assert_eq!(replay("m.csv", file, |settings| settings.count = Some(2)).unwrap().len(), 2);
        assert_eq!(replay("m.csv", file, |settings| settings.duration_us = Some(1_000_000)).unwrap().len(), 1);
        assert_eq!(payloads("m.csv", "timestamp,v\n").len(), 0);
    }

    #[test]
    fn what_is_no_reading_is_named_with_its_place() {
        let mistake = |name: &str, content: &str| replay(name, content, |_| {}).expect_err("must stop the run").chain();
        let text = mistake("m.csv", "timestamp,v\n2014-01-07 00:00:00,1\nyesterday,2\n");
        assert!(text.contains("m.csv\", row 2: \"yesterday\" is not a timestamp"), "{text}");
        let text = mistake("m.csv", "time,v\n2014-01-07 00:00:00,1\n");
        assert!(text.contains("has no column \"timestamp\"") && text.contains("\"time\", \"v\""), "{text}");
        let text = mistake("m.csv", "timestamp,v\n2014-01-07 00:00:00,1,2\n");
        assert!(text.contains("m.csv\", after row 0: "), "{text}");
        let text = mistake("m.jsonl", "{\"timestamp\":\"2014-01-07 00:00:00\"}\n[]\n");
        assert!(text.contains("m.jsonl\", line 2: not a JSON object"), "{text}");
        let text = replay("m.csv", "", |settings| settings.path = PathBuf::from("/nowhere/m.csv"))
            .expect_err("missing")
            .chain();
        assert!(text.contains("the file to replay, \"/nowhere/m.csv\", can't be read"), "{text}");
    }

    #[test]
    fn times_are_read_in_the_shapes_that_files_have() {
        assert_eq!(read_time("1970-01-01 00:00:01"), Some((1_000_000, "1970-01-01T00:00:01Z".to_owned())));
        assert_eq!(
            read_time("1970-01-01T01:00:00.25+01:00"),
            Some((250_000, "1970-01-01T01:00:00.25+01:00".to_owned()))
        );
        for text in ["", "1970-01-01", "1970-1-1 00:00:01", "12", "1970-13-01 00:00:00"] {
            assert_eq!(read_time(text), None, "{text}");
        }
    }
}
