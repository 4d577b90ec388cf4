//! What `pipeline doctor` asks the broker of a sink. Nothing is published: a message can't be taken back.

use pipeline_engine::stage::{Examination, StageError};
use pipeline_engine::units::SizeText;
use rumqttc_v5::QoS;

use crate::mqtt_client::{self, Direction, Settings, Visit};

/// Readings are far smaller; what a broker has set so low was not meant for batches.
const PACKET_BYTES_MIN: u32 = 16 << 10;

pub(super) async fn examine(settings: &Settings, qos: QoS, report: &Examination) {
    let Some(handshake) = mqtt_client::reach(settings, report).await else { return };
    let client_id = format!("{}-doctor-{:08x}", settings.client_id, rand::random::<u32>());
    let Some(visit) = mqtt_client::let_in(settings, &client_id, handshake, report).await else { return };
    tell_limits(settings, qos, &visit, report);
    if let Err(lost) = visit.leave().await {
        tracing::debug!(%lost, "the broker hung up first");
    }
}

fn tell_limits(settings: &Settings, qos: QoS, visit: &Visit, report: &Examination) {
    let terms = visit.terms;
    if terms.qos_max < qos as u8 {
        let error =
            StageError::permanent(format!("the broker takes QoS {} at most, and qos is {}", terms.qos_max, qos as u8));
        report.fail("qos", &error.hint("Set `qos` to what the broker can do."));
    }
    if let Direction::Send { in_flight_max } = settings.direction {
        let limit = if terms.in_flight_max < in_flight_max { ", as many as the broker takes" } else { "" };
        let allowed = terms.in_flight_max.min(in_flight_max);
        report.pass("window", format!("{allowed} messages may be on their way at once{limit}"));
    }
    let size = SizeText(visit.packet_bytes_max.into());
    if visit.packet_bytes_max < PACKET_BYTES_MIN {
        report.warn(
            "packet size",
            format!("the broker takes packets of {size} at most: rows that are larger leave by rejected"),
            "Raise the broker's maximum packet size (max_packet_size in Mosquitto).",
        );
    } else {
        report.pass("packet size", format!("packets up to {size}"));
    }
}
