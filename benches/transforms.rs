//! What a row costs in each transform: 1,000 devices that take turns, batches of 8,192 rows and of 64, one row in a
//! hundred bad.
//!
//! `cargo bench --bench transforms`; figures are rows a second, through the stage as the engine runs
//! it.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{Batch, BuildContext, Emitter, Transform, TransformConfig};
use pipeline_engine::{Partition, Span, testing};
use pipeline_stages::transforms::anomaly::AnomalyConfig;
use pipeline_stages::transforms::compute::ComputeConfig;
use pipeline_stages::transforms::dedupe::DedupeConfig;
use pipeline_stages::transforms::downsample::DownsampleConfig;
use pipeline_stages::transforms::enrich::EnrichConfig;
use pipeline_stages::transforms::exec::ExecConfig;
use pipeline_stages::transforms::filter::FilterConfig;
use pipeline_stages::transforms::gaps::GapsConfig;
use pipeline_stages::transforms::geofence::GeofenceConfig;
use pipeline_stages::transforms::partition::PartitionConfig;
use pipeline_stages::transforms::route::RouteConfig;
use pipeline_stages::transforms::rule::RuleConfig;
use pipeline_stages::transforms::silence::SilenceConfig;
use pipeline_stages::transforms::thin::ThinConfig;
use pipeline_stages::transforms::validate::ValidateConfig;
use rand::{RngExt, SeedableRng};

const DEVICES: usize = 1_000;
const ROWS: usize = 8_192;
/// Enough for each device to fill its windows, few enough to stay in the cache of a small machine.
const BATCHES: usize = 32;
/// Longer than the readings of all batches take; a day, so that what is compared with the same hour of
/// earlier days has some.
const ROUND_US: i64 = 86_400_000_000;
const RECEIVED_AT_US: i64 = 1_769_860_800_000_000;

const VALIDATE: &str = r#"
    required = ["device_id", "timestamp"]
    range = { temperature = [-40, 85], humidity = [0, 100] }
    max_future = "5m"
"#;
const PATTERN: &str = r#"pattern = { device_id = "^[a-z0-9-]+$" }"#;
/// A filter, a column added, topic and functions left out: what most rules are.
const RULE_FILTER: &str = r#"sql = "SELECT *, timestamp() AS ts WHERE temperature > 30""#;
/// Arithmetic, CASE and rounding: kernels only.
const RULE_COMPUTE: &str = r#"sql = """
    SELECT device_id, timestamp, temperature * 1.8 + 32 AS fahrenheit, round(humidity) AS humidity,
           CASE WHEN temperature > 22 THEN 'warm' ELSE 'cool' END AS feel
    WHERE temperature > 21 AND humidity < 55""""#;
/// Text functions with several arguments go row by row.
const RULE_TEXT: &str = r#"sql = """
    SELECT concat(device_id, '/', seq) AS id, substring(device_id, 7) AS number
    WHERE startswith(device_id, 'device-')""""#;
const RULE_MESSAGES: &str = r#"sql = "SELECT *, timestamp() AS ts FROM 'iot/+' WHERE temperature > 21""#;
const CONVERT: &str = r#"convert = { temperature = { from = "degF", to = "degC" } }"#;
const COLUMNS: &str = r#"
    [columns]
    fahrenheit = { expression = "temperature * 9 / 5 + 32" }
    humidity = { expression = "round(humidity)", type = "int16", replace = true }
"#;
const MEANS: &str =
    "[aggregates]\nmean = \"mean(temperature)\"\nmin = \"min(temperature)\"\nmax = \"max(temperature)\"";
const PERCENTILES: &str = "[aggregates]\np50 = \"median(temperature)\"\np99 = \"percentile(temperature, 99)\"";
const ANOMALY: &str = r#"metrics = ["temperature", "humidity"]"#;
/// The methods of `thin`. A tenth of the noise is within the bounds.
const THIN: [(&str, &str); 4] = [
    ("dead_band", "method = \"dead_band\"\nabsolute = { temperature = 0.1, humidity = 0.5 }"),
    ("swinging_door", "method = \"swinging_door\"\nabsolute = { temperature = 0.1, humidity = 0.5 }"),
    ("lttb", "method = \"lttb\"\ncolumns = [\"temperature\", \"humidity\"]\nevery = \"1m\"\npoints = 10"),
    ("min_max", "method = \"min_max\"\ncolumns = [\"temperature\", \"humidity\"]\nevery = \"1m\""),
];
/// The methods of `anomaly`; the first is taken also with bad rows.
const METHODS: [&str; 7] = ["zscore", "ewma", "robust", "seasonal", "rate", "flatline", "auto"];

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("timestamp", timestamp_type(), false),
        Field::new("temperature", DataType::Float64, true),
        Field::new("humidity", DataType::Float64, true),
        Field::new("seq", DataType::Int64, true),
    ]))
}

/// Readings of a fleet, in turns, each device a second after its last; `bad_ratio` of the temperatures
/// are far off.
fn batches(bad_ratio: f64) -> Vec<RecordBatch> {
    let mut random = rand_pcg::Pcg64::seed_from_u64(7);
    let batch = |batch: usize| {
        let numbers = batch * ROWS..(batch + 1) * ROWS;
        let mut temperature = Vec::with_capacity(ROWS);
        let mut humidity = Vec::with_capacity(ROWS);
        for _ in numbers.clone() {
            let is_bad = random.random_bool(bad_ratio);
            temperature.push(if is_bad { 150.0 } else { 21.0 + random.random_range(-1.0..1.0) });
            humidity.push(50.0 + random.random_range(-5.0..5.0));
        }
        let devices = numbers.clone().map(|number| format!("device-{}", number % DEVICES));
        let times = numbers.clone().map(|number| RECEIVED_AT_US - 600_000_000 + (number / DEVICES) as i64 * 1_000_000);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(devices)),
            Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
            Arc::new(Float64Array::from(temperature)),
            Arc::new(Float64Array::from(humidity)),
            Arc::new(Int64Array::from_iter_values(numbers.map(|number| number as i64))),
        ];
        RecordBatch::try_new(schema(), columns).expect("the columns are those of the schema")
    };
    (0..BATCHES).map(batch).collect()
}

fn built<C: TransformConfig>(text: &str) -> Box<dyn Transform> {
    let config: C = toml::from_str(text).expect("a valid configuration");
    let cx: BuildContext = testing::build_context("stage", "");
    let mut transform = config.build(&schema(), &cx).expect("a valid configuration").transform;
    transform.open().expect("the table can be read");
    transform
}

/// The same readings, so many rounds later: a stage that has seen a round must not take the next for
/// late.
fn later(batches: &[RecordBatch], round: i64) -> Vec<RecordBatch> {
    let shift = |rows: &RecordBatch| {
        let times = rows.column(1).as_primitive::<TimestampMicrosecondType>();
        let shifted: TimestampMicrosecondArray = times.unary(|time| time + round * ROUND_US);
        let mut columns = rows.columns().to_vec();
        columns[1] = Arc::new(shifted.with_timezone("UTC"));
        RecordBatch::try_new(rows.schema(), columns).expect("the columns are those of the schema")
    };
    batches.iter().map(shift).collect()
}

/// Sends all batches through, again and again: state lives on, as it does in a run.
fn run(criterion: &mut Criterion, name: &str, case: &str, mut transform: Box<dyn Transform>, batches: &[RecordBatch]) {
    let partition = Partition::new("bench");
    let mut out = Emitter::default();
    let (mut round, mut position) = (0, 0);
    let mut next_round = || {
        round += 1;
        (RECEIVED_AT_US + round * ROUND_US, later(batches, round))
    };
    let mut send = |(received_at_us, batches): (i64, Vec<RecordBatch>)| {
        for rows in batches {
            position += 1;
            let ack = partition.open(Span::new(position, position), received_at_us);
            transform.apply(Batch::new(rows, ack), &mut out).expect("a transform takes every batch");
            for (port, batch) in out.take() {
                black_box((port, batch.rows.num_rows()));
                testing::deliver(batch);
            }
        }
    };
    let mut group = criterion.benchmark_group(name);
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    group.throughput(Throughput::Elements(rows as u64));
    group.bench_function(BenchmarkId::from_parameter(case), |bencher| {
        bencher.iter_batched(&mut next_round, &mut send, BatchSize::PerIteration);
    });
    group.finish();
}

/// A stage fed with large batches, and another one with the same rows in batches of 64: what a quiet pipeline has.
fn run_both(
    criterion: &mut Criterion,
    name: &str,
    case: &str,
    stage: impl Fn() -> Box<dyn Transform>,
    large: &[RecordBatch],
) {
    let small: Vec<RecordBatch> =
        large.iter().take(4).flat_map(|rows| (0..ROWS / 64).map(|part| rows.slice(part * 64, 64))).collect();
    run(criterion, name, &format!("{case}, batches of 8192"), stage(), large);
    run(criterion, name, &format!("{case}, batches of 64"), stage(), &small);
}

fn validate(criterion: &mut Criterion) {
    let (good, bad) = (batches(0.0), batches(0.01));
    run_both(criterion, "validate", "all good", || built::<ValidateConfig>(VALIDATE), &good);
    run_both(criterion, "validate", "1% bad", || built::<ValidateConfig>(VALIDATE), &bad);
    let text = format!("{VALIDATE}\n{PATTERN}");
    run_both(criterion, "validate", "all good, with a pattern", || built::<ValidateConfig>(&text), &good);
}

/// Half of the readings are warm.
fn choose(criterion: &mut Criterion) {
    let batches = batches(0.0);
    let keep = "keep = \"temperature > 21 AND humidity < 55\"";
    run_both(criterion, "filter", "keeps half", || built::<FilterConfig>(keep), &batches);
    let routes = "[routes]\nwarm = \"temperature > 21\"\ndry = \"humidity < 50\"";
    run_both(criterion, "route", "two ways and the rest", || built::<RouteConfig>(routes), &batches);
    let parts = "key = [\"device_id\"]\nparts = 2";
    run_both(criterion, "partition", "two parts", || built::<PartitionConfig>(parts), &batches);
}

fn enrich(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("devices.csv");
    let mut table = "device_id,site,model,latitude\n".to_owned();
    // One device in a hundred is not in the table.
    for device in (0..DEVICES).filter(|device| device % 100 != 0) {
        writeln!(table, "device-{device},site-{},th-200,{}.5", device % 20, device % 90).expect("text grows");
    }
    std::fs::write(&path, table).expect("the table can be written");
    let text = |policy| {
        let path = path.display();
        format!(
            "table = \"{path}\"\nkey = \"device_id\"\ncolumns = [\"site\", \"model\", \"latitude\"]\n\
             types = {{ latitude = \"float64\" }}\nmissing = \"{policy}\""
        )
    };
    let batches = batches(0.0);
    run_both(criterion, "enrich", "nulls", || built::<EnrichConfig>(&text("null")), &batches);
    run_both(criterion, "enrich", "1% rejected", || built::<EnrichConfig>(&text("reject")), &batches);
    as_of(criterion, &batches);
}

/// A hundred calibrations a device; each reading looks for its own among them.
fn as_of(criterion: &mut Criterion, batches: &[RecordBatch]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("calibrations.csv");
    let mut table = "device_id,since,offset\n".to_owned();
    for (device, month) in (0..DEVICES).flat_map(|device| (0..100).map(move |month| (device, month))) {
        writeln!(table, "device-{device},{}-{:02}-01,{month}.5", 2020 + month / 12, month % 12 + 1)
            .expect("text grows");
    }
    std::fs::write(&path, table).expect("the table can be written");
    let text = format!(
        "table = \"{}\"\nkey = \"device_id\"\ntypes = {{ offset = \"float64\" }}\n\
         as_of = {{ time = \"timestamp\", valid_from = \"since\" }}",
        path.display()
    );
    run_both(criterion, "enrich", "as of a time", || built::<EnrichConfig>(&text), batches);
}

/// 5,000 zones side by side of which each reading lies in one, and one of a thousand corners around all of them.
fn geofence(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("zones.csv");
    let mut table = "name,geometry\n".to_owned();
    // The temperatures and humidities of the readings are their latitudes and longitudes.
    for (column, row) in (0..100).flat_map(|column| (0..50).map(move |row| (column, row))) {
        let (west, south) = (45.0 + f64::from(column) * 0.1, 20.0 + f64::from(row) * 0.04);
        let (east, north) = (west + 0.1, south + 0.04);
        let ring = format!("{west} {south}, {east} {south}, {east} {north}, {west} {north}, {west} {south}");
        writeln!(table, "zone-{column}-{row},\"POLYGON (({ring}))\"").expect("text grows");
    }
    let corner = |number: i32| {
        let angle = std::f64::consts::TAU * f64::from(number % 1_000) / 1_000.0;
        format!("{} {}", 50.0 + 9.0 * angle.cos(), 21.0 + 9.0 * angle.sin())
    };
    let corners: Vec<String> = (0..=1_000).map(corner).collect();
    writeln!(table, "all,\"POLYGON (({}))\"", corners.join(", ")).expect("text grows");
    std::fs::write(&path, table).expect("the table can be written");
    let text = |overlap| {
        format!(
            "table = \"{}\"\nlatitude = \"temperature\"\nlongitude = \"humidity\"\n\
             columns = {{ zone = \"name\" }}\noverlap = \"{overlap}\"",
            path.display()
        )
    };
    let batches = batches(0.0);
    for overlap in ["smallest", "first"] {
        run_both(criterion, "geofence", overlap, || built::<GeofenceConfig>(&text(overlap)), &batches);
    }
}

fn anomaly(criterion: &mut Criterion) {
    let stage = |method| built::<AnomalyConfig>(&format!("{ANOMALY}\nmethod = \"{method}\""));
    let (good, bad) = (batches(0.0), batches(0.01));
    run(criterion, "anomaly", "all good", stage(METHODS[0]), &good);
    run(criterion, "anomaly", "1% flagged", stage(METHODS[0]), &bad);
    for method in METHODS {
        run_both(criterion, "anomaly", method, || stage(method), &good);
    }
}

fn rule(criterion: &mut Criterion) {
    let large = batches(0.01);
    for (case, text) in [("filter", RULE_FILTER), ("compute", RULE_COMPUTE), ("text", RULE_TEXT)] {
        run_both(criterion, "rule", case, || built::<RuleConfig>(text), &large);
    }
    messages(criterion);
}

fn compute(criterion: &mut Criterion) {
    let batches = batches(0.0);
    for (case, text) in [("units", CONVERT), ("expressions", COLUMNS)] {
        run_both(criterion, "compute", case, || built::<ComputeConfig>(text), &batches);
    }
}

/// What follows each device through time.
fn followed(criterion: &mut Criterion) {
    let batches = batches(0.0);
    for (case, aggregates) in [("mean, min, max", MEANS), ("percentiles", PERCENTILES)] {
        let text = format!("window = \"1m\"\n{aggregates}");
        run_both(criterion, "downsample", case, || built::<DownsampleConfig>(&text), &batches);
    }
    for (method, text) in THIN {
        run_both(criterion, "thin", method, || built::<ThinConfig>(text), &batches);
    }
    run_both(criterion, "silence", "learned", || built::<SilenceConfig>(""), &batches);
    run_both(criterion, "gaps", "none", || built::<GapsConfig>("counter = \"seq\""), &batches);
    let key = "key = [\"device_id\", \"timestamp\"]";
    run_both(criterion, "dedupe", "none", || built::<DedupeConfig>(key), &batches);
}

/// To a program and back, which does nothing to the rows.
fn exec(criterion: &mut Criterion) {
    run_both(criterion, "exec", "cat", || built::<ExecConfig>("command = [\"cat\"]"), &batches(0.0));
}

/// Rules over messages that have not been decoded: 115 bytes of JSON each.
fn messages(criterion: &mut Criterion) {
    let schema = Arc::new(Schema::new(vec![
        Field::new("topic", DataType::Utf8, true),
        Field::new("payload", DataType::Binary, false),
        Field::new("received_at", timestamp_type(), false),
    ]));
    let payloads = (0..ROWS).map(|row| {
        format!(
            "{{\"device_id\":\"device-{}\",\"timestamp\":\"2026-01-31T12:00:00.123Z\",\"temperature\":{}.5,\"humidity\":48.25}}",
            row % DEVICES,
            15 + row % 12
        )
    });
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values((0..ROWS).map(|row| format!("iot/device-{}", row % DEVICES)))),
        Arc::new(BinaryArray::from_iter_values(payloads)),
        Arc::new(TimestampMicrosecondArray::from(vec![RECEIVED_AT_US; ROWS]).with_timezone("UTC")),
    ];
    let rows = RecordBatch::try_new(schema.clone(), columns).expect("the columns are those of the schema");
    let small: Vec<RecordBatch> = (0..ROWS / 64).map(|part| rows.slice(part * 64, 64)).collect();
    let mut group = criterion.benchmark_group("rule");
    group.throughput(Throughput::Elements(ROWS as u64));
    for (case, batches) in [("messages, batches of 8192", vec![rows]), ("messages, batches of 64", small)] {
        let config: RuleConfig = toml::from_str(RULE_MESSAGES).expect("a valid configuration");
        let mut transform =
            config.build(&schema, &testing::build_context("stage", "")).expect("a valid configuration").transform;
        let mut out = Emitter::default();
        group.bench_function(BenchmarkId::from_parameter(case), |bencher| {
            bencher.iter(|| {
                for rows in &batches {
                    transform.apply(Batch::detached(rows.clone()), &mut out).expect("a transform takes every batch");
                    black_box(out.take());
                }
            });
        });
    }
    group.finish();
}

criterion_group!(transforms, validate, choose, enrich, geofence, anomaly, rule, compute, followed, exec);
criterion_main!(transforms);
