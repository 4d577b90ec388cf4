//! The spool against a map in memory, under random operations and faults.
//!
//! By default a few seconds. The long form, some ten minutes:
//! `PROPTEST_CASES=1000000 cargo test -p pipeline-engine --lib -- spool::tests::model::what`

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::super::log::Log;
use super::super::options::PlantedBug;
use super::super::reader::Walk;
use super::super::testing::SimulatedDisk;
use super::super::{cursors, frame, recovery};
use super::*;

const SINKS: [&str; 2] = ["one", "two"];

/// What is done to the spool, or to the disk under it.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Append {
        records: u8,
        payload_bytes: u16,
    },
    Flush,
    Read {
        frames: u8,
    },
    Advance {
        sink: usize,
        percent: u8,
    },
    Trim,
    /// As a writer out of room does it: the last segment may go too.
    TrimForRoom,
    FailSyncs(u32),
    FailWrites(u32),
    FillDisk {
        left_bytes: u16,
    },
    FreeDisk,
    FlipBit {
        file: usize,
        bit: usize,
    },
    /// The process dies in so many disk operations from now.
    DieWithin(u8),
    Close,
    Kill,
    CutPower,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1..6u8, 0..700u16).prop_map(|(records, payload_bytes)| Op::Append { records, payload_bytes }),
        8 => Just(Op::Flush),
        3 => (1..5u8).prop_map(|frames| Op::Read { frames }),
        3 => (0..2usize, 0..=100u8).prop_map(|(sink, percent)| Op::Advance { sink, percent }),
        3 => Just(Op::Trim),
        1 => Just(Op::TrimForRoom),
        1 => (1..4u32).prop_map(Op::FailSyncs),
        1 => (1..4u32).prop_map(Op::FailWrites),
        1 => (0..3000u16).prop_map(|left_bytes| Op::FillDisk { left_bytes }),
        2 => Just(Op::FreeDisk),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(file, bit)| Op::FlipBit { file, bit }),
        1 => (1..12u8).prop_map(Op::DieWithin),
        1 => Just(Op::Close),
        1 => Just(Op::Kill),
        2 => Just(Op::CutPower),
    ]
}

/// The spool, the disk, and what must be true of them.
pub(super) struct World {
    pub disk: SimulatedDisk,
    options: SpoolOptions,
    running: Option<Running>,
    /// Every record that was ever given to the disk, by lsn.
    attempted: BTreeMap<u64, Record>,
    /// Every record that was reported durable and is not excused.
    pub durable: BTreeMap<u64, Record>,
    highest_durable: u64,
    epoch: u64,
    /// Bits were flipped since the last start: only then may anything have been lost.
    flipped: bool,
    /// Bits were flipped: damage is reported again at each start.
    ever_flipped: bool,
    /// Trimming may have come up to here.
    trimmable_lsn: u64,
    numbers: u64,
    clock_us: i64,
}

struct Running {
    log: Log,
    walk: Walk,
    walked_lsn: u64,
    next_lsn: u64,
    buffered: Vec<Record>,
}

/// What is wrong with the spool.
pub(super) type Verdict = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(format!($($text)*));
        }
    };
}

impl World {
    pub fn new(seed: u64, planted: Option<PlantedBug>) -> Self {
        Self {
            disk: SimulatedDisk::new(seed),
            options: SpoolOptions { planted, ..small() },
            running: None,
            attempted: BTreeMap::new(),
            durable: BTreeMap::new(),
            highest_durable: 0,
            epoch: 0,
            flipped: false,
            ever_flipped: false,
            trimmable_lsn: 0,
            numbers: 0,
            clock_us: 0,
        }
    }

    pub fn run(&mut self, ops: &[Op]) -> Verdict {
        self.start()?;
        for op in ops {
            self.apply(op)?;
        }
        self.disk.cut_power();
        self.start()
    }

    pub fn apply(&mut self, op: &Op) -> Verdict {
        match *op {
            Op::Append { records, payload_bytes } => {
                for _ in 0..records {
                    self.numbers += 1;
                    let record = record(self.numbers, usize::from(payload_bytes));
                    self.running.as_mut().expect("running").buffered.push(record);
                }
            }
            Op::Flush => self.flush(),
            Op::Read { frames } => self.read(frames)?,
            Op::Advance { sink, percent } => {
                let log = &self.running.as_ref().expect("running").log;
                let lsn = log.shared().durable_lsn() * u64::from(percent) / 100;
                Cursors::new(log.shared().clone()).advance(SINKS[sink], lsn);
            }
            // An error leaves things as they were, to be tried again.
            Op::Trim | Op::TrimForRoom => {
                let shared = self.running.as_ref().expect("running").log.shared().clone();
                if matches!(op, Op::TrimForRoom) {
                    shared.cursors.request_room();
                }
                self.trimmable_lsn = self.trimmable_lsn.max(lowest_cursor(&Cursors::new(shared.clone()).all()));
                drop(cursors::trim(&shared, i64::MAX));
            }
            Op::FailSyncs(count) => self.disk.fail_syncs(count),
            Op::FailWrites(count) => self.disk.fail_writes(count),
            Op::FillDisk { left_bytes } => self.disk.set_capacity(self.disk.used_bytes() + u64::from(left_bytes)),
            Op::FreeDisk => self.disk.set_capacity(1 << 30),
            Op::FlipBit { file, bit } => self.flip(file, bit),
            Op::DieWithin(operations) => self.disk.stop_at(self.disk.operations() + u64::from(operations)),
            Op::Close => {
                let mut running = self.running.take().expect("running");
                running.log.close();
                drop(cursors::trim(running.log.shared(), 0));
                drop(running);
                self.disk.kill_process();
                self.start()?;
            }
            Op::Kill => {
                self.disk.kill_process();
                self.start()?;
            }
            Op::CutPower => {
                self.disk.cut_power();
                self.start()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) {
        let running = self.running.as_mut().expect("running");
        if running.log.in_flight().is_none() && !running.buffered.is_empty() {
            let records = std::mem::take(&mut running.buffered);
            let first_lsn = running.next_lsn;
            running.next_lsn += records.len() as u64;
            running.log.begin(frame::encode(&records, first_lsn, running.log.shared().identity));
            self.attempted.extend((first_lsn..).zip(records));
        }
        let Some(head) = running.log.in_flight().map(|frame| frame.head) else { return };
        if running.log.settle().is_ok() {
            let settled = self.attempted.range(head.first_lsn..=head.last_lsn());
            self.durable.extend(settled.map(|(lsn, record)| (*lsn, record.clone())));
            self.highest_durable = running.log.shared().durable_lsn();
        }
    }

    /// Goes on with the reader that tails the log.
    fn read(&mut self, frames: u8) -> Verdict {
        for _ in 0..frames {
            let running = self.running.as_mut().expect("running");
            // An error is a disk that has stopped.
            let Ok(Some(replay)) = running.walk.next() else { break };
            match replay {
                Replay::Lost(lsns) => {
                    let passed = lowest_cursor(&Cursors::new(running.log.shared().clone()).all());
                    let lost = self.durable.range(lsns.clone()).any(|(lsn, _)| *lsn > passed);
                    ensure!(self.flipped || !lost, "{lsns:?} lost without a flipped bit");
                    running.walked_lsn = *lsns.end();
                }
                Replay::Frame(frame) => {
                    let durable_lsn = running.log.shared().durable_lsn();
                    ensure!(frame.first_lsn > running.walked_lsn, "lsn {} came again or out of order", frame.first_lsn);
                    ensure!(frame.last_lsn() <= durable_lsn, "lsn {} was read before it was durable", frame.last_lsn());
                    running.walked_lsn = frame.last_lsn();
                    for (lsn, record) in (frame.first_lsn..).zip(frame.records) {
                        ensure!(self.durable.get(&lsn) == Some(&record), "lsn {lsn} reads {record:?}");
                    }
                }
            }
        }
        Ok(())
    }

    fn flip(&mut self, file: usize, bit: usize) {
        let files: Vec<_> = self.disk.files().into_iter().filter(|(_, bytes)| *bytes > 0).collect();
        if !files.is_empty() {
            let (path, bytes) = &files[file % files.len()];
            self.disk.flip_bit(path, bit % (bytes * 8));
            (self.flipped, self.ever_flipped) = (true, true);
        }
    }

    /// Opens the spool as it is on the disk now, and compares all of it with the model; once more if
    /// the process has died meanwhile.
    pub fn start(&mut self) -> Verdict {
        loop {
            self.running = None;
            match self.try_start() {
                Err(_) if self.disk.has_stopped() => self.disk.cut_power(),
                started => return started,
            }
        }
    }

    fn try_start(&mut self) -> Verdict {
        self.clock_us += 1;
        let opened = recovery::recover(dir(), self.options.clone(), self.disk.mount(), self.clock_us);
        let (mut log, report) = opened.map_err(|error| format!("the spool does not open: {error:?}"))?;
        if log.settle().is_err() {
            // Full: nothing is wrong with that, but the rest of the check wants the last frame.
            self.disk.set_capacity(1 << 30);
            cursors::trim(log.shared(), i64::MAX).map_err(|error| format!("trimming fails: {error}"))?;
            log.settle().map_err(|pause| format!("no way out of a pause: {pause:?}"))?;
        }
        let found = read_all(&log)?;
        self.compare(&log, &report, &found)?;
        for sink in SINKS {
            Cursors::new(log.shared().clone()).register(sink);
        }
        let walk = Walk::new(log.shared().clone(), 1);
        self.running = Some(Running { log, walk, walked_lsn: 0, next_lsn: report.next_lsn, buffered: Vec::new() });
        self.flipped = false;
        Ok(())
    }

    fn compare(&mut self, log: &Log, report: &RecoveryReport, found: &Found) -> Verdict {
        for (lsn, record) in &found.records {
            ensure!(self.attempted.get(lsn) == Some(record), "lsn {lsn} was never written as {record:?}");
        }
        let passed = lowest_cursor(&Cursors::new(log.shared().clone()).all());
        let passed = if report.cursors_damaged { self.trimmable_lsn } else { passed };
        let lost =
            |lsn: &u64| report.damage.iter().any(|damage| damage.lost.as_ref().is_some_and(|lost| lost.contains(lsn)));
        let torn = |lsn: &u64| report.torn_tail.as_ref().is_some_and(|torn| *lsn > torn.after_lsn);
        for lsn in self.durable.keys() {
            let reported = self.flipped && (lost(lsn) || torn(lsn));
            ensure!(
                found.records.contains_key(lsn) || *lsn <= passed || reported,
                "lsn {lsn} was durable and is silently absent: {report:?}"
            );
            let told = found.records.contains_key(lsn) || found.lost.iter().any(|lost| lost.contains(lsn));
            // With the cursors and all segments gone, nobody knows that there ever was something.
            let forgotten = report.cursors_damaged && *lsn <= passed;
            ensure!(
                told || torn(lsn) || forgotten,
                "the reader passes over lsn {lsn} in silence: {:?} {report:?}",
                found.lost
            );
        }
        ensure!(self.ever_flipped || report.is_sound(), "damage without a flipped bit: {report:?}");
        let epoch = log.shared().epoch;
        if epoch != self.epoch && self.highest_durable > 0 {
            // Only when every place that knows it is destroyed: a new life, in which lsns may come
            // again since the epoch is a later one.
            let bad_headers = report.damage.iter().filter(|damage| damage.kind == DamageKind::BadHeader).count();
            let forgotten = report.cursors_damaged && bad_headers == report.segments;
            ensure!(epoch > self.epoch && forgotten, "epoch {epoch} after {}: {report:?}", self.epoch);
            (self.highest_durable, self.trimmable_lsn) = (0, 0);
        }
        ensure!(report.next_lsn > self.highest_durable, "lsn {} may be known to a sink: {report:?}", report.next_lsn);
        ensure!(found.records.keys().all(|lsn| *lsn < report.next_lsn), "a held lsn is given again: {report:?}");
        self.epoch = epoch;
        self.durable = found.records.clone();
        self.highest_durable = self.highest_durable.max(log.shared().durable_lsn());
        Ok(())
    }
}

struct Found {
    records: BTreeMap<u64, Record>,
    lost: Vec<RangeInclusive<u64>>,
}

fn read_all(log: &Log) -> Result<Found, String> {
    let mut walk = Walk::new(log.shared().clone(), 1);
    let mut found = Found { records: BTreeMap::new(), lost: Vec::new() };
    let mut before = 0;
    while let Some(replay) = walk.next().map_err(|error| format!("reading fails: {error:?}"))? {
        let (first, last) = match &replay {
            Replay::Frame(frame) => (frame.first_lsn, frame.last_lsn()),
            Replay::Lost(lsns) => (*lsns.start(), *lsns.end()),
        };
        ensure!(before < first && first <= last, "{replay:?} after {before}");
        before = last;
        match replay {
            Replay::Frame(frame) => found.records.extend((frame.first_lsn..).zip(frame.records)),
            Replay::Lost(lsns) => found.lost.push(lsns),
        }
    }
    Ok(found)
}

fn lowest_cursor(cursors: &BTreeMap<String, u64>) -> u64 {
    cursors.values().copied().min().unwrap_or(0)
}

fn any_run() -> impl Strategy<Value = (u64, Vec<Op>)> {
    (any::<u64>(), proptest::collection::vec(any_op(), 1..60))
}

fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    TestRunner::new(config)
}

#[test]
fn what_was_durable_is_there_or_reported_whatever_happens() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(20_000);
    let outcome =
        runner(cases).run(&any_run(), |(seed, ops)| World::new(seed, None).run(&ops).map_err(TestCaseError::fail));
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// A model test that finds nothing proves nothing.
fn assert_found(planted: Option<PlantedBug>, prepare: fn(&SimulatedDisk), complaints: &[&str]) {
    let config = Config { cases: 3_000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&any_run(), |(seed, ops)| {
        let mut world = World::new(seed, planted);
        prepare(&world.disk);
        world.run(&ops).map_err(TestCaseError::fail)
    });
    let failure = outcome.expect_err("the planted mistake must be found").to_string();
    assert!(complaints.iter().any(|complaint| failure.contains(complaint)), "found for another reason: {failure}");
}

#[test]
fn a_notice_before_the_sync_is_found() {
    assert_found(Some(PlantedBug::DurableBeforeSync), |_| {}, &["silently absent"]);
}

#[test]
fn a_segment_deleted_before_its_cursor_is_durable_is_found() {
    assert_found(Some(PlantedBug::UnlinkBeforeCursor), |_| {}, &["silently absent", "damage without"]);
}

#[test]
fn a_failed_sync_tried_again_is_found() {
    assert_found(Some(PlantedBug::SyncTriedAgain), |_| {}, &["silently absent"]);
}

#[test]
fn a_name_that_is_not_synced_is_found() {
    assert_found(None, SimulatedDisk::forget_names, &["silently absent"]);
}
