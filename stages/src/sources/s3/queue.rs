//! Objects by the notifications of a queue (SQS): found sooner than by listing, and without its cost.
//!
//! A message is deleted once every object that it tells of is stored, and until then kept from being handed out again. One
//! that comes twice, late, or out of order tells of an object that has its number already. So a message is no more than a
//! hint to look at a key, and losing one costs only time where the prefix is listed as well (`poll`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message, QueueAttributeName,
};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use pipeline_engine::stage::{Fault, SourceContext, StageError};
use pipeline_engine::{Counter, Partition};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::find::Door;
use super::ledger::Object;
use super::notice::{Notice, notices};
use super::patience::Patience;
use super::place::{Place, is_gone, object_of};
use super::run::done;
use crate::aws::{AwsSettings, fault};

/// As many as the service gives at once.
const BATCH_MAX: usize = 10;
/// How long the service waits for a message before it says that there is none.
const LONG_POLL_SECONDS: i32 = 20;
/// How long a message is kept from being handed out again, each time it is asked for.
const HIDDEN_SECONDS: i32 = 120;
/// Asked for again well before.
const HIDE_AGAIN: Duration = Duration::from_secs(40);
/// No more messages are taken while so many wait for their objects to be stored.
const HELD_MAX: usize = 1_000;
/// How long the last deletions of a stop may take: what is not deleted comes again, and is known then.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a queue is.
#[derive(Debug, Clone)]
pub(super) struct QueuePlace {
    pub(super) url: String,
    pub(super) settings: AwsSettings,
}

impl QueuePlace {
    /// A client of the queue; waits for whatever passes.
    ///
    /// # Errors
    /// What does not pass; `None` where the source is asked to stop first.
    pub(super) async fn connect(
        &self,
        cx: &SourceContext,
        mut patience: Patience,
    ) -> Result<Option<Queue>, StageError> {
        loop {
            match self.settings.connect().await {
                Ok(config) => return Ok(Some(Queue { client: Client::new(&config), url: self.url.clone() })),
                Err(error) if error.fault() != Fault::Transient => return Err(error),
                Err(error) => tokio::select! {
                    () = patience.wait_after(&error) => {}
                    () = cx.stop_requested() => return Ok(None),
                },
            }
        }
    }

    /// How many messages wait, for `pipeline doctor`.
    ///
    /// # Errors
    /// The queue can't be asked.
    pub(super) async fn look(&self) -> Result<String, StageError> {
        let queue = Queue { client: Client::new(&self.settings.connect().await?), url: self.url.clone() };
        let name = QueueAttributeName::ApproximateNumberOfMessages;
        let request = queue.client.get_queue_attributes().queue_url(&queue.url).attribute_names(name.clone());
        let answer = request.send().await.map_err(|error| queue.failed(error))?;
        let waiting = answer.attributes.and_then(|mut attributes| attributes.remove(&name)).unwrap_or_default();
        Ok(format!("queue \"{}\" can be asked; about {waiting} messages wait in it", queue.url))
    }
}

/// A queue that can be asked.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    client: Client,
    url: String,
}

/// A message, and the last object that it tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    receipt: String,
    /// 0 where it tells of none.
    number: u64,
}

/// What is counted besides objects.
pub(super) struct Counters {
    pub(super) notifications: Counter,
    /// Of a bucket or a prefix that is none of ours.
    pub(super) ignored: Counter,
    /// No notifications at all: they are left to the queue, whose own dead letters they become.
    pub(super) unreadable: Counter,
}

/// Takes messages, and gives numbers to the objects that they tell of.
pub(super) struct Notifications {
    pub(super) stage: String,
    pub(super) patience: Patience,
    pub(super) queue: Queue,
    pub(super) place: Place,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) door: Arc<Door>,
    pub(super) counters: Counters,
}

/// The way from whoever takes messages to whoever deletes them.
pub(super) struct Keeping {
    held: mpsc::Sender<Held>,
}

/// Holds messages until their objects are stored, and deletes them then.
pub(super) struct Keeper {
    stage: String,
    queue: Queue,
    incoming: mpsc::Receiver<Held>,
    held: VecDeque<Held>,
    /// Objects up to this number are stored.
    stored: u64,
}

/// Both ends. `stored`: the last object that earlier runs have stored.
pub(super) fn keeper(stage: &str, queue: Queue, stored: u64) -> (Keeping, Keeper) {
    let (sender, incoming) = mpsc::channel(BATCH_MAX);
    let keeper = Keeper { stage: stage.to_owned(), queue, incoming, held: VecDeque::new(), stored };
    (Keeping { held: sender }, keeper)
}

impl Notifications {
    /// Runs until nobody wants objects any more.
    ///
    /// # Errors
    /// What does not pass.
    pub(super) async fn run(self, keeping: Keeping) -> Result<(), StageError> {
        let mut patience = self.patience.clone();
        loop {
            match self.receive().await {
                Ok(messages) => {
                    patience.is_over();
                    for message in messages {
                        if !self.take(message, &keeping).await? {
                            return Ok(());
                        }
                    }
                }
                Err(error) if error.fault() == Fault::Transient => patience.wait_after(&error).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn receive(&self) -> Result<Vec<Message>, StageError> {
        let request =
            self.queue.client.receive_message().queue_url(&self.queue.url).max_number_of_messages(BATCH_MAX as i32);
        let request = request.wait_time_seconds(LONG_POLL_SECONDS).visibility_timeout(HIDDEN_SECONDS);
        let answer = request.send().await.map_err(|error| self.queue.failed(error))?;
        Ok(answer.messages.unwrap_or_default())
    }

    /// Answers whether more is wanted.
    async fn take(&self, message: Message, keeping: &Keeping) -> Result<bool, StageError> {
        let (Some(body), Some(receipt)) = (message.body, message.receipt_handle) else { return Ok(true) };
        self.counters.notifications.increment();
        let Ok(notices) = notices(&body) else {
            self.counters.unreadable.increment();
            let (stage, id) = (&self.stage, message.message_id);
            tracing::warn!(
                stage,
                message = id,
                "a message of the queue is no notification of an object: it is left there"
            );
            return Ok(true);
        };
        let mut objects = Vec::new();
        let ours = |notice: &&Notice| notice.bucket == self.place.settings.bucket && self.place.holds(&notice.key);
        if let Some(notice) = notices.iter().filter(ours).find(|notice| Path::parse(&notice.key).is_err()) {
            self.counters.unreadable.increment();
            let (stage, key) = (&self.stage, &notice.key);
            tracing::warn!(stage, key, "a key that is notified can't be read: the message is left there");
            return Ok(true);
        }
        for notice in notices {
            if notice.bucket == self.place.settings.bucket && self.place.holds(&notice.key) {
                objects.extend(self.look_up(&notice.key).await?);
            } else {
                self.counters.ignored.increment();
            }
        }
        let Some(number) = self.door.let_in(objects).await? else { return Ok(false) };
        // Only now: all that it tells of has a number.
        Ok(keeping.held.send(Held { receipt, number }).await.is_ok())
    }

    /// The object that is there now; `None` if it is gone or empty.
    async fn look_up(&self, key: &str) -> Result<Option<Object>, StageError> {
        let Ok(path) = Path::parse(key) else { return Ok(None) };
        let mut patience = self.patience.clone();
        loop {
            let error = match self.store.head(&path).await {
                Ok(meta) => return Ok(object_of(&meta)),
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => self.place.failed("read", error),
            };
            if error.fault() != Fault::Transient {
                return Err(error);
            }
            patience.wait_after(&error).await;
        }
    }
}

impl Keeper {
    /// Runs until it is told to finish. Messages whose objects are stored are deleted, the others are kept hidden.
    pub(super) async fn run(mut self, partition: Partition, finish: CancellationToken) {
        let mut progress = partition.progress();
        let mut hide_again = tokio::time::interval_at(Instant::now() + HIDE_AGAIN, HIDE_AGAIN);
        hide_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = finish.cancelled() => break,
                Ok(()) = progress.changed() => {
                    let delivered = progress.borrow_and_update().delivered;
                    self.note(done(delivered));
                    self.delete_stored().await;
                }
                Some(held) = self.incoming.recv(), if self.held.len() < HELD_MAX => {
                    self.held.push_back(held);
                    self.delete_stored().await;
                }
                _ = hide_again.tick() => self.hide().await,
            }
        }
        while let Ok(held) = self.incoming.try_recv() {
            self.held.push_back(held);
        }
        let delivered = progress.borrow().delivered;
        self.note(done(delivered));
        // A queue that does not answer must not hold up the end.
        tokio::time::timeout(GOODBYE_TIMEOUT, self.delete_stored()).await.ok();
    }

    fn note(&mut self, stored: Option<u64>) {
        self.stored = self.stored.max(stored.unwrap_or(0));
    }

    async fn delete_stored(&mut self) {
        let (stored, others) = std::mem::take(&mut self.held).into_iter().partition(|held| held.number <= self.stored);
        self.held = others;
        let stored: Vec<Held> = stored.into();
        for batch in stored.chunks(BATCH_MAX) {
            let entries = batch.iter().enumerate().map(|(id, held)| {
                DeleteMessageBatchRequestEntry::builder().id(id.to_string()).receipt_handle(&held.receipt).build()
            });
            let Ok(entries) = entries.collect::<Result<Vec<_>, _>>() else { continue };
            let request =
                self.queue.client.delete_message_batch().queue_url(&self.queue.url).set_entries(Some(entries));
            if let Err(error) = request.send().await {
                // They come again, and are known then.
                let (stage, error) = (&self.stage, self.queue.failed(error).chain());
                tracing::warn!(stage, "{error}: messages of stored objects were not deleted");
            }
        }
    }

    async fn hide(&mut self) {
        for batch in self.held.make_contiguous().chunks(BATCH_MAX) {
            let entries = batch.iter().enumerate().map(|(id, held)| {
                ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(id.to_string())
                    .receipt_handle(&held.receipt)
                    .visibility_timeout(HIDDEN_SECONDS)
                    .build()
            });
            let Ok(entries) = entries.collect::<Result<Vec<_>, _>>() else { continue };
            let client = &self.queue.client;
            let request =
                client.change_message_visibility_batch().queue_url(&self.queue.url).set_entries(Some(entries));
            if let Err(error) = request.send().await {
                let (stage, error) = (&self.stage, self.queue.failed(error).chain());
                tracing::warn!(stage, "{error}: messages may be handed out again before their objects are stored");
            }
        }
    }
}

impl Queue {
    fn failed<E, R>(&self, error: fault::SdkError<E, R>) -> StageError
    where
        E: fault::ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        fault::of(error, &format!("queue \"{}\" was not asked", self.url))
    }
}
