//! A file of JSON lines to TimescaleDB and to Parquet, beside raw `COPY` and the bare Parquet writer of the same rows.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::SinkExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::WriterProperties;
use pipeline_stages::sinks::timescaledb::copy::Chunks;

use crate::machine::{self, Pipeline};
use crate::table::{Line, Target};
use crate::{Options, fleet, in_turns, peers};

const MESSAGES: u64 = 1_000_000;
/// Rows of one `COPY` of the limit, and of one batch of the writer: what a sink gets under load.
const BATCH_ROWS: u64 = 10_000;

fn json_lines(folder: &Path) -> PathBuf {
    let path = folder.join("readings.jsonl");
    let mut out = BufWriter::new(File::create(&path).expect("a folder of ours"));
    for number in 0..MESSAGES {
        writeln!(out, "{}", fleet::message(number)).expect("room on the disk");
    }
    out.flush().expect("room on the disk");
    path
}

/// Reads the file; what is refused goes nowhere.
fn source(lines: &Path) -> String {
    format!(
        "{}\n[sources.readings]\ntype = \"file\"\npath = \"{}\"\nformat = \"jsonl\"\nschema = \"telemetry\"\n\
         [sinks.refused]\ntype = \"discard\"\ninputs = [\"readings.rejected\"]\n",
        fleet::SCHEMA,
        lines.display()
    )
}

fn pipeline(lines: &Path, sink: &str) -> String {
    source(lines) + "[sinks.stored]\ninputs = [\"readings\"]\n" + sink
}

pub fn to_table(options: &Options) -> Vec<Line> {
    let runtime = machine::runtime();
    let database = runtime.block_on(machine::database());
    let url = machine::service("TEST_DATABASE_URL");
    let folder = tempfile::tempdir().expect("a folder");
    let lines = json_lines(folder.path());
    let batches = fleet::batches(MESSAGES, BATCH_ROWS);
    let sink = format!(
        "type = \"timescaledb\"\nurl = \"{url}\"\ntable = \"load_ours\"\nkey = [\"device_id\", \"timestamp\", \"seq\"]\n"
    );
    let text = pipeline(&lines, &sink);
    let fresh = |name: &str| runtime.block_on(database.batch_execute(&fleet::create_table(name))).expect("a table");
    let count = |name: &str| -> i64 {
        let row = runtime.block_on(database.query_one(&format!("SELECT count(*) FROM {name}"), &[]));
        row.expect("a count").get(0)
    };
    let good = fleet::good(MESSAGES);
    let mut cpu = Vec::new();
    let ours = || {
        fresh("load_ours");
        let run = tempfile::tempdir().expect("a folder");
        let before = machine::ended_cpu_seconds();
        let took = Pipeline::start(run.path(), &text).wait();
        cpu.push((machine::ended_cpu_seconds() - before) / MESSAGES as f64 * 1e6);
        assert_eq!(count("load_ours"), good as i64, "every good row once");
        good as f64 / took.as_secs_f64()
    };
    let limit = || {
        fresh("load_limit");
        let took = runtime.block_on(copy(&database, "load_limit", &batches));
        assert_eq!(count("load_limit"), good as i64, "every good row once");
        good as f64 / took
    };
    let (ours, limit) = in_turns(options.rounds, ours, limit);
    runtime.block_on(database.batch_execute("DROP TABLE load_ours, load_limit")).expect("tables of ours");
    let readings = [("READINGS", lines.display().to_string())];
    let peers = peers::lines(options, "file", MESSAGES, &readings, || {});
    let line = Line {
        path: "file to TimescaleDB, unique key".to_owned(),
        unit: "rows/s",
        ours,
        limit,
        target: Target::Ratio(0.9),
        more: format!(
            "{:.2} us of our CPU a message; limit: binary COPY of encoded rows, 10,000 a transaction",
            crate::median(cpu)
        ),
    };
    std::iter::once(line).chain(peers).collect()
}

/// Seconds that it takes to copy rows, which are bytes already, a transaction for each batch.
async fn copy(database: &tokio_postgres::Client, table: &str, batches: &[RecordBatch]) -> f64 {
    let order = |rows: &RecordBatch| (0..rows.num_rows() as u32).collect::<Vec<_>>();
    let encoded: Vec<Vec<Bytes>> =
        batches.iter().map(|rows| Chunks::new(rows, &fleet::TYPES, &order(rows)).collect()).collect();
    let statement = format!("COPY {table} (device_id, timestamp, temperature, humidity, seq) FROM STDIN BINARY");
    let started = Instant::now();
    for chunks in encoded {
        let sink = database.copy_in::<_, Bytes>(&statement).await.expect("COPY");
        let mut sink = std::pin::pin!(sink);
        for chunk in chunks {
            sink.send(chunk).await.expect("COPY");
        }
        sink.finish().await.expect("COPY");
    }
    started.elapsed().as_secs_f64()
}

/// The same by two sinks with a connection and half of the devices each, beside one sink.
pub fn by_two_connections(options: &Options) -> Vec<Line> {
    let runtime = machine::runtime();
    let database = runtime.block_on(machine::database());
    let url = machine::service("TEST_DATABASE_URL");
    let folder = tempfile::tempdir().expect("a folder");
    let lines = json_lines(folder.path());
    let good = fleet::good(MESSAGES);
    let sink = |name: &str, input: &str| {
        format!(
            "[sinks.{name}]\ntype = \"timescaledb\"\ninputs = [\"{input}\"]\nurl = \"{url}\"\ntable = \"load_ours\"\n\
             key = [\"device_id\", \"timestamp\", \"seq\"]\n"
        )
    };
    let split = "[transforms.split]\ntype = \"partition\"\ninputs = [\"readings\"]\nkey = [\"device_id\"]\nparts = 2\n";
    let two = source(&lines) + split + &sink("first", "split.0") + &sink("second", "split.1");
    let one = source(&lines) + &sink("stored", "readings");
    let rate = |text: &str| {
        runtime.block_on(database.batch_execute(&fleet::create_table("load_ours"))).expect("a table");
        let run = tempfile::tempdir().expect("a folder");
        let took = Pipeline::start(run.path(), text).wait();
        let row = runtime.block_on(database.query_one("SELECT count(*) FROM load_ours", &[]));
        assert_eq!(row.expect("a count").get::<_, i64>(0), good as i64, "every good row once");
        good as f64 / took.as_secs_f64()
    };
    let (ours, limit) = in_turns(options.rounds, || rate(&two), || rate(&one));
    runtime.block_on(database.batch_execute("DROP TABLE load_ours")).expect("a table of ours");
    vec![Line {
        path: "file to TimescaleDB by two connections, to one".to_owned(),
        unit: "rows/s",
        ours,
        limit,
        target: Target::None,
        more: "devices dealt out by `partition` to two sinks of one table, or all to one".to_owned(),
    }]
}

pub fn to_lake(options: &Options) -> Vec<Line> {
    let folder = tempfile::tempdir().expect("a folder");
    let lines = json_lines(folder.path());
    let batches = fleet::batches(MESSAGES, BATCH_ROWS);
    let good = fleet::good(MESSAGES);
    let (mut bytes_ours, mut bytes_limit) = (0, 0);
    let ours = || {
        let run = tempfile::tempdir().expect("a folder");
        let lake = run.path().join("lake");
        let sink = format!("type = \"parquet\"\nurl = \"{}\"\n", lake.display());
        let process = Pipeline::start(run.path(), &pipeline(&lines, &sink));
        let took = process.wait();
        bytes_ours = bytes_below(&lake);
        good as f64 / took.as_secs_f64()
    };
    let limit = || {
        let path = folder.path().join("limit.parquet");
        let took = write(&path, &lines, &batches[0]);
        bytes_limit = path.metadata().expect("it is written").len();
        good as f64 / took
    };
    let (ours, limit) = in_turns(options.rounds, ours, limit);
    vec![Line {
        path: "file to Parquet, zstd".to_owned(),
        unit: "rows/s",
        ours,
        limit,
        target: Target::Ratio(0.9),
        more: format!(
            "{:.2} bytes a row, the bare writer {:.2}; the limit decodes the same lines on one core and writes them, without an fsync",
            bytes_ours as f64 / good as f64,
            bytes_limit as f64 / good as f64
        ),
    }]
}

/// Seconds that the bare writer takes for the same lines: read, decoded, written.
fn write(path: &Path, lines: &Path, like: &RecordBatch) -> f64 {
    let started = Instant::now();
    let text = std::fs::read(lines).expect("it was written");
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("a level")))
        .set_dictionary_enabled(false)
        .set_column_dictionary_enabled("device_id".into(), true)
        .set_column_encoding("seq".into(), Encoding::DELTA_BINARY_PACKED)
        .set_column_encoding("timestamp".into(), Encoding::DELTA_BINARY_PACKED)
        .build();
    let out = File::create(path).expect("a folder of ours");
    let mut writer = ArrowWriter::try_new(out, like.schema(), Some(properties)).expect("a writer");
    let mut decoder = fleet::decoder();
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    for part in lines.chunks(BATCH_ROWS as usize) {
        let rows = fleet::decode(&mut decoder, part.iter().copied());
        writer.write(&rows).expect("it is written");
    }
    writer.close().expect("it is written");
    started.elapsed().as_secs_f64()
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.map(|path| if path.is_dir() { bytes_below(&path) } else { path.metadata().expect("a file").len() }).sum()
}
