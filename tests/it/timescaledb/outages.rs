//! Connections that end, servers that are killed, writes that take too long.

use super::server::to_be_killed;
use super::*;

#[tokio::test]
async fn a_connection_that_ends_inside_a_write_is_transient_and_nothing_is_lost_or_doubled() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![many(1000, 0)]).await.unwrap();
    // A lock holds the write in its transaction until its connection is ended.
    test.sql("BEGIN; LOCK TABLE TABLE_NAME IN EXCLUSIVE MODE").await;
    let interrupted = group(vec![many(1000, 0), many(4000, 10)]);
    let end = blocked_writer(&test.table, "pg_terminate_backend(pid)");
    let (outcome, ()) = tokio::join!(test.sink.sink.write(&interrupted), end);
    let error = outcome.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
    assert!(error.chain().contains("terminating connection"), "{}", error.chain());
    test.sql("ROLLBACK").await;
    test.sink.sink.write(&interrupted).await.unwrap();
    assert_eq!((test.count().await, test.duplicates()), (5000, 1000));
    assert_eq!(test.context.counter("reconnects").get(), 1);
}

/// Waits until the table's writer waits for a lock, and does this to it.
async fn blocked_writer(table: &str, then: &str) {
    let admin = connect(&database_url()).await;
    let sql = format!(
        "SELECT {then} FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1 \
         AND application_name = 'pipeline detached'"
    );
    let copy = format!("COPY \"{table}\"%");
    while admin.query(&sql, &[&copy]).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_write_that_is_dropped_midway_stores_nothing_and_leaves_a_sink_that_works() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.sql("BEGIN; LOCK TABLE TABLE_NAME IN EXCLUSIVE MODE").await;
    let dropped = group(vec![many(1000, 0)]);
    tokio::select! {
        outcome = test.sink.sink.write(&dropped) => panic!("not held up: {outcome:?}"),
        () = blocked_writer(&test.table, "pid") => {}
    }
    test.sql("ROLLBACK").await;
    test.write(vec![many(1000, 100)]).await.unwrap();
    assert_eq!((test.count().await, test.duplicates()), (1000, 0));
}

#[tokio::test]
async fn a_commit_waits_for_the_disk_whatever_the_session_was_given() {
    let url = format!("{}?options=-c%20synchronous_commit%3Doff", database_url());
    let mut test =
        sink_at(&url, &database_url(), &unique("readings"), "write_timeout = \"45s\"", &telemetry_schema()).await;
    test.sql(
        "CREATE TABLE TABLE_NAME (device_id text, timestamp timestamptz, temperature float8, \
         settings text DEFAULT concat_ws(' ', current_setting('synchronous_commit'), \
         current_setting('statement_timeout'), current_setting('application_name')), UNIQUE (device_id, timestamp))",
    )
    .await;
    test.open().await.unwrap();
    test.write(vec![telemetry(&[("a", 1, 1.0)])]).await.unwrap();
    let row = test.client.query_one(&format!("SELECT settings FROM {}", test.table), &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "on 45s pipeline detached");
}

#[tokio::test]
async fn a_write_that_takes_too_long_drops_its_connection_and_may_be_tried_again() {
    let mut test = sink_with("create = true\nwrite_timeout = \"300ms\"", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.sql("BEGIN; LOCK TABLE TABLE_NAME IN EXCLUSIVE MODE").await;
    let error = test.write(vec![telemetry(&[("a", 1, 1.0)])]).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
    test.sql("ROLLBACK").await;
    // On a slow machine the first attempts may be late as well.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while let Err(error) = test.write(vec![telemetry(&[("a", 1, 1.0)])]).await {
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
        assert!(tokio::time::Instant::now() < deadline, "{}", error.chain());
    }
    assert_eq!(test.count().await, 1);
}

#[tokio::test]
async fn a_killed_server_is_a_transient_error_and_once_back_takes_the_group_again() {
    let server = to_be_killed();
    let url = server.superuser_url();
    let mut test = sink_at(&url, &url, &unique("readings"), "create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![many(1000, 0)]).await.unwrap();
    server.run(&["kill", "timescaledb"]);
    for _ in 0..2 {
        let error = test.write(vec![many(1000, 10)]).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
    }
    server.run(&["up", "timescaledb"]);
    test.write(vec![many(1000, 10)]).await.unwrap();
    test.client = connect(&url).await;
    assert_eq!((test.count().await, test.duplicates()), (2000, 0));
    server.run(&["down", "timescaledb"]);
    // What nobody listens for is transient already when the sink opens.
    let error = test.open().await.unwrap_err();
    assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
}
