//! A stage in Python: rows through pyarrow and back, while the program crashes and hangs.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type};
use pipeline_engine::stage::{Batch, BuildContext, Emitter, Port, TransformConfig};
use pipeline_stages::transforms::exec::ExecConfig;

use crate::services::python;

/// Doubles a column. One batch in ten it dies before it has answered, one in forty it hangs.
const PROGRAM: &str = r#"
import os, random, sys, time
import pyarrow as pa, pyarrow.compute as pc

with pa.ipc.open_stream(sys.stdin.buffer) as rows, pa.ipc.new_stream(sys.stdout.buffer, rows.schema) as out:
    for batch in rows:
        chance = random.random()
        if chance < 0.1:
            os._exit(7)
        if chance < 0.125:
            time.sleep(600)
        out.write_batch(batch.set_column(1, "value", pc.multiply(batch["value"], 2.0)))
        sys.stdout.buffer.flush()
"#;

#[test]
fn a_program_that_crashes_and_hangs_loses_no_row_and_doubles_none() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("double.py");
    std::fs::write(&script, PROGRAM).unwrap();
    let text =
        format!("command = [\"{}\", \"{}\"]\ntimeout = \"5s\"\nattempts = 20", python().display(), script.display());
    let config: ExecConfig = toml::from_str(&text).unwrap();
    let batch = |number: i64| {
        let ids = Int64Array::from_iter_values(number * 10..number * 10 + 10);
        let values = Float64Array::from_iter_values(ids.values().iter().map(|id| *id as f64));
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(ids) as ArrayRef, true),
            ("value", Arc::new(values) as ArrayRef, true),
        ])
        .unwrap()
    };
    let cx = BuildContext::detached("doubled", BTreeMap::new());
    let mut stage = config.build(&batch(0).schema(), &cx).unwrap();
    stage.transform.open().unwrap();
    let mut out = Emitter::default();
    let mut next = 0;
    for number in 0..100 {
        stage.transform.apply(Batch::detached(batch(number)), &mut out).unwrap();
        for (port, batch) in out.take() {
            assert_eq!(port, Port::MAIN, "no row is refused");
            let ids = batch.rows.column(0).as_primitive::<Int64Type>();
            let values = batch.rows.column(1).as_primitive::<Float64Type>();
            for (id, value) in ids.values().iter().zip(values.values()) {
                assert_eq!((*id, *value), (next, next as f64 * 2.0), "each once and in order");
                next += 1;
            }
        }
    }
    assert_eq!(next, 1_000);
    stage.transform.finish(&mut out).unwrap();
    assert!(cx.counter("restarts").get() > 0, "it did crash");
}

/// Answers once more after its input has ended.
const TALKATIVE: &str = r#"
import sys
import pyarrow as pa

with pa.ipc.open_stream(sys.stdin.buffer) as rows, pa.ipc.new_stream(sys.stdout.buffer, rows.schema) as out:
    for batch in rows:
        out.write_batch(batch)
        sys.stdout.buffer.flush()
    out.write_batch(batch)
"#;

#[test]
fn what_a_program_answers_after_its_last_batch_is_told() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().with_writer(std::sync::Mutex::new(log.reopen().unwrap())).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let text = format!("command = [\"{}\", \"-c\", '''{TALKATIVE}''']", python().display());
    let config: ExecConfig = toml::from_str(&text).unwrap();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..3));
    let rows = RecordBatch::try_from_iter_with_nullable([("id", ids, true)]).unwrap();
    let mut stage = config.build(&rows.schema(), &BuildContext::detached("copied", BTreeMap::new())).unwrap();
    stage.transform.open().unwrap();
    let mut out = Emitter::default();
    stage.transform.apply(Batch::detached(rows), &mut out).unwrap();
    stage.transform.finish(&mut out).unwrap();
    let log = std::fs::read_to_string(log.path()).unwrap();
    assert!(log.contains("it answered 3 rows more after its last batch"), "{log}");
}
