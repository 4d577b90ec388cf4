//! Another version of the pipeline file takes the place of the one that runs, without a new process.
//!
//! Asked for by SIGHUP or by `pipeline reload`, which posts to `/reload`. The file is read and checked, its transforms are
//! opened and its address is taken while the old version runs on: a file with a mistake changes nothing, and whoever asked is
//! told why. Only then the old version stops as for SIGTERM, storing what is on its way or keeping it on disk, and the
//! new one goes on from there, as the next process would: windows, baselines and positions included. So nothing is lost and nothing
//! stored twice, and a stage whose table in the file has not changed does not notice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use pipeline_engine::{Plan, Run, now_us};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::commands::{Failure, load_for};
use crate::http::Server;
use crate::slo::{Meter, Outlook};

/// What has changed, in words; or why nothing has.
pub type Outcome = Result<Vec<String>, String>;

type Request = oneshot::Sender<Outcome>;

/// How requests come to the run, and what has become of them: for metrics and health. A copy is another handle.
#[derive(Debug, Clone)]
pub struct Reloads {
    /// `None` where there is no file to read again.
    requests: Option<mpsc::Sender<Request>>,
    record: Arc<Record>,
}

#[derive(Debug, Default)]
struct Record {
    applied: AtomicU64,
    refused: AtomicU64,
    applied_at_us: AtomicI64,
    last_refusal: Mutex<Option<String>>,
}

impl Reloads {
    /// For a run that has no file.
    pub fn none() -> Self {
        Self { requests: None, record: Arc::default() }
    }

    /// Asks for a reload, and waits until it is done or refused.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub async fn request(&self) -> Outcome {
        let Some(requests) = &self.requests else { return Err("this run was made of no file".to_owned()) };
        let (answer, answered) = oneshot::channel();
        if requests.try_send(answer).is_err() {
            return Err("another reload is under way".to_owned());
        }
        answered.await.unwrap_or_else(|_| Err("the pipeline has ended".to_owned()))
    }

    pub fn applied(&self) -> u64 {
        self.record.applied.load(Relaxed)
    }

    pub fn refused(&self) -> u64 {
        self.record.refused.load(Relaxed)
    }

    /// Whether the last request was granted; true if there was none.
    pub fn last_was_applied(&self) -> bool {
        self.last_refusal().is_none()
    }

    /// When a version of the file last took the place of another, in microseconds since 1970.
    pub fn applied_at_us(&self) -> Option<i64> {
        Some(self.record.applied_at_us.load(Relaxed)).filter(|at| *at > 0)
    }

    fn last_refusal(&self) -> Option<String> {
        self.record.last_refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn json(&self) -> Value {
        json!({ "applied": self.applied(), "refused": self.refused(), "last_refusal": self.last_refusal() })
    }

    fn note(&self, refusal: Option<String>) {
        match &refusal {
            Some(_) => self.record.refused.fetch_add(1, Relaxed),
            None => {
                self.record.applied_at_us.store(now_us(), Relaxed);
                self.record.applied.fetch_add(1, Relaxed)
            }
        };
        *self.record.last_refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }
}

/// Reads the file again when asked to.
pub struct Reloader {
    file: PathBuf,
    /// The version that runs, as it is written.
    text: String,
    name: String,
    data_dir: PathBuf,
    not_resumable: Option<String>,
    listen: Option<SocketAddr>,
    requests: mpsc::Receiver<Request>,
    pub reloads: Reloads,
}

/// A version of the file that is fit to run.
pub struct Next {
    pub version: Prepared,
    /// Where it answers, if that is another address.
    pub server: Option<Server>,
    pub granted: Granted,
}

/// A request that is about to be fulfilled.
pub struct Granted {
    changes: Vec<String>,
    request: Request,
}

/// A run that is ready to start, and what its file says of it.
pub struct Prepared {
    pub run: Run,
    pub name: String,
    pub http: pipeline_engine::HttpSettings,
    pub data_dir: PathBuf,
    /// Holds it against what its file asks for.
    pub slo: Arc<Meter>,
}

/// Says what in a file is allowed but probably not meant.
pub fn warn_of(plan: &Plan) {
    for warning in plan.warnings() {
        tracing::warn!("{warning}");
    }
}

impl Prepared {
    pub fn of(plan: Plan) -> Self {
        let (name, http, outlook) = (plan.name().to_owned(), plan.http().clone(), Outlook::of(&plan));
        let data_dir = plan.data_dir().to_owned();
        let run = Run::new(plan);
        let slo = Arc::new(outlook.meter(&run.stats()));
        Self { run, name, http, data_dir, slo }
    }
}

impl Reloader {
    /// For the plan that was loaded from this file.
    pub fn new(file: PathBuf, plan: &Plan) -> Self {
        // One at a time: a second request would only read the same file again.
        let (sender, requests) = mpsc::channel(1);
        Self {
            text: std::fs::read_to_string(&file).unwrap_or_default(),
            file,
            name: plan.name().to_owned(),
            data_dir: plan.data_dir().to_owned(),
            not_resumable: plan.not_resumable().map(str::to_owned),
            listen: plan.http().listen,
            requests,
            reloads: Reloads { requests: Some(sender), record: Arc::default() },
        }
    }

    /// Waits for a request that can be granted; refuses the others.
    pub async fn next(&mut self) -> Next {
        loop {
            let Some(request) = self.requests.recv().await else { return std::future::pending().await };
            match self.read().await {
                Ok((version, server, changes)) => {
                    return Next { version, server, granted: Granted { changes, request } };
                }
                Err(why) => {
                    tracing::error!("the pipeline file is not reloaded, and nothing has changed: {why}");
                    self.reloads.note(Some(why.clone()));
                    request.send(Err(why)).ok();
                }
            }
        }
    }

    async fn read(&mut self) -> Result<(Prepared, Option<Server>, Vec<String>), String> {
        let words = |failure: Failure| match failure {
            Failure::Wrong(text) | Failure::Failed(text) => text,
            Failure::Told(_) => "it can't be used".to_owned(),
        };
        let text = std::fs::read_to_string(&self.file).map_err(|error| format!("can't read it: {error}"))?;
        let plan = load_for(&self.file, false)?;
        if plan.name() != self.name || plan.data_dir() != self.data_dir {
            let why = "it has another `name` or `data_dir`, and so nothing to go on from: restart the pipeline";
            return Err(why.to_owned());
        }
        if let Some(source) = self.not_resumable.as_deref().or(plan.not_resumable()) {
            return Err(format!(
                "source \"{source}\" begins anew in each run, so rows would be repeated: restart the pipeline"
            ));
        }
        warn_of(&plan);
        let mut version = Prepared::of(plan);
        version.run.prepare().await.map_err(|error| error.to_string())?;
        let moves = version.http.listen != self.listen;
        let server =
            if moves { Some(Server::bind(&version.http, self.reloads.clone()).await.map_err(words)?) } else { None };
        self.listen = version.http.listen;
        let changes = changes(&self.text, &text);
        self.text = text;
        Ok((version, server, changes))
    }

    /// Tells whoever asked that the new version runs.
    pub fn tell(&self, Granted { changes, request }: Granted) {
        self.reloads.note(None);
        tracing::info!("the pipeline file is reloaded: {}", changes.join(", "));
        // Whoever asked may have gone.
        request.send(Ok(changes)).ok();
    }
}

/// What is different between two versions of a file, stage by stage.
fn changes(before: &str, after: &str) -> Vec<String> {
    let parts = |text: &str| -> BTreeMap<String, toml::Value> {
        let file: toml::Table = text.parse().unwrap_or_default();
        let mut parts = BTreeMap::new();
        for (kind, value) in file {
            match (kind.as_str(), value) {
                ("sources" | "transforms" | "sinks" | "schema", toml::Value::Table(tables)) => {
                    let singular = kind.trim_end_matches('s');
                    parts.extend(tables.into_iter().map(|(name, table)| (format!("{singular} \"{name}\""), table)));
                }
                (_, value) => drop(parts.insert(format!("[{kind}]"), value)),
            }
        }
        parts
    };
    let (before, after) = (parts(before), parts(after));
    let added = after.keys().filter(|name| !before.contains_key(*name)).map(|name| format!("{name} is new"));
    let removed = before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("{name} is gone"));
    let is_other = |(name, table): &(&String, &toml::Value)| before.get(*name).is_some_and(|before| before != *table);
    let changed = after.iter().filter(is_other).map(|(name, _)| format!("{name} has changed"));
    let changes: Vec<String> = added.chain(removed).chain(changed).collect();
    if changes.is_empty() { vec!["nothing in the file has changed".to_owned()] } else { changes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_stage_by_stage() {
        let before = "[pipeline]\nname = \"p\"\n[sources.in]\ntype = \"mqtt\"\n[sinks.a]\ntype = \"console\"\n[sinks.b]\ntype = \"console\"\n";
        let after = "# a note\n[pipeline]\nname = \"p\"\nqueue_rows = 5\n[sources.in]\ntype = \"mqtt\"\n[sinks.b]\ntype = \"discard\"\n[sinks.c]\ntype = \"console\"\n";
        let told = ["sink \"c\" is new", "sink \"a\" is gone", "[pipeline] has changed", "sink \"b\" has changed"];
        assert_eq!(changes(before, after), told);
        assert_eq!(changes(before, &format!("{before}# more\n")), ["nothing in the file has changed"]);
    }
}
