//! Publishes dead letters again, to the topics by which they came.
//!
//! On a connection of its own, so that a pipeline that is running is not disturbed. A letter counts as
//! sent once the broker has it for somebody: where nobody is subscribed, the broker would throw it
//! away (MQTT 5 says so, 3.1.1 does not).

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use pipeline_engine::dlq::{Letter, LetterForm, NotSent, Resender, Resent, topic_matches};
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::stage::StageError;
use rumqttc_v5::QoS;

use crate::decode::Format;
use crate::mqtt_client::{Direction, Publisher, Refusal, Session, Settings, check_topic};
use crate::sources::spooled::message_of;

/// What AWS IoT and others take without complaint.
const IN_FLIGHT_MAX: u16 = 20;

/// The way back to the topics of a source.
pub(super) struct Resend {
    settings: Settings,
    filters: Vec<String>,
    schema: Option<Arc<DeclaredSchema>>,
    format: Format,
    publisher: Option<Publisher>,
}

impl Resend {
    pub(super) fn new(
        settings: &Settings,
        filters: &[String],
        schema: Option<Arc<DeclaredSchema>>,
        format: Format,
    ) -> Self {
        let settings = Settings {
            client_id: format!("{}-replay-{:08x}", settings.client_id, rand::random::<u32>()),
            session: Session::Clean,
            direction: Direction::Send { in_flight_max: IN_FLIGHT_MAX },
            ..settings.clone()
        };
        Self { settings, filters: filters.to_vec(), schema, format, publisher: None }
    }

    fn is_read(&self, topic: &str) -> bool {
        self.filters.iter().any(|filter| topic_matches(unshared(filter), topic))
    }
}

/// The filter of `$share/GROUP/FILTER`.
fn unshared(filter: &str) -> &str {
    crate::mqtt_client::shared(filter).map_or(filter, |(_, filter)| filter)
}

#[async_trait]
impl Resender for Resend {
    fn message(&self, letter: &Letter, form: LetterForm, topic: Option<&str>) -> Result<Resent, String> {
        let schema = self.schema.as_deref();
        let Resent { topic, payload } = message_of(letter, form, topic, "topic", schema, self.format)?;
        check_topic(&topic).map_err(|mistake| format!("can't be published: {mistake}"))?;
        if !self.is_read(&topic) {
            return Err(format!("would go to \"{topic}\", which its source does not subscribe to"));
        }
        Ok(Resent { topic, payload })
    }

    fn topic_of(&self, name: &str) -> Option<String> {
        let filter = self.filters.first()?;
        let levels: Vec<&str> = unshared(filter).split('/').collect();
        let open = |level: &&str| if matches!(*level, "+" | "#") { name.to_owned() } else { (*level).to_owned() };
        Some(levels.iter().map(open).collect::<Vec<_>>().join("/"))
    }

    async fn send(&mut self, messages: &[Resent]) -> Result<Vec<Result<(), NotSent>>, StageError> {
        if self.publisher.as_ref().is_none_or(Publisher::has_ended) {
            self.publisher = Some(Publisher::connect(&self.settings, true).await?);
        }
        let Some(publisher) = &self.publisher else {
            return Err(StageError::bug("a connection that came about is gone"));
        };
        // All are handed over at once; the library keeps as many on their way as it may.
        let sent = join_all(messages.iter().map(|message| publish(publisher, message))).await;
        Ok(sent)
    }

    async fn close(&mut self) {
        if let Some(publisher) = self.publisher.take() {
            publisher.close().await;
        }
    }
}

async fn publish(publisher: &Publisher, message: &Resent) -> Result<(), NotSent> {
    let Resent { topic, payload } = message;
    let Some(notice) = publisher.publish(topic, payload.clone(), QoS::AtLeastOnce).await else {
        return Err(NotSent::Later("the connection to the broker was lost".to_owned()));
    };
    match notice.taken_for_somebody().await {
        Ok(true) => Ok(()),
        Ok(false) => Err(NotSent::Refused(
            "nobody is subscribed to its topic at the broker; start the pipeline first".to_owned(),
        )),
        Err(Refusal::Message(reason) | Refusal::NotAllowed(reason)) => Err(NotSent::Refused(reason)),
        Err(Refusal::NotNow(reason)) => Err(NotSent::Later(reason)),
        Err(Refusal::Lost) => Err(NotSent::Later("the connection to the broker was lost".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use pipeline_engine::dlq::LetterId;
    use pipeline_engine::testing::build_context;
    use rumqttc_v5::mqttbytes::v5::PubAckReason;

    use super::*;
    use crate::mqtt_client::fault_broker::{FaultBroker, within};
    use crate::mqtt_client::{Address, Protocol, TlsConfig};

    fn resend(url: &str, filters: &[&str]) -> Resend {
        let settings = Settings {
            address: Address::parse("url", url).unwrap(),
            tls: TlsConfig::default(),
            protocol: Protocol::V5,
            client_id: "pipeline".to_owned(),
            login: None,
            session: Session::Clean,
            keep_alive: std::time::Duration::from_secs(30),
            direction: Direction::Receive { window: 10 },
            certificates: Default::default(),
        };
        let schema = build_context("in", "[schema.t]\nn = \"int64\"\n").schema("schema", "t").unwrap();
        let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Resend::new(&settings, &filters, Some(schema), Format::Json)
    }

    fn letter(reason: &str, topic: Option<&str>, payload: &'static str) -> Letter {
        Letter {
            id: LetterId([1; 16]),
            received_at_us: 1,
            stage: "in".to_owned(),
            reason: reason.to_owned(),
            detail: None,
            topic: topic.map(str::to_owned),
            position: None,
            payload: payload.into(),
        }
    }

    #[test]
    fn a_letter_goes_back_to_its_own_topic_as_it_came() {
        let resend = resend("mqtt://127.0.0.1", &["a/+", "$share/group/b/#"]);
        let message = |letter: Letter, form, topic| resend.message(&letter, form, topic);
        let sent = message(letter("invalid_json", Some("a/1"), "{"), LetterForm::Message, Some("a/2"));
        assert_eq!(sent, Ok(Resent { topic: "a/1".to_owned(), payload: "{".into() }));
        let sent = message(letter("range.n", None, "{\"n\":1,\"site\":\"x\"}"), LetterForm::Row, Some("b/2/3"));
        assert_eq!(sent, Ok(Resent { topic: "b/2/3".to_owned(), payload: "{\"n\":1}".into() }));
        for (letter, form, topic, why) in [
            (letter("oversize", Some("a/1"), "x"), LetterForm::Message, None, "holds only the beginning"),
            (letter("x", None, "x"), LetterForm::Message, None, "does not know its topic: name one with --to"),
            (letter("x", None, "{}"), LetterForm::Row, None, "a row that does not know its topic"),
            (
                letter("x", Some("c/1"), "x"),
                LetterForm::Message,
                None,
                "\"c/1\", which its source does not subscribe to",
            ),
            (letter("x", None, "x"), LetterForm::Message, Some("a/+"), "can't be published"),
        ] {
            let error = message(letter, form, topic).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_topic_of_its_source_has_the_name_where_that_leaves_it_open() {
        let topic = |filter: &str| resend("mqtt://127.0.0.1", &[filter]).topic_of("me");
        for (filter, expected) in [("a/b", "a/b"), ("a/+/c/#", "a/me/c/me"), ("#", "me"), ("$share/g/a/#", "a/me")] {
            assert_eq!(topic(filter).as_deref(), Some(expected), "{filter}");
        }
    }

    #[tokio::test]
    async fn only_what_the_broker_has_for_somebody_counts_as_sent() {
        let broker = FaultBroker::start().await;
        let mut resend = resend(&broker.url(), &["a"]);
        let messages: Vec<Resent> =
            (0..4).map(|n: u8| Resent { topic: "a".to_owned(), payload: n.to_string().into() }).collect();
        let (sent, ()) = tokio::join!(within(resend.send(&messages)), async {
            let mut peer = broker.welcome(false).await;
            for reason in [PubAckReason::Success, PubAckReason::NoMatchingSubscribers, PubAckReason::NotAuthorized] {
                let publish = peer.published().await;
                peer.take(&publish, reason).await;
            }
            peer.published().await;
            drop(peer);
        });
        let later = NotSent::Later("the connection to the broker was lost".to_owned());
        let [taken, unread, refused, lost] = &sent.unwrap()[..] else { panic!("four answers") };
        assert_eq!((taken, lost), (&Ok(()), &Err(later)));
        assert!(matches!(unread, Err(NotSent::Refused(why)) if why.contains("nobody is subscribed")), "{unread:?}");
        assert_eq!(*refused, Err(NotSent::Refused("not authorized".to_owned())));
    }
}
