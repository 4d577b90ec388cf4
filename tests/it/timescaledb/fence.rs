//! Two instances of one pipeline, and what an earlier one has left.

use super::ledger::{ledgered, ledgered_in, numbered};
use super::proxy::{Cut, End, Proxy};
use super::*;

#[tokio::test]
async fn a_second_instance_is_told_who_stores_there_and_goes_on_once_the_first_has_ended() {
    let mut first = ledgered(&database_url(), "key = []").await;
    first.resume().await.unwrap();
    first.sink.sink.write(&numbered(1, 10)).await.unwrap();
    let schema = first.table.split('.').next().unwrap().to_owned();
    let mut second = ledgered_in(&schema, &database_url(), "key = []").await;

    // It may be what an earlier run has left: nobody can tell yet.
    let error = second.resume().await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
    assert!(error.chain().contains("locked by another session (process "), "{}", error.chain());

    // It stores: it is alive.
    first.sink.sink.write(&numbered(2, 10)).await.unwrap();
    let error = second.resume().await.unwrap_err();
    let text = error.chain();
    assert_eq!(error.fault(), Fault::Permanent, "{text}");
    let pid: i32 = text.split_once("process ").unwrap().1.split_once(' ').unwrap().0.parse().unwrap();
    let sql = "SELECT application_name FROM pg_stat_activity WHERE pid = $1";
    let application: String = second.client.query_one(sql, &[&pid]).await.unwrap().get(0);
    let start = "another run of pipeline \"detached\" stores by its sink \"db\" already: process ";
    assert!(text.contains(start) && text.contains(&format!("application \"{application}\"")), "{text}");
    assert!(text.contains(&format!("SELECT pg_terminate_backend({pid});")), "{text}");

    first.sink.sink.close().await.unwrap();
    while let Err(error) = second.resume().await {
        assert_ne!(error.fault(), Fault::Bug, "{}", error.chain());
    }
    second.sink.sink.write(&numbered(3, 10)).await.unwrap();
    assert_eq!(second.ledger().await, ["valid telemetry/1 3 30"]);
}

#[tokio::test]
async fn sinks_of_other_names_and_other_schemas_do_not_fence_each_other() {
    let mut first = ledgered(&database_url(), "").await;
    first.resume().await.unwrap();
    let mut elsewhere = ledgered(&database_url(), "").await;
    elsewhere.resume().await.unwrap();
    let context = testing::build_context("other", "");
    let table = first.table.clone();
    let mut other =
        sink_in(context, &database_url(), &database_url(), &table, "create = true", &telemetry_schema()).await;
    other.resume().await.unwrap();
}

#[tokio::test]
async fn a_sink_ends_its_own_lost_connection_that_the_server_still_believes_in() {
    let proxy = Proxy::before(&database_url()).await;
    let mut test = ledgered(&proxy.url, "key = []").await;
    test.resume().await.unwrap();
    proxy.arm(Cut::AfterBytes(2_000), End::Silence);
    test.sink.sink.write(&numbered(1, 1000)).await.unwrap_err();
    assert!(proxy.has_cut());
    let error = test.sink.sink.write(&numbered(1, 1000)).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
    assert!(error.chain().contains("it was asked to end it"), "{}", error.chain());
    test.insist(&numbered(1, 1000)).await;
    assert_eq!((test.count().await, test.ledger().await), (1000, vec!["valid telemetry/1 1 1000".to_owned()]));
}

#[tokio::test]
async fn what_a_dead_run_has_left_is_waited_for() {
    let proxy = Proxy::before(&database_url()).await;
    let mut dead = ledgered(&proxy.url, "key = []").await;
    dead.resume().await.unwrap();
    proxy.arm(Cut::AfterBytes(2_000), End::Silence);
    dead.sink.sink.write(&numbered(1, 1000)).await.unwrap_err();
    let schema = dead.table.split('.').next().unwrap().to_owned();
    drop(dead);
    let mut next = ledgered_in(&schema, &database_url(), "key = []").await;
    for _ in 0..3 {
        let error = next.resume().await.unwrap_err();
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
        assert!(error.chain().contains("what an earlier run has left"), "{}", error.chain());
    }
    proxy.end_silence();
    while let Err(error) = next.resume().await {
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
    }
    next.sink.sink.write(&numbered(1, 1000)).await.unwrap();
    assert_eq!(next.ledger().await, ["valid telemetry/1 1 1000"]);
}

#[tokio::test]
async fn a_run_that_was_overtaken_while_its_connection_was_lost_stores_nothing_more() {
    let proxy = Proxy::before(&database_url()).await;
    let mut first = ledgered(&proxy.url, "key = []").await;
    first.resume().await.unwrap();
    first.sink.sink.write(&numbered(1, 10)).await.unwrap();
    proxy.arm(Cut::InCommit(0), End::Close);
    first.sink.sink.write(&numbered(2, 10)).await.unwrap_err();

    let schema = first.table.split('.').next().unwrap().to_owned();
    let mut second = ledgered_in(&schema, &database_url(), "key = []").await;
    while let Err(error) = second.resume().await {
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
    }
    // It forms its groups otherwise: of what the first one has in hand, it has stored a part.
    second.sink.sink.write(&numbered(2, 10)).await.unwrap();
    second.sink.sink.close().await.unwrap();
    let in_hand = Group::advancing(vec![many(10, 2000), many(10, 3000)], vec![super::ledger::advance(1, 3)]);
    let error = loop {
        let error = first.sink.sink.write(&in_hand).await.unwrap_err();
        if error.fault() != Fault::Transient {
            break error;
        }
    };
    assert_eq!(error.fault(), Fault::Permanent, "{}", error.chain());
    assert!(error.chain().contains("Another run of this pipeline stores there"), "{}", error.chain());
    assert_eq!((first.count().await, first.ledger().await), (20, vec!["valid telemetry/1 2 20".to_owned()]));
}
