//! Posts dead letters again, to the paths by which they came.
//!
//! They go where clients post, so the pipeline must be running. No key goes with them: a letter that is replayed on purpose once
//! more must not be taken for a post that comes twice.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::{StatusCode, Uri, header};
use pipeline_engine::dlq::{Letter, LetterForm, NotSent, Resender, Resent};
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::stage::StageError;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::decode::Format;
use crate::sources::spooled::message_of;

/// Above what the source may take for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(180);

/// The way back to a source.
pub(super) struct Resend {
    pub(super) address: SocketAddr,
    pub(super) token: Option<SecretString>,
    pub(super) schema: Option<Arc<DeclaredSchema>>,
    pub(super) format: Format,
    /// Made with the first letter.
    pub(super) client: Option<reqwest::Client>,
}

#[async_trait]
impl Resender for Resend {
    fn message(&self, letter: &Letter, form: LetterForm, topic: Option<&str>) -> Result<Resent, String> {
        let schema = self.schema.as_deref();
        let Resent { topic, payload } = message_of(letter, form, topic, "path", schema, self.format)?;
        if path(&topic).is_none() {
            return Err(format!("would go to \"{topic}\", which is no path of a URL"));
        }
        let payload = match self.format {
            // One message a line, so that an array stays one. A line's end stands between values alone, where it means nothing.
            Format::Json if payload.contains(&b'\n') => {
                payload.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }).collect::<Vec<_>>().into()
            }
            _ => payload,
        };
        Ok(Resent { topic, payload })
    }

    /// One after the other, so that those of one device stay in order.
    async fn send(&mut self, messages: &[Resent]) -> Result<Vec<Result<(), NotSent>>, StageError> {
        let client = match &self.client {
            // A handle, which is cheap to copy.
            Some(client) => client.clone(),
            None => {
                let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build();
                let client = client.map_err(|error| StageError::bug("no client for posts").because(error))?;
                self.client.insert(client).clone()
            }
        };
        let mut verdicts = Vec::with_capacity(messages.len());
        for message in messages {
            verdicts.push(self.post(&client, message).await);
        }
        Ok(verdicts)
    }

    async fn close(&mut self) {}
}

impl Resend {
    async fn post(&self, client: &reqwest::Client, message: &Resent) -> Result<(), NotSent> {
        let Some(path) = path(&message.topic) else {
            return Err(NotSent::Refused(format!("\"{}\" is no path of a URL", message.topic)));
        };
        let kind = match self.format {
            Format::Json => "application/x-ndjson",
            Format::Cbor => "application/cbor",
            Format::MessagePack => "application/msgpack",
        };
        let address = from_here(self.address);
        let mut request = client.post(format!("http://{address}{path}")).header(header::CONTENT_TYPE, kind);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose_secret()));
        }
        let answer = request.body(message.payload.clone()).send().await.map_err(|error| {
            NotSent::Later(format!(
                "nobody takes posts at {address} ({}): the pipeline must be running",
                innermost(&error)
            ))
        })?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(());
        }
        let body = answer.bytes().await.unwrap_or_default();
        let told = serde_json::from_slice::<Value>(&body).ok();
        let told = told.as_ref().and_then(|told| told["error"].as_str()).unwrap_or("no reason was given");
        let text = format!("the source answers {}: {told}", status.as_u16());
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::UNAUTHORIZED => {
                NotSent::Later(text)
            }
            _ => NotSent::Refused(text),
        })
    }
}

/// The path of a topic; `None` if it can't be one.
fn path(topic: &str) -> Option<String> {
    let path = format!("/{topic}");
    let is_whole = path.parse::<Uri>().is_ok_and(|uri| uri.path() == path && uri.query().is_none());
    is_whole.then_some(path)
}

/// Where a source that listens on all networks is met on its own machine.
fn from_here(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use pipeline_engine::dlq::LetterId;

    use super::*;

    fn resend(format: Format) -> Resend {
        Resend { address: "127.0.0.1:1".parse().unwrap(), token: None, schema: None, format, client: None }
    }

    fn letter(topic: Option<&str>, reason: &str, payload: &'static str) -> Letter {
        Letter {
            id: LetterId([0; 16]),
            received_at_us: 0,
            stage: "in".to_owned(),
            reason: reason.to_owned(),
            detail: None,
            topic: topic.map(str::to_owned),
            position: None,
            payload: payload.into(),
        }
    }

    fn message(letter: &Letter, to: Option<&str>) -> Result<(String, String), String> {
        let resent = resend(Format::Json).message(letter, LetterForm::Message, to)?;
        Ok((resent.topic, String::from_utf8(resent.payload.to_vec()).unwrap()))
    }

    #[test]
    fn a_letter_goes_to_its_path_as_one_line() {
        let expected = |topic: &str, payload: &str| Ok((topic.to_owned(), payload.to_owned()));
        assert_eq!(message(&letter(Some("iot/d1"), "x", "{\"n\":1}"), None), expected("iot/d1", "{\"n\":1}"));
        assert_eq!(message(&letter(Some(""), "x", "[1,\n 2]"), None), expected("", "[1,  2]"));
        assert_eq!(message(&letter(None, "x", "{}"), Some("iot/d2")), expected("iot/d2", "{}"));
        for (letter, to, why) in [
            (letter(None, "x", "{}"), None, "does not know its path"),
            (letter(Some("a b"), "x", "{}"), None, "no path of a URL"),
            (letter(Some("a?b"), "x", "{}"), None, "no path of a URL"),
            (letter(Some("a"), "oversize", "{"), None, "only the beginning"),
        ] {
            let refused = message(&letter, to).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_source_on_all_networks_is_met_on_this_machine() {
        for (address, met) in [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80"), ("10.0.0.1:80", "10.0.0.1:80")]
        {
            assert_eq!(from_here(address.parse().unwrap()).to_string(), met);
        }
    }
}
