//! The same load without broker and database: JSON that comes at its pace, decoded and validated by the engine, and a sink
//! that looks at the clock. What is left is what the engine itself adds.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};
use async_trait::async_trait;
use hdrhistogram::Histogram;
use pipeline_engine::stage::*;
use pipeline_engine::{Plan, Run, Span, Variables};
use pipeline_stages::decode::{Decoder, Format, Message};

use crate::rate::{Load, Seen, now_us};
use crate::{fleet, machine};

const PIPELINE: &str = r#"
    [sources.readings]
    type = "paced"
    schema = "telemetry"

    [transforms.valid]
    type = "validate"
    inputs = ["readings"]
    range = { humidity = [0, 100] }

    [sinks.stored]
    type = "watched"
    inputs = ["valid"]

    [sinks.refused]
    type = "discard"
    inputs = ["readings.rejected", "valid.rejected"]
"#;

/// What the source is to send and what the sink has seen. Stages are built from a file, which can hand over neither.
struct Shared {
    load: Load,
    seen: Mutex<Watched>,
}

struct Watched {
    ages_us: Histogram<u64>,
    sequence_numbers: Vec<i64>,
    sent_in: Duration,
}

static SHARED: OnceLock<Mutex<Option<Arc<Shared>>>> = OnceLock::new();

fn shared() -> Arc<Shared> {
    let cell = SHARED.get_or_init(Mutex::default).lock().expect("no panic");
    cell.clone().expect("a load was set")
}

/// Runs the load through an engine of this process.
pub fn at(load: Load) -> Seen {
    let ages_us = Histogram::new_with_bounds(1, 600_000_000, 3).expect("bounds");
    let watched = Watched { ages_us, sequence_numbers: Vec::new(), sent_in: Duration::ZERO };
    let shared = Arc::new(Shared { load, seen: Mutex::new(watched) });
    *SHARED.get_or_init(Mutex::default).lock().expect("no panic") = Some(Arc::clone(&shared));

    let registry = pipeline_stages::registry().with_source::<PacedConfig>().with_sink::<WatchedConfig>();
    let text = format!("{}{PIPELINE}", fleet::SCHEMA);
    let plan = match Plan::parse(&text, "paced.toml", &registry, &Variables::of_process()) {
        Ok(plan) => plan,
        Err(mistakes) => panic!("{mistakes}"),
    };
    let before = machine::own_cpu_seconds();
    let run = Run::new(plan);
    machine::runtime()
        .block_on(async { tokio::spawn(run.until(std::future::pending())).await.expect("no panic").expect("it runs") });
    let cpu_seconds = machine::own_cpu_seconds() - before;

    let messages = load.rate * load.time.as_secs();
    let mut seen = shared.seen.lock().expect("no panic");
    let stored = seen.sequence_numbers.len() as u64;
    seen.sequence_numbers.sort_unstable();
    seen.sequence_numbers.dedup();
    let of = |quantile: f64| seen.ages_us.value_at_quantile(quantile) as f64 / 1_000.0;
    Seen {
        p50_ms: of(0.5),
        p99_ms: of(0.99),
        max_ms: seen.ages_us.max() as f64 / 1_000.0,
        peak_mib: machine::memory_mib(std::process::id(), "VmHWM:"),
        cpu_us: [cpu_seconds / messages as f64 * 1e6, 0.0, 0.0],
        sent_rate: messages as f64 / seen.sent_in.as_secs_f64(),
        wanted: fleet::good(messages),
        stored,
        twice: stored - seen.sequence_numbers.len() as u64,
    }
}

/// Messages that come at the pace of the load.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct PacedConfig {
    schema: String,
}

struct Paced {
    decoder: Decoder,
}

impl SourceConfig for PacedConfig {
    const DOC: StageDoc = StageDoc { type_name: "paced", summary: "", ports: &[("rejected", "")], failure: "" };

    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError> {
        let schema = cx.schema("schema", &self.schema)?;
        let decoder = Decoder::new(Some(&schema), Format::Json, &cx.stage);
        let outputs = decoder.outputs();
        Ok(BuiltSource { source: Box::new(Paced { decoder }), outputs })
    }
}

#[async_trait]
impl Source for Paced {
    /// A millisecond's messages at a time, each stamped when it is made.
    async fn run(mut self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let shared = shared();
        let Load { rate, devices, time } = shared.load;
        let (partition, messages) = (cx.partition("memory"), rate * time.as_secs());
        let (started, mut sent) = (Instant::now(), 0);
        while sent < messages {
            let due = ((started.elapsed().as_secs_f64() * rate as f64) as u64).min(messages);
            if due == sent {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            // Not more than a source of a broker would take in at once.
            let batch = sent..due.min(sent + 8_192);
            for number in batch.clone() {
                let now = now_us();
                let payload = fleet::message_of(number, devices, now / 1_000);
                self.decoder.push(Message {
                    topic: None,
                    payload: payload.as_bytes(),
                    received_at_us: now as i64,
                    position: number.into(),
                });
            }
            sent = batch.end;
            let decoded = self.decoder.take();
            let ack = partition.open(Span::new(batch.start, sent - 1), 0);
            let (rows, rejected) = Batch::new(decoded.rows.clone(), ack).split(decoded.rows, decoded.rejected);
            cx.send(rows).await?;
            cx.send_to(Port::REJECTED, rejected).await?;
        }
        shared.seen.lock().expect("no panic").sent_in = started.elapsed();
        cx.drain(&partition).await
    }
}

/// Looks at the clock when rows arrive.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct WatchedConfig {}

struct WatchedSink(Arc<Shared>);

impl SinkConfig for WatchedConfig {
    const DOC: StageDoc = StageDoc { type_name: "watched", summary: "", ports: &[], failure: "" };

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        let sink = Box::new(WatchedSink(shared()));
        Ok(BuiltSink { sink, grouping: Grouping::default(), outputs: Vec::new() })
    }
}

#[async_trait]
impl Sink for WatchedSink {
    async fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        let now = now_us();
        let mut seen = self.0.seen.lock().expect("no panic");
        for batch in group.batches() {
            let rows = &batch.rows;
            let column = |name: &str| rows.column_by_name(name).expect("a column of the schema");
            for at in column("timestamp").as_primitive::<TimestampMicrosecondType>().values() {
                seen.ages_us.saturating_record(now.saturating_sub(*at as u64).max(1));
            }
            seen.sequence_numbers.extend(column("seq").as_primitive::<Int64Type>().values());
        }
        Ok(())
    }
}
