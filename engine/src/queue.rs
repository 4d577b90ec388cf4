//! The only place that makes queues. Each edge of the graph has one, bounded in rows.
//!
//! Full means that the sender waits, and the one before it, back to the broker. A batch larger than
//! the bound is let through alone.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{Semaphore, TryAcquireError, mpsc};

use crate::batch::Batch;
#[cfg(test)]
use crate::simulated::{PlantedBug, has_planted};
use crate::stats::EdgeStats;

/// A queue of at most `rows_max` rows.
pub(crate) fn queue(rows_max: u32, stats: Arc<EdgeStats>) -> (Sender, Receiver) {
    // The channel itself is unbounded: the semaphore is the bound, in rows instead of batches.
    let (items, taken) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(rows_max as usize));
    stats.set_rows_max(rows_max);
    let sender = Sender { items, room: room.clone(), rows_max, edge: stats.clone(), stats: stats.clone() };
    (sender, Receiver { items: taken, room, stats })
}

/// What travels on an edge.
enum Item {
    Batch {
        room: u32,
        batch: Batch,
    },
    /// Between two batches: the place at which a checkpoint is taken. Needs no room.
    Barrier(u64),
}

/// The other end is gone: its stage has ended, and the batch counts as failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

pub(crate) struct Sender {
    items: mpsc::UnboundedSender<Item>,
    room: Arc<Semaphore>,
    rows_max: u32,
    /// The edge that this queue is the beginning of, and the queue itself: not the same where the edge goes
    /// over the disk.
    edge: Arc<EdgeStats>,
    stats: Arc<EdgeStats>,
}

impl Sender {
    /// Counts what a stage sends for this edge.
    pub(crate) fn counting_for(mut self, edge: Arc<EdgeStats>) -> Self {
        self.edge = edge;
        self
    }

    /// Waits until there is room. Cancel safe in that the batch then counts as failed.
    pub(crate) async fn send(&self, batch: Batch) -> Result<(), Closed> {
        let room = self.room_for(batch.rows.num_rows());
        let permit = self.room.acquire_many(room).await.map_err(|_| Closed)?;
        permit.forget();
        self.put(room, batch)
    }

    /// Gives the batch back if there is no room now.
    pub(crate) fn try_send(&self, batch: Batch) -> Result<Result<(), Batch>, Closed> {
        let room = self.room_for(batch.rows.num_rows());
        match self.room.try_acquire_many(room) {
            Ok(permit) => {
                permit.forget();
                self.put(room, batch).map(Ok)
            }
            Err(TryAcquireError::NoPermits) => Ok(Err(batch)),
            Err(TryAcquireError::Closed) => Err(Closed),
        }
    }

    /// Waits until so many rows could be sent. Cancel safe.
    pub(crate) async fn has_room(&self, rows: usize) -> Result<(), Closed> {
        self.room.acquire_many(self.room_for(rows)).await.map(drop).map_err(|_| Closed)
    }

    fn room_for(&self, rows: usize) -> u32 {
        u32::try_from(rows).unwrap_or(u32::MAX).clamp(1, self.rows_max)
    }

    fn put(&self, room: u32, batch: Batch) -> Result<(), Closed> {
        self.stats.entered(batch.rows.num_rows());
        self.items.send(Item::Batch { room, batch }).map_err(|_| Closed)
    }

    fn barrier(&self, id: u64) {
        // A reader that has ended needs no checkpoint; its end is reported by itself.
        self.items.send(Item::Barrier(id)).ok();
    }
}

pub(crate) struct Receiver {
    items: mpsc::UnboundedReceiver<Item>,
    room: Arc<Semaphore>,
    stats: Arc<EdgeStats>,
}

impl Receiver {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arrival>> {
        self.items.poll_recv(cx).map(|next| {
            next.map(|item| match item {
                Item::Barrier(id) => Arrival::Barrier(id),
                Item::Batch { room, batch } => {
                    self.stats.left(batch.rows.num_rows(), batch.ack.received_at_us());
                    self.room.add_permits(room as usize);
                    Arrival::Batch(0, batch)
                }
            })
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Wakes a sender that waits for room which will never come.
        self.room.close();
    }
}

/// What a stage finds in its inbox.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A batch, and the edge it came by.
    Batch(usize, Batch),
    /// All batches before the barrier of this checkpoint have come, on every edge, and none after it.
    Barrier(u64),
}

/// All edges into one stage, read in turn so that none is starved.
///
/// An edge whose barrier has come is left alone until that of every other edge has come too: so a
/// stage's state is taken when it has applied the same part of each source on all of its edges.
pub(crate) struct Inbox {
    edges: Vec<InboxEdge>,
    next: usize,
}

struct InboxEdge {
    /// `None` once the edge has ended.
    receiver: Option<Receiver>,
    barrier: Option<u64>,
}

impl Inbox {
    pub(crate) fn new(edges: Vec<Receiver>) -> Self {
        let edges = edges.into_iter().map(|receiver| InboxEdge { receiver: Some(receiver), barrier: None });
        Self { edges: edges.collect(), next: 0 }
    }

    /// What comes next on any edge; `None` once every edge has ended. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Arrival> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Inbox::next`], where the barriers are nobody's concern.
    pub(crate) async fn next_batch(&mut self) -> Option<(usize, Batch)> {
        loop {
            if let Arrival::Batch(edge, batch) = self.next().await? {
                return Some((edge, batch));
            }
        }
    }

    /// A batch that is there already.
    pub(crate) fn try_next_batch(&mut self) -> Option<(usize, Batch)> {
        let waker = std::task::Waker::noop();
        loop {
            match self.poll_next(&mut Context::from_waker(waker)) {
                Poll::Ready(Some(Arrival::Batch(edge, batch))) => return Some((edge, batch)),
                Poll::Ready(Some(Arrival::Barrier(_))) => {}
                Poll::Ready(None) | Poll::Pending => return None,
            }
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arrival>> {
        for turn in 0..self.edges.len() {
            let index = (self.next + turn) % self.edges.len();
            let edge = &mut self.edges[index];
            let (Some(receiver), None) = (&mut edge.receiver, edge.barrier) else { continue };
            match receiver.poll_next(cx) {
                Poll::Ready(Some(Arrival::Batch(_, batch))) => {
                    self.next = index + 1;
                    return Poll::Ready(Some(Arrival::Batch(index, batch)));
                }
                #[cfg(test)]
                Poll::Ready(Some(Arrival::Barrier(id))) if has_planted(PlantedBug::SnapshotUnaligned) => {
                    // At the first edge's barrier, whatever is still to come before that of the others.
                    return Poll::Ready(Some(Arrival::Barrier(id)));
                }
                Poll::Ready(Some(Arrival::Barrier(id))) => edge.barrier = Some(id),
                Poll::Ready(None) => edge.receiver = None,
                Poll::Pending => {}
            }
        }
        let mut open = self.edges.iter().filter(|edge| edge.receiver.is_some()).peekable();
        if open.peek().is_none() {
            return Poll::Ready(None);
        }
        match open.next().and_then(|edge| edge.barrier) {
            Some(id) if open.all(|edge| edge.barrier.is_some()) => {
                self.edges.iter_mut().for_each(|edge| edge.barrier = None);
                Poll::Ready(Some(Arrival::Barrier(id)))
            }
            _ => Poll::Pending,
        }
    }
}

/// All edges out of one stage, by port.
pub(crate) struct Outbox {
    ports: Vec<(crate::stage::Port, Vec<Sender>)>,
}

impl Outbox {
    pub(crate) fn new(ports: Vec<(crate::stage::Port, Vec<Sender>)>) -> Self {
        Self { ports }
    }

    /// Whether anybody reads a port.
    pub(crate) fn is_read(&self, port: crate::stage::Port) -> bool {
        self.ports.iter().any(|(name, readers)| *name == port && !readers.is_empty())
    }

    /// Gives a batch to every reader of a port. With no rows, or no reader, leaving the stage is
    /// the batch's end and its share of the promise is kept.
    pub(crate) async fn send(&self, port: crate::stage::Port, batch: Batch) -> Result<(), Closed> {
        let readers = self.ports.iter().find(|(name, _)| *name == port).map_or(&[][..], |(_, readers)| readers);
        let Some((last, others)) = readers.split_last().filter(|_| batch.rows.num_rows() > 0) else {
            batch.ack.deliver();
            return Ok(());
        };
        for reader in others {
            reader.edge.sent(batch.rows.num_rows(), batch.ack.received_at_us());
            reader.send(batch.fan_out()).await?;
        }
        last.edge.sent(batch.rows.num_rows(), batch.ack.received_at_us());
        last.send(batch).await
    }

    /// Marks the place of a checkpoint on every edge.
    pub(crate) fn barrier(&self, id: u64) {
        self.ports.iter().flat_map(|(_, readers)| readers).for_each(|reader| reader.barrier(id));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use arrow::record_batch::RecordBatch;

    use super::*;
    use crate::ack::Partition;
    use crate::position::Span;
    use crate::stage::Port;

    fn rows(count: usize) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![0; count]));
        RecordBatch::try_from_iter([("n", column)]).expect("one column of one length")
    }

    fn edge(rows_max: u32) -> (Sender, Receiver) {
        queue(rows_max, Arc::new(EdgeStats::new("a", Port::MAIN, "b")))
    }

    #[tokio::test]
    async fn a_full_queue_makes_the_sender_wait() {
        let (sender, receiver) = edge(10);
        sender.send(Batch::detached(rows(10))).await.expect("there is room");
        let mut waiting = Box::pin(sender.send(Batch::detached(rows(1))));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        let mut inbox = Inbox::new(vec![receiver]);
        assert_eq!(inbox.next_batch().await.expect("a batch").1.rows.num_rows(), 10);
        waiting.await.expect("there is room again");
    }

    #[tokio::test]
    async fn a_batch_above_the_bound_goes_alone() {
        let (sender, receiver) = edge(10);
        sender.send(Batch::detached(rows(25))).await.expect("let through alone");
        assert!(futures::poll!(Box::pin(sender.send(Batch::detached(rows(1))))).is_pending());
        assert_eq!(Inbox::new(vec![receiver]).next_batch().await.expect("a batch").1.rows.num_rows(), 25);
    }

    #[tokio::test]
    async fn a_gone_reader_fails_the_batch() {
        let (sender, receiver) = edge(1);
        let partition = Partition::new("p");
        drop(receiver);
        let batch = Batch::new(rows(1), partition.open(Span::new(1, 1), 0));
        assert_eq!(sender.send(batch).await, Err(Closed));
        assert!(partition.progress().borrow().failed);
    }

    #[tokio::test]
    async fn an_inbox_reads_its_edges_in_turn_and_ends_with_the_last() {
        let (first, first_end) = edge(100);
        let (second, second_end) = edge(100);
        for _ in 0..2 {
            first.send(Batch::detached(rows(1))).await.expect("room");
            second.send(Batch::detached(rows(2))).await.expect("room");
        }
        drop((first, second));
        let mut inbox = Inbox::new(vec![first_end, second_end]);
        let mut sizes = Vec::new();
        while let Some((edge, batch)) = inbox.next_batch().await {
            sizes.push((edge, batch.rows.num_rows()));
        }
        assert_eq!(sizes, [(0, 1), (1, 2), (0, 1), (1, 2)]);
    }

    #[tokio::test]
    async fn every_reader_of_a_port_holds_a_share() {
        let (left, left_end) = edge(10);
        let (right, right_end) = edge(10);
        let outbox = Outbox::new(vec![(Port::MAIN, vec![left, right])]);
        let partition = Partition::new("p");
        let batch = Batch::new(rows(1), partition.open(Span::new(1, 1), 0));
        outbox.send(Port::MAIN, batch).await.expect("both are there");
        for end in [left_end, right_end] {
            assert!(!partition.progress().borrow().is_complete());
            Inbox::new(vec![end]).next_batch().await.expect("a batch").1.ack.deliver();
        }
        assert!(partition.progress().borrow().is_complete());
    }

    #[tokio::test]
    async fn a_barrier_arrives_once_it_has_come_on_every_edge_and_holds_back_what_follows_it() {
        let (first, first_end) = edge(100);
        let (second, second_end) = edge(100);
        let mut inbox = Inbox::new(vec![first_end, second_end]);
        first.barrier(1);
        first.send(Batch::detached(rows(1))).await.expect("room");
        second.send(Batch::detached(rows(2))).await.expect("room");
        let arrived = inbox.next().await;
        assert!(matches!(&arrived, Some(Arrival::Batch(1, batch)) if batch.rows.num_rows() == 2), "{arrived:?}");
        assert!(futures::poll!(Box::pin(inbox.next())).is_pending(), "the first edge waits for the second");
        second.barrier(1);
        assert!(matches!(inbox.next().await, Some(Arrival::Barrier(1))));
        assert!(matches!(inbox.next().await, Some(Arrival::Batch(0, _))));
    }

    #[tokio::test]
    async fn an_edge_that_has_ended_holds_up_no_barrier() {
        let (first, first_end) = edge(100);
        let (second, second_end) = edge(100);
        let mut inbox = Inbox::new(vec![first_end, second_end]);
        first.barrier(7);
        assert!(futures::poll!(Box::pin(inbox.next())).is_pending());
        drop(second);
        assert!(matches!(inbox.next().await, Some(Arrival::Barrier(7))));
        drop(first);
        assert!(inbox.next().await.is_none());
    }
}
