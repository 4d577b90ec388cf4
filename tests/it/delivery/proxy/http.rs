//! Requests that put Parquet objects, and their answers: HTTP/1.1, one request at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::{Moment, Seen, Watch};

/// The pipeline's side.
pub(super) struct Requests {
    head: Vec<u8>,
    left: u64,
    position: u64,
    put: Arc<AtomicBool>,
}

/// The store's side: what comes after a PUT is its answer.
pub(super) struct Replies {
    position: u64,
    put: Arc<AtomicBool>,
}

/// For the two directions of one connection.
pub(super) fn watchers() -> (Requests, Replies) {
    let put = Arc::new(AtomicBool::new(false));
    (Requests { head: Vec::new(), left: 0, position: 0, put: put.clone() }, Replies { position: 0, put })
}

impl Watch for Requests {
    fn read(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.left > 0 {
                let skipped = rest.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= skipped as u64;
                self.position += skipped as u64;
                rest = &rest[skipped..];
                continue;
            }
            self.head.push(rest[0]);
            self.position += 1;
            rest = &rest[1..];
            if !self.head.ends_with(b"\r\n\r\n") {
                continue;
            }
            let head = String::from_utf8_lossy(&self.head).into_owned();
            self.head.clear();
            self.left = content_length(&head);
            let is_object =
                head.starts_with("PUT ") && head.lines().next().is_some_and(|line| line.contains(".parquet"));
            if is_object && self.left > 0 {
                self.put.store(true, SeqCst);
                seen.push(Seen { moment: Moment::PutBody, at: self.position, bytes: self.left });
            }
        }
        seen
    }
}

fn content_length(head: &str) -> u64 {
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = headers.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

impl Watch for Replies {
    fn read(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let at = self.position;
        self.position += bytes.len() as u64;
        let answers = self.put.swap(false, SeqCst);
        answers.then_some(Seen { moment: Moment::PutReply, at, bytes: bytes.len() as u64 }).into_iter().collect()
    }
}

#[test]
fn puts_of_objects_and_their_answers_are_found() {
    let head = "PUT /bucket/lake/a.parquet HTTP/1.1\r\nHost: x\r\ncontent-length: 300\r\n\r\n";
    let probe = "PUT /bucket/probe HTTP/1.1\r\nContent-Length: 5\r\n\r\nprobe";
    let get = "GET /bucket/lake/a.parquet HTTP/1.1\r\nHost: x\r\n\r\n";
    let stream = [probe.as_bytes(), head.as_bytes(), &[b'x'; 300], get.as_bytes()].concat();
    let at = (probe.len() + head.len()) as u64;
    for cut in [1, 10, stream.len()] {
        let (mut requests, mut replies) = watchers();
        assert_eq!(replies.read(b"HTTP/1.1 200 OK"), []);
        let seen: Vec<Seen> = stream.chunks(cut).flat_map(|chunk| requests.read(chunk)).collect();
        assert_eq!(seen, [Seen { moment: Moment::PutBody, at, bytes: 300 }], "in pieces of {cut}");
        assert_eq!(replies.read(b"HTTP/1.1 200 OK"), [Seen { moment: Moment::PutReply, at: 15, bytes: 15 }]);
        assert_eq!(replies.read(b"more"), []);
    }
}
