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

mod access;
mod health;
pub mod live;
mod metrics;
mod page;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pipeline_engine::{HttpSettings, RunStats};
use tokio::net::TcpListener;

use crate::commands::Failure;
use access::Access;
use health::Health;
use live::Live;

/// What answers ask.
#[derive(Clone)]
struct Shared {
    pipeline: Arc<str>,
    health: Arc<Health>,
    live: Arc<Live>,
    metrics: Arc<prometheus_client::registry::Registry>,
}

/// Takes the address that the pipeline file names; `None` if it wants none, or if it names none and the
/// usual one is taken.
pub async fn bind(settings: &HttpSettings) -> Result<Option<TcpListener>, Failure> {
    let Some(listen) = settings.listen else { return Ok(None) };
    match TcpListener::bind(listen).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if settings.is_chosen => Err(Failure::failed(format!("can't listen at {listen}: {error}"))),
        Err(error) => {
            tracing::info!(
                "no status page, since {listen} can't be used: {error}. [http] listen names another address"
            );
            Ok(None)
        }
    }
}

/// Answers until the future is dropped.
pub async fn serve(listener: TcpListener, settings: &HttpSettings, pipeline: &str, stats: Arc<RunStats>) {
    match listener.local_addr() {
        Ok(address) => tell(address, settings),
        Err(error) => tracing::warn!(%error, "the address of the status page is unknown"),
    }
    let shared = Shared {
        pipeline: pipeline.into(),
        health: Arc::new(Health::new(stats.clone())),
        live: Arc::new(Live::start(pipeline, stats.clone())),
        metrics: Arc::new(metrics::registry(pipeline, stats)),
    };
    if let Err(error) = axum::serve(listener, router(shared, Access::new(settings))).await {
        tracing::error!(%error, "the status page ended");
    }
    // The pipeline goes on without it.
    std::future::pending().await
}

fn tell(address: SocketAddr, settings: &HttpSettings) {
    let open = !address.ip().is_loopback() && settings.token.is_none();
    if open {
        tracing::warn!("live page, status and metrics at http://{address}, for everybody who can reach it");
    } else {
        tracing::info!("live page, status and metrics at http://{address}");
    }
}

fn router(shared: Shared, access: Access) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/snapshot", get(snapshot))
        .route("/events", get(events))
        .route("/", get(page::index))
        .route("/page/{name}", get(page::file))
        .with_state(shared)
        .layer(middleware::from_fn_with_state(Arc::new(access), access::guard))
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.health.not_ready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> Response {
    let json = shared.health.json(&shared.pipeline, &shared.live.bottleneck());
    ([(header::CONTENT_TYPE, "application/json")], format!("{json:#}\n")).into_response()
}

async fn snapshot(State(shared): State<Shared>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], shared.live.last()).into_response()
}

async fn events(State(shared): State<Shared>) -> Response {
    live::stream(&shared.live)
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shared.metrics) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
