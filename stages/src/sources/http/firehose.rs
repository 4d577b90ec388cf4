//! The protocol by which an Amazon Data Firehose delivers to an HTTP endpoint, version 1.0, as AWS documents it:
//! <https://docs.aws.amazon.com/firehose/latest/dev/httpdeliveryrequestresponse.html>.
//!
//! A request is a JSON object with a request id, which also stands in a header and stays the same when the request is sent
//! again, a time, and records in base64. It was delivered if the answer is a 200 with the same id; any other answer is
//! tried again, but 413, after which Firehose gives the records up.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::refusal::Refusal;

/// What the endpoint's owner has given to Firehose.
pub(super) const ACCESS_KEY: &str = "x-amz-firehose-access-key";
const PROTOCOL_VERSION: &str = "x-amz-firehose-protocol-version";
const REQUEST_ID: &str = "x-amz-firehose-request-id";
/// The only one there is.
const VERSION: &str = "1.0";
/// The longest text of an error that Firehose takes.
const ERROR_CHARS_MAX: usize = 8192;
/// A request has no more.
const RECORDS_MAX: usize = 10_000;

/// Whether a request is one of a Firehose.
pub(super) fn is_firehose(headers: &HeaderMap) -> bool {
    headers.contains_key(PROTOCOL_VERSION) || headers.contains_key(REQUEST_ID)
}

/// The id of a request, for its answer; empty if it has none.
pub(super) fn request_id(headers: &HeaderMap) -> &str {
    headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default()
}

/// Whether it is a request that we know to answer.
///
/// # Errors
/// What is wrong with its headers.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let version = headers.get(PROTOCOL_VERSION).and_then(|version| version.to_str().ok());
    match version {
        Some(VERSION) => {}
        Some(version) => {
            let version = version.escape_debug();
            return Err(Refusal::bad(format!("version {version} of Firehose's protocol is not known; 1.0 is")));
        }
        None => return Err(Refusal::bad(format!("a Firehose says its protocol's version in {PROTOCOL_VERSION}"))),
    }
    if request_id(headers).is_empty() {
        return Err(Refusal::bad(format!("a Firehose names its request in {REQUEST_ID}")));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Request<'b> {
    #[serde(rename = "requestId", borrow)]
    request_id: Cow<'b, str>,
    #[serde(borrow)]
    records: Records<'b>,
}

/// No more of them than one beyond [`RECORDS_MAX`] are kept, however many come.
struct Records<'b>(Vec<Record<'b>>);

impl<'de: 'b, 'b> Deserialize<'de> for Records<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InBounds;

        impl<'de> Visitor<'de> for InBounds {
            type Value = Vec<Record<'de>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of records")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut records = Vec::new();
                while records.len() <= RECORDS_MAX {
                    let Some(record) = array.next_element()? else { return Ok(records) };
                    records.push(record);
                }
                while array.next_element::<IgnoredAny>()?.is_some() {}
                Ok(records)
            }
        }

        deserializer.deserialize_seq(InBounds).map(Self)
    }
}

#[derive(Deserialize)]
struct Record<'b> {
    #[serde(borrow)]
    data: Cow<'b, str>,
}

/// The records of a request, as they were put into the Firehose: one behind the other, and where each of them lies.
///
/// # Errors
/// What is wrong with the body.
pub(super) fn records(headers: &HeaderMap, body: &[u8]) -> Result<(Vec<u8>, Vec<Range<usize>>), Refusal> {
    let request: Request<'_> = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad(format!("the body is no Firehose request: {error}")))?;
    if request.request_id != request_id(headers) {
        return Err(Refusal::bad(format!("the request id in the body is not that in {REQUEST_ID}")));
    }
    let Records(records) = request.records;
    if records.len() > RECORDS_MAX {
        return Err(Refusal::too_large(format!("a Firehose request has at most {RECORDS_MAX} records")));
    }
    // Three bytes of four, as exactly as the sender has packed them.
    let mut decoded = Vec::with_capacity(records.iter().map(|record| record.data.len().div_ceil(4) * 3).sum());
    let mut places = Vec::with_capacity(records.len());
    for (number, record) in records.iter().enumerate() {
        let begin = decoded.len();
        STANDARD
            .decode_vec(record.data.as_bytes(), &mut decoded)
            .map_err(|error| Refusal::bad(format!("record {number} is no base64: {error}")))?;
        places.push(begin..decoded.len());
    }
    Ok((decoded, places))
}

/// The body of an answer.
pub(super) fn answer(request_id: &str, now_ms: i64, error: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        #[serde(rename = "requestId")]
        request_id: &'a str,
        timestamp: i64,
        #[serde(rename = "errorMessage", skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    }
    let error = error.map(|error| error.chars().take(ERROR_CHARS_MAX).collect());
    let answer = Answer { request_id, timestamp: now_ms, error };
    serde_json::to_string(&answer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue, StatusCode};

    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    /// The example of AWS's documentation.
    const EXAMPLE: &str = r#"{
        "requestId": "ed4acda5-034f-9f42-bba1-f29aea6d7d8f",
        "timestamp": 1578090901599,
        "records": [ { "data": "aGVsbG8=" }, { "data": "aGVsbG8gd29ybGQ=" } ]
    }"#;

    #[test]
    fn records_come_out_as_they_were_put_in() {
        let headers = headers(&[(PROTOCOL_VERSION, "1.0"), (REQUEST_ID, "ed4acda5-034f-9f42-bba1-f29aea6d7d8f")]);
        assert!(is_firehose(&headers));
        assert_eq!(check(&headers), Ok(()));
        let (bytes, places) = records(&headers, EXAMPLE.as_bytes()).unwrap();
        let records: Vec<_> = places.into_iter().map(|place| &bytes[place]).collect();
        assert_eq!(records, [&b"hello"[..], b"hello world"]);
    }

    #[test]
    fn what_is_not_the_protocol_is_told_where() {
        for (sent, why) in [
            (&[(PROTOCOL_VERSION, "2.0"), (REQUEST_ID, "a")][..], "version 2.0"),
            (&[(REQUEST_ID, "a")], "says its protocol's version"),
            (&[(PROTOCOL_VERSION, "1.0")], "names its request"),
        ] {
            let refusal = check(&headers(sent)).unwrap_err();
            assert!(refusal.message.contains(why), "{}", refusal.message);
        }
        let headers = headers(&[(REQUEST_ID, "a")]);
        for (body, why) in [
            ("{", "no Firehose request: EOF"),
            (r#"{"requestId": "a"}"#, "missing field `records`"),
            (r#"{"requestId": "b", "records": []}"#, "is not that in x-amz-firehose-request-id"),
            (r#"{"requestId": "a", "records": [{"data": "eA=="}, {"data": "?"}]}"#, "record 1 is no base64"),
            (r#"{"requestId": "a", "records": [{}]}"#, "missing field `data`"),
        ] {
            let refusal = records(&headers, body.as_bytes()).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
            assert!(refusal.message.contains(why), "{}", refusal.message);
        }
    }

    #[test]
    fn more_records_than_a_firehose_sends_are_refused_without_being_kept() {
        let headers = headers(&[(REQUEST_ID, "a")]);
        let body = |count: usize| {
            let records = vec![r#"{"data":""}"#; count].join(",");
            format!(r#"{{"requestId":"a","records":[{records}]}}"#)
        };
        assert_eq!(records(&headers, body(RECORDS_MAX).as_bytes()).unwrap().1.len(), RECORDS_MAX);
        let refusal = records(&headers, body(RECORDS_MAX + 100_000).as_bytes()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn an_answer_has_the_documented_shape() {
        assert_eq!(answer("a\"b", 1_578_090_903_599, None), r#"{"requestId":"a\"b","timestamp":1578090903599}"#);
        let long = answer("id", 1, Some(&"é".repeat(10_000)));
        let parsed: serde_json::Value = serde_json::from_str(&long).unwrap();
        assert_eq!(parsed["errorMessage"].as_str().unwrap().chars().count(), ERROR_CHARS_MAX);
    }
}
