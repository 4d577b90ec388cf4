//! The counters of a run in the form that Prometheus reads. Base units, `_total`, one series a stage or
//! edge: how many there are is decided by the pipeline file and never by what devices send.

use std::fmt;
use std::sync::Arc;

use pipeline_engine::{Balance, EdgeStats, RunStats, StageState, StageStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

/// All metrics of a run.
pub fn registry(pipeline: &str, stats: Arc<RunStats>) -> Registry {
    let mut registry = Registry::with_prefix("pipeline");
    registry.register_collector(Box::new(RunCollector { pipeline: pipeline.to_owned(), stats }));
    registry
}

#[derive(Debug)]
struct RunCollector {
    pipeline: String,
    stats: Arc<RunStats>,
}

impl Collector for RunCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families { run: self, encoder };
        families.build_info()?;
        families.sources()?;
        families.stages()?;
        families.sinks()?;
        families.edges()
    }
}

/// Writes one family of metrics after the other.
struct Families<'a, 'e> {
    run: &'a RunCollector,
    encoder: DescriptorEncoder<'e>,
}

/// What a name is followed by when it is shown.
type Value<T> = fn(&StageStats, &Balance) -> Option<T>;

impl Families<'_, '_> {
    fn build_info(&mut self) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor("build", "What runs", None, MetricType::Info)?;
        family.encode_info(&[("version", env!("CARGO_PKG_VERSION")), ("pipeline", &self.run.pipeline)])
    }

    fn sources(&mut self) -> fmt::Result {
        let of = |stage: &StageStats| stage.kind == "source";
        self.stage_counter(
            "source_received_records",
            "Messages or lines taken in, by this run or kept for it by an earlier one",
            of,
            |stage, _| stage.intake().map(|intake| intake.received.get()),
        )?;
        self.stage_counter(
            "source_passed_on_records",
            "Messages or lines decoded or refused, and sent into the pipeline",
            of,
            |stage, _| stage.intake().map(|intake| intake.passed_on.get()),
        )?;
        self.stage_gauge(
            "source_waiting_records",
            "Messages or lines taken in and not sent into the pipeline yet",
            None,
            of,
            |stage, _| stage.intake().map(|intake| intake.waiting() as f64),
        )
    }

    fn stages(&mut self) -> fmt::Result {
        let all = |_: &StageStats| true;
        self.stage_gauge(
            "component_up",
            "1 while the stage is at work; 0 while it starts, tries again, waits for a person or has failed",
            None,
            all,
            |stage, _| Some(f64::from(u8::from(matches!(stage.state(), StageState::Running | StageState::Ended)))),
        )?;
        self.stage_counter(
            "component_received_rows",
            "Rows given to the stage",
            |stage| stage.kind != "source",
            |_, balance| Some(balance.received),
        )?;
        self.rows_by_port()?;
        self.stage_counter(
            "component_filtered_rows",
            "Rows that a transform has left out",
            |stage| stage.kind == "transform",
            |_, balance| Some(balance.filtered),
        )?;
        self.stage_gauge("component_busy_seconds", "Time spent in the stage's own code", None, all, |stage, _| {
            Some(stage.busy().as_secs_f64())
        })?;
        self.stage_gauge(
            "conservation_imbalance_rows",
            "What was received and is not accounted for: 0 whenever nothing is on its way",
            None,
            all,
            |_, balance| Some(balance.imbalance() as f64),
        )?;
        self.events()
    }

    fn sinks(&mut self) -> fmt::Result {
        let of = |stage: &StageStats| stage.kind == "sink";
        self.stage_counter(
            "sink_stored_rows",
            "Rows committed, without those that were there already",
            of,
            |_, balance| Some(balance.stored),
        )?;
        self.stage_counter("sink_duplicate_rows", "Rows that were stored already", of, |_, balance| {
            Some(balance.duplicate)
        })?;
        self.stage_counter("sink_groups", "Groups committed", of, |stage, _| Some(stage.groups_stored()))?;
        self.stage_counter("sink_retries", "Attempts that failed and were made again", of, |stage, _| {
            Some(stage.retries())
        })?;
        self.stage_gauge(
            "sink_in_flight_rows",
            "Rows given to the sink and not stored yet, in memory and on disk",
            None,
            of,
            |_, balance| Some(balance.in_flight as f64),
        )?;
        self.stage_gauge(
            "sink_commit_lag",
            "Age of the oldest row of the last group when it was committed",
            Some(Unit::Seconds),
            of,
            |stage, _| stage.commit_lag().map(|lag| lag.as_secs_f64()),
        )?;
        self.stage_gauge(
            "sink_last_commit_timestamp",
            "When the last group was committed",
            Some(Unit::Seconds),
            of,
            |stage, _| stage.last_commit_at_us().map(|at| at as f64 / 1e6),
        )
    }

    fn edges(&mut self) -> fmt::Result {
        self.edge_gauge("edge_waiting_rows", "Rows in the queue", |edge| edge.rows_waiting())?;
        self.edge_gauge("edge_capacity_rows", "Rows that the queue holds", |edge| u64::from(edge.rows_max()))?;
        self.edge_gauge("edge_overflow_rows", "Rows that wait on disk for a sink that is slow or away", |edge| {
            edge.overflow_rows()
        })?;
        self.edge_gauge("edge_overflow_bytes", "What these take on disk", |edge| edge.overflow_bytes())?;
        let mut family = self.encoder.encode_descriptor(
            "edge_shed_rows",
            "Rows that an optional sink went without",
            None,
            MetricType::Counter,
        )?;
        for edge in &self.run.stats.edges {
            counter(&mut family, &edge_labels(&self.run.pipeline, edge), edge.shed_rows())?;
        }
        Ok(())
    }

    fn rows_by_port(&mut self) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(
            "component_sent_rows",
            "Rows that left the stage, by port",
            None,
            MetricType::Counter,
        )?;
        for stage in &self.run.stats.stages {
            for (port, rows) in stage.ports() {
                let [pipeline, component, kind] = labels(&self.run.pipeline, stage);
                let port = if port.name().is_empty() { "main" } else { port.name() };
                counter(&mut family, &[pipeline, component, kind, ("port", port)], rows)?;
            }
        }
        Ok(())
    }

    /// What stages count by themselves: reconnects, redelivered messages, lost sessions, pauses of a spool.
    fn events(&mut self) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(
            "component_events",
            "What a stage counts by itself",
            None,
            MetricType::Counter,
        )?;
        for stage in &self.run.stats.stages {
            for (name, count) in stage.named() {
                let [pipeline, component, kind] = labels(&self.run.pipeline, stage);
                counter(&mut family, &[pipeline, component, kind, ("event", name)], count)?;
            }
        }
        Ok(())
    }

    fn stage_counter(&mut self, name: &str, help: &str, of: fn(&StageStats) -> bool, value: Value<u64>) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for stage in self.run.stats.stages.iter().filter(|stage| of(stage)) {
            let balance = self.run.stats.balance(stage).unwrap_or_default();
            if let Some(value) = value(stage, &balance) {
                counter(&mut family, &labels(&self.run.pipeline, stage), value)?;
            }
        }
        Ok(())
    }

    fn stage_gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        of: fn(&StageStats) -> bool,
        value: Value<f64>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for stage in self.run.stats.stages.iter().filter(|stage| of(stage)) {
            let balance = self.run.stats.balance(stage).unwrap_or_default();
            if let Some(value) = value(stage, &balance) {
                gauge(&mut family, &labels(&self.run.pipeline, stage), value)?;
            }
        }
        Ok(())
    }

    fn edge_gauge(&mut self, name: &str, help: &str, value: fn(&EdgeStats) -> u64) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for edge in &self.run.stats.edges {
            gauge(&mut family, &edge_labels(&self.run.pipeline, edge), value(edge) as f64)?;
        }
        Ok(())
    }
}

fn labels<'a>(pipeline: &'a str, stage: &'a StageStats) -> [(&'static str, &'a str); 3] {
    [("pipeline", pipeline), ("component", &stage.name), ("component_type", stage.type_name)]
}

fn edge_labels<'a>(pipeline: &'a str, edge: &'a EdgeStats) -> [(&'static str, &'a str); 4] {
    [("pipeline", pipeline), ("from", &edge.from), ("port", edge.port.name()), ("to", &edge.to)]
}

fn counter<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    value: impl EncodeCounterValue,
) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<[(&str, &str); 0], _, u64>(&value, None)
}

fn gauge<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    family.encode_family(labels)?.encode_gauge(&value)
}
