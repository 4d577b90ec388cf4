//! Stages that send each row one way or another, and what becomes of rows on their way when they are configured otherwise.

use tokio::time::timeout;

use super::resumed::{BATCHES, Ledger, Log, Outside};
use super::*;
use crate::spool::testing::SimulatedDisk;

const NEAR: Port = Port::new("near");
const FAR: Port = Port::new("far");

/// Numbers below a limit go by one port, the others by another.
#[derive(Clone, Deserialize, JsonSchema)]
struct Fork {
    limit: i64,
}

impl TransformConfig for Fork {
    const DOC: StageDoc = StageDoc { ports: &[("near", ""), ("far", "")], ..DOC };

    fn build(self, input: &SchemaRef, _: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let outputs = [NEAR, FAR].map(|port| (port, input.clone())).to_vec();
        Ok(BuiltTransform { transform: Box::new(self), outputs })
    }

    fn ways(&self) -> Vec<(String, String)> {
        [NEAR, FAR].map(|port| (port.name().to_owned(), self.limit.to_string())).to_vec()
    }
}

impl Transform for Fork {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let all = batch.rows.clone();
        let choose = |is_near: bool| {
            let numbers = all.column(0).as_primitive::<Int64Type>();
            let chosen = numbers.iter().map(|n| n.map(|n| (n < self.limit) == is_near)).collect();
            filter_record_batch(&all, &chosen)
        };
        let (near, far) = batch.split(choose(true)?, choose(false)?);
        out.emit_to(NEAR, near);
        out.emit_to(FAR, far);
        Ok(())
    }
}

/// A sink that stores nothing in the first run, and one that stores everything. The second run has another limit, or the same.
struct World {
    disk: SimulatedDisk,
    home: tempfile::TempDir,
    near: Arc<Mutex<Outside>>,
    far: Arc<Mutex<Outside>>,
}

impl World {
    fn run(&self, limit: i64, near_wait_ms: u64, far_input: &str) -> Run {
        let ledger =
            |wait_ms, outside: &Arc<Mutex<Outside>>| Ledger { wait_ms, outside: outside.clone(), ..Ledger::default() };
        let plan = Plan::builder("p")
            .data_dir(self.home.path())
            .checkpoint_interval(Duration::from_millis(3))
            .source("log", Log)
            .transform("fork", &["log"], Fork { limit })
            .transform("same", &["fork.far"], Table { failures: Arc::default() })
            .sink("near", &["fork.near"], ledger(near_wait_ms, &self.near))
            .sink("far", &[far_input], ledger(0, &self.far))
            .sink("other", &[if far_input == "same" { "fork.far" } else { "same" }], Memory::default())
            .build()
            .unwrap();
        Run::new(plan).on_storage(self.disk.mount())
    }

    /// What both sinks have after a run that is killed and one that is not.
    async fn after_two_runs(limits: [i64; 2], far_input: &str) -> (Vec<i64>, Vec<i64>) {
        let world = Self {
            disk: SimulatedDisk::new(1),
            home: tempfile::tempdir().expect("a folder"),
            near: Arc::default(),
            far: Arc::default(),
        };
        let hour_ms = 3_600_000;
        let first = world.run(limits[0], hour_ms, far_input).until(std::future::pending());
        timeout(Duration::from_secs(60), first).await.expect_err("a sink hangs");
        assert_eq!((world.near.lock().unwrap().rows.len(), world.far.lock().unwrap().rows.len()), (0, 300));
        world.disk.kill_process();
        world.run(limits[1], 0, far_input).until(std::future::pending()).await.unwrap();
        let rows = |outside: &Arc<Mutex<Outside>>| outside.lock().unwrap().rows.clone();
        (rows(&world.near), rows(&world.far))
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_goes_another_way_than_before_is_not_left_out_by_a_sink_that_is_ahead() {
    let all: Vec<i64> = (0..i64::try_from(BATCHES).unwrap() * 10).collect();
    for far_input in ["fork.far", "same"] {
        // All that was to be stored by the sink that hung is the other one's now.
        let (near, far) = World::after_two_runs([300, 0], far_input).await;
        assert!(near.is_empty(), "{far_input}: {near:?}");
        assert_eq!(far, [&all[300..], &all].concat(), "{far_input}: what had been on its way comes again");
    }
}

#[tokio::test(start_paused = true)]
async fn rows_that_go_the_same_way_as_before_are_stored_once() {
    let all: Vec<i64> = (0..i64::try_from(BATCHES).unwrap() * 10).collect();
    for far_input in ["fork.far", "same"] {
        let (near, far) = World::after_two_runs([300, 300], far_input).await;
        assert_eq!((near.as_slice(), far.as_slice()), (&all[..300], &all[300..]), "{far_input}");
    }
}
