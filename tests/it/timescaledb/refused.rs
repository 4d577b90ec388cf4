//! Rows that the database refuses for what they hold.

use super::*;

#[tokio::test]
async fn bad_rows_are_named_with_their_sqlstate_and_nothing_of_their_group_is_stored() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    assert_eq!(test.sink.outputs, [(Port::REJECTED, dead_letter::schema())]);
    test.open().await.unwrap();
    test.sql("ALTER TABLE TABLE_NAME ADD CHECK (temperature < 100)").await;
    let group =
        || vec![telemetry(&[("a", 1, 1.0), ("hot", 1, 1000.0)]), many(5000, 0), telemetry(&[("nul\0", 1, 1.0)])];
    let error = test.write(group()).await.unwrap_err();
    assert_eq!((error.fault(), refused(&error)), (Fault::Data, vec![(0, 1, "23514"), (2, 0, "22021")]));
    let detail = &error.refused_rows()[0].detail;
    assert!(detail.contains("refused rows: ") && detail.contains("check constraint"), "{detail}");
    assert_eq!(test.count().await, 0);
    // As the engine does: the good ones of the group next, on the same connection.
    test.write(vec![telemetry(&[("a", 1, 1.0)]), many(5000, 0)]).await.unwrap();
    assert_eq!((test.count().await, test.counter("reconnects")), (5001, 0));
}

#[tokio::test]
async fn bad_rows_are_found_among_duplicates_and_without_a_key() {
    for key in ["", "key = []"] {
        let mut test = sink_with(&format!("create = true\n{key}"), &telemetry_schema()).await;
        test.open().await.unwrap();
        test.sql("ALTER TABLE TABLE_NAME ADD CHECK (temperature < 100)").await;
        test.write(vec![many(100, 0)]).await.unwrap();
        let bad = telemetry(&[("a", 1, 200.0), ("b", 1, 300.0), ("c", 1, 4.0)]);
        let error = test.write(vec![many(100, 0), bad]).await.unwrap_err();
        assert_eq!(refused(&error), [(1, 0, "23514"), (1, 1, "23514")], "{key}");
        assert_eq!(test.count().await, 100);
    }
}

#[tokio::test]
async fn a_group_that_is_bad_throughout_is_refused_a_thousand_rows_at_a_time() {
    let settings = "create = true\nkey = []\nwrite_timeout = \"1h\"";
    let mut test = sink_with(settings, &telemetry_schema()).await;
    test.open().await.unwrap();
    // The chunk is there: it need not be made for each of them.
    test.write(vec![telemetry(&[("cold", 0, -200.0)])]).await.unwrap();
    test.sql("ALTER TABLE TABLE_NAME ADD CHECK (temperature < -100)").await;
    let error = test.write(vec![many(1500, 0)]).await.unwrap_err();
    let rows: Vec<usize> = error.refused_rows().iter().map(|refused| refused.row).collect();
    assert_eq!(rows, (0..1000).collect::<Vec<_>>());
    assert_eq!(test.count().await, 1);
}

#[tokio::test]
async fn a_time_that_postgresql_cannot_hold_is_refused_and_never_becomes_infinity() {
    let mut test = sink_with("", &telemetry_schema()).await;
    test.sql("CREATE TABLE TABLE_NAME (device_id text, timestamp timestamptz, temperature float8, UNIQUE (device_id, timestamp))").await;
    test.open().await.unwrap();
    let at_us = |us| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["a"])),
            Arc::new(TimestampMicrosecondArray::from(vec![us]).with_timezone("UTC")),
            Arc::new(Float64Array::from(vec![1.0])),
        ];
        Batch::detached(RecordBatch::try_new(telemetry_schema(), columns).unwrap())
    };
    for us in [i64::MIN, i64::MIN + 1, i64::MIN + 946_684_800_000_000] {
        let error = test.write(vec![at_us(us)]).await.unwrap_err();
        assert_eq!(refused(&error), [(0, 0, "22008")], "{us}");
    }
    // The last microsecond that the input can hold is within the range.
    test.write(vec![at_us(i64::MAX)]).await.unwrap();
    let sql = format!("SELECT to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD') FROM {}", test.table);
    assert_eq!(test.client.query_one(&sql, &[]).await.unwrap().get::<_, &str>(0), "294247-01-10");
}

#[tokio::test]
async fn a_row_that_breaks_another_unique_index_is_a_data_error_not_a_duplicate() {
    let mut test = sink_with("", &telemetry_schema()).await;
    let columns = "device_id text, timestamp timestamptz, temperature float8 UNIQUE, UNIQUE (device_id, timestamp)";
    test.sql(&format!("CREATE TABLE TABLE_NAME ({columns})")).await;
    test.open().await.unwrap();
    test.write(vec![telemetry(&[("a", 1, 1.0)])]).await.unwrap();
    let error = test.write(vec![telemetry(&[("a", 1, 1.0), ("b", 1, 1.0), ("c", 1, 3.0), ("d", 1, 3.0)])]).await;
    assert_eq!(refused(&error.unwrap_err()), [(0, 1, "23505"), (0, 3, "23505")]);
    assert_eq!(test.readings().await, "a1");
}
