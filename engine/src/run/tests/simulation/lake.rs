//! A sink that lays objects into a store, each row in one of them: a group is staged on the local disk
//! before its object is created, under a name made of its content, and the position follows. And one
//! that is optional, and hangs.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use rand::RngExt;
use rand::rngs::StdRng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::climate::chance;
use super::planted::Bug;
use super::table::suffer;
use super::trace::Event;
use super::windows::rows_of;
use super::world::{Row, World};
use crate::blocking::off_the_runtime;
use crate::position::Position;
use crate::run::tests::DOC;
use crate::stage::*;
use crate::storage::{self, Storage};

const STAGED: &str = "staged";
const POSITIONS: &str = "positions";

/// The lake as a sink.
#[derive(Default, Deserialize, JsonSchema)]
pub(super) struct Lake {
    /// Which life of the process this is.
    pub life: usize,
    #[serde(skip)]
    pub dir: PathBuf,
    #[serde(skip)]
    pub storage: Option<Arc<dyn Storage>>,
    #[serde(skip)]
    pub world: Option<Arc<World>>,
}

impl SinkConfig for Lake {
    const DOC: StageDoc = DOC;

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        let world = self.world.expect("given");
        let grouping = Grouping {
            rows_max: world.climate.lake_rows_max,
            linger: world.climate.lake_linger,
            ..Grouping::default()
        };
        let rng = chance(world.seed, &format!("lake {}", self.life));
        let sink = Staging { world, rng, dir: self.dir, storage: self.storage.expect("given"), last: Known::default() };
        Ok(BuiltSink { sink: Box::new(sink), grouping, outputs: Vec::new() })
    }
}

struct Staging {
    world: Arc<World>,
    rng: StdRng,
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    last: Known,
}

/// What the journal holds, as on disk.
#[derive(Default)]
struct Known {
    positions: Positions,
    staged: Option<Staged>,
}

/// Input, partition, position.
type Positions = Vec<(String, String, [u64; 4])>;

/// A group on its way to the store.
#[derive(Clone, Serialize, Deserialize)]
struct Staged {
    to: Positions,
    rows: Vec<Row>,
}

#[async_trait]
impl Sink for Staging {
    async fn open(&mut self) -> Result<(), StageError> {
        suffer(&self.world, "lake", &mut self.rng).await?;
        let (storage, dir) = (self.storage.clone(), self.dir.clone());
        self.last = off_the_runtime(move || load(&*storage, dir)).await.expect("no panic").map_err(journal_failed)?;
        self.finish_staged().await
    }

    async fn committed(&mut self) -> Result<Vec<Committed>, StageError> {
        let entry = |(input, partition, words): &(String, String, [u64; 4])| Committed {
            input: input.clone(),
            partition: partition.clone(),
            position: Position(*words),
        };
        Ok(self.last.positions.iter().map(entry).collect())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        suffer(&self.world, "lake", &mut self.rng).await?;
        let mut to = self.last.positions.clone();
        for advance in group.advances() {
            to.retain(|(input, partition, _)| (input, partition) != (&advance.input, &advance.partition));
            to.push((advance.input.clone(), advance.partition.clone(), advance.to.0));
        }
        let is_new = self.last.staged.as_ref().is_none_or(|staged| staged.to != to);
        if is_new && self.last.positions == to {
            // The group before had come so far, and could not be taken off the journal.
            return Ok(());
        }
        if is_new {
            let rows: Vec<Row> = group.batches().iter().flat_map(|batch| rows_of(&batch.rows)).collect();
            let staged = Staged { to, rows };
            if !self.world.has(Bug::WallClockRotation) {
                self.keep(STAGED, serde_json::to_vec(&staged).expect("numbers and text")).await?;
                self.world.trace.note(Event::Staged { rows: staged.rows.len() });
            }
            self.last.staged = Some(staged);
        }
        self.finish_staged().await
    }
}

impl Staging {
    /// Creates the object of a group that is staged, and records how far that takes the sink.
    async fn finish_staged(&mut self) -> Result<(), StageError> {
        let Some(staged) = self.last.staged.clone() else { return Ok(()) };
        self.world.step().await;
        suffer(&self.world, "lake", &mut self.rng).await?;
        self.create(&staged.rows).await?;
        self.world.step().await;
        self.keep(POSITIONS, serde_json::to_vec(&staged.to).expect("numbers and text")).await?;
        self.last.positions = staged.to;
        self.last.staged = None;
        let (storage, path) = (self.storage.clone(), self.dir.join(STAGED));
        // If it stays, the next start finds an object that is there.
        drop(off_the_runtime(move || storage.remove(&path)).await.expect("no panic"));
        Ok(())
    }

    /// A conditional create, whose answer may get lost.
    async fn create(&mut self, rows: &[Row]) -> Result<(), StageError> {
        let name = if self.world.has(Bug::WallClockRotation) {
            format!("{}.rows", self.world.trace.now().as_millis())
        } else {
            let mut hasher = DefaultHasher::new();
            rows.hash(&mut hasher);
            format!("{:016x}.rows", hasher.finish())
        };
        let unknown = self.world.happens(&mut self.rng, self.world.climate.unknown);
        if unknown && self.rng.random() {
            return Err(StageError::transient("the request timed out before it came to the store"));
        }
        let mut store = self.world.store();
        let there = store.get(&name).map(|there| there == rows);
        if there == Some(false) {
            return Err(StageError::bug(format!("the object {name} is there with other rows")));
        }
        store.insert(name.clone(), rows.to_vec());
        drop(store);
        self.world.trace.note(Event::Created { object: name, rows: rows.len(), known: there.is_some() });
        if unknown {
            return Err(StageError::transient("the answer got lost"));
        }
        Ok(())
    }

    async fn keep(&self, file: &'static str, bytes: Vec<u8>) -> Result<(), StageError> {
        let (storage, dir) = (self.storage.clone(), self.dir.clone());
        let kept = off_the_runtime(move || {
            storage.create_dir(&dir)?;
            storage::replace(&*storage, &dir, file, &[&bytes]).map(drop)
        });
        kept.await.expect("no panic").map_err(journal_failed)
    }
}

fn journal_failed(error: std::io::Error) -> StageError {
    StageError::transient("the journal of the lake can't be used").because(error)
}

fn load(storage: &dyn Storage, dir: PathBuf) -> std::io::Result<Known> {
    let read = |file: &str| match storage::read_all(storage, &dir.join(file)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let positions: Option<Positions> = read(POSITIONS)?.map(|bytes| serde_json::from_slice(&bytes)).transpose()?;
    let staged: Option<Staged> = read(STAGED)?.map(|bytes| serde_json::from_slice(&bytes)).transpose()?;
    let positions = positions.unwrap_or_default();
    let staged = staged.filter(|staged| staged.to != positions);
    Ok(Known { positions, staged })
}

/// A sink that nothing depends on, and that does not always answer.
#[derive(Default, Deserialize, JsonSchema)]
pub(super) struct Tap {
    /// Which life of the process this is.
    pub life: usize,
    #[serde(skip)]
    pub world: Option<Arc<World>>,
}

impl SinkConfig for Tap {
    const DOC: StageDoc = DOC;

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        let world = self.world.expect("given");
        let rng = chance(world.seed, &format!("tap {}", self.life));
        Ok(BuiltSink { sink: Box::new(Hanging { world, rng }), grouping: Grouping::default(), outputs: Vec::new() })
    }
}

struct Hanging {
    world: Arc<World>,
    rng: StdRng,
}

#[async_trait]
impl Sink for Hanging {
    async fn open(&mut self) -> Result<(), StageError> {
        suffer(&self.world, "tap", &mut self.rng).await
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        suffer(&self.world, "tap", &mut self.rng).await?;
        if self.world.happens(&mut self.rng, self.world.climate.tap_hangs) {
            self.world.trace.note(Event::Faulted { sink: "tap", fault: "hangs" });
            tokio::time::sleep(Duration::from_secs(100_000)).await;
        }
        self.world.trace.note(Event::Committed { table: "tap", rows: group.rows(), known: false });
        Ok(())
    }
}
