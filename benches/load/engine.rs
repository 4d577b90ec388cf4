//! The engine alone: JSON lines in memory, decoded, validated, enriched, scored, discarded; beside the decoder by itself.

use std::hint::black_box;
use std::time::Instant;

use crate::in_memory::{Scoring, ZSCORE};
use crate::table::{Line, Target};
use crate::{Options, fleet, in_memory};

/// Some seconds of work: what starting costs, and what the machine does to others meanwhile, is little of that.
const BATCHES: u64 = 600;
const MESSAGES: u64 = BATCHES * in_memory::BATCH_ROWS;

pub fn measure(options: &Options) -> Vec<Line> {
    let folder = tempfile::tempdir().expect("a folder");
    let table = in_memory::devices(folder.path());
    let run_by = |workers: usize, how: Scoring| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let started = Instant::now();
        in_memory::run(&runtime, &table, BATCHES, how);
        MESSAGES as f64 / started.elapsed().as_secs_f64()
    };
    let run = |workers: usize| run_by(workers, ZSCORE);
    let (one, decoded) = crate::in_turns(options.rounds, || run(1), decode_only);
    let (two, one_again) = crate::in_turns(options.rounds, || run(2), || run(1));
    // What the machine gives: its cores may share what they compute with, and always share the memory.
    let apart = || {
        std::thread::scope(|scope| [(); 2].map(|()| scope.spawn(|| run(1))).map(|one| one.join().expect("it runs")))
            .iter()
            .sum()
    };
    let (apart, one_beside) = crate::in_turns(options.rounds, apart, || run(1));
    // By the method that costs most, which is more than all before it together.
    let auto = |parts: u16| run_by(2, Scoring { method: "auto", parts });
    let (parts, whole) = crate::in_turns(options.rounds, || auto(2), || auto(1));
    vec![
        Line {
            path: "engine alone, one core".to_owned(),
            unit: "rows/s",
            ours: one,
            limit: decoded,
            // What 2 million rows/s are where the decoder alone makes 4.4.
            target: Target::Ratio(0.45),
            more: "JSON in memory, decode, validate, enrich, anomaly, discard; limit: the decoder alone".to_owned(),
        },
        Line {
            path: "engine alone, two cores to one".to_owned(),
            unit: "rows/s",
            ours: two,
            limit: one_again,
            target: Target::Ratio(1.8),
            more: "the limit here is one core".to_owned(),
        },
        Line {
            path: "two engines at once, a core each, to one".to_owned(),
            unit: "rows/s",
            ours: apart,
            limit: one_beside,
            target: Target::None,
            more: "they share nothing but the machine: as far as any program gets by its second core".to_owned(),
        },
        Line {
            path: "anomaly `auto` in two parts, to one".to_owned(),
            unit: "rows/s",
            ours: parts,
            limit: whole,
            target: Target::None,
            more: "two cores in both; devices dealt out by `partition` to two stages, or all in one".to_owned(),
        },
    ]
}

fn decode_only() -> f64 {
    let payloads: Vec<String> = (0..in_memory::BATCH_ROWS).map(in_memory::payload).collect();
    let mut decoder = fleet::decoder();
    let started = Instant::now();
    for _ in 0..BATCHES {
        black_box(fleet::decode(&mut decoder, payloads.iter().map(String::as_bytes)));
    }
    MESSAGES as f64 / started.elapsed().as_secs_f64()
}
