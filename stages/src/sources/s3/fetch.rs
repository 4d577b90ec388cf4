//! Objects part by part: what comes over the network, for a reader on a thread of its own.
//!
//! Each part is a request of its own, on the condition that the object is still the same. So a reader that the pipeline
//! holds up for hours keeps no connection open, and a part that did not come is asked for again without the others.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore};
use pipeline_engine::stage::{Fault, StageError};
use tokio::sync::mpsc;

use super::ledger::Object;
use super::patience::Patience;
use super::place::{Place, is_gone};

/// Long enough that the waits for answers don't count, short enough to be had again.
const PART_BYTES: u64 = 4 << 20;
/// Parts that wait for the reader.
const PARTS_AHEAD: usize = 2;

/// Why an object does not come to its end.
#[derive(Debug)]
pub(super) enum Stopped {
    /// There is no object of that key any more.
    Gone,
    /// Its key has another content now.
    Changed,
    /// It needs a person.
    Refused(StageError),
}

/// The parts of an object, on their way.
pub(super) struct Parts {
    sender: mpsc::Sender<Bytes>,
}

/// Both ends of the way of an object's parts.
pub(super) fn channel(object: &Object) -> (Parts, Incoming) {
    let (sender, parts) = mpsc::channel(PARTS_AHEAD);
    (Parts { sender }, Incoming { parts, part: Bytes::new(), missing: object.bytes })
}

/// Fetches an object to its end, or until nobody wants it any more. What passes is waited for.
///
/// # Errors
/// What does not pass.
pub(super) async fn fetch(
    client: &Arc<dyn ObjectStore>,
    place: &Place,
    object: &Object,
    parts: Parts,
    patience: &Patience,
) -> Result<(), Stopped> {
    let path = Path::parse(&object.key).map_err(|error| {
        let message = format!("the key \"{}\" can't be asked for", object.key);
        Stopped::Refused(StageError::permanent(message).because(error))
    })?;
    let mut at = 0;
    while at < object.bytes {
        let range = at..(at + PART_BYTES).min(object.bytes);
        let part = fetch_part(client, place, object, &path, range.clone(), patience.clone()).await?;
        at += part.len() as u64;
        if parts.sender.send(part).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn fetch_part(
    client: &Arc<dyn ObjectStore>,
    place: &Place,
    object: &Object,
    path: &Path,
    range: std::ops::Range<u64>,
    mut patience: Patience,
) -> Result<Bytes, Stopped> {
    loop {
        // A store without ETags gives an empty one.
        let if_match = (!object.etag.is_empty()).then(|| format!("\"{}\"", object.etag));
        let options = GetOptions { if_match, range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let found = match client.get_opts(path, options).await {
            Ok(found) if found.meta.size != object.bytes => return Err(Stopped::Changed),
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        let error = match found {
            Ok(part) if !part.is_empty() => return Ok(part),
            Ok(_) => StageError::transient(format!("a part of \"{}\" came empty", object.key)),
            Err(Error::Precondition { .. }) => return Err(Stopped::Changed),
            Err(error) if is_gone(&error) => return Err(Stopped::Gone),
            Err(error) => place.failed("read", error),
        };
        if error.fault() != Fault::Transient {
            return Err(Stopped::Refused(error));
        }
        patience.wait_after(&error).await;
    }
}

/// An object as a reader sees it. For a thread that may block.
pub(super) struct Incoming {
    parts: mpsc::Receiver<Bytes>,
    part: Bytes,
    /// How many bytes have not come.
    missing: u64,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.part.is_empty() && self.missing > 0 {
            // Whoever fetches knows why it ends; to the reader it must not look like the end of the object.
            let Some(part) = self.parts.blocking_recv() else { return Err(io::ErrorKind::ConnectionAborted.into()) };
            self.missing = self.missing.saturating_sub(part.len() as u64);
            self.part = part;
        }
        Ok(&self.part)
    }

    fn consume(&mut self, count: usize) {
        self.part.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(bytes: u64) -> Object {
        Object { key: "k".to_owned(), etag: "e".to_owned(), bytes, modified_us: 1 }
    }

    #[test]
    fn an_object_that_breaks_off_does_not_look_like_a_shorter_one() {
        let (parts, mut incoming) = channel(&object(4));
        parts.sender.blocking_send("ab".into()).unwrap();
        drop(parts);
        let mut text = String::new();
        let error = incoming.read_to_string(&mut text).unwrap_err();
        assert_eq!((text.as_str(), error.kind()), ("ab", io::ErrorKind::ConnectionAborted));

        let (parts, mut incoming) = channel(&object(3));
        for part in ["a", "bc"] {
            parts.sender.blocking_send(part.into()).unwrap();
        }
        let mut text = String::new();
        incoming.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
    }
}
