//! What it costs that nothing is lost and nothing is stored twice: messages in memory to a table with a unique key, once by way
//! of a spool on disk with positions in the table's transactions, and once without either.
//!
//! No source of the product can do without, so both are made here of the engine's own parts: the same decoder, the same
//! sink; a source that says it can be resumed makes the sink keep its positions.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pipeline_engine::spool::{FsStorage, Record, Replay, Spool, SpoolError, SpoolOptions};
use pipeline_engine::stage::*;
use pipeline_engine::{Partition, Plan, Position, Run, Span, Variables};
use pipeline_stages::decode::{Decoder, Format, Message};

use crate::table::{Line, Target};
use crate::{Options, fleet, in_turns, machine};

const MESSAGES: u64 = 1_000_000;
/// What a spool puts into one frame at most.
const BATCH_ROWS: usize = 8_192;

pub fn measure(options: &Options) -> Vec<Line> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let database = runtime.block_on(machine::database());
    let messages: Arc<[Vec<u8>]> = (0..MESSAGES).map(|number| fleet::message(number).into_bytes()).collect();
    let rate = |table: &str, spooled: bool| {
        runtime.block_on(database.batch_execute(&fleet::create_table(table))).expect("a table");
        // A spool that begins anew has the numbers of the one before: what the table keeps of that goes too.
        let forget = "DO $$ BEGIN DELETE FROM _pipeline_ledger WHERE pipeline = 'load-guarantees'; \
                      EXCEPTION WHEN undefined_table THEN NULL; END $$";
        runtime.block_on(database.batch_execute(forget)).expect("a ledger of ours");
        let folder = tempfile::tempdir().expect("a folder");
        let took = runtime.block_on(run(folder.path(), table, spooled, messages.clone()));
        let count = runtime.block_on(database.query_one(&format!("SELECT count(*) FROM {table}"), &[]));
        let good = fleet::good(MESSAGES);
        assert_eq!(count.expect("a count").get::<_, i64>(0), good as i64, "every good row once");
        good as f64 / took.as_secs_f64()
    };
    let (with, without) = in_turns(options.rounds, || rate("load_guarded", true), || rate("load_bare", false));
    runtime.block_on(database.batch_execute("DROP TABLE load_guarded, load_bare")).expect("tables of ours");
    vec![Line {
        path: "spool and ledger on, to both off".to_owned(),
        unit: "rows/s",
        ours: with,
        limit: without,
        target: Target::Ratio(0.8),
        more: "messages in memory to TimescaleDB, unique key, as fast as it takes them; the limit here is neither spool nor positions"
            .to_owned(),
    }]
}

async fn run(folder: &Path, table: &str, spooled: bool, messages: Arc<[Vec<u8>]>) -> Duration {
    let text = format!(
        "[pipeline]\nname = \"load-guarantees\"\ndata_dir = \"{0}/data\"\n{1}\n[sources.messages]\ntype = \"messages\"\nschema = \"telemetry\"\n{2}\
         [sinks.refused]\ntype = \"discard\"\ninputs = [\"messages.rejected\"]\n\
         [sinks.stored]\ntype = \"timescaledb\"\ninputs = [\"messages\"]\nurl = \"{3}\"\ntable = \"{table}\"\n\
         key = [\"device_id\", \"timestamp\", \"seq\"]\n",
        folder.display(),
        fleet::SCHEMA,
        if spooled { format!("spool = \"{}/spool\"\n", folder.display()) } else { String::new() },
        machine::service("TEST_DATABASE_URL"),
    );
    // The source takes them as it is built; each round brings the same.
    MESSAGES_OF_RUN.set(messages).ok();
    let registry = pipeline_stages::registry().with_source::<MessagesConfig>();
    let plan = Plan::parse(&text, "guarantees.toml", &registry, &Variables::of_process());
    let plan = plan.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let started = Instant::now();
    tokio::spawn(Run::new(plan).until(std::future::pending())).await.expect("no panic").expect("it runs");
    started.elapsed()
}

/// What the source sends: a pipeline file has no room for it.
static MESSAGES_OF_RUN: std::sync::OnceLock<Arc<[Vec<u8>]>> = std::sync::OnceLock::new();

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct MessagesConfig {
    schema: String,
    /// Where its spool is; without one there is none.
    spool: Option<PathBuf>,
}

struct Messages {
    decoder: Decoder,
    spool: Option<PathBuf>,
    messages: Arc<[Vec<u8>]>,
}

impl SourceConfig for MessagesConfig {
    const DOC: StageDoc = StageDoc { type_name: "messages", summary: "", ports: &[("rejected", "")], failure: "" };

    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError> {
        let decoder = Decoder::new(Some(&*cx.schema("schema", &self.schema)?), Format::Json, &cx.stage);
        let outputs = decoder.outputs();
        let messages = MESSAGES_OF_RUN.get().cloned().unwrap_or_default();
        Ok(BuiltSource { source: Box::new(Messages { decoder, spool: self.spool, messages }), outputs })
    }
}

#[async_trait]
impl Source for Messages {
    fn is_resumable(&self) -> bool {
        self.spool.is_some()
    }

    async fn run(mut self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        match self.spool.take() {
            None => self.send_all(&cx).await,
            Some(folder) => self.send_by_spool(&cx, &folder).await,
        }
    }
}

impl Messages {
    async fn send_all(&mut self, cx: &SourceContext) -> Result<(), StageError> {
        let partition = cx.partition("memory");
        let messages = self.messages.clone();
        for (first, chunk) in (1_u64..).step_by(BATCH_ROWS).zip(messages.chunks(BATCH_ROWS)) {
            self.send(cx, &partition, first, chunk.iter().map(Vec::as_slice)).await?;
        }
        cx.drain(&partition).await
    }

    async fn send_by_spool(&mut self, cx: &SourceContext, folder: &Path) -> Result<(), StageError> {
        let failed = |error: SpoolError| StageError::permanent("the spool").because(error);
        let options = SpoolOptions::new("messages", "load");
        let (spool, mut writer, _) = Spool::open(folder, options, Arc::new(FsStorage)).map_err(failed)?;
        let (partition, _) = cx.resumable_partition("spool").await;
        let messages = self.messages.clone();
        let intake = tokio::spawn(async move {
            for message in &*messages {
                let payload = message.clone().into();
                let record = Record { received_at_us: 0, flags: 0, mark: 0, topic: "load".into(), payload };
                writer.append(&record).await?;
            }
            writer.close().await
        });
        let mut reader = spool.reader(1);
        loop {
            match reader.next().await {
                Ok(Some(Replay::Frame(frame))) => {
                    let payloads = frame.records.iter().map(|record| &*record.payload);
                    self.send(cx, &partition, frame.first_lsn, payloads).await?;
                }
                Ok(Some(Replay::Lost(lost))) => return Err(StageError::bug(format!("{lost:?} are damaged"))),
                Ok(None) | Err(SpoolError::Closed) => break,
                Err(error) => return Err(failed(error)),
            }
        }
        intake.await.map_err(|error| StageError::bug("the intake").because(error))?.map_err(failed)?;
        cx.drain(&partition).await
    }

    /// Sends messages as one batch, the first of which has this position.
    async fn send<'m>(
        &mut self,
        cx: &SourceContext,
        partition: &Partition,
        first: u64,
        payloads: impl Iterator<Item = &'m [u8]> + Send,
    ) -> Result<(), StageError> {
        let mut last = first;
        for (position, payload) in (first..).zip(payloads) {
            last = position;
            self.decoder.push(Message { topic: None, payload, received_at_us: 0, position: Position::from(position) });
        }
        let decoded = self.decoder.take();
        let ack = partition.open(Span::new(first, last), 0);
        let (rows, rejected) = Batch::new(decoded.rows.clone(), ack).split(decoded.rows, decoded.rejected);
        cx.send(rows).await?;
        cx.send_to(Port::REJECTED, rejected).await
    }
}
