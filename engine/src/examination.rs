//! What `pipeline doctor` finds out: checks by name, each with what was found and a way out.
//!
//! A stage hands over each finding as soon as it has it: what it knew already is not lost with a service that never
//! answers.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::error::StageError;

/// Clocks that differ by more make latencies wrong.
const SKEW_WARN_US: u64 = 2_000_000;
/// Clocks that differ by more get signed requests refused (S3 allows 15 minutes).
const SKEW_FAIL_US: u64 = 300_000_000;

/// How a check came out, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// It works, but not as well or as safely as it should.
    Warn,
    /// It does not work.
    Fail,
}

/// One check and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, in a word or two: `login`, `unique key`.
    pub check: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found: lower case, no full stop. May hold text from outside.
    pub found: String,
    /// A way out, in sentences; `None` where there is nothing to do or nothing known.
    pub fix: Option<String>,
}

/// Collects the findings of one stage. Clones collect into the same list.
#[derive(Debug, Clone, Default)]
pub struct Examination {
    inside: Arc<Mutex<Inside>>,
    resumes: bool,
    is_shared: bool,
}

#[derive(Debug, Default)]
struct Inside {
    findings: Vec<Finding>,
    under_way: Option<&'static str>,
}

impl Examination {
    /// `resumes`: every source of the pipeline can be resumed.
    pub fn new(resumes: bool) -> Self {
        Self { inside: Arc::default(), resumes, is_shared: false }
    }

    /// The same of a pipeline whose source several workers share, or not.
    #[must_use]
    pub fn shared(mut self, is_shared: bool) -> Self {
        self.is_shared = is_shared;
        self
    }

    /// Whether the pipeline's runs go on where earlier ones have come to, so that sinks keep positions.
    pub fn run_resumes(&self) -> bool {
        self.resumes
    }

    /// Whether several workers run the pipeline, so that sinks keep whose each partition is.
    pub fn run_is_shared(&self) -> bool {
        self.is_shared
    }

    /// Says what is being looked at now: it is named if no answer comes in time.
    pub fn begin(&self, check: &'static str) {
        self.with(|inside| inside.under_way = Some(check));
    }

    /// All is well.
    pub fn pass(&self, check: &'static str, found: impl Into<String>) {
        self.add(Finding { check, verdict: Verdict::Pass, found: found.into(), fix: None });
    }

    /// It works, but should be mended.
    pub fn warn(&self, check: &'static str, found: impl Into<String>, fix: impl Into<String>) {
        self.add(Finding { check, verdict: Verdict::Warn, found: found.into(), fix: Some(fix.into()) });
    }

    /// It does not work, and the error says why.
    pub fn fail(&self, check: &'static str, error: &StageError) {
        let fix = error.way_out().map(str::to_owned);
        self.add(Finding { check, verdict: Verdict::Fail, found: error.explanation(), fix });
    }

    /// Any finding.
    pub fn add(&self, finding: Finding) {
        self.with(|inside| inside.findings.push(finding));
    }

    /// Compares a clock of the outside with ours. All times are microseconds since 1970: it showed something between
    /// the two of `theirs` while ours showed what is between the two of `ours`.
    pub fn compare_clock(&self, whose: &str, theirs: (i64, i64), ours: (i64, i64)) {
        let ahead = u64::try_from(theirs.0.saturating_sub(ours.1)).unwrap_or(0);
        let behind = u64::try_from(ours.0.saturating_sub(theirs.1)).unwrap_or(0);
        let (skew, way) = if ahead > 0 { (ahead, "ahead of") } else { (behind, "behind") };
        let verdict = if skew > SKEW_FAIL_US {
            Verdict::Fail
        } else if skew > SKEW_WARN_US {
            Verdict::Warn
        } else {
            Verdict::Pass
        };
        let found = if skew <= SKEW_WARN_US {
            format!("the clock of {whose} and this machine's agree")
        } else {
            let apart = humantime::format_duration(std::time::Duration::from_secs(skew / 1_000_000));
            format!("the clock of {whose} is {apart} {way} this machine's")
        };
        let fix = (verdict != Verdict::Pass).then(|| {
            "Set the clock that is wrong, and keep both by NTP (`timedatectl set-ntp true`): latencies are measured by \
             them, certificates and signed requests are refused by a wrong one."
                .to_owned()
        });
        self.add(Finding { check: "clock", verdict, found, fix });
    }

    /// What was found so far, in order, and what was being looked at then.
    pub(crate) fn take(&self) -> (Vec<Finding>, Option<&'static str>) {
        self.with(|inside| (std::mem::take(&mut inside.findings), inside.under_way))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inside) -> T) -> T {
        change(&mut self.inside.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All that was found at one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The stage's name.
    pub stage: String,
    /// Its type.
    pub type_name: &'static str,
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skew(theirs: (i64, i64), ours: (i64, i64)) -> Finding {
        let examination = Examination::default();
        examination.compare_clock("the database", theirs, ours);
        examination.take().0.remove(0)
    }

    #[test]
    fn a_clock_that_may_be_right_is_right_and_one_that_can_not_is_told_by_how_much() {
        let second = 1_000_000;
        assert_eq!(skew((10, 10), (0, 20)).verdict, Verdict::Pass);
        assert_eq!(skew((second, second), (0, 0)).verdict, Verdict::Pass, "within what is allowed");
        let ahead = skew((90 * second, 90 * second), (0, 0));
        assert_eq!(ahead.verdict, Verdict::Warn);
        assert_eq!(ahead.found, "the clock of the database is 1m 30s ahead of this machine's");
        let behind = skew((0, 0), (3600 * second, 3600 * second));
        assert_eq!(behind.verdict, Verdict::Fail);
        assert_eq!(behind.found, "the clock of the database is 1h behind this machine's");
        assert_eq!(skew((i64::MIN, i64::MIN), (i64::MAX, i64::MAX)).verdict, Verdict::Fail);
    }

    #[test]
    fn an_error_becomes_a_finding_with_its_cause_and_its_hint_apart() {
        let examination = Examination::default();
        let cause = std::io::Error::other("refused");
        examination.fail("login", &StageError::permanent("no").because(cause).hint("Do it."));
        let expected = Finding {
            check: "login",
            verdict: Verdict::Fail,
            found: "no: refused".to_owned(),
            fix: Some("Do it.".to_owned()),
        };
        assert_eq!(examination.take().0, [expected]);
    }
}
