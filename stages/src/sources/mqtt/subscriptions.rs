//! What we have asked the broker to send, and what it answered.

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use pipeline_engine::stage::StageError;
use rumqttc_v5::QoS;

use crate::mqtt_client::{Commands, Subscribed};

/// A filter and the broker's answer.
pub(super) type Answer = (String, Option<Result<QoS, String>>);

/// What we have asked to receive on the present session.
#[derive(Default)]
pub(super) struct Subscriptions {
    pub(super) granted: Vec<String>,
    asked: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Subscriptions {
    /// After each connect: asks for what the session does not have. A session that the broker kept from
    /// an earlier run is asked for everything, since the filters may have changed.
    pub(super) fn renew(&mut self, session_present: bool, filters: &[String], qos: QoS, commands: &Commands) {
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

    /// Whether the broker owes us an answer.
    pub(super) fn are_awaited(&self) -> bool {
        !self.asked.is_empty()
    }

    /// The next answer, if any is awaited. Cancel safe.
    pub(super) async fn next_answer(&mut self) -> Answer {
        match self.asked.next().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

/// Whether the broker's answer is what was asked for; false if the connection went first, and the next
/// one asks again.
pub(super) fn check_answer(answer: Option<Result<QoS, String>>, filter: &str, asked: QoS) -> Result<bool, StageError> {
    match answer {
        None => Ok(false),
        Some(Ok(granted)) if granted as u8 >= asked as u8 => Ok(true),
        Some(Ok(granted)) => Err(StageError::permanent(format!(
            "the broker grants QoS {} instead of {} for the topic filter \"{filter}\"",
            granted as u8, asked as u8
        ))
        .hint("Set `qos` to what the broker can do.")),
        Some(Err(reason)) => {
            Err(StageError::permanent(format!("the broker refuses the topic filter \"{filter}\": {reason}"))
                .hint("Check what the broker allows this user or client id to subscribe to."))
        }
    }
}
