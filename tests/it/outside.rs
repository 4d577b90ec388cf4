//! Sources whose outside is away: told by name, with the reason, as long as it lasts.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use serde_json::Value;

use crate::http::{free_port, get};
use crate::kinesis::stream::Stream;
use crate::process::{Process, wait_until};
use crate::services;

/// Passes on what comes to a port where nobody has listened before.
fn come_back(port: u16, to: String) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free still");
    let pump = |mut from: TcpStream, mut to: TcpStream| {
        // Either side may hang up.
        thread::spawn(move || io::copy(&mut from, &mut to).and(to.shutdown(Shutdown::Both)))
    };
    thread::spawn(move || {
        for incoming in listener.incoming() {
            let inner = incoming.expect("a connection");
            let outer = TcpStream::connect(&to).expect("the service is up");
            pump(inner.try_clone().expect("a socket"), outer.try_clone().expect("a socket"));
            pump(outer, inner);
        }
    });
}

/// Host and port of a URL.
fn address(url: &str) -> String {
    let (_, rest) = url.split_once("://").expect("a scheme");
    rest.rsplit('@').next().and_then(|rest| rest.split('/').next()).expect("a host").to_owned()
}

#[test]
fn a_broker_a_stream_and_a_bucket_that_are_away_are_each_told_until_they_are_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stream = runtime.block_on(Stream::new("away-source", 1));
    let (bucket, s3) = (services::bucket(), services::s3().environment());
    let [http, broker, kinesis, store] = [(); 4].map(|()| free_port());
    let text = format!(
        r#"
[pipeline]
name = "outside"
data_dir = {data:?}
[http]
listen = "127.0.0.1:{http}"
[schema.reading]
device = "text"
[sources.plant]
type = "mqtt"
url = "mqtt://127.0.0.1:{broker}"
topics = ["{name}/#"]
schema = "reading"
[sources.stream]
type = "kinesis"
stream = "{name}"
schema = "reading"
[sources.objects]
type = "s3"
url = "s3://{bucket}/in/"
schema = "reading"
format = "jsonl"
poll = "200ms"
[sinks.out]
type = "console"
inputs = ["plant", "stream", "objects"]
"#,
        data = folder.path().join("data"),
        name = stream.name,
    );
    let file = folder.path().join("outside.toml");
    std::fs::write(&file, text).expect("writable");
    let real_store = s3.iter().find(|(name, _)| name == "AWS_ENDPOINT_URL").map(|(_, url)| url.clone()).expect("set");
    let endpoints = [
        ("AWS_ENDPOINT_URL_KINESIS", format!("http://127.0.0.1:{kinesis}")),
        ("AWS_ENDPOINT_URL_S3", format!("http://127.0.0.1:{store}")),
    ];
    let others = s3.iter().filter(|(name, _)| name != "AWS_ENDPOINT_URL").map(|(name, value)| (&**name, &**value));
    let variables: Vec<(&str, &str)> = others.chain(endpoints.iter().map(|(name, value)| (*name, &**value))).collect();
    let mut run = Process::start(&["run", &file.display().to_string()], &variables, folder.path(), "outside");
    run.wait_for_log("live page");
    let health = || -> Value { serde_json::from_str(&get(http, "/healthz", None).1).expect("JSON") };
    let state = |health: &Value, index: usize| health["stages"][index]["state"].as_str().expect("a word").to_owned();

    let told = wait_until("all three to be told", || {
        let health = health();
        (0..3).all(|index| state(&health, index) == "retrying").then_some(health)
    });
    assert_eq!(told["status"], "degraded", "{told:#}");
    for (index, what) in [(0, "broker"), (1, "stream"), (2, "bucket")] {
        let stage = &told["stages"][index];
        let error = stage["last_error"].as_str().expect("a reason");
        assert!(error.contains(what), "{stage:#}");
        assert!(stage["retries"].as_u64() > Some(0), "{stage:#}");
    }
    wait_until("one to be named", || {
        let words = health()["bottleneck"]["words"].as_str().expect("words").to_owned();
        ["plant", "stream", "objects"].iter().any(|name| words.contains(name)).then_some(())
    });

    // One after the other: each for itself.
    let services = [
        (0, broker, address(&services::mqtt_url())),
        (1, kinesis, address(&stream.endpoint)),
        (2, store, address(&real_store)),
    ];
    for (index, port, to) in services {
        assert_eq!(state(&health(), index), "retrying", "{:#}", health());
        come_back(port, to);
        wait_until("it to be well", || (state(&health(), index) == "running").then_some(()));
    }
    assert_eq!(health()["status"], "ok", "{:#}", health());
    let (status, log) = run.stop();
    assert!(status.success(), "{log}");
}
