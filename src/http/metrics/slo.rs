//! What the file asks for and how it is kept: counts of good and of all events, from which Prometheus makes burn rates over
//! any time. Only objectives that the file has are there.

use std::fmt;

use pipeline_engine::{Share, Within};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::families::{Families, counter, gauge};
use crate::slo::{Meter, Objective, Tally};

/// So large a share of seconds must have enough messages: the file names their number and no share.
const INGESTION: Share = Share::percent(99);

impl Families<'_, '_> {
    pub(super) fn objectives(&mut self) -> fmt::Result {
        let (slo, pipeline) = (self.run.slo.clone(), self.run.pipeline.clone());
        let asked: Vec<Asked> = Objective::ALL.into_iter().filter_map(|objective| Asked::of(&slo, objective)).collect();
        let labels = |asked: &Asked| [("pipeline", pipeline.as_str()), ("slo", asked.objective.word())];

        let help = "Share of events that must be good, by the pipeline file";
        let mut family = self.encoder.encode_descriptor("slo_objective_ratio", help, None, MetricType::Gauge)?;
        for asked in &asked {
            gauge(&mut family, &labels(asked), asked.share.ratio())?;
        }
        let help = "How long an event may take to be good, by the pipeline file";
        let unit = Unit::Seconds;
        let mut family = self.encoder.encode_descriptor("slo_threshold", help, Some(&unit), MetricType::Gauge)?;
        for asked in &asked {
            if let Some(within) = asked.within {
                gauge(&mut family, &labels(asked), within.limit.as_secs_f64())?;
            }
        }
        let help = "Rows, messages, device-seconds, seconds or queries, as the objective counts";
        let mut family = self.encoder.encode_descriptor("slo_events", help, None, MetricType::Counter)?;
        for asked in &asked {
            counter(&mut family, &labels(asked), asked.tally.total)?;
        }
        let help = "Of these, those that were as the objective wants them";
        let mut family = self.encoder.encode_descriptor("slo_good_events", help, None, MetricType::Counter)?;
        for asked in &asked {
            counter(&mut family, &labels(asked), asked.tally.good)?;
        }
        let help = "95 of 100 queries or dashboards took no longer, when they were measured last";
        let mut family = self.encoder.encode_descriptor("slo_measured", help, Some(&unit), MetricType::Gauge)?;
        if let Some(Ok(last)) = slo.last_measurement() {
            for asked in &asked {
                let measured = match asked.objective {
                    Objective::Query => last.query_p95(),
                    Objective::Dashboard => last.dashboard_p95(),
                    _ => None,
                };
                if let Some(measured) = measured {
                    gauge(&mut family, &labels(asked), measured.as_secs_f64())?;
                }
            }
        }
        Ok(())
    }
}

/// An objective that the file has.
struct Asked {
    objective: Objective,
    share: Share,
    within: Option<Within>,
    tally: Tally,
}

impl Asked {
    fn of(slo: &Meter, objective: Objective) -> Option<Self> {
        let asked = slo.objectives();
        let in_time = |within: Option<Within>| Some((within?.share, within));
        let (share, within) = match objective {
            Objective::Ingestion => asked.ingestion_min.map(|_| (INGESTION, None)),
            Objective::Latency => in_time(asked.latency),
            Objective::Loss => asked.loss_max.map(|share| (share.rest(), None)),
            Objective::Connectivity => asked.devices_min.map(|share| (share, None)),
            Objective::Query => in_time(asked.query),
            Objective::Anomaly => in_time(asked.anomaly),
            Objective::Dashboard => in_time(asked.dashboard),
        }?;
        Some(Self { objective, share, within, tally: slo.tally(objective) })
    }
}
