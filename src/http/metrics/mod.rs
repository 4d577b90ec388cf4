//! The counters of a run in the form that Prometheus reads. Base units, `_total`, one series a stage or
//! edge: how many there are is decided by the pipeline file and never by what devices send.

mod families;
mod slo;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipeline_engine::spool::SpoolMeter;
use pipeline_engine::{RunStats, StageState, StageStats, now_us};
use pipeline_stages::db::BackupRecord;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::reload::Reloads;
use crate::slo::Meter;
use families::{Families, counter, edge_labels, gauge, histogram, labels};

/// All metrics of a run.
///
/// `data_dir` is where backups are noted, which other processes make.
pub fn registry(pipeline: &str, stats: Arc<RunStats>, slo: Arc<Meter>, reloads: Reloads, data_dir: &Path) -> Registry {
    let mut registry = Registry::with_prefix("pipeline");
    let collector = RunCollector { pipeline: pipeline.to_owned(), stats, slo, reloads, data_dir: data_dir.to_owned() };
    registry.register_collector(Box::new(collector));
    registry
}

struct RunCollector {
    pipeline: String,
    stats: Arc<RunStats>,
    slo: Arc<Meter>,
    reloads: Reloads,
    data_dir: PathBuf,
}

impl Collector for RunCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families { run: self, encoder };
        families.build_info()?;
        families.reloads()?;
        families.backup()?;
        families.sources()?;
        families.stages()?;
        families.sinks()?;
        families.latencies()?;
        families.certificates()?;
        families.devices()?;
        families.objectives()?;
        families.edges()
    }
}

impl fmt::Debug for RunCollector {
    /// As its trait wants; nobody prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunCollector").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

impl Families<'_, '_> {
    /// How often the file was read again; the names are those that Prometheus has for its own file.
    fn reloads(&mut self) -> fmt::Result {
        let RunCollector { pipeline, reloads, .. } = self.run;
        let labels = [("pipeline", pipeline.as_str())];
        let kinds = [("applied", reloads.applied()), ("refused", reloads.refused())];
        let help = "Requests to read the pipeline file again, by what became of them";
        let mut family = self.encoder.encode_descriptor("config_reloads", help, None, MetricType::Counter)?;
        for (outcome, count) in kinds {
            counter(&mut family, &[labels[0], ("outcome", outcome)], count)?;
        }
        let help = "1 unless the last request was refused";
        let mut family =
            self.encoder.encode_descriptor("config_last_reload_successful", help, None, MetricType::Gauge)?;
        gauge(&mut family, &labels, f64::from(u8::from(reloads.last_was_applied())))?;
        let Some(at_us) = reloads.applied_at_us() else { return Ok(()) };
        let name = "config_last_reload_success_timestamp";
        let help = "When a version of the pipeline file last took the place of another";
        let mut family = self.encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
        gauge(&mut family, &labels, at_us as f64 / 1e6)
    }

    /// As of when the last backup is that `pipeline db backup` has made; nothing where there is none.
    fn backup(&mut self) -> fmt::Result {
        let Some(last) = BackupRecord::of(&self.run.data_dir) else { return Ok(()) };
        let labels = [("pipeline", self.run.pipeline.as_str())];
        let name = "backup_last_success_timestamp";
        let help = "As of when the last backup is that was read back and proven";
        let mut family = self.encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
        gauge(&mut family, &labels, last.taken_at_us as f64 / 1e6)?;
        let help = "The size of its dump";
        let mut family =
            self.encoder.encode_descriptor("backup_last_size", help, Some(&Unit::Bytes), MetricType::Gauge)?;
        gauge(&mut family, &labels, last.bytes as f64)
    }

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
        )?;
        self.stage_gauge(
            "source_lag",
            "How far what the source has read is behind the tip of its stream, by the stream's own clock",
            Some(Unit::Seconds),
            of,
            |stage, _| stage.behind().map(|behind| behind.as_secs_f64()),
        )?;
        self.stage_gauge(
            "source_partitions",
            "How many partitions of the source this worker has, where several share them: shards of a stream",
            None,
            of,
            |stage, _| stage.partitions().map(|partitions| partitions as f64),
        )?;
        self.stage_gauge(
            "watermark_timestamp",
            "When the newest row happened that the source has sent, by the devices' clocks",
            Some(Unit::Seconds),
            of,
            |stage, _| stage.newest_event_at_us().map(|at| at as f64 / 1e6),
        )?;
        self.stage_gauge("spool", "What the source's spool takes on disk", Some(Unit::Bytes), of, |stage, _| {
            stage.spool().and_then(SpoolMeter::bytes).map(|bytes| bytes as f64)
        })?;
        self.stage_gauge("spool_max", "What it may take", Some(Unit::Bytes), of, |stage, _| {
            stage.spool().and_then(SpoolMeter::bytes_max).map(|bytes| bytes as f64)
        })?;
        self.stage_gauge(
            "spool_records",
            "Messages in the spool that are not sent into the pipeline yet",
            None,
            of,
            |stage, _| stage.spool().and(stage.intake()).map(|intake| intake.waiting() as f64),
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
            Some(stage.busy.elapsed().as_secs_f64())
        })?;
        self.time_by_activity()?;
        self.stage_gauge(
            "conservation_imbalance_rows",
            "What was received and is not accounted for: 0 whenever nothing is on its way",
            None,
            all,
            |_, balance| Some(balance.imbalance() as f64),
        )?;
        self.events()
    }

    /// Only where a connection is encrypted.
    fn certificates(&mut self) -> fmt::Result {
        let help = "When the first certificate of a chain ends: ours (own), or what the server has shown last (server)";
        let (name, unit) = ("tls_certificate_expiry_timestamp", Unit::Seconds);
        let mut family = self.encoder.encode_descriptor(name, help, Some(&unit), MetricType::Gauge)?;
        for stage in &self.run.stats.stages {
            let Some(certificates) = stage.certificates() else { continue };
            for (whose, end_s) in [("own", certificates.own.get()), ("server", certificates.server.get())] {
                if end_s > 0 {
                    let [pipeline, component, kind] = labels(&self.run.pipeline, stage);
                    gauge(&mut family, &[pipeline, component, kind, ("certificate", whose)], end_s as f64)?;
                }
            }
        }
        Ok(())
    }

    fn devices(&mut self) -> fmt::Result {
        let of = |stage: &StageStats| stage.devices().is_some();
        self.stage_gauge("devices_known", "Devices that the stage follows", None, of, |stage, _| {
            stage.devices().map(|devices| devices.known.get() as f64)
        })?;
        self.stage_gauge("devices_connected", "Of these, those that are not silent", None, of, |stage, _| {
            stage.devices().map(|devices| devices.connected.get() as f64)
        })
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
            "sink_lag",
            "Age of the oldest row that the sink was given and has not stored; 0 if there is none",
            Some(Unit::Seconds),
            of,
            |stage, _| Some(stage.lag(now_us()).as_secs_f64()),
        )?;
        self.deliveries()?;
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

    /// What CloudWatch knows as DeliveryToS3.DataFreshness and .Success, of sinks of every type.
    fn deliveries(&mut self) -> fmt::Result {
        let sinks = || self.run.stats.stages.iter().filter(|stage| stage.kind == "sink");
        let help =
            "Age of the oldest row that is not stored yet, in the sink's hand or waiting for it; 0 if there is none";
        let (name, unit) = ("sink_delivery_freshness", Unit::Seconds);
        let mut family = self.encoder.encode_descriptor(name, help, Some(&unit), MetricType::Gauge)?;
        for stage in sinks() {
            let freshness = self.run.stats.freshness(stage, now_us());
            gauge(&mut family, &labels(&self.run.pipeline, stage), freshness.as_secs_f64())?;
        }
        let help = "Attempts to store a group, by what became of them";
        let mut family = self.encoder.encode_descriptor("sink_deliveries", help, None, MetricType::Counter)?;
        for stage in sinks() {
            for (outcome, count) in [("success", stage.groups_stored()), ("failure", stage.deliveries_failed())] {
                let [pipeline, component, kind] = labels(&self.run.pipeline, stage);
                counter(&mut family, &[pipeline, component, kind, ("outcome", outcome)], count)?;
            }
        }
        Ok(())
    }

    fn edges(&mut self) -> fmt::Result {
        self.edge_gauge("edge_waiting_rows", "Rows in the queue", None, |edge| Some(edge.rows_waiting() as f64))?;
        self.edge_gauge("edge_capacity_rows", "Rows that the queue holds", None, |edge| {
            Some(f64::from(edge.rows_max()))
        })?;
        self.edge_gauge("edge_lag", "Age of the rows that wait; 0 if none do", Some(Unit::Seconds), |edge| {
            edge.lag(now_us()).map(|lag| lag.as_secs_f64())
        })?;
        self.edge_gauge(
            "edge_overflow_rows",
            "Rows that wait on disk for a sink that is slow or away",
            None,
            |edge| Some(edge.overflow_rows() as f64),
        )?;
        self.edge_gauge("edge_overflow_bytes", "What these take on disk", None, |edge| {
            Some(edge.overflow_bytes() as f64)
        })?;
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

    /// From receipt and from the device's own time to the commit, one count a row.
    fn latencies(&mut self) -> fmt::Result {
        let help = "From when a row was received (clock=\"received\") or happened (clock=\"event\") to its commit";
        let unit = Unit::Seconds;
        let mut family =
            self.encoder.encode_descriptor("end_to_end_latency", help, Some(&unit), MetricType::Histogram)?;
        for stage in self.run.stats.stages.iter().filter(|stage| stage.kind == "sink") {
            let [pipeline, component, kind] = labels(&self.run.pipeline, stage);
            let received = [pipeline, component, kind, ("clock", "received")];
            histogram(&mut family, &received, &stage.latency_received.counts())?;
            if stage.time_column().is_some() {
                let event = [pipeline, component, kind, ("clock", "event")];
                histogram(&mut family, &event, &stage.latency_event.counts())?;
            }
        }
        Ok(())
    }

    /// The rest of the time a stage is idle.
    fn time_by_activity(&mut self) -> fmt::Result {
        let help = "Time in the stage's own code (busy), and waiting for those behind it (blocked)";
        let unit = Unit::Seconds;
        let mut family = self.encoder.encode_descriptor("component_time", help, Some(&unit), MetricType::Counter)?;
        for stage in &self.run.stats.stages {
            for (activity, watch) in [("busy", &stage.busy), ("blocked", &stage.blocked)] {
                let [pipeline, component, kind] = labels(&self.run.pipeline, stage);
                let seconds = watch.elapsed().as_secs_f64();
                counter(&mut family, &[pipeline, component, kind, ("activity", activity)], seconds)?;
            }
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
}
