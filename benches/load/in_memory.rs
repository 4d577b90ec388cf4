//! JSON lines in memory through a whole pipeline: decoded, validated, enriched, scored, discarded. For the criterion
//! bench `dag` and for the load harness.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use pipeline_engine::stage::*;
use pipeline_engine::{Plan, Run, Span, Variables};
use pipeline_stages::decode::{Decoded, Decoder, Format, Message, Ordered};

pub const BATCH_ROWS: u64 = 8_192;

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
    batches = "${BATCHES}"

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

    [sinks.refused]
    type = "discard"
    inputs = ["payloads.rejected", "valid.rejected"]
"#;

/// How rows are scored.
#[derive(Debug, Clone, Copy)]
pub struct Scoring {
    pub method: &'static str,
    /// Stages that share the devices.
    pub parts: u16,
}

/// What most would take: one stage, and the method that costs least.
pub const ZSCORE: Scoring = Scoring { method: "zscore", parts: 1 };

/// The stages behind `located`.
fn scoring(Scoring { method, parts }: Scoring) -> String {
    let scored = |name: &str, input: &str| {
        format!(
            "[transforms.{name}]\ntype = \"anomaly\"\ninputs = [\"{input}\"]\nmetrics = [\"temperature\", \"humidity\"]\n\
             method = \"{method}\"\n[sinks.{name}_nowhere]\ntype = \"discard\"\ninputs = [\"{name}\"]\n"
        )
    };
    if parts == 1 {
        return scored("scored", "located");
    }
    let split = format!(
        "[transforms.split]\ntype = \"partition\"\ninputs = [\"located\"]\nkey = [\"device_id\"]\nparts = {parts}\n"
    );
    (0..parts)
        .map(|part| scored(&format!("scored_{part}"), &format!("split.{part}")))
        .fold(split, |text, one| text + &one)
}

/// Decodes the same payloads over and over, as a source does whose next batch is always there.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct PayloadsConfig {
    schema: String,
    batches: u64,
}

struct Payloads {
    decoder: Decoder,
    batches: u64,
    payloads: Arc<[String]>,
}

impl SourceConfig for PayloadsConfig {
    const DOC: StageDoc = StageDoc { type_name: "payloads", summary: "", ports: &[("rejected", "")], failure: "" };

    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError> {
        let schema = cx.schema("schema", &self.schema)?;
        let decoder = Decoder::new(Some(&schema), Format::Json, &cx.stage);
        let outputs = decoder.outputs();
        let payloads = (0..BATCH_ROWS).map(payload).collect();
        Ok(BuiltSource { source: Box::new(Payloads { decoder, batches: self.batches, payloads }), outputs })
    }
}

/// One message: 115 bytes, one in a hundred bad.
pub fn payload(row: u64) -> String {
    let (device, second) = (row % 1000, row / 1000);
    let temperature =
        if row % 100 == 99 { "\"hot\"".to_owned() } else { format!("{:.2}", 20.0 + (row % 37) as f64 / 10.0) };
    format!(
        r#"{{"device_id":"device-{device}","timestamp":"2026-01-31T12:00:0{second}.123456Z","temperature":{temperature},"humidity":48.02,"seq":{row}}}"#
    )
}

#[async_trait]
impl Source for Payloads {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let partition = cx.partition("memory");
        let bytes = self.payloads.iter().map(String::len).sum();
        let mut decoding = Ordered::new(self.decoder);
        let mut batches = 0..self.batches;
        loop {
            while decoding.has_room()
                && let Some(batch) = batches.next()
            {
                let payloads = self.payloads.clone();
                decoding.begin(bytes, move |decoder| (batch, decode(decoder, &payloads, batch)));
            }
            let Some((batch, decoded)) = decoding.next().await? else { break };
            let ack = partition.open(Span::new(batch, batch), 0);
            let (rows, rejected) = Batch::new(decoded.rows.clone(), ack).split(decoded.rows, decoded.rejected);
            cx.send(rows).await?;
            cx.send_to(Port::REJECTED, rejected).await?;
        }
        cx.drain(&partition).await
    }
}

fn decode(decoder: &mut Decoder, payloads: &[String], batch: u64) -> Decoded {
    for payload in payloads {
        decoder.push(Message {
            topic: None,
            payload: payload.as_bytes(),
            received_at_us: 1_769_860_800_000_000,
            position: batch.into(),
        });
    }
    decoder.take()
}

fn plan(table: &str, batches: u64, how: Scoring) -> Plan {
    let registry = pipeline_stages::registry().with_source::<PayloadsConfig>();
    let get = |name: &str| match name {
        "TABLE" => Some(table.to_owned()),
        "BATCHES" => Some(batches.to_string()),
        _ => None,
    };
    let variables = Variables { get: &get, ..Variables::of_process() };
    match Plan::parse(&(PIPELINE.to_owned() + &scoring(how)), "dag.toml", &registry, &variables) {
        Ok(plan) => plan,
        Err(mistakes) => panic!("{mistakes}"),
    }
}

/// Writes the table that the pipeline looks devices up in; its path.
pub fn devices(folder: &Path) -> String {
    let table = folder.join("devices.csv");
    let rows: String = (0..1000).map(|device| format!("device-{device},site-{},th-100\n", device % 7)).collect();
    std::fs::write(&table, format!("device_id,site,model\n{rows}")).expect("writable");
    table.display().to_string()
}

/// Runs so many batches through the pipeline.
pub fn run(runtime: &tokio::runtime::Runtime, table: &str, batches: u64, how: Scoring) {
    let run = Run::new(plan(table, batches, how));
    let report = runtime
        .block_on(async { tokio::spawn(run.until(std::future::pending())).await.expect("no panic").expect("it runs") });
    let refused = report.stage("refused").map_or(0, |sink| sink.rows_stored());
    assert_eq!(refused, batches * (BATCH_ROWS / 100), "every bad payload is refused");
}
