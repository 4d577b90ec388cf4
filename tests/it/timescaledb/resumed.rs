//! Whole runs behind a source that resumes: ended at random moments, then gone on.

use std::collections::BTreeSet;

use async_trait::async_trait;
use pipeline_engine::stage::{BuiltSource, Source, SourceConfig, SourceContext, StageDoc};
use pipeline_engine::{Plan, Run, RunError, Span};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::timeout;

use super::proxy::{Cut, End, Proxy};
use super::*;

const BATCHES: u64 = 150;
const ROWS: usize = 20;

/// Sends batches of readings, each a position; one reading of every tenth batch is too hot.
#[derive(Deserialize, JsonSchema)]
struct Log;

impl SourceConfig for Log {
    const DOC: StageDoc = StageDoc { type_name: "log", summary: "", ports: &[], failure: "" };

    fn build(self, _: &BuildContext) -> Result<BuiltSource, BuildError> {
        Ok(BuiltSource { source: Box::new(self), outputs: vec![(Port::MAIN, telemetry_schema())] })
    }
}

#[async_trait]
impl Source for Log {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let (partition, after) = cx.resumable_partition("log").await;
        for position in after.map_or(0, |after| after.0[3]) + 1..=BATCHES {
            if cx.is_stopping() {
                break;
            }
            let ack = partition.open(Span::new(position, position), NEW_YEAR_US);
            cx.send(Batch::new(readings(position).rows, ack)).await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cx.drain(&partition).await
    }

    fn is_resumable(&self) -> bool {
        true
    }
}

fn readings(position: u64) -> Batch {
    let devices: Vec<String> = (0..ROWS).map(|device| format!("d{device:02}")).collect();
    let at = i64::try_from(position).unwrap();
    let temperature = |device: usize| if device == 7 && position.is_multiple_of(10) { 999.0 } else { device as f64 };
    let rows = devices.iter().enumerate().map(|(device, name)| (name.as_str(), at, temperature(device)));
    telemetry(&rows.collect::<Vec<_>>())
}

fn sink(url: &str, table: &str, settings: &str) -> TimescaleDbConfig {
    toml::from_str(&format!("url = \"{url}\"\ntable = \"{table}\"\n{settings}")).expect("a valid configuration")
}

/// Nothing is dropped by the keys: without them, rows that came twice would be seen.
#[tokio::test]
async fn runs_that_end_at_any_moment_leave_every_row_and_every_dead_letter_once() {
    let schema = unique("resumed");
    let admin = connect(&database_url()).await;
    let readings = "device_id text, timestamp timestamptz, temperature float8 CHECK (temperature < 100)";
    admin.batch_execute(&format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.readings ({readings})")).await.unwrap();
    let proxy = Proxy::before(&database_url()).await;
    let home = tempfile::tempdir().unwrap();
    let run = || {
        let letters =
            sink(&proxy.url, &format!("{schema}.letters"), "create = true\nkey = []\ntime_column = \"received_at\"");
        let plan = Plan::builder(format!("resumed {schema}"))
            .data_dir(home.path())
            .queue_rows(100)
            .checkpoint_interval(Duration::from_millis(20))
            .source("log", Log)
            .sink("table", &["log"], sink(&proxy.url, &format!("{schema}.readings"), "key = []\nbatch_rows = 200"))
            .sink("letters", &["table.rejected"], letters)
            .build()
            .unwrap();
        Run::new(plan)
    };
    let mut random = Pcg64Mcg::seed_from_u64(1);
    let mut crashes = 0;
    let report = loop {
        // One of the connections is cut as well, somewhere.
        proxy.arm(Cut::AfterBytes(random.random_range(1_000..30_000)), End::Close);
        let life = Duration::from_millis(random.random_range(50..400 + crashes * 20));
        match timeout(life, run().until(std::future::pending())).await {
            // What is left of the run before still lets go of its directory.
            Ok(Err(RunError::DataDir { .. })) => tokio::task::yield_now().await,
            Ok(ended) => break ended.unwrap(),
            Err(_) => crashes += 1,
        }
        assert!(crashes < 1_000, "every run must come further");
    };
    assert_eq!(report.stage("table").unwrap().state(), pipeline_engine::StageState::Ended);
    assert!(crashes > 2, "{crashes} crashes prove little");

    let sql = format!("SELECT device_id, (extract(epoch FROM timestamp) * 1000000)::int8 FROM {schema}.readings");
    let rows: Vec<(String, i64)> =
        admin.query(&sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    let distinct: BTreeSet<_> = rows.iter().collect();
    let letters: i64 = admin.query_one(&format!("SELECT count(*) FROM {schema}.letters"), &[]).await.unwrap().get(0);
    let hot = BATCHES as usize / 10;
    assert_eq!((rows.len(), distinct.len()), (BATCHES as usize * ROWS - hot, rows.len()), "{crashes} crashes");
    let sql = format!("SELECT sink, input, position, rows_total FROM {schema}._pipeline_ledger ORDER BY 1");
    let ledger = admin.query(&sql, &[]).await.unwrap();
    let ledger: Vec<(&str, &str, &str, i64)> =
        ledger.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
    let letters_then = ledger[0].3;
    assert_eq!(ledger[1], ("table", "log", "150", rows.len() as i64), "{crashes} crashes");
    assert_eq!((letters, letters_then), (hot as i64, hot as i64), "{crashes} crashes");
}
