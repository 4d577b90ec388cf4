//! What a run did, printed at its end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::Balance;
use crate::stage::Port;
use crate::stats::{EdgeStats, RunStats, StageStats};

/// The figures of a run that has ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// From start to end.
    pub took: Duration,
    stats: Arc<RunStats>,
}

impl Report {
    pub(crate) fn new(took: Duration, stats: &Arc<RunStats>) -> Self {
        Self { took, stats: stats.clone() }
    }

    /// Figures by stage, sources first.
    pub fn stages(&self) -> &[Arc<StageStats>] {
        &self.stats.stages
    }

    /// Figures by edge.
    pub fn edges(&self) -> &[Arc<EdgeStats>] {
        &self.stats.edges
    }

    /// The figures of one stage.
    pub fn stage(&self, name: &str) -> Option<&StageStats> {
        self.stages().iter().find(|stage| stage.name == name).map(Arc::as_ref)
    }

    /// What each stage was given and what became of it; a source only if it counts what it takes in.
    pub fn balances(&self) -> Vec<(&StageStats, Balance)> {
        self.stats.balances()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ran {}", humantime::format_duration(Duration::from_millis(self.took.as_millis() as u64)))?;
        for stage in self.stages() {
            write!(f, "  {:<9} {:<20}", stage.kind, stage.name)?;
            if stage.kind != "source" {
                write!(f, " {:>10} in", stage.rows_in())?;
            }
            for (port, rows) in stage.ports() {
                let name = if port == Port::MAIN { "out" } else { port.name() };
                write!(f, " {rows:>10} {name}")?;
            }
            if stage.kind == "sink" {
                let groups = stage.groups_stored();
                let s = if groups == 1 { "" } else { "s" };
                write!(f, " {:>10} stored in {groups} group{s}", stage.rows_stored())?;
            }
            for (name, count) in stage.named() {
                write!(f, ", {count} {}", name.replace('_', " "))?;
            }
            if stage.retries() > 0 {
                write!(f, ", {} retries", stage.retries())?;
            }
            writeln!(f)?;
        }
        writeln!(f, "what was received, and what became of it")?;
        for (stage, balance) in self.balances() {
            writeln!(f, "  {:<9} {:<20} {balance}", stage.kind, stage.name)?;
        }
        for edge in self.edges().iter().filter(|edge| edge.shed_rows() > 0) {
            writeln!(
                f,
                "  {} went without {} rows of {}: it is optional, and was too slow",
                edge.to,
                edge.shed_rows(),
                edge.from
            )?;
        }
        Ok(())
    }
}
