//! The readings of one device and metric, one after the other: which of them are learned, which are
//! flagged, and which of those are alerts.

use pipeline_engine::stage::StageError;

use super::methods::{Limits, Method, Reading, Standing};
use crate::transforms::snapshot::{Reader, Writer, damaged};

/// Far beyond any sensor, and far enough below the end of floats that no sum of squares gets there.
const VALUE_MAX: f64 = 1e100;

/// When a reading is flagged, what is learned and what is reported.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The score from which a reading is flagged.
    pub(super) threshold: f64,
    /// The score from which a flagged reading is critical.
    pub(super) critical: f64,
    /// `None`: each flagged reading is an alert.
    pub(super) episodes: Option<Episodes>,
    /// After so many flagged readings in a row the level is a new one. `None`: flagged readings are
    /// learned like any other.
    pub(super) relearn_after: Option<u32>,
    /// After so many late readings in a row the device's clock has been set back.
    pub(super) late_max: u32,
}

/// One fault is one alert.
#[derive(Debug, Clone, Copy)]
pub(super) struct Episodes {
    /// While a fault lasts, readings are flagged from this score on.
    pub(super) leave: f64,
    /// So long after the last flagged reading, another one belongs to the same fault.
    pub(super) cooldown_us: i64,
}

impl Rules {
    pub(super) fn is_critical(&self, standing: &Standing) -> bool {
        standing.score.abs() >= self.critical
    }
}

/// What became of a reading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judgement {
    pub(super) standing: Standing,
    pub(super) is_flagged: bool,
    pub(super) is_alert: bool,
}

/// What is remembered of one device and metric, besides the method's own.
#[derive(Debug, Clone, Copy)]
struct Track {
    /// The time of the newest reading.
    newest_us: i64,
    /// How many readings in a row were not newer than that.
    late: u32,
    /// Two for each flagged reading, less one for each other; never below zero.
    strikes: u32,
    /// Whether the newest reading was flagged.
    is_faulty: bool,
    /// Until then a flagged reading is no new fault.
    quiet_until_us: i64,
}

impl Track {
    const EMPTY: Self = Self { newest_us: i64::MIN, late: 0, strikes: 0, is_faulty: false, quiet_until_us: i64::MIN };

    /// Whether a reading of that time may be learned; moves `newest_us` if so.
    fn is_in_order(&mut self, time_us: Option<i64>, late_max: u32) -> bool {
        let Some(time_us) = time_us else { return false };
        if time_us <= self.newest_us {
            self.late += 1;
            if self.late < late_max {
                return false;
            }
            // A cool-down of the clock that was says nothing about the one that is.
            self.quiet_until_us = i64::MIN;
        }
        self.late = 0;
        self.newest_us = time_us;
        true
    }

    /// Whether a reading is flagged, and whether it is an alert.
    fn judge(&mut self, score: f64, is_in_order: bool, rules: &Rules) -> (bool, bool) {
        let is_far = score.abs() >= rules.threshold;
        let Some(episodes) = rules.episodes else { return (is_far, is_far) };
        if !is_in_order {
            return (is_far, false);
        }
        let is_flagged = is_far || (self.is_faulty && score.abs() >= episodes.leave);
        let is_alert = is_flagged && !self.is_faulty && self.newest_us >= self.quiet_until_us;
        self.is_faulty = is_flagged;
        if is_flagged {
            self.quiet_until_us = self.newest_us.saturating_add(episodes.cooldown_us);
        }
        (is_flagged, is_alert)
    }
}

/// One device and metric.
#[derive(Clone)]
pub(super) struct Series<S> {
    track: Track,
    state: S,
}

impl<S> Series<S> {
    pub(super) fn empty(state: S) -> Self {
        Self { track: Track::EMPTY, state }
    }

    /// The time of the newest reading.
    pub(super) fn newest_us(&self) -> i64 {
        self.track.newest_us
    }

    /// Where the value stands against what came before it, if there is enough to go by; then learns
    /// from it what the rules allow.
    #[inline]
    pub(super) fn observe<M: Method<State = S>>(
        &mut self,
        method: &M,
        places: &mut [f64],
        value: f64,
        time_us: Option<i64>,
        rules: &Rules,
        limits: &Limits,
    ) -> Option<Judgement> {
        let is_reading = value.abs() <= VALUE_MAX; // false for NaN as well
        if !is_reading {
            return None;
        }
        let is_in_order = self.track.is_in_order(time_us, rules.late_max);
        let reading = Reading { value, time_us, is_in_order };
        let judgement = method.measure(&mut self.state, places, reading, limits).map(|standing| {
            let (is_flagged, is_alert) = self.track.judge(standing.score, is_in_order, rules);
            Judgement { standing, is_flagged, is_alert }
        });
        if is_in_order {
            let is_flagged = judgement.is_some_and(|judgement| judgement.is_flagged);
            self.learn(method, places, reading, is_flagged, rules, limits);
        }
        judgement
    }

    fn learn<M: Method<State = S>>(
        &mut self,
        method: &M,
        places: &mut [f64],
        reading: Reading,
        is_flagged: bool,
        rules: &Rules,
        limits: &Limits,
    ) {
        if let Some(relearn_after) = rules.relearn_after.filter(|_| M::KEEPS_OUT && is_flagged) {
            self.track.strikes += 2;
            if self.track.strikes < relearn_after.saturating_mul(2) {
                method.pass_over(&mut self.state, reading);
            } else {
                self.track.strikes = 0;
                method.start_over(&mut self.state, places, reading, limits);
            }
            return;
        }
        self.track.strikes = self.track.strikes.saturating_sub(1);
        method.learn(&mut self.state, places, reading, limits);
    }

    pub(super) fn write<M: Method<State = S>>(&self, method: &M, places: &[f64], out: &mut Writer) {
        let Track { newest_us, late, strikes, is_faulty, quiet_until_us } = self.track;
        out.i64(newest_us);
        [late, strikes, u32::from(is_faulty)].into_iter().for_each(|count| out.u32(count));
        out.i64(quiet_until_us);
        method.write(&self.state, places, out);
    }

    /// What was written, its places put into `places`.
    ///
    /// # Errors
    /// There can't be such a series.
    pub(super) fn read<M: Method<State = S>>(
        method: &M,
        places: &mut [f64],
        from: &mut Reader<'_>,
    ) -> Result<Self, StageError> {
        let newest_us = from.i64()?;
        let (late, strikes, faulty) = (from.u32()?, from.u32()?, from.u32()?);
        let is_faulty = match faulty {
            0 | 1 => faulty == 1,
            _ => return Err(damaged()),
        };
        let track = Track { newest_us, late, strikes, is_faulty, quiet_until_us: from.i64()? };
        Ok(Self { track, state: method.read(places, from)? })
    }
}
