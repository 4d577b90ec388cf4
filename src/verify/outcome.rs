//! What became of messages that were sent to see whether they arrive: for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use pipeline_engine::far_end::MARK;
use pipeline_engine::terminal::{printable, printable_json};
use serde::Serialize;

use crate::commands::watched::{aligned, seconds};
use crate::http::live::grouped;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub pipeline: String,
    /// The source whose door it was.
    pub source: String,
    /// The device that the rows are of.
    pub device: String,
    /// Messages that the broker has taken.
    pub sent: u64,
    /// Messages that it has not, by its reason.
    pub not_taken: BTreeMap<String, u64>,
    /// Where they were waited for.
    pub ends: Vec<Far>,
    /// Messages that a stage has refused, by stage and reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// What became of the rows afterwards, by sink.
    pub removed: BTreeMap<String, Kept>,
}

/// One far end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Far {
    pub sink: String,
    pub place: String,
    /// Messages that are there, once or more often.
    pub found: u64,
    /// Messages that are not.
    pub lost: u64,
    /// Rows beyond one a message.
    pub duplicates: u64,
    /// From before a message was published until its row was seen; `None` of nothing.
    pub latency: Option<Latency>,
    /// Why it could not be looked at.
    pub failure: Option<String>,
}

/// How long messages took, by nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Latency {
    pub p50_ms: u64,
    pub p95_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
}

/// What became of rows afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// So many were removed.
    Removed(u64),
    /// What is written there stays.
    Stays(String),
    /// They could not be removed.
    Failed(String),
}

impl Latency {
    /// Of latencies in order.
    pub fn of(sorted: &[Duration]) -> Option<Self> {
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).checked_sub(1)?;
            sorted.get(rank).map(|latency| u64::try_from(latency.as_millis()).unwrap_or(u64::MAX))
        };
        Some(Self { p50_ms: at(50)?, p95_ms: at(95)?, p99_ms: at(99)?, max_ms: at(100)? })
    }
}

impl Outcome {
    /// Every message was taken, and is at every far end exactly once.
    pub fn is_good(&self) -> bool {
        let is_good = |end: &Far| end.lost == 0 && end.duplicates == 0 && end.failure.is_none();
        self.sent > 0 && self.not_taken.is_empty() && self.ends.iter().all(is_good)
    }

    /// 0: each arrived once; 1: not so; 2: no message was taken, so that nothing is known of the pipeline.
    pub fn exit_code(&self) -> u8 {
        match self.is_good() {
            true => 0,
            false if self.sent == 0 => 2,
            false => 1,
        }
    }

    pub fn text(&self) -> String {
        let Self { pipeline, source, device, .. } = self;
        let all = match self.exit_code() {
            0 => "each arrived once",
            2 => "NOTHING could be sent",
            _ => "NOT each arrived once",
        };
        let mut text = format!("{}: {} messages by source {source}, {all}\n", printable(pipeline), grouped(self.sent));
        text.push_str(&format!("of the device {device}, which nobody has\n\n"));
        let heads = ["sink", "arrived", "lost", "duplicates", "half within", "95 %", "99 %", "all"];
        let rows: Vec<Vec<String>> =
            std::iter::once(heads.map(str::to_owned).to_vec()).chain(self.ends.iter().map(cells)).collect();
        for line in aligned(&rows, 1) {
            text.push_str(&format!("{line}\n"));
        }
        for end in &self.ends {
            if let Some(failure) = &end.failure {
                text.push_str(&format!("{}: {}\n", end.sink, printable(failure)));
            }
        }
        for (why, count) in &self.not_taken {
            text.push_str(&format!("the broker has not taken {count}: {}\n", printable(why)));
        }
        for (why, count) in &self.dead_letters {
            text.push_str(&format!("refused by {}: {count}\n", printable(why)));
        }
        if self.ends.iter().any(|end| end.lost > 0) && self.dead_letters.is_empty() {
            text.push_str("Is the pipeline running, and does it keep up? `pipeline status` says so.\n");
        }
        text.push('\n');
        text.push_str(&removed_text(&self.removed));
        text
    }

    /// All on one line.
    pub fn json(&self) -> String {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["arrived_once"] = self.is_good().into();
        printable_json(json.to_string())
    }
}

/// What became of the rows of devices that nobody has.
pub fn removed_text(removed: &BTreeMap<String, Kept>) -> String {
    let mut text = String::new();
    for (sink, kept) in removed {
        match kept {
            Kept::Removed(rows) => {
                let s = if *rows == 1 { "" } else { "s" };
                text.push_str(&format!("{sink}: {} row{s} removed\n", grouped(*rows)));
            }
            Kept::Stays(place) => text.push_str(&format!(
                "{sink}: objects are never changed: whoever reads {} leaves out devices that begin with \"{MARK}\"\n",
                printable(place)
            )),
            Kept::Failed(why) => text.push_str(&format!("{sink}: rows could not be removed: {}\n", printable(why))),
        }
    }
    text
}

fn cells(end: &Far) -> Vec<String> {
    let time = |of: fn(&Latency) -> u64| {
        end.latency.as_ref().map_or_else(|| "-".to_owned(), |latency| seconds(of(latency) as f64 / 1e3))
    };
    let counts = [end.found, end.lost, end.duplicates].map(grouped);
    let times = [time(|of| of.p50_ms), time(|of| of.p95_ms), time(|of| of.p99_ms), time(|of| of.max_ms)];
    std::iter::once(end.sink.clone()).chain(counts).chain(times).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lost: u64, duplicates: u64) -> Outcome {
        let latency = Latency::of(&[10, 20, 2_000].map(Duration::from_millis));
        let end = Far {
            sink: "table".to_owned(),
            place: "here".to_owned(),
            found: 3,
            lost,
            duplicates,
            latency,
            failure: None,
        };
        Outcome {
            pipeline: "iot".to_owned(),
            source: "in".to_owned(),
            device: format!("{MARK}1"),
            sent: 3,
            not_taken: BTreeMap::new(),
            ends: vec![end],
            dead_letters: BTreeMap::new(),
            removed: BTreeMap::from([
                ("table".to_owned(), Kept::Removed(3)),
                ("lake".to_owned(), Kept::Stays("s3://b".to_owned())),
            ]),
        }
    }

    #[test]
    fn one_lost_or_one_too_many_is_not_good_and_neither_is_nothing() {
        let nothing = Outcome { sent: 0, ..outcome(0, 0) };
        let codes = [outcome(0, 0), outcome(1, 0), outcome(0, 1), nothing].map(|outcome| outcome.exit_code());
        assert_eq!(codes, [0, 1, 1, 2], "of nothing nothing is known");
    }

    #[test]
    fn text_says_what_arrived_and_what_stays() {
        let text = outcome(0, 0).text();
        for part in
            ["3 messages by source in, each arrived once", "table: 3 rows removed", "begin with \"pipeline-verify-\""]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let words: Vec<&str> = text.lines().nth(4).expect("a line a sink").split_whitespace().collect();
        assert_eq!(words, ["table", "3", "0", "0", "20ms", "2.0s", "2.0s", "2.0s"]);
        let json: serde_json::Value = serde_json::from_str(&outcome(1, 0).json()).expect("JSON");
        assert_eq!((&json["arrived_once"], &json["ends"][0]["lost"]), (&false.into(), &1.into()));
    }
}
