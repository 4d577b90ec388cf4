//! Whole runs over stages made for the purpose: no outside, paused time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Run, RunError};
use crate::dead_letter;
use crate::plan::Plan;
use crate::position::Span;
use crate::stage::*;

mod figures;
mod refused;
mod resumed;
mod shared;
mod simulation;
mod stopped;
mod ways;

const DOC: StageDoc = StageDoc { type_name: "test", summary: "", ports: &[("rejected", "")], failure: "" };

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

fn rows(numbers: std::ops::Range<i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
    RecordBatch::try_new(schema(), vec![column]).expect("one column")
}

/// Counts up in batches of ten; without an end if `batches` is 0.
#[derive(Deserialize, JsonSchema)]
struct Numbers {
    batches: i64,
    /// What became of the promises, for the test to look at.
    #[serde(skip)]
    delivered: Arc<Mutex<Option<bool>>>,
}

impl Numbers {
    fn new(batches: i64) -> Self {
        Self { batches, delivered: Arc::default() }
    }
}

impl SourceConfig for Numbers {
    const DOC: StageDoc = DOC;

    fn build(self, _: &BuildContext) -> Result<BuiltSource, BuildError> {
        Ok(BuiltSource { source: Box::new(self), outputs: vec![(Port::MAIN, schema())] })
    }
}

#[async_trait]
impl Source for Numbers {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let partition = cx.partition("numbers");
        let mut batch = 0;
        while (self.batches == 0 || batch < self.batches) && !cx.is_stopping() {
            let first = batch * 10;
            let ack = partition.open(Span::new(first as u64, first as u64 + 9), 0);
            cx.send(Batch::new(rows(first..first + 10), ack)).await?;
            batch += 1;
            // Paused time only moves while every task waits.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let drained = cx.drain(&partition).await;
        *self.delivered.lock().unwrap() = Some(drained.is_ok());
        drained
    }
}

/// Keeps even numbers; panics at a number if asked to.
#[derive(Clone, Deserialize, JsonSchema)]
struct Even {
    panic_at: Option<i64>,
}

impl TransformConfig for Even {
    const DOC: StageDoc = DOC;

    fn build(self, input: &SchemaRef, _: &BuildContext) -> Result<BuiltTransform, BuildError> {
        Ok(BuiltTransform { transform: Box::new(self), outputs: vec![(Port::MAIN, input.clone())] })
    }
}

impl Transform for Even {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let numbers = batch.rows.column(0).as_primitive::<Int64Type>();
        assert!(!numbers.values().iter().any(|n| Some(*n) == self.panic_at), "planned panic");
        let even = numbers.iter().map(|n| n.map(|n| n % 2 == 0)).collect();
        let kept = filter_record_batch(&batch.rows, &even)?;
        out.emit(batch.with_rows(kept));
        Ok(())
    }
}

/// Passes rows on, once its outside is there.
#[derive(Clone, Deserialize, JsonSchema)]
struct Table {
    #[serde(skip)]
    failures: Arc<Mutex<VecDeque<StageError>>>,
}

impl TransformConfig for Table {
    const DOC: StageDoc = DOC;

    fn build(self, input: &SchemaRef, _: &BuildContext) -> Result<BuiltTransform, BuildError> {
        Ok(BuiltTransform { transform: Box::new(self), outputs: vec![(Port::MAIN, input.clone())] })
    }
}

impl Transform for Table {
    fn open(&mut self) -> Result<(), StageError> {
        self.failures.lock().unwrap().pop_front().map_or(Ok(()), Err)
    }

    fn probe(&mut self) -> Option<Result<String, StageError>> {
        Some(self.open().map(|()| "12 rows".to_owned()))
    }

    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        out.emit(batch);
        Ok(())
    }
}

type Stored = Arc<Mutex<Vec<i64>>>;

/// Stores numbers in memory; fails as scripted, and refuses one number for what it is.
#[derive(Default, Deserialize, JsonSchema)]
struct Memory {
    refuses: Option<i64>,
    linger_ms: u64,
    #[serde(skip)]
    failures: VecDeque<StageError>,
    #[serde(skip)]
    hangs: bool,
    #[serde(skip)]
    stored: Stored,
}

impl SinkConfig for Memory {
    const DOC: StageDoc = DOC;

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        let grouping = Grouping { linger: Duration::from_millis(self.linger_ms), ..Grouping::default() };
        Ok(BuiltSink { sink: Box::new(self), grouping, outputs: vec![(Port::REJECTED, dead_letter::schema())] })
    }
}

#[async_trait]
impl Sink for Memory {
    async fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        if let Some(failure) = self.failures.pop_front() {
            return Err(failure);
        }
        let batches = group.batches().iter();
        let numbers: Vec<i64> =
            batches.flat_map(|batch| batch.rows.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
        if numbers.iter().any(|n| Some(*n) == self.refuses) {
            return Err(StageError::data("value refused").code("23514"));
        }
        self.stored.lock().unwrap().extend(numbers);
        Ok(())
    }
}

/// Dead letters in memory, by reason.
#[derive(Default, Deserialize, JsonSchema)]
struct Letters {
    #[serde(skip)]
    reasons: Arc<Mutex<Vec<String>>>,
}

impl SinkConfig for Letters {
    const DOC: StageDoc = StageDoc { ports: &[], ..DOC };

    fn build(self, input: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        assert_eq!(*input, dead_letter::schema());
        Ok(BuiltSink { sink: Box::new(self), grouping: Grouping::default(), outputs: Vec::new() })
    }
}

#[async_trait]
impl Sink for Letters {
    async fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        for batch in group.batches() {
            let reasons = batch.rows.column_by_name("reason").expect("a dead letter").as_string::<i32>();
            let payloads = batch.rows.column_by_name("payload").expect("a dead letter").as_binary::<i32>();
            for (reason, payload) in reasons.iter().zip(payloads) {
                let payload = String::from_utf8_lossy(payload.unwrap_or_default()).into_owned();
                self.reasons.lock().unwrap().push(format!("{} {payload}", reason.unwrap_or_default()));
            }
        }
        Ok(())
    }
}

/// As an embedder would: on a task of its own.
async fn run(plan: Plan) -> Result<crate::Report, RunError> {
    tokio::spawn(Run::new(plan).until(std::future::pending())).await.expect("no panic")
}

/// Whether every stage accounts for every row.
fn is_balanced(report: &crate::Report) -> bool {
    report.balances().iter().all(|(_, balance)| balance.imbalance() == 0)
}

#[tokio::test(start_paused = true)]
async fn rows_pass_through_fan_out_to_every_sink() {
    let (all, even) = (Memory::default(), Memory::default());
    let (all_stored, even_stored) = (all.stored.clone(), even.stored.clone());
    let source = Numbers::new(100);
    let delivered = source.delivered.clone();
    let plan = Plan::builder("p")
        .source("numbers", source)
        .transform("even", &["numbers"], Even { panic_at: None })
        .sink("all", &["numbers"], all)
        .sink("evens", &["even"], even)
        .build()
        .unwrap();
    let report = run(plan).await.unwrap();
    assert_eq!(*all_stored.lock().unwrap(), (0..1000).collect::<Vec<_>>());
    assert_eq!(*even_stored.lock().unwrap(), (0..1000).filter(|n| n % 2 == 0).collect::<Vec<_>>());
    assert_eq!(*delivered.lock().unwrap(), Some(true));
    let sink = report.stage("evens").unwrap();
    assert_eq!((sink.rows_in(), sink.rows_stored()), (500, 500));
    assert!(is_balanced(&report), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_transient_fault_is_retried_until_it_passes() {
    let failures = (0..20).map(|_| StageError::transient("connection refused")).collect();
    let sink = Memory { failures, ..Memory::default() };
    let stored = sink.stored.clone();
    let plan = Plan::builder("p").source("numbers", Numbers::new(3)).sink("db", &["numbers"], sink).build().unwrap();
    let report = run(plan).await.unwrap();
    assert_eq!(*stored.lock().unwrap(), (0..30).collect::<Vec<_>>());
    let sink = report.stage("db").unwrap();
    assert_eq!((sink.retries(), sink.deliveries_failed()), (20, 20));
    assert!(sink.groups_stored() > 0);
}

fn behind_a_table(failures: impl IntoIterator<Item = StageError>) -> (Plan, Stored) {
    let sink = Memory::default();
    let stored = sink.stored.clone();
    let plan = Plan::builder("p")
        .source("numbers", Numbers::new(3))
        .transform("table", &["numbers"], Table { failures: Arc::new(Mutex::new(failures.into_iter().collect())) })
        .sink("db", &["table"], sink);
    (plan.build().unwrap(), stored)
}

#[tokio::test(start_paused = true)]
async fn a_transform_waits_for_its_outside_before_anything_is_read() {
    let (plan, stored) = behind_a_table((0..20).map(|_| StageError::transient("connection refused")));
    let report = run(plan).await.unwrap();
    assert_eq!(*stored.lock().unwrap(), (0..30).collect::<Vec<_>>());
    assert_eq!(report.stage("table").unwrap().retries(), 20);

    let (plan, stored) = behind_a_table([StageError::transient("away"), StageError::permanent("no such table")]);
    let error = run(plan).await.unwrap_err();
    assert_eq!(error.to_string(), "transform \"table\" (test) stopped the run: no such table");
    assert!(stored.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_waits_for_a_transforms_outside_can_be_stopped() {
    let (plan, _) = behind_a_table((0..1_000).map(|_| StageError::transient("connection refused")));
    let report = Run::new(plan).until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    assert_eq!(report.stage("numbers").unwrap().rows_out(Port::MAIN), 0);
}

#[tokio::test(start_paused = true)]
async fn the_outside_of_a_transform_is_probed_where_it_has_one() {
    let (plan, _) = behind_a_table([StageError::transient("away")]);
    let mut run = Run::new(plan);
    let mut probed =
        async || run.probe().await.into_iter().map(|(name, found)| (name, found.is_ok())).collect::<Vec<_>>();
    let expected =
        |is_there| [("numbers", true), ("table", is_there), ("db", true)].map(|(name, ok)| (name.to_owned(), ok));
    assert_eq!(probed().await, expected(false));
    assert_eq!(probed().await, expected(true));
}

#[tokio::test(start_paused = true)]
async fn a_permanent_fault_stops_the_run_and_names_the_stage() {
    let failures =
        VecDeque::from([StageError::permanent("password authentication failed").hint("Check the password.")]);
    let source = Numbers::new(0);
    let delivered = source.delivered.clone();
    let sink = Memory { failures, ..Memory::default() };
    let plan = Plan::builder("p").source("numbers", source).sink("db", &["numbers"], sink).build().unwrap();
    let error = run(plan).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "sink \"db\" (test) stopped the run: password authentication failed. Check the password."
    );
    assert_ne!(*delivered.lock().unwrap(), Some(true), "what was not stored is not acknowledged");
}

#[tokio::test(start_paused = true)]
async fn a_panic_stops_the_run_and_delivers_nothing_behind_it() {
    let source = Numbers::new(0);
    let delivered = source.delivered.clone();
    let plan = Plan::builder("p")
        .source("numbers", source)
        .transform("even", &["numbers"], Even { panic_at: Some(55) })
        .sink("db", &["even"], Memory::default())
        .build()
        .unwrap();
    let error = run(plan).await.unwrap_err().to_string();
    assert!(
        error.starts_with("transform \"even\" (test) stopped the run: the stage panicked: planned panic"),
        "{error}"
    );
    assert_ne!(*delivered.lock().unwrap(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_refused_row_becomes_a_dead_letter_and_its_neighbours_are_stored() {
    let letters = Letters::default();
    let reasons = letters.reasons.clone();
    let sink = Memory { refuses: Some(17), linger_ms: 50, ..Memory::default() };
    let stored = sink.stored.clone();
    let source = Numbers::new(5);
    let delivered = source.delivered.clone();
    let plan = Plan::builder("p")
        .source("numbers", source)
        .sink("db", &["numbers"], sink)
        .sink("letters", &["db.rejected"], letters)
        .build()
        .unwrap();
    let report = run(plan).await.unwrap();
    assert_eq!(
        *stored.lock().unwrap(),
        (0..50).filter(|n| *n != 17).collect::<Vec<_>>(),
        "in order, without the bad row"
    );
    assert_eq!(*reasons.lock().unwrap(), ["23514 {\"n\":17}"]);
    assert_eq!(*delivered.lock().unwrap(), Some(true), "a dead letter is a verdict too");
    assert!(is_balanced(&report), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_row_that_nobody_would_keep_stops_the_run() {
    let sink = Memory { refuses: Some(17), ..Memory::default() };
    let plan = Plan::builder("p").source("numbers", Numbers::new(5)).sink("db", &["numbers"], sink).build().unwrap();
    let error = run(plan).await.unwrap_err().to_string();
    assert!(error.contains("nothing reads the port \"rejected\": value refused"), "{error}");
    assert!(error.contains("Add \"db.rejected\" to the inputs of a sink"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_stores_what_is_on_its_way() {
    let sink = Memory { linger_ms: 60_000, ..Memory::default() };
    let stored = sink.stored.clone();
    let source = Numbers::new(0);
    let delivered = source.delivered.clone();
    let plan = Plan::builder("p").source("numbers", source).sink("lake", &["numbers"], sink).build().unwrap();
    let report = Run::new(plan).until(tokio::time::sleep(Duration::from_millis(5))).await.unwrap();
    let sent = report.stage("numbers").unwrap().rows_out(Port::MAIN);
    assert_eq!(stored.lock().unwrap().len() as u64, sent, "a group that lingers is written at once");
    assert_eq!(*delivered.lock().unwrap(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_takes_too_long_says_how_many_rows_it_leaves() {
    let sink = Memory { hangs: true, ..Memory::default() };
    let plan = Plan::builder("p")
        .queue_rows(10)
        .drain_timeout(Duration::from_secs(3))
        .source("numbers", Numbers::new(2))
        .sink("db", &["numbers"], sink)
        .build()
        .unwrap();
    let error = Run::new(plan).until(tokio::time::sleep(Duration::from_millis(5))).await.unwrap_err();
    assert!(
        error.to_string().starts_with("10 rows were still on their way when the drain timeout of 3s ended"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_full_pipeline_holds_the_source_back() {
    let source = Numbers::new(0);
    let sink = Memory { hangs: true, ..Memory::default() };
    let plan = Plan::builder("p")
        .queue_rows(30)
        .drain_timeout(Duration::from_millis(1))
        .source("numbers", source)
        .transform("even", &["numbers"], Even { panic_at: None })
        .sink("db", &["even"], sink)
        .build()
        .unwrap();
    let run = Run::new(plan);
    let stats = run.stats();
    assert!(run.until(tokio::time::sleep(Duration::from_secs(60))).await.is_err(), "the sink never ends");
    // 3 batches wait before the transform (30 rows) and 6 of 5 rows behind it, one is in the transform's
    // hands, and the sink's group holds what was there when it began to write.
    let sent = stats.stages[0].rows_out(Port::MAIN);
    let group = stats.stages[2].rows_in() * 2;
    assert_eq!(sent, 30 + 60 + 10 + group);
}
