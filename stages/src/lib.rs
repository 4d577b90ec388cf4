//! The stages of pipeline: what a pipeline file can name.
//!
//! [`registry`] is the list. One file or folder a stage, in the folder of its kind; a stage knows the
//! engine, and no other stage. What stages share lies beside them: [`decode`] turns payloads into
//! columns for every source, `mqtt_client` is the connection of the MQTT source and sink, `postgres` and `s3` are
//! those of whatever talks to these, `aws` is who we are to all of AWS, `certificates` tells how long these are good, `reach` is
//! what network and TLS say
//! of a service, `dead_letters` is what the sinks that keep them read back. [`fuzzing`] feeds
//! hostile input to what reads any. [`db`] is what `pipeline db` does with the tables and objects of two kinds of sink.
//!
//! A pipeline in a program of one's own, to its end:
//!
//! ```
//! use pipeline_engine::{Plan, Run, Variables};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let text = r#"
//!     [schema.telemetry]
//!     device_id   = { type = "text", required = true }
//!     temperature = "float64"
//!
//!     [sources.fleet]
//!     type = "simulator"
//!     schema = "telemetry"
//!     count = 100
//!     pace = "none"
//!
//!     [transforms.warm]
//!     type = "filter"
//!     inputs = ["fleet"]
//!     keep = "temperature > 20"
//!
//!     [sinks.nowhere]
//!     type = "discard"
//!     inputs = ["warm"]
//! "#;
//! let plan = Plan::parse(text, "warm.toml", &pipeline_stages::registry(), &Variables::of_process())?;
//! let report = Run::new(plan).until(std::future::pending()).await?;
//! let warm = report.stage("warm").ok_or("a stage of the plan")?;
//! assert_eq!(warm.rows_in(), 100);
//! # Ok(())
//! # }
//! ```

#[cfg(any(feature = "kinesis", feature = "sqs", feature = "parquet"))]
mod aws;
#[cfg(any(feature = "mqtt", feature = "timescaledb"))]
mod certificates;
#[cfg(all(feature = "timescaledb", feature = "parquet"))]
pub mod db;
#[cfg(any(feature = "timescaledb", feature = "parquet"))]
mod dead_letters;
pub mod decode;
pub mod fuzzing;
#[cfg(feature = "kinesis")]
mod kinesis;
#[cfg(feature = "mqtt")]
mod mqtt_client;
#[cfg(feature = "timescaledb")]
mod postgres;
#[cfg(any(feature = "mqtt", feature = "timescaledb"))]
mod reach;
#[cfg(feature = "parquet")]
mod s3;
pub mod sinks;
pub mod sources;
mod time_pattern;
pub mod transforms;

use pipeline_engine::Registry;

/// Every type of stage there is.
pub fn registry() -> Registry {
    let registry = Registry::new()
        .with_source::<sources::file::FileConfig>()
        .with_source::<sources::simulator::SimulatorConfig>()
        .with_transform::<transforms::anomaly::AnomalyConfig>()
        .with_transform::<transforms::compute::ComputeConfig>()
        .with_transform::<transforms::dedupe::DedupeConfig>()
        .with_transform::<transforms::downsample::DownsampleConfig>()
        .with_transform::<transforms::enrich::EnrichConfig>()
        .with_transform::<transforms::exec::ExecConfig>()
        .with_transform::<transforms::filter::FilterConfig>()
        .with_transform::<transforms::gaps::GapsConfig>()
        .with_transform::<transforms::geofence::GeofenceConfig>()
        .with_transform::<transforms::partition::PartitionConfig>()
        .with_transform::<transforms::route::RouteConfig>()
        .with_transform::<transforms::rule::RuleConfig>()
        .with_transform::<transforms::silence::SilenceConfig>()
        .with_transform::<transforms::thin::ThinConfig>()
        .with_transform::<transforms::validate::ValidateConfig>()
        .with_sink::<sinks::console::ConsoleConfig>()
        .with_sink::<sinks::discard::DiscardConfig>();
    #[cfg(feature = "http")]
    let registry = registry.with_source::<sources::http::HttpSourceConfig>();
    #[cfg(feature = "mqtt")]
    let registry = registry.with_source::<sources::mqtt::MqttSourceConfig>().with_sink::<sinks::mqtt::MqttSinkConfig>();
    #[cfg(feature = "kinesis")]
    let registry = registry
        .with_source::<sources::kinesis::KinesisSourceConfig>()
        .with_sink::<sinks::kinesis::KinesisSinkConfig>();
    #[cfg(feature = "timescaledb")]
    let registry = registry.with_sink::<sinks::timescaledb::TimescaleDbConfig>();
    #[cfg(feature = "parquet")]
    let registry = registry.with_sink::<sinks::parquet::ParquetConfig>();
    #[cfg(feature = "s3")]
    let registry = registry.with_source::<sources::s3::S3SourceConfig>();
    registry
}
