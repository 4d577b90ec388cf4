//! What `pipeline doctor` asks a stream. Nothing is written, no consumer is registered, and a run that reads meanwhile loses
//! one of its five requests a second on one shard.

use pipeline_engine::stage::{Examination, StageError};

use super::Kinesis;
use super::feed::Start;
use super::workers::Found;
use crate::aws::fault;

/// Below it an outage of a night or a weekend loses records.
const RETENTION_HOURS_MIN: i64 = 48;

pub(super) async fn examine(source: &mut Kinesis, report: &Examination) {
    report.begin("credentials");
    if let Err(error) = source.stream.connect().await {
        return report.fail("credentials", &error);
    }
    report.pass("credentials", format!("there are some for {}", source.stream.place()));
    if let Err((check, error)) = look(source, report).await {
        report.fail(check, &error);
    }
}

async fn look(source: &Kinesis, report: &Examination) -> Result<(), (&'static str, StageError)> {
    let Kinesis { stream, fan_out, .. } = source;
    let name = stream.name();
    report.begin("stream");
    let summary = stream.describe().await.map_err(|error| ("stream", error))?;
    let found = format!("\"{name}\" is {}, with {} open shards", summary.status, summary.shards_open);
    match summary.status.as_str() {
        "ACTIVE" | "UPDATING" => report.pass("stream", found),
        _ => report.warn("stream", found, "Wait until it is ACTIVE, or create it anew."),
    }
    let hours = summary.retention_hours;
    let kept = format!("records are kept for {hours} hours");
    match hours < RETENTION_HOURS_MIN {
        true => report.warn(
            "retention",
            format!("{kept}: what is not read within that is lost"),
            format!("To outlast a weekend: aws kinesis increase-stream-retention-period --stream-name {name} --retention-period-hours 72"),
        ),
        false => report.pass("retention", kept),
    }
    report.begin("shards");
    let shards = stream.shards().await.map_err(|error| ("shards", error))?;
    report.pass("shards", format!("{} are listed", shards.len()));
    if let Some(shard) = shards.iter().find(|shard| !shard.is_closed) {
        report.begin("read");
        read(source, &shard.id).await.map_err(|error| ("read", error))?;
        report.pass("read", format!("records of \"{}\" can be read", shard.id));
    }
    if let Some(workers) = &source.workers {
        report.begin("leases");
        let mut table = workers.table.clone();
        let found = table.look().await.map_err(|error| ("leases", error))?;
        let name = table.name();
        report.pass(
            "leases",
            match found {
                Found::Leases(leases) => format!("table \"{name}\" has {leases} leases"),
                Found::Nothing => format!("table \"{name}\" will be created with the first run"),
            },
        );
    }
    if let Some(consumer) = fan_out {
        report.begin("fan-out");
        let found = registered(source, &summary.arn, consumer).await.map_err(|error| ("fan-out", error))?;
        report.pass("fan-out", found);
    }
    Ok(())
}

async fn read(source: &Kinesis, shard: &str) -> Result<(), StageError> {
    let Kinesis { stream, .. } = source;
    let (kind, _, _) = Start::Latest.parts();
    let request = stream.client()?.get_shard_iterator().stream_name(stream.name()).shard_id(shard);
    let answer = request.shard_iterator_type(kind).send().await.map_err(|error| stream.failed(error, "read"))?;
    let iterator = answer.shard_iterator.unwrap_or_default();
    match stream.client()?.get_records().shard_iterator(iterator).limit(1).send().await {
        Ok(_) => Ok(()),
        // Somebody else reads, so it can be read.
        Err(error) if fault::code_of(&error).is_some_and(fault::is_throttled) => Ok(()),
        Err(error) => Err(stream.failed(error, "read")),
    }
}

async fn registered(source: &Kinesis, stream_arn: &str, consumer: &str) -> Result<String, StageError> {
    let Kinesis { stream, .. } = source;
    let request = stream.client()?.describe_stream_consumer();
    let request = match consumer.starts_with("arn:") {
        true => request.consumer_arn(consumer),
        false => request.stream_arn(stream_arn).consumer_name(consumer),
    };
    match request.send().await {
        Ok(_) => Ok(format!("consumer \"{consumer}\" is registered")),
        Err(error) if fault::code_of(&error) == Some("ResourceNotFoundException") && !consumer.starts_with("arn:") => {
            Ok(format!("consumer \"{consumer}\" will be registered with the first run"))
        }
        Err(error) => Err(stream.failed(error, "asked for its consumer")),
    }
}
