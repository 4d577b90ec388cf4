//! Several workers with one source: what moves with a partition from one to another, and what a worker can't store any more
//! that has lost one.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot};

use super::resumed::RunningSum;
use super::*;
use crate::Partition;
use crate::plan::PlanBuilder;
use crate::position::Position;
use crate::tenure::Claimed;

/// What a test tells a worker's source.
enum Order {
    Claim {
        partition: &'static str,
        tenure: u64,
        answer: oneshot::Sender<Result<Claimed, StageError>>,
    },
    /// Numbers of a partition, each at its own position, as one batch.
    Send {
        partition: Partition,
        numbers: std::ops::RangeInclusive<u64>,
    },
    Retire(Partition),
    WantCheckpoint,
    WantStored,
    Forget {
        partition: &'static str,
        heir: &'static str,
        answer: oneshot::Sender<Result<bool, StageError>>,
    },
}

/// Does as it is told.
#[derive(Deserialize, JsonSchema)]
struct Told {
    #[serde(skip)]
    orders: Option<mpsc::UnboundedReceiver<Order>>,
}

impl SourceConfig for Told {
    const DOC: StageDoc = DOC;

    fn build(self, _: &BuildContext) -> Result<BuiltSource, BuildError> {
        Ok(BuiltSource { source: Box::new(self), outputs: vec![(Port::MAIN, schema())] })
    }
}

#[async_trait]
impl Source for Told {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let mut orders = self.orders.expect("a run has orders");
        while let Some(order) = orders.recv().await {
            match order {
                Order::Claim { partition, tenure, answer } => {
                    let claimed = cx.claim(partition, tenure, &[], None).await;
                    answer.send(claimed).ok();
                }
                Order::Send { partition, numbers } => {
                    let ack = partition.open(Span::new(*numbers.start(), *numbers.end()), 0);
                    let numbers = *numbers.start() as i64..*numbers.end() as i64 + 1;
                    cx.send(Batch::new(rows(numbers), ack)).await?;
                }
                Order::Retire(partition) => cx.retire(&partition).await,
                Order::WantCheckpoint => cx.want_checkpoint(),
                Order::WantStored => cx.want_stored(),
                Order::Forget { partition, heir, answer } => {
                    answer.send(cx.forget(partition, &[heir.to_owned()]).await).ok();
                }
            }
        }
        cx.close().await;
        Ok(())
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn is_shared(&self) -> bool {
        true
    }
}

/// A database that all workers store in.
#[derive(Default)]
struct Outside {
    rows: Vec<i64>,
    positions: BTreeMap<String, Position>,
    tenures: BTreeMap<String, u64>,
    checkpoints: BTreeMap<String, Vec<u8>>,
}

/// Stores in it.
#[derive(Default, Deserialize, JsonSchema)]
struct Fenced {
    #[serde(skip)]
    outside: Arc<Mutex<Outside>>,
    /// Exactly once, unless it says otherwise.
    #[serde(skip)]
    sharing: Option<Sharing>,
    /// How long it collects rows.
    #[serde(skip)]
    linger: Duration,
}

impl SinkConfig for Fenced {
    const DOC: StageDoc = DOC;

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        let grouping = Grouping { linger: self.linger, ..Grouping::default() };
        Ok(BuiltSink { sink: Box::new(self), grouping, outputs: Vec::new() })
    }
}

#[async_trait]
impl Sink for Fenced {
    async fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    fn sharing(&self) -> Sharing {
        self.sharing.clone().unwrap_or(Sharing::ExactlyOnce { keeps_checkpoints: true })
    }

    async fn adopt(&mut self, partition: &str, tenure: u64, _: &[String]) -> Result<Adopted, StageError> {
        let mut outside = self.outside.lock().unwrap();
        if outside.tenures.get(partition).is_some_and(|known| *known > tenure) {
            return Err(StageError::superseded(vec![partition.to_owned()]));
        }
        outside.tenures.insert(partition.to_owned(), tenure);
        let committed = |position: &Position| Committed {
            input: "sums".to_owned(),
            partition: partition.to_owned(),
            position: *position,
        };
        Ok(Adopted {
            positions: outside.positions.get(partition).map(committed).into_iter().collect(),
            checkpoint: outside.checkpoints.get(partition).cloned(),
            inherited: Vec::new(),
        })
    }

    async fn keep_checkpoint(&mut self, partition: &str, tenure: u64, checkpoint: &[u8]) -> Result<(), StageError> {
        let mut outside = self.outside.lock().unwrap();
        if outside.tenures.get(partition) != Some(&tenure) {
            return Err(StageError::superseded(vec![partition.to_owned()]));
        }
        outside.checkpoints.insert(partition.to_owned(), checkpoint.to_vec());
        Ok(())
    }

    async fn forget(&mut self, partition: &str, heirs: &[String]) -> Result<bool, StageError> {
        let mut outside = self.outside.lock().unwrap();
        if heirs.iter().any(|heir| !outside.checkpoints.contains_key(heir)) {
            return Ok(false);
        }
        outside.tenures.remove(partition);
        outside.checkpoints.remove(partition);
        Ok(true)
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        let mut outside = self.outside.lock().unwrap();
        let is_lost = |(partition, tenure): &(&str, u64)| outside.tenures.get(*partition) != Some(tenure);
        let lost: Vec<String> = group.claims().into_iter().filter(is_lost).map(|(lost, _)| lost.to_owned()).collect();
        if !lost.is_empty() {
            return Err(StageError::superseded(lost));
        }
        for advance in group.advances() {
            let before = outside.positions.insert(advance.partition.clone(), advance.to);
            assert_eq!(before, advance.from, "a group goes on where the one before has ended");
        }
        for batch in group.batches() {
            outside.rows.extend(batch.rows.column(0).as_primitive::<Int64Type>().values());
        }
        Ok(())
    }
}

/// A run, and how to tell it what to do.
struct Worker {
    orders: mpsc::UnboundedSender<Order>,
    task: tokio::task::JoinHandle<Result<crate::Report, RunError>>,
    stats: Arc<crate::RunStats>,
    _home: tempfile::TempDir,
}

impl Worker {
    fn start(outside: &Arc<Mutex<Outside>>) -> Self {
        Self::start_with(outside, |plan| plan)
    }

    /// With something beside the table.
    fn start_with(outside: &Arc<Mutex<Outside>>, beside: impl FnOnce(PlanBuilder) -> PlanBuilder) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let (orders, told) = mpsc::unbounded_channel();
        let plan = Plan::builder("p")
            .data_dir(home.path())
            .source("told", Told { orders: Some(told) })
            .transform("sums", &["told"], RunningSum::default())
            .sink("table", &["sums"], Fenced { outside: outside.clone(), ..Fenced::default() });
        let run = Run::new(beside(plan).build().unwrap());
        let stats = run.stats();
        Self { orders, task: tokio::spawn(run.until(std::future::pending())), stats, _home: home }
    }

    fn tell(&self, order: Order) {
        assert!(self.orders.send(order).is_ok(), "the source runs");
    }

    async fn claim(&self, partition: &'static str, tenure: u64) -> Result<Claimed, StageError> {
        let (answer, answered) = oneshot::channel();
        self.tell(Order::Claim { partition, tenure, answer });
        answered.await.expect("the source runs")
    }

    async fn forget(&self, partition: &'static str, heir: &'static str) -> bool {
        let (answer, answered) = oneshot::channel();
        self.tell(Order::Forget { partition, heir, answer });
        answered.await.expect("the source runs").expect("the sinks can")
    }

    /// Sends, and waits until it is stored or given up.
    async fn store(&self, partition: &Partition, numbers: std::ops::RangeInclusive<u64>) {
        let opened = partition.progress().borrow().opened;
        self.tell(Order::Send { partition: partition.clone(), numbers });
        loop {
            let progress = *partition.progress().borrow();
            if progress.opened > opened && (progress.failed || progress.is_complete()) {
                // What is given up is counted behind the broken promise.
                return tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn checkpoint(&self, partition: &Partition, position: u64) {
        self.tell(Order::WantCheckpoint);
        let mut checkpointed = partition.checkpointed();
        checkpointed.wait_for(|kept| *kept == Some(position.into())).await.expect("the run goes on");
    }

    async fn end(self) {
        drop(self.orders);
        self.task.await.expect("no panic").expect("it ends well");
        for (stage, balance) in self.stats.balances() {
            assert_eq!(balance.imbalance(), 0, "{}: {balance}", stage.name);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_of_a_partition_moves_with_it_and_no_row_is_stored_twice() {
    let outside = Arc::new(Mutex::new(Outside::default()));
    let first = Worker::start(&outside);
    let claimed = first.claim("shard", 1).await.unwrap();
    assert_eq!((claimed.after, &*claimed.cuts), (None, &[][..]));
    first.store(&claimed.partition, 1..=2).await;
    first.store(&claimed.partition, 3..=3).await;
    first.checkpoint(&claimed.partition, 3).await;
    first.store(&claimed.partition, 4..=5).await;
    first.task.abort();

    let second = Worker::start(&outside);
    let claimed = second.claim("shard", 2).await.unwrap();
    assert_eq!(claimed.after, Some(3.into()), "where the checkpoint is");
    assert_eq!(claimed.cuts, [Position::from(5)], "where the sink is");
    second.store(&claimed.partition, 4..=5).await;
    second.store(&claimed.partition, 6..=6).await;
    assert_eq!(outside.lock().unwrap().rows, [1, 3, 6, 10, 15, 21], "each sum once");
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_has_lost_a_partition_stores_nothing_more_of_it_and_goes_on_with_the_others() {
    let outside = Arc::new(Mutex::new(Outside::default()));
    let (slow, quick) = (Worker::start(&outside), Worker::start(&outside));
    let lost = slow.claim("lost", 1).await.unwrap().partition;
    let kept = slow.claim("kept", 1).await.unwrap().partition;
    slow.store(&lost, 1..=1).await;
    let taken = quick.claim("lost", 2).await.unwrap();
    assert_eq!(taken.cuts, [Position::from(1)]);
    slow.store(&lost, 2..=2).await;
    assert!(lost.is_revoked(), "the sink has told");
    slow.store(&lost, 3..=3).await;
    slow.store(&kept, 100..=100).await;
    quick.store(&taken.partition, 1..=1).await;
    quick.store(&taken.partition, 2..=3).await;
    assert_eq!(outside.lock().unwrap().rows, [1, 100, 3, 6]);
    let superseded = slow.claim("lost", 1).await.map(drop).unwrap_err();
    assert_eq!(superseded.superseded_partitions(), ["told/lost"]);
    slow.tell(Order::Retire(lost));
    slow.end().await;
    quick.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_claims_a_partition_or_gives_one_up_does_not_wait_for_a_group_that_collects_rows() {
    let (outside, lake) = (Arc::new(Mutex::new(Outside::default())), Arc::new(Mutex::new(Outside::default())));
    let linger = Duration::from_secs(3_600);
    let collects = Fenced { outside: lake.clone(), linger, ..Fenced::default() };
    let worker = Worker::start_with(&outside, |plan| plan.sink("lake", &["sums"], collects));
    let early = worker.claim("early", 1).await.unwrap().partition;
    worker.tell(Order::Send { partition: early.clone(), numbers: 1..=1 });
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(lake.lock().unwrap().rows.is_empty(), "it collects");
    let asked = tokio::time::Instant::now();
    let late = worker.claim("late", 1).await.unwrap().partition;
    assert!(asked.elapsed() < linger, "by the clock of the test");
    assert_eq!(lake.lock().unwrap().rows, [1], "the group has ended");
    worker.tell(Order::Send { partition: late.clone(), numbers: 5..=5 });
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(lake.lock().unwrap().rows, [1], "it collects");
    worker.tell(Order::WantStored);
    late.settled().await;
    assert!(asked.elapsed() < linger, "by the clock of the test");
    assert_eq!(lake.lock().unwrap().rows, [1, 5]);
    worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_comes_back_begins_where_others_have_come_to() {
    let outside = Arc::new(Mutex::new(Outside::default()));
    let (here, there) = (Worker::start(&outside), Worker::start(&outside));
    let mut numbers = 0..;
    for tenure in 1..=6 {
        let worker = if tenure % 2 == 1 { &here } else { &there };
        let partition = worker.claim("shard", tenure).await.unwrap().partition;
        for number in numbers.by_ref().take(3) {
            worker.store(&partition, number + 1..=number + 1).await;
        }
        worker.checkpoint(&partition, tenure * 3).await;
        worker.tell(Order::Retire(partition));
    }
    let sums: Vec<i64> = (1..=18).map(|number| number * (number + 1) / 2).collect();
    assert_eq!(outside.lock().unwrap().rows, sums);
    here.end().await;
    there.end().await;
}

/// A worker with an optional sink that collects for a second, and what that has stored.
fn with_a_slow_tap(outside: &Arc<Mutex<Outside>>) -> (Worker, Stored) {
    let tap = Memory { linger_ms: 1_000, ..Memory::default() };
    let stored = tap.stored.clone();
    (Worker::start_with(outside, |plan| plan.sink("tap", &["told"], tap).optional("tap")), stored)
}

#[tokio::test(start_paused = true)]
async fn an_optional_sink_in_the_midst_of_a_group_takes_rows_of_a_partition_that_is_claimed_meanwhile() {
    let outside = Arc::new(Mutex::new(Outside::default()));
    let (worker, tapped) = with_a_slow_tap(&outside);
    let early = worker.claim("early", 1).await.unwrap().partition;
    worker.tell(Order::Send { partition: early.clone(), numbers: 1..=1 });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let late = worker.claim("late", 1).await.unwrap().partition;
    worker.store(&late, 10..=11).await;
    assert!(!early.is_revoked() && !late.is_revoked(), "nobody has taken anything over");
    assert_eq!(outside.lock().unwrap().rows, [1, 10, 21]);
    assert_eq!(*tapped.lock().unwrap(), [1, 10, 11]);
    worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_optional_sink_in_the_midst_of_a_group_begins_with_the_next_tenure_where_that_begins() {
    let outside = Arc::new(Mutex::new(Outside::default()));
    let (worker, tapped) = with_a_slow_tap(&outside);
    let before = worker.claim("shard", 1).await.unwrap().partition;
    worker.tell(Order::Send { partition: before, numbers: 1..=1 });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let again = worker.claim("shard", 2).await.unwrap().partition;
    worker.store(&again, 1..=1).await;
    worker.store(&again, 2..=2).await;
    assert!(!again.is_revoked());
    assert_eq!(outside.lock().unwrap().rows, [1, 3], "each once");
    assert_eq!(*tapped.lock().unwrap(), [1, 1, 2], "at least once");
    worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_optional_sink_that_has_a_later_tenure_on_record_takes_nothing_of_an_earlier_one() {
    let outside = Arc::new(Mutex::new(Outside::default()));
    let elsewhere = Arc::new(Mutex::new(Outside::default()));
    elsewhere.lock().unwrap().tenures.insert("told/shard".to_owned(), 5);
    let other = Fenced { outside: elsewhere.clone(), sharing: Some(Sharing::AtLeastOnce), ..Fenced::default() };
    let worker = Worker::start_with(&outside, |plan| plan.sink("other", &["sums"], other).optional("other"));
    let partition = worker.claim("shard", 1).await.unwrap().partition;
    worker.store(&partition, 1..=1).await;
    assert!(partition.is_revoked());
    assert!(elsewhere.lock().unwrap().rows.is_empty());
    worker.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_over_is_forgotten_by_every_sink_once_its_heir_has_a_checkpoint() {
    let outside = Arc::new(Mutex::new(Outside::default()));
    let (worker, _) = with_a_slow_tap(&outside);
    let over = worker.claim("over", 1).await.unwrap().partition;
    worker.store(&over, 1..=1).await;
    worker.checkpoint(&over, 1).await;
    worker.tell(Order::Retire(over));
    let heir = worker.claim("heir", 1).await.unwrap().partition;
    assert!(!worker.forget("over", "heir").await, "the heir begins with what is kept of it");
    worker.store(&heir, 1..=1).await;
    worker.checkpoint(&heir, 1).await;
    assert!(worker.forget("over", "heir").await);
    let known: Vec<String> = outside.lock().unwrap().tenures.keys().cloned().collect();
    assert_eq!(known, ["told/heir"]);
    worker.end().await;
}

#[test]
fn what_several_workers_can_not_share_is_refused() {
    let build_with = |refusal: Option<Sharing>, fenced: bool, alone: bool| {
        let mut plan = Plan::builder("p").source("told", Told { orders: None });
        plan = plan.transform("sums", &["told"], RunningSum::default());
        plan = match fenced {
            true => plan.sink("table", &["sums"], Fenced { sharing: refusal, ..Fenced::default() }),
            false => plan.sink("table", &["sums"], Memory::default()),
        };
        if !alone {
            plan = plan.source("other", resumed::Log).sink("others", &["other"], Memory::default());
        }
        plan.build().map(drop).map_err(|mistakes| mistakes.to_string())
    };
    let build = |refuses: bool, fenced, alone| {
        build_with(refuses.then_some(Sharing::Refused("Not by this one.")), fenced, alone)
    };
    assert_eq!(build(false, true, true), Ok(()));
    let once = Sharing::ExactlyOnce { keeps_checkpoints: false };
    assert!(build_with(Some(once), true, true).unwrap_err().contains("no sink keeps that for the next worker"));
    assert!(build(true, true, true).unwrap_err().contains("several workers can't store by \"table\""));
    assert!(build(false, false, true).unwrap_err().contains("remembers what came before, and no sink keeps that"));
    assert!(build(false, true, false).unwrap_err().contains("has the pipeline to itself"));
}
