//! Tables that rows are looked up in, by `enrich` and `geofence`, against a real database and a real S3 store.

mod door;
mod object;
mod query;
mod started;

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, StringArray, TimestampMicrosecondArray};
use arrow::record_batch::RecordBatch;
use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::stage::{Batch, BuildContext, Emitter, Fault, Port, StageError, Transform, TransformConfig};
use pipeline_engine::testing;
use pipeline_stages::transforms::enrich::EnrichConfig;
use pipeline_stages::transforms::geofence::GeofenceConfig;
use serde_json::Value;

use crate::process::wait_until;
use crate::services;

/// Readings of these devices, where a device stands at its own latitude and longitude.
fn readings(devices: &[&str]) -> RecordBatch {
    let place = |device: &&str| device.len() as f64;
    RecordBatch::try_from_iter([
        ("device_id", Arc::new(StringArray::from_iter_values(devices)) as ArrayRef),
        ("lat", Arc::new(Float64Array::from_iter_values(devices.iter().map(place))) as ArrayRef),
        ("lon", Arc::new(Float64Array::from_iter_values(devices.iter().map(place))) as ArrayRef),
    ])
    .expect("columns of one length")
}

/// A stage with a table, and its counters.
struct Looked {
    transform: Box<dyn Transform>,
    cx: BuildContext,
}

impl Looked {
    /// `enrich` of this configuration; S3 by the shared store's credentials.
    fn enrich(text: &str) -> Self {
        let config = toml::from_str::<EnrichConfig>(text).expect("a valid configuration");
        Self::built(config.environment(services::s3().environment()))
    }

    fn built(config: impl TransformConfig) -> Self {
        let cx = testing::build_context("located", "");
        let built = config.build(&readings(&[]).schema(), &cx).expect("a valid configuration");
        Self { transform: built.transform, cx }
    }

    fn opened(mut self) -> Self {
        self.transform.open().expect("the table can be read");
        self
    }

    /// Why the table can't be read at the start.
    fn refusal(mut self) -> StageError {
        self.transform.open().expect_err("the table must be refused")
    }

    /// What the main port gives for readings of these devices.
    fn rows(&mut self, devices: &[&str]) -> Vec<Value> {
        let mut out = Emitter::default();
        self.transform.apply(Batch::detached(readings(devices)), &mut out).expect("no row is a mistake");
        let emitted = out.take();
        let main = emitted.iter().find(|(port, _)| *port == Port::MAIN).expect("rows");
        let lines = String::from_utf8(json_lines(&main.1.rows).expect("rows have a text")).expect("JSON is UTF-8");
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// A column of one device's row.
    fn value(&mut self, device: &str, column: &str) -> Value {
        self.rows(&[device]).remove(0)[column].take()
    }

    /// Waits until a column of a device has this value.
    fn becomes(&mut self, device: &str, column: &str, value: &str) {
        wait_until(&format!("{column} of {device} to be {value}"), || {
            (self.value(device, column) == value).then_some(())
        });
    }

    fn count(&self, counter: &'static str) -> u64 {
        self.cx.counter(counter).get()
    }

    /// Waits until more has been counted than this.
    fn counts_more_than(&self, counter: &'static str, than: u64) {
        wait_until(&format!("more than {than} {counter}"), || (self.count(counter) > than).then_some(()));
    }
}

/// A permanent error's text.
fn permanent(error: &StageError) -> String {
    assert_eq!(error.fault(), Fault::Permanent, "{}", error.chain());
    error.chain()
}

#[test]
fn the_examples_in_the_docs_are_valid() {
    let input = RecordBatch::try_from_iter([
        ("device_id", Arc::new(StringArray::from(vec!["a"])) as ArrayRef),
        ("timestamp", Arc::new(TimestampMicrosecondArray::from(vec![0]).with_timezone("UTC")) as ArrayRef),
        ("temperature", Arc::new(Float64Array::from(vec![0.0])) as ArrayRef),
    ]);
    let input = input.expect("columns of one length").schema();
    let with_position = readings(&[]).schema();
    let docs = [include_str!("../../docs/enrich.md"), include_str!("../../docs/geofence.md")];
    let mut examples = 0;
    for block in docs.iter().flat_map(|text| text.split("```toml\n").skip(1)) {
        let text = block.split("```").next().expect("a block ends");
        let mut file: toml::Table = toml::from_str(text).expect("TOML");
        let stages =
            file.remove("transforms").expect("a transform").try_into::<toml::Table>().expect("a table of stages");
        for (_, stage) in stages {
            let mut keys: toml::Table = stage.try_into().expect("a table of keys");
            keys.remove("inputs").expect("each stage has inputs");
            let cx = testing::build_context("stage", "");
            let built = match keys.remove("type").expect("each stage has a type").as_str() {
                Some("enrich") => keys.try_into::<EnrichConfig>().expect(text).build(&input, &cx),
                Some("geofence") => {
                    for (key, column) in [("latitude", "lat"), ("longitude", "lon")] {
                        keys.insert(key.to_owned(), column.into());
                    }
                    keys.try_into::<GeofenceConfig>().expect(text).build(&with_position, &cx)
                }
                other => panic!("no example is of the type {other:?}"),
            };
            assert!(built.is_ok(), "{text}");
            examples += 1;
        }
    }
    assert!(examples > 5, "{examples}");
}
