//! The task that holds the connection: receives, spools, acknowledges, connects again.
//!
//! It is the only one that polls and the only one that acknowledges. So an acknowledgement is always
//! handed over between two polls of the connection its message came by; an error drops the connection
//! together with everything it was owed.

use std::pin::pin;
use std::time::Duration;

use futures::FutureExt;
use pipeline_engine::spool::{Record, SpoolWriter};
use pipeline_engine::stage::StageError;
use pipeline_engine::time::format_us;
use pipeline_engine::{Counter, IntakeStats, Outside, now_us};
use rumqttc_v5::QoS;
use tokio::select;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ceiling::Ceiling;
use super::recent::Recent;
use super::redelivery::Redeliveries;
use super::subscriptions::{Subscriptions, check_answer};
use super::window::AckWindow;
use crate::mqtt_client::{Commands, Delivered, Event, Events, Lost, LostBy, Receipt, Session, Settings, open};
use crate::sources::spooled::{OVERSIZE, OWED, oversize_payload};

/// The first wait before a new connect, doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// The longest wait before a new connect.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A connection that has lasted so long starts the waits over.
const STEADY: Duration = Duration::from_secs(10);
/// Losing the connection so often to the same client id, within a minute, is a fight.
const TAKEOVERS_MAX: usize = 3;
const TAKEN_OVER_HINT: &str = "Is this pipeline running twice? Two that share the load need `client_id`s of their own and a shared subscription, $share/GROUP/FILTER.";
/// How long the last sync to disk may take, and then the last acknowledgements and the goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the source counts besides rows.
pub(super) struct Counters {
    /// Equal to `reconnects` while there is a connection, and before the first: an alert compares them.
    pub(super) connections_lost: Counter,
    pub(super) reconnects: Counter,
    pub(super) session_lost: Counter,
    pub(super) oversize: Counter,
    pub(super) redelivered: Counter,
}

/// The running intake.
pub(super) struct Intake {
    pub(super) stage: String,
    pub(super) settings: Settings,
    pub(super) filters: Vec<String>,
    pub(super) qos: QoS,
    pub(super) payload_bytes_max: usize,
    /// Read no more, acknowledge what is on disk, and leave.
    pub(super) stop: CancellationToken,
    /// When earlier runs received their last message, in microseconds since 1970; `None` if none did.
    pub(super) last_run_received_us: Option<i64>,
    pub(super) counters: Counters,
    pub(super) intake: IntakeStats,
    pub(super) broker: Outside,
}

/// A connection that the broker has accepted.
struct Connection {
    window: AckWindow,
    ceiling: Ceiling,
    since: Instant,
}

/// How far the leaving has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// We read on.
    No,
    /// What was received is synced to disk.
    Syncing,
    /// We have asked to say goodbye.
    Goodbye,
}

/// Where the intake stands.
struct Course {
    writer: SpoolWriter,
    durable: watch::Receiver<u64>,
    /// The number of the last record in the spool, durable or not.
    last_lsn: u64,
    redeliveries: Redeliveries,
    connection: Option<Connection>,
    leaving: Leaving,
    /// We leave then, whatever is still owed.
    leave_by: Option<Instant>,
    subscriptions: Subscriptions,
    /// Counts the connections of this run.
    generation: u64,
    /// Connects that failed since the last steady connection.
    failures: u32,
    lost_at: Option<Instant>,
    broker: Outside,
    takeovers: Recent,
    short_connections: Recent,
}

impl Intake {
    /// Runs until it has left the broker, or something needs a person. Then the spool is closed.
    ///
    /// # Errors
    /// What needs a person.
    pub(super) async fn run(
        self,
        writer: SpoolWriter,
        durable: watch::Receiver<u64>,
        last_lsn: u64,
        redeliveries: Redeliveries,
    ) -> Result<(), StageError> {
        let mut course = Course {
            writer,
            durable,
            last_lsn,
            redeliveries,
            connection: None,
            leaving: Leaving::No,
            leave_by: None,
            subscriptions: Subscriptions::default(),
            generation: 0,
            failures: 0,
            lost_at: None,
            broker: self.broker.clone(),
            takeovers: Recent::default(),
            short_connections: Recent::default(),
        };
        self.receive_all(&mut course).await?;
        if let Err(error) = course.writer.close().await {
            let error = StageError::permanent("the spool").because(error).chain();
            tracing::warn!(stage = self.stage, "{error}; what was not acknowledged comes again");
        }
        Ok(())
    }

    async fn receive_all(&self, course: &mut Course) -> Result<(), StageError> {
        let (commands, mut events) = open(&self.settings)?;
        loop {
            match self.poll(course, &mut events, &commands).await? {
                None => return Ok(()),
                Some(Ok(Event::Connected { session_present, .. })) => {
                    course.connection = Some(self.connected(course, session_present, &commands));
                }
                Some(Ok(Event::Message(delivered))) => self.receive(course, delivered, &commands).await?,
                Some(Ok(Event::Other)) => {}
                Some(Ok(Event::Closed)) => {
                    events.close().await;
                    return Ok(());
                }
                Some(Err(_)) if course.leaving != Leaving::No => return Ok(()),
                Some(Err(lost)) => {
                    self.lost(course, lost)?;
                    if !self.wait_to_connect(course, &mut events).await? {
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
    ) -> Result<Option<Result<Event, Lost>>, StageError> {
        let mut poll = pin!(events.poll());
        loop {
            if course.leaving == Leaving::Syncing && *course.durable.borrow() >= course.last_lsn {
                course.acknowledge(commands);
                commands.disconnect();
                course.leaving = Leaving::Goodbye;
                course.leave_by = Some(Instant::now() + GOODBYE_TIMEOUT);
            }
            // Under load the next event is there already, and a look at it costs less than asking everybody.
            if course.leaving == Leaving::No && !self.stop.is_cancelled() && !course.subscriptions.are_awaited() {
                if course.durable.has_changed().unwrap_or(false) {
                    course.acknowledge(commands);
                }
                if let Some(polled) = (&mut poll).now_or_never() {
                    return Ok(Some(polled));
                }
            }
            select! {
                polled = &mut poll => return Ok(Some(polled)),
                Ok(()) = course.durable.changed() => course.acknowledge(commands),
                (filter, answer) = course.subscriptions.next_answer() => {
                    if check_answer(answer, &filter, self.qos)? {
                        tracing::info!(stage = self.stage, filter, "subscribed");
                        course.subscriptions.granted.push(filter);
                    }
                }
                () = self.stop.cancelled(), if course.leaving == Leaving::No => {
                    if course.connection.is_none() {
                        return Ok(None);
                    }
                    course.writer.flush();
                    course.leaving = Leaving::Syncing;
                    course.leave_by = Some(Instant::now() + GOODBYE_TIMEOUT);
                }
                () = reached(course.leave_by) => return Ok(None),
            }
        }
    }

    fn connected(&self, course: &mut Course, session_present: bool, commands: &Commands) -> Connection {
        course.generation += 1;
        course.broker.is_back();
        let outage = course.lost_at.take().map(|since| since.elapsed());
        if outage.is_some() {
            self.counters.reconnects.increment();
        }
        let broker = self.settings.address.socket();
        tracing::info!(
            stage = self.stage,
            broker,
            client_id = self.settings.client_id,
            session_present,
            outage = outage.map(tracing::field::debug),
            "connected"
        );
        if !session_present {
            course.redeliveries.forget();
            self.tell_lost_session(outage);
        }
        course.subscriptions.renew(session_present, &self.filters, self.qos, commands);
        Connection { window: AckWindow::new(), ceiling: Ceiling::default(), since: Instant::now() }
    }

    /// Says so if the broker should have had our session.
    fn tell_lost_session(&self, outage: Option<Duration>) {
        let missing = match (outage, self.last_run_received_us) {
            _ if self.settings.session == Session::Clean => return,
            (Some(outage), _) => format!("in the {outage:?} before this connect"),
            (None, Some(since_us)) => {
                format!("since {}, when the last run received its last message", format_us(since_us))
            }
            // The first time: there was none to lose.
            (None, None) => return,
        };
        self.counters.session_lost.increment();
        tracing::warn!(
            stage = self.stage,
            "the broker has lost our session: what was published {missing} may be missing"
        );
    }

    /// Puts a message in the spool. Waits itself only while the spool's buffer is full, with the disk too
    /// slow or full: then nothing is read and no ping is answered, so that after one and a half times the
    /// keep-alive the broker hangs up and, for QoS 1 and 2, sends everything unacknowledged again later.
    async fn receive(&self, course: &mut Course, delivered: Delivered, commands: &Commands) -> Result<(), StageError> {
        if course.leaving != Leaving::No {
            // Not acknowledged, it comes again next time.
            return Ok(());
        }
        let Some(connection) = &mut course.connection else { return Ok(()) };
        let (receipt, repeated) = (delivered.receipt, delivered.repeated);
        if receipt.is_some_and(|receipt| connection.window.holds(receipt)) {
            self.counters.redelivered.increment();
            return Ok(());
        }
        let record = self.record(delivered);
        if let Some(receipt) = receipt
            && repeated
            && let Some(lsn) = course.redeliveries.find(&record)
        {
            self.counters.redelivered.increment();
            connection.window.note(lsn, receipt);
            course.acknowledge(commands);
            return Ok(());
        }
        let lsn = select! {
            biased;
            lsn = course.writer.append(&record) => lsn,
            () = self.stop.cancelled() => return Ok(()),
        };
        course.last_lsn = lsn.map_err(|error| StageError::bug("the spool takes nothing more").because(error))?;
        self.intake.received.increment();
        self.intake.taken_to.set(course.last_lsn);
        if let Some(receipt) = receipt {
            course.redeliveries.note(&record, course.last_lsn);
            connection.window.note(course.last_lsn, receipt);
            // The broker may soon have to wait for us.
            let unacked = connection.window.unacked();
            let likely_window = self.settings.direction.likely_window(self.settings.protocol);
            if unacked * 2 >= likely_window || connection.ceiling.is_reached(unacked) {
                course.writer.flush();
            }
        }
        Ok(())
    }

    fn record(&self, delivered: Delivered) -> Record {
        let Delivered { topic, mut payload, receipt, repeated: _ } = delivered;
        let (mut flags, mark) = match receipt {
            Some(Receipt { packet_id, .. }) => (OWED, packet_id),
            None => (0, 0),
        };
        if payload.len() > self.payload_bytes_max {
            self.counters.oversize.increment();
            flags |= OVERSIZE;
            payload = oversize_payload(&payload);
        }
        Record { received_at_us: now_us(), flags, mark, topic, payload }
    }

    /// Decides whether to try again. Says so once an outage.
    fn lost(&self, course: &mut Course, lost: Lost) -> Result<(), StageError> {
        // With it goes all that was to be acknowledged on it.
        let connection = course.connection.take();
        let never_connected = course.generation == 0;
        match lost.by {
            LostBy::Refused => return Err(lost.permanent()),
            LostBy::Untrusted if never_connected => return Err(lost.permanent()),
            LostBy::TakenOver => {
                if course.takeovers.again() >= TAKEOVERS_MAX {
                    let id = &self.settings.client_id;
                    return Err(StageError::permanent(format!("another client uses the client id \"{id}\""))
                        .because(lost.permanent())
                        .hint(TAKEN_OVER_HINT));
                }
            }
            // MQTT 3.1.1 has no word for a takeover, and with 5 the word is lost where the broker sends it bare.
            LostBy::Away if connection.as_ref().is_some_and(|connection| connection.since.elapsed() < STEADY) => {
                let short = course.short_connections.again();
                if short >= TAKEOVERS_MAX {
                    tracing::warn!(
                        stage = self.stage,
                        client_id = self.settings.client_id,
                        "{short} connections in a row ended soon after the broker had accepted them: another client may use \
                         this client id. {TAKEN_OVER_HINT}"
                    );
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
            self.counters.connections_lost.increment();
            course.lost_at = Some(Instant::now());
        }
        course.broker.failed(&lost.transient());
        Ok(())
    }

    /// Waits before the next connect, longer each time; false if the source stops meanwhile.
    async fn wait_to_connect(&self, course: &mut Course, events: &mut Events) -> Result<bool, StageError> {
        select! {
            () = tokio::time::sleep(backoff(course.failures)) => {}
            // Nothing more can be acknowledged: that connection is gone.
            () = self.stop.cancelled() => return Ok(false),
        }
        if let Err(error) = events.read_certificates() {
            if course.generation == 0 {
                return Err(error);
            }
            // Half a rotation, perhaps: the certificates that were read before stay in use.
            tracing::warn!(stage = self.stage, error = error.chain(), "the certificates could not be read again");
        }
        Ok(true)
    }
}

impl Course {
    /// Acknowledges what has come to disk since the last call.
    fn acknowledge(&mut self, commands: &Commands) {
        let durable_lsn = *self.durable.borrow_and_update();
        if let Some(connection) = &mut self.connection {
            let unacked = connection.window.unacked();
            connection.window.release(durable_lsn, |receipt| commands.acknowledge(receipt));
            if connection.window.unacked() < unacked {
                connection.ceiling.note(unacked);
            }
        }
    }
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
