//! Mistakes in the configuration, found without a server.

use super::*;

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
            &format!("{good}direct_compress = true"),
            "direct_compress",
            "a table with a unique key can't be compressed directly",
        ),
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
