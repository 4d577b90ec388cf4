//! `[slo]`: what a pipeline has to keep.

use std::num::NonZeroU64;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::objectives::{Objectives, Share, Within};
use crate::units::DurationText;

/// As it stands in the file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SloText {
    /// 99 of 100 rows are committed by `latency_sink` within so long, from the device's own time; from the receipt where that
    /// sink knows no time column.
    latency_p99: Option<DurationText>,
    /// Whose rows that is about. Default: the first sink of the file that knows when its rows happened.
    latency_sink: Option<String>,
    /// The largest share of messages that may be lost: 1e-4 is one of 10,000. Lost are numbers that a transform `gaps` has
    /// missed, and rows that are not accounted for.
    loss_max: Option<f64>,
    /// 99 of 100 anomalies are committed by `anomaly_sink` within so long, from the device's own time.
    anomaly_p99: Option<DurationText>,
    /// Whose rows that is about. Default: the first sink that reads a port `anomalies`.
    anomaly_sink: Option<String>,
    /// So many messages come in a second, over five minutes.
    ingestion_min: Option<NonZeroU64>,
    /// The smallest share of known devices that is not silent, as a transform `silence` finds it: 0.995 is 199 of 200.
    devices_min: Option<f64>,
    /// 95 of 100 queries of the dashboards that are shipped take no longer, in the database that `latency_sink` stores in.
    query_p95: Option<DurationText>,
    /// 95 of 100 times all queries of a dashboard, one after the other, take no longer.
    dashboard_p95: Option<DurationText>,
    /// How often the running pipeline measures queries and dashboards. Default: never; `pipeline slo --measure` does when it is asked.
    measure_every: Option<DurationText>,
}

/// The key that is wrong, what is wrong with it, and a way out.
type Wrong = (&'static str, String, &'static str);

/// The database has other things to do.
const MEASURE_EVERY_MIN: Duration = Duration::from_secs(10);

impl SloText {
    /// What it means, and all that is wrong with it; what is wrong asks for nothing.
    pub(super) fn objectives(self) -> (Objectives, Vec<Wrong>) {
        let mut wrong = Vec::new();
        let measures = self.query_p95.is_some() || self.dashboard_p95.is_some();
        for (key, is_set, is_needed) in [
            ("latency_sink", self.latency_sink.is_some(), self.latency_p99.is_some() || measures),
            ("anomaly_sink", self.anomaly_sink.is_some(), self.anomaly_p99.is_some()),
            ("measure_every", self.measure_every.is_some(), measures),
        ] {
            if is_set && !is_needed {
                let hint = "Add the objective that it belongs to, or leave this key out.";
                wrong.push((key, format!("no objective here needs \"{key}\""), hint));
            }
        }
        let measure_every = self.measure_every.map(|DurationText(every)| every);
        if measure_every.is_some_and(|every| every < MEASURE_EVERY_MIN) {
            let text = "the database would be busy with being measured".to_owned();
            wrong.push(("measure_every", text, "Such as \"5m\"."));
        }
        let (p99, p95) = (Share::percent(99), Share::percent(95));
        let objectives = Objectives {
            latency: within("latency_p99", self.latency_p99, p99, &mut wrong),
            latency_sink: self.latency_sink,
            loss_max: share("loss_max", self.loss_max, &mut wrong),
            anomaly: within("anomaly_p99", self.anomaly_p99, p99, &mut wrong),
            anomaly_sink: self.anomaly_sink,
            ingestion_min: self.ingestion_min.map(NonZeroU64::get),
            devices_min: share("devices_min", self.devices_min, &mut wrong),
            query: within("query_p95", self.query_p95, p95, &mut wrong),
            dashboard: within("dashboard_p95", self.dashboard_p95, p95, &mut wrong),
            measure_every,
        };
        (objectives, wrong)
    }
}

fn within(key: &'static str, text: Option<DurationText>, share: Share, wrong: &mut Vec<Wrong>) -> Option<Within> {
    let DurationText(limit) = text?;
    if limit.is_zero() {
        wrong.push((key, "nothing takes no time at all".to_owned(), "Such as \"5s\" or \"250ms\"."));
    }
    Some(Within { limit, share })
}

fn share(key: &'static str, number: Option<f64>, wrong: &mut Vec<Wrong>) -> Option<Share> {
    let number = number?;
    let share = Share::of(number);
    if share.is_none() {
        wrong.push((key, format!("{number} is no share"), "A number from 0 to 1, such as 0.995 or 1e-4."));
    }
    share
}
