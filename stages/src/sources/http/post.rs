//! What a post holds: its messages, and the name by which it is known when it comes again.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::Bytes;
use pipeline_engine::now_us;
use pipeline_engine::spool::Record;

use super::firehose;
use super::memory::{Memory, Room};
use super::refusal::Refusal;
use super::repeats::RequestName;
use super::split::{self, MESSAGES_MAX, Mistake, Place};
use crate::decode::Format;
use crate::sources::spooled::{KEYED, OVERSIZE, keyed_topic, oversize_payload};

/// By what a client names a post that it may send again.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest topic that the other sources can have as well.
const TOPIC_BYTES_MAX: usize = 65_535;
/// A larger body is taken apart beside the runtime, which would miss the others meanwhile.
const AT_ONCE_BYTES_MAX: usize = 256 << 10;

/// The messages of one post. Each is a part of the body until it is asked for: a million of them are a million places, and not a
/// million records.
#[derive(Debug)]
pub(super) struct Post {
    messages: Messages,
    topic: Bytes,
    flags: u8,
    received_at_us: i64,
    payload_bytes_max: usize,
    /// Its name, by which it is known when it comes again.
    pub(super) key: Option<u128>,
}

impl Post {
    /// How many messages it has.
    pub(super) fn len(&self) -> usize {
        self.messages.places.len()
    }

    /// The messages behind the first so many, as the spool keeps them.
    pub(super) fn records_from(&self, first: usize) -> impl Iterator<Item = Record> + '_ {
        self.messages.iter().skip(first).map(|message| {
            let (flags, payload) = if message.len() > self.payload_bytes_max {
                (self.flags | OVERSIZE, oversize_payload(&message))
            } else {
                (self.flags, message)
            };
            Record { received_at_us: self.received_at_us, flags, mark: 0, topic: self.topic.clone(), payload }
        })
    }
}

/// Places in some bytes, and the memory that they take.
#[derive(Debug)]
struct Messages {
    bytes: Bytes,
    places: Vec<Place>,
    _room: Room,
}

impl Messages {
    fn iter(&self) -> impl Iterator<Item = Bytes> + '_ {
        self.places.iter().map(|place| self.bytes.slice(split::slice(place)))
    }
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
    /// It is not what it says, or what this source takes in; or there is no memory for the places of its messages.
    pub(super) async fn read(self, head: Head, body: Bytes, memory: &Memory) -> Result<Post, Refusal> {
        let mut room = memory.room();
        // Records of a Firehose are text once more if something is escaped in them, and then unpacked.
        let records_bytes = if head.is_firehose { body.len().saturating_mul(2) } else { 0 };
        room.grow_to(split::places_bytes_max(body.len()).saturating_add(records_bytes)).await?;
        if body.len() <= AT_ONCE_BYTES_MAX {
            return self.post(&head, body, room);
        }
        let reading = tokio::task::spawn_blocking(move || self.post(&head, body, room));
        reading.await.unwrap_or_else(|_| Err(Refusal::bad("the body can't be taken apart")))
    }

    fn post(self, head: &Head, body: Bytes, mut room: Room) -> Result<Post, Refusal> {
        let (bytes, places, id) = if head.is_firehose {
            let (bytes, places) = self.messages_of_records(&head.headers, &body)?;
            let held = room.part(bytes.capacity());
            (held.hold(bytes), places, Some(firehose::request_id(&head.headers).as_bytes()))
        } else {
            let places = self.messages(&head.headers, &body)?;
            (body, places, idempotency_key(&head.headers))
        };
        room.shrink_to(places.capacity() * size_of::<Place>());
        let messages = Messages { bytes, places, _room: room };
        let key = id.map(|id| {
            let mut name = RequestName::new(id);
            // The path is the topic, and often the device: two of them may count their posts alike.
            name.add(head.topic.as_bytes());
            messages.iter().for_each(|message| name.add(&message));
            name.key()
        });
        let (topic, flags) = match key {
            Some(key) => (keyed_topic(&head.topic, key), KEYED),
            None => (Bytes::copy_from_slice(head.topic.as_bytes()), 0),
        };
        let (received_at_us, payload_bytes_max) = (now_us(), self.payload_bytes_max);
        Ok(Post { messages, topic, flags, received_at_us, payload_bytes_max, key })
    }

    /// The messages of an ordinary body.
    fn messages(self, headers: &HeaderMap, body: &[u8]) -> Result<Vec<Place>, Refusal> {
        let declared = Declared::of(headers)?;
        if declared.format.is_some_and(|format| format != self.format) {
            let message =
                format!("this source takes in {}, and the body is said to be something else", name(self.format));
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        if self.format != Format::Json {
            return if body.is_empty() {
                Err(Refusal::bad("the body is empty"))
            } else {
                Ok(vec![split::place(0..body.len())])
            };
        }
        match split::split(body, declared.lines) {
            Ok(places) => Ok(places),
            Err(Mistake::NoJson(why)) => Err(Refusal::bad(format!("the body is no JSON: {why}"))),
            Err(Mistake::TooMany) => Err(too_many()),
        }
    }

    /// The records of a Firehose one behind the other, and the messages in them. A record that is no JSON is a message all the
    /// same, and will be refused as such: its neighbours must not wait for it.
    fn messages_of_records(self, headers: &HeaderMap, body: &[u8]) -> Result<(Vec<u8>, Vec<Place>), Refusal> {
        let (bytes, records) = firehose::records(headers, body)?;
        let mut places = Vec::new();
        for record in records {
            let found = match self.format {
                Format::Json => split::split(&bytes[record.clone()], false).unwrap_or_default(),
                Format::Cbor | Format::MessagePack => Vec::new(),
            };
            if found.is_empty() {
                places.push(split::place(record));
            } else {
                let begin = record.start;
                let within = |place: Place| split::place(begin + place.start as usize..begin + place.end as usize);
                places.extend(found.into_iter().map(within));
            }
            if places.len() > MESSAGES_MAX {
                return Err(too_many());
            }
        }
        Ok((bytes, places))
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

#[cfg(test)]
mod tests {
    use super::super::body::Bounds;
    use super::*;

    const BOUNDS: Bounds = Bounds { body_bytes_max: 1 << 20, memory_bytes_max: 16 << 20, payload_bytes_max: 1_000 };
    const READING: Reading = Reading { format: Format::Json, payload_bytes_max: BOUNDS.payload_bytes_max };

    #[tokio::test]
    async fn a_great_number_of_tiny_messages_counts_for_what_their_places_take() {
        const MESSAGES: usize = 400_000;
        let memory = Memory::new(BOUNDS);
        let all = memory.free_bytes();
        let head = Head::of("/t", HeaderMap::new()).unwrap();
        let post = READING.read(head, "1 ".repeat(MESSAGES).into(), &memory).await.unwrap();
        assert_eq!((post.len(), post.records_from(MESSAGES - 1).count()), (MESSAGES, 1));
        let taken = all - memory.free_bytes();
        assert!(taken >= MESSAGES * size_of::<Place>(), "{taken} bytes are taken");
        assert!(taken >= post.messages.places.capacity() * size_of::<Place>(), "{taken} bytes are taken");
        drop(post);
        assert_eq!(memory.free_bytes(), all);
    }

    #[tokio::test]
    async fn a_post_without_room_for_its_places_is_told_to_come_again() {
        tokio::time::pause();
        let memory = Memory::new(BOUNDS);
        let mut others = memory.room();
        others.grow_to(memory.free_bytes() - 4096).await.unwrap();
        let head = Head::of("/t", HeaderMap::new()).unwrap();
        let refusal = READING.read(head, "1 ".repeat(100_000).into(), &memory).await.unwrap_err();
        assert_eq!((refusal.status, refusal.retry_after.is_some()), (StatusCode::TOO_MANY_REQUESTS, true));
    }

    #[tokio::test]
    async fn records_of_a_firehose_are_apart_and_those_that_are_no_json_are_messages_too() {
        let memory = Memory::new(BOUNDS);
        let all = memory.free_bytes();
        let name = |text: &'static str| axum::http::HeaderName::from_static(text);
        let headers = HeaderMap::from_iter([
            (name("x-amz-firehose-protocol-version"), HeaderValue::from_static("1.0")),
            (name("x-amz-firehose-request-id"), HeaderValue::from_static("a")),
        ]);
        let records =
            ["eyJuIjoxfXsibiI6Mn0=", "aGVsbG8=", "", "eyJuIjozfQ=="].map(|data| format!("{{\"data\":\"{data}\"}}"));
        let body = format!("{{\"requestId\":\"a\",\"records\":[{}]}}", records.join(","));
        let post = READING.read(Head::of("/t", headers).unwrap(), body.into(), &memory).await.unwrap();
        let payloads: Vec<_> = post.records_from(0).map(|record| record.payload).collect();
        assert_eq!(payloads, [&b"{\"n\":1}"[..], b"{\"n\":2}", b"hello", b"", b"{\"n\":3}"]);
        drop(post);
        assert!(memory.free_bytes() < all, "the spool has not let go of them");
        drop(payloads);
        assert_eq!(memory.free_bytes(), all);
    }
}
