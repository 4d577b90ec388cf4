//! What the live page and `pipeline top` show: one second of a run.
//!
//! Times are microseconds since 1970, shares lie between 0 and 1, rates are rows a second. Text of devices is in
//! here as it came; whoever shows it makes it inert.

use serde::{Deserialize, Serialize};

/// One second of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The pipeline's name.
    pub pipeline: String,
    /// Of the binary that runs it.
    pub version: String,
    /// The worst of all stages: `ok`, `starting`, `degraded` or `failed`.
    pub status: String,
    /// When this was taken.
    pub at_us: i64,
    /// How long it runs.
    pub running_seconds: f64,
    /// What holds it up, in words.
    pub bottleneck: Bottleneck,
    /// In the order of the plan: sources first, sinks last.
    pub stages: Vec<StageView>,
    /// Every edge.
    pub edges: Vec<EdgeView>,
    /// What was refused lately, the newest first.
    pub rejects: Vec<RejectView>,
    /// What was found lately, the newest first.
    pub anomalies: Vec<AnomalyView>,
    /// Who was heard lately; `None` where no stage tells devices apart.
    pub devices: Option<DevicesView>,
}

/// What holds the pipeline up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bottleneck {
    /// `None` if nothing does.
    pub stage: Option<String>,
    /// For a person, in sentences.
    pub words: String,
}

/// A stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageView {
    /// As in the pipeline file.
    pub name: String,
    /// `source`, `transform` or `sink`.
    pub kind: String,
    /// The word behind `type`.
    pub type_name: String,
    /// `starting`, `running`, `retrying`, `paused`, `ended` or `failed`.
    pub state: String,
    /// Since when.
    pub since_us: i64,
    /// The last error, also after it has passed.
    pub last_error: Option<ErrorView>,
    /// Rows given to it; of a source, rows it has sent.
    pub rows_per_second: f64,
    /// All of these so far.
    pub rows: u64,
    /// Rows refused so far.
    pub rejected: u64,
    /// Rows that a sink has stored, a second.
    pub stored_per_second: f64,
    /// All of these so far.
    pub stored: u64,
    /// Share of the last second in its own code.
    pub busy: f64,
    /// Share of the last second waiting for those behind it.
    pub blocked: f64,
    /// Attempts that failed so far.
    pub retries: u64,
    /// Of a sink: age of the oldest row it holds and has not stored.
    pub lag_seconds: Option<f64>,
    /// Of a sink: from receipt to commit, of the rows of the last ten seconds.
    pub latency: Option<LatencyView>,
    /// Of a sink that knows a time column: from the device's own time to the commit.
    pub event_latency: Option<LatencyView>,
    /// What it has to catch up.
    pub backlog: Option<BacklogView>,
    /// Of a source: when the newest row happened.
    pub newest_event_at_us: Option<i64>,
    /// Of a source with a spool.
    pub spool: Option<SpoolView>,
}

/// An error that was noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// With its causes.
    pub text: String,
    /// When.
    pub at_us: i64,
}

/// Half of the rows, and 99 of 100, took no longer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencyView {
    /// Seconds.
    pub p50: f64,
    /// Seconds.
    pub p99: f64,
}

/// Rows that wait for a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BacklogView {
    /// How many; of a source: messages.
    pub rows: u64,
    /// When there will be none; `None` if they don't become fewer.
    pub eta_seconds: Option<u64>,
}

/// A source's spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolView {
    /// On disk.
    pub bytes: u64,
    /// May be on disk.
    pub bytes_max: u64,
    /// Messages that were not sent into the pipeline yet.
    pub records: u64,
}

/// An edge.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EdgeView {
    /// The stage that writes.
    pub from: String,
    /// The port it writes by; empty for the main one.
    pub port: String,
    /// The stage that reads.
    pub to: String,
    /// Rows sent.
    pub rows_per_second: f64,
    /// Rows in the queue.
    pub waiting: u64,
    /// Rows it holds.
    pub waiting_max: u32,
    /// Rows that wait on disk.
    pub on_disk: u64,
    /// What they take there.
    pub on_disk_bytes: u64,
    /// Rows that an optional sink went without.
    pub shed: u64,
    /// Age of what waits; `None` where nobody knows.
    pub lag_seconds: Option<f64>,
}

/// A refused row or message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectView {
    /// When it was received.
    pub at_us: i64,
    /// Who refused it.
    pub stage: String,
    /// A word to group by.
    pub reason: String,
    /// A sentence.
    pub detail: Option<String>,
    /// The topic it came by.
    pub topic: Option<String>,
    /// Its beginning, as text.
    pub payload: String,
}

/// A reading that a stage `anomaly` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnomalyView {
    /// Who found it.
    pub stage: String,
    /// When it happened; when it was found if that is not known.
    pub at_us: i64,
    /// The device.
    pub device: String,
    /// The column.
    pub metric: String,
    /// What was read.
    pub value: f64,
    /// What was expected.
    pub expected: f64,
    /// How rare it is.
    pub score: f64,
    /// As the stage rates it.
    pub severity: String,
    /// What found it.
    pub method: String,
    /// Readings of the device around it: time and value, the oldest first.
    pub series: Vec<(i64, f64)>,
}

/// Who was heard, since somebody looks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesView {
    /// Devices told apart.
    pub known: usize,
    /// There are more than can be told apart here.
    pub is_bounded: bool,
    /// Heard within 10 seconds, a minute, five minutes, and not since.
    pub by_age: [usize; 4],
    /// Those not heard for the longest time, with the seconds since.
    pub quietest: Vec<(String, u64)>,
}

/// Seconds that part the ages of devices in [`DevicesView::by_age`].
pub const AGES_SECONDS: [u64; 3] = [10, 60, 300];
