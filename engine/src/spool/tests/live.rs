//! The spool as a source uses it: with its threads, on a simulated disk.

use std::future::Future;

use tokio::time::timeout;

use super::super::testing::SimulatedDisk;
use super::*;

/// Generous: the machine may be busy with other tests.
async fn soon<T>(what: &str, done: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), done).await.unwrap_or_else(|_| panic!("{what} does not happen"))
}

fn open(disk: &SimulatedDisk, options: SpoolOptions) -> (Spool, SpoolWriter) {
    let (spool, writer, report) = Spool::open(dir(), options, disk.mount()).expect("it opens");
    assert!(report.is_sound(), "{report:?}");
    (spool, writer)
}

async fn until_durable(spool: &Spool, lsn: u64) {
    soon("durability", spool.durable().wait_for(|durable| *durable >= lsn)).await.expect("the spool lives");
}

async fn until_paused(spool: &Spool, reason: PauseReason) {
    let paused = |status: &SpoolStatus| matches!(status, SpoolStatus::Paused(pause) if pause.reason == reason);
    soon("a pause", spool.status().wait_for(paused)).await.expect("the spool lives");
}

async fn until_running(spool: &Spool) {
    soon("the end of the pause", spool.status().wait_for(|status| *status == SpoolStatus::Running))
        .await
        .expect("it lives");
}

/// The numbers of so many records; nothing may be lost on the way.
async fn read(reader: &mut SpoolReader, records: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.len() < records {
        match soon("a frame", reader.next()).await.expect("the disk reads") {
            Some(Replay::Frame(frame)) => numbers.extend(frame.records.iter().map(number_of)),
            other => panic!("after {numbers:?}: {other:?}"),
        }
    }
    numbers
}

fn number_of(record: &Record) -> u64 {
    let text = std::str::from_utf8(&record.payload).expect("our own text");
    text.split(' ').nth(1).and_then(|number| number.parse().ok()).expect("our own number")
}

/// Appends records until one would have to wait.
fn fill(writer: &mut SpoolWriter, from: u64) -> u64 {
    (from..)
        .find(|number| writer.try_append(&record(*number, 200)).expect("it is open").is_none())
        .expect("it fills up")
}

#[tokio::test]
async fn readers_follow_what_becomes_durable_each_from_its_own_place() {
    let disk = SimulatedDisk::new(1);
    let (spool, mut writer) = open(&disk, small());
    let (mut early, mut late) = (spool.reader(1), spool.reader(8));
    for number in 1..=10 {
        assert_eq!(writer.append(&record(number, 0)).await.expect("it is open"), number);
        if number == 7 {
            // So that a frame begins at 8.
            until_durable(&spool, 7).await;
        }
    }
    assert_eq!(read(&mut early, 10).await, Vec::from_iter(1..=10));
    assert_eq!(read(&mut late, 3).await, [8, 9, 10]);
    writer.close().await.expect("the disk is fine");
    assert_eq!(early.next().await.expect("the disk reads"), None);
    assert_eq!(late.next().await.expect("the disk reads"), None);
}

#[tokio::test]
async fn a_full_disk_makes_appending_wait_and_passes_by_itself() {
    let disk = SimulatedDisk::new(2);
    let options = SpoolOptions { buffer_bytes_max: 4_000, ..small() };
    let (spool, mut writer) = open(&disk, options);
    let mut reader = spool.reader(1);
    disk.set_capacity(disk.used_bytes() + 100);
    writer.append(&record(0, 200)).await.expect("it is open");
    until_paused(&spool, PauseReason::DiskFull).await;
    let next = fill(&mut writer, 1);
    assert_eq!(*spool.durable().borrow(), 0);
    let waiting = record(next, 200);
    let appended = writer.append(&waiting);
    let freed = async {
        tokio::task::yield_now().await;
        disk.set_capacity(1 << 30);
    };
    let (lsn, ()) = soon("room", async { tokio::join!(appended, freed) }).await;
    assert_eq!(lsn.expect("it is open"), next + 1);
    assert_eq!(read(&mut reader, next as usize + 1).await, Vec::from_iter(0..=next));
    until_running(&spool).await;
    assert_eq!(spool.counters().pauses.get(), 1);
}

#[tokio::test]
async fn a_full_spool_goes_on_when_a_cursor_lets_go() {
    let disk = SimulatedDisk::new(3);
    let options =
        SpoolOptions { bytes_max: 8 << 10, buffer_bytes_max: 2_000, retain: Duration::from_secs(3600), ..small() };
    let (spool, mut writer) = open(&disk, options);
    let cursors = spool.cursors();
    cursors.register("sink");
    let mut reader = spool.reader(1);
    let mut number = 0;
    while *spool.status().borrow() == SpoolStatus::Running {
        number = fill(&mut writer, number);
        tokio::task::yield_now().await;
    }
    until_paused(&spool, PauseReason::SpoolFull).await;
    let durable = *spool.durable().borrow();
    assert!(disk.used_bytes() <= 9 << 10, "{}", disk.used_bytes());
    assert_eq!(read(&mut reader, durable as usize).await, Vec::from_iter(0..durable));
    // Although it is to be retained for an hour: taking in what is new comes first.
    cursors.advance("sink", durable);
    until_durable(&spool, durable + 1).await;
    assert!(spool.counters().segments_trimmed.get() > 0);
}

#[tokio::test]
async fn the_last_of_the_free_space_is_left_to_others() {
    let disk = SimulatedDisk::new(4);
    disk.set_capacity(100 << 10);
    let (spool, mut writer) = open(&disk, SpoolOptions { free_space_min: 1 << 20, ..small() });
    writer.append(&record(1, 0)).await.expect("it is open");
    until_paused(&spool, PauseReason::DiskFull).await;
    disk.set_capacity(2 << 20);
    until_durable(&spool, 1).await;
}

#[tokio::test]
async fn a_failed_sync_costs_a_segment_and_no_record() {
    let disk = SimulatedDisk::new(5);
    let (spool, mut writer) = open(&disk, small());
    writer.append(&record(1, 0)).await.expect("it is open");
    until_durable(&spool, 1).await;
    disk.fail_syncs(1);
    writer.append(&record(2, 0)).await.expect("it is open");
    until_durable(&spool, 2).await;
    assert_eq!(spool.counters().failures.get(), 1);
    assert_eq!(spool.counters().pauses.get(), 0, "the second attempt is at once");
    disk.cut_power();
    drop((spool, writer));
    let (spool, _writer) = open(&disk, small());
    assert_eq!(read(&mut spool.reader(1), 2).await, [1, 2]);
}

#[tokio::test]
async fn a_disk_that_goes_on_failing_pauses_the_spool_until_it_is_mended() {
    let disk = SimulatedDisk::new(6);
    let (spool, mut writer) = open(&disk, small());
    disk.fail_syncs(u32::MAX);
    writer.append(&record(1, 0)).await.expect("it is open");
    until_paused(&spool, PauseReason::DiskFailing).await;
    assert_eq!(*spool.durable().borrow(), 0);
    disk.fail_syncs(0);
    until_durable(&spool, 1).await;
    until_running(&spool).await;
}

#[tokio::test]
async fn closing_on_a_failing_disk_says_what_was_not_kept() {
    let disk = SimulatedDisk::new(7);
    let (_spool, mut writer) = open(&disk, small());
    disk.fail_syncs(u32::MAX);
    for number in 0..3 {
        writer.append(&record(number, 0)).await.expect("it is open");
    }
    match soon("the end", writer.close()).await {
        Err(SpoolError::Undurable { records: 3, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_group_is_committed_when_asked_for_or_full_and_else_lingers() {
    let disk = SimulatedDisk::new(8);
    let options = SpoolOptions { group_linger: Duration::from_secs(3600), group_records_max: 4, ..small() };
    let (spool, mut writer) = open(&disk, options);
    for number in 1..=4 {
        writer.append(&record(number, 0)).await.expect("it is open");
    }
    until_durable(&spool, 4).await;
    writer.append(&record(5, 0)).await.expect("it is open");
    writer.append(&record(6, 0)).await.expect("it is open");
    writer.flush();
    until_durable(&spool, 6).await;
    let mut reader = spool.reader(1);
    let mut frames = Vec::new();
    for _ in 0..2 {
        match reader.next().await.expect("the disk reads") {
            Some(Replay::Frame(frame)) => frames.push((frame.first_lsn, frame.records.len())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(frames, [(1, 4), (5, 2)]);
    writer.append(&record(7, 0)).await.expect("it is open");
    soon("the end", writer.close()).await.expect("an end does not linger");
    assert_eq!(read(&mut reader, 1).await, [7]);
}

#[tokio::test]
async fn a_reader_that_is_cancelled_loses_nothing() {
    let disk = SimulatedDisk::new(9);
    let (spool, mut writer) = open(&disk, SpoolOptions { group_records_max: 1, ..small() });
    let mut reader = spool.reader(1);
    let reading = async {
        let mut numbers = Vec::new();
        while numbers.len() < 50 {
            tokio::select! {
                biased;
                replay = reader.next() => match replay.expect("the disk reads") {
                    Some(Replay::Frame(frame)) => numbers.extend(frame.records.iter().map(number_of)),
                    other => panic!("{other:?}"),
                },
                () = tokio::task::yield_now() => {}
            }
        }
        numbers
    };
    let writing = async {
        for number in 0..50 {
            writer.append(&record(number, 0)).await.expect("it is open");
            tokio::task::yield_now().await;
        }
    };
    let (numbers, ()) = soon("reading", async { tokio::join!(reading, writing) }).await;
    assert_eq!(numbers, Vec::from_iter(0..50));
}

#[tokio::test]
async fn a_live_reader_says_what_it_can_not_read() {
    let disk = SimulatedDisk::new(10);
    let (spool, mut writer) = open(&disk, small());
    for number in 1..=3 {
        writer.append(&record(number, 0)).await.expect("it is open");
        until_durable(&spool, number).await;
    }
    let (path, bytes) = disk.files().into_iter().next().expect("one segment");
    // In the middle of three frames of one size.
    let header = segment::HEADER_BYTES;
    disk.flip_bit(&path, (header + (bytes - header) / 2) * 8);
    let mut reader = spool.reader(1);
    assert_eq!(read(&mut reader, 1).await, [1]);
    assert_eq!(reader.next().await.expect("the disk reads"), Some(Replay::Lost(2..=2)));
    assert_eq!(read(&mut reader, 1).await, [3]);
    assert_eq!(spool.counters().damage.get(), 1);
    assert!(disk.files().iter().any(|(path, _)| path.starts_with(dir().join("quarantine"))));
}

#[tokio::test]
async fn a_disk_that_is_away_for_a_while_damages_nothing() {
    let disk = SimulatedDisk::new(18);
    let (spool, mut writer) = open(&disk, small());
    for number in 1..=2 {
        writer.append(&record(number, 0)).await.expect("it is open");
        until_durable(&spool, number).await;
    }
    let mut reader = spool.reader(1);
    disk.fail_reads(u32::MAX);
    for _ in 0..3 {
        reader.next().await.expect_err("nothing can be read");
    }
    disk.fail_reads(0);
    assert_eq!(read(&mut reader, 2).await, [1, 2]);
    drop((spool, writer, reader));

    disk.fail_reads(u32::MAX);
    match Spool::open(dir(), small(), disk.mount()).map(drop) {
        Err(SpoolError::Io { what: "read", .. }) => {}
        other => panic!("{other:?}"),
    }
    disk.fail_reads(0);
    let (spool, _writer) = open(&disk, small());
    assert_eq!(read(&mut spool.reader(1), 2).await, [1, 2]);
}

#[tokio::test]
async fn what_stays_unreadable_is_given_up_in_the_end() {
    let disk = SimulatedDisk::new(19);
    let (spool, mut writer) = open(&disk, small());
    writer.append(&record(1, 0)).await.expect("it is open");
    until_durable(&spool, 1).await;
    let mut reader = spool.reader(1);
    disk.fail_reads(u32::MAX);
    let mut attempts = 1;
    while reader.next().await.is_err() {
        attempts += 1;
    }
    assert_eq!(attempts, 10);
}

#[tokio::test]
async fn a_reader_behind_the_trimmed_part_is_told() {
    let disk = SimulatedDisk::new(11);
    let (spool, mut writer) = open(&disk, SpoolOptions { group_records_max: 1, ..small() });
    for number in 1..=30 {
        writer.append(&record(number, 400)).await.expect("it is open");
    }
    until_durable(&spool, 30).await;
    let cursors = spool.cursors();
    cursors.advance("sink", 20);
    soon("trimming", async {
        while spool.counters().segments_trimmed.get() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let mut reader = spool.reader(1);
    let Some(Replay::Lost(lost)) = reader.next().await.expect("the disk reads") else { panic!("not told") };
    assert!(*lost.start() == 1 && *lost.end() <= 20, "{lost:?}");
    let left = Vec::from_iter(lost.end() + 1..=30);
    assert_eq!(read(&mut reader, left.len()).await, left);
}

#[tokio::test]
async fn receipt_times_never_go_back() {
    let disk = SimulatedDisk::new(12);
    let received = |at_us| Record { received_at_us: at_us, ..record(1, 0) };
    let (spool, mut writer) = open(&disk, small());
    for at_us in [50, 20, 70] {
        writer.append(&received(at_us)).await.expect("it is open");
    }
    writer.close().await.expect("the disk is fine");
    drop(spool);
    let (spool, mut writer) = open(&disk, small());
    writer.append(&received(60)).await.expect("it is open");
    writer.close().await.expect("the disk is fine");
    let (mut reader, mut times) = (spool.reader(1), Vec::new());
    while let Some(Replay::Frame(frame)) = reader.next().await.expect("the disk reads") {
        times.extend(frame.records.iter().map(|record| record.received_at_us));
    }
    assert_eq!(times, [50, 50, 70, 70]);
}

#[tokio::test]
async fn a_record_that_no_frame_holds_is_refused() {
    let (_spool, mut writer) = open(&SimulatedDisk::new(13), small());
    let large = Record { payload: vec![0; RECORD_BYTES_MAX].into(), ..record(1, 0) };
    match writer.append(&large).await {
        Err(SpoolError::RecordTooLarge { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(writer.append(&record(1, 0)).await.expect("the next one fits"), 1);
}

#[tokio::test]
async fn cursors_survive_and_hold_on_to_what_they_need() {
    let disk = SimulatedDisk::new(14);
    let (spool, mut writer) = open(&disk, small());
    for number in 1..=5 {
        writer.append(&record(number, 0)).await.expect("it is open");
    }
    writer.close().await.expect("the disk is fine");
    let cursors = spool.cursors();
    assert_eq!(cursors.register("new"), 0);
    cursors.advance("new", 3);
    cursors.advance("new", 2);
    cursors.advance("ahead", 99);
    cursors.register("gone");
    cursors.retire("gone");
    drop((spool, cursors));
    disk.cut_power();
    let (spool, _writer) = open(&disk, small());
    assert_eq!(Vec::from_iter(spool.cursors().all()), [("ahead".to_owned(), 5), ("new".to_owned(), 3)]);
    spool.cursors().rewind("new", 1);
    assert_eq!(spool.cursors().register("new"), 1);
}

#[tokio::test]
async fn a_spool_that_starts_from_nothing_has_a_later_epoch() {
    let (first, _writer) = open(&SimulatedDisk::new(15), small());
    let disk = SimulatedDisk::new(16);
    let (second, mut writer) = open(&disk, small());
    assert!(second.epoch() >= first.epoch() && first.epoch() > 0);
    writer.append(&record(1, 0)).await.expect("it is open");
    writer.close().await.expect("the disk is fine");
    let epoch = second.epoch();
    drop(second);
    assert_eq!(open(&disk, small()).0.epoch(), epoch);
}

#[tokio::test]
async fn a_long_backlog_does_not_hold_up_the_start() {
    let disk = SimulatedDisk::new(17);
    let (spool, mut writer) = open(&disk, SpoolOptions { group_records_max: 2, ..small() });
    for number in 0..60 {
        writer.append(&record(number, 400)).await.expect("it is open");
    }
    writer.close().await.expect("the disk is fine");
    drop(spool);
    let quick = SpoolOptions { scan_bytes_max: 0, ..small() };
    let (spool, _writer, report) = Spool::open(dir(), quick, disk.mount()).expect("it opens");
    assert!(report.bytes_unscanned > report.bytes / 2, "{report:?}");
    assert_eq!(report.durable_lsn, 60);
    assert_eq!(read(&mut spool.reader(1), 60).await, Vec::from_iter(0..60));
}

#[tokio::test]
async fn a_disk_that_fails_for_a_moment_while_a_spool_opens_damages_nothing() {
    let disk = SimulatedDisk::new(20);
    let (spool, mut writer) = open(&disk, small());
    writer.append(&record(1, 0)).await.expect("it is open");
    until_durable(&spool, 1).await;
    let cursors = spool.cursors();
    cursors.advance("sink", 1);
    let epoch = spool.epoch();
    drop((spool, writer, cursors));
    // Cursors and header are the two places that know the epoch: as many reads as both take.
    for failing in 1..=6 {
        disk.fail_reads(failing);
        let (spool, _writer) = open(&disk, small());
        assert_eq!(spool.epoch(), epoch, "positions that sinks have recorded mean the same");
        assert_eq!(spool.cursors().all().get("sink"), Some(&1));
        assert_eq!(read(&mut spool.reader(1), 1).await, [1]);
    }
}
