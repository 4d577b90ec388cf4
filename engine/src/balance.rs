//! Conservation: what a stage was given is what became of it. Checked while a run goes on, and printed at
//! its end.
//!
//! The two sides are counted in different places: what was given by whoever gave it, what became of it
//! by the stage. So a row that is lost between two stages, or that nobody accounts for, shows.

use std::fmt;

use crate::stage::Port;
use crate::stats::{EdgeStats, RunStats, StageStats};

/// Counted by a sink that finds rows stored already: the name is the contract.
pub(crate) const DUPLICATES: &str = "duplicate_rows";
/// Counted by the engine for rows that a sink has stored in an earlier run.
pub(crate) const STORED_BEFORE: &str = "rows_stored_before";

/// Counted by the engine for rows of partitions that another worker has taken over before they were stored.
pub(crate) const TAKEN_OVER: &str = "rows_taken_over";

/// What one stage was given, and what became of it. In rows; for a source in records of its own, such as
/// messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    /// Given to the stage; by a source taken in from outside.
    pub received: u64,
    /// Made by a transform that gives more rows than it gets, beyond those it was given.
    pub made: u64,
    /// Passed on by the main port. Of a source: decoded, or refused and so passed on by `rejected`.
    pub passed_on: u64,
    /// Stored by a sink.
    pub stored: u64,
    /// Found stored already, in this run or in an earlier one.
    pub duplicate: u64,
    /// Left by `rejected`.
    pub rejected: u64,
    /// Left out by a transform.
    pub filtered: u64,
    /// An optional sink went without.
    pub shed: u64,
    /// Not stored by this worker, since another one has taken over their partition and reads them.
    pub taken_over: u64,
    /// On its way: in a queue, on disk before a sink, or in the stage's hands.
    pub in_flight: u64,
}

impl Balance {
    /// What is not accounted for: 0, but for what moves while it is counted. Below 0: there is more than
    /// was received.
    pub fn imbalance(&self) -> i64 {
        let given = i128::from(self.received) + i128::from(self.made);
        let became = [
            self.passed_on,
            self.stored,
            self.duplicate,
            self.rejected,
            self.filtered,
            self.shed,
            self.taken_over,
            self.in_flight,
        ];
        let became: i128 = became.into_iter().map(i128::from).sum();
        i64::try_from(given - became).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for Balance {
    /// `received = stored + …`, without what is zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} received", self.received)?;
        if self.made > 0 {
            write!(f, " + {} made", self.made)?;
        }
        let mut sign = " =";
        for (count, word) in [
            (self.passed_on, "passed on"),
            (self.stored, "stored"),
            (self.duplicate, "duplicate"),
            (self.rejected, "rejected"),
            (self.filtered, "filtered"),
            (self.shed, "gone without"),
            (self.taken_over, "taken over by another worker"),
            (self.in_flight, "in flight"),
        ] {
            if count > 0 {
                write!(f, "{sign} {count} {word}")?;
                sign = " +";
            }
        }
        match self.imbalance() {
            0 if sign == " =" => f.write_str(" = 0"),
            0 => Ok(()),
            rows => write!(f, "{sign} {rows} NOT accounted for"),
        }
    }
}

impl RunStats {
    /// The balance of a stage; `None` for a source that does not count what it takes in.
    pub fn balance(&self, stage: &StageStats) -> Option<Balance> {
        if stage.kind == "source" {
            return stage.intake().map(|intake| Balance {
                received: intake.received.get(),
                passed_on: intake.passed_on.get(),
                in_flight: intake.waiting(),
                ..Balance::default()
            });
        }
        let edges = || self.edges.iter().filter(|edge| edge.to == stage.name);
        let sum = |count: fn(&EdgeStats) -> u64| edges().map(|edge| count(edge)).sum::<u64>();
        // What becomes of rows is read before what was given, so that rows that arrive meanwhile are on
        // neither side or, for a moment, missing; never more than there are.
        let before = stage.named_count(STORED_BEFORE);
        let mut balance = Balance {
            taken_over: stage.named_count(TAKEN_OVER),
            rejected: stage.rows_out(Port::REJECTED),
            in_flight: stage.rows_in_hand() + sum(EdgeStats::rows_in_flight),
            ..Balance::default()
        };
        if stage.kind == "sink" {
            let duplicate = stage.named_count(DUPLICATES);
            balance.stored = stage.rows_stored().saturating_sub(duplicate);
            balance.duplicate = duplicate + before;
            balance.shed = sum(EdgeStats::shed_rows);
        } else {
            balance.passed_on = stage.rows_passed_on();
            balance.filtered = stage.rows_filtered();
            balance.made = stage.rows_made();
        }
        balance.received = sum(EdgeStats::rows_sent);
        Some(balance)
    }

    /// Every stage with its balance, in the order of the plan.
    pub fn balances(&self) -> Vec<(&StageStats, Balance)> {
        let balance = |stage| self.balance(stage).map(|balance| (stage, balance));
        self.stages.iter().filter_map(|stage| balance(stage.as_ref())).collect()
    }
}

/// Finds what stays out of balance while nothing moves.
#[derive(Debug, Default)]
pub(crate) struct Auditor {
    last: Vec<Balance>,
    told: Vec<bool>,
}

impl Auditor {
    /// The stages that are out of balance with nothing on its way, were so by as much at the last audit, and
    /// were given nothing in between. Each is told of once. While something is on its way, whoever waits
    /// for room may hold rows that are counted nowhere.
    pub(crate) fn audit(&mut self, stats: &RunStats) -> Vec<(String, Balance)> {
        let now = stats.balances();
        self.told.resize(now.len(), false);
        let mut found = Vec::new();
        for (index, (stage, balance)) in now.iter().enumerate() {
            let is_still = balance.in_flight == 0 && self.last.get(index) == Some(balance);
            if balance.imbalance() != 0 && is_still && !self.told[index] {
                self.told[index] = true;
                found.push((stage.name.clone(), *balance));
            }
        }
        self.last = now.into_iter().map(|(_, balance)| balance).collect();
        found
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use arrow::record_batch::RecordBatch;

    use super::*;
    use crate::batch::Batch;

    /// A source `in` that was given 10 rows by nobody, and a sink `out` behind it.
    fn run() -> RunStats {
        let stage = |name, kind, ports: &[Port]| Arc::new(StageStats::new(name, "test", kind, ports));
        RunStats {
            stages: vec![stage("in", "source", &[Port::MAIN]), stage("out", "sink", &[Port::REJECTED])],
            edges: vec![Arc::new(EdgeStats::new("in", Port::MAIN, "out"))],
        }
    }

    fn eight_rows() -> Batch {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![0; 8]));
        Batch::detached(RecordBatch::try_from_iter([("n", column)]).expect("one column of one length"))
    }

    #[test]
    fn what_a_sink_was_given_is_what_became_of_it() {
        let run = run();
        let sink = &run.stages[1];
        run.edges[0].sent(10, None);
        assert_eq!(run.balance(sink).unwrap().imbalance(), 10);
        run.edges[0].entered(4);
        sink.taken_in_hand(6);
        let balance = run.balance(sink).unwrap();
        assert_eq!((balance.in_flight, balance.imbalance()), (10, 0));
        run.edges[0].left(4, None);
        sink.taken_in_hand(4);
        sink.out_of_hand(10);
        sink.stored(&[eight_rows()]);
        sink.counter(DUPLICATES).add(3);
        sink.left(Port::REJECTED, 1);
        sink.counter(STORED_BEFORE).add(1);
        let balance = run.balance(sink).unwrap();
        assert_eq!(balance.to_string(), "10 received = 5 stored + 4 duplicate + 1 rejected");
        assert_eq!(run.balance(&run.stages[0]), None, "this source does not count");
    }

    #[test]
    fn a_source_accounts_for_what_waits_on_its_disk() {
        let run = run();
        let intake = run.stages[0].start_intake();
        intake.received.add(7);
        intake.passed_on.add(4);
        intake.taken_to.set(107);
        intake.passed_to.set(105);
        let balance = run.balance(&run.stages[0]).unwrap();
        assert_eq!(balance.to_string(), "7 received = 4 passed on + 2 in flight + 1 NOT accounted for");
    }

    #[test]
    fn only_what_stays_out_of_balance_is_told_and_once() {
        let run = run();
        let mut auditor = Auditor::default();
        run.edges[0].sent(1, None);
        assert!(auditor.audit(&run).is_empty(), "it may be on its way");
        run.edges[0].sent(1, None);
        assert!(auditor.audit(&run).is_empty(), "something moves");
        run.edges[0].entered(1);
        assert!(auditor.audit(&run).is_empty() && auditor.audit(&run).is_empty(), "something is on its way");
        run.edges[0].left(1, None);
        assert!(auditor.audit(&run).is_empty(), "it has just arrived");
        let found = auditor.audit(&run);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.as_str(), found[0].1.imbalance()), ("out", 2));
        assert!(auditor.audit(&run).is_empty());
    }
}
