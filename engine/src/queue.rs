//! The only place that makes queues. Each edge of the graph has one, bounded in rows.
//!
//! Full means that the sender waits, and the one before it, back to the broker. A batch larger than
//! the bound is let through alone.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{Semaphore, mpsc};

use crate::batch::Batch;
use crate::stats::EdgeStats;

/// A queue of at most `rows_max` rows.
pub(crate) fn queue(rows_max: u32, stats: Arc<EdgeStats>) -> (Sender, Receiver) {
    // The channel itself is unbounded: the semaphore is the bound, in rows instead of batches.
    let (batches, taken) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(rows_max as usize));
    stats.set_rows_max(rows_max);
    let sender = Sender { batches, room: room.clone(), rows_max, stats: stats.clone() };
    (sender, Receiver { batches: taken, room, stats })
}

/// The other end is gone: its stage has ended, and the batch counts as failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

pub(crate) struct Sender {
    batches: mpsc::UnboundedSender<(u32, Batch)>,
    room: Arc<Semaphore>,
    rows_max: u32,
    stats: Arc<EdgeStats>,
}

impl Sender {
    /// Waits until there is room. Cancel safe in that the batch then counts as failed.
    pub(crate) async fn send(&self, batch: Batch) -> Result<(), Closed> {
        let rows = u32::try_from(batch.rows.num_rows()).unwrap_or(u32::MAX).clamp(1, self.rows_max);
        let permit = self.room.acquire_many(rows).await.map_err(|_| Closed)?;
        permit.forget();
        self.stats.entered(rows);
        self.batches.send((rows, batch)).map_err(|_| Closed)
    }
}

pub(crate) struct Receiver {
    batches: mpsc::UnboundedReceiver<(u32, Batch)>,
    room: Arc<Semaphore>,
    stats: Arc<EdgeStats>,
}

impl Receiver {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Batch>> {
        self.batches.poll_recv(cx).map(|next| {
            next.map(|(rows, batch)| {
                self.stats.left(rows);
                self.room.add_permits(rows as usize);
                batch
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

/// All edges into one stage, read in turn so that none is starved.
pub(crate) struct Inbox {
    edges: Vec<Receiver>,
    next: usize,
}

impl Inbox {
    pub(crate) fn new(edges: Vec<Receiver>) -> Self {
        Self { edges, next: 0 }
    }

    /// The next batch of any edge; `None` once every edge has ended. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Batch> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// A batch that is there already.
    pub(crate) fn try_next(&mut self) -> Option<Batch> {
        let waker = std::task::Waker::noop();
        match self.poll_next(&mut Context::from_waker(waker)) {
            Poll::Ready(batch) => batch,
            Poll::Pending => None,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Batch>> {
        let mut turns = self.edges.len();
        while turns > 0 {
            let index = self.next % self.edges.len();
            match self.edges[index].poll_next(cx) {
                Poll::Ready(Some(batch)) => {
                    self.next = index + 1;
                    return Poll::Ready(Some(batch));
                }
                Poll::Ready(None) => {
                    self.edges.remove(index);
                    self.next = index;
                }
                Poll::Pending => self.next = index + 1,
            }
            turns -= 1;
        }
        if self.edges.is_empty() { Poll::Ready(None) } else { Poll::Pending }
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
            reader.send(batch.fan_out()).await?;
        }
        last.send(batch).await
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
        assert_eq!(inbox.next().await.expect("a batch").rows.num_rows(), 10);
        waiting.await.expect("there is room again");
    }

    #[tokio::test]
    async fn a_batch_above_the_bound_goes_alone() {
        let (sender, receiver) = edge(10);
        sender.send(Batch::detached(rows(25))).await.expect("let through alone");
        assert!(futures::poll!(Box::pin(sender.send(Batch::detached(rows(1))))).is_pending());
        assert_eq!(Inbox::new(vec![receiver]).next().await.expect("a batch").rows.num_rows(), 25);
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
        while let Some(batch) = inbox.next().await {
            sizes.push(batch.rows.num_rows());
        }
        assert_eq!(sizes, [1, 2, 1, 2]);
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
            Inbox::new(vec![end]).next().await.expect("a batch").ack.deliver();
        }
        assert!(partition.progress().borrow().is_complete());
    }
}
