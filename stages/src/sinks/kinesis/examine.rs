//! What `pipeline doctor` asks the stream of a sink. Nothing is put: a record can't be taken back.

use pipeline_engine::stage::Examination;

use super::Kinesis;

/// A shard takes so much in a second.
const RECORDS_A_SHARD: i64 = 1000;

pub(super) async fn examine(sink: &mut Kinesis, report: &Examination) {
    report.begin("credentials");
    if let Err(error) = sink.stream.connect().await {
        return report.fail("credentials", &error);
    }
    report.pass("credentials", format!("there are some for {}", sink.stream.place()));
    report.begin("stream");
    let summary = match sink.stream.describe().await {
        Ok(summary) => summary,
        Err(error) => return report.fail("stream", &error),
    };
    let name = sink.stream.name();
    let found = format!("\"{name}\" is {}", summary.status);
    match summary.status.as_str() {
        "ACTIVE" | "UPDATING" => report.pass("stream", found),
        _ => report.warn("stream", found, "Wait until it is ACTIVE, or create it anew."),
    }
    let records = summary.shards_open * RECORDS_A_SHARD;
    let shards = summary.shards_open;
    report.pass("capacity", format!("{shards} open shards take {records} records and {shards} MB a second"));
}
