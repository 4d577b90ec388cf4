//! How every stage is, as JSON, and whether the pipeline takes in messages.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pipeline_engine::spool::SpoolMeter;
use pipeline_engine::stage::Port;
use pipeline_engine::time::format_us;
use pipeline_engine::{Backlog, BacklogMeter, Balance, RunStats, StageState, StageStats, now_us};
use serde_json::{Map, Value, json};

use super::live;
use super::live::snapshot::Bottleneck;
use crate::reload::Reloads;

/// How often backlogs are measured, however often somebody asks.
const BACKLOG_INTERVAL: Duration = Duration::from_secs(2);

/// What answers about health are made of.
pub struct Health {
    stats: Arc<RunStats>,
    reloads: Reloads,
    started: Instant,
    backlogs: Mutex<Backlogs>,
}

#[derive(Default)]
struct Backlogs {
    meter: BacklogMeter,
    measured_at: Option<Instant>,
    last: Vec<Backlog>,
}

impl Health {
    pub fn new(stats: Arc<RunStats>, reloads: Reloads) -> Self {
        Self { stats, reloads, started: Instant::now(), backlogs: Mutex::default() }
    }

    /// Why no messages are taken in; `None` if they are.
    pub fn not_ready(&self) -> Option<String> {
        self.stats.stages.iter().find_map(|stage| {
            let why = stage.last_error().map(|error| format!(": {error}")).unwrap_or_default();
            match stage.state() {
                StageState::Failed => Some(format!("{} \"{}\" has failed{why}", stage.kind, stage.name)),
                StageState::Starting if stage.kind == "source" => {
                    Some(format!("source \"{}\" is starting", stage.name))
                }
                _ => None,
            }
        })
    }

    /// The whole run.
    pub fn json(&self, pipeline: &str, bottleneck: &Bottleneck) -> Value {
        let backlogs = self.backlogs();
        let stages: Vec<Value> = self.stats.stages.iter().map(|stage| self.stage(stage, &backlogs)).collect();
        let now = now_us();
        let edges: Vec<Value> = self
            .stats
            .edges
            .iter()
            .map(|edge| {
                json!({
                    "from": edge.from,
                    "port": edge.port.name(),
                    "to": edge.to,
                    "rows_sent": edge.rows_sent(),
                    "rows_waiting": edge.rows_waiting(),
                    "rows_max": edge.rows_max(),
                    "overflow_rows": edge.overflow_rows(),
                    "overflow_bytes": edge.overflow_bytes(),
                    "shed_rows": edge.shed_rows(),
                    "lag_seconds": edge.lag(now).map(|lag| lag.as_secs_f64()),
                })
            })
            .collect();
        json!({
            "pipeline": pipeline,
            "version": env!("CARGO_PKG_VERSION"),
            "status": live::status(&self.stats),
            "bottleneck": bottleneck,
            "running_seconds": self.started.elapsed().as_secs(),
            "reloads": self.reloads.json(),
            "stages": stages,
            "edges": edges,
        })
    }

    fn stage(&self, stage: &StageStats, backlogs: &[Backlog]) -> Value {
        let out: Map<String, Value> = stage
            .ports()
            .map(|(port, rows)| {
                (if port == Port::MAIN { "main".to_owned() } else { port.name().to_owned() }, rows.into())
            })
            .collect();
        let counters: Map<String, Value> =
            stage.named().into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect();
        let backlog = backlogs
            .iter()
            .find(|backlog| backlog.stage == stage.name)
            .map(|backlog| json!({ "rows": backlog.rows, "eta_seconds": backlog.eta().map(|eta| eta.as_secs()) }));
        let (error, error_at) = stage.last_error_and_time().unzip();
        let now = now_us();
        json!({
            "name": stage.name,
            "kind": stage.kind,
            "type": stage.type_name,
            "state": stage.state().word(),
            "since": format_us(stage.state_since_us()),
            "last_error": error,
            "last_error_at": error_at.map(format_us),
            "retries": stage.retries(),
            "rows_in": stage.rows_in(),
            "rows_out": out,
            "rows_stored": stage.rows_stored(),
            "lag_seconds": lag(stage, now).map(|lag| lag.as_secs_f64()),
            "commit_lag_seconds": stage.commit_lag().map(|lag| lag.as_secs_f64()),
            "newest_event_at": stage.newest_event_at_us().map(format_us),
            "partitions": stage.partitions(),
            "spool_bytes": stage.spool().and_then(SpoolMeter::bytes),
            "busy_seconds": stage.busy.elapsed().as_secs_f64(),
            "blocked_seconds": stage.blocked.elapsed().as_secs_f64(),
            "backlog": backlog,
            "balance": self.stats.balance(stage).map(|balance| balance_json(&balance)),
            "counters": counters,
        })
    }

    fn backlogs(&self) -> Vec<Backlog> {
        let mut backlogs = self.backlogs.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if backlogs.measured_at.is_none_or(|at| now - at >= BACKLOG_INTERVAL) {
            backlogs.last = backlogs.meter.measure(&self.stats, now);
            backlogs.measured_at = Some(now);
        }
        backlogs.last.clone()
    }
}

/// Of a sink what it has not stored, of a source what it has not read.
fn lag(stage: &StageStats, now: i64) -> Option<Duration> {
    if stage.kind == "sink" { Some(stage.lag(now)) } else { stage.behind() }
}

fn balance_json(balance: &Balance) -> Value {
    json!({
        "received": balance.received,
        "made": balance.made,
        "passed_on": balance.passed_on,
        "stored": balance.stored,
        "duplicate": balance.duplicate,
        "rejected": balance.rejected,
        "filtered": balance.filtered,
        "gone_without": balance.shed,
        "in_flight": balance.in_flight,
        "imbalance": balance.imbalance(),
    })
}
