//! Who may post.
//!
//! With tokens, whoever brings one of them. Without, whoever reaches the address, but no browser on behalf of a page: what
//! a page posts always names the page's origin, also where its name was made to lead here (DNS rebinding).

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::http::{HeaderMap, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};

use super::firehose;
use super::refusal::Refusal;

/// Who may post.
pub(super) struct Access {
    tokens: Vec<SecretString>,
}

impl Access {
    pub(super) fn new(tokens: Vec<SecretString>) -> Self {
        Self { tokens }
    }

    /// Whether a token is needed.
    pub(super) fn is_guarded(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// One that opens, for what this machine posts itself.
    pub(super) fn token(&self) -> Option<SecretString> {
        self.tokens.first().cloned()
    }

    /// Lets a request through, or not.
    ///
    /// # Errors
    /// What it is told instead.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if !self.is_guarded() {
            return match headers.get(header::ORIGIN) {
                None => Ok(()),
                Some(_) => Err(Refusal::new(StatusCode::FORBIDDEN, "web pages can't post here without a token")),
            };
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let brought = bearer.or_else(|| headers.get(firehose::ACCESS_KEY).map(|value| value.as_bytes()));
        match brought {
            Some(brought) if self.is_known(brought) => Ok(()),
            Some(_) => Err(Refusal::new(StatusCode::UNAUTHORIZED, "the token is not one of this source's")),
            None => Err(Refusal::new(StatusCode::UNAUTHORIZED, "a token is needed")),
        }
    }

    /// Takes as long for a token that is nearly right as for one that is not, and for the first as for the last.
    fn is_known(&self, brought: &[u8]) -> bool {
        self.tokens.iter().fold(false, |known, token| {
            known | verify_slices_are_equal(brought, token.expose_secret().as_bytes()).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn any_of_the_tokens_opens_and_nothing_else() {
        let access = Access::new(vec!["old".to_owned().into(), "new token".to_owned().into()]);
        for (name, value) in [
            ("authorization", "Bearer old"),
            ("authorization", "Bearer new token"),
            ("x-amz-firehose-access-key", "old"),
            ("x-amz-firehose-access-key", "new token"),
        ] {
            assert_eq!(access.admit(&headers(name, value)), Ok(()), "{name}: {value}");
        }
        for (name, value) in [
            ("authorization", "Bearer ol"),
            ("authorization", "Bearer olds"),
            ("authorization", "Bearer "),
            ("authorization", "Basic old"),
            ("x-amz-firehose-access-key", ""),
            ("x-amz-firehose-access-key", "Bearer old"),
            ("x-other", "old"),
        ] {
            let refusal = access.admit(&headers(name, value)).unwrap_err();
            assert_eq!(refusal.status, StatusCode::UNAUTHORIZED, "{name}: {value}");
            assert!(!refusal.message.contains("old"), "{}", refusal.message);
        }
    }

    #[test]
    fn without_tokens_no_web_page_gets_in() {
        let access = Access::new(Vec::new());
        assert_eq!(access.admit(&HeaderMap::new()), Ok(()));
        let refusal = access.admit(&headers("origin", "http://localhost:8080")).unwrap_err();
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
    }
}
