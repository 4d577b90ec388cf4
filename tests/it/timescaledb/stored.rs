//! What is stored, and under which names and types.

use super::*;

#[tokio::test]
async fn a_missing_table_is_created_as_a_hypertable_with_its_key_and_a_second_open_finds_it() {
    let settings = "create = true\nchunk_interval = \"6h\"\nindex = [\"temperature, timestamp desc\"]";
    let mut test = sink_with(settings, &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![telemetry(&[("a", 0, 1.0)]), telemetry(&[("b", 90_000, 2.0)])]).await.unwrap();
    test.sink.sink.close().await.unwrap();
    let sql = "SELECT d.column_name::text, d.time_interval = INTERVAL '6 hours', h.num_chunks \
               FROM timescaledb_information.hypertables h JOIN timescaledb_information.dimensions d \
               USING (hypertable_schema, hypertable_name) WHERE h.hypertable_name = $1";
    let row = test.client.query_one(sql, &[&test.table]).await.expect("a hypertable");
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("timestamp", true, 2_i64));
    let sql = "SELECT indexdef FROM pg_indexes WHERE tablename = $1 AND schemaname = 'public'";
    let indexes: Vec<String> =
        test.client.query(sql, &[&test.table]).await.unwrap().iter().map(|row| row.get(0)).collect();
    for columns in ["(device_id, \"timestamp\")", "(temperature, \"timestamp\" DESC)", "(\"timestamp\" DESC)"] {
        assert!(indexes.iter().any(|index| index.ends_with(columns)), "{columns}: {indexes:?}");
    }
    let table = test.table.clone();
    let mut second = sink_at(&database_url(), &database_url(), &table, settings, &telemetry_schema()).await;
    second.open().await.unwrap();
    second.write(vec![telemetry(&[("c", 0, 3.0)])]).await.unwrap();
    assert_eq!(second.count().await, 3);
}

#[tokio::test]
async fn two_sinks_that_create_the_same_table_at_once_both_open() {
    let mut first = sink_with("create = true", &telemetry_schema()).await;
    let table = first.table.clone();
    let mut second = sink_at(&database_url(), &database_url(), &table, "create = true", &telemetry_schema()).await;
    let (one, two) = tokio::join!(first.open(), second.open());
    one.unwrap();
    two.unwrap();
}

#[tokio::test]
async fn every_type_arrives_as_it_was_sent() {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int32, false),
        Field::new("at", timestamp_type(), true),
        Field::new("text", DataType::Utf8, true),
        json_field(Field::new("json", DataType::Utf8, true)),
        Field::new("bool", DataType::Boolean, true),
        Field::new("int2", DataType::Int16, true),
        Field::new("int4", DataType::Int32, true),
        Field::new("int8", DataType::Int64, true),
        Field::new("float4", DataType::Float32, true),
        Field::new("float8", DataType::Float64, true),
        Field::new("bytes", DataType::Binary, true),
        Field::new("day", DataType::Date32, true),
    ]));
    let year_9999_us = 253_402_300_799_999_999;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![0, 1, 2, 3, 4])),
        Arc::new(
            TimestampMicrosecondArray::from(vec![
                Some(-1),
                Some(year_9999_us),
                Some(-2_208_988_800_000_000),
                Some(0),
                None,
            ])
            .with_timezone("UTC"),
        ),
        Arc::new(StringArray::from(vec![Some(""), Some("Zürich ☃ 🌡 \t\\N\n"), Some("e\u{301}"), Some("'\"\\"), None])),
        Arc::new(StringArray::from(vec![Some("{\"a\":[1,2.50,null]}"), Some("null"), Some("\"\""), Some("1e3"), None])),
        Arc::new(BooleanArray::from(vec![Some(true), Some(false), Some(true), Some(false), None])),
        Arc::new(Int16Array::from(vec![Some(i16::MIN), Some(i16::MAX), Some(0), Some(-1), None])),
        Arc::new(Int32Array::from(vec![Some(i32::MIN), Some(i32::MAX), Some(0), Some(-1), None])),
        Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(i64::MAX), Some(0), Some(-1), None])),
        Arc::new(Float32Array::from(vec![Some(f32::MIN), Some(f32::MAX), Some(-0.0), Some(f32::NAN), None])),
        Arc::new(Float64Array::from(vec![
            Some(f64::NEG_INFINITY),
            Some(f64::MIN_POSITIVE),
            Some(-0.0),
            Some(f64::NAN),
            None,
        ])),
        Arc::new(BinaryArray::from(vec![Some(b"".as_slice()), Some(&[0, 255]), Some(b"\\x"), Some(b"\n"), None])),
        Arc::new(Date32Array::from(vec![Some(-1), Some(2_932_896), Some(0), Some(10_957), None])),
    ];
    let mut test = sink_with("key = [\"id\"]", &schema).await;
    let types = "id int4 PRIMARY KEY, at timestamptz, text text, json jsonb, bool bool, int2 int2, int4 int4, \
                 int8 int8, float4 float4, float8 float8, bytes bytea, day date";
    test.sql(&format!("CREATE TABLE TABLE_NAME ({types})")).await;
    test.open().await.unwrap();
    test.write(vec![Batch::detached(RecordBatch::try_new(schema, columns).unwrap())]).await.unwrap();
    let shown = "SELECT concat_ws('|', at AT TIME ZONE 'UTC', to_json(text), json, bool, int2, int4, int8, float4, \
                 float8, bytes, day) FROM TABLE_NAME ORDER BY id";
    let rows = test.client.query(&shown.replace("TABLE_NAME", &test.table), &[]).await.unwrap();
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        rows,
        [
            "1969-12-31 23:59:59.999999|\"\"|{\"a\": [1, 2.50, null]}|t|-32768|-2147483648|-9223372036854775808|\
             -3.4028235e+38|-Infinity|\\x|1969-12-31",
            "9999-12-31 23:59:59.999999|\"Zürich ☃ 🌡 \\t\\\\N\\n\"|null|f|32767|2147483647|9223372036854775807|\
             3.4028235e+38|2.2250738585072014e-308|\\x00ff|9999-12-31",
            "1900-01-01 00:00:00|\"e\u{301}\"|\"\"|t|0|0|0|-0|-0|\\x5c78|1970-01-01",
            "1970-01-01 00:00:00|\"'\\\"\\\\\"|1000|f|-1|-1|-1|NaN|NaN|\\x0a|2000-01-01",
            "",
        ]
    );
}

#[tokio::test]
async fn rows_are_stored_under_the_names_that_columns_gives() {
    let settings = "create = true\ncolumns = { device_id = \"device\", timestamp = \"measured_at\" }\n\
                    key = [\"device\", \"measured_at\"]";
    let mut test = sink_with(settings, &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![telemetry(&[("a", 1, 20.5)])]).await.unwrap();
    let row = test.client.query_one(&format!("SELECT to_json(t)::text FROM {} t", test.table), &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "{\"device\":\"a\",\"measured_at\":\"2026-01-01T00:00:01+00:00\"}");
}

#[tokio::test]
async fn a_group_of_many_chunks_is_stored_whole() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![many(20_000, 0), many(30_000, 1000)]).await.unwrap();
    assert_eq!((test.count().await, test.duplicates()), (50_000, 0));
}
