//! What a message of a queue says of new objects: S3's own event notifications, also through SNS, and EventBridge's.
//!
//! Only bucket and key count. Size, ETag and order are asked of the store: notifications come twice and in any order, and may
//! tell of a content that has been written over since.

use serde::Deserialize;

/// An object that a message tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) bucket: String,
    pub(super) key: String,
}

/// A message that is none of the known shapes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no notification of S3, SNS or EventBridge")]
pub(super) struct Unreadable;

/// What S3 puts into a queue by itself.
#[derive(Deserialize)]
struct S3Event {
    #[serde(rename = "Records")]
    records: Vec<S3Record>,
}

#[derive(Deserialize)]
struct S3Record {
    #[serde(rename = "eventName")]
    event_name: String,
    s3: S3Entity,
}

#[derive(Deserialize)]
struct S3Entity {
    bucket: Bucket,
    object: Object,
}

#[derive(Deserialize)]
struct Bucket {
    name: String,
}

#[derive(Deserialize)]
struct Object {
    key: String,
}

/// What S3 sends when a notification is set up.
#[derive(Deserialize)]
struct S3Test {
    #[serde(rename = "Event")]
    event: String,
}

#[derive(Deserialize)]
struct SnsEnvelope {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Message")]
    message: String,
}

#[derive(Deserialize)]
struct EventBridgeEvent {
    source: String,
    #[serde(rename = "detail-type")]
    detail_type: String,
    detail: S3Entity,
}

/// The objects that a message tells of as made; none for a test, a deletion and the like.
///
/// # Errors
/// It is no notification.
pub(super) fn notices(body: &str) -> Result<Vec<Notice>, Unreadable> {
    if let Ok(envelope) = serde_json::from_str::<SnsEnvelope>(body) {
        // An envelope holds a notification, and no other envelope.
        return if envelope.kind == "Notification" { of_event(&envelope.message) } else { Ok(Vec::new()) };
    }
    of_event(body)
}

fn of_event(body: &str) -> Result<Vec<Notice>, Unreadable> {
    if let Ok(event) = serde_json::from_str::<S3Event>(body) {
        let made = event
            .records
            .into_iter()
            .filter(|record| record.event_name.trim_start_matches("s3:").starts_with("ObjectCreated"));
        return made
            .map(|record| {
                let key = decoded(&record.s3.object.key).ok_or(Unreadable)?;
                Ok(Notice { bucket: record.s3.bucket.name, key })
            })
            .collect();
    }
    if let Ok(event) = serde_json::from_str::<EventBridgeEvent>(body) {
        let made = event.source == "aws.s3" && event.detail_type == "Object Created";
        // Its keys stand as they are.
        let notice = Notice { bucket: event.detail.bucket.name, key: event.detail.object.key };
        return Ok(made.then_some(notice).into_iter().collect());
    }
    match serde_json::from_str::<S3Test>(body) {
        Ok(test) if test.event == "s3:TestEvent" => Ok(Vec::new()),
        _ => Err(Unreadable),
    }
}

/// A key as S3 writes it into its notifications: as in a form.
fn decoded(key: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn notice(key: &str) -> Notice {
        Notice { bucket: "lake".to_owned(), key: key.to_owned() }
    }

    fn s3_event(name: &str, key: &str) -> String {
        json!({ "Records": [{
            "eventVersion": "2.1", "eventSource": "aws:s3", "awsRegion": "eu-central-1",
            "eventTime": "2026-01-31T12:00:00.000Z", "eventName": name,
            "s3": {
                "s3SchemaVersion": "1.0", "configurationId": "iot",
                "bucket": { "name": "lake", "arn": "arn:aws:s3:::lake" },
                "object": { "key": key, "size": 1024, "eTag": "d41d8cd9", "sequencer": "0055AED6DCD90281E5" },
            },
        }] })
        .to_string()
    }

    #[test]
    fn the_three_shapes_tell_of_the_same_object() {
        let event = s3_event("ObjectCreated:Put", "raw/2026/a+b%2Bc%C3%A9.gz");
        let sns = json!({ "Type": "Notification", "MessageId": "x", "TopicArn": "arn", "Message": event }).to_string();
        let bridge = json!({
            "version": "0", "id": "x", "detail-type": "Object Created", "source": "aws.s3", "account": "1",
            "detail": { "version": "0", "bucket": { "name": "lake" },
                        "object": { "key": "raw/2026/a b+cé.gz", "size": 1024, "etag": "d41d8cd9" }, "reason": "PutObject" },
        })
        .to_string();
        for message in [event, sns, bridge] {
            assert_eq!(notices(&message), Ok(vec![notice("raw/2026/a b+cé.gz")]), "{message}");
        }
        assert_eq!(notices(&s3_event("s3:ObjectCreated:CompleteMultipartUpload", "a")), Ok(vec![notice("a")]));
    }

    #[test]
    fn what_makes_no_object_tells_of_none() {
        let test = json!({ "Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "lake" }).to_string();
        let subscription = json!({ "Type": "SubscriptionConfirmation", "Message": "You have chosen" }).to_string();
        for message in [test, subscription, s3_event("ObjectRemoved:Delete", "a")] {
            assert_eq!(notices(&message), Ok(Vec::new()), "{message}");
        }
    }

    #[test]
    fn what_is_no_notification_is_told() {
        for message in ["", "hello", "{}", "[]", r#"{"Records": [{}]}"#, &s3_event("ObjectCreated:Put", "a%zz")] {
            assert_eq!(notices(message), Err(Unreadable), "{message}");
        }
    }
}
