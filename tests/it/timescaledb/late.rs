//! Rows for compressed chunks.
//!
//! The Apache edition compresses nothing. Where it takes a chunk for compressed it refuses what old servers
//! refuse, with 0A000; and the limit that newer ones meet is played by a trigger.

use super::ledger::{advance, ledgered};
use super::*;

/// Rows of the first day meet the limit unless there is none.
const LIMITED: &str = "CREATE FUNCTION SCHEMA_NAME.unpack() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
     IF NEW.timestamp < '2026-01-02' AND \
         current_setting('timescaledb.max_tuples_decompressed_per_dml_transaction') <> '0' THEN \
         RAISE EXCEPTION 'tuple decompression limit exceeded by operation' USING ERRCODE = '53400'; \
     END IF; RETURN NEW; END $$; \
     CREATE TRIGGER unpack BEFORE INSERT ON TABLE_NAME FOR EACH ROW EXECUTE FUNCTION SCHEMA_NAME.unpack()";

const DAY_S: i64 = 86_400;

impl UnderTest {
    async fn sql_in_schema(&self, sql: &str) {
        let schema = self.table.split('.').next().unwrap();
        self.sql(&sql.replace("SCHEMA_NAME", schema)).await;
    }

    /// The chunk of the first day counts as compressed, as far as the Apache edition can tell.
    async fn compress_first_day(&self) {
        let table = self.table.split('.').nth(1).unwrap();
        let sql = format!(
            "UPDATE _timescaledb_catalog.chunk SET status = 1 WHERE id = (SELECT min(chunk.id) \
             FROM _timescaledb_catalog.chunk JOIN _timescaledb_catalog.hypertable ON hypertable_id = hypertable.id \
             WHERE hypertable.table_name = '{table}' AND hypertable.schema_name = 'SCHEMA_NAME')"
        );
        self.sql_in_schema(&sql).await;
    }

    async fn limit(&self) -> String {
        let sql = format!("SELECT DISTINCT limits FROM {} WHERE device_id = 'late'", self.table);
        self.client.query_one(&sql, &[]).await.unwrap().get(0)
    }
}

#[tokio::test]
async fn rows_that_meet_the_limit_are_stored_without_it_and_their_neighbours_with_them() {
    for key in ["", "key = []"] {
        let mut test = ledgered(&database_url(), key).await;
        test.resume().await.unwrap();
        test.sql_in_schema(LIMITED).await;
        let settings = "concat_ws(' ', current_setting('timescaledb.max_tuples_decompressed_per_dml_transaction'), \
                        current_setting('statement_timeout'))";
        test.sql(&format!("ALTER TABLE TABLE_NAME ADD limits text DEFAULT {settings}")).await;
        let group = |from, to| {
            let batches = vec![telemetry(&[("late", from, 1.0)]), many(500, DAY_S + from * 1000)];
            Group::advancing(batches, vec![advance(from.unsigned_abs(), to)])
        };
        test.sink.sink.write(&group(0, 1)).await.unwrap();
        assert_eq!((test.count().await, test.limit().await.as_str()), (501, "0 10min"), "{key}");
        assert!(test.counter("late_rows") >= 1, "{key}");
        // The limits are back for the next group.
        test.sink.sink.write(&Group::advancing(vec![many(500, 5 * DAY_S)], vec![advance(1, 2)])).await.unwrap();
        let sql = format!("SELECT DISTINCT limits FROM {} WHERE timestamp > '2026-01-05'", test.table);
        assert_eq!(test.client.query_one(&sql, &[]).await.unwrap().get::<_, &str>(0), "100000 1min", "{key}");
        assert_eq!(test.ledger().await, ["valid telemetry/1 2 1001"], "{key}");
        assert_eq!(test.counter("reconnects"), 0, "{key}");
    }
}

#[tokio::test]
async fn duplicates_conflicts_and_bad_rows_are_found_in_the_late_lane_too() {
    let mut test = ledgered(&database_url(), "").await;
    test.resume().await.unwrap();
    test.write(vec![telemetry(&[("a", 1, 1.0), ("b", 1, 2.0)])]).await.unwrap();
    test.sql_in_schema(LIMITED).await;
    test.sql("ALTER TABLE TABLE_NAME ADD CHECK (temperature < 100)").await;
    let rows = [("a", 1, 1.0), ("b", 1, 9.0), ("c", 1, 3.0), ("hot", 1, 200.0), ("d", DAY_S, 4.0)];
    let error = test.write(vec![telemetry(&rows)]).await.unwrap_err();
    assert_eq!(refused(&error), [(0, 1, "conflict"), (0, 3, "23514")]);
    test.write(vec![telemetry(&[rows[0], rows[2], rows[4]])]).await.unwrap();
    assert_eq!((test.readings().await.as_str(), test.duplicates()), ("a1 b2 c3 d4", 1));
}

#[tokio::test]
async fn rows_that_an_old_server_cannot_store_in_a_compressed_chunk_are_refused_and_no_others() {
    let mut test = ledgered(&database_url(), "").await;
    test.resume().await.unwrap();
    test.write(vec![telemetry(&[("a", 1, 1.0), ("b", DAY_S, 2.0)])]).await.unwrap();
    test.compress_first_day().await;
    let last_second = DAY_S - 1;
    let rows = [("c", 1, 3.0), ("d", DAY_S, 4.0), ("e", last_second, 5.0), ("f", 2 * DAY_S, 6.0)];
    let whole = Group::advancing(vec![telemetry(&rows)], vec![advance(0, 1)]);
    let error = test.sink.sink.write(&whole).await.unwrap_err();
    assert_eq!(refused(&error), [(0, 0, "0A000"), (0, 2, "0A000")]);
    let rest = Group::advancing(vec![telemetry(&[rows[1], rows[3]])], vec![advance(0, 1)]);
    test.sink.sink.write(&rest).await.unwrap();
    assert_eq!((test.readings().await.as_str(), test.counter("reconnects")), ("a1 b2 d4 f6", 0));
    assert_eq!(test.ledger().await, ["valid telemetry/1 1 2"]);
}

#[tokio::test]
async fn what_the_server_cannot_do_for_any_row_is_permanent_as_before() {
    let mut test = ledgered(&database_url(), "").await;
    test.resume().await.unwrap();
    test.sql_in_schema(&LIMITED.replace("53400", "0A000")).await;
    let error = test.write(vec![telemetry(&[("a", 1, 1.0)])]).await.unwrap_err();
    assert_eq!((error.fault(), error.outside_code()), (Fault::Permanent, Some("0A000")), "{}", error.chain());
}

#[tokio::test]
async fn a_limit_that_is_met_without_that_setting_is_tried_again_later() {
    let mut test = ledgered(&database_url(), "").await;
    test.resume().await.unwrap();
    test.sql_in_schema(&LIMITED.replace("<> '0'", "IS NOT NULL")).await;
    let error = test.write(vec![telemetry(&[("a", 1, 1.0)])]).await.unwrap_err();
    assert_eq!((error.fault(), error.outside_code()), (Fault::Transient, Some("53400")), "{}", error.chain());
}
