//! The file source as the engine runs it: files in, batches and dead letters out.

mod cores;
mod corpus;

use std::io::Write;
use std::path::Path;

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use pipeline_engine::stage::{Batch, Fault};
use pipeline_engine::testing::{self, Outlet, build_context};
use tempfile::TempDir;

use super::*;

const SCHEMAS: &str = "[schema.nab]\ntimestamp = { type = \"timestamp\", required = true }\nvalue = \"float64\"\n\
                       [schema.notes]\nid = { type = \"int64\", required = true }\nnote = \"text\"\n\
                       [schema.stamped]\nv = \"int64\"\nat = \"timestamp\"\nreceived = { type = \"timestamp\", message = \"received_at\" }";

/// What came out: rows and dead letters as JSON lines, and the spans of the batches.
#[derive(Debug, Default)]
struct Outcome {
    rows: Vec<String>,
    refusals: Vec<(String, String, String)>,
    spans: Vec<String>,
    error: Option<StageError>,
}

/// The table of a pipeline file without its `type`.
fn config(text: &str) -> FileConfig {
    toml::from_str(text).unwrap()
}

fn mistake(text: &str) -> BuildError {
    config(text).build(&build_context("files", SCHEMAS)).err().unwrap()
}

async fn run(text: &str) -> Outcome {
    run_with(SCHEMAS, text).await
}

async fn run_with(schemas: &str, text: &str) -> Outcome {
    let built = config(text).build(&build_context("files", schemas)).unwrap();
    let (cx, outlet) = testing::source(20_000);
    let source = tokio::spawn(built.source.run(cx));
    let mut outcome = collect(outlet).await;
    outcome.error = source.await.unwrap().err();
    outcome
}

/// Takes and delivers everything until the source closes its ports.
async fn collect(mut outlet: Outlet) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(batch) = outlet.next().await {
        take_rows(batch, &mut outcome);
    }
    // Their queue holds more dead letters than any test makes.
    while let Some(batch) = outlet.next_rejected().await {
        take_refusals(batch, &mut outcome);
    }
    outcome
}

fn take_rows(batch: Batch, outcome: &mut Outcome) {
    assert!(batch.rows.num_rows() > 0, "no batch is empty");
    let lines = dead_letter::json_lines(&batch.rows).unwrap();
    outcome.rows.extend(String::from_utf8(lines).unwrap().lines().map(str::to_owned));
    let (partition, span) = batch.ack().span().unwrap();
    outcome.spans.push(format!("{} {span}", Path::new(partition).file_name().unwrap().display()));
    testing::deliver(batch);
}

fn take_refusals(batch: Batch, outcome: &mut Outcome) {
    use arrow::array::AsArray;
    assert!(batch.rows.num_rows() > 0, "no batch is empty");
    let text =
        |row: usize, name: &str| batch.rows.column_by_name(name).unwrap().as_string::<i32>().value(row).to_owned();
    let payloads = batch.rows.column_by_name("payload").unwrap().as_binary::<i32>();
    for row in 0..batch.rows.num_rows() {
        let payload = String::from_utf8_lossy(payloads.value(row)).into_owned();
        outcome.refusals.push((text(row, "position"), text(row, "reason"), payload));
    }
    testing::deliver(batch);
}

fn refusal(line: u64, reason: &str, payload: &str) -> (String, String, String) {
    (line.to_string(), reason.to_owned(), payload.to_owned())
}

fn write(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn csv_records_become_rows_and_bad_ones_dead_letters_with_their_line() {
    let folder = TempDir::new().unwrap();
    let content = "timestamp,value\n2013-12-02 21:15:00,73.9\n2013-12-02 21:20:00,warm\n\nyesterday,1\n\
                   2013-12-02 21:25:00\n2013-12-02 21:30:00,\n,1\n2013-12-02 21:35:00,nan\n2013-12-02 21:40:00, 75 ";
    let path = write(&folder, "nab.csv", content);
    let outcome = run(&format!("path = '{path}'\nformat = \"csv\"\nschema = \"nab\"")).await;
    assert_eq!(
        outcome.rows,
        [
            "{\"timestamp\":\"2013-12-02T21:15:00Z\",\"value\":73.9}",
            "{\"timestamp\":\"2013-12-02T21:30:00Z\"}",
            "{\"timestamp\":\"2013-12-02T21:40:00Z\",\"value\":75.0}",
        ]
    );
    assert_eq!(
        outcome.refusals,
        [
            refusal(3, "wrong_type", "2013-12-02 21:20:00,warm"),
            refusal(5, "bad_timestamp", "yesterday,1"),
            refusal(6, "invalid_csv", "2013-12-02 21:25:00"),
            refusal(8, "missing", ",1"),
            refusal(9, "not_finite", "2013-12-02 21:35:00,nan"),
        ]
    );
    assert_eq!(outcome.spans, ["nab.csv 2..10"]);
    assert!(outcome.error.is_none());
}

#[tokio::test]
async fn csv_fields_are_found_by_name_and_may_be_quoted() {
    let folder = TempDir::new().unwrap();
    let content = "\u{feff}extra,\"note\",id\r\nx,\"a, \"\"b\"\"\nand c\",1\r\n\r\n,5\" pipe,2\r\ny,,3\r\n";
    let path = write(&folder, "notes.csv", content);
    let outcome = run(&format!("path = '{path}'\nformat = \"csv\"\nschema = \"notes\"")).await;
    assert_eq!(
        outcome.rows,
        ["{\"id\":1,\"note\":\"a, \\\"b\\\"\\nand c\"}", "{\"id\":2,\"note\":\"5\\\" pipe\"}", "{\"id\":3}",]
    );
    assert_eq!(outcome.refusals, []);
    assert_eq!(outcome.spans, ["notes.csv 2..6"]);
}

#[tokio::test]
async fn a_quote_that_is_never_closed_takes_no_neighbours_with_it() {
    let folder = TempDir::new().unwrap();
    let good: String = (10..40_000).map(|id| format!("{id},fine\n")).collect();
    for (name, content) in [
        // The next quote is far, or there is none: then the limit ends the record, or the file does.
        ("to_the_limit.csv", format!("id,note\n1,ok\n2,\"open\n3,ok\n{good}")),
        ("to_the_end.csv", "id,note\n1,ok\n2,\"open\n3,ok\n10,fine".to_owned()),
        ("to_the_next.csv", "id,note\n1,ok\n2,\"open\n3,ok\n10,fine\n11,\"fine\"\n".to_owned()),
    ] {
        let rows = content.lines().count() - 2;
        let path = write(&folder, name, &content);
        let text = format!("path = '{path}'\nformat = \"csv\"\nschema = \"notes\"\nline_bytes_max = \"64KiB\"");
        let outcome = run(&text).await;
        let reasons: Vec<_> =
            outcome.refusals.iter().map(|(line, _, payload)| (line.as_str(), payload.as_str())).collect();
        assert_eq!(reasons, [("3", "2,\"open")], "{name}");
        assert_eq!(outcome.rows.len(), rows, "{name}");
        assert_eq!(outcome.rows[1], "{\"id\":3,\"note\":\"ok\"}", "{name}");
    }
}

#[tokio::test]
async fn json_lines_become_rows_of_the_schema_or_of_messages() {
    let folder = TempDir::new().unwrap();
    let content = "\u{feff}{\"id\":1}\r\n  \n[{\"id\":2},{\"id\":3}]\nnot json\n{\"id\":4}";
    let path = write(&folder, "a.jsonl", content);
    let outcome = run(&format!("path = '{path}'\nformat = \"jsonl\"\nschema = \"notes\"")).await;
    assert_eq!(outcome.rows, ["{\"id\":1}", "{\"id\":2}", "{\"id\":3}", "{\"id\":4}"]);
    assert_eq!(outcome.refusals, [refusal(4, "invalid_json", "not json")]);
    assert_eq!(outcome.spans, ["a.jsonl 1..5"]);
    let raw = run(&format!("path = '{path}'\nformat = \"jsonl\"\ntopic = \"replay/a\"")).await;
    assert_eq!(raw.rows.len(), 4);
    assert!(
        raw.rows[2].starts_with("{\"topic\":\"replay/a\",\"payload\":\"6e6f74206a736f6e\",\"received_at\":"),
        "{}",
        raw.rows[2]
    );
}

#[tokio::test]
async fn a_line_beyond_the_limit_is_a_dead_letter_with_its_beginning() {
    let folder = TempDir::new().unwrap();
    let fits = format!("{{\"id\":1,\"note\":\"{}\"}}", "x".repeat(10_000 - 18));
    assert_eq!(fits.len(), 10_000);
    for (name, format, content) in [
        ("a.jsonl", "jsonl", format!("{fits}\n{fits} \n{}\r\n{fits}\r\n", "y".repeat(300_000))),
        ("last.jsonl", "jsonl", format!("{fits}\n{fits} \n{}", "y".repeat(300_000))),
        ("a.csv", "csv", format!("id,note\n1,x\n2,{}\n{}\n3,x\n", "z".repeat(10_000), "y".repeat(300_000))),
    ] {
        let path = write(&folder, name, content);
        let text = format!("path = '{path}'\nformat = \"{format}\"\nschema = \"notes\"\nline_bytes_max = \"10kB\"");
        let outcome = run(&text).await;
        assert_eq!(outcome.rows.len(), if name == "last.jsonl" { 1 } else { 2 }, "{name}");
        assert_eq!(outcome.refusals.len(), 2, "{name}");
        assert!(outcome.refusals.iter().all(|(_, reason, payload)| reason == "line_too_long" && payload.len() == 4096));
        let first = if format == "csv" { "3" } else { "2" };
        assert_eq!(outcome.refusals[0].0, first, "{name}");
        assert_eq!(outcome.refusals[1].2, "y".repeat(4096), "{name}");
    }
}

#[tokio::test]
async fn empty_lines_are_no_records_however_many() {
    let folder = TempDir::new().unwrap();
    let gap = "\r\n".repeat(1000);
    let path = write(&folder, "a.csv", format!("\n\nid,note\n{gap}1,x{gap}2,y{gap}"));
    let text = format!("path = '{path}'\nformat = \"csv\"\nschema = \"notes\"\nline_bytes_max = \"100B\"");
    let outcome = run(&text).await;
    assert_eq!(outcome.rows, ["{\"id\":1,\"note\":\"x\"}", "{\"id\":2,\"note\":\"y\"}"]);
    assert_eq!(outcome.refusals, []);
    assert_eq!(outcome.spans, ["a.csv 1004..2004"]);
}

#[tokio::test]
async fn batches_end_where_the_content_says_so() {
    let folder = TempDir::new().unwrap();
    let content: String = (1..=20_000).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    let large = format!("{{\"id\":1,\"note\":\"{}\"}}\n", "x".repeat(60_000)).repeat(300);
    let paths = [write(&folder, "small.jsonl", content), write(&folder, "large.jsonl", large)];
    let text = format!("path = {paths:?}\nformat = \"jsonl\"\nschema = \"notes\"");
    let outcome = run(&text).await;
    assert_eq!(outcome.rows.len(), 20_300);
    let expected = ["small.jsonl 1..8192", "small.jsonl 8193..16384", "small.jsonl 16385..20000"];
    assert_eq!(outcome.spans[..3], expected);
    assert_eq!(outcome.spans[3..], ["large.jsonl 1..140", "large.jsonl 141..280", "large.jsonl 281..300"]);
    assert_eq!(run(&text).await.spans, outcome.spans, "the same again");
}

#[tokio::test]
async fn gzip_of_several_members_is_one_file() {
    let folder = TempDir::new().unwrap();
    let members = [gzip(b"{\"id\":1}\n{\"i"), gzip(b"d\":2}\n")].concat();
    let path = write(&folder, "a.jsonl.gz", &members);
    let outcome = run(&format!("path = '{path}'\nformat = \"jsonl\"\nschema = \"notes\"")).await;
    assert_eq!(outcome.rows, ["{\"id\":1}", "{\"id\":2}"]);
    let path = write(&folder, "unnamed", &members);
    let outcome =
        run(&format!("path = '{path}'\nformat = \"jsonl\"\nschema = \"notes\"\ncompression = \"gzip\"")).await;
    assert_eq!(outcome.rows.len(), 2);
}

#[tokio::test]
async fn a_gzip_file_that_is_cut_off_stops_the_run_and_names_the_line() {
    let folder = TempDir::new().unwrap();
    let content: String = (1..=50_000).map(|id| format!("{{\"id\":{}}}\n", id * 7919)).collect();
    let mut packed = gzip(content.as_bytes());
    packed.truncate(packed.len() - 1000);
    let path = write(&folder, "a.jsonl.gz", &packed);
    let outcome = run(&format!("path = '{path}'\nformat = \"jsonl\"\nschema = \"notes\"")).await;
    let error = outcome.error.unwrap();
    assert_eq!(error.fault(), Fault::Permanent);
    let text = error.chain();
    assert!(text.starts_with(&format!("\"{path}\" can't be read beyond line 4")), "{text}");
    assert!(text.ends_with("The packed file is cut off: fetch it again."), "{text}");
    assert_eq!(outcome.rows.len() % 8192, 0, "a batch that was only begun doesn't leave");
    assert!(outcome.rows.len() >= 8192);
}

#[tokio::test]
async fn mistakes_show_before_any_row_leaves() {
    let folder = TempDir::new().unwrap();
    let good = write(&folder, "good.csv", "timestamp,value\n2013-12-02 21:15:00,1\n");
    let headless = write(&folder, "headless.csv", "");
    let other = write(&folder, "other.csv", "time,value\n2013-12-02 21:15:00,1\n");
    let twice = write(&folder, "twice.csv", "timestamp,value,value\n");
    let not_gzip = write(&folder, "a.csv.gz", "timestamp,value\n");
    let gone = folder.path().join("gone.csv").to_str().unwrap().to_owned();
    let dir = folder.path().to_str().unwrap().to_owned();
    for (path, expected) in [
        (&gone, format!("can't open \"{gone}\"")),
        (&dir, format!("\"{dir}\" is a folder. List the files in it")),
        (
            &headless,
            format!(
                "the header of \"{headless}\" has no field \"timestamp\", which a required column needs. It has none."
            ),
        ),
        (
            &other,
            format!(
                "the header of \"{other}\" has no field \"timestamp\", which a required column needs. It has time, value."
            ),
        ),
        (&twice, format!("the header of \"{twice}\" has the name of field 3 twice.")),
        (&not_gzip, format!("\"{not_gzip}\" can't be read beyond line 0: ")),
    ] {
        let paths = [&good, path];
        let outcome = run(&format!("path = {paths:?}\nformat = \"csv\"\nschema = \"nab\"")).await;
        let error = outcome.error.unwrap();
        assert_eq!(error.fault(), Fault::Permanent);
        assert!(error.chain().starts_with(&expected), "{}", error.chain());
        assert_eq!(outcome.rows, [""; 0]);
    }
}

#[tokio::test]
async fn a_check_finds_what_a_run_would() {
    let folder = TempDir::new().unwrap();
    let good = write(&folder, "good.csv", "timestamp,value\n");
    let other = write(&folder, "other.csv", "time,value\n");
    let probe = async |paths: &[&String]| {
        let text = format!("path = {paths:?}\nformat = \"csv\"\nschema = \"nab\"");
        config(&text).build(&build_context("files", SCHEMAS)).unwrap().source.probe().await
    };
    assert_eq!(probe(&[&good]).await.unwrap(), "the file can be read");
    assert_eq!(probe(&[&good, &good]).await.unwrap(), "all 2 files can be read");
    assert_eq!(probe(&[&good, &other]).await.unwrap_err().fault(), Fault::Permanent);
}

#[tokio::test]
async fn a_stop_ends_reading_and_what_was_sent_is_still_delivered() {
    let folder = TempDir::new().unwrap();
    let content: String = (1..=100_000).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    let path = write(&folder, "a.jsonl", content);
    let text = format!("path = '{path}'\nformat = \"jsonl\"\nschema = \"notes\"");
    let built = config(&text).build(&build_context("files", SCHEMAS)).unwrap();
    let (cx, mut outlet) = testing::source(8192);
    let source = tokio::spawn(built.source.run(cx));
    let first = outlet.next().await.unwrap();
    outlet.stop();
    let mut outcome = collect(outlet).await;
    assert!(!source.is_finished(), "the first batch has no verdict yet");
    take_rows(first, &mut outcome);
    assert!(source.await.unwrap().is_ok());
    assert!(outcome.rows.len() < 100_000, "it stopped before the end");
    assert_eq!(outcome.rows.len() % 8192, 0);
}

#[tokio::test]
async fn a_broken_promise_is_an_error() {
    let folder = TempDir::new().unwrap();
    let path = write(&folder, "a.jsonl", "{\"id\":1}\n");
    let built =
        config(&format!("path = '{path}'\nformat = \"jsonl\"")).build(&build_context("files", SCHEMAS)).unwrap();
    let (cx, mut outlet) = testing::source(10);
    let source = tokio::spawn(built.source.run(cx));
    drop(outlet.next().await.unwrap());
    assert!(source.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_paced_replay_sends_every_row_with_its_own_values_and_a_new_time_of_receipt() {
    let folder = TempDir::new().unwrap();
    // The third goes back in time, the fourth has no time, the fifth does not fit.
    let content = "{\"v\":1,\"at\":1000}\n[{\"v\":2,\"at\":1001},{\"v\":3,\"at\":1900}]\n{\"v\":4,\"at\":900}\n{\"v\":5}\nx\n{\"v\":6,\"at\":2000}\n";
    let path = write(&folder, "a.jsonl", content);
    let started = pipeline_engine::now_us();
    let clock = tokio::time::Instant::now();
    let outcome =
        run(&format!("path = '{path}'\nformat = \"jsonl\"\nschema = \"stamped\"\npace = \"at\"\nspeed = 2.0")).await;
    let rows: Vec<serde_json::Value> = outcome.rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect();
    assert_eq!(rows.iter().map(|row| row["v"].as_i64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(rows[5]["at"], "1970-01-01T00:33:20Z");
    let received: Vec<i64> = rows
        .iter()
        .map(|row| chrono::DateTime::parse_from_rfc3339(row["received"].as_str().unwrap()).unwrap().timestamp_micros())
        .collect();
    assert!(received.is_sorted() && received[0] >= started);
    assert_eq!(clock.elapsed().as_secs(), 500, "1,000 recorded seconds at twice their pace");
    assert_eq!(outcome.spans, ["a.jsonl 1..1", "a.jsonl 2..5", "a.jsonl 6..6"]);
    assert_eq!(outcome.refusals, [refusal(5, "invalid_json", "x")]);
    assert!(outcome.error.is_none());
}

#[tokio::test]
async fn a_stop_ends_a_replay_that_waits() {
    let folder = TempDir::new().unwrap();
    let path = write(&folder, "a.jsonl", "{\"v\":1,\"at\":0}\n{\"v\":2,\"at\":1000000}\n");
    let text = format!("path = '{path}'\nformat = \"jsonl\"\nschema = \"stamped\"\npace = \"at\"");
    let built = config(&text).build(&build_context("files", SCHEMAS)).unwrap();
    let (cx, mut outlet) = testing::source(10);
    let source = tokio::spawn(built.source.run(cx));
    let first = outlet.next().await.unwrap();
    assert_eq!(first.rows.num_rows(), 1, "the second is due in 11 days");
    testing::deliver(first);
    outlet.stop();
    assert!(outlet.next().await.is_none());
    assert!(source.await.unwrap().is_ok());
}

#[test]
fn mistakes_in_the_configuration_name_their_key() {
    let cases = [
        ("path = []\nformat = \"jsonl\"", "path", "the list of files is empty"),
        ("path = \"a\"\nformat = \"csv\"", "schema", "a CSV file needs a schema"),
        ("path = \"a\"\nformat = \"csv\"\nschema = \"nap\"", "schema", "no schema is named \"nap\""),
        ("path = \"a\"\nformat = \"jsonl\"\nspeed = 2.0", "speed", "only a paced replay has a speed"),
        (
            "path = \"a\"\nformat = \"jsonl\"\nschema = \"nab\"\npace = \"timestamp\"\nspeed = 0.0",
            "speed",
            "a replay can't run at 0 times its pace",
        ),
        (
            "path = \"a\"\nformat = \"jsonl\"\nschema = \"nab\"\npace = \"timestamp\"\nspeed = nan",
            "speed",
            "a replay can't run at NaN times its pace",
        ),
        (
            "path = \"a\"\nformat = \"jsonl\"\nschema = \"nab\"\npace = \"time\"",
            "pace",
            "the input has no column \"time\"",
        ),
        (
            "path = \"a\"\nformat = \"jsonl\"\nschema = \"nab\"\npace = \"value\"",
            "pace",
            "column \"value\" is Float64, not a timestamp",
        ),
        (
            "path = \"a\"\nformat = \"jsonl\"\npace = \"received_at\"",
            "pace",
            "column \"received_at\" is the time of receipt, which a replay makes anew",
        ),
        ("path = \"a\"\nformat = \"jsonl\"\nline_bytes_max = \"0B\"", "line_bytes_max", "no line has zero bytes"),
    ];
    for (text, key, message) in cases {
        let mistake = mistake(text);
        assert_eq!((mistake.key.as_str(), mistake.message.as_str()), (key, message), "{text}");
    }
}
