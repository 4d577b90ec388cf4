//! What is on record after a restart.

use std::path::Path;

use pipeline_engine::testing;

use super::*;

fn summary(created_at_us: i64) -> Summary {
    let (arn, status) = ("arn".to_owned(), "ACTIVE".to_owned());
    Summary { arn, created_at_us, retention_hours: 24, status, shards_open: 1 }
}

fn shard(id: &str) -> Shard {
    Shard { id: id.to_owned(), parents: Vec::new(), is_closed: false, hash_keys: None }
}

async fn open(dir: &Path, created_at_us: i64) -> Journal {
    let (cx, _outlet) = testing::source(10);
    let options = SpoolOptions::new("p", "telemetry");
    Journal::open(&cx, dir.to_owned(), options, "readings", &summary(created_at_us)).await.unwrap().unwrap()
}

fn span(first: u64, last: u64) -> Span {
    Span::new(first, last)
}

#[tokio::test]
async fn bounds_are_there_after_a_restart_until_they_have_passed() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 1).await;
    assert!(journal.is_first());
    journal.enrol(&[shard("a"), shard("b")], |_| Origin::Latest(7)).await.unwrap();
    journal.record("a", &[span(1, 3), span(4, 9)]).await.unwrap();
    journal.record("b", &[span(2, 2)]).await.unwrap();
    let generation = journal.generation();
    journal.close().await.unwrap();

    let journal = open(dir.path(), 1).await;
    assert!(!journal.is_first());
    assert_eq!(journal.generation(), generation);
    let known = journal.recorded("a").unwrap();
    let expected = Recorded {
        origin: Origin::Latest(7),
        passed: None,
        spans: vec![span(1, 3), span(4, 9)],
        alone_until_us: i64::MIN,
    };
    assert_eq!(known, expected);
    journal.passed("a", Position::from(3));
    journal.settle().await.unwrap();
    journal.close().await.unwrap();

    let journal = open(dir.path(), 1).await;
    let known = journal.recorded("a").unwrap();
    assert_eq!(known.passed, Some(Position::from(3)));
    // What has passed may still be on disk.
    assert!(known.spans.ends_with(&[span(4, 9)]));
    assert_eq!(journal.recorded("b").unwrap().spans, [span(2, 2)]);
    // The stream has forgotten one of the two.
    journal.enrol(&[shard("b"), shard("c")], |_| Origin::Horizon).await.unwrap();
    assert_eq!(journal.recorded("a"), None);
    assert_eq!(journal.recorded("c").unwrap().origin, Origin::Horizon);
}

#[tokio::test]
async fn a_stream_that_was_made_anew_has_no_past() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 1).await;
    journal.enrol(&[shard("a")], |_| Origin::Horizon).await.unwrap();
    journal.record("a", &[span(1, 3)]).await.unwrap();
    let generation = journal.generation();
    journal.close().await.unwrap();
    let journal = open(dir.path(), 2).await;
    assert!(journal.is_first());
    assert_ne!(journal.generation(), generation);
    journal.enrol(&[shard("a")], |_| Origin::Horizon).await.unwrap();
    assert_eq!(journal.recorded("a").unwrap().spans, []);
}

#[tokio::test]
async fn where_the_disk_has_lost_bounds_messages_travel_alone_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 1).await;
    journal.enrol(&[shard("a")], |_| Origin::Horizon).await.unwrap();
    for number in 0..20 {
        journal.record("a", &[span(number, number)]).await.unwrap();
    }
    journal.close().await.unwrap();
    let folder = dir.path().join(FOLDER);
    let segment = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
    let segment = segment.into_iter().find(|path| path.extension().is_some_and(|end| end == "seg")).unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&segment, bytes).unwrap();
    let journal = open(dir.path(), 1).await;
    let known = journal.recorded("a").unwrap();
    assert!(known.spans.len() < 20 && known.alone_until_us > now_us(), "{known:?}");
}
