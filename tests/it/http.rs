//! A running pipeline looked at from outside: health and metrics over HTTP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Process, wait_until};

/// One that nobody has just now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

/// A pipeline that makes 500 rows a second and stores them in files, one in five hundred refused.
fn start(folder: &Path, http: &str) -> Process {
    let lake = folder.join("lake").display().to_string();
    let stages = format!(
        r#"
[pipeline]
name = "looked-at"
[http]
{http}
[schema.reading]
device_id   = {{ type = "text", required = true }}
timestamp   = {{ type = "timestamp", required = true }}
temperature = "float64"
[sources.fleet]
type = "simulator"
devices = 10
rate = 500
schema = "reading"
[transforms.valid]
type = "validate"
inputs = ["fleet"]
range = {{ temperature = [-40, 60] }}
[sinks.lake]
type = "parquet"
inputs = ["valid"]
url = "{lake}/rows"
time_column = "timestamp"
roll_age = "100ms"
[sinks.refused]
type = "parquet"
inputs = ["fleet.rejected", "valid.rejected"]
url = "{lake}/refused"
roll_age = "100ms"
"#
    );
    let file = folder.join("looked-at.toml");
    std::fs::write(&file, stages).expect("writable");
    Process::start(&["run".to_owned(), file.display().to_string()], &[], folder, "pipeline")
}

/// Status code and body.
pub fn get(port: u16, path: &str, token: Option<&str>) -> (u16, String) {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("the pipeline listens");
    connection.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(connection, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{token}Connection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code");
    (code, body.to_owned())
}

/// The value of the only series whose line starts like this.
fn value(metrics: &str, series: &str) -> f64 {
    let found: Vec<&str> = metrics.lines().filter(|line| line.starts_with(series)).collect();
    assert_eq!(found.len(), 1, "{series} in\n{metrics}");
    found[0].rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn health_and_metrics_tell_how_a_run_is() {
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let mut pipeline = start(folder.path(), &format!("listen = \"127.0.0.1:{port}\""));
    pipeline.wait_for_log("status and metrics at");
    assert_eq!(get(port, "/livez", None).0, 200);
    wait_until("the pipeline to be ready", || (get(port, "/readyz", None).0 == 200).then_some(()));
    let stored = r#"pipeline_sink_stored_rows_total{pipeline="looked-at",component="lake",component_type="parquet"}"#;
    let metrics = wait_until("rows in the lake", || {
        let (code, metrics) = get(port, "/metrics", None);
        assert_eq!(code, 200);
        (value(&metrics, stored) > 500.0).then_some(metrics)
    });
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    let valid = r#"{pipeline="looked-at",component="valid",component_type="validate""#;
    let received = value(&metrics, &format!("pipeline_component_received_rows_total{valid}"));
    assert!(received >= value(&metrics, stored), "{metrics}");
    assert_eq!(value(&metrics, &format!("pipeline_component_up{valid}")), 1.0);

    let lake = r#"pipeline="looked-at",component="lake",component_type="parquet""#;
    for clock in ["received", "event"] {
        let of = |part: &str, bucket: &str| {
            let series = format!("{part}{{{bucket}{lake},clock=\"{clock}\"}}");
            value(&metrics, &format!("pipeline_end_to_end_latency_seconds_{series}"))
        };
        let within = of("bucket", "le=\"300.0\",");
        assert_eq!(of("bucket", "le=\"+Inf\","), within, "no row of this fleet is older\n{metrics}");
        assert_eq!(of("count", ""), within, "{metrics}");
        assert_eq!(within, value(&metrics, stored), "one count a row\n{metrics}");
        assert!(of("sum", "") > 0.0);
    }
    for activity in ["busy", "blocked"] {
        let series = format!("pipeline_component_time_seconds_total{{{lake},activity=\"{activity}\"}}");
        assert!(value(&metrics, &series) >= 0.0);
    }
    let watermark = r#"pipeline_watermark_timestamp_seconds{pipeline="looked-at",component="fleet""#;
    assert!(value(&metrics, watermark) > 1.7e9, "{metrics}");

    let health: Value = serde_json::from_str(&get(port, "/healthz", None).1).expect("JSON");
    assert_eq!((&health["pipeline"], &health["status"]), (&"looked-at".into(), &"ok".into()), "{health:#}");
    let names: Vec<&str> =
        health["stages"].as_array().expect("stages").iter().filter_map(|stage| stage["name"].as_str()).collect();
    assert_eq!(names, ["fleet", "valid", "lake", "refused"]);
    let since = health["stages"][2]["since"].as_str().expect("a time");
    assert!(since.ends_with('Z') && health["stages"][2]["last_error_at"].is_null(), "{health:#}");
    assert_eq!(get(port, "/nowhere", None).0, 404);

    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    assert!(log.contains("what was received, and what became of it") && !log.contains("NOT accounted for"), "{log}");
}

#[test]
fn a_token_keeps_others_out() {
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let mut pipeline = start(folder.path(), &format!("listen = \"0.0.0.0:{port}\"\ntoken = \"open sesame\""));
    pipeline.wait_for_log("status and metrics at");
    wait_until("the pipeline to be ready", || (get(port, "/readyz", Some("open sesame")).0 == 200).then_some(()));
    for path in ["/readyz", "/healthz", "/metrics"] {
        assert_eq!(get(port, path, None).0, 401, "{path}");
        assert_eq!(get(port, path, Some("open sesamE")).0, 401, "{path}");
        assert_eq!(get(port, path, Some("open sesame")).0, 200, "{path}");
    }
    assert_eq!(get(port, "/livez", None).0, 200, "whether it is alive anybody may know");
    assert!(!pipeline.log().contains("sesame"));
}

#[test]
fn an_address_that_is_taken_is_an_error_if_the_file_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let mut pipeline = start(folder.path(), &format!("listen = \"{address}\""));
    assert_eq!(pipeline.wait().code(), Some(1));
    assert!(pipeline.log().contains(&format!("can't listen at {address}: ")), "{}", pipeline.log());
    assert!(pipeline.log().contains("[http] listen names another address"), "{}", pipeline.log());
}

/// Exit code and output of a command that looks at a pipeline.
fn look(arguments: &[&str]) -> (i32, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .args(arguments)
        .env_remove("PIPELINE_TOKEN")
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .current_dir(crate::process::root())
        .output()
        .expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().expect("it ends by itself"), text)
}

#[test]
fn status_and_top_show_a_run_from_its_file_and_say_so_when_nobody_answers() {
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let mut pipeline = start(folder.path(), &format!("listen = \"0.0.0.0:{port}\"\ntoken = \"open sesame\""));
    pipeline.wait_for_log("status and metrics at");
    let file = folder.path().join("looked-at.toml").display().to_string();
    let (_, text) = wait_until("all to be well", || Some(look(&["status", &file])).filter(|(code, _)| *code == 0));
    assert!(text.starts_with("looked-at is ok, running for "), "{text}");
    assert!(text.lines().any(|line| line.starts_with("valid    validate   running")), "{text}");
    // What holds it up is found out once a second.
    let health = wait_until("nothing to be held up", || {
        let (code, json) = look(&["status", "--json", &file]);
        let health: Value = serde_json::from_str(&json).expect("JSON");
        let words = health["bottleneck"]["words"].as_str().expect("words");
        (code == 0 && words.starts_with("Nothing is held up.")).then_some(health)
    });
    assert_eq!((&health["status"], &health["stages"][3]["name"]), (&"ok".into(), &"refused".into()));

    let (code, text) = look(&["top", &file]);
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("looked-at  ok  for ") && text.contains("  10 within 10s, 0 within 1m"), "{text}");
    assert!(!text.contains('\u{1b}'), "no terminal, no escapes: {text:?}");

    let url = format!("http://127.0.0.1:{port}");
    let (code, text) = look(&["status", "--url", &url]);
    assert_eq!(code, 2);
    assert!(text.contains("answered 401 Unauthorized: set PIPELINE_TOKEN, or name the pipeline file"), "{text}");
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    let (code, text) = look(&["status", &file]);
    assert_eq!(code, 2);
    assert!(text.starts_with(&format!("unreachable: no answer from {url}: Connection refused")), "{text}");
    assert_eq!(look(&["top", &file]).0, 1);
}

/// As when two files name no address: the first to start has the usual one.
#[test]
fn a_command_about_one_pipeline_is_not_answered_by_another() {
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let mut pipeline = start(folder.path(), &format!("listen = \"127.0.0.1:{port}\""));
    pipeline.wait_for_log("status and metrics at");
    let file = folder.path().join("looked-at.toml");
    let other = folder.path().join("other.toml").display().to_string();
    let text = std::fs::read_to_string(&file).expect("it was written");
    std::fs::write(&other, text.replace("\"looked-at\"", "\"other\"")).expect("writable");
    wait_until("all to be well", || (look(&["status", &file.display().to_string()]).0 == 0).then_some(()));
    for (command, expected) in
        [(&["status"][..], 2), (&["top"], 1), (&["reload"], 1), (&["tap", "valid"], 1), (&["slo"], 2)]
    {
        let (code, text) = look(&[command, &[&other]].concat());
        assert_eq!(code, expected, "{command:?}: {text}");
        assert!(text.contains("pipeline \"looked-at\" runs here, and not \"other\""), "{command:?}: {text}");
    }
    assert!(!pipeline.log().contains("reload"), "{}", pipeline.log());
    assert_eq!(
        look(&["status", "--url", &format!("http://127.0.0.1:{port}")]).0,
        0,
        "an address is for whoever has it"
    );
}

/// Status line and headers of an answer.
fn head(port: u16, path: &str, host: &str) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("the pipeline listens");
    connection.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    write!(connection, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("text");
    answer.split_once("\r\n\r\n").expect("a head and a body").0.to_lowercase()
}

#[test]
fn a_web_page_under_another_name_can_not_read_along() {
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let http = format!("listen = \"127.0.0.1:{port}\"\nhosts = [\"pipeline.example\"]");
    let mut pipeline = start(folder.path(), &http);
    pipeline.wait_for_log("status and metrics at");
    for path in ["/", "/page/main.js", "/healthz", "/metrics", "/snapshot", "/events", "/nowhere"] {
        let refused = head(port, path, &format!("rebound.example:{port}"));
        assert!(refused.starts_with("http/1.1 421 misdirected request"), "{path}: {refused}");
    }
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}"), "pipeline.example".to_owned()] {
        for path in ["/", "/page/style.css", "/healthz", "/metrics", "/snapshot"] {
            let head = head(port, path, &host);
            assert!(head.starts_with("http/1.1 200 ok"), "{host} {path}: {head}");
            for header in [
                "content-security-policy: default-src 'none'; script-src 'self';",
                "x-content-type-options: nosniff",
                "x-frame-options: deny",
                "cache-control: no-",
            ] {
                assert!(head.contains(header), "{header} of {path} in {head}");
            }
        }
    }
    let page = get(port, "/", None).1;
    assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains("://"), "all is of its own");
}

#[test]
fn events_are_the_minutes_before_and_then_each_second() {
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let mut pipeline = start(folder.path(), &format!("listen = \"127.0.0.1:{port}\""));
    pipeline.wait_for_log("status and metrics at");
    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("the pipeline listens");
    connection.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    write!(connection, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    let (mut text, mut part) = (String::new(), [0; 4096]);
    while text.matches("event: snapshot").count() < 4 {
        let read = connection.read(&mut part).expect("more comes");
        assert!(read > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&part[..read]));
    }
    assert!(text.to_lowercase().contains("content-type: text/event-stream"), "{text}");
    let events: Vec<(&str, Value)> = text
        .split("\n\n")
        .filter_map(|event| {
            let (name, data) = event.split_once("event: ")?.1.split_once("\ndata: ")?;
            Some((name, serde_json::from_str(data.trim_end()).ok()?))
        })
        .collect();
    assert_eq!(events[0].0, "history");
    assert!(events[0].1["sinks"][0]["stored"].is_array(), "{}", events[0].1);
    let seconds: Vec<&Value> = events.iter().filter(|(name, _)| *name == "snapshot").map(|(_, data)| data).collect();
    assert!(seconds.windows(2).all(|pair| pair[0]["at_us"].as_i64() < pair[1]["at_us"].as_i64()));
    let last = seconds.last().expect("several");
    assert_eq!((&last["pipeline"], &last["stages"][1]["name"]), (&"looked-at".into(), &"valid".into()));
    assert!(last["stages"][1]["rows_per_second"].as_f64() > Some(100.0), "{last:#}");
    assert_eq!(last["edges"][0]["from"], "fleet");
}
