//! Between a queue and a sink that is slower than its input, or away: batches wait on disk, in order,
//! so that the stage before and its other readers go on.
//!
//! What lies here is a copy: the source still owes every row of it, and keeps it until the sink has
//! stored it. So nothing is synced, and a start clears the folder.
//!
//! When there is no room left the sender waits, as at any full queue; or, where the sink is optional,
//! the sink goes without what does not fit, and that is counted. Nor does the source wait long for rows
//! that an optional sink has taken in: a sink that hangs must not keep a spool from being trimmed.

mod disk;
mod loans;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::batch::Batch;
use crate::error::StageError;
use crate::queue::{Closed, Inbox, Sender};
use crate::stats::EdgeStats;
use disk::Disk;
pub(crate) use loans::Loans;

/// How many rows are written together, and so read together.
const CHUNK_ROWS: usize = 8192;

/// Where one edge overflows to, and how far.
pub(crate) struct Overflow {
    /// A folder of the edge's own. Made when it is first needed.
    pub dir: PathBuf,
    pub bytes_max: u64,
    /// Of an edge to an optional sink, which goes without what does not fit.
    pub loans: Option<Loans>,
    pub stats: Arc<EdgeStats>,
}

impl Overflow {
    /// Passes batches on from the sending to the receiving queue until the first has ended, by way of the
    /// disk while the second is full.
    pub(crate) async fn run(mut self, mut from: Inbox, to: Sender) -> Result<(), StageError> {
        // An outage that a crash has ended may have left gigabytes, and the next may be far off.
        if let Err(error) = disk::clear(self.dir.clone()).await {
            tracing::warn!(%error, "what an earlier run has left in \"{}\" can't be deleted", self.dir.display());
        }
        let mut held = Held { disk: Disk::new(self.dir.clone()), returning: VecDeque::new() };
        let mut open = true;
        while open || !held.is_empty() {
            // With nothing before it a batch goes straight on, or waits for the sink.
            let has_space = self.is_optional() || held.is_empty() || held.disk.bytes < self.bytes_max;
            tokio::select! {
                biased;
                // What is held goes first: it is older, and takes room.
                room = to.has_room(held.next_rows()), if !held.is_empty() => {
                    room.map_err(|Closed| StageError::reader_gone())?;
                    self.bring_back(&mut held, &to).await?;
                }
                next = from.next_batch(), if open && has_space => match next {
                    Some((_, batch)) => self.take_in(batch, &mut from, &mut held, &to).await?,
                    None => open = false,
                },
                () = Loans::next_late(self.loans.as_ref()) => {
                    self.loans.iter_mut().for_each(|loans| loans.stop_waiting(&self.stats.to));
                }
            }
        }
        // No more comes: so the sink learns of it while its loans are open still.
        drop(to);
        if let Some(loans) = self.loans {
            loans.wait().await;
        }
        Ok(())
    }

    fn is_optional(&self) -> bool {
        self.loans.is_some()
    }

    /// A batch goes straight on if it can, or to the disk, with those that wait behind it.
    async fn take_in(
        &mut self,
        batch: Batch,
        from: &mut Inbox,
        held: &mut Held,
        to: &Sender,
    ) -> Result<(), StageError> {
        let mut batch = self.lend(batch);
        if held.is_empty() {
            match to.try_send(batch).map_err(|Closed| StageError::reader_gone())? {
                Ok(()) => return Ok(()),
                Err(returned) => batch = returned,
            }
        }
        let mut rows = batch.rows.num_rows();
        let mut batches = vec![batch];
        while rows < CHUNK_ROWS {
            let Some((_, batch)) = from.try_next_batch() else { break };
            rows += batch.rows.num_rows();
            batches.push(self.lend(batch));
        }
        if held.disk.bytes >= self.bytes_max {
            if self.is_optional() {
                self.shed(batches);
                return Ok(());
            }
            // There is to be nothing on disk: so nothing is held before them.
            return send_all(batches, to).await;
        }
        match held.disk.put(batches).await {
            Ok(()) => held.count(&self.stats),
            // As good as full: of memory there is one chunk more than the queues hold.
            Err((error, batches)) if self.is_optional() => {
                tracing::warn!(to = self.stats.to, %error, "can't write to \"{}\"", self.dir.display());
                self.shed(batches);
            }
            Err((error, batches)) => {
                tracing::warn!(
                    to = self.stats.to,
                    %error,
                    "can't write to \"{}\"; waiting for the sink instead",
                    self.dir.display()
                );
                while !held.is_empty() {
                    to.has_room(held.next_rows()).await.map_err(|Closed| StageError::reader_gone())?;
                    self.bring_back(held, to).await?;
                }
                send_all(batches, to).await?;
            }
        }
        Ok(())
    }

    /// Sends on as much as there is room for, which is not always a whole chunk: whoever sends to this edge
    /// does not wait for the rest of it.
    async fn bring_back(&self, held: &mut Held, to: &Sender) -> Result<(), StageError> {
        if held.returning.is_empty() {
            held.returning = held.disk.take().await.map_err(|error| self.unreadable(error))?.into();
        }
        while let Some(batch) = held.returning.pop_front() {
            if let Err(batch) = to.try_send(batch).map_err(|Closed| StageError::reader_gone())? {
                held.returning.push_front(batch);
                break;
            }
        }
        held.count(&self.stats);
        Ok(())
    }

    /// The batch, whose promise an optional sink gets for a while only.
    fn lend(&mut self, batch: Batch) -> Batch {
        match &mut self.loans {
            Some(loans) => loans.lend(batch),
            None => batch,
        }
    }

    fn shed(&self, batches: Vec<Batch>) {
        for batch in batches {
            self.stats.shed(batch.rows.num_rows());
            batch.ack.deliver();
        }
    }

    /// The rows are still owed: the run ends, and a restart reads them again.
    fn unreadable(&self, error: io::Error) -> StageError {
        StageError::permanent(format!("rows that waited in \"{}\" can't be read back", self.dir.display()))
            .because(error)
            .hint("They are not acknowledged: a restart reads them again.")
    }
}

/// Waits for room for each.
async fn send_all(batches: Vec<Batch>, to: &Sender) -> Result<(), StageError> {
    for batch in batches {
        to.send(batch).await.map_err(|Closed| StageError::reader_gone())?;
    }
    Ok(())
}

/// What waits for the sink.
struct Held {
    disk: Disk,
    /// A chunk that was read back, and for which there was not room at once.
    returning: VecDeque<Batch>,
}

impl Held {
    fn is_empty(&self) -> bool {
        self.returning.is_empty() && self.disk.is_empty()
    }

    /// How much room is worth waiting for.
    fn next_rows(&self) -> usize {
        self.returning.front().map_or_else(|| self.disk.next_rows(), |batch| batch.rows.num_rows())
    }

    fn count(&self, stats: &EdgeStats) {
        let returning: usize = self.returning.iter().map(|batch| batch.rows.num_rows()).sum();
        stats.set_overflow(self.disk.rows + returning as u64, self.disk.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
    use arrow::record_batch::RecordBatch;

    use super::*;
    use crate::ack::Partition;
    use crate::position::Span;
    use crate::queue::{Receiver, queue};
    use crate::stage::Port;

    fn rows(number: i64) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![number; 10]));
        RecordBatch::try_from_iter([("n", column)]).expect("one column")
    }

    struct Edge {
        sender: Sender,
        receiver: Receiver,
        stats: Arc<EdgeStats>,
        task: tokio::task::JoinHandle<Result<(), StageError>>,
    }

    /// An edge whose queues hold 20 rows each.
    fn edge(dir: &Path, bytes_max: u64, sheds: bool) -> Edge {
        let stats = Arc::new(EdgeStats::new("a", Port::MAIN, "b"));
        let (sender, first_end) = queue(20, Arc::new(EdgeStats::new("a", Port::MAIN, "b")));
        let (second, receiver) = queue(20, stats.clone());
        let loans = sheds.then(|| Loans::new(Duration::from_secs(30)));
        let overflow = Overflow { dir: dir.join("edge"), bytes_max, loans, stats: stats.clone() };
        let task = tokio::spawn(overflow.run(Inbox::new(vec![first_end]), second));
        Edge { sender, receiver, stats, task }
    }

    #[tokio::test]
    async fn batches_wait_on_disk_and_come_back_in_order_with_their_promises() {
        let dir = tempfile::tempdir().expect("a folder");
        let Edge { sender, receiver, stats, task } = edge(dir.path(), 1 << 30, false);
        let partition = Partition::new("p");
        for number in 0..500 {
            let ack = partition.open(Span::new(number, number), 0);
            sender.send(Batch::new(rows(number as i64), ack)).await.expect("the edge takes all");
        }
        drop(sender);
        while stats.overflow_rows() < 4_000 {
            tokio::task::yield_now().await;
        }
        let mut inbox = Inbox::new(vec![receiver]);
        for number in 0..500 {
            let (_, batch) = inbox.next_batch().await.expect("all come back");
            assert_eq!(batch.rows.column(0).as_primitive::<Int64Type>().value(9), number);
            batch.ack.deliver();
        }
        assert!(inbox.next_batch().await.is_none());
        assert!(partition.progress().borrow().is_complete() && !partition.progress().borrow().failed);
        task.await.expect("no panic").expect("no error");
        assert_eq!(stats.overflow_rows(), 0);
        assert_eq!(fs::read_dir(dir.path().join("edge")).expect("the folder").count(), 0, "files go when read");
    }

    /// All that is sent comes, in order, though the disk takes nothing.
    async fn the_sender_waits(edge: Edge) {
        let Edge { sender, receiver, .. } = edge;
        let sent = tokio::spawn(async move {
            for number in 0..100 {
                sender.send(Batch::detached(rows(number))).await.expect("in the end");
            }
        });
        let mut inbox = Inbox::new(vec![receiver]);
        for number in 0..100 {
            let next = tokio::time::timeout(Duration::from_secs(60), inbox.next_batch()).await;
            let (_, batch) = next.expect("it does not wait for ever").expect("all come");
            assert_eq!(batch.rows.column(0).as_primitive::<Int64Type>().value(0), number);
        }
        sent.await.expect("no panic");
    }

    #[tokio::test]
    async fn when_the_disk_is_full_the_sender_waits() {
        for bytes_max in [0, 1, 10_000] {
            let dir = tempfile::tempdir().expect("a folder");
            the_sender_waits(edge(dir.path(), bytes_max, false)).await;
        }
    }

    #[tokio::test]
    async fn rows_that_come_back_where_there_is_room_for_few_of_them_hold_up_nobody() {
        let dir = tempfile::tempdir().expect("a folder");
        let Edge { sender, receiver, stats, .. } = edge(dir.path(), 1 << 30, false);
        let mut inbox = Inbox::new(vec![receiver]);
        let mut sent = 0;
        let sending = async {
            for room in 0..20 {
                for _ in 0..10 {
                    sender.send(Batch::detached(rows(sent))).await.expect("the edge takes all");
                    sent += 1;
                }
                // All that was sent waits, but for what the queue behind has room for.
                while stats.overflow_rows() == 0 || stats.overflow_rows() + 20 + 10 * room < 10 * sent as u64 {
                    tokio::task::yield_now().await;
                }
                let (_, batch) = inbox.next_batch().await.expect("the next");
                assert_eq!(batch.rows.column(0).as_primitive::<Int64Type>().value(0), room as i64);
            }
        };
        tokio::time::timeout(Duration::from_secs(60), sending).await.expect("nobody waits for the reader");
    }

    #[tokio::test]
    async fn without_a_folder_to_write_to_the_sender_waits() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("edge"), "a file").expect("written");
        the_sender_waits(edge(dir.path(), 1 << 30, false)).await;
    }

    #[tokio::test]
    async fn what_a_crash_has_left_is_deleted_at_the_start() {
        let dir = tempfile::tempdir().expect("a folder");
        let left = dir.path().join("edge");
        fs::create_dir(&left).expect("made");
        fs::write(left.join("00000007.arrows"), "old rows").expect("written");
        let Edge { sender, task, .. } = edge(dir.path(), 1 << 30, false);
        drop(sender);
        task.await.expect("no panic").expect("no error");
        assert!(!left.exists());
    }

    #[tokio::test]
    async fn an_optional_sink_goes_without_what_does_not_fit() {
        let dir = tempfile::tempdir().expect("a folder");
        let Edge { sender, receiver, stats, task } = edge(dir.path(), 0, true);
        let partition = Partition::new("p");
        for number in 0..100 {
            let ack = partition.open(Span::new(number, number), 0);
            sender.send(Batch::new(rows(number as i64), ack)).await.expect("nobody waits");
        }
        drop(sender);
        let mut inbox = Inbox::new(vec![receiver]);
        let mut received = 0;
        while let Some((_, batch)) = inbox.next_batch().await {
            received += batch.rows.num_rows() as u64;
            batch.ack.deliver();
        }
        task.await.expect("no panic").expect("no error");
        assert_eq!(received + stats.shed_rows(), 1_000);
        assert!(stats.shed_rows() > 0);
        assert!(partition.progress().borrow().is_complete() && !partition.progress().borrow().failed);
    }
}
