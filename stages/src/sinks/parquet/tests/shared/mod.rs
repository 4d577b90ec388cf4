//! Several workers that write one lake: each request of each can go wrong, a worker can end or be stopped at each, and afterwards
//! each row is in exactly one object.

mod line;

use std::collections::BTreeSet;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use pipeline_engine::Position;
use pipeline_engine::stage::Advance;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use self::line::{Line, Trouble};
use super::account::Objects;
use super::bucket::Bucket;
use super::format::{Packing, Written};
use super::letters::is_object_of;
use super::*;

const SHARDS: [&str; 2] = ["telemetry/a", "telemetry/b"];
/// Two inputs that carry the same positions: as a stage's main port and its `rejected`.
const INPUTS: [&str; 2] = ["valid", "valid.rejected"];
const BATCHES: u64 = 4;
const BATCH_ROWS: i64 = 2;

/// The rows of one position of one input: each with a time of its own, some of the next day.
fn batch(shard: usize, input: usize, position: u64) -> RecordBatch {
    let place = (shard * INPUTS.len() + input) as i64 * BATCHES as i64 + position as i64 - 1;
    rows(&(place * BATCH_ROWS..(place + 1) * BATCH_ROWS).map(|row| row * DAY_US / 3).collect::<Vec<_>>())
}

fn all_times() -> Vec<i64> {
    let rows = (SHARDS.len() * INPUTS.len()) as i64 * BATCHES as i64 * BATCH_ROWS;
    (0..rows).map(|row| row * DAY_US / 3).collect()
}

/// How far a worker has brought each input of a shard.
type Done = BTreeMap<(usize, usize), Option<Position>>;

/// A part of a group: each input of a shard up to a position.
fn part(shard: usize, tenure: u64, done: &Done, to: [u64; 2]) -> (Vec<Batch>, Vec<Advance>) {
    let (mut batches, mut advances) = (Vec::new(), Vec::new());
    let partition = Partition::resumable(SHARDS[shard]);
    for (index, input) in INPUTS.iter().enumerate() {
        let from = done[&(shard, index)];
        let first = from.map_or(0, |from| from.0[3]) + 1;
        for position in first..=to[index] {
            let ack = partition.open(Span::new(position, position), 7);
            batches.push(Batch::new(batch(shard, index, position), ack));
        }
        if first <= to[index] {
            let (input, partition) = ((*input).to_owned(), SHARDS[shard].to_owned());
            advances.push(Advance { input, partition, from, to: to[index].into(), tenure: Some(tenure) });
        }
    }
    (batches, advances)
}

/// Both forms of an object: what makes it exactly one is not its content.
fn form(seed: u64) -> Form {
    if seed.is_multiple_of(2) { Form::Parquet(Codec::UNCOMPRESSED) } else { Form::Json(Packing::Gzip(1)) }
}

/// A worker, as the engine drives it.
struct Worker {
    sink: Parquet,
    line: Line,
    tenure: u64,
    chance: Pcg64Mcg,
}

impl Worker {
    fn new(store: &Arc<InMemory>, tenure: u64, trouble: Trouble, seed: u64) -> Self {
        let line = Line::to(store, trouble);
        let bucket = Bucket::over(Arc::new(line.clone()));
        let mut sink = on(Box::new(bucket), Journal::new(Arc::new(FsStorage), "never made".into()), form(seed));
        sink.share();
        Self { sink, line, tenure, chance: Pcg64Mcg::seed_from_u64(seed) }
    }

    /// Claims a shard, as long as it takes. `None` if it is somebody else's, or the process has ended.
    async fn claim(&mut self, shard: usize) -> Option<Done> {
        while !self.line.has_ended() {
            match self.sink.adopt(SHARDS[shard], self.tenure, &[]).await {
                Ok(adopted) => {
                    let position = |input: &str| {
                        adopted.positions.iter().find(|entry| entry.input == input).map(|entry| entry.position)
                    };
                    return Some(INPUTS.iter().enumerate().map(|(at, input)| ((shard, at), position(input))).collect());
                }
                Err(error) if !error.superseded_partitions().is_empty() => return None,
                Err(error) => assert_eq!(error.fault(), Fault::Transient, "{}", error.chain()),
            }
            tokio::task::yield_now().await;
        }
        None
    }

    /// Claims all shards and stores what is left of them, in groups that end elsewhere each time. Gives the shards that it has
    /// brought to their end.
    async fn work(&mut self) -> BTreeSet<usize> {
        let (mut done, mut held, mut ended) = (Done::new(), BTreeSet::new(), BTreeSet::new());
        for shard in 0..SHARDS.len() {
            if let Some(adopted) = self.claim(shard).await {
                done.extend(adopted);
                held.insert(shard);
            }
        }
        loop {
            let (over, left): (BTreeSet<_>, BTreeSet<_>) = held
                .into_iter()
                .partition(|shard| (0..INPUTS.len()).all(|input| done[&(*shard, input)] == Some(BATCHES.into())));
            ended.extend(over);
            held = left;
            if held.is_empty() || self.line.has_ended() {
                return ended;
            }
            let mut parts = BTreeMap::new();
            for shard in &held {
                let to = [0, 1].map(|input| {
                    let from = done[&(*shard, input)].map_or(0, |from: Position| from.0[3]);
                    (from + self.chance.random_range(0..3)).min(BATCHES)
                });
                parts.insert(*shard, to);
            }
            self.store(&mut held, &mut done, parts).await;
        }
    }

    /// Stores a group, without what others have taken over.
    async fn store(&mut self, held: &mut BTreeSet<usize>, done: &mut Done, mut parts: BTreeMap<usize, [u64; 2]>) {
        while !self.line.has_ended() {
            let (mut batches, mut advances) = (Vec::new(), Vec::new());
            for (shard, to) in &parts {
                let part = part(*shard, self.tenure, done, *to);
                batches.extend(part.0);
                advances.extend(part.1);
            }
            if advances.is_empty() {
                return;
            }
            match self.sink.write(&Group::advancing(batches, advances.clone())).await {
                Ok(()) => {
                    for advance in advances {
                        let shard = SHARDS.iter().position(|shard| *shard == advance.partition).unwrap();
                        let input = INPUTS.iter().position(|input| *input == advance.input).unwrap();
                        done.insert((shard, input), Some(advance.to));
                    }
                    return;
                }
                Err(error) if !error.superseded_partitions().is_empty() => {
                    let is_lost =
                        |shard: &usize| error.superseded_partitions().iter().any(|lost| *lost == SHARDS[*shard]);
                    held.retain(|shard| !is_lost(shard));
                    parts.retain(|shard, _| !is_lost(shard));
                }
                Err(error) => assert_eq!(error.fault(), Fault::Transient, "{}", error.chain()),
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn keys(store: &InMemory) -> Vec<String> {
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    listed.into_iter().map(|object| object.location.to_string()).collect()
}

/// Each row is in exactly one object, the footers prove it, and nothing is left aside but the heads.
async fn check(store: &InMemory, of: &str) {
    let (mut times, mut objects) = (Vec::new(), Objects::default());
    for key in keys(store).await {
        let content = store.get(&key.as_str().into()).await.unwrap().bytes().await.unwrap();
        if key.starts_with("raw/_pipeline/") {
            assert!(key.starts_with("raw/_pipeline/heads/iot-lake/telemetry/"), "{of}: \"{key}\" is left");
            continue;
        }
        assert!(is_object_of("iot-lake-", &key), "{of}: {key}");
        for rows in Written::of(&key).unwrap().read(content.clone(), &input()).unwrap().0 {
            times.extend_from_slice(rows.column(0).as_primitive::<TimestampMicrosecondType>().values());
        }
        objects.add(&key, content).await;
    }
    times.sort();
    assert_eq!(times, all_times(), "{of}: each row in exactly one object");
    let account = objects.account().unwrap();
    assert_eq!(account.contradictions, Vec::<String>::new(), "{of}");
    assert_eq!(account.rows_recorded, Some(account.rows_found), "{of}");
    assert!(account.positions.iter().all(|entry| entry.position == BATCHES.into()), "{of}: {:?}", account.positions);
    assert_eq!(account.positions.len(), SHARDS.len() * INPUTS.len(), "{of}");
}

fn all_shards() -> BTreeSet<usize> {
    (0..SHARDS.len()).collect()
}

#[tokio::test]
async fn a_worker_that_ends_at_any_request_leaves_the_rest_to_the_next() {
    for seed in 0..4 {
        let ends = if seed < 2 { Trouble::EndsBefore } else { Trouble::EndsAfter };
        for request in 1.. {
            let store = Arc::new(InMemory::new());
            let mut first = Worker::new(&store, 1, ends(request), seed);
            let finished = first.work().await == all_shards();
            // Groups of another size: what is set aside is what is stored, however rows are grouped next time.
            assert_eq!(Worker::new(&store, 2, Trouble::None, seed + 10).work().await, all_shards());
            check(&store, &format!("seed {seed}, ended at request {request}")).await;
            if finished {
                assert!(request > 30, "the work has more requests than {request}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_worker_goes_on_where_a_request_was_refused_or_its_answer_lost() {
    for (seed, trouble) in [(0, Trouble::Refuses as fn(u64) -> Trouble), (1, Trouble::LosesAnswer)] {
        for request in 1.. {
            let store = Arc::new(InMemory::new());
            let mut worker = Worker::new(&store, 1, trouble(request), seed);
            assert_eq!(worker.work().await, all_shards());
            // What could not be removed is swept by the next owner.
            let last = worker.line.requests();
            assert_eq!(Worker::new(&store, 2, Trouble::None, seed).work().await, all_shards());
            check(&store, &format!("{:?}", trouble(request))).await;
            if request > last {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_worker_that_is_stopped_at_any_request_and_wakes_stores_nothing_twice() {
    for seed in 0..2 {
        for request in 1.. {
            let store = Arc::new(InMemory::new());
            let mut first = Worker::new(&store, 1, Trouble::Pauses(request), seed);
            let line = first.line.clone();
            let working = tokio::spawn(async move { first.work().await });
            let paused = tokio::time::timeout(Duration::from_secs(60), async {
                while !working.is_finished() {
                    tokio::select! {
                        () = line.paused() => return true,
                        () = tokio::task::yield_now() => {}
                    }
                }
                false
            });
            let paused = paused.await.expect("it works or is stopped");
            assert_eq!(Worker::new(&store, 2, Trouble::None, seed + 10).work().await, all_shards());
            line.wake();
            working.await.unwrap();
            check(&store, &format!("seed {seed}, stopped at request {request}")).await;
            if !paused {
                break;
            }
        }
    }
}

#[tokio::test]
async fn workers_that_take_shards_from_each_other_over_bad_lines_store_each_row_once() {
    for seed in 0..60 {
        let store = Arc::new(InMemory::new());
        let mut working = Vec::new();
        for tenure in 1..=3 {
            let trouble = Trouble::Any { one_of: 12, seed: seed * 10 + tenure };
            let mut worker = Worker::new(&store, tenure, trouble, seed * 2 + tenure);
            working.push(tokio::spawn(async move { worker.work().await }));
            for _ in 0..(seed * 7) % 50 {
                tokio::task::yield_now().await;
            }
        }
        for worker in working {
            worker.await.unwrap();
        }
        assert_eq!(Worker::new(&store, 4, Trouble::None, seed).work().await, all_shards());
        check(&store, &format!("seed {seed}")).await;
    }
}

#[tokio::test]
async fn a_claim_is_refused_below_the_one_on_record_and_to_another_worker_of_its_number() {
    let store = Arc::new(InMemory::new());
    let worker = |tenure| Worker::new(&store, tenure, Trouble::None, 0);
    let (mut five, mut four, mut other) = (worker(5), worker(4), worker(5));
    assert!(five.claim(0).await.is_some());
    assert!(five.claim(0).await.is_some(), "again, since the answer may have been lost");
    assert!(four.claim(0).await.is_none());
    assert!(other.claim(0).await.is_none());
    assert!(worker(6).claim(0).await.is_some());
    assert!(five.claim(0).await.is_none());
}

#[tokio::test]
async fn of_a_group_only_the_partition_is_refused_that_another_worker_has() {
    let store = Arc::new(InMemory::new());
    let mut worker = Worker::new(&store, 1, Trouble::None, 0);
    let mut done = worker.claim(0).await.unwrap();
    done.extend(worker.claim(1).await.unwrap());
    Worker::new(&store, 2, Trouble::None, 0).claim(1).await.unwrap();
    let group = |shards: &[usize]| {
        let parts = shards.iter().map(|shard| part(*shard, 1, &done, [2, 1]));
        let (batches, advances): (Vec<_>, Vec<_>) = parts.unzip();
        Group::advancing(batches.into_iter().flatten().collect(), advances.concat())
    };
    let error = worker.sink.write(&group(&[0, 1])).await.unwrap_err();
    assert_eq!(error.superseded_partitions(), [SHARDS[1]]);
    worker.sink.write(&group(&[0])).await.unwrap();
    let objects = keys(&store).await.into_iter().filter(|key| is_object_of("iot-lake-", key)).count();
    assert_eq!(objects, 4, "three batches of the first shard, of four days");
    let mut third = Worker::new(&store, 3, Trouble::None, 0);
    assert_eq!(third.claim(0).await.unwrap(), [((0, 0), Some(2.into())), ((0, 1), Some(1.into()))].into());
    assert_eq!(third.claim(1).await.unwrap(), [((1, 0), None), ((1, 1), None)].into());
}

#[tokio::test]
async fn a_partition_that_is_over_leaves_nothing_aside() {
    let store = Arc::new(InMemory::new());
    let mut worker = Worker::new(&store, 1, Trouble::None, 0);
    assert_eq!(worker.work().await, all_shards());
    let aside = async || keys(&store).await.into_iter().filter(|key| key.contains("_pipeline")).count();
    assert_eq!(aside().await, 2);
    for shard in SHARDS {
        assert!(worker.sink.forget(shard, &[]).await.unwrap());
        assert!(worker.sink.forget(shard, &[]).await.unwrap(), "again");
    }
    assert_eq!(aside().await, 0);
}

#[tokio::test]
async fn a_group_that_is_on_its_way_is_not_forgotten() {
    let store = Arc::new(InMemory::new());
    // Claim: read, swap, list. Group: set aside, swap, and no further.
    let mut worker = Worker::new(&store, 1, Trouble::EndsBefore(6), 0);
    let done = worker.claim(0).await.unwrap();
    let (batches, advances) = part(0, 1, &done, [1, 1]);
    worker.sink.write(&Group::advancing(batches, advances)).await.unwrap_err();
    let mut next = Worker::new(&store, 2, Trouble::None, 0);
    assert!(!next.sink.forget(SHARDS[0], &[]).await.unwrap());
    assert_eq!(next.claim(0).await.unwrap()[&(0, 0)], Some(1.into()), "finished by the claim");
    assert!(next.sink.forget(SHARDS[0], &[]).await.unwrap());
}

#[tokio::test]
async fn rows_without_positions_are_stored_beside_those_with() {
    let store = Arc::new(InMemory::new());
    let mut worker = Worker::new(&store, 1, Trouble::None, 0);
    let done = worker.claim(0).await.unwrap();
    let (mut batches, advances) = part(0, 1, &done, [1, 1]);
    let stray = Partition::new("telemetry/stray");
    batches.push(Batch::new(rows(&[500 * DAY_US]), stray.open(Span::new(1, 1), 7)));
    let group = Group::advancing(batches, advances);
    worker.sink.write(&group).await.unwrap();
    let mut objects = Objects::default();
    for key in keys(&store).await.into_iter().filter(|key| is_object_of("iot-lake-", key)) {
        let content = store.get(&key.as_str().into()).await.unwrap().bytes().await.unwrap();
        objects.add(&key, content).await;
    }
    let account = objects.account().unwrap();
    assert_eq!(account.rows_found, 2 * BATCH_ROWS as u64 + 1);
    assert_eq!(account.positions.len(), INPUTS.len());
    assert!(account.found_in.ends_with("1 of runs without checkpoints"), "{}", account.found_in);
}

#[tokio::test]
async fn what_is_set_aside_is_not_taken_on_trust() {
    let store = Arc::new(InMemory::new());
    let mut worker = Worker::new(&store, 1, Trouble::EndsBefore(6), 0);
    let done = worker.claim(0).await.unwrap();
    let (batches, advances) = part(0, 1, &done, [1, 1]);
    worker.sink.write(&Group::advancing(batches, advances)).await.unwrap_err();
    let file = keys(&store).await.into_iter().find(|key| key.contains("/staged/")).unwrap();
    let whole = store.get(&file.as_str().into()).await.unwrap().bytes().await.unwrap();
    let mut damaged = whole.to_vec();
    damaged[3] ^= 1;
    for (content, says) in [(Some(damaged), "its checksum is wrong"), (None, "it is gone")] {
        match content {
            Some(content) => drop(store.put(&file.as_str().into(), content.into()).await.unwrap()),
            None => store.delete(&file.as_str().into()).await.unwrap(),
        }
        let mut next = Worker::new(&store, 2, Trouble::None, 0);
        let error = next.sink.adopt(SHARDS[0], 2 + u64::from(says.contains("gone")), &[]).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.chain().contains(says), "{}", error.chain());
    }
    store.put(&file.as_str().into(), whole.into()).await.unwrap();
    let mut mended = Worker::new(&store, 9, Trouble::None, 0);
    assert_eq!(mended.claim(0).await.unwrap()[&(0, 0)], Some(1.into()));
}
