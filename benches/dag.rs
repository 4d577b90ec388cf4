//! A whole pipeline in memory: JSON payloads are decoded, validated, enriched, scored and discarded.
//!
//! One iteration runs 100 batches of 8,192 messages (1,000 devices, 1% bad) through the engine's own
//! run loop: queues, acks and grouping included. Rows per second is the figure to compare.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipeline_engine::stage::*;
use pipeline_engine::{Plan, Run, Span, Variables};
use pipeline_stages::decode::{Decoder, Format, Message};

const BATCHES: u64 = 100;
const BATCH_ROWS: u64 = 8_192;

const PIPELINE: &str = r#"
    [schema.telemetry]
    device_id   = { type = "text", required = true }
    timestamp   = { type = "timestamp", required = true }
    temperature = "float64"
    humidity    = "float64"
    seq         = "int64"

    [sources.payloads]
    type = "payloads"
    schema = "telemetry"

    [transforms.valid]
    type = "validate"
    inputs = ["payloads"]
    range = { temperature = [-40, 125], humidity = [0, 100] }

    [transforms.located]
    type = "enrich"
    inputs = ["valid"]
    table = "${TABLE}"
    key = "device_id"
    columns = ["site", "model"]

    [transforms.scored]
    type = "anomaly"
    inputs = ["located"]
    metrics = ["temperature", "humidity"]
    method = "zscore"

    [sinks.nowhere]
    type = "discard"
    inputs = ["scored"]

    [sinks.refused]
    type = "discard"
    inputs = ["payloads.rejected", "valid.rejected"]
"#;

/// Decodes the same payloads over and over, as a broker's client would.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct PayloadsConfig {
    schema: String,
}

struct Payloads {
    decoder: Decoder,
    payloads: Vec<String>,
}

impl SourceConfig for PayloadsConfig {
    const DOC: StageDoc = StageDoc { type_name: "payloads", summary: "", ports: &[("rejected", "")], failure: "" };

    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError> {
        let schema = cx.schema("schema", &self.schema)?;
        let decoder = Decoder::new(Some(&schema), Format::Json, &cx.stage);
        let outputs = decoder.outputs();
        let payloads = (0..BATCH_ROWS).map(payload).collect();
        Ok(BuiltSource { source: Box::new(Payloads { decoder, payloads }), outputs })
    }
}

fn payload(row: u64) -> String {
    let (device, second) = (row % 1000, row / 1000);
    let temperature =
        if row % 100 == 99 { "\"hot\"".to_owned() } else { format!("{:.2}", 20.0 + (row % 37) as f64 / 10.0) };
    format!(
        r#"{{"device_id":"device-{device}","timestamp":"2026-01-31T12:00:0{second}.123456Z","temperature":{temperature},"humidity":48.02,"seq":{row}}}"#
    )
}

#[async_trait]
impl Source for Payloads {
    async fn run(mut self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let partition = cx.partition("memory");
        for batch in 0..BATCHES {
            for payload in &self.payloads {
                self.decoder.push(Message {
                    topic: None,
                    payload: payload.as_bytes(),
                    received_at_us: 1_769_860_800_000_000,
                    position: batch.into(),
                });
            }
            let decoded = self.decoder.take();
            let ack = partition.open(Span::new(batch, batch), 0);
            let (rows, rejected) = Batch::new(decoded.rows.clone(), ack).split(decoded.rows, decoded.rejected);
            cx.send(rows).await?;
            cx.send_to(Port::REJECTED, rejected).await?;
        }
        cx.drain(&partition).await
    }
}

fn plan(table: &str) -> Plan {
    let registry = pipeline_stages::registry().with_source::<PayloadsConfig>();
    let variables = Variables { get: &|name| (name == "TABLE").then(|| table.to_owned()), ..Variables::of_process() };
    match Plan::parse(PIPELINE, "dag.toml", &registry, &variables) {
        Ok(plan) => plan,
        Err(mistakes) => panic!("{mistakes}"),
    }
}

fn whole_dag(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let table: PathBuf = folder.path().join("devices.csv");
    let rows: String = (0..1000).map(|device| format!("device-{device},site-{},th-100\n", device % 7)).collect();
    std::fs::write(&table, format!("device_id,site,model\n{rows}")).expect("writable");
    let table = table.display().to_string();
    let mut group = criterion.benchmark_group("dag");
    group.throughput(Throughput::Elements(BATCHES * BATCH_ROWS)).sample_size(10);
    for workers in [1, 2] {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = Arc::new(builder.worker_threads(workers).enable_all().build().expect("a runtime"));
        group.bench_function(format!("decode_validate_enrich_anomaly/{workers}_workers"), |bencher| {
            bencher.iter(|| {
                let run = Run::new(plan(&table));
                let report = runtime.block_on(async {
                    tokio::spawn(run.until(std::future::pending())).await.expect("no panic").expect("it runs")
                });
                let refused = report.stage("refused").map_or(0, |sink| sink.rows_stored());
                assert_eq!(refused, BATCHES * (BATCH_ROWS / 100), "every bad payload is refused");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, whole_dag);
criterion_main!(benches);
