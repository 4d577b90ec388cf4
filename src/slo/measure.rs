//! How long the queries of the shipped dashboards take in the database of a sink: one by one, and all of a dashboard.
//!
//! That is what the database takes, asked one query after the other: not what a browser takes to draw, nor what Prometheus
//! takes for its panels.

use std::time::Duration;

use pipeline_engine::far_end::FarEnd;
use pipeline_engine::{Plan, Within};

use super::Tally;
use super::panels::shipped;

/// What was measured.
#[derive(Debug, Clone, Default)]
pub struct Measurement {
    /// Each run of each query.
    queries: Vec<Duration>,
    /// Each run of each dashboard.
    dashboards: Vec<Duration>,
    /// The query that took longest, by dashboard and panel.
    pub slowest: Option<(Duration, String)>,
}

impl Measurement {
    pub fn queries_within(&self, within: Option<Within>) -> Tally {
        tally(&self.queries, within)
    }

    pub fn dashboards_within(&self, within: Option<Within>) -> Tally {
        tally(&self.dashboards, within)
    }

    /// 95 of 100 queries took no longer.
    pub fn query_p95(&self) -> Option<Duration> {
        p95(&self.queries)
    }

    /// 95 of 100 dashboards took no longer.
    pub fn dashboard_p95(&self) -> Option<Duration> {
        p95(&self.dashboards)
    }
}

/// The database that queries are measured in: that of the sink which latency is measured at, where it is named and has one, or
/// the first there is.
pub fn database(plan: &Plan) -> Option<Box<dyn FarEnd>> {
    let mut databases: Vec<_> = plan.far_ends().into_iter().filter(|(_, end, _)| end.speaks_sql()).collect();
    let named = plan.objectives().latency_sink.as_deref();
    let place = databases.iter().position(|(sink, ..)| Some(sink.as_str()) == named).unwrap_or(0);
    (place < databases.len()).then(|| databases.swap_remove(place).1)
}

/// Runs every query of every dashboard so many times.
///
/// # Errors
/// In words: there is no database, or it does not have what a query asks for.
pub async fn measure(far_end: &mut dyn FarEnd, runs: u32) -> Result<Measurement, String> {
    let mut measurement = Measurement::default();
    for dashboard in shipped() {
        for _ in 0..runs {
            let mut whole = Duration::ZERO;
            for (panel, sql) in &dashboard.queries {
                let name = || format!("\"{panel}\" of {}", dashboard.uid);
                let took = far_end.time_query(sql).await.map_err(|error| format!("{}: {}", name(), error.chain()))?;
                whole += took;
                measurement.queries.push(took);
                if measurement.slowest.as_ref().is_none_or(|(slowest, _)| took > *slowest) {
                    measurement.slowest = Some((took, name()));
                }
            }
            measurement.dashboards.push(whole);
        }
    }
    Ok(measurement)
}

fn tally(times: &[Duration], within: Option<Within>) -> Tally {
    let good = times.iter().filter(|took| within.is_none_or(|within| **took <= within.limit)).count();
    Tally { good: good as u64, total: times.len() as u64 }
}

/// By nearest rank.
fn p95(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() * 95).div_ceil(100).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use pipeline_engine::Share;
    use pipeline_engine::far_end::{Found, Marked};
    use pipeline_engine::stage::StageError;

    use super::*;

    /// Takes a millisecond longer each time.
    struct Slowing(u64);

    #[async_trait]
    impl FarEnd for Slowing {
        fn place(&self) -> String {
            "here".to_owned()
        }

        async fn find(&mut self, _: &Marked) -> Result<Found, StageError> {
            Ok(Found::new())
        }

        async fn remove(&mut self, _: &str, _: Option<&[String]>) -> Result<Option<u64>, StageError> {
            Ok(None)
        }

        async fn time_query(&mut self, sql: &str) -> Result<Duration, StageError> {
            assert!(!sql.contains('$'), "{sql}");
            self.0 += 1;
            Ok(Duration::from_millis(self.0))
        }
    }

    #[tokio::test]
    async fn every_query_is_measured_and_dashboards_are_their_sums() {
        let measurement = measure(&mut Slowing(0), 2).await.expect("all queries are answered");
        let count = measurement.queries.len() as u64;
        let limit = Duration::from_millis(count - 3);
        let within = Some(Within { limit, share: Share::percent(95) });
        assert_eq!(measurement.queries_within(within), Tally { good: count - 3, total: count });
        assert_eq!(measurement.dashboards.iter().sum::<Duration>(), measurement.queries.iter().sum::<Duration>());
        assert_eq!(measurement.slowest.as_ref().map(|(took, _)| *took), Some(Duration::from_millis(count)));
        assert_eq!(measurement.query_p95(), Some(Duration::from_millis((count * 95).div_ceil(100))));
    }
}
