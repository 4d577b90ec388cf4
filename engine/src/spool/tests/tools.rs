//! What a person does to a spool from beside: look, verify, take the records out.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::spool::cursors::CursorFile;

/// A closed spool of so many records, each a frame of its own.
async fn filled(dir: &Path, records: u64) -> Inspection {
    let (spool, mut writer, _) = Spool::open(dir, small(), Arc::new(FsStorage)).expect("it opens");
    for number in 0..records {
        let lsn = writer.append(&record(number, 300)).await.expect("it is open");
        spool.durable().wait_for(|durable| *durable >= lsn).await.expect("the spool lives");
    }
    writer.close().await.expect("the disk is fine");
    drop(spool);
    verify(dir, &FsStorage).expect("it can be read")
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).expect("it is there");
    bytes[at] ^= 1;
    std::fs::write(file, bytes).expect("it can be written");
}

fn exported(dir: &Path, lsns: std::ops::RangeInclusive<u64>) -> (Vec<u64>, Inspection) {
    let mut found = Vec::new();
    let inspection = export(dir, &FsStorage, lsns, |exported| {
        assert_eq!(exported.record, record(exported.lsn - 1, 300));
        found.push(exported.lsn);
        ControlFlow::Continue(())
    });
    (found, inspection.expect("it can be read"))
}

#[tokio::test]
async fn all_that_is_undamaged_comes_out_and_the_rest_is_named() {
    let home = tempfile::tempdir().expect("a directory");
    let whole = filled(home.path(), 40).await;
    assert_eq!(exported(home.path(), 1..=u64::MAX).0, Vec::from_iter(1..=40));
    assert_eq!(exported(home.path(), 7..=9).0, [7, 8, 9]);

    flip(&home.path().join(&whole.segments[1].name), 100);
    let (found, inspection) = exported(home.path(), 1..=u64::MAX);
    let [damage] = &inspection.damage[..] else { panic!("{:?}", inspection.damage) };
    let lost = damage.lost.clone().expect("a record was hit");
    assert_eq!(found, Vec::from_iter((1..=40).filter(|lsn| !lost.contains(lsn))));
    let (segment, first) = (&whole.segments[1].name, lost.start());
    assert_eq!(lost.end(), first);
    let bytes = damage.bytes;
    let sentence =
        format!("{bytes} bytes at offset 64 of {segment} are damaged: 1 record is lost ({first} to {first})");
    assert_eq!(damage.to_string(), sentence);
    assert_eq!(inspection.segments[1].state, SegmentState::Damaged);
}

#[tokio::test]
async fn a_spool_without_any_header_is_known_by_its_place() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("p/s/spool");
    let whole = filled(&dir, 3).await;
    assert_eq!(whole.segments.len(), 1);
    flip(&dir.join(&whole.segments[0].name), 5);
    let (found, inspection) = exported(&dir, 1..=u64::MAX);
    assert_eq!(found, [1, 2, 3]);
    assert_eq!((inspection.damage[0].kind, inspection.records_lost), (DamageKind::BadHeader, 0));
}

#[tokio::test]
async fn an_export_ends_where_its_reader_does() {
    let home = tempfile::tempdir().expect("a directory");
    filled(home.path(), 40).await;
    let mut taken = 0;
    let take = |_| {
        taken += 1;
        if taken == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    export(home.path(), &FsStorage, 1..=u64::MAX, take).expect("it can be read");
    assert_eq!(taken, 5);
}

#[tokio::test]
async fn cursors_say_which_segments_are_still_needed() {
    let home = tempfile::tempdir().expect("a directory");
    filled(home.path(), 40).await;
    let retaining = SpoolOptions { retain: Duration::from_secs(3600), ..small() };
    let (spool, writer, _) = Spool::open(home.path(), retaining, Arc::new(FsStorage)).expect("it opens");
    let segments = inspect(home.path(), &FsStorage).expect("it can be read").segments;
    let (first, second) = (segments[0].lsns.clone().expect("records"), segments[1].lsns.clone().expect("records"));
    spool.cursors().register("slow");
    spool.cursors().advance("slow", *second.start());
    spool.cursors().register("fast");
    spool.cursors().advance("fast", 40);
    writer.close().await.expect("the disk is fine");
    drop(spool);
    let found = inspect(home.path(), &FsStorage).expect("it can be read");
    // Records of 1970 are older than any retention, so the first segment may be gone already.
    let states: Vec<_> = found.segments.iter().map(|segment| (segment.lsns.clone(), segment.state)).collect();
    assert!(!states.contains(&(Some(first.clone()), SegmentState::Needed)), "{states:?}");
    assert!(states.contains(&(Some(second.clone()), SegmentState::Needed)), "{states:?}");
    assert_eq!(states.last().map(|last| last.1), Some(SegmentState::Open));
    assert_eq!(found.lag_records(found.cursors["fast"]), 0);
    assert_eq!(found.lag_records(found.cursors["slow"]), 40 - second.start());
}

/// A filesystem on which the pipeline trims the first segment as soon as somebody has listed it.
#[derive(Debug)]
struct TrimsMeanwhile {
    first: String,
    last_lsn: u64,
    epoch: u64,
    before_listing: bool,
    done: AtomicBool,
}

impl TrimsMeanwhile {
    fn trim(&self, dir: &Path) {
        if dir.ends_with("quarantine") || self.done.swap(true, Ordering::Relaxed) {
            return;
        }
        let cursors = CursorFile { epoch: self.epoch, trimmed_lsn: self.last_lsn, ..CursorFile::default() };
        std::fs::write(dir.join("cursors"), cursors.encode()).expect("it can be written");
        std::fs::remove_file(dir.join(&self.first)).expect("it is there");
    }
}

impl Storage for TrimsMeanwhile {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        panic!("looking changes nothing: {}", dir.display())
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        panic!("looking changes nothing: {}", path.display())
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        FsStorage.open(path)
    }
    fn rename(&self, from: &Path, _: &Path) -> io::Result<()> {
        panic!("looking changes nothing: {}", from.display())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        panic!("looking changes nothing: {}", path.display())
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        if self.before_listing {
            self.trim(dir);
        }
        let names = FsStorage.list(dir);
        self.trim(dir);
        names
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        panic!("looking changes nothing: {}", dir.display())
    }
    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        FsStorage.free_space(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn StorageLock>> {
        panic!("looking takes no lock: {}", path.display())
    }
}

#[tokio::test]
async fn what_a_running_pipeline_trims_meanwhile_is_no_damage() {
    for before_listing in [true, false] {
        let home = tempfile::tempdir().expect("a directory");
        let whole = filled(home.path(), 40).await;
        // A cursors' file that has trimmed nothing: from it the first segment seems to be missing.
        let first = &whole.segments[0];
        let epoch = first.epoch.expect("an undamaged header");
        let cursors = CursorFile { epoch, ..CursorFile::default() };
        std::fs::write(home.path().join("cursors"), cursors.encode()).expect("it can be written");
        let last_lsn = *first.lsns.clone().expect("records").end();
        let done = AtomicBool::new(false);
        let storage = TrimsMeanwhile { first: first.name.clone(), last_lsn, epoch, before_listing, done };
        let found = verify(home.path(), &storage).expect("it can be read");
        assert!(found.is_sound(), "{:?}", found.damage);
        assert_eq!((found.records_lost, found.lsns), (0, Some(last_lsn + 1..=40)));
    }
}
