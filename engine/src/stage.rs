//! What a stage is: a [`Source`], a [`Transform`] or a [`Sink`], and the typed configuration that
//! builds it.
//!
//! A stage sees no TOML text, no queue and no other stage. Its configuration builds it from an
//! input schema without any I/O, and declares the schema of each of its ports; so the plan knows
//! every edge before anything starts, and a running stage can't meet a missing column.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

pub use crate::batch::Batch;
pub use crate::context::{BuildContext, SourceContext};
use crate::dlq::{LetterStore, Resender};
pub use crate::error::{Fault, Refused, StageError};
pub use crate::examination::{Examination, Finding, Verdict};
use crate::far_end::FarEnd;
pub use crate::position::Position;

/// A named output of a stage. In `inputs`, `"x"` reads the main port of stage `x` and
/// `"x.rejected"` its port `rejected`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(&'static str);

impl Port {
    /// The port that is meant when none is named.
    pub const MAIN: Port = Port("");
    /// Rows that a stage refuses, as dead letters (see [`crate::dead_letter`]).
    pub const REJECTED: Port = Port("rejected");

    /// A port of a stage's own; lower-case letters and underscores.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// The word after the dot; empty for the main port.
    pub const fn name(self) -> &'static str {
        self.0
    }

    /// A port that the configuration names.
    pub fn configured(name: impl Into<String>) -> Self {
        // A name is kept for the life of the program, but once, however often stages are built.
        static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
        let (name, mut names) = (name.into(), NAMES.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(known) = names.get(name.as_str()) {
            return Self(known);
        }
        let name: &'static str = Box::leak(name.into_boxed_str());
        names.insert(name);
        Self(name)
    }

    /// Whether it stands in a [`StageDoc`] for ports that the configuration names.
    pub(crate) fn is_placeholder(self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|byte| byte.is_ascii_uppercase())
    }
}

/// Reads rows from outside.
#[async_trait]
pub trait Source: Send {
    /// Called once. Owns its loop: a connection must be polled even while the pipeline is full.
    ///
    /// Returns when the input has ended, or soon after [`SourceContext::stop_requested`]: then it
    /// reads no more, calls [`SourceContext::close`] so that the stages behind it drain, and waits
    /// for its promises before it lets go of the outside.
    ///
    /// # Errors
    /// Transient faults of the outside are the source's own to retry (it knows what a reconnect
    /// costs); any error returned stops the run.
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError>;

    /// Whether the source reads on, after a restart, where the run before has come to. Then the engine
    /// keeps checkpoints in the data directory, waits for sinks that are away instead of ending, and
    /// leaves what is not stored at a stop for the next run.
    fn is_resumable(&self) -> bool {
        false
    }

    /// The group of runs that this source divides its messages with, each getting some of every device; `None` if it gets
    /// all there are. The plan warns where a transform would have to see them all.
    fn divides_with(&self) -> Option<String> {
        None
    }

    /// Whether several workers share the source's partitions, each claiming some by
    /// [`SourceContext::claim`](crate::stage::SourceContext::claim). Such a source is resumable, and the only one of its
    /// pipeline.
    fn is_shared(&self) -> bool {
        false
    }

    /// Reaches the outside without changing anything there, for `pipeline check --connect`. Says in
    /// a few words what it found.
    ///
    /// # Errors
    /// Why the source could not run now.
    async fn probe(&mut self) -> Result<String, StageError> {
        Ok("nothing to reach".to_owned())
    }

    /// Looks at all that this source needs outside, for `pipeline doctor`: each check a finding. Takes back
    /// whatever it writes there, and disturbs no run that reads meanwhile. Given up after a while, wherever it is then.
    async fn examine(&mut self, report: &Examination) {
        examine_by_probe(self.probe().await, report);
    }

    /// How much this source may keep on disk in the data directory, for `pipeline doctor`; `None` if nothing.
    fn disk_bounds(&self) -> Option<DiskBounds> {
        None
    }

    /// A way to send messages to where this source reads, for `pipeline dlq replay`; `None` if there is
    /// none.
    fn resender(&self) -> Option<Box<dyn Resender>> {
        None
    }
}

/// Turns batches into batches. Synchronous, pure and without a clock: the same input and state give
/// the same output, whenever it is replayed.
pub trait Transform: Send {
    /// Called until it succeeds, before any source starts. May read what the transform needs from outside.
    ///
    /// # Errors
    /// Transient: called again after a backoff. Any other error ends the run before anything is read.
    fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    /// Reaches what the transform needs from outside, changing nothing there, for `pipeline check --connect`. Says in a
    /// few words what it found; `None` where nothing is needed.
    fn probe(&mut self) -> Option<Result<String, StageError>> {
        None
    }

    /// Called for each batch, in order. Rows given to neither port are filtered.
    ///
    /// # Errors
    /// Any error stops the run; bad *rows* are no error, they leave by [`Port::REJECTED`].
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError>;

    /// Looks at what this transform needs outside, for `pipeline doctor`: each check a finding. May block.
    fn examine(&mut self, report: &Examination) {
        if let Some(outcome) = self.probe() {
            examine_by_probe(outcome, report);
        }
    }

    /// What must survive a restart, as of the last batch that was applied; `None` for a transform
    /// without state. The bytes are the transform's own and stay on this machine.
    fn snapshot(&self) -> Option<Vec<u8>> {
        None
    }

    /// Goes on from a snapshot. Called at most once, after [`Transform::open`] and before the first batch.
    ///
    /// # Errors
    /// The snapshot was taken under another configuration or is damaged: say which. Nothing must have
    /// changed then; the engine starts with empty state and says so.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let _ = snapshot;
        Err(StageError::permanent("the transform keeps no state"))
    }

    /// Also remembers what another instance did, of a partition that has become one with this one's. Called after
    /// [`Transform::restore`], before the first batch. A device that both know is taken as it was seen last.
    ///
    /// # Errors
    /// As for [`Transform::restore`]; the engine goes on without it and says so.
    fn absorb(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let _ = snapshot;
        Err(StageError::permanent("the transform can't take in what another one remembers"))
    }

    /// Called once, after the last batch: the input has ended, or the run was asked to stop. Not called
    /// where the run fails.
    ///
    /// # Errors
    /// As for [`Transform::apply`].
    fn finish(&mut self, out: &mut Emitter) -> Result<(), StageError> {
        let _ = out;
        Ok(())
    }
}

/// What a probe says, as the one finding of a stage without checks of its own.
pub fn examine_by_probe(outcome: Result<String, StageError>, report: &Examination) {
    match outcome {
        Ok(found) => report.pass("reach", found),
        Err(error) => report.fail("reach", &error),
    }
}

/// What a source may keep on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskBounds {
    /// At most so many bytes.
    pub bytes_max: u64,
    /// It takes in nothing more while fewer bytes are free on the file system.
    pub free_bytes_min: u64,
}

/// Stores rows outside.
#[async_trait]
pub trait Sink: Send {
    /// Called until it succeeds, before any source starts: connects, creates what is missing,
    /// compares what is there with the schema of the input.
    ///
    /// # Errors
    /// Transient: called again after a backoff. Permanent: the run ends before anything is read.
    async fn open(&mut self) -> Result<(), StageError>;

    /// How far this sink has come by its own record, which it keeps together with its rows. Called once,
    /// after [`Sink::open`], in a run that goes on from where an earlier one has come to: groups then carry
    /// [`Group::advances`]. The engine leaves out what is there already.
    ///
    /// A sink without such a record stores again, after a crash, what came since the last checkpoint.
    ///
    /// # Errors
    /// As for [`Sink::open`].
    async fn committed(&mut self) -> Result<Vec<Committed>, StageError> {
        Ok(Vec::new())
    }

    /// What several workers that store by this sink at once can expect of it.
    fn sharing(&self) -> Sharing {
        Sharing::AtLeastOnce
    }

    /// Several workers share the source, and store by this sink at once. Called when the plan is made, before all else, unless
    /// [`Sink::sharing`] refuses it.
    fn share(&mut self) {}

    /// A tenure of a partition begins, of a source that several workers share: puts its number on record, so that from
    /// here on nothing of an earlier one is stored, and then says how far the sink has come. Called between groups, again
    /// after a transient error. `parents` are the partitions that this one has come from.
    ///
    /// # Errors
    /// [`StageError::superseded`] where a later tenure is on record; else as for [`Sink::open`].
    async fn adopt(&mut self, partition: &str, tenure: u64, parents: &[String]) -> Result<Adopted, StageError> {
        let _ = (partition, tenure, parents);
        Ok(Adopted::default())
    }

    /// Keeps what the next owner of a partition goes on from, in place of what was kept before. Called of a sink that says it
    /// does ([`Sharing::ExactlyOnce`]).
    ///
    /// # Errors
    /// As for [`Sink::adopt`].
    async fn keep_checkpoint(&mut self, partition: &str, tenure: u64, checkpoint: &[u8]) -> Result<(), StageError> {
        let _ = (partition, tenure, checkpoint);
        Err(StageError::bug("a sink was asked to keep a checkpoint that can't"))
    }

    /// A partition that several workers have shared is over, and nobody will claim it again: takes what [`Sink::adopt`] and
    /// [`Sink::keep_checkpoint`] have put down of it off the record. `heirs` are the partitions that have come of it and are not
    /// over themselves: as long as one of them has no checkpoint of its own it begins with this one's, which therefore
    /// stays. True once nothing is on record any more; positions don't count. Called between groups, and again after a while
    /// where it is false or fails.
    ///
    /// # Errors
    /// As for [`Sink::adopt`].
    async fn forget(&mut self, partition: &str, heirs: &[String]) -> Result<bool, StageError> {
        let _ = (partition, heirs);
        Ok(true)
    }

    /// All or nothing: every row of the group is durable on return, and [`Group::advances`] with it,
    /// or none is visible.
    ///
    /// Not cancel safe: at a hard stop the future is dropped and the group counts as failed.
    ///
    /// # Errors
    /// Transient: called again with the same group after a backoff, so a group whose outcome is
    /// unknown must be recognised. [`StageError::superseded`]: partitions of the group are somebody else's by now
    /// ([`Group::claims`]), and the rest comes again. [`StageError::refused`]: the named rows leave by
    /// [`Port::REJECTED`], and once they are where they belong the rest of the group is written, with
    /// its advances. Data without naming rows: the engine halves the group until the bad row is alone.
    /// Permanent: the sink pauses until a person has mended the outside.
    async fn write(&mut self, group: &Group) -> Result<(), StageError>;

    /// Called once after the last group.
    ///
    /// # Errors
    /// Any error fails the run; the rows are already stored.
    async fn close(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    /// The column of the input that says when a row happened, where the sink knows one: latency is measured
    /// from it to the commit.
    fn time_column(&self) -> Option<usize> {
        None
    }

    /// Reaches the outside and leaves nothing behind there, for `pipeline check --connect`. Says in a
    /// few words what it found.
    ///
    /// # Errors
    /// Why the sink could not run now.
    async fn probe(&mut self) -> Result<String, StageError> {
        Ok("nothing to reach".to_owned())
    }

    /// Looks at all that this sink needs outside, for `pipeline doctor`: each check a finding. Takes back
    /// whatever it writes there, and disturbs no run that stores meanwhile. Given up after a while, wherever it is then.
    async fn examine(&mut self, report: &Examination) {
        examine_by_probe(self.probe().await, report);
    }

    /// What this sink can show of what it has stored, for `pipeline reconcile`; `None` if nothing. Changes
    /// nothing, and may be asked while a run stores by it.
    ///
    /// # Errors
    /// Why nothing can be read now.
    async fn account(&mut self) -> Result<Option<Account>, StageError> {
        Ok(None)
    }

    /// How the rows that this sink is given differ from what lies at its far end, for `pipeline schema diff`; `None` if nothing
    /// there has a schema. Changes nothing, and may be asked while a run stores by it.
    ///
    /// # Errors
    /// Why nothing can be read now.
    async fn compare_schema(&mut self) -> Result<Option<SchemaComparison>, StageError> {
        Ok(None)
    }

    /// The dead letters that this sink has stored, for `pipeline dlq`; `None` if they can't be read back.
    /// Asked only of a sink that reads dead letters.
    fn dead_letters(&self) -> Option<Box<dyn LetterStore>> {
        None
    }

    /// What a command made for this type of sink works on, such as a table and its database: found again by its Rust
    /// type ([`Plan::declared`](crate::Plan::declared)), so that the engine need not know what it is.
    fn declared(&self) -> Option<Box<dyn Any + Send>> {
        None
    }

    /// A look at what this sink has stored, from beside a run, for `pipeline verify`, `soak` and `slo`; `None` if it can't be
    /// looked at.
    fn far_end(&self) -> Option<Box<dyn FarEnd>> {
        None
    }
}

/// What several workers that store by one sink can expect of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sharing {
    /// Each row once: it refuses what comes from a worker that has lost its partition.
    ExactlyOnce {
        /// Whether it also keeps what transforms remember, for the next owner of a partition ([`Sink::keep_checkpoint`]).
        keeps_checkpoints: bool,
    },
    /// Each row at least once.
    AtLeastOnce,
    /// It is one worker's alone. Says why, and what to do instead, in sentences.
    Refused(&'static str),
}

/// A sink's answer to a tenure that begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adopted {
    /// How far it has come on each of its inputs along the partition.
    pub positions: Vec<Committed>,
    /// What [`Sink::keep_checkpoint`] was last given of the partition.
    pub checkpoint: Option<Vec<u8>>,
    /// Where nothing was: what it was given of each partition that this one has come from.
    pub inherited: Vec<Vec<u8>>,
}

/// Batches that a sink commits together, and how far that takes it.
#[derive(Debug)]
pub struct Group {
    batches: Vec<Batch>,
    advances: Vec<Advance>,
}

/// What stands between an input and the mark of what decides who comes by it: in no name of a stage.
pub(crate) const WAY_MARK: char = '#';

/// How far a group takes one input of a sink along one partition.
///
/// An input is ordered: whatever is at or before `to` on it is in this group or was in an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// The input as the pipeline file names it: `valid`, `valid.rejected`; where rows are dealt out on the way, with a mark of what decides
    /// that: `split.0#1f3a9c2e`. See [`TransformConfig::ways`].
    pub input: String,
    /// The source and its partition: `telemetry/3f2a90c1`. The same after a restart.
    pub partition: String,
    /// What [`Committed`] must say now; `None`: nothing yet.
    pub from: Option<Position>,
    /// What it must say once the group is durable.
    pub to: Position,
    /// Of a partition that several workers share: the tenure under which this is stored.
    pub tenure: Option<u64>,
}

impl Advance {
    /// What the input reads, as the pipeline file names it: without the mark.
    pub fn reads(&self) -> &str {
        self.input.split(WAY_MARK).next().unwrap_or_default()
    }
}

/// A sink's own record of how far it has come on one input along one partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Committed {
    /// See [`Advance::input`].
    pub input: String,
    /// See [`Advance::partition`].
    pub partition: String,
    /// All at or before this position is stored.
    pub position: Position,
}

/// What a sink has stored, told by what lies there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    /// How far it has come on each input.
    pub positions: Vec<Committed>,
    /// How many rows it was given up to there, by its own record; `None` if it keeps none.
    pub rows_recorded: Option<u64>,
    /// How many rows are there now.
    pub rows_found: u64,
    /// Where that is: a table, so many objects.
    pub found_in: String,
    /// What can't be if nothing was lost and nothing stored twice, in sentences without a full stop.
    pub contradictions: Vec<String>,
}

/// A sink's rows against what has been stored before, column by column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SchemaComparison {
    /// What the rows were held against: a table, the newest of so many objects.
    pub against: String,
    /// Columns that are not the same on both sides, in the order of the rows, then those of the far end.
    pub differences: Vec<ColumnDifference>,
}

/// A column that the rows and the far end of a sink do not agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDifference {
    /// Its name.
    pub column: String,
    /// Its type in the rows; `None` if these don't have it.
    pub ours: Option<String>,
    /// Its type at the far end; `None` if that has none of this name.
    pub theirs: Option<String>,
    /// What is different, as the rest of a sentence that begins with the column.
    pub consequence: String,
    /// What would make both the same, such as a statement of SQL.
    pub mend: Option<String>,
}

impl Group {
    /// A group of these batches, in this order, of a source whose positions mean nothing after a
    /// restart.
    pub fn new(batches: Vec<Batch>) -> Self {
        Self::advancing(batches, Vec::new())
    }

    /// A group of these batches, in this order, and the positions that it takes a sink to.
    pub fn advancing(batches: Vec<Batch>, advances: Vec<Advance>) -> Self {
        Self { batches, advances }
    }

    /// How far the group takes the sink, each input and partition once. Empty where no source could
    /// resume: then a row is known by its key alone.
    pub fn advances(&self) -> &[Advance] {
        &self.advances
    }

    /// The batches, in order of arrival. None is empty.
    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// Partitions that several workers share, with the tenures under which this group has rows of them or moves them on.
    pub fn claims(&self) -> BTreeMap<&str, u64> {
        let of_batches = self.batches.iter().filter_map(|batch| Some((batch.ack().span()?.0, batch.ack().tenure()?)));
        let of_advances = self.advances.iter().filter_map(|advance| Some((&*advance.partition, advance.tenure?)));
        of_batches.chain(of_advances).collect()
    }

    /// All rows of the group.
    pub fn rows(&self) -> usize {
        self.batches.iter().map(|batch| batch.rows.num_rows()).sum()
    }

    pub(crate) fn into_parts(self) -> (Vec<Batch>, Vec<Advance>) {
        (self.batches, self.advances)
    }
}

/// How many rows a sink wants at once, and how long it will wait for them.
#[derive(Debug, Clone, Copy)]
pub struct Grouping {
    /// A group is written once it holds this many rows.
    pub rows_max: usize,
    /// A group is written once it holds this many bytes, as Arrow columns in memory.
    pub bytes_max: usize,
    /// How long the first batch of a group may wait for more. Zero: whatever is there now is
    /// written now, so that groups are small when idle and large under load.
    pub linger: Duration,
}

impl Default for Grouping {
    fn default() -> Self {
        Self { rows_max: 20_000, bytes_max: 16 << 20, linger: Duration::ZERO }
    }
}

/// Where a transform puts its output.
#[derive(Debug, Default)]
pub struct Emitter {
    emitted: Vec<(Port, Batch)>,
}

impl Emitter {
    /// Sends a batch out by the main port.
    pub fn emit(&mut self, batch: Batch) {
        self.emit_to(Port::MAIN, batch);
    }

    /// Sends a batch out by a named port, which the configuration must have declared.
    pub fn emit_to(&mut self, port: Port, batch: Batch) {
        self.emitted.push((port, batch));
    }

    /// What was emitted since the last call, in order. For the engine, and for tests of a stage.
    pub fn take(&mut self) -> Vec<(Port, Batch)> {
        std::mem::take(&mut self.emitted)
    }
}

/// What every stage's type says about itself, printed by `pipeline stages`.
#[derive(Debug, Clone, Copy)]
pub struct StageDoc {
    /// The word in the pipeline file: `type = "mqtt"`.
    pub type_name: &'static str,
    /// One sentence: what it does for the pipeline.
    pub summary: &'static str,
    /// Ports besides the main one: name and what leaves by it. A name in capitals, such as `NAME`, stands for those that the
    /// configuration gives.
    pub ports: &'static [(&'static str, &'static str)],
    /// What happens on a transient and on a permanent failure, how large the duplication window
    /// is, and what the key for deduplication is.
    pub failure: &'static str,
}

/// Outputs of a stage: each port and the schema of the rows that leave by it.
pub type Outputs = Vec<(Port, SchemaRef)>;

/// A source ready to run.
pub struct BuiltSource {
    /// The running source.
    pub source: Box<dyn Source>,
    /// Its ports; the main one first.
    pub outputs: Outputs,
}

/// A transform ready to run.
pub struct BuiltTransform {
    /// The running transform.
    pub transform: Box<dyn Transform>,
    /// Its ports; the main one first.
    pub outputs: Outputs,
}

/// A sink ready to run.
pub struct BuiltSink {
    /// The running sink.
    pub sink: Box<dyn Sink>,
    /// How the engine groups batches for it.
    pub grouping: Grouping,
    /// [`Port::REJECTED`] if it can say which row is bad; else empty.
    pub outputs: Outputs,
}

/// The configuration of a source: what a `[sources.NAME]` table holds besides `type`.
///
/// Derive `Deserialize` with `#[serde(deny_unknown_fields)]` and `JsonSchema`; doc comments become
/// the reference that `pipeline stages` prints. Not `flatten`, `untagged` or `tag`: they lose the
/// place of a mistake.
pub trait SourceConfig: DeserializeOwned + JsonSchema + Send + 'static {
    /// What `pipeline stages` prints.
    const DOC: StageDoc;
    /// Checks the configuration and builds the stage. No I/O.
    ///
    /// # Errors
    /// The key that is wrong, and a way out.
    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError>;
}

/// The configuration of a transform: `[transforms.NAME]`. See [`SourceConfig`].
pub trait TransformConfig: DeserializeOwned + JsonSchema + Clone + Send + 'static {
    /// What `pipeline stages` prints.
    const DOC: StageDoc;
    /// Checks the configuration against the input's schema and builds the stage. No I/O.
    ///
    /// # Errors
    /// The key that is wrong, and a way out.
    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError>;

    /// For a transform that sends each row one way or another: by port, what decides which rows take it, in a text that changes whenever
    /// a row may. A sink behind such a port keeps its position under the port *and* that text: with another one rows that were on their
    /// way to another sink, which is behind, come to this one, which is not to leave them out as stored.
    fn ways(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// The configuration of a sink: `[sinks.NAME]`. See [`SourceConfig`].
pub trait SinkConfig: DeserializeOwned + JsonSchema + Send + 'static {
    /// What `pipeline stages` prints.
    const DOC: StageDoc;
    /// Checks the configuration against the input's schema and builds the stage. No I/O.
    ///
    /// # Errors
    /// The key that is wrong, and a way out.
    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltSink, BuildError>;
}

/// A mistake in a stage's configuration, by the key that holds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    /// Dotted path of the key within the stage's table, such as `range.temperature`; empty for the
    /// stage as a whole.
    pub key: String,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// A way out, in sentences.
    pub hint: Option<String>,
    /// The part of the text at `key` that is wrong, in bytes; `None`: all of it.
    pub within: Option<Range<usize>>,
    /// Another key whose value makes this one wrong; `None`: it is wrong by itself.
    pub because_of: Option<&'static str>,
}

impl BuildError {
    /// The value at `key` will never work.
    pub fn invalid(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into(), hint: None, within: None, because_of: None }
    }

    /// The value would be right with another one at this key. Where that one is not known yet, for its variable is not set,
    /// the mistake is not told.
    #[must_use]
    pub fn because_of(mut self, key: &'static str) -> Self {
        self.because_of = Some(key);
        self
    }

    /// Points at a part of the text at the key, in bytes: a text with a language of its own.
    #[must_use]
    pub fn within(mut self, part: Range<usize>) -> Self {
        self.within = Some(part);
        self
    }

    /// A way out, in sentences.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
