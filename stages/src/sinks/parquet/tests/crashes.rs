//! The power goes, or the process is killed, at every step of the sink's work with disk and store,
//! and again at some step of the restart. Afterwards each row is in exactly one object.

use std::collections::BTreeSet;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use pipeline_engine::Position;
use pipeline_engine::spool::Storage;
use pipeline_engine::spool::testing::SimulatedDisk;
use pipeline_engine::stage::Advance;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::account::GroupText;
use super::format::{Origin, Packing, Written};
use super::*;

const STATE: &str = "data/lake";
const BATCHES: u64 = 7;
const BATCH_ROWS: i64 = 3;
/// Two inputs that carry the same positions: as a stage's main port and its `rejected`.
const INPUTS: [&str; 2] = ["valid", "valid.rejected"];

/// A store that outlives the process. Each step of it is one of the disk's operations, so that the
/// process can end before an object is created, and after it.
struct Shelf {
    objects: Objects,
    disk: Arc<dyn Storage>,
}

type Objects = Arc<Mutex<BTreeMap<String, Bytes>>>;

impl Shelf {
    fn step(&self) -> Result<(), StageError> {
        let stopped = |error| StageError::transient("the store did not answer").because(error);
        self.disk.free_space(Path::new(STATE)).map(drop).map_err(stopped)
    }
}

#[async_trait]
impl Store for Shelf {
    async fn open(&mut self) -> Result<Guard, StageError> {
        Ok(Guard::Store)
    }

    async fn create(&self, object: &Object) -> Result<(), StageError> {
        self.step()?;
        let mut objects = self.objects.lock().unwrap();
        let found = objects.entry(object.key.clone()).or_insert_with(|| object.content.clone());
        assert_eq!(*found, object.content);
        drop(objects);
        self.step()
    }
}

/// The rows of one position of one input: each with a time of its own, some of the next day.
fn batch(input: usize, position: u64) -> RecordBatch {
    let first = (position as i64 * INPUTS.len() as i64 + input as i64) * BATCH_ROWS;
    rows(&(first..first + BATCH_ROWS).map(|row| row * DAY_US / 4).collect::<Vec<_>>())
}

fn all_times() -> Vec<i64> {
    let first = BATCH_ROWS * INPUTS.len() as i64;
    (first..first * (BATCHES as i64 + 1)).map(|row| row * DAY_US / 4).collect()
}

/// What the engine does with a sink: opens it, asks how far it has come, and gives it the rest of the
/// input in groups that end by a clock, so each time elsewhere.
async fn run(sink: &mut Parquet, clock: &mut Pcg64Mcg) -> Result<(), StageError> {
    sink.open().await?;
    let committed = sink.committed().await?;
    let position = |input: &str| committed.iter().find(|entry| entry.input == input).map(|entry| entry.position);
    let mut done = INPUTS.map(position);
    let partition = Partition::new("telemetry/3f2a");
    while done.iter().any(|done| *done != Some(BATCHES.into())) {
        let (mut batches, mut advances) = (Vec::new(), Vec::new());
        for (index, input) in INPUTS.iter().enumerate() {
            let first = done[index].map_or(0, |done: Position| done.0[3]) + 1;
            let last = (first + clock.random_range(0..3)).min(BATCHES);
            for position in first..=last {
                let ack = partition.open(Span::new(position, position), 7);
                batches.push(Batch::new(batch(index, position), ack));
            }
            if first <= last {
                let (input, partition) = ((*input).to_owned(), "telemetry/3f2a".to_owned());
                advances.push(Advance { input, partition, from: done[index], to: last.into(), tenure: None });
                done[index] = Some(last.into());
            }
        }
        sink.write(&Group::advancing(batches, advances)).await?;
    }
    Ok(())
}

/// A machine with a disk, a store outside, and how its processes end.
struct Machine {
    disk: SimulatedDisk,
    objects: Objects,
    clock: Pcg64Mcg,
    power_cut: bool,
    form: Form,
}

impl Machine {
    fn new(seed: u64, power_cut: bool) -> Self {
        let clock = Pcg64Mcg::seed_from_u64(seed);
        // Both forms of an object: what makes it exactly one is not its content.
        let form =
            if seed.is_multiple_of(2) { Form::Parquet(Codec::UNCOMPRESSED) } else { Form::Json(Packing::Gzip(1)) };
        Self { disk: SimulatedDisk::new(seed), objects: Objects::default(), clock, power_cut, form }
    }

    /// Whether a process that ends at its `step`-th operation had come to the end of its work.
    async fn run_until(&mut self, step: u64) -> bool {
        self.disk.stop_at(self.disk.operations() + step);
        let finished = self.run_on().await;
        if self.power_cut {
            self.disk.cut_power()
        } else {
            self.disk.kill_process()
        }
        finished
    }

    async fn run_on(&mut self) -> bool {
        let disk = self.disk.mount();
        let shelf = Shelf { objects: self.objects.clone(), disk: disk.clone() };
        let mut sink = on(Box::new(shelf), Journal::new(disk, STATE.into()), self.form);
        match run(&mut sink, &mut self.clock).await {
            Ok(()) => true,
            Err(error) => {
                assert!(self.disk.has_stopped(), "{}", error.chain());
                false
            }
        }
    }

    fn check(&self) {
        let objects = self.objects.lock().unwrap();
        let mut times = Vec::new();
        // Of each group: how many rows it says, how many there are.
        let mut groups = BTreeMap::<GroupText, u64>::new();
        for (key, content) in objects.iter() {
            let (batches, origin) = Written::of(key).unwrap().read(content.clone(), &input()).unwrap();
            let Origin::Group(group) = origin else { panic!("\"{key}\" does not say of what group it is") };
            for rows in batches {
                *groups.entry(group.clone()).or_default() += rows.num_rows() as u64;
                times.extend_from_slice(rows.column(0).as_primitive::<TimestampMicrosecondType>().values());
            }
        }
        times.sort();
        assert_eq!(times, all_times(), "each row in exactly one object");
        assert!(groups.iter().all(|(group, there)| group.rows == *there), "{groups:?}");
        self.check_the_chain(groups.keys());
        let names: BTreeSet<_> = self.disk.files().into_iter().map(|(path, _)| path).collect();
        assert_eq!(names, BTreeSet::from([Path::new(STATE).join("positions")]), "nothing else stays");
    }

    /// The footers alone show that no group is missing: each goes on from the one before.
    fn check_the_chain<'a>(&self, groups: impl Iterator<Item = &'a GroupText>) {
        let mut spans = BTreeMap::<String, BTreeMap<u64, u64>>::new();
        for group in groups {
            for advance in &group.advances {
                let number = |text: Option<&str>| text.map_or(0, |text| text.parse().unwrap());
                let (from, to) = (number(advance.from.as_deref()), number(Some(&advance.to)));
                assert_eq!(spans.entry(advance.input.clone()).or_default().insert(from, to), None);
            }
        }
        for input in INPUTS {
            let ends = spans[input].iter().fold(0, |end, (from, to)| {
                assert_eq!(*from, end);
                *to
            });
            assert_eq!(ends, BATCHES);
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_each_row_in_exactly_one_object() {
    for (power_cut, seeds) in [(true, 0..4), (false, 4..6)] {
        for seed in seeds {
            let mut steps = 1;
            loop {
                let mut machine = Machine::new(seed, power_cut);
                let finished = machine.run_until(steps).await;
                assert!(machine.run_on().await, "seed {seed}, crash at step {steps}");
                machine.check();
                if finished {
                    break;
                }
                steps += 1;
            }
            assert!(steps > 40, "the sink's work has more steps than {steps}");
        }
    }
}

#[tokio::test]
async fn crashes_on_the_way_up_from_a_crash_change_nothing() {
    let mut choice = Pcg64Mcg::seed_from_u64(42);
    for seed in 100..300 {
        let mut machine = Machine::new(seed, choice.random());
        let mut crashes = Vec::new();
        // Short ones, so that most of them hit what opening does.
        for range in [1..90, 1..15, 1..8, 1..30] {
            crashes.push(choice.random_range(range));
            machine.run_until(crashes[crashes.len() - 1]).await;
        }
        assert!(machine.run_on().await, "seed {seed}, crashes at {crashes:?}");
        machine.check();
    }
}
