//! Bodies within bounds: how large one may be, packed and unpacked, and how much memory all take together.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use flate2::bufread::MultiGzDecoder;
use futures::StreamExt;
use pipeline_engine::units::SizeText;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::refusal::Refusal;

/// A body must have come as a whole by then. A slow line brings 64 MiB in it at 9 Mbit/s.
const READING_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a post waits for memory before it is told to come again.
const MEMORY_PATIENCE: Duration = Duration::from_secs(10);
/// What is read of a body that was refused.
const DRAINED_BYTES_MAX: usize = 64 << 20;
/// See [`DRAINED_BYTES_MAX`].
const DRAINING_TIMEOUT: Duration = Duration::from_secs(5);
/// No byte of deflate unpacks to more.
const DEFLATE_RATIO_MAX: u64 = 1032;
/// What memory is counted in: a semaphore counts to 2^29 on the smallest machines.
const MEMORY_UNIT_BYTES: u64 = 4096;

/// What a body may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// As sent, and unpacked.
    pub(super) body_bytes_max: usize,
    /// Of all bodies together.
    pub(super) memory_bytes_max: usize,
    /// Of one message.
    pub(super) payload_bytes_max: usize,
}

impl Bounds {
    /// What a body takes at most: as sent, unpacked, and once more where its records are unpacked from base64.
    pub(super) fn memory_for(body_bytes: u64) -> u64 {
        body_bytes.saturating_mul(3)
    }
}

/// The memory that bodies share.
pub(super) struct Memory {
    units: Semaphore,
}

impl Memory {
    pub(super) fn new(bounds: Bounds) -> Self {
        let units = units(bounds.memory_bytes_max as u64).min(Semaphore::MAX_PERMITS as u64);
        Self { units: Semaphore::new(usize::try_from(units).unwrap_or(Semaphore::MAX_PERMITS)) }
    }

    async fn take(&self, bytes: u64) -> Result<SemaphorePermit<'_>, Refusal> {
        let wanted = u32::try_from(units(bytes)).unwrap_or(u32::MAX);
        match timeout(MEMORY_PATIENCE, self.units.acquire_many(wanted)).await {
            Ok(Ok(permit)) => Ok(permit),
            // It is never closed.
            Ok(Err(_)) | Err(_) => {
                Err(Refusal::later("too many posts at once: memory_max is taken", Duration::from_secs(5)))
            }
        }
    }
}

fn units(bytes: u64) -> u64 {
    bytes.div_ceil(MEMORY_UNIT_BYTES).max(1)
}

/// A body as a whole, unpacked, and the memory that it takes.
pub(super) struct Unpacked<'m> {
    pub(super) bytes: Bytes,
    pub(super) _memory: SemaphorePermit<'m>,
}

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
}

/// Reads a body.
///
/// # Errors
/// It is too large, packed in another way than it says or in one that is not known, or does not come.
pub(super) async fn read<'m>(
    headers: &HeaderMap,
    body: &mut BodyDataStream,
    bounds: Bounds,
    memory: &'m Memory,
) -> Result<Unpacked<'m>, Refusal> {
    let packing = packing(headers)?;
    let max = bounds.body_bytes_max;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > max as u64) {
        return Err(too_large(max));
    }
    let sent = length.unwrap_or(max as u64);
    let unpacked = match packing {
        Packing::None => sent,
        Packing::Gzip => sent.saturating_mul(DEFLATE_RATIO_MAX).min(max as u64),
    };
    let permit = memory.take(Bounds::memory_for(unpacked)).await?;
    let bytes = match timeout(READING_TIMEOUT, collect(body, max)).await {
        Ok(bytes) => bytes?,
        Err(_) => {
            let seconds = READING_TIMEOUT.as_secs();
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {seconds} s")));
        }
    };
    let bytes = match packing {
        Packing::None => bytes,
        Packing::Gzip => {
            let unpacking = tokio::task::spawn_blocking(move || unpack(&bytes, max));
            unpacking.await.unwrap_or_else(|_| Err(Refusal::bad("the body can't be unpacked")))?
        }
    };
    Ok(Unpacked { bytes, _memory: permit })
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

async fn collect(parts: &mut BodyDataStream, max: usize) -> Result<Bytes, Refusal> {
    let mut first = Bytes::new();
    let mut all = Vec::new();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| Refusal::bad(format!("the body breaks off: {error}")))?;
        if first.len() + all.len() + part.len() > max {
            return Err(too_large(max));
        }
        if first.is_empty() && all.is_empty() {
            first = part;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&part);
    }
    // A small body comes in one part, which need not be copied.
    Ok(if all.is_empty() { first } else { all.into() })
}

/// Reads the rest of a body that is not wanted, up to a bound.
pub(super) async fn drain(parts: &mut BodyDataStream) {
    let reading = async {
        let mut bytes = 0;
        while let Some(Ok(part)) = parts.next().await {
            bytes += part.len();
            if bytes > DRAINED_BYTES_MAX {
                break;
            }
        }
    };
    // Longer than this, nobody waits for an answer.
    timeout(DRAINING_TIMEOUT, reading).await.ok();
}

fn unpack(packed: &[u8], max: usize) -> Result<Bytes, Refusal> {
    let mut unpacked = Vec::new();
    let read = MultiGzDecoder::new(packed).take(max as u64 + 1).read_to_end(&mut unpacked);
    match read {
        Ok(bytes) if bytes > max => Err(Refusal::too_large(format!("the body unpacks to more than {}", size(max)))),
        Ok(_) => Ok(unpacked.into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Refusal::bad("the gzip body is cut off")),
        Err(error) => Err(Refusal::bad(format!("the body is no gzip: {error}"))),
    }
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

    use axum::body::Body;
    use axum::http::HeaderValue;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const BOUNDS: Bounds = Bounds { body_bytes_max: 100_000, memory_bytes_max: 300_000, payload_bytes_max: 1_000 };

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn headers(encoding: Option<&'static str>, length: Option<usize>) -> HeaderMap {
        let encoding = encoding.map(|value| (header::CONTENT_ENCODING, HeaderValue::from_static(value)));
        HeaderMap::from_iter(encoding.into_iter().chain(length.map(|length| (header::CONTENT_LENGTH, length.into()))))
    }

    fn stream(body: impl Into<Body>) -> BodyDataStream {
        body.into().into_data_stream()
    }

    async fn unpacked(encoding: Option<&'static str>, length: Option<usize>, body: Vec<u8>) -> Result<Bytes, Refusal> {
        let memory = Memory::new(BOUNDS);
        read(&headers(encoding, length), &mut stream(body), BOUNDS, &memory).await.map(|unpacked| unpacked.bytes)
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
        let held = read(&headers(None, None), &mut stream("{}"), BOUNDS, &memory).await.expect("there is room");
        let refusal = read(&headers(None, None), &mut stream("{}"), BOUNDS, &memory).await.err().expect("no room");
        assert_eq!((refusal.status, refusal.retry_after.is_some()), (StatusCode::TOO_MANY_REQUESTS, true));
        drop(held);
        assert!(read(&headers(None, None), &mut stream("{}"), BOUNDS, &memory).await.is_ok());
    }
}
