//! The lives of a process: started, ended at any moment, started again; and at last left in peace until
//! everything is where it belongs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::climate::{End, How, When};
use super::invariants::{self, Invariant};
use super::lake::{Lake, Tap};
use super::source::Spooled;
use super::table::Table;
use super::trace::Event;
use super::windows::Windows;
use super::world::World;
use crate::error::Fault;
use crate::plan::Plan;
use crate::report::Report;
use crate::run::{Run, RunError};
use crate::stats::RunStats;

/// How long all may take once nothing goes wrong any more. Waits between attempts are 30 s at most.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often it is looked how things are.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Lives through one seed. What is wrong then is in the world.
pub(super) async fn live(world: &Arc<World>, home: &Path) {
    let outside = [
        tokio::spawn(world.clone().publish_all(0)),
        tokio::spawn(world.clone().publish_all(1)),
        tokio::spawn(world.clone().trouble_disk()),
    ];
    let mut lives = Lives { world, home, count: 0 };
    for end in &world.climate.ends {
        lives.live_until(*end).await;
    }
    let finale = lives.live_to_the_end().await;
    if finale == Finale::Clean {
        let before = invariants::stored(world);
        lives.live_on().await;
        if invariants::stored(world) != before {
            world.violated(Invariant::CleanEndIsComplete, "a run after a clean end has stored something".to_owned());
        }
    }
    outside.iter().for_each(tokio::task::JoinHandle::abort);
    invariants::check_stored(world);
    if finale != Finale::GivenUp {
        invariants::check_complete(world);
    }
}

/// How it went in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finale {
    /// Everything is where it belongs, and the last run was stopped and ended well.
    Clean,
    /// The last run did not end well.
    Complete,
    /// Something is still missing, though nothing has gone wrong for long.
    TooLate,
    /// Enough is known of this seed.
    GivenUp,
}

/// Waits until everything is where it belongs.
async fn wait_for_all(world: &World) -> Finale {
    loop {
        if !world.violations().is_empty() {
            return Finale::GivenUp;
        }
        if world.is_calm() {
            let Some(missing) = invariants::missing(world) else { return Finale::Clean };
            if world.trace.now() > world.climate.calm_at + PATIENCE {
                let how = format!("{PATIENCE:?} after the last fault {missing}");
                world.violated(Invariant::ComesToAnEnd, how);
                return Finale::TooLate;
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

struct Lives<'a> {
    world: &'a Arc<World>,
    /// A real folder, for what may wait on disk before slow sinks.
    home: &'a Path,
    count: usize,
}

/// How a life has ended.
enum Ended {
    ByItself(Result<Report, RunError>),
    InTheMidst,
}

impl Lives<'_> {
    /// Lives until that end, or until all is calm.
    async fn live_until(&mut self, end: End) {
        let world = self.world.clone();
        if world.is_calm() || !world.violations().is_empty() {
            return;
        }
        world.die(end.when);
        let left = world.climate.calm_at.saturating_sub(world.trace.now());
        let at = match end.when {
            When::After(after) => after.min(left),
            _ => left,
        };
        let (stop, stopped) = oneshot::channel();
        let run = self.start(stopped);
        let death = async {
            let dies = async {
                tokio::select! {
                    biased;
                    () = world.died() => {}
                    () = world.disk.stopped() => {}
                    () = sleep(at) => {}
                }
            };
            dies.await;
            if end.how == How::Stop {
                stop.send(()).ok();
                // It ends by itself, unless the disk has gone from under it.
                sleep(world.climate.drain_timeout + PATIENCE).await;
            }
        };
        let ended = tokio::select! {
            biased;
            () = death => Ended::InTheMidst,
            ended = run => Ended::ByItself(ended),
        };
        self.bury(ended, end.how).await;
        sleep(end.down).await;
    }

    /// Lives on until everything is where it belongs, however often that takes, and stops then.
    async fn live_to_the_end(&mut self) -> Finale {
        let world = self.world.clone();
        loop {
            let (stop, stopped) = oneshot::channel();
            let run = self.start(stopped);
            tokio::pin!(run);
            let finale = tokio::select! {
                biased;
                finale = wait_for_all(&world) => finale,
                ended = &mut run => {
                    // It has failed for a reason that may pass.
                    self.bury(Ended::ByItself(ended), How::Stop).await;
                    sleep(LOOK_EVERY).await;
                    continue;
                }
            };
            if finale != Finale::Clean {
                self.bury(Ended::InTheMidst, How::Kill).await;
                return finale;
            }
            stop.send(()).ok();
            let ended = run.await;
            if let Ok(report) = &ended {
                invariants::check_report(&world, report);
            }
            let finale = if ended.is_ok() { Finale::Clean } else { Finale::Complete };
            self.bury(Ended::ByItself(ended), How::Stop).await;
            return finale;
        }
    }

    /// One more life, with nothing to do.
    async fn live_on(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let run = self.start(stopped);
        let stopping = async {
            sleep(Duration::from_secs(10)).await;
            stop.send(()).ok();
        };
        let (ended, ()) = tokio::join!(run, stopping);
        self.bury(Ended::ByItself(ended), How::Stop).await;
    }

    fn start(&mut self, stopped: oneshot::Receiver<()>) -> impl Future<Output = Result<Report, RunError>> + use<> {
        self.count += 1;
        let world = self.world.clone();
        world.trace.note(Event::Started { life: self.count });
        let run = pipeline(&world, self.count, self.home);
        let looks = look(world.clone(), run.stats());
        async move {
            let stop = async move {
                // Dropped means never.
                if stopped.await.is_err() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                biased;
                ended = run.until(stop) => ended,
                () = looks => unreachable!("it looks for ever"),
            }
        }
    }

    /// What is left of the process goes, and what that does to the disk.
    async fn bury(&mut self, ended: Ended, how: How) {
        match (&ended, how) {
            (Ended::InTheMidst, How::PowerCut) => {
                self.world.disk.cut_power();
                self.world.trace.note(Event::Died { how: "power cut" });
            }
            (Ended::InTheMidst, _) => {
                self.world.disk.kill_process();
                self.world.trace.note(Event::Died { how: "killed" });
            }
            (Ended::ByItself(outcome), _) => {
                // A process that has ended its run is not gone at once.
                sleep(Duration::from_millis(20)).await;
                self.world.disk.kill_process();
                let outcome = match outcome {
                    Ok(_) => "well".to_owned(),
                    // The folder has another name each time.
                    Err(error) => error.to_string().replace(&*self.home.to_string_lossy(), "HOME"),
                };
                self.world.trace.note(Event::Ended { outcome });
            }
        }
        if let Ended::ByItself(Err(RunError::Stage { error, .. })) = &ended
            && error.fault() == Fault::Bug
        {
            self.world.violated(Invariant::NoMistakeOfItsOwn, error.chain());
        }
        self.world.live();
        // Until the tasks of the process are gone.
        sleep(Duration::from_millis(1)).await;
    }
}

fn pipeline(world: &Arc<World>, life: usize, home: &Path) -> Run {
    let climate = &world.climate;
    let storage = world.disk.mount();
    let source =
        |broker: usize| Spooled { broker, dir: PathBuf::from(format!("/spool/{broker}")), world: Some(world.clone()) };
    let table = |name| Table { name, life, world: Some(world.clone()) };
    let lake = Lake { life, dir: "/lake".into(), storage: Some(storage.clone()), world: Some(world.clone()) };
    let plan = Plan::builder("simulation")
        .data_dir(home)
        .queue_rows(climate.queue_rows)
        .checkpoint_interval(climate.checkpoint_interval)
        .drain_timeout(climate.drain_timeout)
        .overflow_bytes_max(climate.overflow_bytes_max)
        .source("one", source(0))
        .source("two", source(1))
        .transform("windows", &["one", "two"], Windows::default())
        .sink("table", &["one", "two"], table("table"))
        .sink("lake", &["one", "two"], lake)
        .sink("rollups", &["windows"], table("rollups"))
        .sink("letters", &["one.rejected", "two.rejected", "table.rejected"], table("letters"))
        .sink("tap", &["one"], Tap { life, world: Some(world.clone()) })
        .optional("tap")
        .build()
        .expect("a valid plan");
    Run::new(plan).on_storage(storage)
}

/// Looks now and then whether every queue is within its bound.
async fn look(world: Arc<World>, stats: Arc<RunStats>) {
    loop {
        sleep(LOOK_EVERY).await;
        invariants::check_bounds(&world, &stats);
    }
}
