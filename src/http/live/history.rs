//! The last minutes as lines, for a page that has just been opened.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::snapshot::Snapshot;

/// Five minutes, one point a second.
pub const POINTS_MAX: usize = 300;

/// One second of all lines.
struct Point {
    at_us: i64,
    /// Rows a second from all sources.
    read: f64,
    /// One entry a sink, in the order of the plan: rows a second, and the latencies of half and of 99 of 100 rows.
    sinks: Vec<(f64, Option<f64>, Option<f64>)>,
}

/// See the module.
#[derive(Default)]
pub struct History {
    points: VecDeque<Point>,
    sinks: Vec<String>,
}

impl History {
    pub fn push(&mut self, snapshot: &Snapshot) {
        let of_kind = |kind| snapshot.stages.iter().filter(move |stage| stage.kind == kind);
        if self.sinks.is_empty() {
            self.sinks = of_kind("sink").map(|sink| sink.name.clone()).collect();
        }
        self.points.push_back(Point {
            at_us: snapshot.at_us,
            read: of_kind("source").map(|source| source.rows_per_second).sum(),
            sinks: of_kind("sink")
                .map(|sink| {
                    let latency = sink.latency;
                    (sink.stored_per_second, latency.map(|latency| latency.p50), latency.map(|latency| latency.p99))
                })
                .collect(),
        });
        if self.points.len() > POINTS_MAX {
            self.points.pop_front();
        }
    }

    /// Each line as an array, the oldest first; no latency where no row was stored.
    pub fn json(&self) -> Value {
        let line = |value: &dyn Fn(&Point) -> Value| -> Vec<Value> { self.points.iter().map(value).collect() };
        let round = |value: f64| json!((value * 1e4).round() / 1e4);
        let sinks: Vec<Value> = self
            .sinks
            .iter()
            .enumerate()
            .map(|(index, name)| {
                json!({
                    "name": name,
                    "stored": line(&|point| round(point.sinks[index].0)),
                    "p50": line(&|point| point.sinks[index].1.map_or(Value::Null, round)),
                    "p99": line(&|point| point.sinks[index].2.map_or(Value::Null, round)),
                })
            })
            .collect();
        json!({
            "points_max": POINTS_MAX,
            "at_us": line(&|point| point.at_us.into()),
            "read": line(&|point| round(point.read)),
            "sinks": sinks,
        })
    }
}
