//! Runs one stage outside a pipeline: for tests and benchmarks of stages.
//!
//! A transform needs no more than [`Batch::detached`] and [`Emitter::take`](crate::stage::Emitter),
//! a sink no more than [`Group::new`](crate::stage::Group::new). A source needs somebody who reads
//! its ports and keeps its promises: [`source`].

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::batch::Batch;
use crate::checkpoint::Gate;
use crate::context::SourceResumption;
use crate::position::Position;
use crate::queue::{Inbox, Outbox, queue};
use crate::stage::{Port, SourceContext};
use crate::stats::{EdgeStats, StageStats};
use crate::storage::{FsStorage, Storage};

/// The reading end of a source under test.
pub struct Outlet {
    main: Inbox,
    rejected: Inbox,
    stop: CancellationToken,
    stats: Arc<StageStats>,
}

/// A context for a source with the ports main and `rejected`, and what comes out of them. Queues
/// hold `rows_max` rows.
pub fn source(rows_max: u32) -> (SourceContext, Outlet) {
    resumed_source(rows_max, BTreeMap::new(), Arc::new(FsStorage))
}

/// The same for a source that reads on after these positions, and keeps what it must on this disk.
pub fn resumed_source(
    rows_max: u32,
    resume: BTreeMap<String, Position>,
    storage: Arc<dyn Storage>,
) -> (SourceContext, Outlet) {
    let resumption = SourceResumption { after: Arc::new(resume), checkpoints: false };
    let stats = Arc::new(StageStats::new("source", "test", "source", &[Port::MAIN, Port::REJECTED]));
    let edge = |port| queue(rows_max, Arc::new(EdgeStats::new("source", port, "test")));
    let (main, main_end) = edge(Port::MAIN);
    let (rejected, rejected_end) = edge(Port::REJECTED);
    let stop = CancellationToken::new();
    let outbox = Outbox::new(vec![(Port::MAIN, vec![main]), (Port::REJECTED, vec![rejected])]);
    let outlet = Outlet {
        main: Inbox::new(vec![main_end]),
        rejected: Inbox::new(vec![rejected_end]),
        stop: stop.clone(),
        stats: stats.clone(),
    };
    let gate = Arc::new(Gate::new(outbox));
    (SourceContext::new("source", gate, stop, stats, resumption, storage, Default::default()), outlet)
}

impl Outlet {
    /// The next batch by the main port; `None` once the source has closed its ports.
    pub async fn next(&mut self) -> Option<Batch> {
        self.main.next_batch().await.map(|(_, batch)| batch)
    }

    /// The next batch by `rejected`; `None` once the source has closed its ports.
    pub async fn next_rejected(&mut self) -> Option<Batch> {
        self.rejected.next_batch().await.map(|(_, batch)| batch)
    }

    /// Asks the source to stop reading, as the first signal does.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// The source's own counter of that name.
    pub fn counter(&self, name: &'static str) -> u64 {
        self.stats.counter(name).get()
    }
}

/// What a sink does after its commit: the batch's share of the promise is kept.
pub fn deliver(batch: Batch) {
    batch.ack.deliver();
}

/// A [`BuildContext`](crate::stage::BuildContext) that knows these schemas, written as in a pipeline
/// file: `[schema.telemetry]` and so on.
///
/// # Panics
/// The text is not valid: it is the test's own.
pub fn build_context(stage: &str, schemas: &str) -> crate::stage::BuildContext {
    use std::collections::BTreeMap;

    use crate::schema::{ColumnText, ColumnType, DeclaredSchema};

    let document = toml::de::DeTable::parse(schemas).expect("valid TOML").into_inner();
    let mut declared = BTreeMap::new();
    let tables = document.get("schema").and_then(|item| item.get_ref().as_table());
    for (name, table) in tables.into_iter().flatten() {
        let mut entries: Vec<_> = table.get_ref().as_table().expect("a table of columns").iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let columns = entries.into_iter().map(|(key, value)| {
            let text = serde::Deserialize::deserialize(toml::de::ValueDeserializer::from(value.clone()));
            let text: ColumnText = match text {
                Ok(details) => details,
                Err(_) => ColumnText::of(
                    <ColumnType as serde::Deserialize>::deserialize(toml::de::ValueDeserializer::from(value.clone()))
                        .expect("a type or a table of details"),
                ),
            };
            text.column(key.get_ref()).expect("a valid column")
        });
        declared.insert(name.get_ref().to_string(), Arc::new(DeclaredSchema { columns: columns.collect() }));
    }
    crate::stage::BuildContext::detached(stage, declared)
}
