//! The gate of a source: where its batches enter the pipeline, and where checkpoints are marked
//! between two of them.

use std::collections::BTreeMap;

use tokio::sync::Mutex;

use crate::ack::{Ack, Partition};
use crate::batch::Batch;
use crate::position::Position;
use crate::queue::{Closed, Outbox};
use crate::stage::Port;

/// Lets through either the batches of one promise or a barrier, never a barrier in their midst.
pub(crate) struct Gate {
    inner: Mutex<Inner>,
}

struct Inner {
    /// `None` once the source has closed its ports.
    outbox: Option<Outbox>,
    /// The last position sent of each partition that can be resumed.
    sent: BTreeMap<String, (Partition, Position)>,
}

/// A partition, and how far it had come at a barrier.
pub(crate) type Place = (Partition, Position);

/// Why nothing went through.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shut {
    /// The source has closed its ports itself.
    BySource,
    /// A stage behind it has ended.
    ByReader,
}

impl Gate {
    pub(crate) fn new(outbox: Outbox) -> Self {
        Self { inner: Mutex::new(Inner { outbox: Some(outbox), sent: BTreeMap::new() }) }
    }

    /// Sends batches by their ports, all before or all behind any barrier.
    pub(crate) async fn send(&self, batches: impl IntoIterator<Item = (Port, Batch)>) -> Result<(), Shut> {
        let mut inner = self.inner.lock().await;
        let Inner { outbox, sent } = &mut *inner;
        let outbox = outbox.as_ref().ok_or(Shut::BySource)?;
        for (port, batch) in batches {
            let place = place_of(&batch.ack);
            outbox.send(port, batch).await.map_err(|Closed| Shut::ByReader)?;
            if let Some((partition, last)) = place {
                match sent.get_mut(partition.name()) {
                    // Of a tenure that is over, something may still come.
                    Some((known, _)) if known.tenure() > partition.tenure() => {}
                    Some((known, position)) => (*known, *position) = (partition, last),
                    None => drop(sent.insert(partition.name().to_owned(), (partition, last))),
                }
            }
        }
        Ok(())
    }

    /// Notes where a partition starts, so that a checkpoint covers it before its first batch.
    pub(crate) async fn start(&self, partition: &Partition, after: Option<Position>) {
        if let Some(after) = after {
            self.inner.lock().await.sent.insert(partition.name().to_owned(), (partition.clone(), after));
        }
    }

    /// A partition is this worker's no more: later checkpoints do without it.
    pub(crate) async fn retire(&self, partition: &Partition) {
        let sent = &mut self.inner.lock().await.sent;
        if sent.get(partition.name()).is_some_and(|(found, _)| found.tenure() == partition.tenure()) {
            sent.remove(partition.name());
        }
    }

    /// Marks a checkpoint behind all that was sent so far, and tells how far that is.
    pub(crate) async fn barrier(&self, id: u64) -> Vec<Place> {
        let inner = self.inner.lock().await;
        if let Some(outbox) = &inner.outbox {
            outbox.barrier(id);
        }
        inner.sent.values().cloned().collect()
    }

    /// How far the source has sent.
    pub(crate) async fn sent(&self) -> Vec<Place> {
        self.inner.lock().await.sent.values().cloned().collect()
    }

    /// No more batches come.
    pub(crate) async fn close(&self) {
        self.inner.lock().await.outbox = None;
    }
}

fn place_of(ack: &Ack) -> Option<Place> {
    let partition = ack.partition().filter(|partition| partition.is_resumable())?;
    let (_, span) = ack.span()?;
    Some((partition.clone(), span.last))
}
