//! The task that holds the connection: receives, acknowledges, connects again.
//!
//! It is the only one that polls and the only one that acknowledges. So an acknowledgement is always
//! handed over between two polls of the connection its message came by; an error drops the connection
//! together with everything it was owed.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use pipeline_engine::stage::StageError;
use pipeline_engine::{Counter, Partition, Progress, now_us};
use rumqttc_v5::QoS;
use tokio::select;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::forward::Resumed;
use super::subscriptions::{Subscriptions, check_answer};
use super::waiting::{Message, Sender, Ticket};
use super::window::AckWindow;
use crate::mqtt_client::{Commands, Delivered, Event, Events, Lost, LostBy, Session, Settings, open};

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

/// Where the intake stands.
struct Course {
    connection: Option<Connection>,
    /// Where messages go; gone once reading has stopped, which ends the queue.
    waiting: Option<Sender>,
    /// We have asked to say goodbye, and wait no longer than this.
    leave_by: Option<Instant>,
    subscriptions: Subscriptions,
    /// Makes partitions of different runs differ: their positions start over.
    started_us: i64,
    generation: u64,
    received_at_us: i64,
    /// Connects that failed since the last steady connection.
    failures: u32,
    lost_at: Option<Instant>,
    takeovers: VecDeque<Instant>,
}

impl Intake {
    /// Runs until it has left the broker, or something needs a person.
    pub(super) async fn run(self, waiting: Sender) -> Result<(), Ended> {
        let (commands, mut events) = open(&self.settings).map_err(Ended::Failed)?;
        let mut course = Course {
            connection: None,
            waiting: Some(waiting),
            leave_by: None,
            subscriptions: Subscriptions::default(),
            started_us: now_us(),
            generation: 0,
            received_at_us: 0,
            failures: 0,
            lost_at: None,
            takeovers: VecDeque::new(),
        };
        loop {
            match self.poll(&mut course, &mut events, &commands).await? {
                None => return Ok(()),
                Some(Ok(Event::Connected { session_present, .. })) => {
                    course.connection = Some(self.connected(&mut course, session_present, &commands));
                }
                Some(Ok(Event::Message(delivered))) => self.receive(&mut course, delivered).await,
                Some(Ok(Event::Other)) => {}
                Some(Ok(Event::Closed)) => {
                    events.close().await;
                    return Ok(());
                }
                Some(Err(_)) if course.leave_by.is_some() => return Ok(()),
                Some(Err(lost)) => {
                    self.lost(&mut course, lost)?;
                    if !self.wait_to_connect(&mut course, &mut events).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// One poll, from its start to its end, since dropping it midway could lose a packet; meanwhile all
    /// that is not the broker's. `None` when there is nothing left to wait for.
    async fn poll(
        &self,
        course: &mut Course,
        events: &mut Events,
        commands: &Commands,
    ) -> Result<Option<Result<Event, Lost>>, Ended> {
        let mut poll = pin!(events.poll());
        loop {
            select! {
                polled = &mut poll => return Ok(Some(polled)),
                () = moved(&mut course.connection) => self.acknowledge(course, commands)?,
                (filter, answer) = course.subscriptions.next_answer() => {
                    if check_answer(answer, &filter, self.qos).map_err(Ended::Failed)? {
                        tracing::info!(stage = self.stage, filter, "subscribed");
                        course.subscriptions.granted.push(filter);
                    }
                }
                () = self.stop.cancelled(), if course.waiting.is_some() => course.waiting = None,
                () = self.finish.cancelled(), if course.leave_by.is_none() => {
                    if course.connection.is_none() {
                        return Ok(None);
                    }
                    self.acknowledge(course, commands)?;
                    commands.disconnect();
                    course.leave_by = Some(Instant::now() + GOODBYE_TIMEOUT);
                }
                () = reached(course.leave_by) => return Ok(None),
            }
        }
    }

    /// Acknowledges what the sinks have stored since the last call.
    fn acknowledge(&self, course: &mut Course, commands: &Commands) -> Result<(), Ended> {
        let Some(connection) = &mut course.connection else { return Ok(()) };
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
                self.resumed.since(course.generation, now_us());
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
    async fn receive(&self, course: &mut Course, delivered: Delivered) {
        let (Some(connection), Some(waiting)) = (&mut course.connection, &course.waiting) else {
            // Reading has stopped: not acknowledged, it comes again next time.
            return;
        };
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

    /// Decides whether to try again. Says so once an outage.
    fn lost(&self, course: &mut Course, lost: Lost) -> Result<(), Ended> {
        // With it goes all that was to be acknowledged on it.
        let connection = course.connection.take();
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
    async fn wait_to_connect(&self, course: &mut Course, events: &mut Events) -> Result<bool, Ended> {
        select! {
            () = tokio::time::sleep(backoff(course.failures)) => {}
            () = self.stop.cancelled() => {
                // Ends the queue.
                course.waiting = None;
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
