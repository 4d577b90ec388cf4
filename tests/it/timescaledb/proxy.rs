//! A proxy between a sink and its database that cuts connections at chosen bytes.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// As the sink sends it: a query of its own.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// Where a connection is cut. Whatever is armed is used once.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// After so many more bytes have reached the server.
    AfterBytes(usize),
    /// So many bytes of the COMMIT reach the server.
    InCommit(usize),
    /// The server commits, and so many bytes of its answer reach the sink.
    InReply(usize),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides hear of it.
    Close,
    /// Both sides hear of it rudely.
    Reset,
    /// The server does not hear of it: the network is gone.
    Silence,
}

#[derive(Default)]
struct State {
    armed: Option<(Cut, End)>,
    bytes_up: usize,
    /// Connections that the server still believes in.
    silent: Vec<TcpStream>,
}

/// See the module.
pub struct Proxy {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Stands before the database of this url.
    pub async fn before(url: &str) -> Self {
        let (head, rest) = url.split_once('@').expect("a url with a user");
        let (place, database) = rest.split_once('/').expect("a url with a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("{head}@{}/{database}", listener.local_addr().expect("it is bound"));
        let state: Arc<Mutex<State>> = Arc::default();
        let (server, shared) = (place.to_owned(), state.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.expect("the database is there");
                tokio::spawn(relay(client, server, shared.clone()));
            }
        });
        Self { url, state }
    }

    pub fn arm(&self, cut: Cut, end: End) {
        self.state.lock().unwrap().armed = Some((cut, end));
    }

    /// Whether the cut that was armed last has come.
    pub fn has_cut(&self) -> bool {
        self.state.lock().unwrap().armed.is_none()
    }

    /// Bytes that have reached the server so far.
    pub fn bytes_up(&self) -> usize {
        self.state.lock().unwrap().bytes_up
    }

    /// The server hears of all ends that it has not heard of.
    pub fn end_silence(&self) {
        self.state.lock().unwrap().silent.clear();
    }
}

/// What to do with bytes on their way to the server.
enum Step {
    Pass,
    /// Pass so many of them, and end.
    Cut(usize, End),
    /// Pass them, pass so many bytes of the answer, and end.
    CutReply(usize, End),
}

impl State {
    fn step(&mut self, bytes: &[u8]) -> Step {
        let at_commit = bytes.windows(COMMIT.len()).position(|window| window == COMMIT);
        let step = match (self.armed, at_commit) {
            (Some((Cut::AfterBytes(left), end)), _) if left < bytes.len() => Step::Cut(left, end),
            (Some((Cut::AfterBytes(left), end)), _) => {
                self.armed = Some((Cut::AfterBytes(left - bytes.len()), end));
                Step::Pass
            }
            (Some((Cut::InCommit(passed), end)), Some(place)) => Step::Cut(place + passed, end),
            (Some((Cut::InReply(passed), end)), Some(_)) => Step::CutReply(passed, end),
            _ => Step::Pass,
        };
        if !matches!(step, Step::Pass) {
            self.armed = None;
        }
        self.bytes_up += bytes.len();
        step
    }
}

async fn relay(mut client: TcpStream, mut server: TcpStream, state: Arc<Mutex<State>>) {
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let bytes = &up[..read.unwrap_or(0)];
                if bytes.is_empty() {
                    return;
                }
                let step = state.lock().unwrap().step(bytes);
                let (passed, end) = match step {
                    Step::Pass => (bytes.len(), None),
                    Step::Cut(passed, end) => (passed, Some(end)),
                    Step::CutReply(_, end) => (bytes.len(), Some(end)),
                };
                if server.write_all(&bytes[..passed]).await.is_err() {
                    return;
                }
                if let Step::CutReply(wanted, _) = step {
                    // Once the server answers, it has committed.
                    let read = server.read(&mut down).await.unwrap_or(0);
                    drop(client.write_all(&down[..read.min(wanted)]).await);
                }
                match end {
                    None => {}
                    Some(End::Close) => return,
                    Some(End::Reset) => {
                        client.set_zero_linger().expect("an open socket");
                        server.set_zero_linger().expect("an open socket");
                        return;
                    }
                    Some(End::Silence) => {
                        drop(client);
                        state.lock().unwrap().silent.push(server);
                        return;
                    }
                }
            }
            read = server.read(&mut down) => {
                let read = read.unwrap_or(0);
                if read == 0 || client.write_all(&down[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}
