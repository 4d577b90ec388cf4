//! What a post holds: its messages, and the name by which it is known when it comes again.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::Bytes;
use pipeline_engine::now_us;
use pipeline_engine::spool::Record;

use super::firehose;
use super::refusal::Refusal;
use super::repeats::RequestName;
use super::split::{self, MESSAGES_MAX, Mistake};
use crate::decode::Format;
use crate::sources::spooled::{KEYED, OVERSIZE, keyed_topic, oversize_payload};

/// By what a client names a post that it may send again.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest topic that the other sources can have as well.
const TOPIC_BYTES_MAX: usize = 65_535;
/// A larger body is taken apart beside the runtime, which would miss the others meanwhile.
const AT_ONCE_BYTES_MAX: usize = 256 << 10;

/// The messages of one post, as the spool keeps them.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) records: Vec<Record>,
    /// Its name, by which it is known when it comes again.
    pub(super) key: Option<u128>,
}

/// How bodies are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) format: Format,
    /// Of a longer message only the beginning is kept.
    pub(super) payload_bytes_max: usize,
}

/// What a post says of itself before its body.
pub(super) struct Head {
    topic: String,
    headers: HeaderMap,
    is_firehose: bool,
}

impl Head {
    /// # Errors
    /// It is none that can be taken.
    pub(super) fn of(path: &str, headers: HeaderMap) -> Result<Self, Refusal> {
        let topic = path.trim_start_matches('/').to_owned();
        if topic.len() > TOPIC_BYTES_MAX {
            return Err(Refusal::new(StatusCode::URI_TOO_LONG, "the path is too long for a topic"));
        }
        let is_firehose = firehose::is_firehose(&headers);
        if is_firehose {
            firehose::check(&headers)?;
        }
        Ok(Self { topic, headers, is_firehose })
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

impl Reading {
    /// Takes a body apart.
    ///
    /// # Errors
    /// It is not what it says, or what this source takes in.
    pub(super) async fn read(self, head: Head, body: Bytes) -> Result<Post, Refusal> {
        if body.len() <= AT_ONCE_BYTES_MAX {
            return self.post(&head, &body);
        }
        let head = Arc::new(head);
        let reading = tokio::task::spawn_blocking(move || self.post(&head, &body));
        reading.await.unwrap_or_else(|_| Err(Refusal::bad("the body can't be taken apart")))
    }

    fn post(self, head: &Head, body: &Bytes) -> Result<Post, Refusal> {
        let (messages, id) = if head.is_firehose {
            let records = firehose::records(&head.headers, body)?;
            let messages: Vec<Bytes> =
                records.into_iter().flat_map(|record| self.messages_of_record(record)).take(MESSAGES_MAX + 1).collect();
            if messages.len() > MESSAGES_MAX {
                return Err(too_many());
            }
            (messages, Some(firehose::request_id(&head.headers).as_bytes()))
        } else {
            (self.messages(&head.headers, body)?, idempotency_key(&head.headers))
        };
        let key = id.map(|id| {
            let mut name = RequestName::new(id);
            // The path is the topic, and often the device: two of them may count their posts alike.
            name.add(head.topic.as_bytes());
            messages.iter().for_each(|message: &Bytes| name.add(message));
            name.key()
        });
        let (topic, keyed) = match key {
            Some(key) => (keyed_topic(&head.topic, key), KEYED),
            None => (Bytes::copy_from_slice(head.topic.as_bytes()), 0),
        };
        let received_at_us = now_us();
        let record = |message: Bytes| {
            let (flags, payload) = if message.len() > self.payload_bytes_max {
                (keyed | OVERSIZE, oversize_payload(&message))
            } else {
                (keyed, message)
            };
            Record { received_at_us, flags, mark: 0, topic: topic.clone(), payload }
        };
        Ok(Post { records: messages.into_iter().map(record).collect(), key })
    }

    /// The messages of an ordinary body.
    fn messages(self, headers: &HeaderMap, body: &Bytes) -> Result<Vec<Bytes>, Refusal> {
        let declared = Declared::of(headers)?;
        if declared.format.is_some_and(|format| format != self.format) {
            let message =
                format!("this source takes in {}, and the body is said to be something else", name(self.format));
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        if self.format != Format::Json {
            return if body.is_empty() { Err(Refusal::bad("the body is empty")) } else { Ok(vec![body.clone()]) };
        }
        match split::split(body, declared.lines) {
            Ok(places) => Ok(places.into_iter().map(|place| body.slice(place)).collect()),
            Err(Mistake::NoJson(why)) => Err(Refusal::bad(format!("the body is no JSON: {why}"))),
            Err(Mistake::TooMany) => Err(too_many()),
        }
    }

    /// The messages of a record of a Firehose. One that is no JSON is a message all the same, and will be refused as
    /// such: its neighbours must not wait for it.
    fn messages_of_record(self, record: Bytes) -> Vec<Bytes> {
        if self.format != Format::Json {
            return vec![record];
        }
        match split::split(&record, false) {
            Ok(places) => places.into_iter().map(|place| record.slice(place)).collect(),
            Err(_) => vec![record],
        }
    }
}

fn idempotency_key(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(IDEMPOTENCY_KEY).map(HeaderValue::as_bytes).filter(|key| !key.is_empty())
}

/// What a body is, by its own account.
struct Declared {
    /// `None` where it does not say.
    format: Option<Format>,
    /// One message a line.
    lines: bool,
}

impl Declared {
    fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Self { format: None, lines: false }) };
        let value = value.to_str().unwrap_or_default();
        let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let (format, lines) = match kind.as_str() {
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/jsonlines"
            | "application/x-jsonlines" => (Some(Format::Json), true),
            "application/cbor" => (Some(Format::Cbor), false),
            "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => {
                (Some(Format::MessagePack), false)
            }
            // What clients say when they were told nothing; `curl --data` is the third.
            "" | "application/octet-stream" | "application/x-www-form-urlencoded" | "text/plain" => (None, false),
            json if json == "application/json" || json.ends_with("+json") => (Some(Format::Json), false),
            other => {
                let message = format!("a body of type \"{}\" is not taken in", other.escape_debug());
                return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
            }
        };
        Ok(Self { format, lines })
    }
}

fn name(format: Format) -> &'static str {
    match format {
        Format::Json => "JSON",
        Format::Cbor => "CBOR",
        Format::MessagePack => "MessagePack",
    }
}

fn too_many() -> Refusal {
    Refusal::too_large(format!("the body holds more than {MESSAGES_MAX} messages"))
}
