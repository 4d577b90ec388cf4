//! A client that knows no more of HTTP than it needs, so that what it sends is what the test says.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Status, headers and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Posts once.
///
/// # Errors
/// There was no whole answer: nobody can know whether the post was taken.
pub fn post(port: u16, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    connection.write_all(head.as_bytes())?;
    connection.write_all(body)?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let broken = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(broken)?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    if length != Some(body.len()) {
        return Err(broken());
    }
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// The body of a request of a Firehose.
pub fn firehose_body(id: &str, records: &[String]) -> String {
    let records: Vec<_> = records.iter().map(|record| serde_json::json!({ "data": STANDARD.encode(record) })).collect();
    serde_json::json!({ "requestId": id, "timestamp": 1_578_090_901_599_i64, "records": records }).to_string()
}

/// Its headers.
pub fn firehose_headers<'a>(id: &'a str, key: &'a str) -> [(&'static str, &'a str); 5] {
    [
        ("X-Amz-Firehose-Protocol-Version", "1.0"),
        ("X-Amz-Firehose-Request-Id", id),
        ("X-Amz-Firehose-Access-Key", key),
        ("X-Amz-Firehose-Source-Arn", "arn:aws:firehose:eu-central-1:123456789012:deliverystream/iot"),
        ("Content-Type", "application/json"),
    ]
}
