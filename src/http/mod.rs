//! Answers requests about a running pipeline: is it alive, is it well, what are its figures.
//!
//! | path | answers |
//! |---|---|
//! | `/livez` | 200 while the process answers at all |
//! | `/readyz` | 200 while it takes in messages, 503 with the reason otherwise. A sink that is away is no reason: its rows wait on disk, and a restart would help nobody |
//! | `/healthz` | every stage as JSON: state, figures, last error, what it has to catch up |
//! | `/metrics` | the same for Prometheus |

mod health;
mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pipeline_engine::{HttpSettings, RunStats};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;

use crate::commands::Failure;
use health::Health;

/// What answers ask.
#[derive(Clone)]
struct Shared {
    pipeline: Arc<str>,
    health: Arc<Health>,
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
        metrics: Arc::new(metrics::registry(pipeline, stats)),
    };
    if let Err(error) = axum::serve(listener, router(shared, settings.token.clone())).await {
        tracing::error!(%error, "the status page ended");
    }
    // The pipeline goes on without it.
    std::future::pending().await
}

fn tell(address: SocketAddr, settings: &HttpSettings) {
    let open = !address.ip().is_loopback() && settings.token.is_none();
    if open {
        tracing::warn!("status and metrics at http://{address}, for everybody who can reach it");
    } else {
        tracing::info!("status and metrics at http://{address}");
    }
}

fn router(shared: Shared, token: Option<SecretString>) -> Router {
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(shared);
    match token {
        Some(token) => router.layer(middleware::from_fn_with_state(Arc::new(token), only_with_token)),
        None => router,
    }
}

/// Whether it is alive, anybody may know.
async fn only_with_token(State(token): State<Arc<SecretString>>, request: Request, next: Next) -> Response {
    let brought =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if request.uri().path() == "/livez" || brought.is_some_and(|brought| is_same(brought, token.expose_secret())) {
        return next.run(request).await;
    }
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "a token is needed\n").into_response()
}

/// Takes as long for a token that is nearly right as for one that is not.
fn is_same(brought: &[u8], token: &str) -> bool {
    let token = token.as_bytes();
    brought.len() == token.len()
        && brought.iter().zip(token).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.health.not_ready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> Response {
    let json = shared.health.json(&shared.pipeline);
    ([(header::CONTENT_TYPE, "application/json")], format!("{json:#}\n")).into_response()
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
