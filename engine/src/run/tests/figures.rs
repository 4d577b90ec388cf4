//! What a run counts for those who look: latencies by both clocks, the newest row, rows at taps.

use arrow::array::TimestampMicrosecondArray;

use super::*;
use crate::schema::timestamp_type;
use crate::stats::{StageStats, now_us};
use crate::tap::TapLimits;

const SECOND: i64 = 1_000_000;

fn timed_schema() -> SchemaRef {
    let fields = vec![Field::new("n", DataType::Int64, false), Field::new("at", timestamp_type(), true)];
    Arc::new(Schema::new(fields))
}

/// Sends one batch of three rows: of half a minute ago, without a time, and of a clock that is an hour ahead. It was
/// received two seconds ago.
#[derive(Deserialize, JsonSchema)]
struct Timed {}

impl SourceConfig for Timed {
    const DOC: StageDoc = DOC;

    fn build(self, _: &BuildContext) -> Result<BuiltSource, BuildError> {
        Ok(BuiltSource { source: Box::new(self), outputs: vec![(Port::MAIN, timed_schema())] })
    }
}

#[async_trait]
impl Source for Timed {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let now = now_us();
        let times = vec![Some(now - 30 * SECOND), None, Some(now + 3_600 * SECOND)];
        let times = TimestampMicrosecondArray::from(times).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![0, 1, 2])), Arc::new(times)];
        let rows = RecordBatch::try_new(timed_schema(), columns)?;
        let partition = cx.partition("timed");
        cx.send(Batch::new(rows, partition.open(Span::new(1, 3), now - 2 * SECOND))).await?;
        cx.drain(&partition).await
    }
}

/// Stores anything, and knows its time column.
#[derive(Deserialize, JsonSchema)]
struct Table {
    hangs: bool,
}

impl SinkConfig for Table {
    const DOC: StageDoc = DOC;

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        Ok(BuiltSink { sink: Box::new(self), grouping: Grouping::default(), outputs: Vec::new() })
    }
}

#[async_trait]
impl Sink for Table {
    async fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    async fn write(&mut self, _: &Group) -> Result<(), StageError> {
        if self.hangs { std::future::pending().await } else { Ok(()) }
    }

    fn time_column(&self) -> Option<usize> {
        Some(1)
    }
}

fn stage<'a>(run: &'a crate::RunStats, name: &str) -> &'a StageStats {
    run.stages.iter().find(|stage| stage.name == name).expect("a stage of the plan")
}

#[tokio::test(start_paused = true)]
async fn latency_is_counted_by_receipt_and_by_the_devices_clocks() {
    let plan =
        Plan::builder("p").source("in", Timed {}).sink("table", &["in"], Table { hangs: false }).build().unwrap();
    let run = Run::new(plan);
    let stats = run.stats();
    assert_eq!(stage(&stats, "in").time_column(), Some(1), "known by the name that the sink has for it");
    tokio::spawn(run.until(std::future::pending())).await.expect("no panic").unwrap();

    let table = stage(&stats, "table");
    let beyond = |seconds| crate::LATENCY_BOUNDS_SECONDS.iter().position(|bound| *bound >= seconds).unwrap();
    let received = table.latency_received.counts();
    assert_eq!((received.count(), received.buckets[..beyond(2.0)].iter().sum::<u64>()), (3, 0), "two seconds and more");
    let event = table.latency_event.counts();
    assert_eq!(event.buckets[0], 1, "a clock that is ahead counts as none");
    assert_eq!((event.count(), event.buckets[1..beyond(30.0)].iter().sum::<u64>()), (2, 0), "half a minute and more");
    let newest = stage(&stats, "in").newest_event_at_us().expect("there is a time");
    assert!(newest <= now_us() - 30 * SECOND, "a clock that is ahead is not the newest");
    assert_eq!((table.lag(now_us()), stats.freshness(table, now_us())), (Duration::ZERO, Duration::ZERO));
    assert_eq!((table.groups_stored(), table.deliveries_failed()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_sink_holds_grows_old() {
    let plan = Plan::builder("p").source("in", Timed {}).sink("table", &["in"], Table { hangs: true }).build().unwrap();
    let run = Run::new(plan);
    let stats = run.stats();
    let running = tokio::spawn(run.until(std::future::pending()));
    // Paused time only moves while every task waits: the sink has the rows in hand then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let table = stage(&stats, "table");
    let now = now_us();
    assert!(table.lag(now) >= Duration::from_secs(2));
    assert_eq!(table.lag(now + 60 * SECOND), table.lag(now) + Duration::from_secs(60));
    assert_eq!(stats.freshness(table, now), table.lag(now));
    assert_eq!(table.latency_received.counts().count(), 0, "what is not stored has no latency yet");
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_sink_that_can_not_be_reached_grows_old_too() {
    let plan = Plan::builder("p").source("in", Timed {}).sink("table", &["in"], Table { hangs: true }).build().unwrap();
    let stats = Run::new(plan).stats();
    let (table, edge) = (stage(&stats, "table"), &stats.edges[0]);
    let now = now_us();
    edge.sent(3, Some(now - 9 * SECOND));
    edge.entered(3);
    assert_eq!((table.lag(now), stats.freshness(table, now)), (Duration::ZERO, Duration::from_secs(9)));
    edge.left(3, Some(now - 9 * SECOND));
    table.set_state(crate::StageState::Running);
    edge.sent(1, Some(now));
    edge.entered(1);
    assert_eq!(
        stats.freshness(table, now),
        Duration::ZERO,
        "a sink at work takes it at once, however old the last one was"
    );
}

#[tokio::test(start_paused = true)]
async fn a_tap_shows_what_is_refused_once_it_is_open() {
    let sink = Memory { refuses: Some(17), linger_ms: 50, ..Memory::default() };
    let plan = Plan::builder("p")
        .source("numbers", Numbers::new(5))
        .sink("db", &["numbers"], sink)
        .sink("letters", &["db.rejected"], Letters::default())
        .build()
        .unwrap();
    let run = Run::new(plan);
    let stats = run.stats();
    let refused = stage(&stats, "db").tap(Port::REJECTED).expect("the sink has the port");
    refused.open(TapLimits { rows_per_batch: 4, batches_max: 4, bytes_max: 1 << 20 });
    tokio::spawn(run.until(std::future::pending())).await.expect("no panic").unwrap();
    let (letters, taken) = refused.newer_than(0);
    assert_eq!((letters.len(), taken), (1, 1));
    assert_eq!(letters[0].column_by_name("reason").expect("a dead letter").as_string::<i32>().value(0), "23514");
    let closed = stage(&stats, "numbers").tap(Port::MAIN).expect("every source has it");
    assert_eq!(closed.newer_than(0), (vec![], 0), "nobody wanted to look");
}
