//! Runs that end in a crash and go on: every row once, and the state of transforms as if nothing had
//! happened.

use std::collections::BTreeMap;

use tokio::time::{sleep, timeout};

use super::*;
use crate::position::Position;
use crate::spool::testing::SimulatedDisk;

pub(super) const BATCHES: u64 = 60;

/// Counts up in batches of ten, each a position, and goes on where the checkpoint says.
#[derive(Deserialize, JsonSchema)]
pub(super) struct Log;

impl SourceConfig for Log {
    const DOC: StageDoc = DOC;

    fn build(self, _: &BuildContext) -> Result<BuiltSource, BuildError> {
        Ok(BuiltSource { source: Box::new(self), outputs: vec![(Port::MAIN, schema())] })
    }
}

#[async_trait]
impl Source for Log {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let (partition, after) = cx.resumable_partition("log").await;
        let done = after.map_or(0, |Position(words)| words[3]);
        for position in done + 1..=BATCHES {
            if cx.is_stopping() {
                break;
            }
            let last = i64::try_from(position).unwrap() * 10;
            let ack = partition.open(Span::new(position, position), 0);
            cx.send(Batch::new(rows(last - 10..last), ack)).await?;
            sleep(Duration::from_millis(1)).await;
        }
        cx.drain(&partition).await
    }

    fn is_resumable(&self) -> bool {
        true
    }
}

/// Replaces each number by the sum of all numbers so far.
#[derive(Clone, Default, Deserialize, JsonSchema)]
pub(super) struct RunningSum {
    #[serde(skip)]
    pub(super) sum: i64,
}

impl TransformConfig for RunningSum {
    const DOC: StageDoc = DOC;

    fn build(self, input: &SchemaRef, _: &BuildContext) -> Result<BuiltTransform, BuildError> {
        Ok(BuiltTransform { transform: Box::new(self), outputs: vec![(Port::MAIN, input.clone())] })
    }
}

impl Transform for RunningSum {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let sums = batch.rows.column(0).as_primitive::<Int64Type>().values().iter().map(|number| {
            self.sum += number;
            self.sum
        });
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(sums));
        let summed = RecordBatch::try_new(schema(), vec![column])?;
        out.emit(batch.with_rows(summed));
        Ok(())
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        Some(self.sum.to_le_bytes().to_vec())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), StageError> {
        let bytes = snapshot.try_into().map_err(|_| StageError::permanent("not eight bytes"))?;
        self.sum = i64::from_le_bytes(bytes);
        Ok(())
    }
}

/// A database that outlives the runs, and keeps positions with rows.
#[derive(Default)]
pub(super) struct Outside {
    pub(super) rows: Vec<i64>,
    /// Somebody has asked for the positions.
    is_asked: bool,
    positions: BTreeMap<(String, String), Position>,
}

/// Stores in it, each group after a while.
#[derive(Default, Deserialize, JsonSchema)]
pub(super) struct Ledger {
    pub(super) wait_ms: u64,
    #[serde(skip)]
    pub(super) failures: VecDeque<StageError>,
    #[serde(skip)]
    pub(super) outside: Arc<Mutex<Outside>>,
}

impl SinkConfig for Ledger {
    const DOC: StageDoc = DOC;

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        Ok(BuiltSink { sink: Box::new(self), grouping: Grouping::default(), outputs: Vec::new() })
    }
}

#[async_trait]
impl Sink for Ledger {
    async fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    async fn committed(&mut self) -> Result<Vec<Committed>, StageError> {
        let mut outside = self.outside.lock().unwrap();
        outside.is_asked = true;
        let entry = |((input, partition), position): (&(String, String), &Position)| Committed {
            input: input.clone(),
            partition: partition.clone(),
            position: *position,
        };
        Ok(outside.positions.iter().map(entry).collect())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        sleep(Duration::from_millis(self.wait_ms)).await;
        if let Some(failure) = self.failures.pop_front() {
            return Err(failure);
        }
        let mut outside = self.outside.lock().unwrap();
        for advance in group.advances() {
            let key = (advance.input.clone(), advance.partition.clone());
            let before = outside.positions.insert(key, advance.to);
            assert_eq!(before, advance.from, "a group goes on where the one before has ended");
        }
        for batch in group.batches() {
            outside.rows.extend(numbers(&batch.rows));
        }
        Ok(())
    }
}

/// What a batch is about: its numbers, or the numbers of the rows behind dead letters.
fn numbers(rows: &RecordBatch) -> Vec<i64> {
    let Some(payloads) = rows.column_by_name("payload") else {
        return rows.column(0).as_primitive::<Int64Type>().values().to_vec();
    };
    let payloads = payloads.as_binary::<i32>().iter().flatten();
    let row = |payload| serde_json::from_slice::<BTreeMap<String, i64>>(payload).expect("a row as JSON");
    payloads.map(|payload| row(payload)["n"]).collect()
}

/// A slow sink and a quick one behind a transform with state.
struct World {
    disk: SimulatedDisk,
    home: tempfile::TempDir,
    slow: Arc<Mutex<Outside>>,
    quick: Arc<Mutex<Outside>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        Self { disk: SimulatedDisk::new(seed), home, slow: Arc::default(), quick: Arc::default() }
    }

    fn run(&self, failures: VecDeque<StageError>) -> Run {
        let plan = Plan::builder("p")
            .data_dir(self.home.path())
            .queue_rows(20)
            .checkpoint_interval(Duration::from_millis(3))
            .source("log", Log)
            .transform("sums", &["log"], RunningSum::default())
            .sink("slow", &["sums"], Ledger { wait_ms: 7, failures, outside: self.slow.clone() })
            .sink("quick", &["sums"], Ledger { wait_ms: 0, failures: VecDeque::new(), outside: self.quick.clone() })
            .build()
            .unwrap();
        Run::new(plan).on_storage(self.disk.mount())
    }

    fn check(&self, what: &str) {
        let sums = (0..i64::try_from(BATCHES).unwrap() * 10).scan(0, |sum, number| {
            *sum += number;
            Some(*sum)
        });
        let sums: Vec<_> = sums.collect();
        assert_eq!(self.slow.lock().unwrap().rows, sums, "{what}: the slow sink");
        assert_eq!(self.quick.lock().unwrap().rows, sums, "{what}: the quick sink");
    }
}

#[tokio::test(start_paused = true)]
async fn each_row_is_stored_once_and_sums_go_on_whenever_the_run_crashes() {
    let mut crashes_total = 0;
    for seed in 0..100 {
        let world = World::new(seed);
        let mut crashes = 0;
        loop {
            let life = Duration::from_millis(5 + (seed * 7 + crashes * 13) % 40);
            match timeout(life, world.run(VecDeque::new()).until(std::future::pending())).await {
                Ok(ended) => break drop(ended.unwrap()),
                Err(_) if seed % 2 == 0 => world.disk.kill_process(),
                Err(_) => world.disk.cut_power(),
            }
            crashes += 1;
            assert!(crashes < 1_000, "seed {seed}: every run must come further");
        }
        world.check(&format!("seed {seed}, {crashes} crashes"));
        crashes_total += crashes;
    }
    assert!(crashes_total > 200, "{crashes_total} crashes prove little");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_stopped_leaves_nothing_to_read_again() {
    let world = World::new(1);
    let report = world.run(VecDeque::new()).until(sleep(Duration::from_millis(20))).await.unwrap();
    let sent = report.stage("log").unwrap().rows_out(Port::MAIN);
    assert!(sent > 0 && sent < BATCHES * 10, "stopped midway");
    let report = world.run(VecDeque::new()).until(std::future::pending()).await.unwrap();
    assert_eq!(report.stage("log").unwrap().rows_out(Port::MAIN), BATCHES * 10 - sent);
    world.check("two runs");
}

#[tokio::test(start_paused = true)]
async fn a_sink_is_asked_for_its_positions_only_where_there_are_some() {
    let world = World::new(1);
    world.run(VecDeque::new()).until(std::future::pending()).await.unwrap();
    assert!(world.slow.lock().unwrap().is_asked && world.quick.lock().unwrap().is_asked);

    let outside: Arc<Mutex<Outside>> = Arc::default();
    let sink = Ledger { wait_ms: 0, failures: VecDeque::new(), outside: outside.clone() };
    let plan = Plan::builder("p").source("numbers", Numbers::new(3)).sink("sink", &["numbers"], sink).build().unwrap();
    Run::new(plan).until(std::future::pending()).await.unwrap();
    let outside = outside.lock().unwrap();
    assert!(outside.rows.len() == 30 && !outside.is_asked && outside.positions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_needs_a_person_pauses_and_holds_up_nobody() {
    let world = World::new(1);
    let failures = VecDeque::from([StageError::permanent("password authentication failed")]);
    let run = world.run(failures);
    let stats = run.stats();
    let paused = async {
        while stats.stages.iter().all(|stage| stage.state() != crate::StageState::Paused)
            || world.quick.lock().unwrap().rows.len() < 600
        {
            sleep(Duration::from_millis(1)).await;
        }
        world.slow.lock().unwrap().rows.len()
    };
    let (report, stored_by_slow) = tokio::join!(run.until(std::future::pending()), paused);
    report.unwrap();
    assert_eq!(stored_by_slow, 0, "the quick sink had everything before the slow one had anything");
    world.check("after the pause");
}

#[tokio::test(start_paused = true)]
async fn a_second_run_with_the_same_directory_is_refused() {
    let world = World::new(1);
    let first = tokio::spawn(world.run(VecDeque::new()).until(std::future::pending()));
    sleep(Duration::from_millis(2)).await;
    let second = world.run(VecDeque::new()).until(std::future::pending()).await.unwrap_err().to_string();
    assert!(second.contains("This pipeline runs already with this directory"), "{second}");
    first.await.unwrap().unwrap();
    world.check("the first run");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_has_ended_in_any_way_leaves_its_directory_to_the_next() {
    let world = World::new(1);
    let failed = world.run([StageError::bug("planned")].into()).until(std::future::pending()).await;
    assert!(failed.is_err_and(|error| error.to_string().contains("planned")));
    let dropped = timeout(Duration::from_millis(20), world.run(VecDeque::new()).until(std::future::pending())).await;
    assert!(dropped.is_err(), "still at work");
    // What is dropped goes when its task is looked at next.
    sleep(Duration::from_millis(1)).await;
    world.run(VecDeque::new()).until(std::future::pending()).await.unwrap();
    world.check("the third run");
}

#[tokio::test(start_paused = true)]
async fn an_optional_sink_that_hangs_keeps_no_checkpoint_from_being_taken() {
    let world = World::new(1);
    let run = || {
        let plan = Plan::builder("p")
            .data_dir(world.home.path())
            .checkpoint_interval(Duration::from_secs(1))
            .source("log", Log)
            .sink("quick", &["log"], Ledger { outside: world.quick.clone(), ..Ledger::default() })
            .sink("tap", &["log"], Memory { hangs: true, ..Memory::default() })
            .optional("tap")
            .build()
            .unwrap();
        Run::new(plan).on_storage(world.disk.mount())
    };
    let first = run();
    let stats = first.stats();
    timeout(Duration::from_secs(60), first.until(std::future::pending())).await.expect_err("the tap hangs");
    assert_eq!(stats.stages[0].rows_out(Port::MAIN), BATCHES * 10);
    world.disk.kill_process();
    let second = run();
    let stats = second.stats();
    timeout(Duration::from_secs(60), second.until(std::future::pending())).await.unwrap().unwrap();
    assert_eq!(stats.stages[0].rows_out(Port::MAIN), 0, "all was checkpointed");
}
