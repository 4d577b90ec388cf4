//! Whole runs in a simulated world, in virtual time, with everything drawn from one seed: brokers that
//! lose connections and sessions, a disk that tears, fails and fills up, sinks that are away, slow, or
//! don't say what became of a commit, and a process that is killed at any step.
//!
//! A seed that fails says what is wrong and how to see it again; the same seed gives the same run:
//!
//! ```sh
//! SIMULATION_SEED=123 cargo test --workspace --lib simulation::whatever -- --nocapture  # one seed, with all that happens
//! SIMULATION_SEEDS=100000 cargo test --workspace --lib simulation::whatever
//! ```
//!
//! | file | what is in it |
//! |---|---|
//! | `climate` | what a seed draws |
//! | `world`, `broker` | the outside, which outlives the process |
//! | `source`, `windows`, `table`, `lake` | the stages |
//! | `life` | the lives of the process |
//! | `invariants` | what must hold |
//! | `planted` | mistakes made on purpose, each of which must be found |
//! | `trace` | what happened |

mod broker;
mod climate;
mod invariants;
mod lake;
mod life;
mod planted;
mod source;
mod table;
mod trace;
mod windows;
mod world;

use std::ops::{AddAssign, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use invariants::{Invariant, Violation};
use planted::Bug;
use trace::{Entry, Event};
use world::World;

use crate::simulated::Simulated;

/// How many seeds run by default.
const SEEDS: u64 = 2_000;
/// So many seeds that fail say enough.
const FAILED_MAX: usize = 10;

/// What came of a seed.
struct Outcome {
    violations: Vec<Violation>,
    trace: Vec<Entry>,
    took: Duration,
}

fn simulate(seed: u64, bug: Option<Bug>) -> Outcome {
    // Rows that wait for slow sinks are in real files: in memory where that is to be had.
    let home = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let _simulated = Simulated::enter(seed, bug.and_then(Bug::of_engine));
        let world = Arc::new(World::new(seed, bug));
        life::live(&world, home.path()).await;
        Outcome { violations: world.violations(), took: world.trace.now(), trace: world.trace.take() }
    })
}

/// What happened in all seeds.
#[derive(Debug, Default)]
struct Figures {
    seeds: u64,
    published: u64,
    lives: u64,
    kills: u64,
    power_cuts: u64,
    connections_cut: u64,
    sessions_lost: u64,
    redelivered: u64,
    disk_faults: u64,
    sink_faults: u64,
    checkpoints: u64,
    virtual_time: Duration,
}

impl AddAssign<&Outcome> for Figures {
    fn add_assign(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.virtual_time += outcome.took;
        for entry in &outcome.trace {
            let count = match &entry.event {
                Event::Published { .. } => &mut self.published,
                Event::Started { .. } => &mut self.lives,
                Event::Died { how: "power cut" } => &mut self.power_cuts,
                Event::Died { .. } => &mut self.kills,
                Event::Cut { .. } => &mut self.connections_cut,
                Event::SessionLost { .. } => &mut self.sessions_lost,
                Event::Recognised { .. } => &mut self.redelivered,
                Event::Disk { .. } => &mut self.disk_faults,
                Event::Faulted { .. } => &mut self.sink_faults,
                Event::Checkpointed { source: 0, .. } => &mut self.checkpoints,
                _ => continue,
            };
            *count += 1;
        }
    }
}

/// A number from the environment.
fn asked_for(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: \"{text}\"")))
}

/// The seed with what is wrong, and how to see it again.
fn describe(seed: u64, violations: &[Violation]) -> String {
    let lines: Vec<_> = violations.iter().take(5).map(|violation| format!("  {violation}\n")).collect();
    let more = violations.len().saturating_sub(5);
    let more = if more > 0 { format!("  and {more} more\n") } else { String::new() };
    let again = format!("SIMULATION_SEED={seed} cargo test --workspace --lib simulation::whatever -- --nocapture");
    format!("seed {seed}:\n{}{more}  again: {again}\n", lines.concat())
}

/// Runs these seeds on all cores, as long as few have failed.
fn run(seeds: Range<u64>) -> (Figures, Vec<(u64, Vec<Violation>)>) {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut figures, mut failed) = (Figures::default(), Vec::new());
    std::thread::scope(|scope| {
        let (outcomes, come) = mpsc::channel();
        for _ in 0..threads {
            let outcomes = outcomes.clone();
            scope.spawn(|| {
                let outcomes = outcomes;
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds.end || outcomes.send((seed, simulate_caught(seed))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(outcomes);
        for (seed, outcome) in come {
            figures += &outcome;
            if !outcome.violations.is_empty() {
                failed.push((seed, outcome.violations));
            }
            if failed.len() >= FAILED_MAX {
                break;
            }
        }
    });
    failed.sort_by_key(|(seed, _)| *seed);
    (figures, failed)
}

/// A panic of the simulation is a violation too: it must not hide which seed it was.
fn simulate_caught(seed: u64) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| simulate(seed, None))).unwrap_or_else(|_| Outcome {
        violations: vec![Violation { invariant: Invariant::NoMistakeOfItsOwn, how: "it panics".to_owned() }],
        trace: Vec::new(),
        took: Duration::ZERO,
    })
}

#[test]
fn whatever_happens_each_message_is_stored_once() {
    if let Some(seed) = asked_for("SIMULATION_SEED") {
        let outcome = simulate(seed, None);
        outcome.trace.iter().for_each(|entry| println!("{entry}"));
        assert!(outcome.violations.is_empty(), "{}", describe(seed, &outcome.violations));
        return;
    }
    let (figures, failed) = run(0..asked_for("SIMULATION_SEEDS").unwrap_or(SEEDS));
    println!("{figures:#?}");
    let described: String = failed.iter().map(|(seed, violations)| describe(*seed, violations)).collect();
    assert!(failed.is_empty(), "\n{described}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..50 {
        let [first, second] = [(); 2].map(|()| simulate(seed, None).trace);
        let differs = first.iter().zip(&second).position(|(one, other)| one != other);
        if let Some(at) = differs {
            panic!("seed {seed} differs at event {at}:\n{}\n{}", first[at], second[at]);
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

#[test]
fn a_seed_that_fails_says_what_is_wrong_and_how_to_see_it_again() {
    let violation = |how: &str| Violation { invariant: Invariant::NothingLost, how: how.to_owned() };
    let described = describe(4711, &Vec::from_iter((0..8).map(|number| violation(&format!("message {number}")))));
    assert!(described.starts_with("seed 4711:\n  NothingLost: message 0\n"), "{described}");
    assert!(described.contains("  and 3 more\n"), "{described}");
    assert!(described.contains("SIMULATION_SEED=4711 cargo test"), "{described}");
}
