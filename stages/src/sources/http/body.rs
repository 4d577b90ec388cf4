//! Bodies within bounds: how large one may be, packed and unpacked.
//!
//! A body takes memory as it comes and as it is unpacked, never before, and keeps it until nobody holds a part of it any more: a
//! client that hangs up leaves behind what is still being unpacked, or on its way to the spool.

use std::io::{self, Cursor, Read};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use flate2::bufread::MultiGzDecoder;
use futures::StreamExt;
use pipeline_engine::units::SizeText;
use tokio::time::timeout;

use super::memory::{Memory, Room};
use super::refusal::Refusal;
use super::split::places_bytes_max;

/// A body must have come as a whole by then. A slow line brings 64 MiB in it at 9 Mbit/s.
const READING_TIMEOUT: Duration = Duration::from_secs(60);
/// What is read of a body that was refused.
const DRAINED_BYTES_MAX: usize = 64 << 20;
/// See [`DRAINED_BYTES_MAX`].
const DRAINING_TIMEOUT: Duration = Duration::from_secs(5);
/// What is taken for a body of which nothing is known; most posts fit.
const FIRST_BYTES: usize = 4 << 10;
/// What rounding to units can come to.
const ROUNDING_BYTES: u64 = 64 << 10;

/// What a body may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// As sent, and unpacked.
    pub(super) body_bytes_max: usize,
    /// Of all posts together.
    pub(super) memory_bytes_max: usize,
    /// Of one message.
    pub(super) payload_bytes_max: usize,
}

impl Bounds {
    /// What a post takes at most: its body as sent and unpacked, once more where its records are unpacked from base64, and the places
    /// of its messages.
    pub(super) fn memory_for(body_bytes: u64) -> u64 {
        let places = places_bytes_max(usize::try_from(body_bytes).unwrap_or(usize::MAX)) as u64;
        body_bytes.saturating_mul(3).saturating_add(places).saturating_add(ROUNDING_BYTES)
    }
}

/// The body of a request, part by part.
pub(super) struct Incoming {
    parts: BodyDataStream,
    /// The client waits to be told to send it (`Expect: 100-continue`), which the first look at it does.
    waits: bool,
}

impl Incoming {
    pub(super) fn new(headers: &HeaderMap, body: Body) -> Self {
        let expectation = headers.get(header::EXPECT).map(|value| value.as_bytes());
        let waits = expectation.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        Self { parts: body.into_data_stream(), waits }
    }

    async fn next(&mut self) -> Option<Result<Bytes, axum::Error>> {
        self.waits = false;
        self.parts.next().await
    }

    /// Reads the rest of a body that is not wanted, up to a bound. One that was not asked for does not come.
    pub(super) async fn drain(&mut self) {
        if self.waits {
            return;
        }
        let reading = async {
            let mut bytes = 0;
            while let Some(Ok(part)) = self.next().await {
                bytes += part.len();
                if bytes > DRAINED_BYTES_MAX {
                    break;
                }
            }
        };
        // Longer than this, nobody waits for an answer.
        timeout(DRAINING_TIMEOUT, reading).await.ok();
    }
}

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
}

/// Reads a body as a whole, and unpacks it. Its memory is given back with the last part of it.
///
/// # Errors
/// It is too large, packed in another way than it says or in one that is not known, does not come, or finds no memory.
pub(super) async fn read(
    headers: &HeaderMap,
    body: &mut Incoming,
    bounds: Bounds,
    memory: &Memory,
) -> Result<Bytes, Refusal> {
    let packing = packing(headers)?;
    let max = bounds.body_bytes_max;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > max as u64) {
        return Err(too_large(max));
    }
    let length = length.and_then(|length| usize::try_from(length).ok());
    let (bytes, room) = match timeout(READING_TIMEOUT, collect(body, length, max, memory)).await {
        Ok(collected) => collected?,
        Err(_) => {
            let seconds = READING_TIMEOUT.as_secs();
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {seconds} s")));
        }
    };
    let (bytes, room) = match packing {
        Packing::None => (bytes, room),
        Packing::Gzip => unpack(bytes, room, max).await?,
    };
    Ok(room.hold(bytes))
}

fn packing(headers: &HeaderMap) -> Result<Packing, Refusal> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(Packing::None) };
    let name = value.to_str().unwrap_or_default().trim();
    if name.is_empty() || name.eq_ignore_ascii_case("identity") {
        Ok(Packing::None)
    } else if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
        Ok(Packing::Gzip)
    } else {
        let message = format!("the body is packed as \"{}\", and only gzip is unpacked", name.escape_debug());
        Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
    }
}

/// Memory is taken for what has come, doubled each time, and never for what is only announced.
async fn collect(
    body: &mut Incoming,
    length: Option<usize>,
    max: usize,
    memory: &Memory,
) -> Result<(Vec<u8>, Room), Refusal> {
    let (mut bytes, mut room) = (Vec::new(), memory.room());
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| Refusal::bad(format!("the body breaks off: {error}")))?;
        let needed = bytes.len() + part.len();
        if needed > max {
            return Err(too_large(max));
        }
        if needed > bytes.capacity() {
            let capacity = (bytes.capacity() * 2).max(FIRST_BYTES).min(length.unwrap_or(max)).max(needed);
            room.grow_to(capacity).await?;
            bytes.reserve_exact(capacity - bytes.len());
        }
        bytes.extend_from_slice(&part);
    }
    Ok((bytes, room))
}

/// A gzip body on its way to what it was.
struct Unpacking {
    decoder: MultiGzDecoder<Cursor<Vec<u8>>>,
    unpacked: Vec<u8>,
    /// Of both.
    room: Room,
}

impl Unpacking {
    /// Unpacks up to so many bytes in all; whether it has come to the end.
    fn fill(&mut self, capacity: usize) -> io::Result<bool> {
        let wanted = capacity - self.unpacked.len();
        self.unpacked.reserve_exact(wanted);
        let read = self.decoder.by_ref().take(wanted as u64).read_to_end(&mut self.unpacked)?;
        Ok(read < wanted)
    }
}

/// Beside the runtime, as far as there is memory, which is asked for in between. What runs there owns the memory that it works on.
async fn unpack(packed: Vec<u8>, room: Room, max: usize) -> Result<(Vec<u8>, Room), Refusal> {
    let packed_bytes = packed.capacity();
    let mut unpacking = Unpacking { decoder: MultiGzDecoder::new(Cursor::new(packed)), unpacked: Vec::new(), room };
    loop {
        // One more than it may have tells that it has more.
        let capacity = (unpacking.unpacked.capacity() * 2).max(packed_bytes * 4).max(FIRST_BYTES).min(max + 1);
        unpacking.room.grow_to(packed_bytes + capacity).await?;
        let filling = tokio::task::spawn_blocking(move || {
            let filled = unpacking.fill(capacity);
            (unpacking, filled)
        });
        let Ok((filled_up, filled)) = filling.await else { return Err(Refusal::bad("the body can't be unpacked")) };
        unpacking = filled_up;
        match filled {
            Ok(_) if unpacking.unpacked.len() > max => {
                return Err(Refusal::too_large(format!("the body unpacks to more than {}", size(max))));
            }
            Ok(true) => break,
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Refusal::bad("the gzip body is cut off"));
            }
            Err(error) => return Err(Refusal::bad(format!("the body is no gzip: {error}"))),
        }
    }
    let Unpacking { unpacked, mut room, decoder } = unpacking;
    drop(decoder);
    room.shrink_to(unpacked.capacity());
    Ok((unpacked, room))
}

fn too_large(max: usize) -> Refusal {
    Refusal::too_large(format!("the body is larger than {}", size(max)))
}

fn size(bytes: usize) -> SizeText {
    SizeText(bytes as u64)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use axum::http::HeaderValue;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const BOUNDS: Bounds = Bounds { body_bytes_max: 100_000, memory_bytes_max: 250_000, payload_bytes_max: 1_000 };

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn headers(encoding: Option<&'static str>, length: Option<usize>) -> HeaderMap {
        let encoding = encoding.map(|value| (header::CONTENT_ENCODING, HeaderValue::from_static(value)));
        HeaderMap::from_iter(encoding.into_iter().chain(length.map(|length| (header::CONTENT_LENGTH, length.into()))))
    }

    fn stream(body: impl Into<Body>) -> Incoming {
        Incoming::new(&HeaderMap::new(), body.into())
    }

    async fn unpacked(encoding: Option<&'static str>, length: Option<usize>, body: Vec<u8>) -> Result<Bytes, Refusal> {
        let memory = Memory::new(BOUNDS);
        read(&headers(encoding, length), &mut stream(body), BOUNDS, &memory).await
    }

    #[tokio::test]
    async fn a_body_comes_as_it_was_before_it_was_packed() {
        assert_eq!(unpacked(None, Some(2), b"{}".to_vec()).await.unwrap(), "{}");
        assert_eq!(unpacked(Some("gzip"), None, gzip(b"{}")).await.unwrap(), "{}");
        let two = [gzip(b"{\"n\":1}"), gzip(b"{\"n\":2}")].concat();
        assert_eq!(unpacked(Some("GZIP"), None, two).await.unwrap(), "{\"n\":1}{\"n\":2}");
    }

    #[tokio::test]
    async fn what_is_beyond_the_bound_is_refused_before_it_is_there() {
        let max = BOUNDS.body_bytes_max;
        assert_eq!(unpacked(None, None, vec![b' '; max]).await.unwrap().len(), max);
        for (encoding, length, body) in [
            (None, Some(max + 1), Vec::new()),
            (None, None, vec![b' '; max + 1]),
            (Some("gzip"), None, gzip(&vec![b' '; max + 1])),
            (Some("gzip"), None, gzip(&vec![0; 50 << 20])),
        ] {
            let refusal = unpacked(encoding, length, body).await.unwrap_err();
            assert_eq!(refusal.status, StatusCode::PAYLOAD_TOO_LARGE, "{}", refusal.message);
        }
    }

    #[tokio::test]
    async fn what_can_not_be_unpacked_says_why() {
        let whole = gzip(b"{\"n\":1}");
        for (encoding, body, status, why) in [
            ("br", Vec::new(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "packed as \"br\""),
            ("gzip", b"{\"n\": 1, \"m\": 2}".to_vec(), StatusCode::BAD_REQUEST, "no gzip"),
            ("gzip", whole[..whole.len() - 3].to_vec(), StatusCode::BAD_REQUEST, "cut off"),
        ] {
            let refusal = unpacked(Some(encoding), None, body).await.unwrap_err();
            assert_eq!(refusal.status, status);
            assert!(refusal.message.contains(why), "{}", refusal.message);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_wait_for_memory_and_are_told_to_come_again() {
        let memory = Memory::new(BOUNDS);
        let body = || stream(vec![b' '; BOUNDS.body_bytes_max]);
        let held = [
            read(&headers(None, None), &mut body(), BOUNDS, &memory).await.expect("there is room"),
            read(&headers(None, None), &mut body(), BOUNDS, &memory).await.expect("there is room"),
        ];
        let refusal = read(&headers(None, None), &mut body(), BOUNDS, &memory).await.expect_err("no room");
        assert_eq!((refusal.status, refusal.retry_after.is_some()), (StatusCode::TOO_MANY_REQUESTS, true));
        drop(held);
        assert!(read(&headers(None, None), &mut body(), BOUNDS, &memory).await.is_ok());
    }

    #[tokio::test]
    async fn memory_is_taken_for_what_has_come_and_not_for_what_may() {
        let memory = Memory::new(BOUNDS);
        let all = memory.free_bytes();
        for length in [None, Some(BOUNDS.body_bytes_max)] {
            // It has begun, and nothing more of it comes.
            let parts = futures::stream::iter([Ok::<_, io::Error>("{}")]).chain(futures::stream::pending());
            let mut body = stream(Body::from_stream(parts));
            let headers = headers(None, length);
            let mut reading = Box::pin(read(&headers, &mut body, BOUNDS, &memory));
            assert!(futures::poll!(&mut reading).is_pending());
            assert!(all - memory.free_bytes() <= FIRST_BYTES, "{} of {all} are free", memory.free_bytes());
            drop(reading);
            assert_eq!(memory.free_bytes(), all);
        }
    }

    #[tokio::test]
    async fn memory_is_held_as_long_as_a_part_of_the_body_is() {
        let memory = Memory::new(BOUNDS);
        let all = memory.free_bytes();
        for (encoding, body) in [(None, vec![b' '; 50_000]), (Some("gzip"), gzip(&[b' '; 50_000]))] {
            let body = read(&headers(encoding, None), &mut stream(body), BOUNDS, &memory).await.unwrap();
            let part = body.slice(7..8);
            drop(body);
            assert!(all - memory.free_bytes() >= 50_000, "{encoding:?}");
            drop(part);
            assert_eq!(memory.free_bytes(), all, "{encoding:?}");
        }
    }

    /// The one thread for blocking work is kept busy, so that the client hangs up while its body waits to be unpacked.
    #[test]
    fn a_client_that_hangs_up_frees_no_memory_that_is_still_worked_on() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let (release, released) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || released.recv());
            let memory = Memory::new(BOUNDS);
            let all = memory.free_bytes();
            let headers = headers(Some("gzip"), None);
            let mut body = stream(gzip(&[b' '; 50_000]));
            let mut reading = Box::pin(read(&headers, &mut body, BOUNDS, &memory));
            while memory.free_bytes() == all {
                assert!(futures::poll!(&mut reading).is_pending());
                tokio::task::yield_now().await;
            }
            for _ in 0..10 {
                assert!(futures::poll!(&mut reading).is_pending());
                tokio::task::yield_now().await;
            }
            let taken = memory.free_bytes();
            drop(reading);
            assert_eq!(memory.free_bytes(), taken, "it is not unpacked yet");
            release.send(()).unwrap();
            busy.await.unwrap().unwrap();
            // Behind it, on the same thread.
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            assert_eq!(memory.free_bytes(), all);
        });
    }
}
