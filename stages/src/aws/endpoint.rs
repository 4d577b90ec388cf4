//! Which endpoints may be used: encrypted ones, those of this machine, and those that somebody insists on.

use std::net::IpAddr;

/// Whether an endpoint may be used: the text and a hint if not.
pub(crate) fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<(), (String, &'static str)> {
    let Some((scheme, rest)) = endpoint.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme))
    else {
        return Err((
            format!("\"{endpoint}\" is no endpoint of an AWS service or of one that speaks its language"),
            "Write it with its scheme, such as \"https://s3.example.com\".",
        ));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err((
            "an endpoint holds no user and password".to_owned(),
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead.",
        ));
    }
    if scheme == "https" || allow_http || is_loopback(authority) {
        return Ok(());
    }
    Err((
        format!("\"{endpoint}\" is not encrypted"),
        "Use https. In a network that you trust, \"allow_http = true\" lifts the ban.",
    ))
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => authority.split(':').next(),
    };
    let host = host.unwrap_or_default();
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_for_those_who_insist() {
        for endpoint in ["http://127.0.0.1:9000", "http://localhost", "http://[::1]:9000/x", "https://s3.example.com"] {
            assert_eq!(check_endpoint(endpoint, false), Ok(()), "{endpoint}");
        }
        for endpoint in ["http://s3.example.com", "http://10.0.0.1:9000", "http://localhost.example.com", "http://"] {
            let (text, _) = check_endpoint(endpoint, false).unwrap_err();
            assert_eq!(text, format!("\"{endpoint}\" is not encrypted"));
            assert_eq!(check_endpoint(endpoint, true), Ok(()));
        }
        for endpoint in ["s3.example.com:9000", "ftp://s3.example.com", "http://127.0.0.1@s3.example.com"] {
            assert!(check_endpoint(endpoint, false).is_err(), "{endpoint}");
        }
    }
}
