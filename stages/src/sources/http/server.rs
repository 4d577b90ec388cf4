//! Requests and their answers.

use std::future::IntoFuture;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pipeline_engine::now_us;
use pipeline_engine::stage::StageError;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::body::{self, Bounds, Incoming};
use super::firehose;
use super::intake::Intake;
use super::listener::{Bounded, Guest, Places};
use super::memory::Memory;
use super::post::{Head, Reading};
use super::refusal::Refusal;
use crate::decode::Format;

/// How long posts that are being answered may take when the source stops.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);
/// How we are called in every answer; `pipeline doctor` knows us by it.
pub(super) const SERVER: &str = "pipeline";

/// Where requests find the server, as long as it is there.
#[derive(Clone)]
struct Desk {
    server: Weak<Server>,
    ended: CancellationToken,
}

/// What all requests share.
pub(super) struct Server {
    stage: String,
    access: Access,
    bounds: Bounds,
    memory: Memory,
    reading: Reading,
    intake: Intake,
}

impl Server {
    pub(super) fn new(stage: &str, access: Access, bounds: Bounds, format: Format, intake: Intake) -> Self {
        let reading = Reading { format, payload_bytes_max: bounds.payload_bytes_max };
        Self { stage: stage.to_owned(), access, bounds, memory: Memory::new(bounds), reading, intake }
    }

    /// Answers until it is told to stop and those who have posted have their answers. Then the spool is closed.
    ///
    /// # Errors
    /// Nothing can be accepted any more.
    pub(super) async fn run(self, listener: TcpListener, stop: CancellationToken) -> Result<(), StageError> {
        let server = Arc::new(self);
        // A hard stop drops this future, and not the connections, which must not hold the spool then.
        let ended = CancellationToken::new();
        let _ends_with_us = ended.clone().drop_guard();
        let desk = Desk { server: Arc::downgrade(&server), ended: ended.clone() };
        let router = Router::new().fallback(answer).with_state(desk).into_make_service_with_connect_info::<Guest>();
        let stopped = stop.clone();
        let serving = axum::serve(Bounded::new(listener, Places::default()), router)
            .with_graceful_shutdown(async move { stopped.cancelled().await })
            .into_future();
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(GOODBYE_TIMEOUT).await;
        };
        let served = tokio::select! {
            served = serving => served,
            () = too_late => Ok(()),
        };
        // Whoever still waits, for a full disk say, must not hold up the end.
        ended.cancel();
        let closed = server.intake.close().await;
        served.map_err(|error| StageError::permanent("no more posts can be accepted").because(error))?;
        if let Err(error) = closed {
            tracing::warn!(stage = server.stage, "{}; what was not answered comes again", error.chain());
        }
        Ok(())
    }

    /// Takes a post in. Gives the number of its messages.
    async fn take(&self, guest: &Guest, head: Parts, body: &mut Incoming) -> Result<usize, Refusal> {
        self.access.admit(&head.headers)?;
        guest.admit()?;
        if head.method != Method::POST {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "messages are posted"));
        }
        let head = Head::of(head.uri.path(), head.headers)?;
        // Before the body: a client that asks first (`Expect: 100-continue`) is spared the sending.
        self.intake.check()?;
        let body = body::read(head.headers(), body, self.bounds, &self.memory).await?;
        let post = self.reading.read(head, body, &self.memory).await?;
        let count = post.len();
        self.intake.take(post).await?;
        Ok(count)
    }

    /// The same, counted. What is left of the body of a post that was refused is read, within bounds: whoever is sending it
    /// would otherwise find the connection broken, and no answer.
    async fn settle(&self, guest: &Guest, request: Request) -> Result<usize, Refusal> {
        let (head, body) = request.into_parts();
        let mut body = Incoming::new(&head.headers, body);
        let outcome = self.take(guest, head, &mut body).await;
        if outcome.is_err() {
            body.drain().await;
        }
        let counters = &self.intake.counters;
        let counter = match &outcome {
            Ok(_) => &counters.posts,
            Err(refusal) => {
                let (stage, status, why) = (&self.stage, refusal.status.as_u16(), &refusal.message);
                tracing::debug!(stage, status, "a post was not taken: {why}");
                match refusal.status {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => &counters.unauthorized_posts,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => &counters.postponed_posts,
                    _ => &counters.refused_posts,
                }
            }
        };
        counter.increment();
        outcome
    }
}

async fn answer(State(desk): State<Desk>, ConnectInfo(guest): ConnectInfo<Guest>, request: Request) -> Response {
    let firehose_id =
        firehose::is_firehose(request.headers()).then(|| firehose::request_id(request.headers()).to_owned());
    let outcome = match desk.server.upgrade() {
        None => Err(Refusal::closing()),
        Some(server) => tokio::select! {
            outcome = server.settle(&guest, request) => outcome,
            () = desk.ended.cancelled() => Err(Refusal::unknown("the pipeline has ended")),
        },
    };
    response(firehose_id.as_deref(), &outcome)
}

/// The answer to a post: in the shape of Firehose's protocol where one has asked.
fn response(firehose_id: Option<&str>, outcome: &Result<usize, Refusal>) -> Response {
    let error = outcome.as_ref().err();
    let text = match (firehose_id, outcome) {
        (Some(id), _) => firehose::answer(id, now_us() / 1_000, error.map(|refusal| refusal.message.as_str())),
        (None, Ok(messages)) => json!({ "messages": messages }).to_string(),
        (None, Err(refusal)) => json!({ "error": refusal.message }).to_string(),
    };
    let status = error.map_or(StatusCode::OK, |refusal| refusal.status);
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], text).into_response();
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static(SERVER));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(after) = error.and_then(|refusal| refusal.retry_after) {
        headers.insert(header::RETRY_AFTER, after.as_secs().into());
    }
    match status {
        StatusCode::METHOD_NOT_ALLOWED => drop(headers.insert(header::ALLOW, HeaderValue::from_static("POST"))),
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        _ => {}
    }
    response
}
