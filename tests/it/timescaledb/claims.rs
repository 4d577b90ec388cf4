//! Several workers that store by one sink: whose partition is whose.

use super::ledger::{advance, ledgered, ledgered_in};
use super::proxy::{Cut, End, Proxy};
use super::*;

const SHARD: &str = "telemetry/1";

/// So many readings, the group of this number, stored under this tenure.
fn held(number: u64, rows: usize, tenure: u64) -> Group {
    let batch = many(rows, i64::try_from(number).unwrap() * 1000);
    let mut advance = advance(number - 1, number);
    advance.tenure = Some(tenure);
    Group::advancing(vec![batch], vec![advance])
}

fn superseded<T: std::fmt::Debug>(outcome: Result<T, StageError>) {
    assert_eq!(outcome.unwrap_err().superseded_partitions(), [SHARD]);
}

#[tokio::test]
async fn a_worker_whose_tenure_is_over_stores_nothing_and_the_next_one_learns_how_far_it_has_come() {
    let mut first = ledgered(&database_url(), "key = []").await;
    let schema = first.table.split('.').next().unwrap().to_owned();
    first.open().await.unwrap();
    let adopted = first.sink.sink.adopt(SHARD, 1, &[]).await.unwrap();
    assert_eq!((adopted.positions, adopted.checkpoint), (Vec::new(), None));
    first.sink.sink.write(&held(1, 10, 1)).await.unwrap();
    first.sink.sink.keep_checkpoint(SHARD, 1, b"at one").await.unwrap();

    let mut second = ledgered_in(&schema, &database_url(), "key = []").await;
    second.open().await.unwrap();
    let adopted = second.sink.sink.adopt(SHARD, 2, &[]).await.unwrap();
    assert_eq!(adopted.positions.iter().map(|entry| entry.position).collect::<Vec<_>>(), [1.into()]);
    assert_eq!(adopted.checkpoint.as_deref(), Some(&b"at one"[..]));

    superseded(first.sink.sink.write(&held(2, 10, 1)).await);
    superseded(first.sink.sink.keep_checkpoint(SHARD, 1, b"at two").await);
    superseded(first.sink.sink.adopt(SHARD, 1, &[]).await);
    superseded(first.sink.sink.adopt(SHARD, 2, &[]).await);
    second.sink.sink.adopt(SHARD, 2, &[]).await.unwrap();
    second.sink.sink.write(&held(2, 7, 2)).await.unwrap();
    assert_eq!(second.count().await, 17);
    assert_eq!(second.ledger().await, ["valid telemetry/1 2 17"]);

    // A shard that has come of it goes on with what was remembered.
    let adopted = first.sink.sink.adopt("telemetry/2", 1, &[SHARD.to_owned()]).await.unwrap();
    assert_eq!((adopted.checkpoint, adopted.inherited), (None, vec![b"at one".to_vec()]));
    // A run that claims nothing keeps away.
    let mut alone = ledgered_in(&schema, &database_url(), "key = []").await;
    assert!(alone.resume().await.unwrap_err().chain().contains("locked by another session"));
}

#[tokio::test]
async fn a_shard_that_is_over_is_forgotten_once_all_that_has_come_of_it_has_a_checkpoint_of_its_own() {
    let mut sink = ledgered(&database_url(), "key = []").await;
    sink.open().await.unwrap();
    sink.sink.sink.adopt(SHARD, 1, &[]).await.unwrap();
    sink.sink.sink.write(&held(1, 10, 1)).await.unwrap();
    sink.sink.sink.keep_checkpoint(SHARD, 1, b"of the parent").await.unwrap();
    let heirs = ["telemetry/2", "telemetry/3"].map(str::to_owned);
    for (number, heir) in heirs.iter().enumerate() {
        assert!(!sink.sink.sink.forget(SHARD, &heirs).await.unwrap(), "{heir} begins with it");
        let adopted = sink.sink.sink.adopt(heir, 1, &[SHARD.to_owned()]).await.unwrap();
        assert_eq!(adopted.inherited, [b"of the parent".to_vec()], "heir {number}");
        assert!(!sink.sink.sink.forget(SHARD, &heirs).await.unwrap(), "until it has one of its own");
        sink.sink.sink.keep_checkpoint(heir, 1, b"of the child").await.unwrap();
    }
    for _ in 0..2 {
        assert!(sink.sink.sink.forget(SHARD, &heirs).await.unwrap(), "also where another worker has been first");
    }
    // Whoever still has something of it in its hands stores nothing, and what was stored stays known.
    superseded(sink.sink.sink.write(&held(2, 10, 1)).await);
    superseded(sink.sink.sink.keep_checkpoint(SHARD, 1, b"late").await);
    assert_eq!(sink.ledger().await, ["valid telemetry/1 1 10"]);
    let adopted = sink.sink.sink.adopt(&heirs[0], 2, &[SHARD.to_owned()]).await.unwrap();
    assert_eq!(adopted.checkpoint.as_deref(), Some(&b"of the child"[..]));
}

#[tokio::test]
async fn a_session_that_is_stuck_in_the_midst_of_a_group_is_ended_by_the_next_owner() {
    let proxy = Proxy::before(&database_url()).await;
    let mut first = ledgered(&proxy.url, "key = []").await;
    let schema = first.table.split('.').next().unwrap().to_owned();
    first.open().await.unwrap();
    first.sink.sink.adopt(SHARD, 1, &[]).await.unwrap();
    proxy.arm(Cut::AfterBytes(20_000), End::Silence);
    // The server waits for the rest of the group, which never comes.
    first.sink.sink.write(&held(1, 10_000, 1)).await.unwrap_err();
    assert!(proxy.has_cut());
    let mut second = ledgered_in(&schema, &database_url(), "key = []").await;
    second.open().await.unwrap();
    let adopted = second.sink.sink.adopt(SHARD, 2, &[]).await.unwrap();
    assert_eq!(adopted.positions, [], "what was in its hands is rolled back");
    second.sink.sink.write(&held(1, 5, 2)).await.unwrap();
    assert_eq!(second.count().await, 5);
}
