//! Faults at every place there is: each byte of a small spool, each disk operation of a run.

use std::path::{Path, PathBuf};

use super::super::log::Log;
use super::super::reader::Walk;
use super::super::testing::SimulatedDisk;
use super::super::{cursors, frame, recovery, segment};
use super::model::{Op, World};
use super::*;
use crate::storage;

/// Frames of 3 records in several segments.
const FRAMES: u64 = 12;

fn written(closed: bool) -> SimulatedDisk {
    let disk = SimulatedDisk::new(1);
    let options = SpoolOptions { segment_bytes: 900, ..small() };
    let (mut log, _) = recovery::recover(dir(), options, disk.mount(), 1).expect("an empty directory opens");
    for number in 0..FRAMES {
        let records = [record(number * 3, 40), record(number * 3 + 1, 0), record(number * 3 + 2, 90)];
        log.begin(frame::encode(&records, number * 3 + 1, log.shared().identity));
        log.settle().expect("nothing fails");
    }
    Cursors::new(log.shared().clone()).advance("one", 2);
    cursors::trim(log.shared(), 0).expect("nothing fails");
    if closed {
        log.close();
    }
    drop(log);
    disk.kill_process();
    disk
}

fn segments(disk: &SimulatedDisk) -> Vec<(PathBuf, usize)> {
    disk.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|extension| extension == "seg")).collect()
}

fn open(disk: &SimulatedDisk, place: &str) -> (Log, RecoveryReport) {
    let opened = recovery::recover(dir(), small(), disk.mount(), 1);
    let (mut log, report) = opened.unwrap_or_else(|error| panic!("{place}: {error:?}"));
    log.settle().unwrap_or_else(|pause| panic!("{place}: {pause:?}"));
    (log, report)
}

/// The numbers of the frames that can still be read; the rest must be reported.
fn frames_left(disk: &SimulatedDisk, place: &str) -> Vec<u64> {
    let (log, report) = open(disk, place);
    let mut walk = Walk::new(log.shared().clone(), 1);
    let (mut left, mut expected) = (Vec::new(), 1);
    let reported =
        |lsn| report.damage.iter().any(|damage| damage.lost.as_ref().is_some_and(|lost| lost.contains(&lsn)));
    while let Some(replay) = walk.next().expect("the disk reads") {
        match replay {
            Replay::Frame(frame) => {
                assert_eq!(frame.first_lsn, expected, "{place}: a gap in silence");
                assert_eq!(frame.records.len(), 3, "{place}");
                expected += 3;
                left.push((frame.first_lsn - 1) / 3);
            }
            Replay::Lost(lsns) => {
                assert_eq!(*lsns.start(), expected, "{place}");
                assert!(reported(*lsns.start()), "{place}: {lsns:?} is not in the report");
                expected = lsns.end() + 1;
            }
        }
    }
    let torn = report.torn_tail.as_ref().is_some_and(|torn| expected > torn.after_lsn);
    assert!(expected > FRAMES * 3 || torn || reported(expected), "{place}: lsn {expected} is silently absent");
    assert!(report.next_lsn > FRAMES * 3, "{place}: an lsn is given again");
    left
}

#[test]
fn a_flipped_bit_costs_its_own_frame_at_most() {
    for closed in [false, true] {
        let disk = written(closed);
        for (path, bytes) in segments(&disk) {
            for byte in 0..bytes {
                let place = format!("{} byte {byte}, closed: {closed}", path.display());
                let damaged = disk.copy(byte as u64);
                damaged.flip_bit(&path, byte * 8 + byte % 8);
                let left = frames_left(&damaged, &place);
                assert!(left.len() as u64 >= FRAMES - 1, "{place}: only {left:?} are left");
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_the_cursors_is_noticed() {
    let disk = written(false);
    let path = dir().join("cursors");
    let bytes = disk.files().into_iter().find(|(name, _)| *name == path).expect("cursors are there").1;
    for byte in 0..bytes {
        let damaged = disk.copy(byte as u64);
        damaged.flip_bit(&path, byte * 8);
        let (log, report) = open(&damaged, &format!("byte {byte}"));
        assert!(report.cursors_damaged, "byte {byte}");
        assert!(Cursors::new(log.shared().clone()).all().is_empty());
    }
}

#[test]
fn cursors_of_another_life_delete_nothing() {
    let disk = written(false);
    let stranger = cursors::CursorFile { epoch: 99, trimmed_lsn: 30, next_lsn: 31, ..Default::default() };
    let storage = disk.mount();
    storage::replace(&*storage, dir(), "cursors", &[&stranger.encode()]).expect("nothing fails");
    let (log, report) = open(&disk, "stranger");
    assert!(report.cursors_damaged && report.damage.is_empty(), "{report:?}");
    assert_eq!((log.shared().epoch, segments(&disk)[0].0.clone()), (1, dir().join(segment::segment_name(1))));
}

#[test]
fn a_segment_cut_short_at_any_byte_keeps_what_is_before() {
    for closed in [false, true] {
        let disk = written(closed);
        for (path, bytes) in segments(&disk) {
            let (_, report) = open(&disk.copy(0), "undamaged");
            assert!(report.is_sound() && report.torn_tail.is_none(), "{report:?}");
            for keep in 0..bytes {
                let place = format!("{} cut to {keep}, closed: {closed}", path.display());
                let damaged = disk.copy(keep as u64);
                damaged.truncate(&path, keep);
                let first_lsn: u64 = name_of(&path)[..20].parse().expect("an lsn");
                let left = frames_left_or_cut(&damaged, &place);
                assert!(left.len() as u64 >= (first_lsn - 1) / 3, "{place}: {left:?}");
            }
        }
    }
}

/// A cut at a frame's end, in the last segment, can't be told from frames that never were.
fn frames_left_or_cut(disk: &SimulatedDisk, place: &str) -> Vec<u64> {
    let (log, _) = open(&disk.copy(0), place);
    let last_held = log.shared().durable_lsn();
    let mut walk = Walk::new(log.shared().clone(), 1);
    let mut left = Vec::new();
    let mut before = 0;
    while let Some(replay) = walk.next().expect("the disk reads") {
        match replay {
            Replay::Frame(frame) => {
                assert_eq!(frame.first_lsn, before + 1, "{place}: a gap in silence");
                before = frame.last_lsn();
                left.push((frame.first_lsn - 1) / 3);
            }
            Replay::Lost(lsns) => {
                assert_eq!(*lsns.start(), before + 1, "{place}: a gap in silence");
                before = *lsns.end();
            }
        }
    }
    assert_eq!(before, last_held, "{place}");
    left
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a name")
}

#[test]
fn a_lost_segment_is_reported() {
    let disk = written(false);
    let segments = segments(&disk);
    assert!(segments.len() > 3, "{segments:?}");
    for (path, _) in &segments[..segments.len() - 1] {
        let damaged = disk.copy(0);
        damaged.lose_file(path);
        let left = frames_left(&damaged, name_of(path));
        assert!(left.len() as u64 <= FRAMES - 2 && !left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_payload_that_looks_like_a_frame_is_no_frame_in_the_midst_of_damage() {
    let disk = SimulatedDisk::new(1);
    let (mut log, _) = open(&disk, "empty");
    let identity = log.shared().identity;
    let inner = frame::encode(&[record(666, 0)], 1_000_000, identity);
    let outer = Record { payload: inner.bytes.into(), ..record(1, 0) };
    for (lsn, record) in [(1, outer), (2, record(2, 0))] {
        log.begin(frame::encode(&[record], lsn, identity));
        log.settle().expect("nothing fails");
    }
    drop(log);
    disk.kill_process();
    disk.flip_bit(&segments(&disk)[0].0, segment::HEADER_BYTES * 8);
    let (_, report) = open(&disk, "damaged");
    assert_eq!((report.damage[0].lost.clone(), report.next_lsn), (Some(1..=1), 3));
}

#[test]
fn the_same_damage_is_reported_as_known_the_next_time() {
    let disk = written(false);
    let path = segments(&disk)[1].0.clone();
    disk.flip_bit(&path, 100 * 8);
    let known = |disk: &SimulatedDisk| {
        let (_, report) = open(disk, "twice");
        disk.kill_process();
        let [damage] = &report.damage[..] else { panic!("{report:?}") };
        let copy = damage.quarantined.as_ref().expect("there is room");
        assert!(
            disk.files().iter().any(|(path, bytes)| path.ends_with(copy) && *bytes as u64 == damage.bytes),
            "{copy}"
        );
        damage.known
    };
    assert_eq!([known(&disk), known(&disk)], [false, true]);
}

/// Everything a spool does, so that each of its disk operations is the last one once.
fn script() -> Vec<Op> {
    let mut ops = Vec::new();
    for round in 0..14 {
        for _ in 0..3 {
            ops.extend([Op::Append { records: 3, payload_bytes: 350 }, Op::Flush]);
        }
        ops.extend([Op::Read { frames: 2 }, Op::Advance { sink: round % 2, percent: 60 }, Op::Trim]);
        match round % 7 {
            2 => ops.extend([Op::FailSyncs(1), Op::Append { records: 2, payload_bytes: 100 }, Op::Flush]),
            4 => ops.extend([Op::FailWrites(2), Op::Append { records: 2, payload_bytes: 100 }, Op::Flush, Op::Flush]),
            5 => ops.push(Op::Close),
            6 => ops.push(Op::Kill),
            _ => {}
        }
    }
    ops
}

#[test]
fn the_process_or_the_power_may_end_at_any_disk_operation() {
    let mut whole = World::new(0, None);
    whole.run(&script()).expect("nothing fails");
    let operations = whole.disk.operations();
    assert!(operations > 300, "{operations} operations are no great test");
    for operation in 1..=operations {
        for power in [false, true] {
            let mut world = World::new(operation, None);
            world.disk.stop_at(operation);
            let place = |complaint| panic!("operation {operation}, power: {power}: {complaint}");
            world.start().unwrap_or_else(place);
            for op in script() {
                if world.disk.operations() >= operation {
                    break;
                }
                world.apply(&op).unwrap_or_else(place);
            }
            if power {
                world.disk.cut_power()
            } else {
                world.disk.kill_process()
            }
            world.start().unwrap_or_else(place);
            // What the page cache still showed must have become durable by now.
            world.disk.cut_power();
            world.start().unwrap_or_else(place);
        }
    }
}
