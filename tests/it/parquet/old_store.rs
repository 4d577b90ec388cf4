//! An S3 store that knows no conditional create: as some in use are, and none that we could install.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What the store makes of `If-None-Match`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Condition {
    /// Nothing.
    Ignored,
    /// 501: what AWS answers to headers that a request doesn't know.
    NotImplemented,
    /// 400 without a code that is the condition's own.
    Invalid,
    /// As it should be.
    Kept,
}

/// The store: one bucket, and one request for each connection.
#[derive(Clone)]
pub struct OldStore {
    pub url: String,
    condition: Condition,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Default)]
struct Inside {
    objects: BTreeMap<String, Vec<u8>>,
    /// Method and path, in order.
    requests: Vec<String>,
    fails: bool,
}

impl OldStore {
    pub async fn start(condition: Condition) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let store = Self { url, condition, inside: Arc::default() };
        let serving = store.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let store = serving.clone();
                tokio::spawn(async move { store.answer(connection).await });
            }
        });
        store
    }

    /// Paths of all objects, with the bucket.
    pub fn paths(&self) -> Vec<String> {
        self.inside.lock().unwrap().objects.keys().cloned().collect()
    }

    pub fn content(&self, path: &str) -> Vec<u8> {
        self.inside.lock().unwrap().objects[path].clone()
    }

    pub fn replace(&self, path: &str, content: &[u8]) {
        self.inside.lock().unwrap().objects.insert(path.to_owned(), content.to_owned());
    }

    /// From now on it answers that it is too busy.
    pub fn fail(&self) {
        self.inside.lock().unwrap().fails = true;
    }

    /// How often something was asked, such as `PUT /bucket/key`.
    pub fn asked(&self, request: &str) -> usize {
        self.inside.lock().unwrap().requests.iter().filter(|asked| *asked == request).count()
    }

    async fn answer(&self, connection: TcpStream) -> Option<()> {
        let mut connection = BufReader::new(connection);
        let mut line = String::new();
        connection.read_line(&mut line).await.ok()?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?.replace("%3D", "="));
        let (mut length, mut conditional) = (0, false);
        loop {
            let mut header = String::new();
            connection.read_line(&mut header).await.ok()?;
            let Some((name, value)) = header.trim().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().ok()?,
                "if-none-match" => conditional = true,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body).await.ok()?;
        let (status, content) = self.respond(&method, path, conditional, body);
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"tag\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
             Connection: close\r\n\r\n",
            content.len()
        );
        connection.write_all(head.as_bytes()).await.ok()?;
        if method != "HEAD" {
            connection.write_all(&content).await.ok()?;
        }
        connection.shutdown().await.ok()
    }

    fn respond(&self, method: &str, path: String, conditional: bool, body: Vec<u8>) -> (&'static str, Vec<u8>) {
        let mut inside = self.inside.lock().unwrap();
        inside.requests.push(format!("{method} {path}"));
        let error = |status, code: &str| (status, format!("<Error><Code>{code}</Code></Error>").into_bytes());
        if inside.fails {
            return error("503 Service Unavailable", "SlowDown");
        }
        match (method, self.condition) {
            ("PUT", Condition::NotImplemented) if conditional => error("501 Not Implemented", "NotImplemented"),
            ("PUT", Condition::Invalid) if conditional => error("400 Bad Request", "InvalidArgument"),
            ("PUT", Condition::Kept) if conditional && inside.objects.contains_key(&path) => {
                error("412 Precondition Failed", "PreconditionFailed")
            }
            ("PUT", _) => {
                inside.objects.insert(path, body);
                ("200 OK", Vec::new())
            }
            ("DELETE", _) => {
                inside.objects.remove(&path);
                ("204 No Content", Vec::new())
            }
            // Nobody asks for more than whether it can be listed.
            ("GET", _) if path.contains("list-type=2") => {
                ("200 OK", b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>".to_vec())
            }
            _ => match inside.objects.get(&path) {
                Some(content) => ("200 OK", content.clone()),
                None => error("404 Not Found", "NoSuchKey"),
            },
        }
    }
}
