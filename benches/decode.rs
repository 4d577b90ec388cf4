//! What decoding costs: small telemetry of a fleet of 1,000 devices, one message in a hundred bad.
//!
//! `cargo bench --bench decode`; criterion's `elem/s` are messages a second on one core.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::testing::build_context;
use pipeline_stages::decode::{Decoder, Format, Message};

/// As in the binary: small messages are many small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MESSAGES: usize = 8192;
const SCHEMA: &str = "[schema.telemetry]\n\
    device_id = { type = \"text\", required = true }\n\
    timestamp = { type = \"timestamp\", required = true }\n\
    temperature = \"float64\"\nhumidity = \"float64\"\nseq = \"int64\"";

/// About 115 bytes as JSON. Every hundredth has its temperature in quotes.
fn reading(number: usize) -> String {
    let device = number * 7919 % 1000;
    let (minute, second, milli) = (number / 60_000 % 60, number / 1000 % 60, number % 1000);
    let temperature = 15.0 + (number % 1301) as f64 / 100.0;
    let humidity = 30.0 + (number % 437) as f64 / 10.0;
    let quote = if number % 100 == 99 { "\"" } else { "" };
    let mut text = format!(
        "{{\"device_id\":\"device-{device:04}\",\"timestamp\":\"2026-01-31T12:{minute:02}:{second:02}.{milli:03}Z\","
    );
    write!(text, "\"temperature\":{quote}{temperature:.2}{quote},\"humidity\":{humidity:.1},\"seq\":{number}}}")
        .expect("memory takes all that is written");
    text
}

fn payloads(format: Format) -> Vec<Vec<u8>> {
    let encode = |text: String| match format {
        Format::Json => text.into_bytes(),
        Format::Cbor => recode(&text, |value| cbor4ii::serde::to_vec(Vec::new(), value).expect("any JSON is CBOR")),
        Format::MessagePack => recode(&text, |value| rmp_serde::to_vec(value).expect("any JSON is MessagePack")),
    };
    (0..MESSAGES).map(reading).map(encode).collect()
}

fn recode(text: &str, encode: impl Fn(&serde_json::Value) -> Vec<u8>) -> Vec<u8> {
    encode(&serde_json::from_str(text).expect("the reading is JSON"))
}

fn decode_all(decoder: &mut Decoder, payloads: &[Vec<u8>]) {
    for (position, payload) in (0_u64..).zip(payloads) {
        decoder.push(Message {
            topic: Some("fleet/a/telemetry"),
            payload,
            received_at_us: 1_769_860_800_000_000,
            position: position.into(),
        });
    }
    black_box(decoder.take());
}

fn decode(criterion: &mut Criterion) {
    let schema: Arc<DeclaredSchema> =
        build_context("bench", SCHEMA).schema("schema", "telemetry").expect("it is declared above");
    let mut group = criterion.benchmark_group("decode");
    for (name, format, schema) in [
        ("json", Format::Json, Some(&*schema)),
        ("cbor", Format::Cbor, Some(&*schema)),
        ("msgpack", Format::MessagePack, Some(&*schema)),
        ("raw", Format::Json, None),
    ] {
        let payloads = payloads(format);
        group.throughput(Throughput::Elements(MESSAGES as u64));
        group.bench_function(name, |bencher| {
            let mut decoder = Decoder::new(schema, format, "bench");
            bencher.iter(|| decode_all(&mut decoder, &payloads));
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
