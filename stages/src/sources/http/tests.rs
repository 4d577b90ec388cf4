//! The source as clients meet it, over real connections.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use arrow::array::AsArray;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pipeline_engine::spool::Spool;
use pipeline_engine::spool::testing::SimulatedDisk;
use pipeline_engine::stage::{Batch, BuildContext, BuildError, BuiltSource, SourceConfig};
use pipeline_engine::storage::{FsStorage, Storage};
use pipeline_engine::testing::{self, Outlet, build_context, deliver};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;

mod letters;
mod strangers;

const SCHEMA: &str = "[schema.t]\ndevice = { type = \"text\", topic_segment = 2 }\nn = \"int64\"\n";

fn build(text: &str) -> Result<BuiltSource, BuildError> {
    let config: HttpSourceConfig = toml::from_str(text).unwrap();
    config.build(&build_context("in", SCHEMA))
}

type Run = JoinHandle<Result<(), StageError>>;

/// What a pipeline keeps between its runs, and where its source listens.
struct House {
    address: SocketAddr,
    data: tempfile::TempDir,
    disk: Arc<dyn Storage>,
}

/// An answer: status, headers in lower case, body.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: String,
    body: String,
}

impl House {
    fn new() -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, data) = (free.local_addr().unwrap(), tempfile::tempdir().unwrap());
        Self { address, data, disk: Arc::new(FsStorage) }
    }

    fn context(&self) -> BuildContext {
        build_context("in", SCHEMA).with_data_dir(self.data.path())
    }

    /// A source that has begun to listen, and what reads it.
    async fn run(&self, more: &str) -> (Outlet, Run) {
        let config: HttpSourceConfig = toml::from_str(&format!("address = \"{}\"\n{more}", self.address)).unwrap();
        let built = config.build(&self.context()).unwrap();
        let (cx, outlet) = testing::resumed_source(10_000, BTreeMap::new(), self.disk.clone());
        let run = tokio::spawn(built.source.run(cx));
        while TcpStream::connect(self.address).await.is_err() {
            assert!(!run.is_finished(), "{:?}", run.await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (outlet, run)
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
        self.send("POST", path, headers, body.as_ref()).await
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        if !head.contains("content-length") {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, headers: head.to_lowercase(), body: body.to_owned() }
    }

    /// As a Firehose does.
    async fn deliver(&self, id: &str, key: &str, records: &[&str]) -> Answer {
        let records: Vec<_> =
            records.iter().map(|record| serde_json::json!({ "data": STANDARD.encode(record) })).collect();
        let body = serde_json::json!({ "requestId": id, "timestamp": 1_578_090_901_599_i64, "records": records });
        self.post("/iot/d7", &firehose(id, key), body.to_string()).await
    }
}

fn firehose<'a>(id: &'a str, key: &'a str) -> [(&'static str, &'a str); 4] {
    [
        ("x-amz-firehose-protocol-version", "1.0"),
        ("x-amz-firehose-request-id", id),
        ("x-amz-firehose-access-key", key),
        ("content-type", "application/json"),
    ]
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// `device=n` of each row.
fn rows(batch: &Batch) -> Vec<String> {
    let device = batch.rows.column_by_name("device").unwrap().as_string::<i32>();
    let n = batch.rows.column_by_name("n").unwrap().as_primitive::<arrow::datatypes::Int64Type>();
    (0..batch.rows.num_rows()).map(|row| format!("{}={}", device.value(row), n.value(row))).collect()
}

/// So many rows, in order; whatever comes with them is delivered.
async fn take_rows(outlet: &mut Outlet, count: usize) -> Vec<String> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let batch = outlet.next().await.expect("a batch");
        taken.extend(rows(&batch));
        deliver(batch);
    }
    taken
}

/// Stops it, takes what is left, and sees it end well.
async fn stop(mut outlet: Outlet, run: Run) -> Vec<String> {
    outlet.stop();
    let mut left = Vec::new();
    while let Some(batch) = outlet.next().await {
        left.extend(rows(&batch));
        deliver(batch);
    }
    while let Some(batch) = outlet.next_rejected().await {
        deliver(batch);
    }
    run.await.unwrap().unwrap();
    left
}

/// Ends it as a crash does.
async fn crash(outlet: Outlet, run: Run) {
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    drop(outlet);
}

const TYPED: &str = "schema = \"t\"\n";

#[tokio::test]
async fn what_is_posted_comes_out_in_order_with_the_path_as_its_topic() {
    let house = House::new();
    let (mut outlet, run) = house.run(TYPED).await;
    let one = house.post("/iot/d1", &[], r#"{"n": 1}"#).await;
    assert_eq!((one.status, one.body.as_str()), (200, r#"{"messages":1}"#));
    let json = [("content-type", "application/json; charset=utf-8")];
    assert_eq!(house.post("/iot/d2?ignored=1", &json, r#"[{"n": 2}, {"n": 3}]"#).await.body, r#"{"messages":2}"#);
    let lines = [("content-type", "application/x-ndjson")];
    assert_eq!(house.post("/iot/d3", &lines, "{\"n\": 4}\n{\"n\": 5}\n").await.status, 200);
    let packed = [("content-encoding", "gzip")];
    assert_eq!(house.post("/iot/d4", &packed, gzip(br#"{"n": 6}"#)).await.status, 200);
    assert_eq!(take_rows(&mut outlet, 6).await, ["d1=1", "d2=2", "d2=3", "d3=4", "d3=5", "d4=6"]);
    assert_eq!(house.post("/iot", &[], "[]").await.body, r#"{"messages":0}"#);
    assert_eq!(outlet.counter("posts"), 5);
    assert_eq!(stop(outlet, run).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_bad_message_leaves_by_rejected_and_its_neighbours_go_on() {
    let house = House::new();
    let (mut outlet, run) = house.run("schema = \"t\"\npayload_max = \"100B\"\n").await;
    let long = format!(r#"{{"n": 1, "x": "{}"}}"#, "y".repeat(200));
    let body = format!(r#"[{{"n": 1}}, {{"n": "no"}}, 7, {long}, {{"n": 2}}]"#);
    assert_eq!(house.post("/iot/d1", &[], body).await.body, r#"{"messages":5}"#);
    assert_eq!(house.post("/iot/d1", &[], "{\"n\": 3}\n{\"n\": \n{\"n\": 4}").await.status, 200);
    let mut reasons = Vec::new();
    while reasons.len() < 4 {
        let batch = outlet.next_rejected().await.expect("dead letters");
        let reason = batch.rows.column_by_name("reason").unwrap().as_string::<i32>();
        reasons.extend(reason.iter().map(|reason| reason.unwrap().to_owned()));
        deliver(batch);
    }
    reasons.sort();
    assert_eq!(reasons, ["invalid_json", "not_an_object", "oversize", "wrong_type"]);
    assert_eq!(take_rows(&mut outlet, 4).await, ["d1=1", "d1=2", "d1=3", "d1=4"]);
    assert_eq!(outlet.counter("oversize"), 1);
    stop(outlet, run).await;
}

#[tokio::test]
async fn what_is_not_taken_says_why() {
    let house = House::new();
    let (outlet, run) = house.run("tokens = [\"old\", \"new\"]\nbody_max = \"4KiB\"\n").await;
    let known = ("authorization", "Bearer new");
    let json = ("content-type", "application/json");
    let large = " ".repeat(5_000);
    let bomb = gzip(&vec![b' '; 1 << 20]);
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8], u16, &'a str);
    let cases: [Case<'_>; 11] = [
        ("POST", &[], b"{}", 401, "a token is needed"),
        ("POST", &[("authorization", "Bearer other")], b"{}", 401, "not one of this source's"),
        ("GET", &[known], b"", 405, "messages are posted"),
        ("POST", &[known, json], b"{\"n\" 1}", 400, "the body is no JSON: expected `:` at line 1 column 6"),
        ("POST", &[known], b"", 400, "it is empty"),
        ("POST", &[known], b"hello", 400, "expected value at line 1 column 1"),
        ("POST", &[known], large.as_bytes(), 413, "larger than 4.0 KiB"),
        ("POST", &[known, ("content-encoding", "gzip")], &bomb, 413, "unpacks to more than 4.0 KiB"),
        ("POST", &[known, ("content-encoding", "zstd")], b"{}", 415, "packed as \\\"zstd\\\""),
        ("POST", &[known, ("content-type", "application/cbor")], b"\xa0", 415, "takes in JSON"),
        ("POST", &[known, ("content-type", "text/html")], b"{}", 415, "text/html"),
    ];
    for (method, headers, body, status, why) in cases {
        let answer = house.send(method, "/", headers, body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.body.starts_with("{\"error\":") && answer.body.contains(why), "{answer:?}");
        assert!(answer.headers.contains("server: pipeline"), "{answer:?}");
    }
    assert_eq!(house.post("/", &[("authorization", "Bearer old")], "{}").await.status, 200);
    assert_eq!((outlet.counter("unauthorized_posts"), outlet.counter("refused_posts")), (2, 9));
    outlet.stop();
    drop(outlet);
    run.abort();
}

#[tokio::test]
async fn other_formats_are_one_message_a_body() {
    let house = House::new();
    let (mut outlet, run) = house.run("schema = \"t\"\nformat = \"msgpack\"\n").await;
    let body = rmp_serde::to_vec(&serde_json::json!([{ "n": 1 }, { "n": 2 }])).unwrap();
    let answer = house.post("/iot/d1", &[("content-type", "application/msgpack")], body).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"messages":1}"#));
    assert_eq!(take_rows(&mut outlet, 2).await, ["d1=1", "d1=2"]);
    assert_eq!(house.post("/iot/d1", &[("content-type", "application/json")], "{}").await.status, 415);
    stop(outlet, run).await;
}

#[tokio::test]
async fn nothing_is_answered_before_it_is_on_disk_and_a_full_disk_says_come_again() {
    let disk = SimulatedDisk::new(1);
    let house = House { disk: disk.mount(), ..House::new() };
    let (mut outlet, run) = house.run("schema = \"t\"\nspool = { min_free = \"1MiB\" }\n").await;
    assert_eq!(house.post("/iot/d1", &[], r#"{"n": 1}"#).await.status, 200);
    disk.set_capacity(0);
    let house = Arc::new(house);
    let waiting = tokio::spawn({
        let house = house.clone();
        async move { house.post("/iot/d1", &[], r#"{"n": 2}"#).await }
    });
    while outlet.counter("spool_pauses") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = house.post("/iot/d1", &[], r#"{"n": 3}"#).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.headers.contains("retry-after: 30"), "{refused:?}");
    assert!(refused.body.contains("the disk is full"), "{refused:?}");
    assert!(!waiting.is_finished(), "it is not on disk");
    disk.set_capacity(1 << 30);
    assert_eq!(waiting.await.unwrap().status, 200, "by itself, once there is room");
    assert_eq!(house.post("/iot/d1", &[], r#"{"n": 4}"#).await.status, 200);
    assert_eq!(take_rows(&mut outlet, 3).await, ["d1=1", "d1=2", "d1=4"]);
    assert_eq!(outlet.counter("postponed_posts"), 1);
    stop(outlet, run).await;
}

#[tokio::test]
async fn a_post_that_comes_again_by_its_key_is_stored_once_over_a_crash_too() {
    let house = House::new();
    let (outlet, run) = house.run(TYPED).await;
    let key = [("idempotency-key", "a")];
    for _ in 0..2 {
        assert_eq!(house.post("/iot/d1", &key, r#"[{"n": 1}, {"n": 2}]"#).await.body, r#"{"messages":2}"#);
    }
    assert_eq!(outlet.counter("redelivered"), 1);
    crash(outlet, run).await;

    let (mut outlet, run) = house.run(TYPED).await;
    assert_eq!(house.post("/iot/d1", &key, r#"[{"n": 1}, {"n": 2}]"#).await.status, 200);
    assert_eq!(outlet.counter("redelivered"), 1);
    // Another content by the same key, and the same content without a key, are posts of their own.
    assert_eq!(house.post("/iot/d1", &key, r#"[{"n": 1}, {"n": 3}]"#).await.status, 200);
    assert_eq!(house.post("/iot/d1", &[], r#"{"n": 1}"#).await.status, 200);
    // So is what another device posts, which may count its posts alike.
    assert_eq!(house.post("/iot/d2", &key, r#"[{"n": 1}, {"n": 2}]"#).await.status, 200);
    let rows = take_rows(&mut outlet, 7).await;
    assert_eq!(rows, ["d1=1", "d1=2", "d1=1", "d1=3", "d1=1", "d2=1", "d2=2"]);
    assert_eq!(stop(outlet, run).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_post_that_a_crash_has_cut_short_is_completed() {
    let house = House::new();
    let body = br#"[{"n": 1}, {"n": 2}, {"n": 3}]"#;
    let headers = [("idempotency-key", "a")]
        .map(|(name, value)| (axum::http::HeaderName::from_static(name), axum::http::HeaderValue::from_static(value)));
    let head = post::Head::of("/iot/d1", headers.into_iter().collect()).unwrap();
    let reading = post::Reading { format: Format::Json, payload_bytes_max: 1_000 };
    let bounds = Bounds { body_bytes_max: 1_000, memory_bytes_max: 1 << 20, payload_bytes_max: 1_000 };
    let post = reading.read(head, body.as_slice().into(), &memory::Memory::new(bounds)).await.unwrap();
    let cx = house.context();
    let options = SpoolOptions::new(&cx.pipeline, &cx.stage);
    let (spool, mut writer, _) = Spool::open(&cx.state_dir().join("spool"), options, house.disk.clone()).unwrap();
    for record in post.records_from(0).take(2) {
        writer.append(&record).await.unwrap();
    }
    writer.close().await.unwrap();
    drop(spool);

    let (mut outlet, run) = house.run(TYPED).await;
    assert_eq!(house.post("/iot/d1", &[("idempotency-key", "a")], body).await.body, r#"{"messages":3}"#);
    assert_eq!(take_rows(&mut outlet, 3).await, ["d1=1", "d1=2", "d1=3"]);
    assert_eq!(stop(outlet, run).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_firehose_gets_the_answers_that_it_documents() {
    let house = House::new();
    let (mut outlet, run) = house.run("schema = \"t\"\ntokens = \"key\"\nbody_max = \"4KiB\"\n").await;
    let shape = |answer: &Answer| -> serde_json::Value {
        assert!(answer.headers.contains("content-type: application/json"), "{answer:?}");
        assert!(!answer.headers.contains("content-encoding"), "{answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    };

    // Records hold one reading, several without anything between them, or something else.
    let records = [r#"{"n": 1}"#, "{\"n\": 2}{\"n\": 3}\n", "no JSON"];
    let taken = house.deliver("r-1", "key", &records).await;
    let body = shape(&taken);
    assert_eq!((taken.status, &body["requestId"]), (200, &"r-1".into()));
    assert!(body["timestamp"].as_i64().is_some_and(|ms| ms > 1_700_000_000_000), "{body}");
    assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
    assert_eq!(take_rows(&mut outlet, 3).await, ["d7=1", "d7=2", "d7=3"]);
    let refused = outlet.next_rejected().await.unwrap();
    assert_eq!(refused.rows.num_rows(), 1);
    deliver(refused);

    // It repeats a request whose answer was lost.
    assert_eq!(house.deliver("r-1", "key", &records).await.status, 200);
    assert_eq!(outlet.counter("redelivered"), 1);

    let wrong = house.deliver("r-2", "other", &records).await;
    let body = shape(&wrong);
    assert_eq!((wrong.status, &body["requestId"]), (401, &"r-2".into()));
    assert!(body["errorMessage"].as_str().is_some_and(|text| text.contains("token")), "{body}");

    let large = "x".repeat(5_000);
    let oversize = house.deliver("r-3", "key", &[&large]).await;
    assert_eq!((oversize.status, &shape(&oversize)["requestId"]), (413, &"r-3".into()));
    let bomb = gzip(&vec![b' '; 1 << 20]);
    let packed = [&firehose("r-4", "key")[..], &[("content-encoding", "gzip")]].concat();
    assert_eq!(house.post("/iot/d7", &packed, bomb).await.status, 413);

    let body = serde_json::json!({ "requestId": "r-4", "timestamp": 1, "records": [{ "data": STANDARD.encode("{\"n\": 4}") }] });
    assert_eq!(house.post("/iot/d7", &packed, gzip(body.to_string().as_bytes())).await.status, 200);
    let other_id = house.post("/iot/d7", &firehose("r-5", "key"), body.to_string()).await;
    assert_eq!((other_id.status, &shape(&other_id)["requestId"]), (400, &"r-5".into()));
    let mut version = firehose("r-6", "key");
    version[0].1 = "1.1";
    assert_eq!(house.post("/", &version, "{}").await.status, 400);
    assert_eq!(stop(outlet, run).await, ["d7=4"]);
}

#[tokio::test]
async fn a_stop_answers_who_was_posting_and_takes_nothing_more() {
    let house = House::new();
    let (outlet, run) = house.run(TYPED).await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let head = "POST /iot/d1 HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 8\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 100"), "it waits for the body");
    outlet.stop();
    stream.write_all(br#"{"n": 1}"#).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(stop(outlet, run).await, ["d1=1"]);
    assert!(TcpStream::connect(house.address).await.is_err(), "the address is free again");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_disk_that_is_full() {
    let disk = SimulatedDisk::new(1);
    let house = Arc::new(House { disk: disk.mount(), ..House::new() });
    let (outlet, run) = house.run("schema = \"t\"\nspool = { min_free = \"1MiB\" }\n").await;
    disk.set_capacity(0);
    let waiting = tokio::spawn({
        let house = house.clone();
        async move { house.post("/iot/d1", &[], r#"{"n": 1}"#).await }
    });
    while outlet.counter("spool_pauses") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stop(outlet, run).await, Vec::<String>::new());
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("what was posted may be stored"), "{answer:?}");
}

#[tokio::test]
async fn a_connection_that_stays_open_holds_no_spool() {
    let house = House::new();
    let (outlet, run) = house.run(TYPED).await;
    let mut idle = TcpStream::connect(house.address).await.unwrap();
    idle.write_all(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    crash(outlet, run).await;
    let (outlet, run) = house.run(TYPED).await;
    drop(idle);
    crash(outlet, run).await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_apart_from_our_own() {
    let house = House::new();
    let built = build(&format!("address = \"{}\"", house.address)).unwrap();
    let examined = async |mut built: BuiltSource| {
        let report = Examination::new(true);
        built.source.examine(&report).await;
        built.source.probe().await.map_err(|error| error.chain())
    };
    assert_eq!(examined(built).await, Ok(format!("{} is free", house.address)));
    let (outlet, run) = house.run("").await;
    let found = examined(build(&format!("address = \"{}\"", house.address)).unwrap()).await;
    assert!(found.is_ok_and(|found| found.contains("answered by a pipeline")));
    crash(outlet, run).await;
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let found = examined(build(&format!("address = \"{}\"", other.local_addr().unwrap())).unwrap()).await;
    assert!(found.is_err_and(|found| found.contains("can't listen")));
}

#[test]
fn mistakes_are_named_with_a_way_out() {
    for (text, key, message) in [
        ("address = \"8080\"", "address", "no address with a port"),
        ("address = \"0.0.0.0:8080\"", "address", "without a token"),
        ("tokens = \"\"", "tokens.0", "an empty token"),
        ("tokens = [\"a\", \" \"]", "tokens.1", "an empty token"),
        ("body_max = \"2GiB\"", "body_max", "between 1 byte and"),
        ("body_max = \"128MiB\"", "memory_max", "can't hold one body"),
        ("payload_max = \"16MiB\"", "payload_max", "the spool holds"),
        ("batch_rows = 0", "batch_rows", "at least one row"),
        ("unknown_fields = \"reject\"", "unknown_fields", "without a schema"),
    ] {
        let error = build(text).err().unwrap_or_else(|| panic!("{text} is refused"));
        assert_eq!(error.key, key, "{text}");
        assert!(error.message.contains(message), "{text}: {}", error.message);
    }
    for text in ["", "address = \"0.0.0.0:1\"\ninsecure = true", "address = \"[::]:1\"\ntokens = \"t\""] {
        assert!(build(text).is_ok(), "{text}");
    }
}
