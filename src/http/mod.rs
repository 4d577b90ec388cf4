//! Answers requests about a running pipeline: is it alive, is it well, what are its figures.
//!
//! | path | answers |
//! |---|---|
//! | `/` | the live page |
//! | `/events` | what it shows, a second at a time, as server-sent events |
//! | `/snapshot` | the last of these seconds, for `pipeline top` |
//! | `/livez` | 200 while the process answers at all |
//! | `/readyz` | 200 while it takes in messages, 503 with the reason otherwise. A sink that is away is no reason: its rows wait on disk, and a restart would help nobody |
//! | `/healthz` | every stage as JSON: state, figures, last error, what it has to catch up |
//! | `/metrics` | the same for Prometheus |
//! | `/slo` | how the objectives of the file are kept, as JSON, for `pipeline slo` |
//! | `/tap` (POST) | rows as they leave a stage, for `pipeline tap` |
//! | `/reload` (POST) | puts the pipeline file as it is now in the place of the one that runs, and says what has changed or why not |
//!
//! One server answers for as long as the process lives, also while one run takes the place of another: connections
//! that are kept open, such as Prometheus's, are answered by the run of the moment.

mod access;
mod health;
pub mod live;
mod metrics;
mod page;
pub mod tap;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use pipeline_engine::{HttpSettings, RunStats};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::commands::Failure;
use crate::reload::{Prepared, Reloads};
use crate::slo::{Meter, Report};
use access::Access;
use health::Health;
use live::Live;

/// What answers are made of while one run lasts.
struct Current {
    pipeline: String,
    stats: Arc<RunStats>,
    slo: Arc<Meter>,
    access: Access,
    health: Health,
    live: Arc<Live>,
    metrics: prometheus_client::registry::Registry,
}

/// What answers ask.
#[derive(Clone)]
struct Shared {
    current: Arc<RwLock<Arc<Current>>>,
    reloads: Reloads,
}

impl Shared {
    fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An address that is ours, and whoever answers there.
pub struct Server {
    /// Until the first run is shown.
    listener: Option<TcpListener>,
    shared: Option<Shared>,
    reloads: Reloads,
    /// Dropping it ends the answers.
    answering: JoinSet<()>,
}

impl Server {
    /// Takes the address that the pipeline file names; none if it wants none, or if it names none and the usual one is
    /// taken.
    ///
    /// # Errors
    /// The address that the file names can't be used.
    pub async fn bind(settings: &HttpSettings, reloads: Reloads) -> Result<Self, Failure> {
        let listener = match settings.listen {
            Some(listen) => bind(listen, settings.is_chosen).await?,
            None => None,
        };
        Ok(Self { listener, shared: None, reloads, answering: JoinSet::new() })
    }

    /// Answers for this run from now on, and no more for the one before.
    pub fn show(&mut self, version: &Prepared) {
        let Prepared { run, name: pipeline, http: settings, data_dir, slo } = version;
        let stats = run.stats();
        let current = Arc::new(Current {
            pipeline: pipeline.clone(),
            stats: stats.clone(),
            slo: slo.clone(),
            access: Access::new(settings),
            health: Health::new(stats.clone(), self.reloads.clone()),
            live: Arc::new(Live::start(pipeline, stats.clone())),
            metrics: metrics::registry(pipeline, stats.clone(), slo.clone(), self.reloads.clone(), data_dir),
        });
        if let Some(shared) = &self.shared {
            let before =
                std::mem::replace(&mut *shared.current.write().unwrap_or_else(PoisonError::into_inner), current);
            before.live.end();
            return;
        }
        let Some(listener) = self.listener.take() else { return };
        match listener.local_addr() {
            Ok(address) => tell(address, settings),
            Err(error) => tracing::warn!(%error, "the address of the status page is unknown"),
        }
        let shared = Shared { current: Arc::new(RwLock::new(current)), reloads: self.reloads.clone() };
        self.shared = Some(shared.clone());
        // A task of its own, so that it answers whatever else is being done. The pipeline goes on without it.
        self.answering.spawn(async move {
            if let Err(error) = axum::serve(listener, router(shared)).await {
                tracing::error!(%error, "the status page ended");
            }
        });
    }
}

async fn bind(listen: SocketAddr, is_chosen: bool) -> Result<Option<TcpListener>, Failure> {
    match TcpListener::bind(listen).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if is_chosen => {
            let hint = match error.kind() {
                ErrorKind::AddrInUse => {
                    " Does the pipeline run already? [http] listen names another address, \"off\" none."
                }
                _ => " [http] listen names another address of this machine, \"off\" none.",
            };
            Err(Failure::failed(format!("can't listen at {listen}: {error}.{hint}")))
        }
        Err(error) => {
            tracing::info!(
                "no status page, since {listen} can't be used: {error}. [http] listen names another address"
            );
            Ok(None)
        }
    }
}

fn tell(address: SocketAddr, settings: &HttpSettings) {
    let open = !address.ip().is_loopback() && settings.token.is_none();
    if open {
        tracing::warn!("live page, status and metrics at http://{address}, for everybody who can reach it");
    } else {
        tracing::info!("live page, status and metrics at http://{address}");
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/slo", get(slo))
        .route("/snapshot", get(snapshot))
        .route("/events", get(events))
        .route("/reload", post(reload))
        .route("/tap", post(tapped))
        .route("/", get(page::index))
        .route("/page/{name}", get(page::file))
        .with_state(shared.clone())
        .layer(middleware::from_fn_with_state(shared.clone(), for_this_pipeline))
        .layer(middleware::from_fn_with_state(shared, guard))
}

async fn guard(State(shared): State<Shared>, request: axum::extract::Request, next: middleware::Next) -> Response {
    access::guard(&shared.current().access, request, next).await
}

/// Whom a request is for, where it says so: two pipelines of one machine can have the same address in their files, and
/// then only one of them has it.
pub const PIPELINE_HEADER: &str = "pipeline-name";

async fn for_this_pipeline(
    State(shared): State<Shared>,
    request: axum::extract::Request,
    next: middleware::Next,
) -> Response {
    let here = shared.current();
    let meant = request.headers().get(PIPELINE_HEADER).map(|name| String::from_utf8_lossy(name.as_bytes()));
    if let Some(meant) = meant.filter(|meant| *meant != here.pipeline) {
        let text = format!(
            "pipeline \"{}\" runs here, and not \"{meant}\": [http] of their files needs an address for each\n",
            here.pipeline
        );
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    next.run(request).await
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.current().health.not_ready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> Response {
    let current = shared.current();
    let json = current.health.json(&current.pipeline, &current.live.bottleneck());
    answer(StatusCode::OK, &json)
}

async fn slo(State(shared): State<Shared>) -> Response {
    let current = shared.current();
    answer(StatusCode::OK, &json!(Report::of(&current.pipeline, &current.slo)))
}

fn answer(status: StatusCode, json: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{json:#}\n")).into_response()
}

async fn snapshot(State(shared): State<Shared>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], shared.current().live.last()).into_response()
}

async fn events(State(shared): State<Shared>) -> Response {
    live::stream(&shared.current().live)
}

/// What an order carries: a page of somebody else can make a browser post here, but not with a header of its own.
pub const ORDER_HEADER: &str = "pipeline-request";

fn without_header(headers: &HeaderMap) -> Option<Response> {
    let text = || format!("this needs the header {ORDER_HEADER}\n");
    (!headers.contains_key(ORDER_HEADER)).then(|| (StatusCode::FORBIDDEN, text()).into_response())
}

async fn tapped(State(shared): State<Shared>, headers: HeaderMap, request: Bytes) -> Response {
    without_header(&headers).unwrap_or_else(|| tap::answer(&shared.current().stats, &request))
}

async fn reload(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    if let Some(refusal) = without_header(&headers) {
        return refusal;
    }
    match shared.reloads.request().await {
        Ok(changes) => answer(StatusCode::OK, &json!({ "reloaded": true, "changes": changes })),
        Err(why) => answer(StatusCode::CONFLICT, &json!({ "reloaded": false, "error": why })),
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shared.current().metrics) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
