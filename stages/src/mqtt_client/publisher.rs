//! One connection to publish by, polled by a task of its own for as long as it lasts.

use bytes::Bytes;
use pipeline_engine::stage::StageError;
use rumqttc_v5::QoS;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::fault::{Lost, LostBy};
use super::link::{Commands, Event, Events, Notice, open};
use super::settings::Settings;

/// A connection that the broker has accepted.
pub(crate) struct Publisher {
    commands: Commands,
    pub(crate) packet_bytes_max: u32,
    /// Why the connection ended, once it has.
    ended: watch::Receiver<Option<String>>,
    /// A set, since dropping it ends the task.
    tasks: JoinSet<()>,
}

impl Publisher {
    /// Connects, once. `first`: no connection came about before in this run, so that a certificate that
    /// is not trusted is a mistake and not a rotation.
    pub(crate) async fn connect(settings: &Settings, first: bool) -> Result<Self, StageError> {
        let (commands, mut events) = open(settings)?;
        let packet_bytes_max = loop {
            match events.poll().await {
                Ok(Event::Connected { packet_bytes_max, .. }) => break packet_bytes_max,
                Ok(_) => {}
                Err(lost) => return Err(verdict(lost, first)),
            }
        };
        let (said, ended) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(poll(events, said));
        Ok(Self { commands, packet_bytes_max, ended, tasks })
    }

    /// Hands over a message; `None` if the connection has ended.
    pub(crate) async fn publish(&self, topic: &str, payload: Bytes, qos: QoS) -> Option<Notice> {
        self.commands.publish(topic, payload, qos).await
    }

    /// The connection is gone: while nothing was published, for instance.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Why the connection ended. Waits for the task to say so: a message learns of the end before.
    pub(crate) async fn why(mut self) -> StageError {
        let reason = match self.ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "its task ended".to_owned(),
        };
        StageError::transient(format!("the connection to the broker was lost: {reason}"))
    }

    /// Says goodbye, and waits until that is sent.
    pub(crate) async fn close(mut self) {
        self.commands.disconnect();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Refusals need a person; so does distrust, unless a certificate that was good is being replaced.
pub(crate) fn verdict(lost: Lost, first: bool) -> StageError {
    match lost.by {
        LostBy::Refused => lost.permanent(),
        LostBy::Untrusted if first => lost.permanent(),
        LostBy::Untrusted | LostBy::TakenOver | LostBy::Away => lost.transient(),
    }
}

/// Ends with the connection: what waits for an answer of the broker then learns that none will come.
async fn poll(mut events: Events, ended: watch::Sender<Option<String>>) {
    let reason = loop {
        match events.poll().await {
            Ok(Event::Closed) => break "closed by us".to_owned(),
            Ok(_) => {}
            Err(lost) => break lost.to_string(),
        }
    };
    ended.send_replace(Some(reason));
    events.close().await;
}
