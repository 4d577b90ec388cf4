//! Rows as they leave a stage, for `pipeline tap`: chosen by a condition, so many a second, as JSON lines.
//!
//! The pipeline does not notice: batches are shared with it and not copied, and what comes faster than it is looked at passes by.
//! Rows are put into words here only as many as are sent.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use pipeline_engine::dead_letter::json_lines;
use pipeline_engine::stage::{Batch, BuildContext, Emitter, Port, Transform, TransformConfig};
use pipeline_engine::suggest::suggest;
use pipeline_engine::{RunStats, StageStats};
use pipeline_stages::transforms::filter::FilterConfig;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// `STAGE`, `STAGE.PORT`, or `STAGE->STAGE`.
    pub edge: String,
    /// Which rows, as behind WHERE in a rule; all where there is none.
    pub condition: Option<String>,
    /// At most.
    pub rows_per_second: u32,
}

/// Answers with rows until whoever asked goes, or the run ends.
pub fn answer(stats: &RunStats, request: &[u8]) -> Response {
    let refused = |status, text: String| (status, text + "\n").into_response();
    let request: Request = match serde_json::from_slice(request) {
        Ok(request) => request,
        Err(error) => return refused(StatusCode::BAD_REQUEST, format!("the request can't be read: {error}")),
    };
    let (stage, port) = match find(stats, &request.edge) {
        Ok(found) => found,
        Err(why) => return refused(StatusCode::NOT_FOUND, why),
    };
    let Some(batches) = stage.tap(port).and_then(|tap| tap.watch()) else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, format!("too many look at \"{}\" already", request.edge));
    };
    let view = View {
        batches,
        condition: request.condition,
        chosen: None,
        budget: Budget::new(request.rows_per_second),
        left_out: 0,
        has_ended: false,
    };
    let lines = stream::unfold(view, |mut view| async move { Some((view.next().await?, view)) });
    let lines = futures::StreamExt::map(lines, Ok::<_, Infallible>);
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// The port that an edge begins at.
fn find(stats: &RunStats, edge: &str) -> Result<(Arc<StageStats>, Port), String> {
    let stage_of = |name: &str| stats.stages.iter().find(|stage| stage.name == name).cloned();
    let unknown = |name: &str| {
        let names = stats.stages.iter().map(|stage| stage.name.as_str());
        format!("there is no stage \"{name}\". {}", suggest(name, names, "Stages", "There are none."))
    };
    if let Some((from, to)) = edge.split_once("->").map(|(from, to)| (from.trim(), to.trim())) {
        let (from, port) = from.split_once('.').map_or((from, None), |(stage, port)| (stage, Some(port)));
        let fits = |wanted: &Option<&str>, port: Port| wanted.is_none_or(|wanted| wanted == port.name());
        let found = stats.edges.iter().find(|edge| edge.from == from && edge.to == to && fits(&port, edge.port));
        let stage = stage_of(from).ok_or_else(|| unknown(from))?;
        return match found {
            Some(edge) => Ok((stage, edge.port)),
            None => Err(format!("\"{to}\" does not read \"{from}\"")),
        };
    }
    let (name, port) = edge.split_once('.').unwrap_or((edge, ""));
    let stage = stage_of(name).ok_or_else(|| unknown(name))?;
    let ports: Vec<Port> = stage.ports().map(|(port, _)| port).collect();
    match ports.iter().find(|found| found.name() == port) {
        Some(port) => Ok((stage, *port)),
        None => {
            let named = ports.iter().map(|port| port.name()).filter(|name| !name.is_empty());
            let none = "No rows leave it but by its sinks.";
            Err(format!("\"{name}\" has no port \"{port}\". {}", suggest(port, named, "Ports", none)))
        }
    }
}

struct View {
    batches: mpsc::Receiver<RecordBatch>,
    condition: Option<String>,
    /// Made of the condition once the columns are known.
    chosen: Option<Box<dyn Transform>>,
    budget: Budget,
    /// Rows that fit and were more than the budget.
    left_out: usize,
    has_ended: bool,
}

impl View {
    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.has_ended {
                return None;
            }
            let rows = self.batches.recv().await?;
            let rows = match self.choose(rows) {
                Ok(rows) => rows,
                Err(why) => {
                    self.has_ended = true;
                    return Some(format!("{}\n", serde_json::json!({ "error": why })).into());
                }
            };
            let shown = self.budget.take(rows.num_rows(), Instant::now());
            self.left_out += rows.num_rows() - shown;
            if shown == 0 {
                continue;
            }
            let Ok(lines) = json_lines(&rows.slice(0, shown)) else { continue };
            let mut text = Vec::with_capacity(lines.len() + shown * 16);
            for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                text.extend_from_slice(b"{\"row\":");
                text.extend_from_slice(line);
                text.extend_from_slice(b"}\n");
            }
            let left_out = std::mem::take(&mut self.left_out);
            if left_out > 0 {
                text.extend_from_slice(format!("{{\"left_out\":{left_out}}}\n").as_bytes());
            }
            return Some(text.into());
        }
    }

    fn choose(&mut self, rows: RecordBatch) -> Result<RecordBatch, String> {
        let Some(condition) = &self.condition else { return Ok(rows) };
        if self.chosen.is_none() {
            let config = FilterConfig { keep: condition.clone() };
            let built = config.build(&rows.schema(), &BuildContext::detached("tap", Default::default()));
            let built = built.map_err(|error| match &error.hint {
                Some(hint) => format!("{error}. {hint}"),
                None => error.to_string(),
            })?;
            self.chosen = Some(built.transform);
        }
        let Some(chosen) = &mut self.chosen else { return Ok(rows) };
        let (mut out, schema) = (Emitter::default(), rows.schema());
        chosen.apply(Batch::detached(rows), &mut out).map_err(|error| error.chain())?;
        let first = out.take().into_iter().next().map(|(_, batch)| batch.rows);
        Ok(first.unwrap_or_else(|| RecordBatch::new_empty(schema)))
    }
}

/// So many rows in any one second.
struct Budget {
    rows_per_second: usize,
    second: Option<Instant>,
    taken: usize,
}

impl Budget {
    fn new(rows_per_second: u32) -> Self {
        Self { rows_per_second: rows_per_second as usize, second: None, taken: 0 }
    }

    fn take(&mut self, rows: usize, now: Instant) -> usize {
        if self.second.is_none_or(|began| now - began >= Duration::from_secs(1)) {
            (self.second, self.taken) = (Some(now), 0);
        }
        let taken = rows.min(self.rows_per_second - self.taken);
        self.taken += taken;
        taken
    }
}
