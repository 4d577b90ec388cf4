//! The sink `timescaledb` against real servers: what is stored, what is skipped, what is refused and
//! what an outage leaves behind.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use pipeline_engine::schema::{json_field, timestamp_type};
use pipeline_engine::stage::{Batch, BuildContext, BuildError, BuiltSink, Fault, Group, Port, SinkConfig, StageError};
use pipeline_engine::{dead_letter, testing};
use pipeline_stages::sinks::timescaledb::TimescaleDbConfig;
use tokio_postgres::{Client, NoTls};

use crate::services::{database_url, unique};
use crate::timescaledb_server::{KEEPER_PASSWORD, secured, to_be_killed};

/// 2026-01-01T00:00:00Z.
const NEW_YEAR_US: i64 = 1_767_225_600_000_000;

fn telemetry_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("timestamp", timestamp_type(), false),
        Field::new("temperature", DataType::Float64, true),
    ]))
}

/// A batch of readings: device, seconds into 2026, temperature.
fn telemetry(rows: &[(&str, i64, f64)]) -> Batch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| Some(row.0)).collect::<StringArray>()),
        Arc::new(
            TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| NEW_YEAR_US + row.1 * 1_000_000))
                .with_timezone("UTC"),
        ),
        Arc::new(rows.iter().map(|row| Some(row.2)).collect::<Float64Array>()),
    ];
    Batch::detached(RecordBatch::try_new(telemetry_schema(), columns).unwrap())
}

/// So many readings of a hundred devices, none like another, the first at that second.
fn many(count: usize, first_second: i64) -> Batch {
    let devices: Vec<String> = (0..100).map(|device| format!("d{device:03}")).collect();
    let rows: Vec<_> = (0..count)
        .map(|row| (devices[row % 100].as_str(), first_second + i64::try_from(row / 100).unwrap(), (row % 50) as f64))
        .collect();
    telemetry(&rows)
}

fn group(batches: Vec<Batch>) -> Group {
    Group::new(batches)
}

/// A sink and what its test looks at.
struct UnderTest {
    sink: BuiltSink,
    context: BuildContext,
    table: String,
    client: Client,
}

fn build(config: &str, input: &SchemaRef, context: &BuildContext) -> Result<BuiltSink, BuildError> {
    let config: TimescaleDbConfig = toml::from_str(config).expect("a valid configuration");
    config.build(input, context)
}

/// A sink into a new table of the shared server, not opened yet.
async fn sink_with(settings: &str, input: &SchemaRef) -> UnderTest {
    sink_at(&database_url(), &database_url(), &unique("readings"), settings, input).await
}

async fn sink_at(url: &str, admin_url: &str, table: &str, settings: &str, input: &SchemaRef) -> UnderTest {
    let context = testing::build_context("db", "");
    let config = format!("url = \"{url}\"\ntable = \"{table}\"\n{settings}");
    let sink = build(&config, input, &context).expect("a sink");
    UnderTest { sink, context, table: table.to_owned(), client: connect(admin_url).await }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("the test's own connection");
    tokio::spawn(connection);
    client
}

impl UnderTest {
    async fn open(&mut self) -> Result<(), StageError> {
        self.sink.sink.open().await
    }

    async fn write(&mut self, batches: Vec<Batch>) -> Result<(), StageError> {
        self.sink.sink.write(&group(batches)).await
    }

    fn duplicates(&self) -> u64 {
        self.context.counter("duplicate_rows").get()
    }

    async fn count(&self) -> i64 {
        self.client.query_one(&format!("SELECT count(*) FROM {}", self.table), &[]).await.unwrap().get(0)
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(&sql.replace("TABLE_NAME", &self.table)).await.expect("the test's own SQL");
    }

    /// Opens and expects a permanent refusal; returns all of its text.
    async fn refusal(&mut self) -> String {
        let error = self.open().await.expect_err("must be refused");
        assert_eq!(error.fault(), Fault::Permanent, "{}", error.chain());
        error.chain()
    }
}

// --- what is stored

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

// --- duplicates

#[tokio::test]
async fn duplicates_across_and_within_groups_are_skipped_and_counted_and_the_first_stays() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![telemetry(&[("a", 1, 1.0), ("b", 1, 2.0)])]).await.unwrap();
    assert_eq!(test.duplicates(), 0);
    // One is there already, two of the three others are alike.
    let later = vec![telemetry(&[("c", 1, 3.0), ("a", 1, 9.0)]), telemetry(&[("c", 1, 4.0), ("d", 1, 5.0)])];
    test.write(later).await.unwrap();
    assert_eq!((test.count().await, test.duplicates()), (4, 2));
    // Again through the same staging table, which must be empty by now: "c" does not come back.
    test.sql("DELETE FROM TABLE_NAME WHERE device_id = 'c'").await;
    test.write(vec![telemetry(&[("d", 1, 6.0), ("e", 1, 7.0)])]).await.unwrap();
    assert_eq!((test.count().await, test.duplicates()), (4, 3));
    let sql = format!("SELECT string_agg(device_id || temperature, ' ' ORDER BY device_id) FROM {}", test.table);
    assert_eq!(test.client.query_one(&sql, &[]).await.unwrap().get::<_, &str>(0), "a1 b2 d5 e7");
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

// --- tables that do not fit

#[tokio::test]
async fn a_missing_table_is_refused_with_its_ddl() {
    let mut test = sink_with("", &telemetry_schema()).await;
    let text = test.refusal().await;
    assert!(text.contains("Set create = true, or run: CREATE TABLE"), "{text}");
    // What it says to run makes a table that fits.
    let ddl = text.split_once("or run: ").unwrap().1;
    test.sql(ddl).await;
    test.open().await.unwrap();
}

#[tokio::test]
async fn all_that_does_not_fit_is_said_at_once_with_the_statements_that_mend_it() {
    for create in ["create = false", "create = true"] {
        let mut test = sink_with(create, &telemetry_schema()).await;
        test.sql("CREATE TABLE TABLE_NAME (device_id text, timestamp timestamp, site text NOT NULL)").await;
        let text = test.refusal().await;
        for part in [
            "column \"timestamp\" is timestamp without time zone, the input's is timestamp with time zone",
            "column \"temperature\" is missing",
            "column \"site\" is NOT NULL without a default, and the input has no such column",
            "there is no unique index over its key (\"device_id\", \"timestamp\")",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let statements = text
            .split_once("To mend it: ")
            .unwrap()
            .1
            .replace("; or set key = [], and a replay stores rows twice.", ";");
        test.sql(&statements).await;
        test.open().await.unwrap();
        test.write(vec![telemetry(&[("a", 1, 1.0)])]).await.unwrap();
        assert_eq!(test.count().await, 1);
    }
}

#[tokio::test]
async fn an_index_that_cannot_serve_the_key_is_no_key() {
    let useless = [
        "CREATE INDEX ON TABLE_NAME (device_id, timestamp)",
        "CREATE UNIQUE INDEX ON TABLE_NAME (device_id, timestamp) WHERE temperature > 0",
        "CREATE UNIQUE INDEX ON TABLE_NAME (device_id, timestamp, temperature)",
        "CREATE UNIQUE INDEX ON TABLE_NAME (timestamp) INCLUDE (device_id)",
        "ALTER TABLE TABLE_NAME ADD UNIQUE (device_id, timestamp) DEFERRABLE",
    ];
    let mut test = sink_with("", &telemetry_schema()).await;
    test.sql("CREATE TABLE TABLE_NAME (device_id text, timestamp timestamptz, temperature float8)").await;
    for index in useless {
        test.sql(index).await;
        assert!(test.refusal().await.contains("there is no unique index"), "{index}");
    }
    test.sql("CREATE UNIQUE INDEX ON TABLE_NAME (timestamp, device_id) INCLUDE (temperature)").await;
    test.open().await.unwrap();
}

#[tokio::test]
async fn a_table_altered_while_running_is_found_at_the_next_connection() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.sql("ALTER TABLE TABLE_NAME DROP COLUMN temperature").await;
    let error = test.write(vec![telemetry(&[("a", 1, 1.0)])]).await.unwrap_err();
    assert_eq!((error.fault(), error.outside_code()), (Fault::Permanent, Some("42703")), "{}", error.chain());
    let error = test.write(vec![telemetry(&[("a", 1, 1.0)])]).await.unwrap_err();
    assert!(error.chain().contains("ADD COLUMN \"temperature\" double precision"), "{}", error.chain());
}

#[tokio::test]
async fn missing_rights_are_named_with_their_grants() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    let role = unique("role");
    test.sql(&format!("CREATE ROLE {role} LOGIN")).await;
    let url = database_url().replace("postgres@", &format!("{role}@"));
    let mut poor = sink_at(&url, &database_url(), &test.table, "", &telemetry_schema()).await;
    let text = poor.refusal().await;
    let grants = text.split_once("To mend it: ").unwrap().1;
    assert!(grants.contains("GRANT INSERT ON") && grants.contains("GRANT SELECT ON"), "{text}");
    test.sql(grants.trim_end_matches('.')).await;
    poor.open().await.unwrap();
    for _ in 0..2 {
        poor.write(vec![telemetry(&[("a", 1, 1.0)])]).await.unwrap();
    }
    assert_eq!((poor.count().await, poor.duplicates()), (1, 1));
    test.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

// --- bad rows

#[tokio::test]
async fn a_bad_row_is_a_data_error_with_its_sqlstate_and_nothing_of_its_group_is_stored() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    assert_eq!(test.sink.outputs, [(Port::REJECTED, dead_letter::schema())]);
    test.open().await.unwrap();
    test.sql("ALTER TABLE TABLE_NAME ADD CHECK (temperature < 100)").await;
    let bad_rows = [(("b", 1, 1000.0), "23514"), (("nul\0", 1, 1.0), "22021")];
    for (bad, code) in bad_rows {
        let error = test.write(vec![many(5000, 0), telemetry(&[bad])]).await.unwrap_err();
        assert_eq!((error.fault(), error.outside_code()), (Fault::Data, Some(code)), "{}", error.chain());
        assert_eq!(test.count().await, 0);
    }
    // As the engine does: the good ones of the group next, on the same connection.
    test.write(vec![telemetry(&[("a", 1, 1.0)])]).await.unwrap();
    assert_eq!((test.count().await, test.context.counter("reconnects").get()), (1, 0));
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
        assert_eq!((error.fault(), error.outside_code()), (Fault::Data, Some("22008")), "{us}");
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
    let error = test.write(vec![telemetry(&[("b", 1, 1.0)])]).await.unwrap_err();
    assert_eq!((error.fault(), error.outside_code()), (Fault::Data, Some("23505")), "{}", error.chain());
    assert_eq!((test.count().await, test.duplicates()), (1, 0));
}

// --- outages

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

// --- who may connect, and how

#[tokio::test]
async fn an_unknown_database_or_user_is_permanent_and_named() {
    let table = unique("readings");
    for (url, part) in [
        (database_url().replace("/iot", "/nowhere"), "database \"nowhere\" does not exist"),
        (database_url().replace("postgres@", "nobody@"), "role \"nobody\" does not exist"),
    ] {
        let mut test = sink_at(&url, &database_url(), &table, "", &telemetry_schema()).await;
        let text = test.refusal().await;
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_permanent_and_no_password_is_ever_shown() {
    let server = secured();
    let url = format!("postgres://keeper@{}", server.place());
    let open = async |password: &str| {
        let settings = format!("create = true\npassword = \"{password}\"");
        sink_at(&url, &server.superuser_url(), &unique("readings"), &settings, &telemetry_schema()).await
    };
    open(KEEPER_PASSWORD).await.open().await.unwrap();
    let error = open("wrong horse").await.open().await.unwrap_err();
    assert_eq!((error.fault(), error.outside_code()), (Fault::Permanent, Some("28P01")), "{}", error.chain());
    assert!(!format!("{error:?} {}", error.chain()).contains("horse"), "{error:?}");
}

#[tokio::test]
async fn a_server_whose_authority_is_trusted_is_used_over_tls() {
    let server = secured();
    let ca = server.file("ca.pem").display().to_string();
    let url = format!("postgres://postgres@{}?sslmode=verify-full&sslrootcert={ca}", server.place());
    let mut test =
        sink_at(&url, &server.superuser_url(), &unique("readings"), "create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![many(20_000, 0)]).await.unwrap();
    assert_eq!(test.count().await, 20_000);
    let sql = "SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid) \
               WHERE application_name = 'pipeline detached' AND query LIKE '%' || $1 || '%' OR query = 'COMMIT'";
    assert_eq!(test.client.query_one(sql, &[&test.table]).await.unwrap().get::<_, Option<bool>>(0), Some(true));
}

#[tokio::test]
async fn a_server_is_refused_for_its_authority_or_its_name_also_with_require_and_prefer() {
    let server = secured();
    let (ca, other) = (server.file("ca.pem").display().to_string(), server.file("other-ca.pem").display().to_string());
    let with_name = server.place().replace("127.0.0.1", "127.0.0.2");
    let place = server.place();
    let expected = [
        (format!("{place}?sslmode=verify-full&sslrootcert={other}"), "UnknownIssuer", "sslrootcert=/path/to/ca.pem"),
        (format!("{place}?sslmode=require&sslrootcert={other}"), "UnknownIssuer", "sslrootcert=/path/to/ca.pem"),
        (format!("{place}?sslmode=prefer&sslrootcert={other}"), "UnknownIssuer", "sslrootcert=/path/to/ca.pem"),
        (
            format!("{with_name}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={ca}"),
            "not valid for name",
            "Connect by a name",
        ),
    ];
    for (place, cause, hint) in expected {
        let url = format!("postgres://postgres@{place}");
        let mut test = sink_at(&url, &server.superuser_url(), "readings", "", &telemetry_schema()).await;
        let text = test.refusal().await;
        assert!(text.contains("the server's certificate was refused") && text.contains(cause), "{text}");
        assert!(text.contains(hint), "{text}");
    }
}

#[tokio::test]
async fn a_client_certificate_logs_in() {
    let server = secured();
    let path = |name| server.file(name).display().to_string();
    let tls = format!("sslmode=verify-full&sslrootcert={}", path("ca.pem"));
    let url = format!(
        "postgres://holder@{}?{tls}&sslcert={}&sslkey={}",
        server.place(),
        path("holder.pem"),
        path("holder.key")
    );
    let mut test =
        sink_at(&url, &server.superuser_url(), &unique("readings"), "create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    let url = format!("postgres://holder@{}?{tls}", server.place());
    let mut without = sink_at(&url, &server.superuser_url(), "readings", "", &telemetry_schema()).await;
    assert!(without.refusal().await.contains("valid client certificate"));
}

#[tokio::test]
async fn tls_that_the_server_does_not_have_is_asked_for_in_vain() {
    let url = format!("{}?sslmode=verify-full", database_url());
    let mut test = sink_at(&url, &database_url(), "readings", "", &telemetry_schema()).await;
    let text = test.refusal().await;
    assert!(text.contains("server does not support TLS"), "{text}");
}

#[tokio::test]
async fn a_database_without_the_extension_gets_an_ordinary_table() {
    let admin = connect(&database_url()).await;
    let database = unique("plain");
    admin.batch_execute(&format!("CREATE DATABASE {database} TEMPLATE template0")).await.unwrap();
    let url = database_url().replace("/iot", &format!("/{database}"));
    let mut test = sink_at(&url, &url, "telemetry", "create = true", &telemetry_schema()).await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().with_writer(std::sync::Mutex::new(log.reopen().unwrap())).finish();
    let logging = tracing::subscriber::set_default(subscriber);
    test.open().await.unwrap();
    drop(logging);
    let log = std::fs::read_to_string(log.path()).unwrap();
    assert!(log.contains("WARN") && log.contains("the database has no TimescaleDB extension"), "{log}");
    for _ in 0..2 {
        test.write(vec![many(1000, 0)]).await.unwrap();
    }
    assert_eq!((test.count().await, test.duplicates()), (1000, 1000));
    test.sink.sink.close().await.unwrap();
    admin.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await.unwrap();
}

// --- mistakes in the configuration

#[test]
fn mistakes_in_the_configuration_are_found_without_a_server() {
    let context = testing::build_context("db", "");
    let schema = Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("timestamp", timestamp_type(), false),
        Field::new("site", DataType::Utf8, true),
        Field::new("small", DataType::UInt8, true),
        Field::new("naïve", DataType::Utf8, true),
    ]));
    let good = "columns = { device_id = \"device_id\", timestamp = \"timestamp\", site = \"site\" }\n";
    let expected = [
        ("", "columns", "column \"small\" is UInt8, which can't be stored"),
        ("columns = { speed = \"speed\" }", "columns.speed", "the input has no column \"speed\""),
        ("columns = { \"naïve\" = \"naïve\" }", "columns.naïve", "\"naïve\" can't be the name of a column"),
        ("columns = { site = \"x\", device_id = \"x\" }", "columns.site", "two columns are stored as \"x\""),
        (&format!("{good}key = [\"device\"]"), "key", "no stored column is named \"device\""),
        (&format!("{good}key = [\"site\"]"), "key", "column \"site\" may be null"),
        (
            &format!("{good}key = [\"device_id\"]\ncreate = true"),
            "key",
            "the key is without \"timestamp\", the time column",
        ),
        (
            &format!("{good}time_column = \"site\""),
            "time_column",
            "the table has no timestamp column \"site\" that is never null",
        ),
        (&format!("{good}index = [\"site\", \"speed desc\"]"), "index.1", "the table has no column \"speed\""),
        (&format!("{good}batch_rows = 0"), "batch_rows", "a group has at least one row"),
        (
            "columns = { site = \"site\" }\nkey = []\ncreate = true",
            "time_column",
            "the stored columns don't have exactly one required timestamp",
        ),
    ];
    for (settings, key, message) in expected {
        let config = format!("url = \"postgres://u@localhost/iot\"\ntable = \"t\"\n{settings}");
        let Err(error) = build(&config, &schema, &context) else { panic!("accepted: {settings}") };
        assert_eq!((error.key.as_str(), error.message.as_str()), (key, message), "{settings}");
    }
    for table in ["a.b.c", "a b", "drop\\\"table", "", "x."] {
        let config = format!("url = \"postgres://u@localhost/iot\"\ntable = \"{table}\"\n{good}");
        let Err(error) = build(&config, &schema, &context) else { panic!("accepted: {table}") };
        assert_eq!(error.key, "table", "{table}");
    }
}
