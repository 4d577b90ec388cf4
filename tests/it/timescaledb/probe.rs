//! What `pipeline check --connect` tells of the table.

use super::*;

async fn probe(test: &mut UnderTest) -> Result<String, StageError> {
    test.sink.sink.probe().await
}

#[tokio::test]
async fn the_probe_tells_server_edition_kind_key_and_why_there_is_no_direct_compress() {
    let mut test = sink_with("create = true", &telemetry_schema()).await;
    let server: String = test.client.query_one("SELECT split_part(version(), ' ', 2)", &[]).await.unwrap().get(0);
    let sql = "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'";
    let timescale: String = test.client.query_one(sql, &[]).await.unwrap().get(0);
    let head = format!("PostgreSQL {server}, TimescaleDB {timescale} (apache edition); table \"{}\"", test.table);
    assert_eq!(probe(&mut test).await.unwrap(), format!("{head} will be created"));
    test.open().await.unwrap();
    test.write(vec![telemetry(&[("a", 1, 1.0), ("a", 90_000, 1.0)])]).await.unwrap();
    let table = test.table.clone();
    let expected = format!(
        "{head} fits: a hypertable of 2 chunks, 0 of them compressed, unique over its key (device_id, timestamp); direct \
         compress can't be used: TimescaleDB {timescale} is older than 2.20; the edition is \"apache\", and only \
         \"timescale\" compresses; compression is not enabled on the hypertable; the unique index \"{table}_pkey\" looks \
         at every row"
    );
    assert_eq!(probe(&mut test).await.unwrap(), expected);
}

#[tokio::test]
async fn the_probe_names_a_missing_key_with_what_mends_it() {
    let mut test = sink_with("", &telemetry_schema()).await;
    test.sql("CREATE TABLE TABLE_NAME (device_id text, timestamp timestamptz, temperature float8)").await;
    let error = probe(&mut test).await.unwrap_err();
    assert!(error.chain().contains("no unique index over its key") && error.chain().contains("CREATE UNIQUE INDEX"));
    let table = test.table.clone();
    let mut without = sink_at(&database_url(), &database_url(), &table, "key = []", &telemetry_schema()).await;
    let text = probe(&mut without).await.unwrap();
    assert!(text.contains("fits: an ordinary table, no key: behind a source that can't resume"), "{text}");
}

#[tokio::test]
async fn direct_compress_is_refused_where_the_server_would_pass_over_it() {
    let settings = "create = true\nkey = []\ndirect_compress = true";
    let mut test = sink_with(settings, &telemetry_schema()).await;
    let text = test.refusal().await;
    for part in ["direct_compress can't be used for", "the edition is \"apache\"", "Set direct_compress = false"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let error = probe(&mut test).await.unwrap_err();
    assert_eq!((error.fault(), error.chain()), (Fault::Permanent, text));
}
