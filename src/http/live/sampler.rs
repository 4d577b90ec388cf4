//! Turns counters into what happened in the last second.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipeline_engine::spool::SpoolMeter;
use pipeline_engine::stage::Port;
use pipeline_engine::{
    Backlog, BacklogMeter, EdgeStats, Latencies, LatencyCounts, RunStats, StageState, StageStats, now_us,
};

use super::bottleneck;
use super::snapshot::{BacklogView, EdgeView, ErrorView, LatencyView, Snapshot, SpoolView, StageView};

/// Quantiles are of the rows of so many looks: a lake that rolls its files every few seconds has some then.
const LATENCY_LOOKS: usize = 10;
/// Backlogs are measured over so many looks, so that their pace is no moment's.
const BACKLOG_LOOKS: u32 = 2;

/// Looks at the counters of a run once a second, and remembers the last looks.
pub struct Sampler {
    pipeline: String,
    stats: Arc<RunStats>,
    started: Instant,
    last: Instant,
    stages: Vec<StageLook>,
    edges: Vec<u64>,
    backlogs: Vec<Backlog>,
    meter: BacklogMeter,
    looks: u32,
}

/// What was counted at the last look.
#[derive(Default)]
struct StageLook {
    rows: u64,
    stored: u64,
    busy: Duration,
    blocked: Duration,
    received: VecDeque<LatencyCounts>,
    event: VecDeque<LatencyCounts>,
}

impl Sampler {
    pub fn new(pipeline: &str, stats: Arc<RunStats>) -> Self {
        let now = Instant::now();
        let mut sampler = Self {
            pipeline: pipeline.to_owned(),
            started: now,
            last: now,
            stages: stats.stages.iter().map(|_| StageLook::default()).collect(),
            edges: vec![0; stats.edges.len()],
            stats,
            backlogs: Vec::new(),
            meter: BacklogMeter::default(),
            looks: 0,
        };
        sampler.look();
        sampler
    }

    /// What happened since the last look. Without samples of rows, which are somebody else's.
    pub fn look(&mut self) -> Snapshot {
        let (now, at_us) = (Instant::now(), now_us());
        let seconds = (now - self.last).as_secs_f64().max(0.001);
        self.last = now;
        if self.looks.is_multiple_of(BACKLOG_LOOKS) {
            self.backlogs = self.meter.measure(&self.stats, now);
        }
        self.looks = self.looks.wrapping_add(1);
        let looks = self.stats.stages.iter().zip(&mut self.stages);
        let stages: Vec<StageView> =
            looks.map(|(stage, look)| stage_view(stage, look, &self.backlogs, seconds, at_us)).collect();
        let looks = self.stats.edges.iter().zip(&mut self.edges);
        let edges: Vec<EdgeView> = looks.map(|(edge, sent)| edge_view(edge, sent, seconds, at_us)).collect();
        Snapshot {
            pipeline: self.pipeline.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            status: status(&self.stats).to_owned(),
            at_us,
            running_seconds: self.started.elapsed().as_secs_f64(),
            bottleneck: bottleneck::find(&stages, &edges),
            stages,
            edges,
            rejects: Vec::new(),
            anomalies: Vec::new(),
            devices: None,
        }
    }
}

/// The worst of all stages, in one word.
pub fn status(stats: &RunStats) -> &'static str {
    let is = |state| stats.stages.iter().any(|stage| stage.state() == state);
    if is(StageState::Failed) {
        "failed"
    } else if is(StageState::Paused) || is(StageState::Retrying) {
        "degraded"
    } else if is(StageState::Starting) {
        "starting"
    } else {
        "ok"
    }
}

fn stage_view(stage: &StageStats, look: &mut StageLook, backlogs: &[Backlog], seconds: f64, at_us: i64) -> StageView {
    let is_sink = stage.kind == "sink";
    let rows = if stage.kind == "source" { stage.rows_out(Port::MAIN) } else { stage.rows_in() };
    let stored = stage.rows_stored();
    let (busy, blocked) = (stage.busy.elapsed(), stage.blocked.elapsed());
    let share = |now: Duration, before: Duration| (now.saturating_sub(before).as_secs_f64() / seconds).min(1.0);
    let (error, backlog) = (stage.last_error_and_time(), backlogs.iter().find(|backlog| backlog.stage == stage.name));
    let view = StageView {
        name: stage.name.clone(),
        kind: stage.kind.to_owned(),
        type_name: stage.type_name.to_owned(),
        state: stage.state().word().to_owned(),
        since_us: stage.state_since_us(),
        last_error: error.map(|(text, at_us)| ErrorView { text, at_us }),
        rows_per_second: (rows - look.rows) as f64 / seconds,
        rows,
        rejected: stage.rows_out(Port::REJECTED),
        stored_per_second: (stored - look.stored) as f64 / seconds,
        stored,
        busy: share(busy, look.busy),
        blocked: share(blocked, look.blocked),
        retries: stage.retries(),
        lag_seconds: is_sink.then(|| stage.lag(at_us).as_secs_f64()),
        latency: latency(&stage.latency_received, &mut look.received),
        event_latency: latency(&stage.latency_event, &mut look.event),
        backlog: backlog
            .map(|backlog| BacklogView { rows: backlog.rows, eta_seconds: backlog.eta().map(|eta| eta.as_secs()) }),
        newest_event_at_us: stage.newest_event_at_us(),
        spool: stage.spool().and_then(|spool| spool_view(stage, spool)),
    };
    (look.rows, look.stored, look.busy, look.blocked) = (rows, stored, busy, blocked);
    view
}

fn spool_view(stage: &StageStats, spool: &SpoolMeter) -> Option<SpoolView> {
    Some(SpoolView {
        bytes: spool.bytes()?,
        bytes_max: spool.bytes_max()?,
        records: stage.intake().map_or(0, |intake| intake.waiting()),
    })
}

fn latency(latencies: &Latencies, looks: &mut VecDeque<LatencyCounts>) -> Option<LatencyView> {
    let now = latencies.counts();
    let since = looks.front().map_or(now, |earlier| now.since(earlier));
    looks.push_back(now);
    if looks.len() > LATENCY_LOOKS {
        looks.pop_front();
    }
    Some(LatencyView { p50: since.quantile(0.5)?, p99: since.quantile(0.99)? })
}

fn edge_view(edge: &EdgeStats, sent_before: &mut u64, seconds: f64, at_us: i64) -> EdgeView {
    let sent = edge.rows_sent();
    let rows_per_second = (sent - *sent_before) as f64 / seconds;
    *sent_before = sent;
    EdgeView {
        from: edge.from.clone(),
        port: edge.port.name().to_owned(),
        to: edge.to.clone(),
        rows_per_second,
        waiting: edge.rows_waiting(),
        waiting_max: edge.rows_max(),
        on_disk: edge.overflow_rows(),
        on_disk_bytes: edge.overflow_bytes(),
        shed: edge.shed_rows(),
        lag_seconds: edge.lag(at_us).map(|lag| lag.as_secs_f64()),
    }
}
