//! What `pipeline doctor` asks the broker of a source.
//!
//! Never by the source's own client id, which would take its session over, and never with subscriptions in a session
//! that stays: nothing may be collected for a reader that is not there. A shared subscription is asked for without its
//! group, where a message for us would be one that nobody else gets.

use futures::future::join_all;
use pipeline_engine::stage::{Examination, StageError};
use pipeline_engine::units::DurationText;
use rumqttc_v5::QoS;

use super::Mqtt;
use super::subscriptions::check_answer;
use crate::mqtt_client::{self, Direction, Lost, Protocol, Session, Visit};

pub(super) async fn examine(source: &Mqtt, report: &Examination) {
    let settings = &source.settings;
    let Some(handshake) = mqtt_client::reach(settings, report).await else { return };
    let client_id = format!("{}-doctor-{:08x}", settings.client_id, rand::random::<u32>());
    let Some(visit) = mqtt_client::let_in(settings, &client_id, handshake, report).await else { return };
    subscribe(source, &visit, report).await;
    tell_window(source, report);
    if let Err(lost) = visit.leave().await {
        tracing::debug!(%lost, "the broker hung up first");
    }
    session(source, &client_id, report).await;
}

async fn subscribe(source: &Mqtt, visit: &Visit, report: &Examination) {
    report.begin("subscription");
    let asked = source.filters.iter().map(|filter| visit.commands.subscribe(without_group(filter), source.qos));
    for (filter, answer) in source.filters.iter().zip(join_all(asked).await) {
        let is_shared = without_group(filter) != filter;
        if is_shared && !visit.terms.shares {
            let error =
                StageError::permanent(format!("the broker knows no shared subscriptions, and \"{filter}\" is one"));
            report.fail("subscription", &error.hint("Subscribe without $share/GROUP/, by one pipeline alone."));
            continue;
        }
        match check_answer(answer, filter, source.qos) {
            Ok(true) => report.pass(
                "subscription",
                format!("\"{filter}\" is granted with QoS {}", source.qos as u8)
                    + if is_shared { ", asked for without its group" } else { "" },
            ),
            Ok(false) => {
                let error = StageError::permanent(format!(
                    "the broker closed the connection instead of an answer to the topic filter \"{filter}\""
                ));
                report.fail(
                    "subscription",
                    &error.hint("AWS IoT does so where a policy lacks iot:Subscribe on that topic filter."),
                );
            }
            Err(error) => report.fail("subscription", &error),
        }
    }
    if source.qos == QoS::AtMostOnce {
        report.warn(
            "subscription",
            "with QoS 0 nothing is acknowledged or repeated: what is on its way when a connection goes is lost",
            "Set `qos = 1`.",
        );
    }
}

fn without_group(filter: &str) -> &str {
    mqtt_client::shared(filter).map_or(filter, |(_, filter)| filter)
}

fn tell_window(source: &Mqtt, report: &Examination) {
    let Direction::Receive { window } = source.settings.direction else { return };
    report.pass(
        "window",
        match source.settings.protocol {
            Protocol::V5 => format!("the broker may send {window} messages before the first is on disk"),
            Protocol::V3 => "with MQTT 3.1.1 the broker decides how many messages it sends before the first is \
                             acknowledged (Mosquitto: 20)"
                .to_owned(),
        },
    );
}

/// Whether what the broker keeps for us is there when we come again.
async fn session(source: &Mqtt, client_id: &str, report: &Examination) {
    report.begin("session");
    let Session::Persistent { expiry } = source.settings.session else {
        report.warn(
            "session",
            "clean_session = true: what is published while the pipeline is away is lost",
            "Remove `clean_session`.",
        );
        return;
    };
    match come_again(source, client_id).await {
        Err(lost) => report.fail("session", &lost.permanent()),
        Ok((false, _)) => {
            let error = StageError::permanent(
                "the session does not survive a reconnect: what is published while the pipeline is away is lost",
            );
            report.fail(
                "session",
                &error.hint(
                    "Let the broker keep sessions: persistent_client_expiration and persistence in Mosquitto, \
                     mqtt.session_expiry_interval in EMQX.",
                ),
            );
        }
        Ok((true, Some(kept))) if kept < expiry => report.warn(
            "session",
            format!(
                "the session survives a reconnect, but the broker keeps it for {} and not for {}",
                DurationText(kept),
                DurationText(expiry)
            ),
            "A longer outage of the pipeline loses messages: raise the broker's limit, or lower `session_expiry` to it.",
        ),
        Ok((true, _)) => {
            let kept = match source.settings.protocol {
                Protocol::V5 => format!("for {}", DurationText(expiry)),
                Protocol::V3 => "as long as it likes (MQTT 3.1.1 has no word for it)".to_owned(),
            };
            report.pass("session", format!("it survives a reconnect; the broker keeps it {kept}"));
        }
    }
}

/// Leaves an empty session, finds out whether it is there, and ends it. Gives with it how long the broker keeps it, if
/// not as long as was asked for.
async fn come_again(source: &Mqtt, client_id: &str) -> Result<(bool, Option<std::time::Duration>), Lost> {
    let settings = &source.settings;
    let first = Visit::make(settings, client_id, settings.session).await?;
    let kept = first.terms.session_expiry;
    first.leave().await?;
    let second = Visit::make(settings, client_id, settings.session).await?;
    let survives = second.session_present;
    second.leave().await?;
    Visit::make(settings, client_id, Session::Clean).await?.leave().await?;
    Ok((survives, kept))
}

#[cfg(test)]
mod tests {
    use super::without_group;

    #[test]
    fn a_group_is_left_out_and_nothing_else() {
        assert_eq!(without_group("$share/group/iot/+/x"), "iot/+/x");
        assert_eq!(without_group("iot/#"), "iot/#");
        assert_eq!(without_group("$share/broken"), "$share/broken");
    }
}
