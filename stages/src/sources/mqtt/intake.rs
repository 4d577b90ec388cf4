//! The task that holds the connection: receives, acknowledges, connects again.
//!
//! It is the only one that polls and the only one that acknowledges. So an acknowledgement is always
//! handed over between two polls of the connection its message came by; an error drops the connection
//! together with everything it was owed.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pipeline_engine::stage::StageError;
use pipeline_engine::{Counter, Partition, Progress, now_us};
use rumqttc_v5::QoS;
use tokio::select;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::forward::Resumed;
use super::waiting::{Message, Sender, Ticket};
use super::window::AckWindow;
use crate::mqtt_client::{Commands, Delivered, Event, Events, Lost, LostBy, Session, Settings, Subscribed, open};

/// How much of an oversize payload is kept for its dead letter.
const OVERSIZE_KEPT: usize = 1024;
/// The first wait before a new connect, doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// The longest wait before a new connect.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A connection that has lasted so long starts the waits over.
const STEADY: Duration = Duration::from_secs(10);
/// Losing the connection so often to the same client id, in so short a time, is a fight.
const TAKEOVERS_MAX: usize = 3;
const TAKEOVERS_WITHIN: Duration = Duration::from_secs(60);
/// How long the last acknowledgements and the goodbye may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the source counts besides rows.
pub(super) struct Counters {
    pub(super) reconnects: Counter,
    pub(super) session_lost: Counter,
    pub(super) oversize: Counter,
    pub(super) redelivered: Counter,
}

/// Why the intake ended before it was told to.
pub(super) enum Ended {
    /// The broker, or our own files, need a person.
    Failed(StageError),
    /// Rows of this partition are stored nowhere: the engine knows the cause.
    Broken(Partition),
}

/// The running intake.
pub(super) struct Intake {
    pub(super) stage: String,
    pub(super) settings: Settings,
    pub(super) filters: Vec<String>,
    pub(super) qos: QoS,
    pub(super) payload_bytes_max: usize,
    /// Read no more.
    pub(super) stop: CancellationToken,
    /// Every promise is kept: acknowledge the last ones and leave.
    pub(super) finish: CancellationToken,
    pub(super) resumed: Resumed,
    pub(super) counters: Counters,
}

/// A connection that the broker has accepted.
struct Connection {
    partition: Partition,
    progress: watch::Receiver<Progress>,
    generation: u64,
    received: u64,
    window: AckWindow,
    since: Instant,
}

/// What lasts from one connection to the next.
struct Course {
    /// Makes partitions of different runs differ: their positions start over.
    started_us: i64,
    generation: u64,
    received_at_us: i64,
    /// Connects that failed since the last steady connection.
    failures: u32,
    lost_at: Option<Instant>,
    takeovers: VecDeque<Instant>,
    subscriptions: Subscriptions,
}

impl Intake {
    /// Runs until it has left the broker, or something needs a person.
    pub(super) async fn run(self, waiting: Sender) -> Result<(), Ended> {
        let (commands, mut events) = open(&self.settings).map_err(Ended::Failed)?;
        let mut course = Course {
            started_us: now_us(),
            generation: 0,
            received_at_us: 0,
            failures: 0,
            lost_at: None,
            takeovers: VecDeque::new(),
            subscriptions: Subscriptions::default(),
        };
        let mut connection: Option<Connection> = None;
        // Dropped when reading stops, which ends the queue.
        let mut waiting = Some(waiting);
        let mut leave_by: Option<Instant> = None;
        loop {
            let polled = {
                let mut poll = pin!(events.poll());
                // The poll goes on across the other branches: dropped midway it could lose a packet.
                loop {
                    select! {
                        polled = &mut poll => break polled,
                        () = moved(&mut connection) => self.acknowledge(connection.as_mut(), &commands)?,
                        answer = course.subscriptions.next_answer() => self.check_answer(&mut course, answer)?,
                        () = self.stop.cancelled(), if waiting.is_some() => waiting = None,
                        () = self.finish.cancelled(), if leave_by.is_none() => {
                            if connection.is_none() {
                                return Ok(());
                            }
                            self.acknowledge(connection.as_mut(), &commands)?;
                            commands.disconnect();
                            leave_by = Some(Instant::now() + GOODBYE_TIMEOUT);
                        }
                        () = reached(leave_by) => return Ok(()),
                    }
                }
            };
            match polled {
                Ok(Event::Connected { session_present, .. }) => {
                    connection = Some(self.connected(&mut course, session_present, &commands));
                }
                Ok(Event::Message(delivered)) => {
                    if let (Some(connection), Some(waiting)) = (connection.as_mut(), waiting.as_ref()) {
                        self.receive(connection, &mut course, delivered, waiting).await;
                    }
                }
                Ok(Event::Closed) => {
                    events.close().await;
                    return Ok(());
                }
                Ok(Event::Other) => {}
                Err(_) if leave_by.is_some() => return Ok(()),
                Err(lost) => {
                    self.lost(&mut course, connection.take(), lost)?;
                    if !self.wait_to_connect(&mut course, &mut events, &mut waiting).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Acknowledges what the sinks have stored since the last call.
    fn acknowledge(&self, connection: Option<&mut Connection>, commands: &Commands) -> Result<(), Ended> {
        let Some(connection) = connection else { return Ok(()) };
        let progress = *connection.progress.borrow_and_update();
        if let Some(delivered) = progress.delivered {
            connection.window.release(delivered.0[3], |receipt| commands.acknowledge(receipt));
        }
        if progress.failed {
            return Err(Ended::Broken(connection.partition.clone()));
        }
        Ok(())
    }

    fn connected(&self, course: &mut Course, session_present: bool, commands: &Commands) -> Connection {
        course.generation += 1;
        let outage = course.lost_at.take().map(|since| since.elapsed());
        let persistent = self.settings.session != Session::Clean;
        if let Some(outage) = outage {
            self.counters.reconnects.increment();
            tracing::info!(stage = self.stage, ?outage, session_present, "connected to the broker again");
            if session_present {
                self.resumed.since(course.generation);
            } else if persistent {
                self.counters.session_lost.increment();
                tracing::warn!(
                    stage = self.stage,
                    ?outage,
                    "the broker has lost our session: what was published during the outage may be missing"
                );
            }
        } else {
            let broker = self.settings.address.socket();
            tracing::info!(
                stage = self.stage,
                broker,
                client_id = self.settings.client_id,
                session_present,
                "connected"
            );
        }
        course.subscriptions.renew(session_present, &self.filters, self.qos, commands);
        let name = format!("{}/{:x}.{}", self.settings.client_id, course.started_us, course.generation);
        let partition = Partition::new(name);
        Connection {
            progress: partition.progress(),
            partition,
            generation: course.generation,
            received: 0,
            window: AckWindow::new(),
            since: Instant::now(),
        }
    }

    /// Puts a message where it waits for decoding. Waits itself only while that place is full: then
    /// nothing is read and no ping is answered, so that after one and a half times the keep-alive the
    /// broker hangs up and, for QoS 1 and 2, sends everything unacknowledged again later.
    async fn receive(&self, connection: &mut Connection, course: &mut Course, delivered: Delivered, waiting: &Sender) {
        let number = connection.received + 1;
        if let Some(receipt) = delivered.receipt
            && !connection.window.note(number, receipt)
        {
            self.counters.redelivered.increment();
            return;
        }
        connection.received = number;
        course.received_at_us = course.received_at_us.max(now_us());
        let bytes = delivered.payload.len();
        let oversize = (bytes > self.payload_bytes_max).then_some(bytes);
        let payload = if oversize.is_some() {
            self.counters.oversize.increment();
            // A copy, since a slice would hold on to the whole payload.
            Bytes::copy_from_slice(&delivered.payload[..bytes.min(OVERSIZE_KEPT)])
        } else {
            delivered.payload
        };
        let ticket = Ticket {
            partition: connection.partition.clone(),
            generation: connection.generation,
            number,
            owed: delivered.receipt.is_some(),
        };
        let message =
            Message { topic: delivered.topic, payload, oversize, received_at_us: course.received_at_us, ticket };
        waiting.put(message).await;
    }

    fn check_answer(&self, course: &mut Course, (filter, answer): Answer) -> Result<(), Ended> {
        let fault = match answer {
            // The connection went first; the next one asks again.
            None => return Ok(()),
            Some(Ok(granted)) if granted as u8 >= self.qos as u8 => {
                course.subscriptions.granted.push(filter);
                return Ok(());
            }
            Some(Ok(granted)) => StageError::permanent(format!(
                "the broker grants QoS {} instead of {} for the topic filter \"{filter}\"",
                granted as u8, self.qos as u8
            ))
            .hint("Set `qos` to what the broker can do."),
            Some(Err(reason)) => {
                StageError::permanent(format!("the broker refuses the topic filter \"{filter}\": {reason}"))
                    .hint("Check what the broker allows this user or client id to subscribe to.")
            }
        };
        Err(Ended::Failed(fault))
    }

    /// Decides whether to try again. Says so once an outage.
    fn lost(&self, course: &mut Course, connection: Option<Connection>, lost: Lost) -> Result<(), Ended> {
        let never_connected = course.generation == 0;
        match lost.by {
            LostBy::Refused => return Err(Ended::Failed(lost.permanent())),
            LostBy::Untrusted if never_connected => return Err(Ended::Failed(lost.permanent())),
            LostBy::TakenOver => {
                let now = Instant::now();
                course.takeovers.push_back(now);
                course.takeovers.retain(|at| now - *at < TAKEOVERS_WITHIN);
                if course.takeovers.len() >= TAKEOVERS_MAX {
                    let id = &self.settings.client_id;
                    return Err(Ended::Failed(
                        StageError::permanent(format!("another client uses the client id \"{id}\""))
                            .because(lost.permanent())
                            .hint("Is this pipeline running twice? Two that share the load need `client_id`s of their own and a shared subscription, $share/GROUP/FILTER."),
                    ));
                }
            }
            LostBy::Untrusted | LostBy::Away => {}
        }
        if connection.as_ref().is_some_and(|connection| connection.since.elapsed() >= STEADY) {
            course.failures = 0;
        }
        let unacked = connection.as_ref().map_or(0, |connection| connection.window.unacked());
        if connection.is_some() || course.failures == 0 {
            tracing::warn!(stage = self.stage, unacked, reason = %lost, "no connection to the broker; trying again");
        } else {
            tracing::debug!(stage = self.stage, reason = %lost, "still no connection to the broker");
        }
        course.failures += 1;
        if connection.is_some() {
            course.lost_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Waits before the next connect, longer each time; false if the source stops meanwhile.
    async fn wait_to_connect(
        &self,
        course: &mut Course,
        events: &mut Events,
        waiting: &mut Option<Sender>,
    ) -> Result<bool, Ended> {
        select! {
            () = tokio::time::sleep(backoff(course.failures)) => {}
            () = self.stop.cancelled() => {
                *waiting = None;
                // Nothing more can be acknowledged: that connection is gone.
                return Ok(false);
            }
        }
        if let Err(error) = events.read_certificates() {
            if course.generation == 0 {
                return Err(Ended::Failed(error));
            }
            // Half a rotation, perhaps: the certificates that were read before stay in use.
            tracing::warn!(stage = self.stage, error = error.chain(), "the certificates could not be read again");
        }
        Ok(true)
    }
}

/// Resolves when there may be something to acknowledge.
async fn moved(connection: &mut Option<Connection>) {
    if let Some(connection) = connection
        && connection.progress.changed().await.is_ok()
    {
        return;
    }
    // No connection. (The other end of the progress lives as long as the connection.)
    std::future::pending().await
}

/// Resolves at that time, if there is one.
async fn reached(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Between half and all of `BACKOFF_MIN * 2^n`, so that a fleet does not come back in step.
fn backoff(failures: u32) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(BACKOFF_MAX);
    full.mul_f64(rand::random_range(0.5..=1.0))
}

/// A filter and the broker's answer.
type Answer = (String, Option<Result<QoS, String>>);

/// What we have asked to receive on the present session.
#[derive(Default)]
struct Subscriptions {
    granted: Vec<String>,
    asked: FuturesUnordered<futures::future::BoxFuture<'static, Answer>>,
}

impl Subscriptions {
    /// After each connect: asks for what the session does not have. A session that the broker kept from
    /// an earlier run is asked for everything, since the filters may have changed.
    fn renew(&mut self, session_present: bool, filters: &[String], qos: QoS, commands: &Commands) {
        if !session_present {
            self.granted.clear();
        }
        // Questions of the connection before are dead, or the library repeats them by itself; a filter
        // asked for twice does no harm.
        self.asked = FuturesUnordered::new();
        for filter in filters.iter().filter(|filter| !self.granted.contains(filter)) {
            let filter = filter.clone();
            let answer: Subscribed = commands.subscribe(&filter, qos);
            self.asked.push(Box::pin(async move { (filter, answer.await) }));
        }
    }

    /// The next answer, if any is awaited. Cancel safe.
    async fn next_answer(&mut self) -> Answer {
        match self.asked.next().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_retry_is_quick_and_no_wait_is_above_the_longest() {
        for _ in 0..100 {
            assert!(backoff(1) <= BACKOFF_MIN && backoff(1) >= BACKOFF_MIN / 2);
            assert!(backoff(1_000) <= BACKOFF_MAX && backoff(1_000) >= BACKOFF_MAX / 2);
        }
    }
}
