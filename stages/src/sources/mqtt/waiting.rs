//! Messages that were received and not decoded yet: the place where a spool will be.
//!
//! Bounded in bytes. A full queue makes the intake wait, which then reads no more from its socket.

use std::sync::Arc;

use bytes::Bytes;
use pipeline_engine::Partition;
use tokio::sync::{Semaphore, mpsc};

/// A message with all that is needed to decode it and to account for it.
pub(super) struct Message {
    pub(super) topic: Bytes,
    pub(super) payload: Bytes,
    /// How long the payload was, if it was too long: then `payload` is only its beginning.
    pub(super) oversize: Option<usize>,
    /// Microseconds since 1970; never less than that of the message before.
    pub(super) received_at_us: i64,
    pub(super) ticket: Ticket,
}

/// A message's place in the order of its connection.
pub(super) struct Ticket {
    /// The connection's own ordered stream.
    pub(super) partition: Partition,
    /// Counts the connections of this run, from 1.
    pub(super) generation: u64,
    /// Counts the messages of the connection, from 1.
    pub(super) number: u64,
    /// The broker will send it again, on the next connection, if it is not acknowledged.
    pub(super) owed: bool,
}

/// Bytes that may wait. Half a second of the largest load a broker was seen to send, and little enough
/// for a machine with 512 MiB.
const WAITING_BYTES_MAX: u32 = 64 << 20;
/// What a message weighs besides topic and payload.
const MESSAGE_BYTES: usize = 160;

/// The two ends of the queue.
pub(super) fn waiting() -> (Sender, Receiver) {
    let (messages, taken) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(WAITING_BYTES_MAX as usize));
    (Sender { messages, room: room.clone() }, Receiver { messages: taken, room })
}

pub(super) struct Sender {
    messages: mpsc::UnboundedSender<(u32, Message)>,
    room: Arc<Semaphore>,
}

impl Sender {
    /// Waits while the queue is full. A message behind a closed queue is dropped: the source has
    /// ended, and nobody acknowledges it.
    pub(super) async fn put(&self, message: Message) {
        let bytes = MESSAGE_BYTES + message.topic.len() + message.payload.len();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(WAITING_BYTES_MAX);
        if let Ok(permit) = self.room.acquire_many(bytes).await {
            permit.forget();
            if self.messages.send((bytes, message)).is_err() {
                tracing::debug!("a message arrived after the source had ended");
            }
        }
    }
}

pub(super) struct Receiver {
    messages: mpsc::UnboundedReceiver<(u32, Message)>,
    room: Arc<Semaphore>,
}

impl Receiver {
    /// The next message; `None` once the intake has stopped and all are taken. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Message> {
        let (bytes, message) = self.messages.recv().await?;
        self.room.add_permits(bytes as usize);
        Some(message)
    }

    /// A message that is there already.
    pub(super) fn try_next(&mut self) -> Option<Message> {
        let (bytes, message) = self.messages.try_recv().ok()?;
        self.room.add_permits(bytes as usize);
        Some(message)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Wakes an intake that waits for room which will never come.
        self.room.close();
    }
}
