//! Tables that are missing, do not fit, or change.

use super::*;

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
