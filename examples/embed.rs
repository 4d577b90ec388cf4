//! A program with a stage of its own: readings come from the simulator, its transform keeps the warm
//! ones, and Parquet files in a local folder hold the result.

use std::path::Path;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::compute::{filter_record_batch, kernels::cmp::gt};
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use pipeline_engine::stage::*;
use pipeline_engine::{Plan, Report, Run, Variables, columns};

const PIPELINE: &str = r#"
    [schema.telemetry]
    device_id   = { type = "text", required = true }
    timestamp   = { type = "timestamp", required = true }
    temperature = "float64"

    [sources.fleet]
    type = "simulator"
    schema = "telemetry"
    count = 5000
    pace = "none"

    [transforms.warm]
    type = "warmer_than"
    inputs = ["fleet"]
    celsius = 25

    [sinks.lake]
    type = "parquet"
    inputs = ["warm"]
    url = "${LAKE}"
"#;

/// `type = "warmer_than"`: rows of this temperature or below are left out.
#[derive(Clone, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct WarmerThanConfig {
    /// The limit, in degrees Celsius.
    celsius: f64,
}

struct WarmerThan {
    celsius: f64,
    temperature: usize,
}

impl TransformConfig for WarmerThanConfig {
    const DOC: StageDoc =
        StageDoc { type_name: "warmer_than", summary: "Keeps warm rows.", ports: &[], failure: "It has no outside." };

    fn build(self, input: &SchemaRef, _: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let is_float = |found: &DataType| *found == DataType::Float64;
        let temperature = columns::find_typed(input, "", "temperature", "a float64", is_float)?;
        let stage = WarmerThan { celsius: self.celsius, temperature };
        Ok(BuiltTransform { transform: Box::new(stage), outputs: vec![(Port::MAIN, input.clone())] })
    }
}

impl Transform for WarmerThan {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        let temperatures = batch.rows.column(self.temperature).as_primitive::<Float64Type>();
        let warm = gt(temperatures, &arrow::array::Float64Array::new_scalar(self.celsius))?;
        let kept = filter_record_batch(&batch.rows, &warm)?;
        out.emit(batch.with_rows(kept));
        Ok(())
    }
}

/// Runs the pipeline into a folder, for at most a minute.
pub async fn run(lake: &Path) -> Result<Report, Box<dyn std::error::Error>> {
    let registry = pipeline_stages::registry().with_transform::<WarmerThanConfig>();
    let lake = lake.display().to_string();
    let variables = Variables { get: &|name| (name == "LAKE").then(|| lake.clone()), ..Variables::of_process() };
    let plan = Plan::parse(PIPELINE, "embed.toml", &registry, &variables)?;
    Ok(Run::new(plan).until(tokio::time::sleep(Duration::from_secs(60))).await?)
}

#[tokio::main]
#[allow(dead_code, reason = "the tests call `run`")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let report = run(Path::new("data/embed")).await?;
    println!("{report}");
    Ok(())
}
