//! What the engine hands to a stage: while it is built, and while a source runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::ack::Partition;
use crate::batch::Batch;
use crate::checkpoint::{Gate, Kept, Shut};
use crate::error::StageError;
use crate::outside::Outside;
use crate::position::Position;
use crate::schema::DeclaredSchema;
use crate::spool::SpoolMeter;
use crate::stage::{BuildError, Port};
use crate::stats::{CertificateStats, Counter, DeviceStats, Gauge, IntakeStats, Running, StageStats};
use crate::storage::Storage;
use crate::suggest::suggest;
use crate::tenure::{Claim, Claimed, Tenure, Tenures};

/// What a stage's configuration may know while it builds the stage.
#[derive(Clone)]
pub struct BuildContext {
    /// The stage's name in the pipeline file.
    pub stage: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// Where the pipeline keeps what must survive a restart.
    pub(crate) data_dir: PathBuf,
    pub(crate) schemas: Arc<BTreeMap<String, Arc<DeclaredSchema>>>,
    pub(crate) stats: Arc<StageStats>,
}

impl BuildContext {
    /// For tests of a stage and for stages built by hand.
    pub fn detached(stage: &str, schemas: BTreeMap<String, Arc<DeclaredSchema>>) -> Self {
        let ports = [Port::MAIN, Port::REJECTED];
        let stats = Arc::new(StageStats::new(stage, "detached", "stage", &ports));
        let data_dir = std::env::temp_dir().join(format!("pipeline-detached-{:016x}", rand::random::<u64>()));
        Self { stage: stage.to_owned(), pipeline: "detached".to_owned(), data_dir, schemas: Arc::new(schemas), stats }
    }

    /// The same with another data directory, for tests.
    #[must_use]
    pub fn with_data_dir(mut self, data_dir: impl Into<PathBuf>) -> Self {
        self.data_dir = data_dir.into();
        self
    }

    /// A folder of the stage's own for what must survive a restart. Not made yet: the stage makes it
    /// when it first has something to keep.
    pub fn state_dir(&self) -> PathBuf {
        self.data_dir.join(&self.stage)
    }

    /// The declared schema of that name.
    ///
    /// # Errors
    /// A [`BuildError`] at `key` that lists what there is.
    pub fn schema(&self, key: &str, name: &str) -> Result<Arc<DeclaredSchema>, BuildError> {
        self.schemas.get(name).cloned().ok_or_else(|| {
            let known = self.schemas.keys().map(String::as_str);
            BuildError::invalid(key, format!("no schema is named \"{name}\"")).hint(suggest(
                name,
                known,
                "Schemas",
                "Declare it as [schema.NAME].",
            ))
        })
    }

    /// A counter of the stage's own, such as `reconnects`: shown with the stage's figures.
    pub fn counter(&self, name: &'static str) -> Counter {
        self.stats.counter(name)
    }

    /// Until when certificates are good, for a stage that makes encrypted connections.
    pub fn certificates(&self) -> CertificateStats {
        self.stats.follow_certificates()
    }

    /// How many devices the stage knows, for one that follows them.
    pub fn devices(&self) -> DeviceStats {
        self.stats.follow_devices()
    }
}

/// What a running source holds of the engine.
pub struct SourceContext {
    name: String,
    gate: Arc<Gate>,
    stop: CancellationToken,
    stats: Arc<StageStats>,
    resumption: SourceResumption,
    storage: Arc<dyn Storage>,
    tenures: Tenures,
}

/// Where the sources of a run go on.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceResumption {
    /// By the full names of partitions.
    pub after: Arc<BTreeMap<String, Position>>,
    /// Whether this run takes checkpoints.
    pub checkpoints: bool,
}

impl SourceContext {
    pub(crate) fn new(
        name: &str,
        gate: Arc<Gate>,
        stop: CancellationToken,
        stats: Arc<StageStats>,
        resumption: SourceResumption,
        storage: Arc<dyn Storage>,
        tenures: Tenures,
    ) -> Self {
        Self { name: name.to_owned(), gate, stop, stats, resumption, storage, tenures }
    }

    /// A new ordered stream of this source, which is gone with this run.
    pub fn partition(&self, name: impl Into<String>) -> Partition {
        Partition::new(name)
    }

    /// An ordered stream of this source that goes on in the next run: the positions of its rows are the
    /// same whenever they are read. (Sinks are told so where the run takes checkpoints; else they know rows
    /// by their keys.) With it, the position to read on after; `None`: from the beginning.
    ///
    /// Sinks know what they have stored by these positions, so a batch that is read again must not
    /// straddle the end of one that was sent in an earlier run. For sources whose
    /// [`Source::is_resumable`](crate::stage::Source::is_resumable) says so.
    pub async fn resumable_partition(&self, name: &str) -> (Partition, Option<Position>) {
        let name = format!("{}/{name}", self.name);
        // Sinks learn where they go on from in runs that take checkpoints alone; in others, positions of an
        // earlier run would contradict those of this one.
        let partition = if self.takes_checkpoints() { Partition::resumable(name) } else { Partition::new(name) };
        let after = self.resumption.after.get(partition.name()).copied();
        self.gate.start(&partition, after).await;
        (partition, after)
    }

    /// Claims a partition that several workers share, for a source whose
    /// [`Source::is_shared`](crate::stage::Source::is_shared) says so. `tenure`: the number of its lease, greater than that
    /// of any before. `parents`: the partitions that this one has come from; what transforms remember of those is the
    /// beginning where nothing of this one was kept. `otherwise`: where to read on where no sink has kept a checkpoint.
    ///
    /// Resolves once every sink has put the tenure on record. Dropping the future gives the claim up.
    ///
    /// # Errors
    /// [`StageError::superseded`] where a later tenure is on record; a sink needs a person; what was kept is damaged.
    pub async fn claim(
        &self,
        name: &str,
        tenure: u64,
        parents: &[String],
        otherwise: Option<Position>,
    ) -> Result<Claimed, StageError> {
        let full = |name: &str| format!("{}/{name}", self.name);
        let revoked = CancellationToken::new();
        let given_up = revoked.clone().drop_guard();
        let parents = parents.iter().map(|parent| full(parent)).collect();
        let claim = Claim { partition: full(name), number: tenure, parents, revoked: revoked.clone() };
        let adopted = self.tenures.adopt(&claim).await?;
        let kept = adopted.iter().find_map(|adopted| adopted.checkpoint.as_deref()).map(Kept::decode).transpose()?;
        let after = kept.as_ref().map(|kept| kept.position).or(otherwise).unwrap_or_default();
        let mut states: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        let inherited = adopted.iter().flat_map(|adopted| &adopted.inherited).map(|bytes| Kept::decode(bytes));
        for kept in kept.map(Ok).into_iter().chain(inherited) {
            kept?.states.into_iter().for_each(|(transform, state)| states.entry(transform).or_default().push(state));
        }
        let cuts: BTreeSet<Position> =
            adopted.iter().flat_map(|adopted| &adopted.positions).map(|entry| entry.position).collect();
        given_up.disarm();
        let partition = Partition::held(claim.partition, Arc::new(Tenure { number: tenure, revoked, after, states }));
        self.gate.start(&partition, Some(after)).await;
        self.tenures.begin(&partition);
        Ok(Claimed {
            partition,
            // Nothing was ever stored before the first position.
            after: Some(after).filter(|after| *after != Position::default()),
            cuts: cuts.into_iter().filter(|cut| *cut > after).collect(),
        })
    }

    /// A claimed partition is this worker's no more: everything of it is stored and kept, or it is somebody else's.
    pub async fn retire(&self, partition: &Partition) {
        self.gate.retire(partition).await;
        self.tenures.end(partition);
    }

    /// Has the sinks forget a shared partition that is over, and that nobody will claim again. `heirs`: the partitions that have
    /// come of it and are not over themselves. False as long as one of these would begin with what is kept of it: to be
    /// asked again later. See [`Sink::forget`](crate::stage::Sink::forget).
    ///
    /// # Errors
    /// A sink can't.
    pub async fn forget(&self, name: &str, heirs: &[String]) -> Result<bool, StageError> {
        let full = |name: &str| format!("{}/{name}", self.name);
        let heirs: Vec<String> = heirs.iter().map(|heir| full(heir)).collect();
        self.tenures.forget(&full(name), &heirs).await
    }

    /// Asks the sinks not to wait for more rows: somebody waits for those that they have. What is still on its way to them is
    /// not meant, so whoever waits asks again.
    pub fn want_stored(&self) {
        self.tenures.want_stored();
    }

    /// Asks for a checkpoint now, and not after the interval: [`Partition::checkpointed`] tells when it is there.
    pub fn want_checkpoint(&self) {
        self.tenures.want_checkpoint();
    }

    /// Whether the run takes checkpoints, which move [`Partition::checkpointed`]. It doesn't where some
    /// other source can't be resumed; a source that can then goes on by a record of its own, behind what
    /// was delivered.
    pub fn takes_checkpoints(&self) -> bool {
        self.resumption.checkpoints
    }

    /// The disk for what must survive a restart.
    pub fn storage(&self) -> Arc<dyn Storage> {
        self.storage.clone()
    }

    /// Sends a batch out by the main port, and waits while the pipeline is full. See
    /// [`SourceContext::send_by_ports`].
    ///
    /// # Errors
    /// As for [`SourceContext::send_by_ports`].
    pub async fn send(&self, batch: Batch) -> Result<(), StageError> {
        self.send_to(Port::MAIN, batch).await
    }

    /// Sends a batch out by a port, and waits while the pipeline is full.
    ///
    /// # Errors
    /// As for [`SourceContext::send_by_ports`].
    pub async fn send_to(&self, port: Port, batch: Batch) -> Result<(), StageError> {
        self.send_by_ports([(port, batch)]).await
    }

    /// Sends what was read together out by several ports, and waits while the pipeline is full. All
    /// batches of one promise go out by one call, so that no checkpoint parts them. Dropping the future
    /// fails the batches.
    ///
    /// # Errors
    /// A stage behind this one has ended: return the error, the engine knows the real cause.
    pub async fn send_by_ports<const N: usize>(&self, batches: [(Port, Batch); N]) -> Result<(), StageError> {
        let rows = batches.each_ref().map(|(port, batch)| (*port, batch.rows.num_rows()));
        batches.iter().for_each(|(port, batch)| self.stats.shows(*port, batch));
        let waits_for_room = self.stats.blocked.start();
        let sent = self.gate.send(batches).await;
        drop(waits_for_room);
        match sent {
            Ok(()) => {
                rows.into_iter().for_each(|(port, rows)| self.stats.left(port, rows));
                Ok(())
            }
            Err(Shut::ByReader) => Err(StageError::reader_gone()),
            Err(Shut::BySource) => Err(StageError::bug("the source sent a batch after it had closed its ports")),
        }
    }

    /// Resolves when the source should stop reading. Cancel safe.
    pub async fn stop_requested(&self) {
        self.stop.cancelled().await;
    }

    /// Whether the source should stop reading.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// A token to hand to tasks of the source's own; cancelled when the source should stop reading.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// No more batches will come: the stages behind drain and end. Promises stay open.
    pub async fn close(&self) {
        self.gate.close().await;
    }

    /// Closes the ports and waits until every promise of the partition has its verdict.
    ///
    /// # Errors
    /// A promise was broken: rows of this partition are stored nowhere, and must be read again.
    pub async fn drain(&self, partition: &Partition) -> Result<(), StageError> {
        self.close().await;
        let last = partition.wait_for(|progress| progress.failed || progress.is_complete()).await;
        if last.failed { Err(StageError::reader_gone()) } else { Ok(()) }
    }

    /// Something outside that the source depends on, to say when it fails and when it is back. One for each that may fail by
    /// itself: a connection, a shard, a queue.
    pub fn outside(&self) -> Outside {
        Outside::of(self.stats.clone())
    }

    /// A counter of the source's own, such as `reconnects`: shown with its other figures.
    pub fn counter(&self, name: &'static str) -> Counter {
        self.stats.counter(name)
    }

    /// What the source takes in and passes on, in its own records. A source that counts it is held to
    /// account for it.
    pub fn intake(&self) -> IntakeStats {
        self.stats.start_intake()
    }

    /// How many milliseconds what was read is behind the tip of the stream: the source's lag. For sources whose outside
    /// tells.
    pub fn behind_ms(&self) -> Gauge {
        self.stats.start_behind()
    }

    /// How many partitions this worker has now, of a source that several share.
    pub fn partitions_held(&self) -> Gauge {
        self.stats.start_partitions()
    }

    /// Counts as time at work until the result is dropped: decoding, say, and not waiting for the outside.
    pub fn working(&self) -> Running<'_> {
        self.stats.busy.start()
    }

    /// Shows how much the source's spool holds.
    pub fn show_spool(&self, meter: SpoolMeter) {
        self.stats.set_spool(meter);
    }

    /// Shows a counter that somebody else counts with, such as the source's spool.
    pub fn show_counter(&self, name: &'static str, counter: &Counter) {
        self.stats.show_counter(name, counter);
    }
}
