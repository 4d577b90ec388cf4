//! Who may ask, and what a browser may do with the answer.
//!
//! - Without a token, a request must name a host by which this machine can't be somebody else's: a literal address,
//!   `localhost`, or a name of `[http] hosts`. Otherwise a web page could have its own name resolved to this address and
//!   read along (DNS rebinding).
//! - With a token, every answer but the page itself needs it. The page holds no figures; it asks for the token.
//! - The browser runs nothing but this page's own files, shows it in no frame, and sends nothing anywhere else.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use pipeline_engine::HttpSettings;
use secrecy::{ExposeSecret, SecretString};

/// What every answer carries.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Who may ask.
pub struct Access {
    token: Option<SecretString>,
    hosts: Vec<String>,
}

impl Access {
    pub fn new(settings: &HttpSettings) -> Self {
        Self { token: settings.token.clone(), hosts: settings.hosts.clone() }
    }

    /// Lets a request through, or not.
    ///
    /// # Errors
    /// What it is told instead.
    fn admit(&self, request: &Request) -> Result<(), Refusal> {
        let Some(token) = &self.token else {
            return if self.is_named(request) { Ok(()) } else { Err(Refusal::Misdirected) };
        };
        let path = request.uri().path();
        // Whether it is alive, anybody may know; so may what the page looks like.
        if path == "/livez" || path == "/" || path.starts_with(super::page::FOLDER) {
            return Ok(());
        }
        let brought =
            request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        if brought.is_some_and(|brought| is_same(brought, token.expose_secret())) {
            return Ok(());
        }
        Err(Refusal::NoToken)
    }

    /// Browsers always say which host they ask.
    fn is_named(&self, request: &Request) -> bool {
        let Some(host) = request.headers().get(header::HOST) else { return true };
        let uri = host.to_str().ok().and_then(|host| format!("http://{host}/").parse::<Uri>().ok());
        let Some(name) = uri.as_ref().and_then(Uri::host) else { return false };
        let is_address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        is_address
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|host| name.eq_ignore_ascii_case(host))
    }
}

/// Checks each request, and marks each answer.
pub async fn guard(access: &Access, request: Request, next: Next) -> Response {
    let mut answer = match access.admit(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    let headers = answer.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// It names a host that may be somebody else's.
    Misdirected,
    NoToken,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Misdirected => {
                let text = "this host name is not one of the pipeline's: ask by address or as localhost, or add the name \
                            to hosts in [http] of the pipeline file\n";
                (StatusCode::MISDIRECTED_REQUEST, text).into_response()
            }
            Self::NoToken => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "a token is needed\n")
                .into_response(),
        }
    }
}

/// Takes as long for a token that is nearly right as for one that is not.
fn is_same(brought: &[u8], token: &str) -> bool {
    let token = token.as_bytes();
    brought.len() == token.len()
        && brought.iter().zip(token).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(host: &str) -> Request {
        Request::builder().uri("/healthz").header(header::HOST, host).body(Body::empty()).expect("a request")
    }

    #[test]
    fn only_a_host_that_can_be_nobody_elses_is_answered() {
        let access = Access { token: None, hosts: vec!["pipeline.example".to_owned()] };
        for host in ["localhost", "LOCALHOST:9600", "127.0.0.1:9600", "[::1]:9600", "10.1.2.3", "Pipeline.example:80"] {
            assert!(access.admit(&request(host)).is_ok(), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:9600", "127.0.0.1.evil.example", "", "a b", "pipeline.example.org"]
        {
            assert_eq!(access.admit(&request(host)), Err(Refusal::Misdirected), "{host}");
        }
    }
}
