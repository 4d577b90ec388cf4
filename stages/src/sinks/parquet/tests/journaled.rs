//! Groups with positions, on a disk of this machine: restarts, refusals, damage.

use std::fs;
use std::io::Write;

use pipeline_engine::Position;
use pipeline_engine::spool::testing::SimulatedDisk;
use pipeline_engine::stage::Advance;

use super::*;

/// Two days of one partition: `from` is the last row of the group before.
fn group(from: u64, to: u64) -> Group {
    advancing(from, to, ((from + 1)..=to).map(|row| row as i64 * DAY_US / 2).collect())
}

fn advancing(from: u64, to: u64, times: Vec<i64>) -> Group {
    let partition = Partition::new("p/1");
    let batch = Batch::new(rows(&times), partition.open(Span::new(from + 1, to), 7));
    let advance = Advance {
        input: "valid".to_owned(),
        partition: "p/1".to_owned(),
        from: (from > 0).then(|| from.into()),
        to: to.into(),
        tenure: None,
    };
    Group::advancing(vec![batch], vec![advance])
}

/// The lake and the state are folders below `dir`.
fn sink(dir: &TempDir) -> Box<dyn Sink> {
    let keys = json!({ "url": dir.path().join("lake"), "time_column": "time" });
    let config: ParquetConfig = serde_json::from_value(keys).unwrap();
    let cx = testing::build_context("lake", "").with_data_dir(dir.path().join("data"));
    config.build(&input(), &cx).unwrap().sink
}

async fn opened(dir: &TempDir) -> Box<dyn Sink> {
    let mut sink = sink(dir);
    sink.open().await.unwrap();
    sink
}

async fn committed(sink: &mut dyn Sink) -> Vec<(String, String, Position)> {
    let committed = sink.committed().await.unwrap();
    committed.into_iter().map(|entry| (entry.input, entry.partition, entry.position)).collect()
}

fn at(position: u64) -> Vec<(String, String, Position)> {
    vec![("valid".to_owned(), "p/1".to_owned(), position.into())]
}

fn state(dir: &TempDir) -> PathBuf {
    dir.path().join("data/lake")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

fn stored(dir: &TempDir) -> usize {
    days(&dir.path().join("lake")).iter().map(|(_, rows)| rows).sum()
}

#[tokio::test]
async fn a_fresh_sink_goes_on_where_the_last_one_was() {
    let dir = TempDir::new().unwrap();
    let mut first = opened(&dir).await;
    assert_eq!(committed(&mut *first).await, []);
    first.write(&group(0, 3)).await.unwrap();
    assert_eq!(committed(&mut *first).await, at(3));
    drop(first);
    let mut second = opened(&dir).await;
    assert_eq!(committed(&mut *second).await, at(3));
    second.write(&group(3, 8)).await.unwrap();
    assert_eq!(committed(&mut *second).await, at(8));
    assert_eq!(stored(&dir), 8);
    assert_eq!(names(&state(&dir)), ["lock", "positions"], "nothing is left staged");
}

#[tokio::test]
async fn groups_without_positions_leave_no_state_behind() {
    let dir = TempDir::new().unwrap();
    let mut sink = opened(&dir).await;
    sink.write(&received(&Partition::new("p"), rows(&[1, 2, 3]), 7)).await.unwrap();
    sink.close().await.unwrap();
    assert_eq!(committed(&mut *sink).await, []);
    assert_eq!(stored(&dir), 3);
    assert!(!dir.path().join("data").exists());
}

#[tokio::test]
async fn the_footers_prove_that_all_rows_of_a_group_are_there() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let dir = TempDir::new().unwrap();
    opened(&dir).await.write(&group(0, 5)).await.unwrap();
    let files = files(&dir.path().join("lake"));
    assert_eq!(files.len(), 3, "half days: 1, 2 and 3, 4 and 5");
    let group_in = |path: &PathBuf| {
        let reader = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
        let footer = reader.metadata().file_metadata().key_value_metadata().unwrap();
        let entry = footer.iter().find(|entry| entry.key == "pipeline.group").unwrap();
        serde_json::from_str::<Value>(entry.value.as_deref().unwrap()).unwrap()
    };
    let advance = json!({ "input": "valid", "partition": "p/1", "from": null, "to": "5" });
    for path in &files {
        assert_eq!(group_in(path), json!({ "rows": 5, "advances": [advance] }));
    }
    assert_eq!(stored(&dir), 5);
}

#[tokio::test]
async fn a_group_that_does_not_go_on_from_what_is_stored_is_a_bug() {
    let dir = TempDir::new().unwrap();
    let mut sink = opened(&dir).await;
    sink.write(&group(0, 3)).await.unwrap();
    sink.write(&group(3, 5)).await.unwrap();
    for (from, to) in [(0, 3), (0, 5), (4, 6), (6, 9), (3, 9)] {
        let error = sink.write(&group(from, to)).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Bug, "{from}..{to}");
    }
    let error = sink.write(&group(4, 6)).await.unwrap_err();
    let text = "a group came that does not go on from what is stored: \
                partition \"p/1\" of input \"valid\" from 4 on, stored up to 5";
    assert_eq!(error.to_string(), text);
    assert_eq!(stored(&dir), 5);
    sink.write(&group(5, 6)).await.unwrap();
}

#[tokio::test]
async fn a_group_that_was_stored_last_may_come_once_more() {
    let dir = TempDir::new().unwrap();
    let mut sink = opened(&dir).await;
    for _ in 0..2 {
        sink.write(&group(0, 3)).await.unwrap();
    }
    assert_eq!(stored(&dir), 3);
}

#[tokio::test]
async fn a_second_run_waits_until_the_first_has_ended() {
    let dir = TempDir::new().unwrap();
    let mut first = opened(&dir).await;
    first.write(&group(0, 3)).await.unwrap();
    let mut second = sink(&dir);
    let error = second.open().await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient);
    assert!(error.to_string().ends_with("was in use by another run"), "{error}");
    drop(first);
    second.open().await.unwrap();
    assert_eq!(committed(&mut *second).await, at(3));
}

#[tokio::test]
async fn a_second_run_that_began_before_there_was_a_journal_stores_nothing_twice() {
    let dir = TempDir::new().unwrap();
    let (mut first, mut second) = (opened(&dir).await, opened(&dir).await);
    first.write(&group(0, 3)).await.unwrap();
    assert_eq!(second.write(&group(0, 4)).await.unwrap_err().fault(), Fault::Transient, "the lock is taken");
    drop(first);
    assert_eq!(second.write(&group(0, 4)).await.unwrap_err().fault(), Fault::Transient, "the journal has moved");
    assert_eq!(second.write(&group(0, 4)).await.unwrap_err().fault(), Fault::Bug);
    assert_eq!(stored(&dir), 3);
}

/// A folder that can't be written to until the obstacle is gone.
struct Obstacle(PathBuf);

impl Obstacle {
    /// A file in the place of a folder of the lake, which steps aside with what is in it.
    fn put(dir: &TempDir) -> Self {
        let place = dir.path().join("lake/year=1970");
        if place.exists() {
            fs::rename(&place, dir.path().join("lake/aside")).unwrap();
        }
        fs::write(&place, "").unwrap();
        Self(place)
    }

    fn remove(self) {
        fs::remove_file(self.0).unwrap();
    }
}

#[tokio::test]
async fn what_was_staged_is_what_is_stored_however_rows_are_grouped_next_time() {
    let dir = TempDir::new().unwrap();
    let mut first = opened(&dir).await;
    let obstacle = Obstacle::put(&dir);
    first.write(&group(0, 5)).await.unwrap_err();
    assert_eq!(committed(&mut *first).await, []);
    assert_eq!(names(&state(&dir)), ["lock", "staged"]);
    drop(first);
    obstacle.remove();
    let mut second = opened(&dir).await;
    assert_eq!(stored(&dir), 5, "finished by opening");
    assert_eq!(committed(&mut *second).await, at(5));
    assert_eq!(names(&state(&dir)), ["lock", "positions"]);
    second.write(&group(5, 6)).await.unwrap();
}

#[tokio::test]
async fn a_group_tried_again_is_not_made_again() {
    let dir = TempDir::new().unwrap();
    let mut sink = opened(&dir).await;
    let obstacle = Obstacle::put(&dir);
    sink.write(&group(0, 5)).await.unwrap_err();
    let staged = fs::read(state(&dir).join("staged")).unwrap();
    // Other rows under the same positions: no source does this, but it shows which rows are used.
    let other = || advancing(0, 5, vec![1, 2]);
    sink.write(&other()).await.unwrap_err();
    assert_eq!(fs::read(state(&dir).join("staged")).unwrap(), staged);
    obstacle.remove();
    sink.write(&other()).await.unwrap();
    assert_eq!(stored(&dir), 5);
}

#[tokio::test]
async fn a_group_waits_for_the_one_before_it() {
    let dir = TempDir::new().unwrap();
    let mut sink = opened(&dir).await;
    let obstacle = Obstacle::put(&dir);
    sink.write(&group(0, 5)).await.unwrap_err();
    obstacle.remove();
    sink.write(&group(5, 8)).await.unwrap();
    assert_eq!(stored(&dir), 8);
    assert_eq!(committed(&mut *sink).await, at(8));
}

#[tokio::test]
async fn a_group_that_opening_again_has_finished_is_recognised() {
    let dir = TempDir::new().unwrap();
    let mut sink = opened(&dir).await;
    let obstacle = Obstacle::put(&dir);
    sink.write(&group(0, 5)).await.unwrap_err();
    obstacle.remove();
    sink.open().await.unwrap();
    sink.write(&group(0, 5)).await.unwrap();
    sink.write(&group(5, 8)).await.unwrap();
    assert_eq!(stored(&dir), 8);
}

/// A staged group, as it lies on disk while the store is away.
fn staged(dir: &TempDir) -> Vec<u8> {
    let fails = async {
        let mut sink = opened(dir).await;
        let obstacle = Obstacle::put(dir);
        sink.write(&group(0, 5)).await.unwrap_err();
        obstacle.remove();
    };
    // A runtime of its own ends once no other object of the group is on its way any more, on a thread for files.
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::scope(|scope| scope.spawn(|| runtime().block_on(fails)).join()).unwrap();
    fs::read(state(dir).join("staged")).unwrap()
}

#[tokio::test]
async fn half_a_staged_group_has_left_nothing_behind_and_comes_again() {
    let dir = TempDir::new().unwrap();
    let whole = staged(&dir);
    fs::remove_file(state(&dir).join("staged")).unwrap();
    fs::write(state(&dir).join("staged.tmp"), &whole[..whole.len() / 2]).unwrap();
    // No object is made before all of its group is staged; here one may have been.
    fs::remove_dir_all(dir.path().join("lake")).unwrap();
    let mut sink = opened(&dir).await;
    assert_eq!(committed(&mut *sink).await, []);
    assert_eq!(names(&state(&dir)), ["lock"]);
    sink.write(&group(0, 7)).await.unwrap();
    assert_eq!(stored(&dir), 7);
}

#[tokio::test]
async fn a_staged_group_that_is_recorded_is_only_removed() {
    let dir = TempDir::new().unwrap();
    let whole = staged(&dir);
    drop(opened(&dir).await);
    fs::write(state(&dir).join("staged"), &whole).unwrap();
    fs::remove_dir_all(dir.path().join("lake")).unwrap();
    let mut sink = opened(&dir).await;
    assert_eq!((stored(&dir), committed(&mut *sink).await), (0, at(5)));
    assert_eq!(names(&state(&dir)), ["lock", "positions"]);
}

#[tokio::test]
async fn damage_is_reported_with_a_way_out_and_nothing_is_stored_on_a_guess() {
    for name in ["staged", "positions"] {
        let dir = TempDir::new().unwrap();
        let mut sink = opened(&dir).await;
        sink.write(&group(0, 3)).await.unwrap();
        let obstacle = Obstacle::put(&dir);
        sink.write(&group(3, 5)).await.unwrap_err();
        obstacle.remove();
        drop(sink);
        let mut file = fs::OpenOptions::new().append(true).open(state(&dir).join(name)).unwrap();
        file.write_all(b"x").unwrap();
        let error = self::sink(&dir).open().await.unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent);
        let path = state(&dir).join(name);
        assert_eq!(error.to_string(), format!("\"{}\" can't be used", path.display()));
        assert!(error.chain().contains("its checksum is wrong"), "{}", error.chain());
        assert_eq!(days(&dir.path().join("lake")).len(), 2, "those of the first group, set aside");
    }
}

#[tokio::test]
async fn positions_older_than_what_is_staged_are_refused() {
    let dir = TempDir::new().unwrap();
    let mut sink = opened(&dir).await;
    sink.write(&group(0, 3)).await.unwrap();
    let old = fs::read(state(&dir).join("positions")).unwrap();
    sink.write(&group(3, 5)).await.unwrap();
    drop(sink);
    let mut sink = opened(&dir).await;
    let obstacle = Obstacle::put(&dir);
    sink.write(&group(5, 6)).await.unwrap_err();
    obstacle.remove();
    drop(sink);
    fs::write(state(&dir).join("positions"), old).unwrap();
    let error = self::sink(&dir).open().await.unwrap_err();
    assert_eq!(error.fault(), Fault::Permanent);
    assert!(error.to_string().ends_with("from 5 on, stored up to 3"), "{error}");
}

#[tokio::test]
async fn a_store_that_loses_every_reply_gets_each_object_of_a_staged_group_once() {
    let store = Flaky::default();
    let disk = SimulatedDisk::new(1);
    let mut sink = on(Box::new(store.clone()), Journal::new(disk.mount(), "state".into()), PLAIN);
    let group = group(0, 40);
    let mut tries = 1;
    while let Err(error) = sink.write(&group).await {
        assert_eq!(error.fault(), Fault::Transient);
        tries += 1;
        assert!(tries <= 43, "two failures for each of 21 objects");
    }
    let kept = store.0.lock().unwrap();
    assert_eq!(kept.len(), 21, "one a day");
    assert!(kept.values().all(|(_, content)| content.is_some()));
    assert_eq!(sink.writer.files.get(), 21);
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_takes_no_rows_along() {
    let (shelf, disk) = (Flaky::default(), SimulatedDisk::new(1));
    let mut sink = on(Box::new(shelf.clone()), Journal::new(disk.mount(), "state".into()), PLAIN);
    disk.set_capacity(1_000);
    for _ in 0..3 {
        let error = sink.write(&group(0, 3)).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Transient);
        assert!(
            error.chain().ends_with("The disk is full. Make room: the sink goes on by itself."),
            "{}",
            error.chain()
        );
        assert_eq!(disk.used_bytes(), 0, "half a file would be in the way of others");
        assert!(shelf.0.lock().unwrap().is_empty(), "nothing is created that is not staged");
    }
    disk.set_capacity(1 << 20);
    while sink.write(&group(0, 3)).await.is_err() {}
    assert_eq!(committed(&mut sink).await, at(3));
}

#[tokio::test]
async fn a_disk_that_fails_to_sync_stops_the_sink_before_anything_is_created() {
    let (shelf, disk) = (Flaky::default(), SimulatedDisk::new(1));
    let mut sink = on(Box::new(shelf.clone()), Journal::new(disk.mount(), "state".into()), PLAIN);
    disk.fail_syncs(1);
    let error = sink.write(&group(0, 3)).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Permanent);
    assert!(shelf.0.lock().unwrap().is_empty());
    while sink.write(&group(0, 3)).await.is_err() {}
    assert_eq!(shelf.0.lock().unwrap().len(), 2);
}
