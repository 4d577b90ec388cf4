//! What a pipeline has to keep (`[slo]` in its file), held against what a run does: for metrics, `/slo`, `pipeline slo` and
//! `pipeline soak`.
//!
//! The engine counts: rows that were committed in time, messages, devices. [`Meter`] looks at these counts while a run goes on
//! and makes [`Tally`]s of them, [`Report`] holds tallies against targets. All of it in integers: whether an objective is kept
//! is no question of rounding.

pub mod measure;
mod meter;
mod panels;
mod report;
pub mod show;
mod watched;

use serde::{Deserialize, Serialize};

pub use meter::{Meter, Outlook};
pub use report::{Line, Report, Unit, Verdict};
pub use watched::look;

/// What can be asked of a pipeline, in the runbook's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Messages a second that come in.
    Ingestion,
    /// From when a row happened to its commit.
    Latency,
    /// Messages that were sent and are not there.
    Loss,
    /// Devices that are not silent.
    Connectivity,
    /// The dashboards' queries, each by itself.
    Query,
    /// From when a reading happened to the commit of the anomaly it is.
    Anomaly,
    /// All queries of a dashboard.
    Dashboard,
}

impl Objective {
    pub const ALL: [Self; 7] =
        [Self::Ingestion, Self::Latency, Self::Loss, Self::Connectivity, Self::Query, Self::Anomaly, Self::Dashboard];

    /// As in metrics, JSON and tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ingestion => "ingestion",
            Self::Latency => "latency",
            Self::Loss => "loss",
            Self::Connectivity => "connectivity",
            Self::Query => "query",
            Self::Anomaly => "anomaly",
            Self::Dashboard => "dashboard",
        }
    }

    /// What its tally counts.
    pub fn counts(self) -> &'static str {
        match self {
            Self::Ingestion => "seconds",
            Self::Latency => "rows",
            Self::Loss => "messages",
            Self::Connectivity => "device-seconds",
            Self::Query => "queries",
            Self::Anomaly => "anomalies",
            Self::Dashboard => "dashboards",
        }
    }
}

/// How many of all were as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    pub good: u64,
    pub total: u64,
}

impl Tally {
    /// What has come since an earlier look.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let total = self.total.saturating_sub(earlier.total);
        Self { good: self.good.saturating_sub(earlier.good).min(total), total }
    }

    pub fn missed(self) -> u64 {
        self.total.saturating_sub(self.good)
    }

    /// Parts of a million that were not as they should be, to a thousandth; `None` of nothing.
    pub fn missed_ppm(self) -> Option<f64> {
        let billionths =
            u128::from(self.missed()) * 1_000_000_000 / u128::from(Some(self.total).filter(|all| *all > 0)?);
        Some(billionths as f64 / 1_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_exact() {
        let tally = Tally { good: 99_985, total: 100_000 };
        assert_eq!((tally.missed(), tally.missed_ppm()), (15, Some(150.0)));
        assert_eq!(tally.since(Tally { good: 99_980, total: 99_990 }), Tally { good: 5, total: 10 });
        assert_eq!(Tally::default().missed_ppm(), None);
        let one_of_many = Tally { good: u64::MAX - u64::MAX / 1_000_000, total: u64::MAX };
        assert_eq!(one_of_many.missed_ppm(), Some(0.999));
    }
}
