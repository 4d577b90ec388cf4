//! The corpus of payloads, sent to a real broker: each bad one is a dead letter in table and lake, each good
//! one is in the table, value for value.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Installation, micros};
use crate::process::root;
use crate::services;

/// `tests/corpus/payloads/EXPECTED.toml`.
#[derive(serde::Deserialize)]
struct Corpus {
    group: Vec<Group>,
}

#[derive(serde::Deserialize)]
struct Group {
    folder: String,
    schema: String,
    expect: BTreeMap<String, Expect>,
}

#[derive(Clone, serde::Deserialize)]
#[serde(untagged)]
enum Expect {
    Reason(String),
    Count(usize),
    Rows(Vec<String>),
}

impl Expect {
    fn rows(&self) -> usize {
        match self {
            Self::Reason(_) => 0,
            Self::Count(count) => *count,
            Self::Rows(rows) => rows.len(),
        }
    }
}

struct Payload {
    topic: String,
    expect: Expect,
    bytes: Vec<u8>,
}

const SCHEMAS: [&str; 2] = ["fleet", "types"];
const FORMATS: [&str; 3] = ["json", "cbor", "msgpack"];

/// A source for each schema and format, a table for each schema, and one place for all dead letters.
fn pipeline(index: &str) -> String {
    let (mut text, _) = index.split_once("[[group]]").map(|(head, rest)| (head.to_owned(), rest)).expect("schemas");
    let mut refusals = Vec::new();
    for schema in SCHEMAS {
        let head = format!("[schema.{schema}]\n");
        let origin = "topic = { type = \"text\", message = \"topic\" }\n\
                      received_at = { type = \"timestamp\", message = \"received_at\", required = true }\n";
        text = text.replacen(&head, &format!("{head}{origin}"), 1);
        for format in FORMATS {
            text += &format!(
                "[sources.{schema}_{format}]\ntype = \"mqtt\"\nurl = \"${{MQTT_URL}}\"\nformat = \"{format}\"\n\
                 topics = [\"${{CORPUS_TOPIC}}/{schema}/{format}/#\"]\nschema = \"{schema}\"\n\
                 client_id = \"${{MQTT_CLIENT_ID}}-{schema}-{format}\"\n"
            );
            refusals.push(format!("\"{schema}_{format}.rejected\""));
        }
        let inputs = FORMATS.map(|format| format!("\"{schema}_{format}\"")).join(", ");
        text += &format!("[sinks.{schema}]\ninputs = [{inputs}]\n{}table = \"{schema}\"\n", table_keys("received_at"));
        refusals.push(format!("\"{schema}.rejected\""));
    }
    let inputs = refusals.join(", ");
    text += &format!("[sinks.letters]\ninputs = [{inputs}]\n{}table = \"letters\"\n", table_keys("received_at"));
    text += &format!(
        "[sinks.letters_lake]\ntype = \"parquet\"\ninputs = [{inputs}, \"letters.rejected\"]\n\
         url = \"${{S3_URL}}/letters\"\nroll_age = \"1s\"\n"
    );
    text
}

fn table_keys(time: &str) -> String {
    format!("type = \"timescaledb\"\nurl = \"${{DATABASE_URL}}\"\ncreate = true\nkey = []\ntime_column = \"{time}\"\n")
}

fn payloads(index: &str, topic: &str) -> Vec<Payload> {
    let corpus: Corpus = toml::from_str(index).expect("valid TOML");
    let mut payloads = Vec::new();
    for group in corpus.group.into_iter().filter(|group| SCHEMAS.contains(&group.schema.as_str())) {
        let format = group.folder.split('/').next().expect("a format");
        for (name, expect) in group.expect {
            let file = root().join(format!("tests/corpus/payloads/{}/{name}.{format}", group.folder));
            let bytes = std::fs::read(file).expect("a file of the corpus");
            payloads.push(Payload {
                topic: format!("{topic}/{}/{}/{name}", group.schema, group.folder),
                expect,
                bytes,
            });
        }
    }
    payloads
}

#[test]
fn bad_payloads_are_dead_lettered_with_their_reason_and_good_ones_stored() {
    let index = root().join("tests/corpus/payloads/EXPECTED.toml");
    let index = std::fs::read_to_string(index).expect("the corpus");
    let mut installation = Installation::new("corpus");
    let topic = installation.topic.clone();
    installation.variables.push(("CORPUS_TOPIC", topic.clone()));
    let file = installation.folder.path().join("corpus.toml");
    std::fs::write(&file, pipeline(&index)).expect("writable");
    let mut pipeline = installation.process(&["run", &file.display().to_string()], "pipeline");
    for (schema, format) in SCHEMAS.iter().flat_map(|schema| FORMATS.map(|format| (schema, format))) {
        pipeline.wait_for_log(&format!("filter=\"{topic}/{schema}/{format}/#\""));
    }
    let payloads = payloads(&index, &topic);
    let good = b"{\"device_id\":\"good\",\"timestamp\":\"2026-01-31T12:00:00Z\",\"temperature\":20.5}";
    let with_neighbours = payloads.iter().flat_map(|payload| {
        [(format!("{topic}/fleet/json/good"), good.as_slice()), (payload.topic.clone(), payload.bytes.as_slice())]
    });
    installation.runtime.block_on(services::publish(with_neighbours));

    let refused: Vec<(&Payload, &str)> = payloads
        .iter()
        .filter_map(
            |payload| if let Expect::Reason(reason) = &payload.expect { Some((payload, &**reason)) } else { None },
        )
        .collect();
    let rows = |schema: &str| -> usize {
        let own = payloads.iter().filter(|payload| payload.topic.starts_with(&format!("{topic}/{schema}/")));
        own.map(|payload| payload.expect.rows()).sum()
    };
    assert!(payloads.len() > 900 && refused.len() > 500, "{} payloads, {} bad", payloads.len(), refused.len());
    let (in_fleet, in_types) = ((rows("fleet") + payloads.len()) as i64, rows("types") as i64);
    installation.wait_for_rows("letters", refused.len() as i64);
    installation.wait_for_rows("fleet", in_fleet);
    installation.wait_for_rows("types", in_types);
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");

    assert_eq!(installation.count("select count(*) from fleet"), in_fleet);
    assert_eq!(installation.count("select count(*) from types"), in_types);
    let good = installation.count("select count(*) from fleet where topic like '%/json/good' and temperature = 20.5");
    assert_eq!(good, payloads.len() as i64, "no neighbour is missing");
    check_letters(&installation, &refused);
    check_values(&installation, &payloads);
}

fn check_letters(installation: &Installation, refused: &[(&Payload, &str)]) {
    let sql = "select topic, reason, payload from letters";
    let found = installation.runtime.block_on(installation.database.query(sql, &[])).expect("the dead letters");
    assert_eq!(found.len(), refused.len(), "one dead letter for each bad payload");
    let letters: BTreeMap<String, (String, Vec<u8>)> =
        found.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    for (payload, expected) in refused {
        let (reason, kept) = &letters[&payload.topic];
        assert_eq!(reason, expected, "{}", payload.topic);
        assert!(*kept == payload.bytes, "{} is kept as it came", payload.topic);
    }
    let lake = installation.runtime.block_on(services::read_parquet(&installation.bucket, "lake/letters"));
    let kept: usize = lake.iter().map(|batch| batch.num_rows()).sum();
    assert_eq!(kept, letters.len(), "dead letters are in the lake too");
}

/// What the database holds of each payload is what the corpus says of its rows.
fn check_values(installation: &Installation, payloads: &[Payload]) {
    let sql = "select topic, i16::int8, i32::int8, i64, f32::float8, f64, b, t,
                      (extract(epoch from at) * 1000000)::int8, j::text, x from types";
    let found = installation.runtime.block_on(installation.database.query(sql, &[])).expect("the table of all types");
    let mut by_topic: BTreeMap<&str, Vec<&tokio_postgres::Row>> = BTreeMap::new();
    for row in &found {
        by_topic.entry(row.get(0)).or_default().push(row);
    }
    for payload in payloads.iter().filter(|payload| payload.topic.contains("/types/")) {
        let stored = by_topic.get(payload.topic.as_str()).map_or(&[][..], Vec::as_slice);
        assert_eq!(stored.len(), payload.expect.rows(), "{}", payload.topic);
        let Expect::Rows(expected) = &payload.expect else { continue };
        let mut expected: Vec<String> = expected.iter().map(|row| told(&of_corpus(row))).collect();
        let mut stored: Vec<String> = stored.iter().map(|row| told(&of_database(row))).collect();
        expected.sort();
        stored.sort();
        assert_eq!(stored, expected, "{}", payload.topic);
    }
}

/// The values of a row that are there, by column. Times in microseconds, floats by their bits.
type Values = BTreeMap<&'static str, String>;

fn told(values: &Values) -> String {
    format!("{values:?}")
}

fn of_corpus(row: &str) -> Values {
    let row: Value = serde_json::from_str(row).expect("a row as JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let mut values = Values::new();
    for (column, value) in row.as_object().expect("an object") {
        let float = || value.as_f64().expect("a number");
        let (column, value) = match column.as_str() {
            "i16" => ("i16", value.to_string()),
            "i32" => ("i32", value.to_string()),
            "i64" => ("i64", value.to_string()),
            "f32" => ("f32", bits(f64::from(float() as f32))),
            "f64" => ("f64", bits(float())),
            "b" => ("b", value.to_string()),
            "t" => ("t", text(value)),
            "at" => ("at", micros(&text(value)).to_string()),
            "j" => ("j", json(&text(value))),
            "x" => ("x", text(value)),
            other => panic!("no column is named {other}"),
        };
        values.insert(column, value);
    }
    values
}

fn of_database(row: &tokio_postgres::Row) -> Values {
    let mut values = Values::new();
    let mut put = |column, value: Option<String>| values.extend(value.map(|value| (column, value)));
    for (index, column) in ["i16", "i32", "i64"].into_iter().enumerate() {
        put(column, row.get::<_, Option<i64>>(index + 1).map(|value| value.to_string()));
    }
    put("f32", row.get::<_, Option<f64>>(4).map(bits));
    put("f64", row.get::<_, Option<f64>>(5).map(bits));
    put("b", row.get::<_, Option<bool>>(6).map(|value| value.to_string()));
    put("t", row.get(7));
    put("at", row.get::<_, Option<i64>>(8).map(|value| value.to_string()));
    put("j", row.get::<_, Option<String>>(9).map(|text| json(&text)));
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    put("x", row.get::<_, Option<Vec<u8>>>(10).map(hex));
    values
}

fn bits(value: f64) -> String {
    format!("{:016x}", value.to_bits())
}

/// As the database sees JSON: of a doubled key the last value counts, minus zero is zero, and a number has
/// no form.
fn json(text: &str) -> String {
    fn plain(value: Value) -> Value {
        match value {
            Value::Number(number) => (number.as_f64().expect("a number") + 0.0).into(),
            Value::Array(items) => items.into_iter().map(plain).collect(),
            Value::Object(entries) => entries.into_iter().map(|(key, value)| (key, plain(value))).collect(),
            other => other,
        }
    }
    plain(serde_json::from_str(text).expect("JSON")).to_string()
}
