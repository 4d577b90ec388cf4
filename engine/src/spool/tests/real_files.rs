//! The spool on this machine's filesystem.

use super::*;

fn open(dir: &Path) -> Result<(Spool, SpoolWriter, RecoveryReport), SpoolError> {
    Spool::open(dir, small(), Arc::new(FsStorage))
}

async fn write(dir: &Path, numbers: std::ops::Range<u64>) {
    let (spool, mut writer, report) = open(dir).expect("it opens");
    assert!(report.is_sound(), "{report:?}");
    for number in numbers {
        let lsn = writer.append(&record(number, 300)).await.expect("it is open");
        // So that each record is a frame of its own.
        spool.durable().wait_for(|durable| *durable >= lsn).await.expect("the spool lives");
    }
    writer.close().await.expect("the disk is fine");
}

#[tokio::test]
async fn records_survive_a_new_start() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("not/yet/there");
    write(&dir, 0..40).await;
    write(&dir, 40..60).await;
    let (spool, writer, report) = open(&dir).expect("it opens");
    assert_eq!((report.durable_lsn, report.next_lsn), (60, 61));
    writer.close().await.expect("nothing to do");
    let (mut reader, mut payloads) = (spool.reader(1), Vec::new());
    while let Some(Replay::Frame(frame)) = reader.next().await.expect("the disk reads") {
        payloads.extend(frame.records.into_iter().map(|record| record.payload));
    }
    assert_eq!(payloads, Vec::from_iter((0..60).map(|number| record(number, 300).payload)));
}

#[tokio::test]
async fn a_second_process_is_told_to_stay_out() {
    let home = tempfile::tempdir().expect("a directory");
    let (spool, writer, _) = open(home.path()).expect("it opens");
    match open(home.path()).map(drop) {
        Err(error @ SpoolError::Locked { .. }) => {
            let dir = home.path().display();
            assert_eq!(error.to_string(), format!("the spool in \"{dir}\" is in use by another process"));
        }
        other => panic!("{other:?}"),
    }
    drop((spool, writer));
    open(home.path()).expect("the lock is gone with its owner");
}

#[tokio::test]
async fn the_spool_of_another_source_is_left_alone() {
    let home = tempfile::tempdir().expect("a directory");
    write(home.path(), 0..1).await;
    let other = SpoolOptions { source: "other".to_owned(), ..small() };
    match Spool::open(home.path(), other, Arc::new(FsStorage)).map(drop) {
        Err(SpoolError::Foreign { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn inspect_is_quick_and_verify_finds_damage_beside_a_running_spool() {
    let home = tempfile::tempdir().expect("a directory");
    write(home.path(), 0..40).await;
    let (spool, _writer, _) = open(home.path()).expect("it opens");
    let found = inspect(home.path(), &FsStorage).expect("it can be read");
    assert_eq!((found.lsns, found.oldest_received_at_us), (Some(1..=40), Some(1_000)));
    assert_eq!(found.bytes, spool.bytes());
    assert!(found.segments.len() > 2 && found.segments[0].counts.is_none(), "{:?}", found.segments);

    let whole = verify(home.path(), &FsStorage).expect("it can be read");
    assert!(whole.is_sound(), "{whole:?}");
    let records: u64 = whole.segments.iter().map(|segment| segment.counts.expect("all were read").records).sum();
    assert_eq!(records, 40);

    let first = home.path().join(&whole.segments[0].name);
    let mut bytes = std::fs::read(&first).expect("it is there");
    bytes[100] ^= 1;
    std::fs::write(&first, bytes).expect("it can be written");
    let damaged = verify(home.path(), &FsStorage).expect("it can be read");
    let [damage] = &damaged.damage[..] else { panic!("{:?}", damaged.damage) };
    assert_eq!((damage.kind, damage.offset), (DamageKind::BadFrames, 64));
    assert!(damage.lost.as_ref().is_some_and(|lost| *lost.start() == 1), "{damage:?}");
    assert!(inspect(home.path(), &FsStorage).expect("it can be read").is_sound(), "a quick look reads no old frames");
}

#[tokio::test]
async fn another_format_version_is_refused_with_its_number() {
    let home = tempfile::tempdir().expect("a directory");
    write(home.path(), 0..1).await;
    let path = home.path().join(segment::segment_name(1));
    let mut bytes = std::fs::read(&path).expect("it is there");
    bytes[8] = 9;
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, bytes).expect("it can be written");
    match open(home.path()).map(drop) {
        Err(SpoolError::Version { version: 9, .. }) => {}
        other => panic!("{other:?}"),
    }
}
