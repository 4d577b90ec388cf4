//! What a pipeline has to keep, as its file says: `[slo]`. Shares are whole numbers, so that whether an objective is kept
//! is a comparison of integers and never a question of rounding.

use std::time::Duration;

/// All that `[slo]` asks for; `None`: it asks nothing there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Objectives {
    /// Rows are committed so soon after they happened.
    pub latency: Option<Within>,
    /// The sink whose rows that is about, and in whose database queries are measured; `None`: the first that knows when its
    /// rows happened.
    pub latency_sink: Option<String>,
    /// The largest share of messages that may be lost.
    pub loss_max: Option<Share>,
    /// Anomalies are committed so soon after they happened.
    pub anomaly: Option<Within>,
    /// The sink whose rows that is about; `None`: the first that reads a port `anomalies`.
    pub anomaly_sink: Option<String>,
    /// So many messages a second come in.
    pub ingestion_min: Option<u64>,
    /// The smallest share of known devices that is not silent.
    pub devices_min: Option<Share>,
    /// The queries of the dashboards take so long.
    pub query: Option<Within>,
    /// Whole dashboards take so long.
    pub dashboard: Option<Within>,
    /// How often the running pipeline measures queries and dashboards; `None`: never.
    pub measure_every: Option<Duration>,
}

/// A share of cases that takes no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Within {
    /// How long.
    pub limit: Duration,
    /// How many do.
    pub share: Share,
}

/// A part of a whole, exact to a billionth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    billionths: u64,
}

impl Share {
    const WHOLE: u64 = 1_000_000_000;
    /// Nothing of it.
    pub const NONE: Self = Self { billionths: 0 };

    /// So many of a hundred, at most all.
    pub const fn percent(percent: u32) -> Self {
        let billionths = percent as u64 * (Self::WHOLE / 100);
        Self { billionths: if billionths > Self::WHOLE { Self::WHOLE } else { billionths } }
    }

    /// The nearest billionth; `None` unless it lies between 0 and 1.
    pub fn of(number: f64) -> Option<Self> {
        (0.0..=1.0).contains(&number).then(|| Self { billionths: (number * Self::WHOLE as f64).round() as u64 })
    }

    /// What is left of the whole.
    #[must_use]
    pub const fn rest(self) -> Self {
        Self { billionths: Self::WHOLE - self.billionths }
    }

    /// As a number between 0 and 1.
    pub fn ratio(self) -> f64 {
        self.billionths as f64 / Self::WHOLE as f64
    }

    /// In parts of a million.
    pub fn ppm(self) -> f64 {
        self.billionths as f64 / 1_000.0
    }

    /// Whether `part` of `whole` is no more than this share.
    pub fn admits(self, part: u64, whole: u64) -> bool {
        u128::from(part) * u128::from(Self::WHOLE) <= u128::from(self.billionths) * u128::from(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_exact_where_a_float_is_not() {
        let share = Share::of(1e-4).expect("a share");
        assert!(share.admits(10, 100_000) && !share.admits(11, 100_000));
        assert!(share.admits(u64::MAX / 10_000, u64::MAX) && !share.admits(u64::MAX / 9_999, u64::MAX));
        assert_eq!((share.ppm(), Share::percent(99).rest().ppm()), (100.0, 10_000.0));
        assert_eq!(Share::of(0.995).expect("a share").rest(), Share::of(0.005).expect("a share"));
    }

    #[test]
    fn what_is_no_share_is_none() {
        assert_eq!([-0.1, 1.1, f64::NAN, f64::INFINITY].map(Share::of), [None; 4]);
        assert!(Share::NONE.admits(0, 0) && !Share::NONE.admits(1, u64::MAX));
    }
}
