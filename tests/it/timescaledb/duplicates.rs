//! Rows whose key is there already.

use super::*;

#[tokio::test]
async fn duplicates_across_and_within_groups_are_skipped_and_counted() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![telemetry(&[("a", 1, 1.0), ("b", 1, 2.0)])]).await.unwrap();
    assert_eq!(test.duplicates(), 0);
    // One is there already, two of the three others are alike.
    let later = vec![telemetry(&[("c", 1, 3.0), ("a", 1, 1.0)]), telemetry(&[("c", 1, 3.0), ("d", 1, 5.0)])];
    test.write(later).await.unwrap();
    assert_eq!((test.count().await, test.duplicates()), (4, 2));
    // Again through the same staging table, which must be empty by now: "c" does not come back.
    test.sql("DELETE FROM TABLE_NAME WHERE device_id = 'c'").await;
    test.write(vec![telemetry(&[("d", 1, 5.0), ("e", 1, 7.0)])]).await.unwrap();
    assert_eq!((test.count().await, test.duplicates()), (4, 3));
    assert_eq!(test.readings().await, "a1 b2 d5 e7");
}

#[tokio::test]
async fn another_row_of_a_key_is_refused_as_a_conflict_and_the_first_stays() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![telemetry(&[("a", 1, 1.0), ("b", 1, 2.0)])]).await.unwrap();
    // One differs from a stored row, one from an earlier one of its group; the others are alike or new.
    let first = || telemetry(&[("c", 1, 3.0), ("b", 1, 9.0), ("a", 1, 1.0)]);
    let error = test.write(vec![first(), telemetry(&[("c", 1, 4.0), ("c", 1, 3.0), ("d", 1, 5.0)])]).await.unwrap_err();
    assert_eq!((error.fault(), refused(&error)), (Fault::Data, vec![(0, 1, "conflict"), (1, 0, "conflict")]));
    let detail = &error.refused_rows()[0].detail;
    assert!(detail.ends_with("holds a row of the same key with other values in temperature"), "{detail}");
    assert_eq!((test.readings().await.as_str(), test.duplicates()), ("a1 b2", 0), "nothing is stored before");
    let rest = vec![telemetry(&[("c", 1, 3.0), ("a", 1, 1.0)]), telemetry(&[("c", 1, 3.0), ("d", 1, 5.0)])];
    test.write(rest).await.unwrap();
    assert_eq!((test.readings().await.as_str(), test.duplicates()), ("a1 b2 c3 d5", 2));
}

#[tokio::test]
async fn with_keep_last_the_later_row_takes_the_place_of_the_first() {
    let mut test = sink_with("create = true\non_conflict = \"keep_last\"", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![telemetry(&[("a", 1, 1.0), ("b", 1, 2.0)])]).await.unwrap();
    let later = vec![
        telemetry(&[("c", 1, 3.0), ("b", 1, 9.0), ("a", 1, 1.0)]),
        telemetry(&[("c", 1, 4.0), ("c", 1, 5.0), ("d", 1, 6.0), ("b", 1, 9.0)]),
    ];
    test.write(later).await.unwrap();
    // Replaced: the stored row of "b", and two of "c" by the third. Alike: "a", and one of "b".
    let counted = (test.counter("replaced_rows"), test.duplicates());
    assert_eq!((test.readings().await.as_str(), counted), ("a1 b9 c5 d6", (3, 2)));
}

#[tokio::test]
async fn with_keep_newest_each_device_has_its_newest_row() {
    let settings = "create = true\nkey = [\"device_id\"]\non_conflict = \"keep_newest\"";
    let mut test = sink_with(settings, &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![telemetry(&[("a", 5, 1.0), ("b", 5, 2.0), ("a", 3, 9.0)])]).await.unwrap();
    assert_eq!((test.readings().await.as_str(), test.counter("replaced_rows")), ("a1 b2", 1));
    // Older than what is there, newer, of the same time and other values, the same again, and a new one twice.
    let later = [("a", 4, 8.0), ("b", 6, 3.0), ("b", 6, 4.0), ("c", 2, 7.0), ("c", 1, 6.0)];
    test.write(vec![telemetry(&later)]).await.unwrap();
    assert_eq!((test.readings().await.as_str(), test.duplicates()), ("a1 b4 c7", 0));
    // The older "a" and "c", the "b" of before and the first of the two new ones.
    assert_eq!(test.counter("replaced_rows"), 1 + 4);
    test.write(vec![telemetry(&[("b", 6, 4.0)])]).await.unwrap();
    assert_eq!((test.count().await, test.duplicates(), test.counter("replaced_rows")), (3, 1, 5));
}

#[tokio::test]
async fn nulls_and_not_a_number_are_the_same_value_again() {
    for (policy, reason) in [("keep_first", true), ("keep_last", false)] {
        let settings = format!("create = true\non_conflict = \"{policy}\"");
        let mut test = sink_with(&settings, &telemetry_schema()).await;
        test.open().await.unwrap();
        let null = || {
            let rows = telemetry(&[("null", 1, 0.0)]).rows;
            let columns =
                vec![rows.column(0).clone(), rows.column(1).clone(), Arc::new(Float64Array::from(vec![None])) as _];
            Batch::detached(RecordBatch::try_new(telemetry_schema(), columns).unwrap())
        };
        for _ in 0..2 {
            test.write(vec![telemetry(&[("nan", 1, f64::NAN), ("zero", 1, 0.0)]), null()]).await.unwrap();
        }
        assert_eq!((test.count().await, test.duplicates(), test.counter("replaced_rows")), (3, 3, 0), "{policy}");
        let changed = test.write(vec![telemetry(&[("nan", 1, 1.0), ("null", 1, 2.0), ("zero", 1, f64::NAN)])]).await;
        match changed {
            Ok(()) => assert!(!reason && test.readings().await == "nan1 null2 zeroNaN", "{}", test.readings().await),
            Err(error) => assert!(reason && refused(&error).len() == 3, "{}", error.chain()),
        }
    }
}

#[tokio::test]
async fn conflicts_are_found_in_the_chunk_that_holds_them_also_where_the_table_rounds_times() {
    let mut test = sink_with("", &telemetry_schema()).await;
    test.sql(
        "CREATE TABLE TABLE_NAME (device_id text, timestamp timestamptz(0), temperature float8, \
         PRIMARY KEY (device_id, timestamp))",
    )
    .await;
    test.open().await.unwrap();
    let at = |us: i64, temperature| {
        let rows = telemetry(&[("a", 0, temperature)]).rows;
        let times = TimestampMicrosecondArray::from(vec![NEW_YEAR_US + us]).with_timezone("UTC");
        let columns = vec![rows.column(0).clone(), Arc::new(times) as _, rows.column(2).clone()];
        Batch::detached(RecordBatch::try_new(telemetry_schema(), columns).unwrap())
    };
    test.write(vec![at(1_000_000, 1.0)]).await.unwrap();
    assert_eq!(refused(&test.write(vec![at(500_001, 2.0)]).await.unwrap_err()), [(0, 0, "conflict")]);
    assert_eq!(refused(&test.write(vec![at(1_499_999, 2.0)]).await.unwrap_err()), [(0, 0, "conflict")]);
}

#[tokio::test]
async fn a_table_of_nothing_but_its_key_has_duplicates_and_no_conflicts() {
    for policy in ["keep_first", "keep_last"] {
        let columns = "columns = { device_id = \"device_id\", timestamp = \"timestamp\" }";
        let settings = format!("create = true\n{columns}\non_conflict = \"{policy}\"");
        let mut test = sink_with(&settings, &telemetry_schema()).await;
        test.open().await.unwrap();
        for _ in 0..2 {
            test.write(vec![telemetry(&[("a", 1, 1.0), ("a", 1, 2.0), ("b", 1, 3.0)])]).await.unwrap();
        }
        assert_eq!((test.count().await, test.duplicates(), test.counter("replaced_rows")), (2, 4, 0), "{policy}");
    }
}

#[tokio::test]
async fn nulls_in_a_key_are_one_value_also_on_a_second_open() {
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("timestamp", timestamp_type(), false),
        Field::new("seq", DataType::Int64, true),
    ]));
    let readings = |seqs: &[Option<i64>]| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(seqs.iter().map(|_| Some("a")).collect::<StringArray>()),
            Arc::new(
                TimestampMicrosecondArray::from_iter_values(seqs.iter().map(|_| NEW_YEAR_US)).with_timezone("UTC"),
            ),
            Arc::new(seqs.iter().copied().collect::<Int64Array>()),
        ];
        Batch::detached(RecordBatch::try_new(schema.clone(), columns).unwrap())
    };
    let mut test = sink_with("create = true\nkey = [\"device_id\", \"timestamp\", \"seq\"]", &schema).await;
    test.open().await.unwrap();
    test.write(vec![readings(&[None, Some(1)])]).await.unwrap();
    test.open().await.expect("the index it made is the one it looks for");
    test.write(vec![readings(&[None, Some(1), Some(2), None])]).await.unwrap();
    assert_eq!((test.count().await, test.duplicates()), (3, 3));
}

#[tokio::test]
async fn without_a_key_every_row_is_stored() {
    let mut test = sink_with("create = true\nkey = []", &telemetry_schema()).await;
    test.open().await.unwrap();
    for _ in 0..2 {
        test.write(vec![telemetry(&[("a", 1, 1.0), ("a", 1, 1.0)])]).await.unwrap();
    }
    assert_eq!((test.count().await, test.duplicates()), (4, 0));
}
