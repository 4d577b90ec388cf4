//! A door before the API of Kinesis or DynamoDB that lets some requests through and answers others itself, as AWS does at times and the
//! emulators never do.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// What the door does to requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// `GetRecords` answered with an expired iterator.
    pub expired: f64,
    /// Any reading request throttled; of DynamoDB any request.
    pub throttled: f64,
    /// Any request answered with an internal error.
    pub internal: f64,
    /// The answer to any request lost, though it was carried out.
    pub answer_lost: f64,
    /// Each record of `PutRecords` not taken.
    pub not_taken: f64,
    /// No request is answered at all.
    pub silent: bool,
    /// So long any change of an item of DynamoDB is on its way to it.
    pub update_delay: Duration,
}

/// An open door. It ends with its runtime.
pub struct Door {
    pub endpoint: String,
    shared: Arc<Shared>,
}

struct Shared {
    service: String,
    client: reqwest::Client,
    chance: Mutex<StdRng>,
    faults: Mutex<Faults>,
    unlisted: Mutex<BTreeSet<String>>,
    closed: Mutex<BTreeSet<String>>,
    lists: AtomicU64,
    injected: AtomicU64,
}

impl Door {
    pub async fn before(service: &str, seed: u64, faults: Faults) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            service: service.to_owned(),
            client: reqwest::Client::new(),
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
            faults: Mutex::new(faults),
            unlisted: Mutex::default(),
            closed: Mutex::default(),
            lists: AtomicU64::new(0),
            injected: AtomicU64::new(0),
        });
        let app = Router::new().fallback(pass).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { endpoint, shared }
    }

    /// Other faults from now on.
    pub fn play(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap() = faults;
    }

    /// From now on lists of shards leave these out, as if they had passed their retention.
    pub fn unlist(&self, shards: &[&str]) {
        *self.shared.unlisted.lock().unwrap() = shards.iter().map(|&shard| shard.to_owned()).collect();
    }

    /// From now on nobody gets a place in these shards: the requests are throttled.
    pub fn close(&self, shards: &[&str]) {
        *self.shared.closed.lock().unwrap() = shards.iter().map(|&shard| shard.to_owned()).collect();
    }

    /// How many lists of shards were given out so far.
    pub fn lists(&self) -> u64 {
        self.shared.lists.load(Ordering::Relaxed)
    }

    /// How many requests and records it has refused so far.
    pub fn injected(&self) -> u64 {
        self.shared.injected.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn strikes(&self, chance: f64) -> bool {
        let strikes = self.chance.lock().unwrap().random_bool(chance);
        self.injected.fetch_add(u64::from(strikes), Ordering::Relaxed);
        strikes
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 16 << 20).await.unwrap();
    let target = parts.headers.get("x-amz-target").map_or("", |value| value.to_str().unwrap());
    let operation = target.rsplit('.').next().unwrap_or_default();
    let faults = *shared.faults.lock().unwrap();
    if faults.silent {
        return std::future::pending().await;
    }
    if target.starts_with("DynamoDB") && shared.strikes(faults.throttled) {
        let is_sudden = shared.chance.lock().unwrap().random_bool(0.5);
        let code = if is_sudden { "ThrottlingException" } else { "ProvisionedThroughputExceededException" };
        return refused(StatusCode::BAD_REQUEST, code);
    }
    if operation == "UpdateItem" {
        tokio::time::sleep(faults.update_delay).await;
    }
    let reads = ["GetRecords", "GetShardIterator", "ListShards"].contains(&operation);
    if operation == "GetRecords" && shared.strikes(faults.expired) {
        return refused(StatusCode::BAD_REQUEST, "ExpiredIteratorException");
    }
    if reads && shared.strikes(faults.throttled) {
        let code =
            if operation == "GetRecords" { "ProvisionedThroughputExceededException" } else { "LimitExceededException" };
        return refused(StatusCode::BAD_REQUEST, code);
    }
    if operation == "GetShardIterator" && !shared.closed.lock().unwrap().is_empty() {
        let request: Value = serde_json::from_slice(&body).unwrap();
        if shared.closed.lock().unwrap().contains(request["ShardId"].as_str().unwrap()) {
            return refused(StatusCode::BAD_REQUEST, "ProvisionedThroughputExceededException");
        }
    }
    if shared.strikes(faults.internal) {
        return refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure");
    }
    let is_json = parts.headers.get("content-type").is_some_and(|value| value.to_str().unwrap().contains("json"));
    let answer = if operation == "PutRecords" && is_json && faults.not_taken > 0.0 {
        put_some(&shared, &parts.headers, &body, faults).await
    } else if operation == "ListShards" {
        list_some(&shared, &parts.headers, body.to_vec()).await
    } else {
        forward(&shared, &parts.headers, body.to_vec()).await
    };
    if shared.strikes(faults.answer_lost) {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
    }
    answer
}

/// Passes on the records that are taken, and tells of the others.
async fn put_some(shared: &Shared, headers: &HeaderMap, body: &[u8], faults: Faults) -> Response {
    let mut request: Value = serde_json::from_slice(body).unwrap();
    let records = request["Records"].as_array().unwrap().clone();
    let taken: Vec<bool> = records.iter().map(|_| !shared.strikes(faults.not_taken)).collect();
    let kept: Vec<Value> =
        records.iter().zip(&taken).filter(|(_, taken)| **taken).map(|(one, _)| one.clone()).collect();
    let mut verdicts = Vec::new();
    if !kept.is_empty() {
        request["Records"] = kept.into();
        let answer = forward(shared, headers, serde_json::to_vec(&request).unwrap()).await;
        let bytes = axum::body::to_bytes(answer.into_body(), 16 << 20).await.unwrap();
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        verdicts = answer["Records"].as_array().unwrap_or_else(|| panic!("{answer}")).clone();
    }
    let mut verdicts = verdicts.into_iter();
    let refusal = json!({ "ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded" });
    let all: Vec<Value> =
        taken.iter().map(|taken| if *taken { verdicts.next().unwrap() } else { refusal.clone() }).collect();
    let failed = taken.iter().filter(|taken| !**taken).count();
    let answer = json!({ "FailedRecordCount": failed, "Records": all });
    ([("content-type", "application/x-amz-json-1.1")], answer.to_string()).into_response()
}

/// The list of shards without those that are to be left out.
async fn list_some(shared: &Shared, headers: &HeaderMap, body: Vec<u8>) -> Response {
    let unlisted = shared.unlisted.lock().unwrap().clone();
    let answer = forward(shared, headers, body).await;
    let status = answer.status();
    let bytes = axum::body::to_bytes(answer.into_body(), 16 << 20).await.unwrap();
    let mut answer: Value = serde_json::from_slice(&bytes).unwrap();
    if let Some(shards) = answer["Shards"].as_array_mut() {
        shards.retain(|shard| !unlisted.contains(shard["ShardId"].as_str().unwrap()));
    }
    shared.lists.fetch_add(1, Ordering::Relaxed);
    (status, [("content-type", "application/x-amz-json-1.1")], answer.to_string()).into_response()
}

async fn forward(shared: &Shared, headers: &HeaderMap, body: Vec<u8>) -> Response {
    let mut request = shared.client.post(&shared.service).body(body);
    for (name, value) in headers {
        // These are of this connection, or of the body as it was.
        if !["host", "content-length", "connection", "transfer-encoding"].contains(&name.as_str()) {
            request = request.header(name, value);
        }
    }
    let answer = request.send().await.unwrap();
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        if !["content-length", "connection", "transfer-encoding"].contains(&name.as_str()) {
            response = response.header(name, value);
        }
    }
    response.body(Body::from(answer.bytes().await.unwrap())).unwrap()
}

fn refused(status: StatusCode, code: &str) -> Response {
    let body = json!({ "__type": code, "message": "so says the door" }).to_string();
    (status, [("content-type", "application/x-amz-json-1.1")], body).into_response()
}
